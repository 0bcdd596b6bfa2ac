package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/assent-tx/assent/participant"
)

// maxSweepBranches bounds one look.
const maxSweepBranches = 10_000

// sweepForever looks for branches that nobody ends.
//
//	prepared, older than OrphanAfter, seen by two sweeps ──► what does the coordinator say?
//	  open, or decided and not ended    leave it: the coordinator will come
//	  no record                         have ABORT recorded for the id, then roll back
//	  aborted                           roll back
//	  committed, or expired             touch nothing, alarm
func (a *Agent) sweepForever(ctx context.Context) {
	tick := time.NewTicker(a.cfg.SweepInterval)
	defer tick.Stop()
	for {
		if err := a.sweep(ctx); err != nil && ctx.Err() == nil {
			a.metrics.sweepErrors.Inc()
			a.log.Warn("the sweep failed; it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (a *Agent) sweep(ctx context.Context) error {
	branches, err := a.part.InDoubt(ctx, "", 0, maxSweepBranches)
	if err != nil {
		return err
	}
	now := time.Now()
	var oldest time.Duration
	seen, warned := map[string]bool{}, map[string]bool{}
	var errs []error
	for _, b := range branches {
		age := now.Sub(time.UnixMilli(b.SinceMs))
		oldest = max(oldest, age)
		key := fmt.Sprintf("%s/%d", b.Transaction, b.Branch)
		if age >= a.cfg.WarnAfter {
			warned[key] = true
			if !a.warned[key] {
				a.log.Warn("a branch has been prepared for long: its locks are held, and the server cannot vacuum past it",
					"transaction", b.Transaction, "branch", b.Branch, "age", age.Round(time.Second))
			}
		}
		if age < a.cfg.OrphanAfter {
			continue
		}
		seen[key] = true
		if a.suspect[key] {
			if err := a.settle(ctx, b); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", key, err))
			}
		}
	}
	a.suspect, a.warned = seen, warned
	a.metrics.prepared.Set(float64(len(branches)))
	a.metrics.oldest.Set(oldest.Seconds())
	a.metrics.sweeps.Inc()
	return errors.Join(errs...)
}

// settle ends a branch that the coordinator does not know, or leaves it.
func (a *Agent) settle(ctx context.Context, b participant.InDoubt) error {
	state, err := a.coord.state(ctx, b.Transaction)
	if err != nil {
		return err
	}
	if state == "" {
		// Its absence may be a moment old: the record decides, for good.
		if state, err = a.coord.abort(ctx, b.Transaction); err != nil {
			return err
		}
	}
	switch state {
	case "aborted":
		return a.rollback(ctx, b)
	case "committed", "expired":
		a.metrics.hazards.Inc()
		a.log.Error("a branch is prepared although its transaction has ended: nothing is touched; compare the data, then end it by hand",
			"transaction", b.Transaction, "branch", b.Branch, "state", state)
	}
	return nil // active, preparing, committing, aborting: the coordinator will come
}

func (a *Agent) rollback(ctx context.Context, b participant.InDoubt) error {
	var cluster string
	err := a.db.QueryRowContext(ctx, `SELECT cluster FROM assent_cluster`).Scan(&cluster)
	if errors.Is(err, sql.ErrNoRows) {
		return nil // it has been ended meanwhile, and more
	}
	if err != nil {
		return fmt.Errorf("read the cluster's name: %w", err)
	}
	outcome, err := a.part.Finish(ctx, &participant.Call{
		Phase: participant.PhaseRollback, Cluster: cluster, Transaction: b.Transaction, Branch: b.Branch, Service: a.cfg.Service,
	})
	if err != nil {
		return err
	}
	a.metrics.orphans.Inc()
	a.log.Warn("an orphan was rolled back: it was prepared, and its transaction has aborted", "transaction", b.Transaction, "branch", b.Branch, "outcome", outcome)
	return nil
}
