package participant

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Execution is the answer to an execute.
type Execution struct {
	Executed bool
	ID       string            // names the open local transaction; at most 64 bytes
	Results  []json.RawMessage // one for each operation of the call; nil is null

	// Of a refusal, which is definite: the transaction must be rolled back.
	Reason    string // stable; see the constants
	Message   string // for people
	Retryable bool   // the same work may succeed in a new transaction
}

// Why an execute was refused.
const (
	ReasonExecutionLost      = "EXECUTION_LOST"      // what was executed before is gone: a restart, a lost connection, the idle limit
	ReasonExecutionRefused   = "EXECUTION_REFUSED"   // by the service
	ReasonExecutionConflict  = "EXECUTION_CONFLICT"  // by what others do: a serialization failure, a deadlock, a lock not granted in time
	ReasonExecutionMismatch  = "EXECUTION_MISMATCH"  // the digest says other operations than this branch has
	ReasonExecutionLimit     = "EXECUTION_LIMIT"     // too many operations, or too many bytes of them and their results
	ReasonBranchEnded        = "BRANCH_ENDED"        // prepared, committed, rolled back or refused
	ReasonExecuteUnsupported = "EXECUTE_UNSUPPORTED" // the service has no Executor
)

// refusals are those that end a branch, and stand in its row.
var refusals = []string{ReasonExecutionLost, ReasonExecutionRefused, ReasonExecutionConflict, ReasonExecutionMismatch, ReasonExecutionLimit}

// lostReason is the reason of a vote no of a branch whose executed work is gone.
const lostReason = ReasonExecutionLost + ": this branch has no open transaction in which these operations were executed"

// maxOpenBytes bounds the operations and results that one open branch remembers.
const maxOpenBytes = 4 << 20

const unsupportedMessage = "this service executes nothing before prepare"

// savepoint is where a call after the first one returns to when it fails.
const savepoint = "assent_execute"

func refusedExecution(reason, message string) *Execution {
	return &Execution{
		Reason: reason, Message: clip(message, maxReasonBytes),
		Retryable: reason == ReasonExecutionLost || reason == ReasonExecutionConflict,
	}
}

// Execute executes operations in the branch's open local transaction, which the
// first call begins, or repeats their results. It goes on when the caller has
// gone, so that the caller's next try finds them.
func (p *Participant) Execute(ctx context.Context, c *Call) (Execution, error) {
	if p.executor == nil {
		return *refusedExecution(ReasonExecuteUnsupported, unsupportedMessage), nil
	}
	if p.native != nil {
		if err := p.native.bind(ctx, c); err != nil {
			return Execution{}, err
		}
	}
	if err := p.current(ctx, c); err != nil {
		return Execution{}, err
	}
	p.forget.note(c)
	b, err := p.open.enter(ctx, c, false)
	if err != nil {
		return Execution{}, err
	}
	defer p.open.leave(b)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.cfg.Limits.CallTimeout)
	defer cancel()
	if b.transaction != nil {
		if err := p.open.admit(b, c); err != nil {
			return Execution{}, err
		}
	}
	x, err := p.executeOr(ctx, c, b)
	if err == nil && !x.Executed && x.Reason != ReasonBranchEnded {
		// A refusal ends the branch, durably: neither its operations nor a prepare may
		// come through later.
		p.open.end(b)
		err = p.refuse(ctx, c, x.Reason+": "+x.Message)
	}
	switch {
	case err == nil:
		return x, nil
	case p.native != nil && errors.Is(err, errBranchBusy): // perhaps because it is prepared
		if gid, look := p.native.find(ctx, c); look == nil && gid != "" {
			return *refusedExecution(ReasonBranchEnded, "the branch is prepared"), nil
		}
	}
	return Execution{}, err
}

// refuse records that an open branch is refused, unless it has a row or is forgotten.
func (p *Participant) refuse(ctx context.Context, c *Call, reason string) error {
	r := refused(c, reason)
	r.operations = nil // nobody is handed them
	return p.transact(ctx, p.bookkeeping, func(tx *sql.Tx) (bool, error) {
		_, inserted, err := p.insertRow(ctx, tx, c, *r)
		if err != nil || !inserted {
			return false, err
		}
		below, err := p.isForgotten(ctx, tx, c)
		return !below, err
	})
}

