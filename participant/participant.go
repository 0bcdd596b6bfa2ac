package participant

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"
)

// Config describes a participant. Service, DB, Dialect and Handler are required.
type Config struct {
	Service string  // the name it is registered under
	DB      *sql.DB // where the service's data and the outcome rows live; the caller closes it, after Close
	Dialect Dialect
	Handler Handler

	Limits         Limits        // of the HTTP binding
	ForgetInterval time.Duration // between two rounds of deleting forgotten outcome rows. Default 1s
	Logger         *slog.Logger  // default: slog.Default()
}

// Participant keeps the outcome rows of one service around a Handler. It
// implements Resource and is safe for concurrent use, also together with other
// processes on the same database. One database serves one coordinator cluster.
type Participant struct {
	cfg     Config
	log     *slog.Logger
	queries queries
	writer  chan struct{} // nil, or the one write transaction of this process
	forget  forgetter
}

var _ Resource = (*Participant)(nil)

// New creates the tables assent_outcome and assent_watermark if they are missing
// and returns a participant. Close it to end its background work.
func New(ctx context.Context, cfg Config) (*Participant, error) {
	switch {
	case cfg.Service == "":
		return nil, errors.New("participant: Config.Service is empty")
	case cfg.DB == nil:
		return nil, errors.New("participant: Config.DB is nil")
	case cfg.Dialect.name == "":
		return nil, errors.New("participant: Config.Dialect is not set")
	case cfg.Handler == nil:
		return nil, errors.New("participant: Config.Handler is nil")
	}
	if cfg.ForgetInterval <= 0 {
		cfg.ForgetInterval = time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	cfg.Limits = cfg.Limits.withDefaults()
	if err := cfg.Dialect.check(ctx, cfg.DB); err != nil {
		return nil, fmt.Errorf("participant: %w", err)
	}
	p := &Participant{cfg: cfg, log: cfg.Logger, queries: newQueries(cfg.Dialect.rebind)}
	if cfg.Dialect.singleWriter {
		p.writer = make(chan struct{}, 1)
	}
	err := p.transact(ctx, func(tx *sql.Tx) (bool, error) {
		for _, statement := range cfg.Dialect.schema {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return false, err
			}
		}
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("participant: create tables: %w", err)
	}
	p.forget.start(p)
	return p, nil
}

// Close ends the background work. The handler must not be served any more.
func (p *Participant) Close() { p.forget.close() }

// Handler serves the participant over HTTP; see NewHandler.
func (p *Participant) Handler() http.Handler {
	return NewHandler(p.cfg.Service, p, p.cfg.Limits, p.log)
}

const (
	maxTries   = 50
	firstPause = time.Millisecond
	longPause  = 100 * time.Millisecond
)

// transact runs f in a local transaction, and again in a fresh one while the
// database asks for that. f reports whether to commit; an error rolls back.
// When transact returns an error, the transaction may still have been committed
// if the commit itself failed: nobody was told, and the next call finds the row.
func (p *Participant) transact(ctx context.Context, f func(tx *sql.Tx) (commit bool, err error)) error {
	if p.writer != nil {
		select {
		case p.writer <- struct{}{}:
			defer func() { <-p.writer }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	pause := firstPause
	for try := 1; ; try++ {
		err := p.transactOnce(ctx, f)
		if err == nil || !p.cfg.Dialect.retryable(err) {
			return err
		}
		if try == maxTries {
			return fmt.Errorf("%w: the database was busy %d times: %w", ErrOverloaded, try, err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w; the database was busy: %w", ctx.Err(), err)
		}
		pause = min(2*pause, longPause)
	}
}

func (p *Participant) transactOnce(ctx context.Context, f func(tx *sql.Tx) (bool, error)) error {
	tx, err := p.cfg.DB.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // also when f panics; after a commit it does nothing
	commit, err := f(tx)
	if err != nil || !commit {
		return err
	}
	return tx.Commit()
}
