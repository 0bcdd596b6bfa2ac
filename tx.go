package assent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// Option of Run.
type Option func(*options)

type options struct {
	timeout, idle time.Duration
	tries         int
}

// WithTimeout bounds each try, from its begin to its decision: 10 ms to 1 h. Default:
// the coordinator's, 1 minute.
func WithTimeout(d time.Duration) Option { return func(o *options) { o.timeout = d } }

// WithIdleTimeout bounds how long the coordinator waits for a client that has died:
// 100 ms to 10 min, default 10 s. The client is heard three times in that time.
func WithIdleTimeout(d time.Duration) Option { return func(o *options) { o.idle = d } }

// WithTries bounds how often the transaction is tried: at least once. Default 10.
func WithTries(n int) Option { return func(o *options) { o.tries = n } }

const (
	defaultIdle  = 10 * time.Second
	defaultTries = 10
	// rollbackPatience is what the rollback of a failed try may take, and lateRollback what
	// it may once the context has ended; the coordinator ends it by itself otherwise.
	rollbackPatience = 5 * time.Second
	lateRollback     = time.Second
)

// Run runs f as a transaction and commits it. If f returns an error, or panics, the
// transaction is rolled back, and that is what Run does, too.
//
// It is also rolled back, whatever f returns, if a step of it ended without an answer,
// because its context had ended: such a step may be taken yet. Another transaction that f
// runs inside waits for the locks of this one until a timeout. A rollback may take a second
// after ctx has ended.
//
// A transaction that is a deadlock's victim or gives way to an older one, waits too long for
// a lock or in too long a queue, or meets a conflict at a participant or a loss of what that
// had executed, is tried again: f runs again, with another Tx, so it must
// leave nothing behind outside the transaction. That holds also where f returns an error
// of its own, as it does when a service that it called has met the abort. After the last
// try the *AbortedError is returned, joined to f's own error if there is one.
func (c *Client) Run(ctx context.Context, f func(ctx context.Context, tx *Tx) error, opts ...Option) error {
	o := options{idle: defaultIdle, tries: defaultTries}
	for _, set := range opts {
		set(&o)
	}
	retryOf := ""
	for try := 1; ; try++ {
		tx, err := c.begin(ctx, retryOf, &o)
		if err != nil {
			return err
		}
		if err = tx.run(ctx, f, o.idle/3); err == nil {
			return nil
		}
		a := aborted(err, tx.id)
		if a == nil || !a.Retryable() || try >= o.tries || ctx.Err() != nil {
			return err
		}
		retryOf = tx.id
		// Whoever was in the way needs a moment; eldest first does the rest.
		if !sleep(ctx, time.Duration(mathrand.Int64N(int64(time.Duration(min(try, 5))*5*time.Millisecond)))) {
			return err
		}
	}
}

// Tx is a transaction that Run has begun. It is safe for concurrent use until the
// function that got it returns. It takes at most 4,096 steps, of 64 operations and 256 keys
// each unless the coordinator is set otherwise, and 16 MiB of payloads.
//
// A step returns an *AbortedError if the transaction is aborted, an *Error if it is refused
// and has changed nothing, and otherwise the context's error: then it may have been taken,
// the transaction is not committed, and the steps after it fail at once.
type Tx struct {
	c    *Client
	id   string
	step atomic.Uint32

	mu    sync.Mutex
	ended error // once it is known to be aborted
	open  error // of the first step whose answer is not known
}

// ID of the transaction: a service that takes part by itself is told it in the header
// Assent-Transaction.
func (tx *Tx) ID() string { return tx.id }

func (c *Client) begin(ctx context.Context, retryOf string, o *options) (*Tx, error) {
	id := NewID()
	if retryOf != "" { // its home is where the record is that has the age: in the three digits behind the version
		id = id[:15] + retryOf[15:18] + id[18:]
	}
	body := map[string]string{"id": id, "idle_timeout": o.idle.String()}
	if o.timeout != 0 { // one out of range is refused
		body["timeout"] = o.timeout.String()
	}
	if retryOf != "" {
		body["retry_of"] = retryOf
	}
	if _, err := c.ask(ctx, id, http.MethodPost, "/v1/transactions:begin", body); err != nil {
		var later *laterRefusalError
		if errors.As(err, &later) { // what may have begun has no steps, and ends by itself
			return nil, later.refused
		}
		return nil, err
	}
	return &Tx{c: c, id: id}, nil
}

