package participant

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
)

// maxResultsBytes bounds the results in one answer, encoded.
const maxResultsBytes = 512_000

// Prepare executes the branch, or repeats its vote. See Resource.
func (p *Participant) Prepare(ctx context.Context, c *Call) (Vote, error) {
	if p.native != nil {
		return p.native.prepare(ctx, c)
	}
	if err := p.current(ctx, c); err != nil {
		return Vote{}, err
	}
	return p.prepare(ctx, c, nil)
}

// hold takes the work out of tx and makes it durable, and leaves tx to be rolled
// back; mark names the local transaction.
type hold func(ctx context.Context, tx *sql.Tx, mark string) error

func (p *Participant) prepare(ctx context.Context, c *Call, hold hold) (Vote, error) {
	if p.executor != nil && (c.Executed > 0 || p.open.has(c)) {
		b, err := p.open.enter(ctx, c, false)
		if err != nil {
			return Vote{}, err
		}
		if b.transaction != nil {
			defer p.open.leave(b)
			return p.prepareOpen(ctx, c, b, hold)
		}
		p.open.leave(b)
		if p.native != nil && p.native.held.has(c) { // by the call that had the turn before
			return Vote{}, errBranchBusy
		}
	}
	v, ended, err := p.work(ctx, c, hold)
	if err != nil && !errors.Is(err, errBranchBusy) {
		if reason := p.cfg.Dialect.verdict(err); reason != "" {
			ended, err = refused(c, clip(reason, maxReasonBytes)), nil
		}
	}
	if err != nil || ended == nil {
		return v, err
	}
	return p.record(ctx, c, *ended)
}

// work executes the branch in a local transaction and commits it, or hands it to
// hold. If ended is set, the work was undone and this row is to be
// recorded for it.
func (p *Participant) work(ctx context.Context, c *Call, hold hold) (v Vote, ended *row, err error) {
	p.forget.note(c)
	mismatch := c.Mismatch()
	wrong := mismatch
	if c.Executed > 0 { // not here, or no more
		wrong = lostReason
	}
	r := preparedRow(c, hold)
	if wrong != "" {
		r.state, r.reason = stateRefused, wrong
	}
	err = p.transact(ctx, p.working, func(tx *sql.Tx) (bool, error) {
		v, ended = Vote{}, nil
		mark, inserted, err := p.insertRow(ctx, tx, c, r)
		if err != nil {
			return false, err
		}
		if !inserted {
			v, err = p.repeat(ctx, tx, c, mismatch)
			return err == nil, err
		}
		if below, err := p.isForgotten(ctx, tx, c); err != nil || below {
			v = Vote{Vote: "no", Reason: forgottenReason}
			return false, err // no row: it could not be deleted again
		}
		if wrong != "" {
			v = Vote{Vote: "no", Reason: wrong}
			return true, nil
		}
		v, ended, err = p.vote(ctx, tx, c)
		if err != nil || ended != nil {
			return false, err
		}
		if len(v.Results) > 0 {
			encoded, err := encodeList(v.Results)
			if err != nil {
				return false, err
			}
			if _, err := tx.ExecContext(ctx, p.queries.vote, r.state, p.cfg.Dialect.list(encoded), "", c.Transaction, c.Branch); err != nil {
				return false, fmt.Errorf("record results: %w", err)
			}
		}
		switch probe := p.cfg.Dialect.probe; {
		case hold != nil:
			return false, hold(ctx, tx, mark)
		case c.OnePhase && probe != "":
			// A commit that turns out a rollback would never be an answer.
			_, err := tx.ExecContext(ctx, probe)
			return err == nil, err
		}
		return true, nil
	})
	return v, ended, err
}

// preparedRow is the row of a branch as it is when the vote is yes.
func preparedRow(c *Call, hold hold) row {
	r := newRow(c, statePrepared)
	if c.OnePhase || hold != nil { // a prepared one is seen by nobody before it is committed
		r.state = stateCommitted
	}
	if hold != nil {
		r.operations = nil // nobody is handed them again
	}
	return r
}

