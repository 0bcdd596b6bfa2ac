// Package sessions simulates clients that work step by step, and others that submit as
// a whole, against the real core of one shard: a modelled log that crashes and changes
// leaders, participants that lose their open work, a network that loses, doubles and
// delays. One thread, virtual time, one seed.
//
// Transactions append to lists and read lists. What they were told must be strictly
// serializable (internal/check), and come out again when the committed ones are replayed
// in the order of their decisions (internal/check/replay): with several shards the order
// in which they became durable, since locks are kept until then. Afterwards every
// transaction has ended, no lock is held, and the lists hold exactly what was committed. With several shards, each has its
// own log and crashes alone, and the messages between them are lost, doubled and late.
package sessions

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"runtime/debug"

	"github.com/assent-tx/assent/internal/check"
	"github.com/assent-tx/assent/internal/check/linear"
	"github.com/assent-tx/assent/internal/check/replay"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// Options of a run. Percentages are per occasion.
type Options struct {
	Transactions int // that clients begin, retries apart
	Shards       int // 0: one to three, by the seed
	Clients      int
	Services     int
	Keys         int // of each service
	CrashPct     int // of a log append: the coordinator dies
	LosePct      int // of a message
	DoublePct    int
	RestartPct   int   // of a call: the participant restarts and loses what is open
	NoPct        int   // of a prepare
	SilentPct    int   // of a step: the client dies
	CalmAtUs     int64 // when faults end at the latest; 0: when all work is done
	LocksOff     bool  // clients lock keys that nobody else uses: a planted bug
	Trusting     bool  // participants do not look at fencing tokens
	KeyWaiters   int   // limit of those that wait for a key; 0: the default
	Moves        bool  // a service is removed and registered anew, with other partitions
}

// DefaultOptions has some of everything.
func DefaultOptions() Options {
	return Options{Transactions: 120, Clients: 6, Services: 2, Keys: 3, CrashPct: 1, LosePct: 3, DoublePct: 3, RestartPct: 1, NoPct: 2, SilentPct: 1}
}

// Report is what a run reached.
type Report struct {
	Committed, Aborted, Unknown       int
	Deadlocks, Restarted, Idle        int // victims aborted, one-shot victims restarted, dead clients
	Lost, Crashes, Repeated, Upgraded int // executions lost, coordinators lost, steps repeated, retries that kept their age
	TimedOut, Expired                 int // waited for a lock until the timeout; reached it otherwise
	OldTerm                           int // calls that a participant refused
	Wounded, Yielded, Spread          int // gave way to an elder, at another shard; transactions with locks at several shards
	Whole                             int // locks asked for of a whole service
	Moved                             int // services removed and registered anew
	Verified                          int // hashes in the log that the oracle's state has, too
	Anomalies                         []check.Anomaly
	Replay                            []string         // what differs when the committed are replayed as they were decided
	Locks                             []linear.Problem // keys that two had at once
	Granted                           int              // locks that clients were told to have
	VirtualUs                         int64            // that went by
	Trace                             uint64           // equal for equal seeds
}

// Cluster is what the clients of a World talk to: the coordinators of all its shards.
type Cluster interface {
	// Ask sends a request about a transaction. It is answered exactly once, with nil if
	// the client has given up.
	Ask(id txnid.ID, ev func(shard.Token) shard.Event, answer func(*shard.Reply))
	// Committed reports whether a transaction has committed and ended, by the log.
	Committed(id txnid.ID) bool
	// Heal ends every fault of the cluster's own.
	Heal()
	// Quiet: every shard has a leader, and nothing is open or locked.
	Quiet() bool
	// Audit fails the run if the cluster is not right in the end.
	Audit()
	// String describes it for people.
	String() string
}

type event struct {
	atUs int64
	seq  uint64
	do   func()
}

type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].atUs < q[j].atUs || q[i].atUs == q[j].atUs && q[i].seq < q[j].seq
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push implements heap.Interface.
func (q *queue) Push(x any) { *q = append(*q, x.(event)) } //nolint:forcetypeassert // nothing else is put in

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

// StartMs is the wall clock's time, Unix ms, when a run begins.
const StartMs = 1_750_000_000_000

// World is one run: its clients, its participants, and all that happens in one queue by
// virtual time. A failed promise is a panic.
type World struct {
	opt    Options
	rng    *rand.Rand
	nowUs  int64
	seq    uint64
	queue  queue
	calm   bool // no more faults
	parts  []*part
	users  []*user
	report Report

	cluster   Cluster
	registrar *registrar // nil: nothing is ever registered
	lastToken shard.Token
	lastID    uint64
	history   check.Recorder
	locks     linear.Locks
	decided   []replay.Decision // commits in the order in which they became durable, of all shards
	sealed    map[txnid.ID]bool // commit was asked
	values    int64
	budget    int
}

