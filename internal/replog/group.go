package replog

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/assent-tx/assent/internal/mutant"
)

// group is one shard's Raft group on this node; it implements Group.
//
//	Propose -> admission (bounded) -> raft.ApplyLog -> queue -> finisher waits for the future -> done
type group struct {
	log   *Log
	shard uint32
	store *store
	snaps *snapStore
	fsm   *follower
	raft  *raft.Raft

	transport *transport
	notify    chan bool // from the Raft library, every change in order

	handOver sync.Mutex           // held while a voter is asked to lead
	notTaken map[string]time.Time // when a voter was asked in vain; guarded by handOver

	// mu guards admission.
	mu       sync.Mutex
	room     *sync.Cond
	pending  int // proposals admitted and not finished
	bytes    int // of those
	draining bool
	drained  chan struct{} // closed when draining and nothing is pending

	queue   chan *proposal // capacity: the admission limit, so sending never blocks
	current atomic.Pointer[proposal]
	stopped chan struct{} // closed when the Raft library has stopped or is given up

	leadership chan Leadership
	wg         sync.WaitGroup // our goroutines but the finisher

	appends, appendedBytes atomic.Uint64
	snapshots              atomic.Uint64
	snapKick               chan struct{}
	// What store.bytes and store.entries were when the last snapshot began; below
	// zero for what the log held after its snapshot at start.
	baseBytes, baseEntries atomic.Int64
}

type proposal struct {
	future  raft.ApplyFuture
	size    int
	done    func(error)
	claimed atomic.Bool
}

func newGroup(l *Log, shard uint32) *group {
	g := &group{
		notTaken: map[string]time.Time{},
		log:      l, shard: shard,
		notify:     make(chan bool, 16),
		drained:    make(chan struct{}),
		queue:      make(chan *proposal, l.cfg.MaxPendingProposals),
		stopped:    make(chan struct{}),
		leadership: make(chan Leadership, 1),
		snapKick:   make(chan struct{}, 1),
	}
	g.room = sync.NewCond(&g.mu)
	return g
}

// Propose is described with Group. data must not change afterwards.
func (g *group) Propose(data []byte, done func(error)) {
	if len(data) > g.log.cfg.MaxEntryBytes {
		go done(fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(data), g.log.cfg.MaxEntryBytes))
		return
	}
	if err := g.admit(len(data)); err != nil {
		go done(err)
		return
	}
	p := &proposal{size: len(data), done: done}
	if err := g.log.failure(); err != nil {
		go g.finish(p, fmt.Errorf("%w: the log has failed: %w", ErrNotAppended, err))
		return
	}
	p.future = g.raft.ApplyLog(raft.Log{Data: data}, 0)
	g.queue <- p
	select {
	case <-g.stopped:
		go g.finish(p, ErrClosed)
	default:
	}
}

// admit waits for room.
func (g *group) admit(size int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.draining && g.pending > 0 &&
		(g.pending >= g.log.cfg.MaxPendingProposals || g.bytes+size > g.log.cfg.MaxPendingBytes) {
		g.room.Wait()
	}
	if g.draining {
		return fmt.Errorf("%w: %w", ErrClosed, ErrNotAppended)
	}
	g.pending++
	g.bytes += size
	return nil
}

// finish runs done, once.
func (g *group) finish(p *proposal, err error) {
	if !p.claimed.CompareAndSwap(false, true) {
		return
	}
	p.done(err)
	g.mu.Lock()
	g.pending--
	g.bytes -= p.size
	if g.draining && g.pending == 0 {
		close(g.drained)
	}
	g.mu.Unlock()
	g.room.Signal()
}

// finisher waits for the futures in turn: they resolve in order. One that never
// resolves (the Raft library has stopped with it in a channel) keeps this
// goroutine, so nothing waits for it.
func (g *group) finisher() {
	for {
		select {
		case p := <-g.queue:
			g.current.Store(p)
			err := g.outcome(p.future)
			if err == nil {
				g.appends.Add(1)
				g.appendedBytes.Add(uint64(p.size))
			}
			g.finish(p, err)
		case <-g.stopped:
			return
		}
	}
}

func (g *group) outcome(f raft.ApplyFuture) error {
	err := f.Error()
	if err == nil {
		if refused, ok := f.Response().(error); ok {
			err = refused
		} else if cause := g.log.failure(); cause != nil && !mutant.On("log-ack-after-failure") {
			// It was durable and applied, but after a failure nothing is promised.
			err = cause
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout),
		errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotAppended, err)
	case errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	default:
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
}