// vote runs the service's Prepare. If ended is set, the work is to be undone and this
// row recorded.
func (p *Participant) vote(ctx context.Context, tx *sql.Tx, c *Call) (v Vote, ended *row, err error) {
	results, err := p.handle(ctx, tx, c)
	var no *refusal
	switch {
	case errors.As(err, &no):
		return Vote{}, refused(c, no.reason), nil
	case errors.Is(err, ReadOnly):
		end := newRow(c, stateReadOnly)
		end.results = results
		return Vote{}, &end, nil
	case err != nil:
		return Vote{}, nil, err
	}
	return Vote{Vote: "yes", Results: results}, nil, nil
}

// refused is the row of a vote no.
func refused(c *Call, reason string) *row {
	r := newRow(c, stateRefused)
	r.reason = reason
	return &r
}

// record writes the row of a branch whose work was undone, in a transaction of
// its own, so that nothing the handler wrote can stay.
func (p *Participant) record(ctx context.Context, c *Call, ended row) (Vote, error) {
	var v Vote
	err := p.transact(ctx, p.bookkeeping, func(tx *sql.Tx) (bool, error) {
		_, inserted, err := p.insertRow(ctx, tx, c, ended)
		switch {
		case err != nil:
			return false, err
		case !inserted: // somebody else was faster: that vote holds
			v, err = p.repeat(ctx, tx, c, c.Mismatch())
			return err == nil, err
		}
		v = ended.vote()
		return true, nil
	})
	return v, err
}

const (
	forgottenReason = "the transaction has ended and is forgotten (its id is below forgotten_below)"
	otherOperations = "this branch was prepared with other operations"
)

// handle runs the handler and checks what it returned.
func (p *Participant) handle(ctx context.Context, tx *sql.Tx, c *Call) ([]json.RawMessage, error) {
	b := c.branch(c.Operations)
	results, err := p.preparer.Prepare(ctx, tx, b)
	if err != nil && !errors.Is(err, ReadOnly) {
		return nil, err
	}
	size := 0
	for i, r := range results {
		if !json.Valid(r) {
			return nil, fmt.Errorf("result %d of the handler is not valid JSON", i)
		}
		size += len(r)
	}
	if len(results) > maxOperations || size > maxResultsBytes {
		// They are best effort, and the vote is not: refused for them, the branch would be
		// asked for its vote until the timeout.
		p.log.Warn("results of a prepare are left out: too many, or too large", "service", p.cfg.Service, "transaction", c.Transaction,
			"results", len(results), "bytes", size, "limit_bytes", maxResultsBytes)
		results = nil
	}
	if err == nil && c.OnePhase && p.cfg.Handler != nil {
		if err := p.cfg.Handler.Commit(ctx, tx, b); err != nil {
			// Not wrapped: a commit cannot vote.
			return nil, fmt.Errorf("commit of a one-phase branch: %s", err.Error())
		}
	}
	return results, err
}

func (c *Call) branch(operations []json.RawMessage) Branch {
	return Branch{Transaction: c.Transaction, Number: c.Branch, Token: c.Token, Operations: operations, OnePhase: c.OnePhase, Executed: c.Executed}
}

// repeat answers a prepare whose branch has a row.
func (p *Participant) repeat(ctx context.Context, tx *sql.Tx, c *Call, mismatch string) (Vote, error) {
	r, err := p.readRow(ctx, tx, p.queries.lock, c)
	if err != nil {
		return Vote{}, err
	}
	if r == nil {
		return Vote{}, errRaced // its owner rolled it back
	}
	if err := p.admit(ctx, tx, c, r, r.state); err != nil {
		return Vote{}, err
	}
	switch v := r.vote(); {
	case v.Vote == "no":
		return v, nil
	case mismatch != "":
		return Vote{Vote: "no", Reason: mismatch}, nil
	case c.Digest != r.digest || c.Executed+c.Count != r.opCount:
		return Vote{Vote: "no", Reason: otherOperations}, nil
	case c.OnePhase != r.onePhase:
		// Neither yes (it would say the wrong state) nor no (the branch is bound).
		return Vote{}, fmt.Errorf("%w: the branch was prepared with one_phase=%t", ErrStale, r.onePhase)
	default:
		return v, nil
	}
}

// vote is what the row answers to a prepare.
func (r *row) vote() Vote {
	switch r.state {
	case statePrepared, stateCommitted:
		return Vote{Vote: "yes", Results: r.results}
	case stateReadOnly:
		return Vote{Vote: "read_only", Results: r.results}
	case stateRefused:
		return Vote{Vote: "no", Reason: r.reason}
	default:
		return Vote{Vote: "no", Reason: "the branch was rolled back"}
	}
}