// newWorld is the coordinators and participants of a seed.
func newWorld(seed uint64, opt Options) *World {
	w := &World{opt: opt, rng: rand.New(rand.NewPCG(seed, 7)), budget: opt.Transactions, sealed: map[txnid.ID]bool{}}
	if w.opt.Shards == 0 {
		w.opt.Shards = []int{1, 3, 2}[seed%3]
	}
	for i := range opt.Services {
		w.parts = append(w.parts, newPart(w, fmt.Sprintf("s%d", i)))
	}
	return w
}

// failed makes an error of a broken promise; deferred.
func (w *World) failed(seed uint64, err *error) {
	switch f := recover().(type) {
	case nil:
	case failure:
		*err = fmt.Errorf("seed %d, at %d us: %s", seed, w.nowUs, string(f))
	default: // a broken invariant of what runs here
		*err = fmt.Errorf("seed %d, at %d us: panic: %v\n%s", seed, w.nowUs, f, debug.Stack())
	}
}

// Run runs one seed.
func Run(seed uint64, opt Options) (report Report, err error) { return RunOn(seed, opt, alone) }

// RunOn is Run on other coordinators.
func RunOn(seed uint64, opt Options, build func(*World) Cluster) (report Report, err error) {
	w := newWorld(seed, opt)
	defer func() { report = w.report }()
	defer w.failed(seed, &err)
	w.cluster = build(w)
	if opt.Moves {
		w.registrar = &registrar{w: w, all: map[string][]registration{}}
		w.registrar.found()
	}
	for i := range opt.Clients {
		u := &user{w: w, process: i}
		w.users = append(w.users, u)
		w.At(w.UpTo(1000), u.next)
	}
	w.until(func() bool { return w.budget <= 0 && w.idle() || w.late() }, 3_600_000_000)
	w.heal()
	w.until(func() bool { return w.idle() && w.cluster.Quiet() }, 3_600_000_000)
	if w.registrar != nil {
		w.registrar.settle()
		w.until(func() bool { return w.idle() && w.cluster.Quiet() }, 600_000_000)
	}
	last := &user{w: w, process: 1_000_000}
	for _, appends := range []bool{true, false} {
		last.touchAll(appends)
		w.until(func() bool { return !last.busy && w.cluster.Quiet() }, 600_000_000)
		if last.process != 1_000_000 {
			w.Fail("what became of the last transaction is not known")
		}
	}
	w.audit()
	w.report.VirtualUs = w.nowUs
	return w.report, nil
}

// failure is what a broken promise panics with.
type failure string

// Fail ends the run.
func (w *World) Fail(format string, args ...any) { panic(failure(fmt.Sprintf(format, args...))) }

// At does something later.
func (w *World) At(delayUs int64, do func()) {
	w.seq++
	heap.Push(&w.queue, event{w.nowUs + max(delayUs, 0), w.seq, do})
}

// UpTo is uniform in [0, us].
func (w *World) UpTo(us int64) int64 { return w.rng.Int64N(us + 1) }

// Chance is true in so many of a hundred cases, and never when the world is calm.
func (w *World) Chance(pct int) bool { return !w.calm && w.rng.IntN(100) < pct }

// maxEvents ends a run that goes round in circles.
const maxEvents = 3_000_000

func (w *World) until(done func() bool, withinUs int64) {
	end := w.nowUs + withinUs
	for n := 0; !done(); n++ {
		if w.queue.Len() == 0 {
			w.Fail("nothing happens any more: %s", w.describe())
		}
		e := heap.Pop(&w.queue).(event) //nolint:forcetypeassert // nothing else is put in
		w.nowUs = e.atUs
		e.do()
		if w.nowUs > end || n > maxEvents {
			w.Fail("not done in time: %s", w.describe())
		}
	}
}

func (w *World) describe() string {
	busy := 0
	for _, u := range w.users {
		if u.busy {
			busy++
		}
	}
	text := fmt.Sprintf("%d users busy, budget %d\n", busy, w.budget)
	return text + w.cluster.String()
}

// late: the time for faults is over.
func (w *World) late() bool { return w.opt.CalmAtUs > 0 && w.nowUs >= w.opt.CalmAtUs }

// heal ends every fault, and nobody begins anything new.
func (w *World) heal() {
	if w.calm {
		return
	}
	w.calm, w.budget = true, 0
	w.cluster.Heal()
}

func (w *World) idle() bool {
	for _, u := range w.users {
		if u.busy {
			return false
		}
	}
	return w.registrar == nil || !w.registrar.busy
}