// run runs f and commits.
func (tx *Tx) run(ctx context.Context, f func(context.Context, *Tx) error, beat time.Duration) (err error) {
	alive, dead := context.WithCancel(ctx)
	var beats sync.WaitGroup
	beats.Go(func() { tx.heartbeats(alive, beat) })
	finished := false
	defer func() {
		dead()
		beats.Wait()
		if !finished || err != nil && aborted(err, tx.id) == nil {
			// The function may know of an abort only by what failed for it, in a service that
			// it called: then that is no reason to give up.
			if a := tx.rollback(ctx, err); a != nil && a.Retryable() {
				err = errors.Join(err, a)
			}
		}
	}()
	err = f(ctx, tx)
	finished = true // no panic
	if err != nil {
		return err
	}
	dead()
	beats.Wait()
	if err := tx.unanswered(); err != nil {
		return fmt.Errorf("assent: transaction %s is rolled back, since nobody knows whether a step of it was taken: %w", tx.id, err)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("assent: transaction %s is rolled back: %w", tx.id, ended(ctx))
	}
	return tx.commit(ctx)
}

func (tx *Tx) heartbeats(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(max(every, 10*time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if t, err := tx.c.ask(ctx, tx.id, http.MethodPost, tx.path("/heartbeat"), nil); err == nil && t.Aborted() {
			tx.end(t.err())
			return
		}
	}
}

// rollback ends a try that failed, and tells why it was aborted. A commit that may have
// been decided is left alone.
func (tx *Tx) rollback(ctx context.Context, why error) *AbortedError {
	var unknown *UnknownOutcomeError
	if errors.As(why, &unknown) && unknown.ID == tx.id {
		return nil
	}
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackPatience)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lateRollback, cancel) })()
	t, err := tx.c.Rollback(within, tx.id)
	if err != nil {
		tx.c.log.DebugContext(ctx, "assent: rollback", "transaction", tx.id, "error", err)
		return nil
	}
	return aborted(t.err(), tx.id)
}

func (tx *Tx) commit(ctx context.Context) error {
	taken := false
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		t, err := tx.c.ask(ctx, tx.id, http.MethodPost, tx.path("/commit"), nil)
		if taken {
			err = ofLaterTry(err)
		}
		taken = true
		switch {
		case err != nil:
			return unknown(tx.id, err)
		case t.Committed():
			return nil
		case t.Aborted():
			return t.err()
		case ctx.Err() != nil:
			return unknown(tx.id, fmt.Errorf("it is %s: %w", t.State, ended(ctx)))
		}
		sleep(ctx, pause)
	}
}

func (tx *Tx) path(rest string) string { return "/v1/transactions/" + tx.id + rest }

func (tx *Tx) end(err error) {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	if tx.ended == nil {
		tx.ended = err
	}
}

func (tx *Tx) unanswered() error {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	return tx.open
}

// left notes a step that failed without a definite answer: it may have been taken, or be
// taken yet, and the function was told that it was not. It returns what to tell.
func (tx *Tx) left(err error) error {
	var none *noAnswerError
	var unsent *unsentError
	var refused *Error
	switch {
	case errors.As(err, &none):
	case errors.As(err, &unsent), errors.As(err, &refused) && refused.definite():
		return err
	case refused != nil:
		err = &noAnswerError{errors.New(err.Error())}
	default:
		err = &noAnswerError{err}
	}
	tx.mu.Lock()
	defer tx.mu.Unlock()
	if tx.open == nil {
		tx.open = err
	}
	return err
}

func (tx *Tx) err() error {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	return tx.ended
}

// StepOperation is an operation of a step of Do.
type StepOperation struct {
	Operation
	Now bool
}

// MarshalJSON writes the operation as the API has it.
func (o StepOperation) MarshalJSON() ([]byte, error) {
	when := ""
	if o.Now {
		when = "now"
	}
	return json.Marshal(struct {
		Operation
		When string `json:"when,omitempty"`
	}{o.Operation, when})
}

// Now locks keys, has an operation executed at once, and returns its result. The service
// needs an execute endpoint.
func (tx *Tx) Now(ctx context.Context, service string, payload any, locks ...Lock) (json.RawMessage, error) {
	results, err := tx.Do(ctx, StepOperation{Operation{service, payload, locks}, true})
	if err != nil {
		return nil, err
	}
	return results[0], nil
}

