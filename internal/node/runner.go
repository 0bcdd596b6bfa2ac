package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/replog"
	"github.com/assent-tx/assent/internal/rm"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
)

// runner owns one shard.
type runner struct {
	n   *Node
	idx uint32
	sh  *shard.Shard

	inbox      chan request
	applied    chan *applyBatch
	leadership chan replog.Leadership
	failed     chan error // a proposal failed
	funcs      chan func(*shard.Shard)
	proposals  chan []byte

	waiting   map[shard.Token]chan shard.Reply // loop only
	raft      replog.Leadership                // loop only: the latest word of the log
	relead    time.Time                        // loop only: when to try LEAD again
	published uint64                           // loop only: version of the published registry
	endpoints uint64                           // loop only: version of the endpoint published last
	lost      []*shard.CallDone                // loop only: calls that could not be made
	wakeAtUs  int64                            // loop only: when the shard wants its next Tick

	status atomic.Pointer[ShardHealth]
	group  atomic.Pointer[replog.Group] // nil before Start
}

// request is an event with the channel for its reply; events without a reply have none.
type request struct {
	ev    shard.Event
	token shard.Token
	reply chan shard.Reply
}

type applyBatch struct {
	entries []replog.Entry
	done    chan error
}

// eventsPerTurn bounds how many events the loop takes before it acts on them.
const eventsPerTurn = 256

// releadPause is how long a leader by the log's word waits for its LEAD.
const releadPause = 500 * time.Millisecond

func newRunner(n *Node, cfg shard.Config) *runner {
	r := &runner{
		n: n, idx: cfg.Shard, sh: shard.New(cfg),
		inbox:      make(chan request, n.cfg.InboxLimit),
		applied:    make(chan *applyBatch),
		leadership: make(chan replog.Leadership),
		failed:     make(chan error, 1),
		funcs:      make(chan func(*shard.Shard)),
		proposals:  make(chan []byte, 4*cfg.MaxAppendsInFlight+16),
		waiting:    map[shard.Token]chan shard.Reply{},
	}
	r.status.Store(&ShardHealth{Shard: r.idx})
	return r
}

func (r *runner) health() ShardHealth { return *r.status.Load() }

func (r *runner) loop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case b := <-r.applied:
			r.apply(b)
		case q := <-r.inbox:
			r.take(q)
		case l := <-r.leadership:
			r.lead(l)
		case err := <-r.failed:
			r.proposalFailed(err)
		case f := <-r.funcs:
			f(r.sh)
		case <-timer.C:
			r.step(&shard.Tick{})
		case <-r.n.stop:
			r.end()
			return
		}
		r.drain()
		r.act()
		timer.Reset(r.untilWake())
	}
}

// drain takes what else is waiting, so that one append carries it all.
func (r *runner) drain() {
	for range eventsPerTurn {
		select {
		case q := <-r.inbox:
			r.take(q)
		default:
			return
		}
	}
}

func (r *runner) step(ev shard.Event) { r.sh.Step(r.n.now(), ev) }

func (r *runner) take(q request) {
	if q.reply != nil {
		r.waiting[q.token] = q.reply
	}
	r.step(q.ev)
}

func (r *runner) apply(b *applyBatch) {
	var err error
	for i := range b.entries {
		e := &b.entries[i]
		if err = r.sh.Apply(r.n.now(), e.Index, e.Term, e.Data); err != nil {
			err = fmt.Errorf("shard %d cannot follow its log: %w", r.idx, err)
			break
		}
		failpointEntry("after-apply", e.Data)
	}
	r.publish()
	r.publishMembers()
	b.done <- err
}

func (r *runner) lead(l replog.Leadership) {
	r.raft = l
	if !l.Leading {
		r.step(&shard.Follow{})
		return
	}
	r.relead = time.Now().Add(releadPause)
	r.step(&shard.Lead{Term: l.Term, Level: r.n.allKnow.Load()})
}

// proposalFailed starts over: the applied stream tells what became of everything.
func (r *runner) proposalFailed(err error) {
	if errors.Is(err, replog.ErrClosed) {
		r.step(&shard.Follow{})
		r.raft.Leading = false
		return
	}
	r.n.log.Warn("an append failed; leadership is taken anew", "shard", r.idx, "error", err)
	r.step(&shard.Follow{})
	r.relead = time.Now().Add(releadPause / 10)
}

