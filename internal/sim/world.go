package sim

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"

	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txnid"
)

const (
	startWallMs  = 1_750_000_000_000
	maxSteps     = 2_000_000
	safetyUs     = 1200_000_000 // the first phase ends by then at the latest
	livenessUs   = 7200_000_000 // the second phase must be quiet within this
	traceLines   = 200
	quietCheckUs = 250_000
)

// FailureError is a violated invariant.
type FailureError struct {
	Seed uint64
	Step uint64
	AtUs int64
	What string
	Tail []string // the last lines of the trace; empty unless traced
}

func (f *FailureError) Error() string {
	return fmt.Sprintf("seed %d, step %d, t=%.6fs: %s", f.Seed, f.Step, float64(f.AtUs)/1e6, f.What)
}

// Result is what a run came to.
type Result struct {
	Failure *FailureError // nil: every invariant held
	Trace   uint64        // hash of the run
	Steps   uint64
	Entries int
	AtUs    int64
	Reached Counters
}

// world is one run.
type world struct {
	seed   uint64
	opt    Options
	rng    *rand.Rand
	nowUs  int64
	wallMs int64 // offset of the coordinator's wall clock
	queue  eventHeap
	seq    uint64
	steps  uint64
	healed bool
	calm   bool // the clients make no more requests of their own

	homes   []*home
	parts   []*participant
	flying  int // messages in the network and work at participants
	callSeq uint64

	clients  clients
	reached  Counters
	traceSum uint64
	tail     []string
	tailAt   int
	tracing  bool
	verbose  func(string)
}

// stop unwinds the run with a failure.
type stop struct{ what string }

func (w *world) fail(format string, args ...any) { panic(stop{fmt.Sprintf(format, args...)}) }

// Run runs one seed. With trace it keeps the last lines for the failure; verbose,
// if not nil, gets every line.
func Run(seed uint64, trace bool, verbose func(string)) (res Result) {
	w := &world{seed: seed, rng: rand.New(rand.NewPCG(seed, 0x61737365_6e740001)), tracing: trace || verbose != nil, verbose: verbose, traceSum: 14695981039346656037}
	w.opt = Swarm(w.rng)
	defer func() {
		res = Result{Trace: w.traceSum, Steps: w.steps, AtUs: w.nowUs, Reached: w.reached}
		for _, h := range w.homes {
			res.Entries += len(h.log.full)
		}
		if p := recover(); p != nil {
			s, ok := p.(stop)
			if !ok {
				s.what = fmt.Sprintf("the core panicked: %v", p)
				if trace {
					s.what += "\n" + stack()
				}
			}
			res.Failure = &FailureError{Seed: seed, Step: w.steps, AtUs: w.nowUs, What: s.what, Tail: w.lastLines()}
		}
	}()
	w.build()
	w.runSafety()
	w.heal()
	w.runLiveness()
	return res
}

func (w *world) build() {
	for i := range w.opt.Services {
		w.parts = append(w.parts, newParticipant(w, i))
	}
	w.homes = []*home{newHome(w, 0, 1)}
	w.startFaults()
	w.clients.start(w)
}

func (w *world) runSafety() {
	for len(w.queue) > 0 && w.nowUs < safetyUs && !w.clients.finished() {
		w.one()
	}
}

// one takes the next event.
func (w *world) one() {
	e := w.queue.pop()
	w.nowUs = e.atUs
	if w.steps++; w.steps > maxSteps {
		w.fail("more than %d steps: something spins", maxSteps)
	}
	e.do()
}

func (w *world) at(delayUs int64, do func()) {
	w.seq++
	w.queue.push(event{atUs: w.nowUs + delayUs, seq: w.seq, do: do})
}

func (w *world) home(id txnid.ID) *home { return w.homes[id.Shard(uint32(len(w.homes)))] }

func (w *world) time() shard.Time {
	return shard.Time{MonoUs: w.nowUs + 1, WallMs: uint64(startWallMs + w.nowUs/1000 + w.wallMs)}
}