// executeOr executes, or says why not.
func (p *Participant) executeOr(ctx context.Context, c *Call, b *openBranch) (Execution, error) {
	n, last := len(b.operations), c.First+len(c.Operations)
	switch {
	case b.transaction == nil && (c.First > 0 || c.Execution != "" || c.Opened):
		if x, err := p.endedExecution(ctx, c); err != nil || x != nil {
			return deref(x), err
		}
		return *refusedExecution(ReasonExecutionLost, "this branch has no open transaction here"), nil
	case b.transaction == nil && c.Mismatch() != "":
		return *refusedExecution(ReasonExecutionMismatch, c.Mismatch()), nil
	case b.transaction == nil:
		return p.executeFirst(ctx, c, b)
	case c.Execution != "" && c.Execution != b.id:
		return *refusedExecution(ReasonExecutionLost, "this branch was executed in another transaction, which is gone"), nil
	case c.First > n:
		return *refusedExecution(ReasonExecutionLost, fmt.Sprintf("the call begins at operation %d; %d are executed here", c.First, n)), nil
	case c.First < n && last <= n && hex.EncodeToString(b.digests[last-1]) == c.Digest:
		return Execution{Executed: true, ID: b.id, Results: slices.Clone(b.results[c.First:last])}, nil
	}
	fresh := *c // of a call that repeats some and adds others, those it adds
	fresh.First = n
	fresh.Operations = c.Operations[min(n-c.First, len(c.Operations)):]
	if c.Count != len(c.Operations) || len(fresh.Operations) == 0 || b.digestWith(fresh.Operations) != c.Digest {
		return *refusedExecution(ReasonExecutionMismatch, "other operations were executed in this branch, or on the way here they changed"), nil
	}
	repeated := slices.Clone(b.results[c.First:])
	x, err := p.executeNext(ctx, &fresh, b)
	if x.Executed {
		x.Results = append(repeated, x.Results...)
	}
	return x, err
}

func deref(x *Execution) Execution {
	if x == nil {
		return Execution{}
	}
	return *x
}

// executeFirst opens the branch. Nothing was told to anybody yet, so it may do so
// several times.
func (p *Participant) executeFirst(ctx context.Context, c *Call, b *openBranch) (Execution, error) {
	var x Execution
	err := p.again(ctx, p.working.maxTries, func() (err error) {
		x, err = p.openAndRun(ctx, c, b)
		if err != nil && b.ended != nil && b.ended.Err() != nil {
			err = fmt.Errorf("%w: %w", errEndedMeanwhile, err)
		}
		if err != nil || !x.Executed {
			p.open.end(b)
		}
		return err
	})
	switch {
	case err == nil && x.Reason == ReasonBranchEnded && x.Message == "": // its row says how
		ended, err := p.endedExecution(ctx, c)
		if err == nil && ended == nil {
			err = fmt.Errorf("%w: the branch's row is gone", ErrOverloaded) // asked again
		}
		return deref(ended), err
	case err != nil && !errors.Is(err, errBranchBusy):
		if refusal := p.refusalFor(err); refusal != nil {
			return *refusal, nil
		}
	}
	return x, err
}

// openAndRun begins the local transaction with the outcome row, and executes.
func (p *Participant) openAndRun(ctx context.Context, c *Call, b *openBranch) (Execution, error) {
	if err := p.open.begin(ctx, b, c); err != nil {
		return Execution{}, err
	}
	work, cancel := b.during(ctx)
	defer cancel()
	// Says "refused" until the vote: that is what is true if this were committed.
	first := newRow(c, stateRefused)
	first.operations = nil
	mark, inserted, err := p.insertRow(work, b.transaction, c, first)
	if err != nil {
		return Execution{}, err
	}
	if !inserted {
		return *refusedExecution(ReasonBranchEnded, ""), nil
	}
	b.mark = mark
	if below, err := p.isForgotten(work, b.transaction, c); err != nil || below {
		return *refusedExecution(ReasonBranchEnded, forgottenReason), err
	}
	return p.run(work, c, b)
}

// executeNext executes further operations; if they fail, only they are undone.
func (p *Participant) executeNext(ctx context.Context, c *Call, b *openBranch) (Execution, error) {
	work, cancel := b.during(ctx)
	defer cancel()
	if _, err := b.transaction.ExecContext(work, `SAVEPOINT `+savepoint); err != nil {
		return p.lost(b, err)
	}
	x, err := p.run(work, c, b)
	if err == nil {
		return x, nil
	}
	if refusal := p.refusalFor(err); refusal != nil {
		return *refusal, nil
	}
	if p.cfg.Dialect.retryable(err) { // the snapshot, or the place in a cycle, stays the same
		p.log.Debug("executing conflicts", "service", p.cfg.Service, "transaction", c.Transaction, "error", err)
		return *refusedExecution(ReasonExecutionConflict, "the database asks for the transaction to be run again"), nil
	}
	if _, undo := b.transaction.ExecContext(work, `ROLLBACK TO SAVEPOINT `+savepoint); undo != nil {
		return p.lost(b, errors.Join(err, undo))
	}
	if p.cfg.Dialect.lockTimeout(err) {
		err = fmt.Errorf("%w: a lock was not granted in time: %w", ErrOverloaded, err)
	}
	return Execution{}, err
}

