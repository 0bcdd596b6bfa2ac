package participant

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Finish commits or rolls back the branch, or says what became of it. See Resource.
func (p *Participant) Finish(ctx context.Context, c *Call) (Outcome, error) {
	if p.native != nil {
		if err := p.native.bind(ctx, c); err != nil {
			return "", err
		}
	}
	if err := p.current(ctx, c); err != nil {
		return "", err
	}
	p.forget.note(c) // not before: another cluster's says nothing here
	if p.executor != nil && (c.Phase == PhaseRollback || p.open.has(c)) {
		b, err := p.open.enter(ctx, c, c.Phase == PhaseRollback)
		if err != nil {
			return "", err
		}
		defer p.open.leave(b)
		if b.transaction != nil {
			if err := p.open.admit(b, c); err != nil {
				return "", err
			}
			if c.Phase == PhaseCommit {
				return OutcomeUnknown, nil // nobody was told yes
			}
			p.open.end(b)
		}
	}
	if p.native != nil {
		return p.native.finish(ctx, c)
	}
	state, outcome, work := stateCommitted, OutcomeCommitted, p.cfg.Handler.Commit
	if c.Phase == PhaseRollback {
		state, outcome, work = stateRolledBack, OutcomeRolledBack, p.cfg.Handler.Rollback
	}
	err := p.transact(ctx, p.working, func(tx *sql.Tx) (bool, error) {
		operations, found, err := p.leavePrepared(ctx, tx, c, state)
		if err != nil {
			return false, err
		}
		if found {
			if err := work(ctx, tx, c.branch(operations)); err != nil {
				return false, fmt.Errorf("%s handler: %w", c.Phase, err)
			}
			return true, nil
		}
		var write bool
		outcome, write, err = p.finishOther(ctx, tx, c)
		return write, err
	})
	if err != nil {
		return "", err
	}
	return outcome, nil
}

// leavePrepared moves a prepared row to state. It is a write, and so takes the
// row's lock, whether it finds one or not.
func (p *Participant) leavePrepared(ctx context.Context, tx *sql.Tx, c *Call, state string) (operations []json.RawMessage, found bool, err error) {
	var encoded []byte
	err = tx.QueryRowContext(ctx, p.queries.finish, state, int64(c.Term), c.Token, c.Token, time.Now().UnixMilli(),
		c.Transaction, c.Branch, int64(c.Term), c.Token, c.Token).Scan(&encoded)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("update outcome row: %w", err)
	}
	operations, err = decodeList(encoded)
	return operations, true, err
}

// finishOther answers commit and rollback of a branch that is not prepared.
func (p *Participant) finishOther(ctx context.Context, tx *sql.Tx, c *Call) (o Outcome, write bool, err error) {
	r, err := p.readRow(ctx, tx, p.queries.lock, c)
	if err != nil {
		return "", false, err
	}
	if r == nil {
		if c.Phase == PhaseCommit {
			return OutcomeUnknown, false, nil
		}
		// Below the watermark no prepare can come through: no tombstone is needed.
		if below, err := p.isForgotten(ctx, tx, c); err != nil || below {
			return OutcomeRolledBack, false, err
		}
		_, inserted, err := p.insertRow(ctx, tx, c, row{state: stateRolledBack, token: c.Token, term: c.Term})
		if err == nil && !inserted {
			err = errRaced // the branch began while its rollback looked for it
		}
		return OutcomeRolledBack, true, err
	}
	state := r.state
	switch {
	case r.state == statePrepared && r.stale(c) == nil:
		return "", false, errRaced // it was prepared while its end looked for it
	case r.state == stateReadOnly && c.Phase == PhaseRollback:
		state = stateRolledBack // a prepare after a rollback votes no, here too
	}
	if err := p.admit(ctx, tx, c, r, state); err != nil {
		return "", false, err
	}
	switch state {
	case stateCommitted:
		return OutcomeCommitted, true, nil
	case stateReadOnly: // nothing to commit is committed
		return OutcomeCommitted, true, nil
	default:
		return OutcomeRolledBack, true, nil
	}
}

// Status returns the durable outcome. A branch that voted read_only has none of
// its own: it is "committed" if it was one-phase, and otherwise "prepared", which
// either decision may follow. See Resource.
func (p *Participant) Status(ctx context.Context, c *Call) (Outcome, error) {
	if p.native != nil {
		switch gid, err := p.native.find(ctx, c); {
		case err != nil:
			return "", err
		case gid != "":
			return OutcomePrepared, nil
		}
	}
	// After that look: a branch is in one place or the other, or has moved to the row.
	r, err := p.readRow(ctx, p.cfg.DB, p.queries.read, c)
	switch {
	case err != nil:
		return "", err
	case r == nil:
		return OutcomeUnknown, nil
	case r.state == stateReadOnly && r.onePhase:
		return OutcomeCommitted, nil
	case r.state == stateReadOnly, r.state == statePrepared:
		return OutcomePrepared, nil
	case r.state == stateCommitted:
		return OutcomeCommitted, nil
	default:
		return OutcomeRolledBack, nil
	}
}

// InDoubt lists prepared branches. See Resource.
func (p *Participant) InDoubt(ctx context.Context, transaction string, branch uint32, limit int) ([]InDoubt, error) {
	if p.native != nil {
		return p.native.inDoubt(ctx, transaction, branch, limit)
	}
	rows, err := p.cfg.DB.QueryContext(ctx, p.queries.inDoubt, transaction, transaction, branch, limit)
	if err != nil {
		return nil, fmt.Errorf("list in doubt: %w", err)
	}
	defer rows.Close()
	var list []InDoubt
	for rows.Next() {
		var b InDoubt
		if err := rows.Scan(&b.Transaction, &b.Branch, &b.SinceMs); err != nil {
			return nil, fmt.Errorf("list in doubt: %w", err)
		}
		list = append(list, b)
	}
	return list, rows.Err()
}