// ---- chance

func (w *world) chance(pct int) bool { return pct > 0 && w.rng.IntN(100) < pct }

// upTo is uniform in [0, n].
func (w *world) upTo(n int64) int64 {
	if n <= 0 {
		return 0
	}
	return w.rng.Int64N(n + 1)
}

// around is a time with this mean, seldom very long.
func (w *world) around(mean int64) int64 {
	return 1 + int64(min(w.rng.ExpFloat64(), 8)*float64(mean))
}

func (w *world) newID(offsetMs int64) txnid.ID {
	var random [10]byte
	binary.LittleEndian.PutUint64(random[:8], w.rng.Uint64())
	random[8], random[9] = byte(w.rng.Uint32()), byte(w.rng.Uint32())
	return txnid.New(uint64(startWallMs+w.nowUs/1000+w.wallMs+offsetMs), random)
}

// ---- trace

// trace adds one line to the run's hash, and to the text if somebody reads it.
func (w *world) trace(what, who string, id txnid.ID, n uint64) {
	h := fnv.New64a()
	var b [24]byte
	binary.LittleEndian.PutUint64(b[0:], w.traceSum)
	binary.LittleEndian.PutUint64(b[8:], uint64(w.nowUs))
	binary.LittleEndian.PutUint64(b[16:], n)
	h.Write(b[:])
	h.Write(id[:])
	h.Write([]byte(what))
	h.Write([]byte(who))
	w.traceSum = h.Sum64()
	if w.tracing {
		line := fmt.Sprintf("%8d %12.6f  %-24s %-10s", w.steps, float64(w.nowUs)/1e6, what, who)
		if !id.IsZero() {
			line += " " + short(id)
		}
		if n != 0 {
			line += fmt.Sprintf(" %d", n)
		}
		w.line(line)
	}
}

func (w *world) traceEntry(index uint64, entry []byte) {
	w.trace("durable", "", txnid.ID{}, index)
	if !w.tracing {
		return
	}
	term, cmds := decode(entry)
	for i := range cmds {
		c := &cmds[i]
		s := fmt.Sprintf("%31s term %d: kind %d %s", "", term, c.kind, c.name)
		if !c.id.IsZero() {
			s += short(c.id)
		}
		w.line(fmt.Sprintf("%s %s branch %d fate %d one_phase %v", s, c.reason, c.branch+1, c.fate, c.onePhase))
	}
}

func (w *world) line(s string) {
	if w.verbose != nil {
		w.verbose(s)
	}
	if len(w.tail) < traceLines {
		w.tail = append(w.tail, s)
		return
	}
	w.tail[w.tailAt] = s
	w.tailAt = (w.tailAt + 1) % traceLines
}

func (w *world) lastLines() []string {
	return append(append([]string(nil), w.tail[w.tailAt:]...), w.tail[:w.tailAt]...)
}

func short(id txnid.ID) string { s := id.String(); return s[:13] + ".." + s[32:] }

// ---- the queue of events: by time, then by order of making

type event struct {
	atUs int64
	seq  uint64
	do   func()
}

func (e *event) before(o *event) bool { return e.atUs < o.atUs || e.atUs == o.atUs && e.seq < o.seq }

type eventHeap []event

func (h *eventHeap) push(e event) {
	*h = append(*h, e)
	a := *h
	for i := len(a) - 1; i > 0; {
		up := (i - 1) / 2
		if !a[i].before(&a[up]) {
			return
		}
		a[i], a[up] = a[up], a[i]
		i = up
	}
}

func (h *eventHeap) pop() event {
	a := *h
	first, last := a[0], len(a)-1
	a[0], a[last] = a[last], event{}
	a = a[:last]
	*h = a
	for i := 0; ; {
		l := 2*i + 1
		if l >= last {
			return first
		}
		if r := l + 1; r < last && a[r].before(&a[l]) {
			l = r
		}
		if !a[l].before(&a[i]) {
			return first
		}
		a[i], a[l] = a[l], a[i]
		i = l
	}
}