// Defer locks keys, and has an operation executed when the transaction commits, behind
// those that ran at once.
func (tx *Tx) Defer(ctx context.Context, service string, payload any, locks ...Lock) error {
	_, err := tx.Do(ctx, StepOperation{Operation{service, payload, locks}, false})
	return err
}

// Do does several operations in one step: all their locks first. It returns a result for
// each, null for those that run at commit.
func (tx *Tx) Do(ctx context.Context, ops ...StepOperation) ([]json.RawMessage, error) {
	if len(ops) == 0 {
		return nil, nil
	}
	body := struct {
		Step       uint32          `json:"step"`
		Operations []StepOperation `json:"operations"`
	}{tx.step.Add(1), ops}
	return tx.enlist(ctx, body, len(ops))
}

func (tx *Tx) enlist(ctx context.Context, body any, n int) ([]json.RawMessage, error) {
	var answer struct {
		Transaction Transaction       `json:"transaction"`
		Results     []json.RawMessage `json:"results"`
	}
	if err := tx.take(ctx, "/operations", body, &answer, &answer.Transaction); err != nil {
		return nil, err
	}
	if len(answer.Results) != n {
		return nil, tx.left(fmt.Errorf("assent: %d results for %d operations", len(answer.Results), n))
	}
	return answer.Results, nil
}

// Enlist adds operations to a transaction that somebody else has begun, whose id came with
// a call (participant.Middleware): all their locks first. Its results are as those of
// Tx.Do. The key, 1 to 128 visible ASCII characters, tells the steps of a transaction
// apart that do not come from its client: the same key with the same operations is done
// once, so take one of your service and what it was called for. Enlist must have returned
// before your answer does: the client commits after that.
//
// It returns an *AbortedError if the transaction is aborted, and an *Error with the reason
// COMMIT_ASKED or ALREADY_DECIDED if it is too late. If nobody can say whether the operations
// were added, since the deadline of ctx has passed, say, the transaction is rolled back, as
// far as the coordinator is reached within a second: who says that it has not joined must not
// be in it. A ctx that was cancelled is that of a request whose caller has gone and may ask
// again with the same key: then nothing is rolled back.
func (c *Client) Enlist(ctx context.Context, id, key string, ops ...StepOperation) ([]json.RawMessage, error) {
	if len(ops) == 0 {
		return nil, nil
	}
	body := struct {
		Key        string          `json:"step_key"`
		Operations []StepOperation `json:"operations"`
	}{key, ops}
	tx := &Tx{c: c, id: url.PathEscape(id)}
	results, err := tx.enlist(ctx, body, len(ops))
	if err != nil && tx.unanswered() != nil && !errors.Is(ctx.Err(), context.Canceled) {
		_ = tx.rollback(ctx, err) // the service is told err
	}
	return results, err
}

// Lock locks keys of services, each named with Lock.Of.
func (tx *Tx) Lock(ctx context.Context, locks ...Lock) error {
	if len(locks) == 0 {
		return nil
	}
	body := struct {
		Step  uint32 `json:"step"`
		Locks []Lock `json:"locks"`
	}{tx.step.Add(1), locks}
	t := &Transaction{}
	return tx.take(ctx, "/locks", body, t, t)
}

// take takes a step; t is the transaction in its answer.
func (tx *Tx) take(ctx context.Context, path string, body, answer any, t *Transaction) error {
	if err := tx.err(); err != nil {
		return err
	}
	if err := tx.unanswered(); err != nil { // it would wait behind that one
		return fmt.Errorf("assent: transaction %s takes no steps any more, since nobody knows whether one of them was taken: %w", tx.id, err)
	}
	if err := tx.c.call(ctx, tx.id, http.MethodPost, tx.path(path), body, answer); err != nil {
		return tx.left(err)
	}
	if err := t.err(); aborted(err, tx.id) != nil {
		tx.end(err)
		return err
	}
	if t.ID != tx.id {
		return tx.left(errStrange)
	}
	if t.State != "active" {
		return tx.left(fmt.Errorf("assent: transaction %s takes no steps any more: it is %q", tx.id, t.State))
	}
	return nil
}