// act does what the shard wants done.
func (r *runner) act() {
	if r.raft.Leading && !r.sh.Leading() && time.Now().After(r.relead) {
		r.lead(r.raft)
	}
	for {
		rd := r.sh.Ready()
		r.wakeAtUs = rd.WakeAtUs
		for _, e := range rd.Entries {
			select {
			case r.proposals <- e:
			default:
				r.n.log.Error("the queue of proposals is full", "shard", r.idx)
				r.fail(replog.ErrNotAppended)
			}
		}
		for i := range rd.Messages {
			m := rd.Messages[i]
			r.n.send(&m)
		}
		for i := range rd.Replies {
			r.answer(&rd.Replies[i])
		}
		for i := range rd.Calls {
			r.call(&rd.Calls[i])
		}
		for _, c := range rd.Captures {
			r.hash(c)
		}
		for i := range rd.Notices {
			r.n.observe(r.idx, &rd.Notices[i])
		}
		r.sh.Advance()
		if len(r.lost) == 0 {
			break
		}
		lost := r.lost
		r.lost = nil
		for _, d := range lost {
			r.step(d)
		}
	}
	r.report()
}

// post hands over a message of another shard. One that finds no room is lost, as it may
// be on a network: it is sent again.
func (r *runner) post(ev shard.Event) {
	select {
	case r.inbox <- request{ev: ev}:
	default:
	}
}

func (r *runner) report() {
	st := r.sh.State()
	leading := r.sh.Leading()
	old := r.status.Load()
	h := ShardHealth{Shard: r.idx, Leading: leading, Term: st.Term(), Applied: st.Applied(), Open: st.Live(), Hazards: st.Hazards()}
	if *old != h {
		r.status.Store(&h)
	}
}

func (r *runner) untilWake() time.Duration {
	wait := time.Hour
	if r.wakeAtUs > 0 {
		wait = time.Duration(r.wakeAtUs-r.n.now().MonoUs) * time.Microsecond
	}
	if r.raft.Leading && !r.sh.Leading() {
		wait = min(wait, time.Until(r.relead)+time.Millisecond)
	}
	return max(wait, 0)
}

func (r *runner) answer(rep *shard.Reply) {
	if ch, ok := r.waiting[rep.Token]; ok {
		delete(r.waiting, rep.Token)
		ch <- *rep // buffered: one reply for each token
	}
}

// call hands a request to the participant's protocol. The answer comes back as an event.
func (r *runner) call(c *shard.Call) {
	failpointCall("before-call", c.Phase)
	done := &shard.CallDone{ID: c.ID, Branch: c.Branch, Phase: c.Phase, Attempt: c.Attempt, Term: c.Term}
	e := r.n.registry.Load().byName[c.Service]
	if e == nil {
		done.Reason = "the service is not registered"
		r.lost = append(r.lost, done)
		return
	}
	out := &rm.Call{
		Phase: phases[c.Phase], Cluster: r.n.cluster, Service: c.Service, Generation: c.Generation, Txn: c.ID, Branch: c.Branch + 1, Attempt: c.Attempt,
		Term: c.Term, Shard: r.idx, Shards: r.n.cfg.Shards, Token: c.Token, Forgotten: c.Forgotten, OnePhase: c.OnePhase,
		Operations: c.Operations, Digest: c.Digest, First: c.First, Executed: c.Executed, Opened: c.Opened, Execution: c.Execution, TraceParent: c.TraceParent,
	}
	r.n.caller.Call(out, e.endpoint, func(res rm.Result) {
		failpointCall("after-call", done.Phase) // c is the shard's again by now
		r.n.metrics.called(out, &res)
		done.Answer, done.Reason, done.Results, done.Execution = translate(&res), res.Reason, res.Results, res.Execution
		if res.Kind == rm.Refused && res.Message != "" {
			done.Reason += ": " + res.Message
		}
		select {
		case r.inbox <- request{ev: done}:
		case <-r.n.stop:
		}
	})
}

var phases = [...]rm.Phase{shard.PhasePrepare: rm.Prepare, shard.PhaseCommit: rm.Commit, shard.PhaseRollback: rm.Rollback, shard.PhaseExecute: rm.Execute}

func translate(res *rm.Result) shard.AnswerKind {
	switch res.Kind {
	case rm.Yes:
		return shard.VoteYes
	case rm.No:
		if res.Lost() {
			return shard.Lost
		}
		return shard.VoteNo
	case rm.ReadOnly:
		return shard.VoteReadOnly
	case rm.Done:
		return shard.Acknowledged
	case rm.Executed:
		return shard.Executed
	case rm.Refused:
		switch {
		case res.Lost():
			return shard.Lost
		case res.Retryable:
			return shard.Conflict
		}
		return shard.Refused
	case rm.Contradicts:
		switch res.Outcome {
		case rm.OutcomeUnknown:
			return shard.SaysUnknown
		case rm.OutcomeCommitted:
			return shard.SaysCommitted
		case rm.OutcomeRolledBack:
			return shard.SaysRolledBack
		case rm.OutcomePrepared:
		}
	case rm.Indefinite, rm.Known:
	}
	return shard.Indefinite
}

