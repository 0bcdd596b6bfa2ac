package check

import (
	"fmt"
	"slices"
	"strings"
)

// Dependency is the kind of an edge.
type Dependency uint8

// Dependencies, as in the package comment.
const (
	WW Dependency = iota
	WR
	RW
	Process
	RealTime
)

var dependencyNames = [...]string{"ww", "wr", "rw", "process", "rt"}

func (d Dependency) String() string { return dependencyNames[d] }

// Edge says that From comes before To.
type Edge struct {
	From, To int // transactions
	Kind     Dependency
	Key      string
	Before   int64 // the version's last value on From's side; 0: the empty list
	After    int64 // ww, rw: the value appended by To
}

// graph is the dependencies of the transactions.
type graph struct {
	out [][]Edge
}

func (g *graph) add(e Edge) {
	if e.From != e.To {
		g.out[e.From] = append(g.out[e.From], e)
	}
}

// dependencies makes the graph of the transactions that took effect.
func (c *checker) dependencies() *graph {
	g := &graph{out: make([][]Edge, len(c.txns))}
	for _, name := range c.names {
		k := c.keys[name]
		for i, v := range k.order {
			w, ok := c.writer[version{name, v}]
			if !ok {
				continue
			}
			if i > 0 {
				if before, ok := c.writer[version{name, k.order[i-1]}]; ok {
					g.add(Edge{before, w, WW, name, k.order[i-1], v})
				}
			}
		}
		if n := len(k.order); n > 0 {
			end := k.order[n-1]
			if w, ok := c.writer[version{name, end}]; ok {
				for _, u := range k.unread {
					g.add(Edge{w, u, WW, name, end, c.firstAppend(u, name)})
				}
			}
		}
		for _, r := range k.reads {
			n := len(r.list)
			last := int64(0)
			if n > 0 {
				last = r.list[n-1]
				if w, ok := c.writer[version{name, last}]; ok {
					g.add(Edge{w, r.txn, WR, name, last, 0})
				}
			}
			if n < len(k.order) {
				// A transaction's own appends are in one piece behind its read.
				next := n
				for next < len(k.order) && c.writer[version{name, k.order[next]}] == r.txn {
					next++
				}
				if w, ok := c.writer[version{name, k.order[n]}]; ok && next == n {
					g.add(Edge{r.txn, w, RW, name, last, k.order[n]})
				}
				continue
			}
			for _, u := range k.unread {
				g.add(Edge{r.txn, u, RW, name, last, c.firstAppend(u, name)})
			}
		}
	}
	c.inTime(g)
	return g
}

func (c *checker) firstAppend(txn int, key string) int64 {
	for _, m := range c.txns[txn].Mops {
		if m.Append && m.Key == key {
			return m.Value
		}
	}
	return 0
}

// inTime adds the order of time and of the processes. Of the order of time only what
// does not follow from the rest of it is added: a transaction that was answered before
// another began is linked until somebody began later and was answered, too.
func (c *checker) inTime(g *graph) {
	type event struct {
		at, txn int
		begins  bool
	}
	var events []event
	for i := range c.txns {
		t := &c.txns[i]
		if t.Status == Aborted || t.Status == Unknown && !c.seen[i] {
			continue
		}
		events = append(events, event{t.Invoked, i, true})
		if t.Status == Committed {
			events = append(events, event{t.Answered, i, false})
		}
	}
	slices.SortFunc(events, func(a, b event) int { return a.at - b.at })
	var frontier []int
	before := map[int][]int{} // of each open transaction: those linked into it
	latest := map[int]int{}   // of a process
	for _, e := range events {
		t := &c.txns[e.txn]
		if e.begins {
			for _, f := range frontier {
				g.add(Edge{From: f, To: e.txn, Kind: RealTime})
			}
			before[e.txn] = slices.Clone(frontier)
			if p, ok := latest[t.Process]; ok {
				g.add(Edge{From: p, To: e.txn, Kind: Process})
			}
			if t.Status == Committed { // one of unknown outcome may take effect after the next
				latest[t.Process] = e.txn
			}
			continue
		}
		linked := before[e.txn]
		delete(before, e.txn)
		frontier = slices.DeleteFunc(frontier, func(f int) bool { return slices.Contains(linked, f) })
		frontier = append(frontier, e.txn)
	}
}

