package participant

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"sync"
	"time"
)

// openBranches are the branches whose local transaction stays open between calls.
//
//	execute ──► open: BEGIN, outcome row, work … ──► prepare: work, COMMIT or PREPARE
//	                │
//	                └─► rollback, idle limit, lost connection, Close: ROLLBACK
//
// One call at a time works on a branch: it has the branch's turn. A rollback does
// not wait for what runs: it ends it. Nothing here is durable; the outcome row, which
// is written first in the open transaction, keeps everybody else out meanwhile.
type openBranches struct {
	p *Participant

	mu       sync.Mutex
	branches map[branchKey]*openBranch // those that are open or have a call
	open     int                       // those with a local transaction
	closed   bool
	expiring sync.WaitGroup
}

// openBranch is one of them.
type openBranch struct {
	key  branchKey
	turn chan struct{} // capacity 1: full while a call works on the branch

	// Guarded by openBranches.mu.
	users int                // calls that have the turn or wait for it
	stop  context.CancelFunc // ends what runs in the local transaction; nil: not open
	term  uint64             // the highest seen
	token string             // likewise

	// Of whoever has the turn.
	transaction *sql.Tx // nil: not open
	conn        *sql.Conn
	ended       context.Context    //nolint:containedctx // of stop
	abandon     context.CancelFunc // gives up the connection
	release     func()             // gives back the turn to write
	id          string             // names this local transaction
	mark        string             // the database's name for it; see insertRow
	operations  []json.RawMessage
	results     []json.RawMessage // one for each of operations
	digests     [][]byte          // running, behind each of operations
	bytes       int               // of operations and results
	used        time.Time
	idle        *time.Timer
}

var errClosing = fmt.Errorf("%w: the participant is closing", ErrOverloaded)

func (o *openBranches) start(p *Participant) {
	o.p, o.branches = p, make(map[branchKey]*openBranch)
}

func (o *openBranches) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.open
}

func (o *openBranches) has(c *Call) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.branches[keyOf(c)] != nil
}

// enter waits for the branch's turn; leave must follow. A call that ends the branch
// first ends what runs in it, unless the call is stale.
func (o *openBranches) enter(ctx context.Context, c *Call, ends bool) (*openBranch, error) {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return nil, errClosing
	}
	b := o.branches[keyOf(c)]
	if b == nil {
		b = &openBranch{key: keyOf(c), turn: make(chan struct{}, 1)}
		o.branches[b.key] = b
	}
	b.users++
	if ends && b.stop != nil && b.stale(c) == nil {
		b.stop()
	}
	o.mu.Unlock()
	select {
	case b.turn <- struct{}{}:
		if b.idle != nil {
			b.idle.Stop() // if it has fired, it finds the branch used
		}
		return b, nil
	case <-ctx.Done():
		o.mu.Lock()
		defer o.mu.Unlock()
		o.dismiss(b)
		return nil, ctx.Err()
	}
}

// leave gives the turn to the next call, and lets the branch idle from now.
func (o *openBranches) leave(b *openBranch) {
	if b.transaction != nil {
		b.used = time.Now()
		if b.idle == nil {
			b.idle = time.AfterFunc(o.p.cfg.OpenIdle, func() { o.expire(b) })
		} else {
			b.idle.Reset(o.p.cfg.OpenIdle)
		}
	}
	<-b.turn
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dismiss(b)
}

// dismiss forgets a branch that nobody uses. o.mu is held.
func (o *openBranches) dismiss(b *openBranch) {
	if b.users--; b.users == 0 && b.stop == nil {
		delete(o.branches, b.key)
	}
}

// stale is as row.stale. o.mu is held.
func (b *openBranch) stale(c *Call) error {
	return (&row{term: b.term, token: b.token}).stale(c)
}

// admit refuses a stale call to a branch that is open, and remembers a newer one.
func (o *openBranches) admit(b *openBranch, c *Call) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := b.stale(c); err != nil {
		return err
	}
	b.term, b.token = c.Term, max(b.token, c.Token)
	return nil
}

// begin opens the branch's local transaction. Whoever has the turn ends it, also
// after an error.
func (o *openBranches) begin(ctx context.Context, b *openBranch, c *Call) error {
	if err := o.reserve(b, c); err != nil {
		return err
	}
	b.id = rand.Text()
	ctx, cancel := b.during(ctx)
	defer cancel()
	var err error
	if b.release, err = o.p.takeWriter(ctx); err != nil {
		return err
	}
	if b.conn, err = o.p.cfg.DB.Conn(ctx); err != nil {
		return err
	}
	// The transaction's own context must outlive the call. It is never cancelled while
	// the connection is good, since that would cost the connection.
	var life context.Context
	life, b.abandon = context.WithCancel(context.Background())
	inTime := context.AfterFunc(ctx, b.abandon)
	b.transaction, err = b.conn.BeginTx(life, o.p.opened)
	if !inTime() && err == nil {
		err = ctx.Err()
	}
	return err
}