// end answers everybody who still waits.
func (r *runner) end() {
	for token, ch := range r.waiting {
		ch <- shard.Reply{Token: token, Err: errStopping()}
	}
	r.waiting = nil
	r.status.Store(&ShardHealth{Shard: r.idx})
}

// do sends an event and waits for its reply. When ctx ends, the shard is asked
// to give up the wait and its last word is returned.
func (r *runner) do(ctx context.Context, token shard.Token, ev shard.Event, cancel *shard.Cancel) shard.Reply {
	reply := make(chan shard.Reply, 1)
	select {
	case r.inbox <- request{ev: ev, token: token, reply: reply}:
	case <-r.n.stop:
		return shard.Reply{Err: errStopping()}
	case <-ctx.Done():
		err := reason.New(reason.Overloaded, "slow down; nothing was started", "the request did not reach its shard in time")
		err.RetryAfterMs = 500
		return shard.Reply{Err: err}
	}
	select {
	case rep := <-reply:
		return rep
	case <-r.n.stop:
	case <-ctx.Done():
		cancel.Token = token
		select {
		case r.inbox <- request{ev: cancel}:
		case <-r.n.stop:
		}
	}
	select {
	case rep := <-reply:
		return rep
	case <-r.n.stop:
		select {
		case rep := <-reply:
			return rep
		case <-time.After(time.Second): // the loop ended without having seen the request
			err := errStopping()
			err.Code = reason.OutcomeUnknown
			return shard.Reply{Err: err}
		}
	}
}

// run runs f on the shard's goroutine.
func (r *runner) run(ctx context.Context, f func(*shard.Shard)) error {
	done := make(chan struct{})
	select {
	case r.funcs <- func(sh *shard.Shard) { f(sh); close(done) }:
		<-done
		return nil
	case <-r.n.stop:
		return errStopping()
	case <-ctx.Done():
		err := reason.New(reason.Overloaded, "try again later", "the shard did not take the request in time")
		err.RetryAfterMs = 500
		return err
	}
}

// ---- the log's side

// propose hands entries to the log in order. It may wait for the log; the loop does not.
func (r *runner) propose(g replog.Group) {
	for {
		select {
		case e := <-r.proposals:
			failpointEntry("before-append", e)
			g.Propose(e, func(err error) {
				failpointEntry("after-append", e)
				if err != nil {
					r.fail(err)
				}
			})
		case <-r.n.stop:
			return
		}
	}
}

func (r *runner) fail(err error) {
	select {
	case r.failed <- err:
	default: // one failure is enough to start over
	}
}

func (r *runner) watch(g replog.Group) {
	for {
		select {
		case l, ok := <-g.Leadership():
			if !ok {
				return
			}
			select {
			case r.leadership <- l:
			case <-r.n.stop:
				return
			}
		case <-r.n.stop:
			return
		}
	}
}

var errStopped = errors.New("node stopped")

// Apply implements replog.Machine.
func (r *runner) Apply(entries []replog.Entry) error {
	b := &applyBatch{entries: entries, done: make(chan error, 1)}
	select {
	case r.applied <- b:
		return <-b.done
	case <-r.n.stop:
		return errStopped
	}
}

// Snapshot implements replog.Machine.
func (r *runner) Snapshot() (replog.Snapshot, error) {
	var c *txn.Capture
	if err := r.run(context.Background(), func(sh *shard.Shard) { c = sh.State().Capture() }); err != nil {
		return nil, err
	}
	return snapshot{c}, nil
}

// maxSnapshotBytes bounds what Restore reads into memory.
const maxSnapshotBytes = 4 << 30

// Restore implements replog.Machine.
func (r *runner) Restore(from io.Reader) error {
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(io.LimitReader(from, maxSnapshotBytes)); err != nil {
		return fmt.Errorf("read snapshot of shard %d: %w", r.idx, err)
	}
	var err error
	if runErr := r.run(context.Background(), func(sh *shard.Shard) {
		err = sh.Restore(buf.Bytes())
		r.published = 0
		r.publish()
		r.publishMembers()
	}); runErr != nil {
		return runErr
	}
	return err
}

type snapshot struct{ c *txn.Capture }

// Persist implements replog.Snapshot.
func (s snapshot) Persist(w io.Writer) error {
	return s.c.Write(func(b []byte) error {
		_, err := w.Write(b)
		return err
	})
}

// Release implements replog.Snapshot.
func (s snapshot) Release() {}
