package participant

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"strings"
)

// Branch is the part of a transaction that this service executes.
type Branch struct {
	Transaction string            // the transaction's id, a UUIDv7
	Number      uint32            // of the branch within the transaction, from 1
	Token       string            // fencing token of the branch's locks; later grants compare greater as text. May be empty
	Operations  []json.RawMessage // payloads in their order, exactly as received; the same in every phase
	OnePhase    bool              // it is committed in the same local transaction

	// Executed says, in Prepare and Execute, how many of Operations have been executed
	// by an Executor: Prepare does those behind them. 0 in Commit and Rollback.
	Executed int
}

// Preparer is the service's work where the database itself holds, commits and
// rolls back what was done (PostgreSQLPrepared): the work of a branch, once, on
// the real rows, as in any local transaction. What holds for Handler.Prepare
// holds here, but nothing needs to be reserved or undone.
type Preparer interface {
	Prepare(ctx context.Context, tx *sql.Tx, b Branch) (results []json.RawMessage, err error)
}

// Handler is the service's work. Every method runs in a local transaction that
// the package begins and ends; a method must do all its work through tx, must
// not end it, and may be run again in a fresh one when the database asks for a
// retry. Each takes effect at most once per branch.
type Handler interface {
	// Prepare executes the operations so that Commit cannot fail and Rollback can
	// undo: it checks, and reserves. Its results go to the client.
	//
	// An error made by No is a durable refusal, ReadOnly says that there is
	// nothing to commit; in both cases what was written to tx is discarded. Any
	// other error is not a vote: the coordinator asks again, until the
	// transaction's timeout.
	Prepare(ctx context.Context, tx *sql.Tx, b Branch) (results []json.RawMessage, err error)

	// Commit makes a prepared branch permanent. It has no right to refuse: after
	// an error it is called again, without limit.
	Commit(ctx context.Context, tx *sql.Tx, b Branch) error

	// Rollback undoes a prepared branch. It is not called for a branch that was
	// never prepared here. After an error it is called again, without limit.
	Rollback(ctx context.Context, tx *sql.Tx, b Branch) error
}

// Executor is implemented by a Handler or Preparer whose operations may also be
// executed one by one, before the client asks to commit, so that it gets their
// results at once. They run in one local transaction of the branch, which stays
// open between them and in which Prepare goes on: what was executed is not yet
// visible to others, and is gone when the connection, the process or its idle time
// ends. The branch then votes no.
type Executor interface {
	// Execute executes b.Operations[b.Executed], the last of them, and returns its
	// result, a JSON value or nil. All its work goes through tx, which it must not end.
	//
	// An error made by No refuses, and with it the whole transaction. Any other error
	// is no answer, and the operation may be executed again; what it wrote is undone.
	Execute(ctx context.Context, tx *sql.Tx, b Branch) (result json.RawMessage, err error)
}

// ReadOnly is returned by Prepare, together with the results, when the branch
// only read: it ends here and is not asked to commit.
var ReadOnly = errors.New("participant: read only") //nolint:errname,staticcheck // a vote, named as one

// refusal is a vote no.
type refusal struct {
	reason    string
	retryable bool
}

func (r *refusal) Error() string { return r.reason }

// No is returned by Prepare to vote no, and by Execute to refuse. The reason is shown to the client; it is
// cut to 1,024 bytes.
func No(reason string) error { return refuse(reason, false) }

// Conflict is No for what others are in the way of: the same work may succeed in a
// new transaction.
func Conflict(reason string) error { return refuse(reason, true) }

func refuse(reason string, retryable bool) error {
	// A NUL cannot be recorded everywhere.
	return &refusal{clip(strings.ReplaceAll(reason, "\x00", "\uFFFD"), maxReasonBytes), retryable}
}

const maxReasonBytes = 1024
