package lock

import (
	"container/heap"
	"math/rand/v2"
	"slices"

	"github.com/assent-tx/assent/internal/contention"
	"github.com/assent-tx/assent/internal/txnid"
)

// The simulation of a contended shard: clients in a closed loop, virtual microseconds,
// one seed. A one-shot transaction claims its keys in one set and is prepared from the
// grant on; an interactive one takes a step at a time and works between steps. A victim
// of the first kind restarts inside; one of the second rolls back and is begun again with
// the age of its first try.

// plan is a transaction of a workload, with the time that it takes.
type plan struct {
	steps  [][]Need
	workUs []uint64 // after each step
	long   bool     // the long reader
}

const (
	simClients   = 64
	stepWorkUs   = 1000    // between two steps, on average
	commitUs     = 2000    // prepare, log, commit, on average
	rollbackUs   = 1000    // until the participants have acknowledged, on average
	longCommitUs = 100_000 // the one-shot reader
)

func about(r *rand.Rand, us uint64) uint64 { return us/2 + r.Uint64N(us+1) }

var modeOf = map[contention.Mode]Mode{contention.Shared: S, contention.Update: U, contention.Exclusive: X}

func draw(r *rand.Rand, w contention.Workload, client int) plan {
	drawn := w.Plan(r, client)
	p := plan{long: drawn.Long}
	for _, locks := range drawn.Steps {
		var set []Need
		for _, l := range locks {
			set = append(set, Need{l.Key, modeOf[l.Mode]})
		}
		work := uint64(0)
		if drawn.Once {
			set = Fold(set)
		} else {
			work = about(r, stepWorkUs)
		}
		p.steps, p.workUs = append(p.steps, set), append(p.workUs, work)
	}
	last := &p.workUs[len(p.workUs)-1]
	if *last += about(r, commitUs); drawn.Once && drawn.Long {
		*last = longCommitUs
	}
	return p
}

// client runs one transaction after the other.
type client struct {
	plan
	id      txnid.ID
	bornUs  uint64 // the first try's begin: the age
	step    int
	try     int // events of an earlier one are void
	rolling bool
}

type event struct {
	atUs   uint64
	seq    int
	client int
	try    int
}

type agenda []event

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	return a[i].atUs < a[j].atUs || a[i].atUs == a[j].atUs && a[i].seq < a[j].seq
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(event)) }
func (a *agenda) Pop() any {
	last := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return last
}

// figures are what a run is judged by.
type figures struct {
	Commits, Readers           int
	Aborts, Restarts, Needless int
	Us                         uint64
	WaitsUs                    []uint64 // ascending: latency less work and commit of the try that succeeded
	LongestReaderUs            uint64
	MostRestarts               int // within one command
	EldestGaveWay              int // the eldest of all: then somebody may starve
}

func (f *figures) percentile(p float64) float64 {
	return float64(f.WaitsUs[min(len(f.WaitsUs)-1, int(p*float64(len(f.WaitsUs))))]) / 1000
}

func (f *figures) longestOverMean() float64 {
	sum := 0.0
	for _, us := range f.WaitsUs {
		sum += float64(us)
	}
	return float64(f.WaitsUs[len(f.WaitsUs)-1]) / max(1, sum/float64(len(f.WaitsUs)))
}

type simulation struct {
	figures
	m       manager
	w       contention.Workload
	r       *rand.Rand
	nowUs   uint64
	seq     int
	agenda  agenda
	clients []client
	owners  map[txnid.ID]int
	next    uint64
}

// simulate runs the workload until so many transactions have committed.
func simulate(m manager, w contention.Workload, commits int, seed uint64) figures {
	s := &simulation{m: m, w: w, r: rand.New(rand.NewPCG(seed, 5)), clients: make([]client, simClients), owners: map[txnid.ID]int{}}
	for i := range s.clients {
		s.at(uint64(i), i)
	}
	for s.Commits < commits && len(s.agenda) > 0 {
		e := heap.Pop(&s.agenda).(event)
		if s.nowUs = e.atUs; e.try == s.clients[e.client].try {
			s.act(e.client)
		}
	}
	s.Us = s.nowUs
	slices.Sort(s.WaitsUs)
	return s.figures
}

func (s *simulation) at(us uint64, i int) {
	s.seq++
	heap.Push(&s.agenda, event{us, s.seq, i, s.clients[i].try})
}

// act: the client's work is done, or its rollback, or it is new.
func (s *simulation) act(i int) {
	c := &s.clients[i]
	switch {
	case c.steps == nil:
		c.plan, c.bornUs = draw(s.r, s.w, i), s.nowUs
		s.begin(i)
	case c.rolling:
		c.rolling = false
		s.leave(i)
		s.begin(i)
	case c.step+1 < len(c.steps):
		c.step++
		s.ask(i)
	default:
		s.commit(i)
	}
}

func (s *simulation) begin(i int) {
	s.next++
	c := &s.clients[i]
	c.id, c.step = txnid.Floor(s.next), 0
	s.owners[c.id] = i
	s.ask(i)
}

func (s *simulation) ask(i int) {
	c := &s.clients[i]
	if s.m.ask(c.id, c.bornUs, c.steps[c.step]) {
		s.granted(i)
	}
	s.settle()
}

func (s *simulation) granted(i int) {
	c := &s.clients[i]
	if c.step+1 == len(c.steps) {
		s.m.seal(c.id)
	}
	s.at(s.nowUs+c.workUs[c.step], i)
}

func (s *simulation) woke(owners []txnid.ID) {
	for _, id := range owners {
		s.granted(s.owners[id])
	}
}

func (s *simulation) leave(i int) {
	id := s.clients[i].id
	delete(s.owners, id)
	s.woke(s.m.leave(id))
	s.settle()
}

func (s *simulation) commit(i int) {
	c := &s.clients[i]
	wait := s.nowUs - c.bornUs
	for _, us := range c.workUs {
		wait -= us
	}
	s.Commits++
	s.WaitsUs = append(s.WaitsUs, wait)
	if c.long {
		s.Readers++
		s.LongestReaderUs = max(s.LongestReaderUs, wait)
	}
	s.leave(i)
	c.steps = nil
	s.at(s.nowUs, i)
}

// settle makes those give way who must.
func (s *simulation) settle() {
	restarts := 0
	for {
		id, needless, ok := s.m.loser()
		if !ok {
			break
		}
		if needless {
			s.Needless++
		}
		i := s.owners[id]
		c := &s.clients[i]
		if s.eldest(c) {
			s.EldestGaveWay++
		}
		if len(c.steps) == 1 {
			restarts++
			s.Restarts++
			s.woke(s.m.leave(id))
			if s.m.ask(id, c.bornUs, c.steps[0]) {
				s.granted(i)
			}
			continue
		}
		s.Aborts++
		c.try++
		c.rolling = true
		s.woke(s.m.giveUp(id))
		s.at(s.nowUs+about(s.r, rollbackUs), i)
	}
	s.MostRestarts = max(s.MostRestarts, restarts)
}

func (s *simulation) eldest(c *client) bool {
	for _, i := range s.owners { // order does not matter: all are asked
		if o := &s.clients[i]; o.bornUs < c.bornUs || o.bornUs == c.bornUs && o.id.Less(c.id) {
			return false
		}
	}
	return true
}