// errEndedMeanwhile is for whoever executed while a rollback came: the next try is
// refused.
var errEndedMeanwhile = fmt.Errorf("%w: the branch was ended meanwhile", ErrOverloaded)

// lost refuses for a local transaction that cannot go on.
func (p *Participant) lost(b *openBranch, err error) (Execution, error) {
	if b.ended.Err() != nil {
		return Execution{}, fmt.Errorf("%w: %w", errEndedMeanwhile, err)
	}
	p.log.Warn("an open branch was lost", "service", p.cfg.Service, "transaction", b.key.transaction, "branch", b.key.branch, "error", err)
	return *refusedExecution(ReasonExecutionLost, "the open transaction was lost"), nil
}

// refusalFor is the refusal that an error of the work means, or nil.
func (p *Participant) refusalFor(err error) *Execution {
	var no *refusal
	if errors.As(err, &no) {
		if no.retryable {
			return refusedExecution(ReasonExecutionConflict, no.reason)
		}
		return refusedExecution(ReasonExecutionRefused, no.reason)
	}
	verdict := p.cfg.Dialect.verdict(err)
	switch {
	case verdict == "":
		return nil
	case p.cfg.Dialect.retryable(err), p.cfg.Dialect.lockTimeout(err):
		return refusedExecution(ReasonExecutionConflict, verdict)
	}
	return refusedExecution(ReasonExecutionRefused, verdict)
}

// run executes the call's operations, which follow those that the branch has
// executed, and remembers them.
func (p *Participant) run(ctx context.Context, c *Call, b *openBranch) (Execution, error) {
	done := false
	defer func() {
		if !done { // the service panicked: nothing is known of the transaction
			p.open.end(b)
		}
	}()
	x, err := p.runAll(ctx, c, b)
	done = true
	return x, err
}

func (p *Participant) runAll(ctx context.Context, c *Call, b *openBranch) (Execution, error) {
	before := len(b.operations)
	if before+len(c.Operations) > maxExecuted {
		return *refusedExecution(ReasonExecutionLimit, fmt.Sprintf("more than %d operations of one branch", maxExecuted)), nil
	}
	all := append(slices.Clip(b.operations), c.Operations...)
	results := make([]json.RawMessage, 0, len(c.Operations))
	bytes, resultBytes := b.bytes, 0
	for i, payload := range c.Operations {
		branch := c.branch(all[:before+i+1])
		branch.Executed = before + i
		result, err := p.executor.Execute(ctx, b.transaction, branch)
		switch {
		case err != nil:
			return Execution{}, fmt.Errorf("execute: %w", err)
		case result == nil:
			result = json.RawMessage("null")
		case !json.Valid(result):
			return Execution{}, fmt.Errorf("the result of operation %d is not valid JSON", before+i)
		}
		results = append(results, result)
		resultBytes += len(result)
		bytes += len(payload) + len(result)
		if bytes > maxOpenBytes || resultBytes > maxResultsBytes {
			return *refusedExecution(ReasonExecutionLimit, fmt.Sprintf(
				"more than %d bytes of results in one call, or more than %d bytes of operations and results in one branch", maxResultsBytes, maxOpenBytes)), nil
		}
	}
	b.remember(c.Operations, results)
	return Execution{Executed: true, ID: b.id, Results: results}, nil
}

// endedExecution refuses by the branch's row, or returns nil if there is none.
func (p *Participant) endedExecution(ctx context.Context, c *Call) (*Execution, error) {
	var x *Execution
	err := p.transact(ctx, p.bookkeeping, func(tx *sql.Tx) (bool, error) {
		x = nil
		r, err := p.readRow(ctx, tx, p.queries.lock, c)
		if err != nil || r == nil {
			return false, err
		}
		if err := p.admit(ctx, tx, c, r, r.state); err != nil {
			return false, err
		}
		x = refusedExecution(ReasonBranchEnded, "the branch is "+r.state)
		if code, message, _ := strings.Cut(r.reason, ": "); r.state == stateRefused && slices.Contains(refusals, code) {
			x = refusedExecution(code, message) // as it was refused the first time
		}
		return true, nil
	})
	return x, err
}