// newID is of the same home as another, or of any.
func (w *World) newID(like txnid.ID) txnid.ID {
	w.lastID++
	var random [10]byte
	random[0], random[1] = byte(w.rng.IntN(16)), byte(w.rng.IntN(256))
	if !like.IsZero() {
		random[0], random[1] = like[6], like[7]
	}
	for i := range 8 {
		random[9-i] = byte(w.lastID >> (8 * i))
	}
	return txnid.New(StartMs+uint64(w.nowUs/1000), random)
}

// Mix makes a number part of the run's trace.
func (w *World) Mix(v uint64) { w.report.Trace = (w.report.Trace ^ v) * 1099511628211 }

func (w *World) time() shard.Time {
	return shard.Time{MonoUs: 1 + w.nowUs, WallMs: StartMs + uint64(w.nowUs/1000)}
}

// audit is the end: every transaction has ended, no lock is held, and lists hold what
// was committed.
func (w *World) audit() {
	w.cluster.Audit()
	for _, p := range w.parts {
		p.audit()
	}
	txns, err := check.Pair(w.history.Events())
	if err != nil {
		w.Fail("%v", err)
	}
	for i := range txns {
		switch txns[i].Status {
		case check.Committed:
			w.report.Committed++
		case check.Aborted:
			w.report.Aborted++
		default:
			w.report.Unknown++
		}
	}
	w.report.Anomalies = check.Check(txns, check.StrictSerializable)
	w.report.Replay = replay.Run(w.decided, txns, w.lists())
	w.report.Locks, w.report.Granted = w.locks.Check(), w.locks.Granted()
}

// lists is what the participants hold.
func (w *World) lists() map[string][]int64 {
	lists := map[string][]int64{}
	for _, p := range w.parts {
		for key, items := range p.items { // order does not matter: each key by itself
			for _, i := range items {
				lists[key] = append(lists[key], i.value)
			}
		}
	}
	return lists
}

// Durable counts what an entry did when it became durable. Every entry of every shard is
// told once, in the order in which they became so.
func (w *World) Durable(effects []txn.Effect) {
	for i := range effects {
		switch e := &effects[i]; e.Kind {
		case txn.EffectDeadlock:
			if e.Txn.Interactive {
				w.report.Deadlocks++
			} else {
				w.report.Restarted++
			}
		case txn.EffectVerified:
			w.report.Verified++
		case txn.EffectSealed:
			w.sealed[e.ID] = true
		case txn.EffectCycle:
			w.report.Deadlocks++
		case txn.EffectStepRepeated:
			w.report.Repeated++
		case txn.EffectAskAgain:
			w.report.Yielded++
		case txn.EffectBegan:
			if e.Txn.AgeMs != e.Txn.BeganMs {
				w.report.Upgraded++
			}
			if len(e.Txn.Foreign) > 0 {
				w.report.Spread++
			}
		case txn.EffectDecided:
			w.Mix(e.Txn.DecidedMs)
			if e.Txn.Abort == nil {
				w.decided = append(w.decided, replay.Decision{ID: e.Txn.ID.String(), Rank: uint64(len(w.decided))})
				break
			}
			if why := e.Txn.Abort.Reason; w.sealed[e.ID] && (why == reason.Wounded || why == reason.Deadlock) {
				w.Fail("%s was asked to prepare, and is aborted for an elder: %s", e.ID, e.Txn.Abort.Message)
			}
			switch e.Txn.Abort.Reason {
			case "LOCK_TIMEOUT":
				w.report.TimedOut++
			case "TIMEOUT":
				w.report.Expired++
			case "WOUNDED":
				w.report.Wounded++
			case "IDLE_TIMEOUT":
				w.report.Idle++
			case "EXECUTION_LOST":
				w.report.Lost++
			}
		default: // what the audit sees at the end
		}
	}
}

// Serve hands a call to its participant, and returns the answer.
func (w *World) Serve(call *shard.Call) *shard.CallDone { return w.part(call.Service).serve(call) }

func (w *World) part(service string) *part {
	for _, p := range w.parts {
		if p.name == service {
			return p
		}
	}
	w.Fail("no participant %s", service)
	return nil
}

// NowUs is the time since the run began.
func (w *World) NowUs() int64 { return w.nowUs }

// Rand is where all chance comes from.
func (w *World) Rand() *rand.Rand { return w.rng }

// Calm reports whether there are no more faults.
func (w *World) Calm() bool { return w.calm }

// Options are the run's, with the number of shards that the seed chose.
func (w *World) Options() Options { return w.opt }

// Crashed counts a process that died.
func (w *World) Crashed() { w.report.Crashes++ }
