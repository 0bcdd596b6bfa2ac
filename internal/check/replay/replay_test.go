package replay

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/assent-tx/assent/internal/check"
)

// told reads a line for each transaction: "ID status invoked answered a:x=1 r:y=[2 3]".
func told(t *testing.T, text string) (txns []check.Txn) {
	t.Helper()
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		var x check.Txn
		var mops string
		if _, err := fmt.Sscanf(strings.TrimSpace(line), "%s %s %d %d %q", &x.ID, &x.Status, &x.Invoked, &x.Answered, &mops); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		for _, word := range strings.Fields(mops) { // a:key=value or r:key=[1,2]
			kind, rest, _ := strings.Cut(word, ":")
			key, value, _ := strings.Cut(rest, "=")
			x.Mops = append(x.Mops, check.Mop{Append: kind == "a", Key: key})
			m := &x.Mops[len(x.Mops)-1]
			for v := range strings.SplitSeq(strings.Trim(value, "[]"), ",") {
				var n int64
				if v == "" {
					continue
				}
				if _, err := fmt.Sscan(v, &n); err != nil {
					t.Fatalf("%q: %v", word, err)
				}
				if m.Append {
					m.Value = n
				} else {
					m.List = append(m.List, n)
				}
			}
		}
		txns = append(txns, x)
	}
	return txns
}

