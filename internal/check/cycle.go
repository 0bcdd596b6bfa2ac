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

// path is a shortest way within a knot; apart: no rw follows another, nor the one that
// led to the beginning or leads on from the end.
func (g *graph) path(from, to int, in map[int]bool, a allowed, apart bool) []Edge {
	type state struct {
		node int
		rw   bool // arrived by rw
	}
	begin := state{from, apart}
	via := map[state]Edge{}
	prev := map[state]state{}
	queue := []state{begin}
	reached := map[state]bool{begin: true}
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		if s.node == to && s != begin && !(apart && s.rw) {
			var way []Edge
			for at := s; at != begin; at = prev[at] {
				way = append(way, via[at])
			}
			slices.Reverse(way)
			return way
		}
		for _, e := range g.out[s.node] {
			if !a[e.Kind] || !in[e.To] || apart && s.rw && e.Kind == RW {
				continue
			}
			next := state{e.To, apart && e.Kind == RW}
			if !reached[next] {
				reached[next] = true
				via[next], prev[next] = e, s
				queue = append(queue, next)
			}
		}
	}
	return nil
}

// maxSearches bounds the edges of a knot that a cycle is searched through.
const maxSearches = 400

func setOf(knot []int) map[int]bool {
	in := make(map[int]bool, len(knot))
	for _, t := range knot {
		in[t] = true
	}
	return in
}

// shortest is the shortest cycle that begins with one of the edges, which rest closes.
func (g *graph) shortest(knot []int, begins func(Edge) bool, rest func(Edge, map[int]bool) []Edge) (best []Edge) {
	in := setOf(knot)
	tries := 0
	for _, t := range knot {
		for _, e := range g.out[t] {
			if !in[e.To] || !begins(e) {
				continue
			}
			if tries++; tries > maxSearches && best != nil {
				return best
			}
			if way := rest(e, in); way != nil && (best == nil || len(way)+1 < len(best)) {
				best = append([]Edge{e}, way...)
			}
		}
	}
	return best
}

func anyCycle(g *graph, knot []int, a allowed) []Edge {
	return g.shortest(knot, func(e Edge) bool { return a[e.Kind] }, func(e Edge, in map[int]bool) []Edge { return g.path(e.To, e.From, in, a, false) })
}

func singleCycle(g *graph, knot []int, a allowed) []Edge {
	without := a
	without[RW] = false
	return g.shortest(knot, func(e Edge) bool { return e.Kind == RW }, func(e Edge, in map[int]bool) []Edge { return g.path(e.To, e.From, in, without, false) })
}

func apartCycle(g *graph, knot []int, a allowed) []Edge {
	return g.shortest(knot, func(e Edge) bool { return e.Kind == RW }, func(e Edge, in map[int]bool) []Edge { return g.path(e.To, e.From, in, a, true) })
}

func rwCycle(g *graph, knot []int, a allowed) []Edge {
	return g.shortest(knot, func(e Edge) bool { return e.Kind == RW }, func(e Edge, in map[int]bool) []Edge { return g.path(e.To, e.From, in, a, false) })
}

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
