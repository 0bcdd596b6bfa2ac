package participant

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// prepareOpen goes on in the branch's open local transaction and makes it durable,
// or votes no: what was executed cannot be executed again, since its results were
// told. Like Execute it goes on when the caller has gone.
func (p *Participant) prepareOpen(ctx context.Context, c *Call, b *openBranch, hold hold) (Vote, error) {
	if err := p.open.admit(b, c); err != nil {
		return Vote{}, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.cfg.Limits.CallTimeout)
	defer cancel()
	done := false
	defer func() {
		if !done { // the service panicked
			p.open.end(b)
		}
	}()
	v, ended, err := p.workOpen(ctx, c, b, hold)
	interrupted := b.ended.Err() != nil
	p.open.end(b)
	done = true
	if err == nil && ended == nil {
		return v, nil
	}
	if ended == nil {
		reason := p.cfg.Dialect.verdict(err)
		if reason == "" {
			reason = lostReason
			if !interrupted {
				p.log.Warn("an open branch could not be prepared", "service", p.cfg.Service, "transaction", c.Transaction, "branch", c.Branch, "error", err)
			}
		}
		ended = refused(c, clip(reason, maxReasonBytes))
	}
	// If the commit came through all the same, its row is there, and that vote holds.
	return p.record(ctx, c, *ended)
}

// workOpen is work for an open branch.
func (p *Participant) workOpen(ctx context.Context, c *Call, b *openBranch, hold hold) (v Vote, ended *row, err error) {
	if c.Executed != len(b.operations) || c.Mismatch() != "" || b.digestWith(c.Operations) != c.Digest || c.Execution != "" && c.Execution != b.id {
		return Vote{}, refused(c, lostReason), nil
	}
	work, cancel := b.during(ctx)
	defer cancel()
	whole := *c
	whole.Operations = append(slices.Clip(b.operations), c.Operations...)
	v, ended, err = p.vote(work, b.transaction, &whole)
	if err != nil || ended != nil {
		return v, ended, err
	}
	if err := p.settle(work, b, preparedRow(&whole, hold), v); err != nil {
		return Vote{}, nil, err
	}
	if hold != nil {
		return v, nil, hold(work, b.transaction, b.mark)
	}
	if probe := p.cfg.Dialect.probe; probe != "" { // a commit that turns out a rollback
		if _, err := b.transaction.ExecContext(work, probe); err != nil {
			return Vote{}, nil, err
		}
	}
	if err := b.commit(work); err != nil {
		return Vote{}, nil, err
	}
	return v, nil, nil
}

// settle makes the row that the branch began with say what is true once it is
// prepared.
func (p *Participant) settle(ctx context.Context, b *openBranch, r row, v Vote) error {
	operations, err := encodeList(r.operations)
	if err != nil {
		return err
	}
	results, err := encodeList(v.Results)
	if err != nil {
		return err
	}
	list := p.cfg.Dialect.list
	done, err := b.transaction.ExecContext(ctx, p.queries.settle, r.state, r.digest, r.opCount, r.onePhase, max(b.token, r.token), int64(max(b.term, r.term)),
		list(operations), list(results), time.Now().UnixMilli(), b.key.transaction, b.key.branch)
	if err != nil {
		return fmt.Errorf("record the vote: %w", err)
	}
	switch n, err := done.RowsAffected(); {
	case err != nil:
		return err
	case n != 1:
		return errors.New("the outcome row of the open transaction is gone: it was ended")
	}
	return nil
}
