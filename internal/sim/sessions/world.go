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
	"github.com/assent-tx/assent/internal/shard"
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
	RestartPct   int  // of a call: the participant restarts and loses what is open
	NoPct        int  // of a prepare
	SilentPct    int  // of a step: the client dies
	LocksOff     bool // clients lock keys that nobody else uses: a planted bug
	Trusting     bool // participants do not look at fencing tokens
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
	TimedOut                          int // waited for a lock until the timeout
	Wounded, Yielded, Spread          int // gave way to an elder, at another shard; transactions with locks at several shards
	Verified                          int // hashes in the log that the oracle's state has, too
	Anomalies                         []check.Anomaly
	Replay                            []string         // what differs when the committed are replayed as they were decided
	Locks                             []linear.Problem // keys that two had at once
	Granted                           int              // locks that clients were told to have
	Trace                             uint64           // equal for equal seeds
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

const startMs = 1_750_000_000_000

type world struct {
	opt    Options
	rng    *rand.Rand
	nowUs  int64
	seq    uint64
	queue  queue
	calm   bool // no more faults
	parts  []*part
	users  []*user
	report Report

	coords    []*coord // one for each shard
	lastToken shard.Token
	lastID    uint64
	history   check.Recorder
	locks     linear.Locks
	decided   []replay.Decision // commits in the order in which they became durable, of all shards
	values    int64
	budget    int
}

// newWorld is the coordinators and participants of a seed.
func newWorld(seed uint64, opt Options) *world {
	w := &world{opt: opt, rng: rand.New(rand.NewPCG(seed, 7)), budget: opt.Transactions}
	if w.opt.Shards == 0 {
		w.opt.Shards = []int{1, 3, 2}[seed%3]
	}
	for i := range opt.Services {
		w.parts = append(w.parts, newPart(w, fmt.Sprintf("s%d", i)))
	}
	for i := range w.opt.Shards {
		w.coords = append(w.coords, newCoord(w, i))
	}
	return w
}

// failed makes an error of a broken promise; deferred.
func (w *world) failed(seed uint64, err *error) {
	switch f := recover().(type) {
	case nil:
	case failure:
		*err = fmt.Errorf("seed %d, at %d us: %s", seed, w.nowUs, string(f))
	default: // a broken invariant of what runs here
		*err = fmt.Errorf("seed %d, at %d us: panic: %v\n%s", seed, w.nowUs, f, debug.Stack())
	}
}

// Run runs one seed.
func Run(seed uint64, opt Options) (report Report, err error) {
	w := newWorld(seed, opt)
	defer func() { report = w.report }()
	defer w.failed(seed, &err)
	for i := range opt.Clients {
		u := &user{w: w, process: i}
		w.users = append(w.users, u)
		w.at(w.upTo(1000), u.next)
	}
	w.until(func() bool { return w.budget <= 0 && w.idle() }, 3_600_000_000)
	w.calm = true
	w.until(func() bool { return w.idle() && w.quiet() }, 3_600_000_000)
	last := &user{w: w, process: 1_000_000}
	last.readAll()
	w.until(func() bool { return !last.busy && w.quiet() }, 600_000_000)
	w.audit()
	return w.report, nil
}

// failure is what a broken promise panics with.
type failure string

func (w *world) fail(format string, args ...any) { panic(failure(fmt.Sprintf(format, args...))) }

func (w *world) at(delayUs int64, do func()) {
	w.seq++
	heap.Push(&w.queue, event{w.nowUs + max(delayUs, 0), w.seq, do})
}

func (w *world) upTo(us int64) int64 { return w.rng.Int64N(us + 1) }

func (w *world) chance(pct int) bool { return !w.calm && w.rng.IntN(100) < pct }

// maxEvents ends a run that goes round in circles.
const maxEvents = 3_000_000

func (w *world) until(done func() bool, withinUs int64) {
	end := w.nowUs + withinUs
	for n := 0; !done(); n++ {
		if w.queue.Len() == 0 {
			w.fail("nothing happens any more: %s", w.describe())
		}
		e := heap.Pop(&w.queue).(event) //nolint:forcetypeassert // nothing else is put in
		w.nowUs = e.atUs
		e.do()
		if w.nowUs > end || n > maxEvents {
			w.fail("not done in time: %s", w.describe())
		}
	}
}

func (w *world) describe() string {
	busy := 0
	for _, u := range w.users {
		if u.busy {
			busy++
		}
	}
	text := fmt.Sprintf("%d users busy, budget %d\n", busy, w.budget)
	for _, c := range w.coords {
		text += fmt.Sprintf("%d requests wait\n", len(c.waiting))
		if c.sh != nil {
			text += c.sh.String()
		}
	}
	return text
}

// quiet: every shard leads, and nothing is open or locked.
func (w *world) quiet() bool {
	for _, c := range w.coords {
		if c.sh == nil || !c.sh.Leading() || c.sh.State().Live() > 0 || c.sh.State().LockOwners() > 0 {
			return false
		}
	}
	return true
}

func (w *world) idle() bool {
	for _, u := range w.users {
		if u.busy {
			return false
		}
	}
	return true
}

// newID is of the same home as another, or of any.
func (w *world) newID(like txnid.ID) txnid.ID {
	w.lastID++
	var random [10]byte
	random[0], random[1] = byte(w.rng.IntN(16)), byte(w.rng.IntN(256))
	if !like.IsZero() {
		random[0], random[1] = like[6], like[7]
	}
	for i := range 8 {
		random[9-i] = byte(w.lastID >> (8 * i))
	}
	return txnid.New(startMs+uint64(w.nowUs/1000), random)
}

func (w *world) mix(v uint64) { w.report.Trace = (w.report.Trace ^ v) * 1099511628211 }

func (w *world) time() shard.Time {
	return shard.Time{MonoUs: 1 + w.nowUs, WallMs: startMs + uint64(w.nowUs/1000)}
}

// audit is the end: every transaction has ended, no lock is held, and lists hold what
// was committed.
func (w *world) audit() {
	for _, c := range w.coords {
		if c.sh.State().Hash() != c.oracle.Hash() {
			w.fail("the leader's state differs from the log's")
		}
	}
	for _, p := range w.parts {
		p.audit()
	}
	txns, err := check.Pair(w.history.Events())
	if err != nil {
		w.fail("%v", err)
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
func (w *world) lists() map[string][]int64 {
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
