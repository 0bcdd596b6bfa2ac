// Package sessions simulates clients that work step by step, and others that submit as
// a whole, against the real core of one shard: a modelled log that crashes and changes
// leaders, participants that lose their open work, a network that loses, doubles and
// delays. One thread, virtual time, one seed.
//
// Transactions append to lists and read lists. What they were told must be strictly
// serializable (internal/check); afterwards every transaction has ended, no lock is
// held, and the lists hold exactly what was committed.
package sessions

import (
	"container/heap"
	"fmt"
	"math/rand/v2"

	"github.com/assent-tx/assent/internal/check"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// Options of a run. Percentages are per occasion.
type Options struct {
	Transactions int // that clients begin, retries apart
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
	Anomalies                         []check.Anomaly
	Trace                             uint64 // equal for equal seeds
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

	sh        *shard.Shard // nil: the coordinator is down
	life      int
	term      uint64
	log       []record
	inFlight  []record
	oracle    *txn.State
	wakeUs    int64
	waiting   map[shard.Token]func(*shard.Reply)
	lastToken shard.Token
	lastID    uint64
	history   check.Recorder
	values    int64
	budget    int
}

type record struct {
	term  uint64
	entry []byte
}

// Run runs one seed.
func Run(seed uint64, opt Options) (report Report, err error) {
	w := &world{opt: opt, rng: rand.New(rand.NewPCG(seed, 7)), oracle: txn.New(0, 1), waiting: map[shard.Token]func(*shard.Reply){}, budget: opt.Transactions}
	defer func() {
		if f, ok := recover().(failure); ok {
			report, err = w.report, fmt.Errorf("seed %d, at %d us: %s", seed, w.nowUs, string(f))
		}
	}()
	for i := range opt.Services {
		w.parts = append(w.parts, newPart(w, fmt.Sprintf("s%d", i)))
	}
	w.start()
	for i := range opt.Clients {
		u := &user{w: w, process: i}
		w.users = append(w.users, u)
		w.at(w.upTo(1000), u.next)
	}
	w.until(func() bool { return w.budget <= 0 && w.idle() }, 3_600_000_000)
	w.calm = true
	w.until(func() bool { return w.idle() && w.sh != nil && w.sh.Leading() && w.sh.State().Live() == 0 }, 3_600_000_000)
	last := &user{w: w, process: 1_000_000}
	last.readAll()
	w.until(func() bool { return !last.busy && w.sh.State().Live() == 0 }, 600_000_000)
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
	state := "down"
	if w.sh != nil {
		state = w.sh.String()
	}
	return fmt.Sprintf("%d users busy, %d requests wait, budget %d\n%s", busy, len(w.waiting), w.budget, state)
}

func (w *world) idle() bool {
	for _, u := range w.users {
		if u.busy {
			return false
		}
	}
	return true
}

func (w *world) newID() txnid.ID {
	w.lastID++
	var random [10]byte
	for i := range 8 {
		random[9-i] = byte(w.lastID >> (8 * i))
	}
	return txnid.New(startMs+uint64(w.nowUs/1000), random)
}

func (w *world) mix(v uint64) { w.report.Trace = (w.report.Trace ^ v) * 1099511628211 }

// ---- the coordinator

func (w *world) time() shard.Time {
	return shard.Time{MonoUs: 1 + w.nowUs, WallMs: startMs + uint64(w.nowUs/1000)}
}

// start starts a process on what the log has kept.
func (w *world) start() {
	cfg := shard.DefaultConfig()
	cfg.Node, cfg.Cluster, cfg.Incarnation = "sim", [16]byte{1}, 1
	cfg.MaxAppendsInFlight = 1 + w.rng.IntN(3)
	w.sh = shard.New(cfg)
	w.life++
	w.term++
	w.wakeUs = 0
	from := 0
	if n := len(w.log); n > 0 && w.rng.IntN(2) == 0 { // from a snapshot somewhere in the log
		from = 1 + w.rng.IntN(n)
		state := txn.New(0, 1)
		var effects []txn.Effect
		for i, r := range w.log[:from] {
			if err := state.Apply(uint64(i+1), r.term, r.entry, &effects); err != nil {
				w.fail("replay: %v", err)
			}
		}
		var snapshot []byte
		_ = state.Capture().Write(func(b []byte) error { snapshot = append(snapshot, b...); return nil })
		if err := w.sh.Restore(snapshot); err != nil {
			w.fail("restore: %v", err)
		}
	}
	for i := from; i < len(w.log); i++ {
		if err := w.sh.Apply(w.time(), uint64(i+1), w.log[i].term, w.log[i].entry); err != nil {
			w.fail("replay: %v", err)
		}
	}
	if w.sh.State().Hash() != w.oracle.Hash() {
		w.fail("a replay of the log makes another state")
	}
	w.step(&shard.Lead{Term: w.term})
}

// crash kills the process: what it had proposed may be durable, or not.
func (w *world) crash() {
	if w.sh == nil {
		return
	}
	w.report.Crashes++
	kept := w.inFlight[:w.rng.IntN(len(w.inFlight)+1)]
	w.inFlight = nil
	w.sh = nil
	w.life++
	for _, r := range kept {
		w.append(r)
	}
	waiting := w.waiting
	w.waiting = map[shard.Token]func(*shard.Reply){}
	for t := shard.Token(1); t <= w.lastToken; t++ { // in order
		if answer := waiting[t]; answer != nil {
			w.at(w.upTo(5_000), func() { answer(nil) })
		}
	}
	life := w.life
	w.at(w.upTo(300_000), func() {
		if w.life == life {
			w.start()
		}
	})
}

// append makes a record durable.
func (w *world) append(r record) {
	w.log = append(w.log, r)
	var effects []txn.Effect
	if err := w.oracle.Apply(uint64(len(w.log)), r.term, r.entry, &effects); err != nil {
		w.fail("the log cannot be followed: %v", err)
	}
	if err := w.oracle.Check(); err != nil {
		w.fail("%v\n%s", err, w.oracle)
	}
	for i := range effects {
		switch e := &effects[i]; e.Kind {
		case txn.EffectDeadlock:
			if e.Txn.Interactive {
				w.report.Deadlocks++
			} else {
				w.report.Restarted++
			}
		case txn.EffectStepRepeated:
			w.report.Repeated++
		case txn.EffectBegan:
			if e.Txn.AgeMs != e.Txn.BeganMs {
				w.report.Upgraded++
			}
		case txn.EffectDecided:
			w.mix(e.Txn.DecidedMs)
			if e.Txn.Abort == nil {
				break
			}
			switch e.Txn.Abort.Reason {
			case "IDLE_TIMEOUT":
				w.report.Idle++
			case "EXECUTION_LOST":
				w.report.Lost++
			}
		default: // what the audit sees at the end
		}
	}
}

func (w *world) step(ev shard.Event) {
	if w.sh == nil {
		return
	}
	w.sh.Step(w.time(), ev)
	w.act()
}

func (w *world) act() {
	rd := w.sh.Ready()
	entries := append([][]byte(nil), rd.Entries...)
	calls := append([]shard.Call(nil), rd.Calls...)
	replies := append([]shard.Reply(nil), rd.Replies...)
	wake := rd.WakeAtUs
	w.sh.Advance()
	for _, e := range entries {
		w.propose(e)
	}
	for i := range replies {
		r := &replies[i]
		answer := w.waiting[r.Token]
		delete(w.waiting, r.Token)
		if answer == nil {
			continue
		}
		if w.chance(w.opt.LosePct) {
			w.at(w.upTo(200_000), func() { answer(nil) })
			continue
		}
		w.at(w.upTo(2_000), func() { answer(r) })
	}
	for i := range calls {
		w.call(&calls[i])
	}
	if wake > 0 && (w.wakeUs == 0 || wake < w.wakeUs) {
		w.wakeUs = wake
		life := w.life
		w.at(wake-1-w.nowUs, func() {
			if w.life == life && w.wakeUs == wake {
				w.wakeUs = 0
				w.step(&shard.Tick{})
			}
		})
	}
}

func (w *world) propose(entry []byte) {
	w.inFlight = append(w.inFlight, record{w.term, append([]byte(nil), entry...)})
	life := w.life
	w.at(50+w.upTo(1_000), func() {
		if w.life != life {
			return
		}
		r := w.inFlight[0]
		w.inFlight = w.inFlight[1:]
		w.append(r)
		if err := w.sh.Apply(w.time(), uint64(len(w.log)), r.term, r.entry); err != nil {
			w.fail("%v", err)
		}
		if w.chance(w.opt.CrashPct) {
			w.crash() // before anything that the record justifies has left
			return
		}
		w.act()
		if w.chance(w.opt.CrashPct) {
			w.crash()
		}
	})
}

// ask sends a request; the answer is nil if none came.
func (w *world) ask(ev func(shard.Token) shard.Event, answer func(*shard.Reply)) {
	w.lastToken++
	token := w.lastToken
	if w.sh == nil || w.chance(w.opt.LosePct) {
		w.at(20_000+w.upTo(200_000), func() { answer(nil) })
		return
	}
	w.waiting[token] = answer
	w.step(ev(token))
}

// call sends a request to a participant: perhaps never, perhaps twice.
func (w *world) call(c *shard.Call) {
	life := w.life
	copies := 1
	switch {
	case w.chance(w.opt.LosePct):
		copies = 0
	case w.chance(w.opt.DoublePct):
		copies = 2
	}
	var p *part
	for _, q := range w.parts {
		if q.name == c.Service {
			p = q
		}
	}
	answered := false
	done := func(d *shard.CallDone) {
		if w.life != life || answered {
			return
		}
		answered = true
		w.step(d)
	}
	for range copies {
		delay := w.upTo(3_000)
		if w.chance(w.opt.LosePct) {
			delay = w.upTo(800_000) // long after its answer is of use
		}
		w.at(delay, func() {
			d := p.serve(c)
			if !w.chance(w.opt.LosePct) {
				w.at(w.upTo(3_000), func() { done(d) })
			}
		})
	}
	w.at(250_000, func() {
		done(&shard.CallDone{ID: c.ID, Branch: c.Branch, Phase: c.Phase, Attempt: c.Attempt, Term: c.Term, Answer: shard.Indefinite, Reason: "timeout"})
	})
}

// audit is the end: every transaction has ended, no lock is held, and lists hold what
// was committed.
func (w *world) audit() {
	st := w.sh.State()
	if st.LockOwners() != 0 || st.Live() != 0 {
		w.fail("locks or transactions are left:\n%s", w.sh)
	}
	if st.Hash() != w.oracle.Hash() {
		w.fail("the leader's state differs from the log's")
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
}