// allowed is a set of dependencies.
type allowed [RealTime + 1]bool

// cycles finds at least one cycle in every knot of the graph, of the worst kind there.
func (c *checker) cycles(model Model) {
	g := c.dependencies()
	type level struct {
		suffix string
		extra  []Dependency
	}
	levels := []level{{"", nil}}
	if model == StrictSerializable {
		levels = append(levels, level{"-process", []Dependency{Process}}, level{"-realtime", []Dependency{Process, RealTime}})
	}
	convicted := make([]bool, len(c.txns))
	for _, l := range levels {
		for _, kind := range []struct {
			name string
			with []Dependency
			find func(*graph, []int, allowed) []Edge
		}{
			{"G0", []Dependency{WW}, anyCycle},
			{"G1c", []Dependency{WW, WR}, anyCycle},
			{"G-single", []Dependency{WW, WR, RW}, singleCycle},
			{"G-nonadjacent", []Dependency{WW, WR, RW}, apartCycle},
			{"G2-item", []Dependency{WW, WR, RW}, rwCycle},
		} {
			var a allowed
			for _, d := range append(kind.with, l.extra...) {
				a[d] = true
			}
			for _, knot := range g.knots(a) {
				if slices.ContainsFunc(knot, func(t int) bool { return convicted[t] }) {
					continue // its worst is told already
				}
				cycle := kind.find(g, knot, a)
				if cycle == nil {
					continue
				}
				for _, t := range knot {
					convicted[t] = true
				}
				name := kind.name + l.suffix
				if c.counts[name]++; c.counts[name] <= maxAnomalies {
					c.found = append(c.found, Anomaly{Kind: name, Text: c.explain(cycle), Cycle: cycle})
				}
			}
		}
	}
	worst(c.found)
}

// knots are the strongly connected parts of more than one transaction (Tarjan, without
// recursion).
func (g *graph) knots(a allowed) [][]int {
	n := len(g.out)
	number, low := make([]int, n), make([]int, n)
	on := make([]bool, n)
	var stack []int
	var knots [][]int
	type frame struct{ node, next int }
	count := 0
	for root := range n {
		if number[root] != 0 {
			continue
		}
		work := []frame{{root, 0}}
		for len(work) > 0 {
			f := &work[len(work)-1]
			if f.next == 0 && number[f.node] == 0 {
				count++
				number[f.node], low[f.node] = count, count
				stack, on[f.node] = append(stack, f.node), true
			}
			if f.next < len(g.out[f.node]) {
				e := &g.out[f.node][f.next]
				f.next++
				switch {
				case !a[e.Kind]:
				case number[e.To] == 0:
					work = append(work, frame{e.To, 0})
				case on[e.To]:
					low[f.node] = min(low[f.node], number[e.To])
				}
				continue
			}
			v := f.node
			work = work[:len(work)-1]
			if len(work) > 0 {
				up := work[len(work)-1].node
				low[up] = min(low[up], low[v])
			}
			if low[v] != number[v] {
				continue
			}
			var knot []int
			for {
				w := stack[len(stack)-1]
				stack = stack[:len(stack)-1]
				on[w] = false
				knot = append(knot, w)
				if w == v {
					break
				}
			}
			if len(knot) > 1 {
				slices.Sort(knot)
				knots = append(knots, knot)
			}
		}
	}
	return knots
}

// A search looks for the shortest cycle through edges of a knot. It visits states: a
// transaction, and whether it was reached by rw where that matters.
type search struct {
	g     *graph
	knot  []int
	in    []bool // transactions of the knot
	a     allowed
	apart bool // no rw follows another, not at the ends of the way either

	round   int
	reached []int // round in which a state was reached, by state
	via     []Edge
	prev    []int
	visits  int
}

// maxVisits bounds one search, to about a second. Beyond it, a longer cycle than the
// shortest may be told, or one of a kind that is easier to find.
const maxVisits = 20_000_000

func newSearch(g *graph, knot []int, a allowed, apart bool) *search {
	n := len(g.out)
	s := &search{g: g, knot: knot, in: make([]bool, n), a: a, apart: apart, reached: make([]int, 2*n), via: make([]Edge, 2*n), prev: make([]int, 2*n)}
	for _, t := range knot {
		s.in[t] = true
	}
	return s
}

