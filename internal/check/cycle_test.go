package check

import "testing"

// ring is n transactions, each with an edge to the next, of the kinds in turns.
func ring(n int, kinds ...Dependency) (g *graph, knot []int) {
	g = &graph{out: make([][]Edge, n)}
	for i := range n {
		g.add(Edge{From: i, To: (i + 1) % n, Kind: kinds[i%len(kinds)]})
		knot = append(knot, i)
	}
	return g, knot
}

func cycleOf(t *testing.T, cycle []Edge, length int) {
	t.Helper()
	if len(cycle) != length {
		t.Fatalf("a cycle of %d edges, want %d", len(cycle), length)
	}
	for i, e := range cycle {
		if e.To != cycle[(i+1)%length].From {
			t.Fatalf("%v does not go on with %v", e, cycle[(i+1)%length])
		}
	}
}

// TestShortestOfLargeKnot: the shortest cycle is told, wherever in a knot it is, and a knot
// is never acquitted because it is large.
func TestShortestOfLargeKnot(t *testing.T) {
	all := allowed{WW: true, WR: true, RW: true}
	t.Run("at the end", func(t *testing.T) {
		g, knot := ring(3_000, WW, WR)
		g.add(Edge{From: 2_998, To: 2_997, Kind: WR})
		cycleOf(t, anyCycle(g, knot, all), 2)
	})
	t.Run("as long as the knot", func(t *testing.T) {
		g, knot := ring(50_000, WW)
		cycleOf(t, anyCycle(g, knot, all), len(knot))
		g, knot = ring(50_000, WW, RW)
		cycleOf(t, rwCycle(g, knot, all), len(knot))
		cycleOf(t, apartCycle(g, knot, all), len(knot))
	})
	t.Run("one rw", func(t *testing.T) {
		g, knot := ring(3_000, WW)
		g.add(Edge{From: 2_000, To: 1_500, Kind: RW})
		g.add(Edge{From: 1_000, To: 900, Kind: RW})
		cycleOf(t, singleCycle(g, knot, all), 101)
	})
	t.Run("closed by two rw", func(t *testing.T) {
		const n = 20_000
		g, knot := ring(n, WW, RW)
		g.out[n-2], g.out[n-1] = nil, nil
		g.add(Edge{From: n - 2, To: n - 1, Kind: RW})
		g.add(Edge{From: n - 1, To: 0, Kind: RW})
		if c := singleCycle(g, knot, all); c != nil {
			t.Errorf("one rw in a cycle of %d", len(c))
		}
		if c := apartCycle(g, knot, all); c != nil {
			t.Errorf("rw apart in a cycle of %d", len(c))
		}
		cycleOf(t, rwCycle(g, knot, all), n)
	})
}
