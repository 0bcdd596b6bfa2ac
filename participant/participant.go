package participant

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"
)

// Config describes a participant. Service, DB, Dialect and one of Handler and
// Preparer are required.
type Config struct {
	Service  string  // the name it is registered under
	DB       *sql.DB // where the service's data and the outcome rows live; the caller closes it, after Close
	Dialect  Dialect
	Handler  Handler  // with SQLite and PostgreSQL
	Preparer Preparer // with PostgreSQLPrepared

	// Isolation of the local transactions that run the service's work. Default:
	// serializable. SQLite has no other; on PostgreSQL sql.LevelReadCommitted and
	// sql.LevelRepeatableRead may be chosen. The package's own rules hold at each.
	//
	// On PostgreSQL a branch that executes operations before prepare (see Executor) is
	// read committed whatever is set here: its keys are locked step by step, and a
	// snapshot of before a key was granted would show what was there before.
	Isolation sql.IsolationLevel
	// LockTimeout bounds each wait for a lock inside a local transaction, on
	// PostgreSQL; keep it below the service's prepare timeout. Default 2s. (SQLite:
	// the driver's busy timeout.)
	LockTimeout time.Duration

	// MaxOpenBranches bounds the branches whose local transaction is open because
	// operations of theirs were executed (see Executor); further ones are answered
	// 503. Each keeps a connection of DB, and on SQLite the only write lock. Default
	// 32, and at most half of DB's MaxOpenConns, but 1.
	MaxOpenBranches int
	// OpenIdle is how long such a transaction waits for the next call; then it is
	// rolled back and the branch votes no. Default 30s.
	OpenIdle time.Duration

	Limits         Limits        // of the HTTP binding
	ForgetInterval time.Duration // between two rounds of deleting forgotten outcome rows. Default 1s
	Logger         *slog.Logger  // default: slog.Default()
}

// Participant keeps the outcome rows of one service around its work. It
// implements Resource and is safe for concurrent use, also together with other
// processes on the same database. One database serves one coordinator cluster.
type Participant struct {
	cfg      Config
	log      *slog.Logger
	queries  queries
	preparer Preparer
	executor Executor // nil: nothing is executed before prepare
	open     openBranches
	native   *native       // nil: reserve, confirm, cancel
	scripts  scripts       // with native
	writer   chan struct{} // nil, or the one write transaction of this process
	forget   forgetter

	incarnations incarnations

	working     transacting    // local transactions that run the service's work
	opened      *sql.TxOptions // of those that execute it before prepare
	bookkeeping transacting    // those that do not
}

var _ Resource = (*Participant)(nil)

