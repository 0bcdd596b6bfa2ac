package lock

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"

	"github.com/assent-tx/assent/internal/txnid"
)

// The simulation of a contended shard: clients in a closed loop, virtual microseconds,
// one seed. A one-shot transaction claims its keys in one set and is prepared from the
// grant on; an interactive one takes a step at a time and works between steps. A victim
// of the first kind restarts inside; one of the second rolls back and is begun again with
// the age of its first try.

// workload says what the clients do.
type workload struct {
	name string
	plan func(r *rand.Rand, client int) plan
}

// plan is one transaction.
type plan struct {
	steps  [][]Need
	workUs []uint64 // after each step
	long   bool     // the long reader
}

const (
	simClients   = 64
	simKeys      = 1000
	stepWorkUs   = 1000 // between two steps, on average
	commitUs     = 2000 // prepare, log, commit, on average
	rollbackUs   = 1000 // until the participants have acknowledged, on average
	readerKeys   = 50
	longCommitUs = 100_000 // the one-shot reader
)

func about(r *rand.Rand, us uint64) uint64 { return us/2 + r.Uint64N(us+1) }

// zipf draws keys with exponent 0.99, which rand.Zipf cannot.
type zipf []float64

func newZipf(n int, exponent float64) zipf {
	z, sum := make(zipf, n), 0.0
	for i := range z {
		sum += 1 / math.Pow(float64(i+1), exponent)
		z[i] = sum
	}
	return z
}

func (z zipf) draw(r *rand.Rand) string {
	at := r.Float64() * z[len(z)-1]
	return simKey(sort.Search(len(z)-1, func(i int) bool { return z[i] > at }))
}

// simKey: the order of keys has nothing to do with how hot they are.
func simKey(rank int) string { return fmt.Sprintf("k%03d", rank*619%simKeys) }

// some draws 1 to 4 different keys.
func (z zipf) some(r *rand.Rand) (keys []string) {
	for n := 1 + r.IntN(4); len(keys) < n; {
		if key := z.draw(r); !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys
}

func oneShot(r *rand.Rand, set []Need) plan {
	return plan{steps: [][]Need{Fold(set)}, workUs: []uint64{about(r, commitUs)}}
}

func stepwise(r *rand.Rand, needs []Need) (p plan) {
	for _, n := range needs {
		p.steps = append(p.steps, []Need{n})
		p.workUs = append(p.workUs, about(r, stepWorkUs))
	}
	p.workUs[len(needs)-1] += about(r, commitUs)
	return p
}

// readOrWrite is a set for the keys: half are read, half written.
func readOrWrite(r *rand.Rand, keys []string) (set []Need) {
	for _, key := range keys {
		set = append(set, Need{key, []Mode{S, X}[r.IntN(2)]})
	}
	return set
}

// readThenWrite reads all keys first, and then writes half of them.
func readThenWrite(r *rand.Rand, keys []string, first Mode) (needs []Need) {
	var later []Need
	for _, key := range keys {
		mode := S
		if r.IntN(2) == 0 {
			mode = first
			later = append(later, Need{key, X})
		}
		needs = append(needs, Need{key, mode})
	}
	return append(needs, later...)
}

func workloads() []workload {
	skewed, even := newZipf(simKeys, 0.99), newZipf(simKeys, 0)
	hot := func(r *rand.Rand) []Need { // the hot key, and another before or after it
		needs := []Need{{"hot", X}, {even.draw(r), X}}
		if r.IntN(2) == 0 {
			slices.Reverse(needs)
		}
		return needs
	}
	reader := func() (needs []Need) {
		for i := range readerKeys {
			needs = append(needs, Need{simKey(i), S})
		}
		return needs
	}
	write := func(r *rand.Rand) (needs []Need) {
		for _, key := range skewed.some(r) {
			needs = append(needs, Need{key, X})
		}
		return needs
	}
	return []workload{
		{"zipf/once", func(r *rand.Rand, _ int) plan { return oneShot(r, readOrWrite(r, skewed.some(r))) }},
		{"zipf/steps", func(r *rand.Rand, _ int) plan { return stepwise(r, readThenWrite(r, skewed.some(r), S)) }},
		{"zipf/update", func(r *rand.Rand, _ int) plan { return stepwise(r, readThenWrite(r, skewed.some(r), U)) }},
		{"hot/once", func(r *rand.Rand, _ int) plan { return oneShot(r, hot(r)) }},
		{"hot/steps", func(r *rand.Rand, _ int) plan { return stepwise(r, hot(r)) }},
		{"reader/once", func(r *rand.Rand, client int) plan {
			if client > 0 {
				return oneShot(r, write(r))
			}
			p := oneShot(r, reader())
			p.workUs[0], p.long = longCommitUs, true
			return p
		}},
		{"reader/steps", func(r *rand.Rand, client int) plan {
			if client > 0 {
				return stepwise(r, write(r))
			}
			p := stepwise(r, reader())
			p.long = true
			return p
		}},
	}
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
	w       workload
	r       *rand.Rand
	nowUs   uint64
	seq     int
	agenda  agenda
	clients []client
	owners  map[txnid.ID]int
	next    uint64
}

// simulate runs the workload until so many transactions have committed.
func simulate(m manager, w workload, commits int, seed uint64) figures {
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
		c.plan, c.bornUs = s.w.plan(s.r, i), s.nowUs
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