// drain refuses new proposals and returns a channel that closes when the
// accepted ones are finished.
func (g *group) drain() <-chan struct{} {
	g.mu.Lock()
	if !g.draining {
		g.draining = true
		if g.pending == 0 {
			close(g.drained)
		}
	}
	g.mu.Unlock()
	g.room.Broadcast()
	return g.drained
}

// abandon finishes what never resolved.
func (g *group) abandon() {
	close(g.stopped)
	if p := g.current.Load(); p != nil {
		g.finish(p, ErrClosed)
	}
	for {
		select {
		case p := <-g.queue:
			g.finish(p, ErrClosed)
		default:
			return
		}
	}
}

// Leadership is described with Group.
func (g *group) Leadership() <-chan Leadership { return g.leadership }

func (g *group) watchLeadership() {
	defer g.wg.Done()
	var told Leadership
	for {
		select {
		case <-g.notify:
		case <-g.log.closing:
			return
		}
		now := g.leads()
		if now == told {
			continue
		}
		told = now
		select { // the value not taken yet is stale
		case <-g.leadership:
		default:
		}
		g.leadership <- now
	}
}

// leads reads state and term together: the Raft library raises its term only
// while it is no leader, so two equal readings around the state bind them.
func (g *group) leads() Leadership {
	for {
		term := g.raft.CurrentTerm()
		leading := g.raft.State() == raft.Leader
		if g.raft.CurrentTerm() == term {
			return Leadership{Leading: leading, Term: term}
		}
	}
}

// Stats is described with Group.
func (g *group) Stats() Stats {
	first := g.store.first.Load() // before the snapshot's index, which never lags behind it
	return Stats{
		Appends:       g.appends.Load(),
		AppendedBytes: g.appendedBytes.Load(),
		Fsyncs:        g.log.fsyncs.Load(),
		Snapshots:     g.snapshots.Load(),
		FirstIndex:    first,
		LastIndex:     g.store.last.Load(),
		AppliedIndex:  g.fsm.applied.Load(),
		SnapshotIndex: g.snaps.index.Load(),
	}
}

// snapshotDue is asked after every append.
func (g *group) snapshotDue() bool {
	return int64(g.store.bytes.Load())-g.baseBytes.Load() >= g.log.cfg.SnapshotAfterBytes ||
		int64(g.store.entries.Load())-g.baseEntries.Load() >= int64(g.log.cfg.SnapshotAfterEntries)
}

func (g *group) kickSnapshot() {
	if g.snapshotDue() {
		select {
		case g.snapKick <- struct{}{}:
		default:
		}
	}
}

func (g *group) takeSnapshots() {
	defer g.wg.Done()
	for {
		select {
		case <-g.snapKick:
		case <-g.log.closing:
			return
		case <-g.log.failed:
			return
		}
		if !g.snapshotDue() {
			continue
		}
		if err := g.snapshot(); err != nil && g.log.failure() == nil {
			g.log.cfg.Logger.Warn("snapshot failed; the log is kept and it is tried again", "shard", g.shard, "error", err)
			select {
			case <-time.After(snapshotRetryWait):
				g.kickSnapshot()
			case <-g.log.closing:
				return
			}
		}
	}
}

// snapshot takes one now and truncates the log below it.
func (g *group) snapshot() error {
	bytes, entries := int64(g.store.bytes.Load()), int64(g.store.entries.Load())
	f := g.raft.Snapshot()
	if err := f.Error(); err != nil {
		if errors.Is(err, raft.ErrNothingNewToSnapshot) {
			return nil
		}
		return err
	}
	g.snapshots.Add(1)
	g.baseBytes.Store(bytes)
	g.baseEntries.Store(entries)
	g.log.kickFloor()
	return nil
}

// retire keeps the Raft library from standing for election once the log has
// failed: it would have to write a term. It then answers what it is asked with
// "not the leader", so that every proposal ends.
func (g *group) retire() {
	const never = 24 * time.Hour
	rc := g.raft.ReloadableConfig()
	rc.HeartbeatTimeout, rc.ElectionTimeout = never, never
	if err := g.raft.ReloadConfig(rc); err != nil {
		g.log.cfg.Logger.Error("retire", "shard", g.shard, "error", err)
	}
}