// New creates the package's tables if they are missing and returns a participant.
// It refuses a database that could lose a vote. Close it to end its background
// work.
func New(ctx context.Context, cfg Config) (*Participant, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("participant: %w", err)
	}
	if err := cfg.Dialect.check(ctx, cfg.DB); err != nil {
		return nil, fmt.Errorf("participant: %w", err)
	}
	p := &Participant{
		cfg: cfg, log: cfg.Logger, queries: cfg.Dialect.queries(cfg.LockTimeout), preparer: cfg.Preparer,
		working:     transacting{cfg.Dialect.options(cfg.Isolation), maxTries},
		opened:      cfg.Dialect.options(sql.LevelReadCommitted),
		bookkeeping: transacting{cfg.Dialect.options(sql.LevelReadCommitted), maxTries},
	}
	if cfg.Handler != nil {
		p.preparer = cfg.Handler
	}
	p.executor, _ = p.preparer.(Executor)
	p.open.start(p)
	if cfg.Dialect.singleWriter {
		p.writer = make(chan struct{}, 1)
	}
	err := p.transact(ctx, p.bookkeeping, func(tx *sql.Tx) (bool, error) {
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
	if cfg.Dialect.checkTables != nil {
		if err := cfg.Dialect.checkTables(ctx, cfg.DB); err != nil {
			return nil, fmt.Errorf("participant: %w", err)
		}
	}
	if cfg.Dialect.prepared {
		p.working.maxTries = maxTriesToPrepare
		p.native = &native{p: p}
		p.scripts = p.makeScripts()
	}
	p.forget.start(p)
	return p, nil
}

// complete checks the configuration and fills in its defaults.
func (cfg *Config) complete() error {
	switch {
	case cfg.Service == "":
		return errors.New("Config.Service is empty")
	case cfg.DB == nil:
		return errors.New("Config.DB is nil")
	case cfg.Dialect.name == "":
		return errors.New("Config.Dialect is not set")
	case cfg.Dialect.prepared && cfg.Handler != nil:
		return errors.New("Config.Handler is set, but with PostgreSQLPrepared the database commits and rolls back: set Config.Preparer, which has no Commit and Rollback")
	case cfg.Dialect.prepared && cfg.Preparer == nil:
		return errors.New("Config.Preparer is nil")
	case !cfg.Dialect.prepared && cfg.Preparer != nil:
		return errors.New("Config.Preparer is set, which is for PostgreSQLPrepared: without it the service commits and rolls back itself, by Config.Handler")
	case !cfg.Dialect.prepared && cfg.Handler == nil:
		return errors.New("Config.Handler is nil")
	}
	switch level := cfg.Isolation; {
	case level == sql.LevelDefault:
		cfg.Isolation = sql.LevelSerializable
	case level == sql.LevelSerializable, !cfg.Dialect.singleWriter && (level == sql.LevelReadCommitted || level == sql.LevelRepeatableRead):
	default:
		return fmt.Errorf("Config.Isolation: %s has no %s", cfg.Dialect.name, level)
	}
	if cfg.LockTimeout <= 0 {
		cfg.LockTimeout = defaultLockTimeout
	}
	if cfg.MaxOpenBranches <= 0 {
		cfg.MaxOpenBranches = defaultMaxOpenBranches
		if conns := cfg.DB.Stats().MaxOpenConnections; conns > 0 {
			cfg.MaxOpenBranches = min(cfg.MaxOpenBranches, max(conns/2, 1))
		}
	}
	if cfg.OpenIdle <= 0 {
		cfg.OpenIdle = defaultOpenIdle
	}
	if cfg.ForgetInterval <= 0 {
		cfg.ForgetInterval = time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	cfg.Limits = cfg.Limits.withDefaults()
	return nil
}

// Close ends the background work and rolls back what is open and not prepared. The
// handler must not be served any more.
func (p *Participant) Close() {
	p.open.close()
	p.forget.close()
}

// OpenBranches is the number of branches whose local transaction is open between
// calls; see Executor.
func (p *Participant) OpenBranches() int { return p.open.count() }

// Handler serves the participant over HTTP; see NewHandler.
func (p *Participant) Handler() http.Handler {
	return NewHandler(p.cfg.Service, p, p.cfg.Limits, p.log)
}

const (
	maxTries           = 50
	firstPause         = time.Millisecond
	longPause          = 100 * time.Millisecond
	defaultLockTimeout = 2 * time.Second

	defaultMaxOpenBranches = 32
	defaultOpenIdle        = 30 * time.Second
)

// transacting is how a local transaction is run.
type transacting struct {
	options  *sql.TxOptions
	maxTries int
}

// transact runs f in a local transaction, and again in a fresh one while the
// database asks for that. f reports whether to commit; an error rolls back.
// When transact returns an error, the transaction may still have been committed
// if the commit itself failed: nobody was told, and the next call finds the row.
func (p *Participant) transact(ctx context.Context, how transacting, f func(tx *sql.Tx) (commit bool, err error)) error {
	release, err := p.takeWriter(ctx)
	if err != nil {
		return err
	}
	defer release()
	return p.again(ctx, how.maxTries, func() error { return p.transactOnce(ctx, how.options, f) })
}

// takeWriter waits for the turn to write, where one must be waited for.
func (p *Participant) takeWriter(ctx context.Context) (release func(), err error) {
	if p.writer == nil {
		return func() {}, nil
	}
	select {
	case p.writer <- struct{}{}:
		return func() { <-p.writer }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// again runs f, and again while the database asks for that.
func (p *Participant) again(ctx context.Context, maxTries int, f func() error) error {
	pause := firstPause
	for try := 1; ; try++ {
		err := f()
		switch {
		case err == nil:
			return nil
		case p.cfg.Dialect.lockTimeout(err) && !errors.Is(err, ErrOverloaded):
			return fmt.Errorf("%w: a lock was not granted in time: %w", ErrOverloaded, err)
		case !p.cfg.Dialect.retryable(err) && !errors.Is(err, errRaced):
			return err
		case try == maxTries:
			return fmt.Errorf("%w: the database was busy %d times: %w", ErrOverloaded, try, err)
		}
		if ended := rest(ctx, &pause); ended != nil {
			return fmt.Errorf("%w; the database was busy: %w", ended, err)
		}
	}
}

// rest waits before another try, and longer the next time.
func rest(ctx context.Context, pause *time.Duration) error {
	timer := time.NewTimer(*pause/2 + rand.N(*pause))
	*pause = min(2**pause, longPause)
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		timer.Stop()
		return ctx.Err()
	}
}

// commitError is an error of the commit itself.
type commitError struct{ error }

func (e *commitError) Unwrap() error { return e.error }

func (p *Participant) transactOnce(ctx context.Context, options *sql.TxOptions, f func(tx *sql.Tx) (bool, error)) error {
	tx, err := p.cfg.DB.BeginTx(ctx, options)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // also when f panics; after a commit it does nothing
	commit, err := f(tx)
	if err != nil || !commit {
		return err
	}
	if err := tx.Commit(); err != nil {
		return &commitError{err}
	}
	return nil
}