func TestRun(t *testing.T) {
	final := map[string][]int64{"x": {1, 2}, "y": {3}}
	good := `A ok 0 3 "a:x=1 r:x=[1] r:y=[]"
		B ok 1 5 "r:x=[1] a:x=2"
		C ok 4 6 "a:y=3 r:x=[1,2]"
		D fail 2 7 "a:x=9"`
	for name, c := range map[string]struct {
		told  string
		order []Decision
		final map[string][]int64
		want  string // part of the only problem; empty: none
	}{
		"as decided":                      {good, []Decision{{"A", 1}, {"B", 2}, {"C", 3}}, final, ""},
		"given in another order":          {good, []Decision{{"C", 3}, {"A", 1}, {"B", 2}}, final, ""},
		"all at once: the lists tell":     {good, []Decision{{"C", 1}, {"B", 1}, {"A", 1}}, final, ""},
		"the order is another":            {good, []Decision{{"B", 1}, {"A", 2}, {"C", 3}}, final, "B, replayed when it was decided: it read x as [1], where the replay has []"},
		"told, but not decided":           {good, []Decision{{"A", 1}, {"B", 2}}, map[string][]int64{"x": {1, 2}}, "C was told that it committed"},
		"told that it aborted":            {good, []Decision{{"A", 1}, {"B", 2}, {"C", 3}, {"D", 4}}, map[string][]int64{"x": {1, 2, 9}, "y": {3}}, "D was told that it aborted"},
		"decided twice":                   {good, []Decision{{"A", 1}, {"A", 2}, {"B", 2}, {"C", 3}}, final, "A is committed twice"},
		"of nobody":                       {good, []Decision{{"A", 1}, {"B", 2}, {"C", 3}, {"E", 9}}, final, "nobody asked"},
		"an effect is lost":               {good, []Decision{{"A", 1}, {"B", 2}, {"C", 3}}, map[string][]int64{"x": {1, 2}}, "it appends 3 to y as number 1"},
		"an effect is doubled":            {good, []Decision{{"A", 1}, {"B", 2}, {"C", 3}}, map[string][]int64{"x": {1, 2}, "y": {3, 3}}, "in the end y holds [3 3]"},
		"an effect of an aborted one":     {good, []Decision{{"A", 1}, {"B", 2}, {"C", 3}}, map[string][]int64{"x": {1, 2, 9}, "y": {3}}, "in the end x holds [1 2 9]"},
		"a participant has another order": {good, []Decision{{"A", 1}, {"B", 2}, {"C", 3}}, map[string][]int64{"x": {2, 1}, "y": {3}}, "it appends 1 to x as number 1"},
		"unknown, and committed":          {`A info 0 99 "a:x=1 r:y"` + "\n" + `B ok 1 2 "r:x=[1]"`, []Decision{{"A", 1}, {"B", 2}}, map[string][]int64{"x": {1}}, ""},
		"unknown, and not committed":      {`A info 0 99 "a:x=1"` + "\n" + `B ok 1 2 "r:x=[]"`, []Decision{{"B", 2}}, nil, ""},
		"decided against time":            {`A ok 0 1 "r:x=[]"` + "\n" + `B ok 2 3 "r:x=[]"`, []Decision{{"B", 1}, {"A", 2}}, nil, "A had its answer before"},
		"a stale read": {
			`A ok 0 1 "a:x=1"` + "\n" + `B ok 2 3 "r:x=[]"`, []Decision{{"A", 1}, {"B", 2}}, map[string][]int64{"x": {1}}, "it read x as [], where the replay has [1]",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := Run(c.order, told(t, c.told), c.final)
			if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// TestWriteSkew: of one rank, and each must come before the other.
func TestWriteSkew(t *testing.T) {
	skew := told(t, `A ok 0 3 "r:x=[] a:y=1"
		B ok 1 4 "r:y=[] a:x=2"`)
	got := Run([]Decision{{"A", 1}, {"B", 1}}, skew, map[string][]int64{"x": {2}, "y": {1}})
	if len(got) != 2 || !strings.Contains(got[0], "before it, and after it") {
		t.Error(got)
	}
}

// TestSerial: runs that are serial come out again, however coarse the ranks are; with
// two neighbours that conflict swapped they do not.
func TestSerial(t *testing.T) {
	swapped := 0
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		lists := map[string][]int64{}
		var txns []check.Txn
		var order []Decision
		for i := range 60 {
			x := check.Txn{ID: fmt.Sprint("T", i), Status: check.Committed, Invoked: max(0, 2*i-rng.IntN(9)), Answered: 2*i + 1 + rng.IntN(9)}
			if rng.IntN(8) == 0 {
				x.Status = check.Unknown
			}
			for range 1 + rng.IntN(4) {
				m := check.Mop{Append: rng.IntN(2) == 0, Key: string(rune('a' + rng.IntN(3)))}
				if m.Append {
					m.Value = int64(1000*i + len(x.Mops) + 1)
					lists[m.Key] = append(lists[m.Key], m.Value)
				} else if x.Status == check.Committed {
					m.List = slices.Clone(lists[m.Key])
				}
				x.Mops = append(x.Mops, m)
			}
			txns, order = append(txns, x), append(order, Decision{x.ID, uint64(i / (1 + int(seed%7)))})
		}
		rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		if wrong := Run(order, txns, lists); wrong != nil {
			t.Fatal(seed, wrong)
		}
		for i := range order {
			order[i].Rank = uint64(slices.IndexFunc(txns, func(x check.Txn) bool { return x.ID == order[i].ID }))
		}
		slices.SortFunc(order, func(a, b Decision) int { return int(a.Rank) - int(b.Rank) })
		i := 1 + rng.IntN(len(order)-1)
		order[i].Rank, order[i-1].Rank = order[i-1].Rank, order[i].Rank
		if conflict(&txns[i-1], &txns[i]) {
			swapped++
			if wrong := Run(order, txns, lists); wrong == nil {
				t.Errorf("seed %d: %s and %s are swapped, and nobody minds", seed, txns[i-1].ID, txns[i].ID)
			}
		}
	}
	if swapped < 50 {
		t.Errorf("only %d swaps", swapped)
	}
}

// conflict: their order can be told from what was read and what is left.
func conflict(a, b *check.Txn) bool {
	for _, m := range a.Mops {
		for _, n := range b.Mops {
			visible := (m.Append || a.Status == check.Committed) && (n.Append || b.Status == check.Committed)
			if m.Key == n.Key && (m.Append || n.Append) && visible {
				return true
			}
		}
	}
	return false
}