func (s *search) state(node int, rw bool) int {
	if rw && s.apart {
		return 2*node + 1
	}
	return 2 * node
}

// way is a shortest way of at most so many edges, or nil.
func (s *search) way(from, to, most int) []Edge {
	s.round++
	begin, goal := s.state(from, true), s.state(to, false)
	s.reached[begin] = s.round
	queue := []int{begin}
	for length := 1; length <= most && len(queue) > 0; length++ {
		var next []int
		for _, at := range queue {
			s.visits++
			for _, e := range s.g.out[at/2] {
				if !s.a[e.Kind] || !s.in[e.To] || at%2 == 1 && e.Kind == RW {
					continue
				}
				to := s.state(e.To, e.Kind == RW)
				if s.reached[to] == s.round {
					continue
				}
				s.reached[to], s.via[to], s.prev[to] = s.round, e, at
				if to == goal {
					return s.back(begin, goal)
				}
				next = append(next, to)
			}
		}
		queue = next
	}
	return nil
}

func (s *search) back(begin, at int) (way []Edge) {
	for ; at != begin; at = s.prev[at] {
		way = append(way, s.via[at])
	}
	slices.Reverse(way)
	return way
}

// shortest is the shortest cycle that begins with one of the edges. Short ways are looked
// for first, so that one long way round a large knot costs no search from everywhere.
func (s *search) shortest(begins func(Edge) bool) (best []Edge) {
	for most := 1; best == nil && most < 4*len(s.knot); most *= 4 {
		for _, t := range s.knot {
			for _, e := range s.g.out[t] {
				if !s.in[e.To] || !begins(e) {
					continue
				}
				limit := most
				if best != nil {
					limit = len(best) - 2
				}
				if way := s.way(e.To, e.From, limit); way != nil {
					best = append([]Edge{e}, way...)
				}
				if best == nil && s.visits > maxVisits { // any cycle, then
					if way := s.way(e.To, e.From, 2*len(s.knot)); way != nil {
						return append([]Edge{e}, way...)
					}
					return nil
				}
				if s.visits > maxVisits || len(best) == 2 {
					return best
				}
			}
		}
	}
	return best
}

func anyCycle(g *graph, knot []int, a allowed) []Edge {
	return newSearch(g, knot, a, false).shortest(func(e Edge) bool { return a[e.Kind] })
}

func singleCycle(g *graph, knot []int, a allowed) []Edge {
	a[RW] = false
	return newSearch(g, knot, a, false).shortest(isRW)
}

func apartCycle(g *graph, knot []int, a allowed) []Edge {
	return newSearch(g, knot, a, true).shortest(isRW)
}

func rwCycle(g *graph, knot []int, a allowed) []Edge {
	return newSearch(g, knot, a, false).shortest(isRW)
}

func isRW(e Edge) bool { return e.Kind == RW }

// explain tells a cycle in words.
func (c *checker) explain(cycle []Edge) string {
	var b strings.Builder
	for i, e := range cycle {
		if i > 0 {
			b.WriteString("; ")
		}
		from, to := c.name(e.From), c.name(e.To)
		switch e.Kind {
		case WW:
			fmt.Fprintf(&b, "%s appended %d to %s and %s appended %d next", from, e.Before, e.Key, to, e.After)
		case WR:
			fmt.Fprintf(&b, "%s appended %d to %s and %s read it", from, e.Before, e.Key, to)
		case RW:
			seen := fmt.Sprintf("up to %d", e.Before)
			if e.Before == 0 {
				seen = "empty"
			}
			fmt.Fprintf(&b, "%s read %s %s, without the %d that %s appended", from, e.Key, seen, e.After, to)
		case Process:
			fmt.Fprintf(&b, "%s came before %s in their process", from, to)
		case RealTime:
			fmt.Fprintf(&b, "%s had its answer before %s began", from, to)
		}
	}
	return b.String() + ": each must come before the next, and the last before the first"
}

// DOT is a cycle as a graph for Graphviz.
func DOT(cycle []Edge) string {
	var b strings.Builder
	b.WriteString("digraph cycle {\n")
	for _, e := range cycle {
		label := e.Kind.String()
		if e.Key != "" {
			label += " " + e.Key
		}
		fmt.Fprintf(&b, "  T%d -> T%d [label=%q];\n", e.From, e.To, label)
	}
	return b.String() + "}\n"
}
