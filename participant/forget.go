package participant

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"
)

// home is a shard of the coordinator.
type home struct{ shard, shards uint32 }

// forgetter deletes outcome rows that ended and that the coordinator has
// forgotten, off the path of calls and in small transactions.
//
// Order: the watermark is durable before the first row below it goes. Whoever
// then finds no row reads the watermark after that look, and so cannot take a
// deleted tombstone for a branch that never was.
type forgetter struct {
	p    *Participant
	mu   sync.Mutex
	seen map[home]string // highest forgotten_below heard
	done map[home]string // what of it has been worked off

	wake chan struct{} // capacity 1
	stop context.CancelFunc
	end  chan struct{}
}

const forgetBatchRows = 500

func (f *forgetter) start(p *Participant) {
	ctx, cancel := context.WithCancel(context.Background())
	f.p, f.stop = p, cancel
	f.seen, f.done = make(map[home]string), make(map[home]string)
	f.wake, f.end = make(chan struct{}, 1), make(chan struct{})
	go f.run(ctx)
}

func (f *forgetter) close() {
	f.stop()
	<-f.end
}

// note remembers the call's forgotten_below if it is the highest.
func (f *forgetter) note(c *Call) {
	if c.ForgottenBelow == "" || c.Shards == 0 {
		return
	}
	h := home{c.Shard, c.Shards}
	f.mu.Lock()
	raised := c.ForgottenBelow > f.seen[h]
	if raised {
		f.seen[h] = c.ForgottenBelow
	}
	f.mu.Unlock()
	if raised {
		f.wakeUp()
	}
}

func (f *forgetter) wakeUp() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// isForgotten reports whether the transaction is below what this process has
// heard, or any process on this database has begun to delete. It reads after the
// caller's look for the row.
func (p *Participant) isForgotten(ctx context.Context, tx *sql.Tx, c *Call) (bool, error) {
	shards, shard := int64(c.Shards), int64(c.Shard)
	if c.Shards == 0 {
		if p.native == nil {
			return false, nil
		}
		shards, shard = -1, -1 // nobody's: the statement also ends the short wait of the insert
	}
	p.forget.mu.Lock()
	below := c.Transaction < p.forget.seen[home{c.Shard, c.Shards}]
	p.forget.mu.Unlock()
	if below {
		return true, nil
	}
	var forgotten sql.NullString
	err := tx.QueryRowContext(ctx, p.queries.readForgotten, shards, shard).Scan(&forgotten)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, fmt.Errorf("read watermark: %w", err)
	}
	return c.Transaction < forgotten.String, nil
}

func (f *forgetter) run(ctx context.Context) {
	defer close(f.end)
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		for h, below := range f.due() {
			if err := f.p.deleteForgotten(ctx, h, below); err != nil {
				if ctx.Err() == nil {
					f.p.log.Warn("deleting forgotten outcome rows failed; trying again", "service", f.p.cfg.Service, "error", err)
				}
				f.wakeUp()
				continue
			}
			f.mu.Lock()
			f.done[h] = below
			f.mu.Unlock()
		}
		timer := time.NewTimer(f.p.cfg.ForgetInterval)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

func (f *forgetter) due() map[home]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	due := make(map[home]string)
	for h, below := range f.seen {
		if f.done[h] < below {
			due[h] = below
		}
	}
	return due
}

// deleteForgotten raises the shard's watermark and deletes what is below it.
func (p *Participant) deleteForgotten(ctx context.Context, h home, below string) error {
	err := p.transact(ctx, p.bookkeeping, func(tx *sql.Tx) (bool, error) {
		if _, err := tx.ExecContext(ctx, p.queries.insertForgotten, h.shards, h.shard, below); err != nil {
			return false, err
		}
		_, err := tx.ExecContext(ctx, p.queries.raiseForgotten, below, h.shards, h.shard, below)
		return true, err
	})
	if err != nil {
		return fmt.Errorf("raise watermark: %w", err)
	}
	for from := ""; from < below; {
		var to string
		err := p.transact(ctx, p.bookkeeping, func(tx *sql.Tx) (bool, error) {
			to = below
			err := tx.QueryRowContext(ctx, p.queries.page, from, below, forgetBatchRows-1).Scan(&to)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return false, err
			}
			_, err = tx.ExecContext(ctx, p.queries.remove, from, to, below, h.shards, h.shard)
			return true, err
		})
		if err != nil {
			return fmt.Errorf("delete rows: %w", err)
		}
		from = to
	}
	return nil
}