// commit ends the local transaction, which may have been committed also if it fails.
func (b *openBranch) commit(ctx context.Context) error {
	defer context.AfterFunc(ctx, b.abandon)()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := b.transaction.Commit(); err != nil {
		return &commitError{err}
	}
	return nil
}

// reserve makes the branch one of those that are open.
func (o *openBranches) reserve(b *openBranch, c *Call) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closed:
		return errClosing
	case o.open >= o.p.cfg.MaxOpenBranches:
		return fmt.Errorf("%w: %d branches are open", ErrOverloaded, o.open)
	}
	o.open++
	b.term, b.token = c.Term, c.Token
	b.ended, b.stop = context.WithCancel(context.Background())
	return nil
}

// during is a context for work in the branch's local transaction: the call's, until
// the branch is ended.
func (b *openBranch) during(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	detach := context.AfterFunc(b.ended, cancel)
	return ctx, func() {
		detach()
		cancel()
	}
}

// end rolls back what is open, and returns when the database has done so or the
// connection is gone. Without anything open it does nothing.
func (o *openBranches) end(b *openBranch) {
	if b.ended == nil {
		return
	}
	if b.transaction != nil {
		late := time.AfterFunc(o.p.cfg.Limits.CallTimeout, b.abandon)
		_ = b.transaction.Rollback() // an error is that of a lost connection, or nothing is left to roll back
		late.Stop()
	}
	if b.abandon != nil {
		b.abandon()
	}
	if b.conn != nil {
		_ = b.conn.Close()
	}
	if b.release != nil {
		b.release()
	}
	if b.idle != nil {
		b.idle.Stop()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open--
	b.stop()
	b.stop, b.term, b.token = nil, 0, ""
	b.transaction, b.conn, b.ended, b.abandon, b.release, b.idle = nil, nil, nil, nil, nil, nil
	b.id, b.mark = "", ""
	b.operations, b.results, b.digests, b.bytes = nil, nil, nil, 0
}

// expire ends a branch that nobody has called for too long. The row that it leaves
// refuses what may still come.
func (o *openBranches) expire(b *openBranch) {
	o.mu.Lock()
	if o.closed || o.branches[b.key] != b {
		o.mu.Unlock()
		return
	}
	b.users++
	o.expiring.Add(1)
	o.mu.Unlock()
	defer o.expiring.Done()
	b.turn <- struct{}{}
	defer o.leave(b)
	if b.transaction == nil || time.Since(b.used) < o.p.cfg.OpenIdle {
		return
	}
	o.p.log.Warn("an open branch was rolled back: nobody called for too long", "service", o.p.cfg.Service,
		"transaction", b.key.transaction, "branch", b.key.branch, "limit", o.p.cfg.OpenIdle)
	c := &Call{Phase: PhaseExecute, Transaction: b.key.transaction, Branch: b.key.branch, Term: b.term, Token: b.token}
	o.end(b)
	ctx, cancel := context.WithTimeout(context.Background(), o.p.cfg.Limits.CallTimeout)
	defer cancel()
	if err := o.p.refuse(ctx, c, fmt.Sprintf("%s: no call came for %v, this service's limit for open work", ReasonExecutionLost, o.p.cfg.OpenIdle)); err != nil {
		o.p.log.Warn("the end of an open branch was not recorded", "service", o.p.cfg.Service,
			"transaction", b.key.transaction, "branch", b.key.branch, "error", err)
	}
}

// close ends all.
func (o *openBranches) close() {
	o.mu.Lock()
	o.closed = true
	var all []*openBranch
	for _, b := range o.branches {
		if b.stop != nil {
			b.stop()
		}
		b.users++
		all = append(all, b)
	}
	o.mu.Unlock()
	o.expiring.Wait()
	for _, b := range all {
		b.turn <- struct{}{}
		o.end(b)
		o.leave(b)
	}
}

// digestWith is the digest of all executed operations and further ones, in hex.
func (b *openBranch) digestWith(further []json.RawMessage) string {
	var d []byte
	if n := len(b.digests); n > 0 {
		d = b.digests[n-1]
	}
	for _, payload := range further {
		d = digestOn(d, payload)
	}
	return hex.EncodeToString(d)
}

// remember keeps operations that were executed, with their results.
func (b *openBranch) remember(operations, results []json.RawMessage) {
	for i, payload := range operations {
		var d []byte
		if n := len(b.digests); n > 0 {
			d = b.digests[n-1]
		}
		b.digests = append(b.digests, digestOn(d, payload))
		b.operations, b.results = append(b.operations, payload), append(b.results, results[i])
		b.bytes += len(payload) + len(results[i])
	}
}
