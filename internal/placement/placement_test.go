package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func ids(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Fields(text)
}

// members reads "a b- c~ d!": b is down, c drains, d is gone; "d!-" both.
func members(text string) (list []Member) {
	for _, w := range strings.Fields(text) {
		id := strings.TrimRight(w, "-~!")
		list = append(list, Member{ID: id, Up: !strings.Contains(w, "-"), Draining: strings.Contains(w, "~"), Gone: strings.Contains(w, "!")})
	}
	return list
}

// shard reads "voters | learners | caught up | leader | want".
func shard(id uint32, text string) Shard {
	f := strings.Split(text, "|")
	for i := range f {
		f[i] = strings.TrimSpace(f[i])
	}
	return Shard{ID: id, Voters: ids(f[0]), Learners: ids(f[1]), CaughtUp: ids(f[2]), Leader: f[3], Want: ids(f[4])}
}

func TestNext(t *testing.T) {
	for _, c := range []struct {
		what, members, shard, want string
	}{
		{"nothing recorded", "a b c", "a b c | | a b c | a | ", "[placement.Place{0 [a b c]}]"},
		{"settled", "a b c", "a b c | | a b c | a | a b c", "[]"},
		{"one node", "a", "a | | a | a | a", "[]"},
		{"two: one voter, one who follows", "a b", "a | | a | a | a", "[placement.AddLearner{0 b}]"},
		{"two, settled", "a b", "a | b | a b | a | a", "[]"},
		{"three: all vote", "a b c", "a | b | a b | a | a", "[placement.Place{0 [a b c]}]"},
		{"the one that follows first", "a b c", "a | b | a b | a | a b c", "[placement.Promote{0 b}]"},
		{"who is behind waits, the next is taken in", "a b c", "a | b | a | a | a b c", "[placement.AddLearner{0 c}]"},
		{"both wait", "a b c", "a | b c | a | a | a b c", "[]"},
		{"one is down: it stays", "a b c-", "a b c | | a b | a | a b c", "[]"},
		{"one is gone: another takes its place", "a b c!- d", "a b c | d | a b d | a | a b c", "[placement.Place{0 [a b d]}]"},
		{"added first", "a b c!- d", "a b c | d | a b d | a | a b d", "[placement.Promote{0 d}]"},
		{"removed after", "a b c!- d", "a b c d | | a b d | a | a b d", "[placement.Remove{0 c}]"},
		{"gone, and nobody instead", "a b c!-", "a b c | | a b | a | a b c", "[placement.Place{0 [a b]}]"},
		{"two are left of three: both keep voting", "a b", "a b | | a b | a | a b", "[]"},
		{"no majority is given up", "a b c!- d-", "a b c d | | a b | a | a b d", "[placement.Remove{0 c}]"},
		{"nor this one", "a b- c! d-", "a b c d | | a c | c | a b d", "[placement.Transfer{0 a}]"},
		{"the leader goes last", "a! b c d", "a b c d | | a b c d | a | b c d", "[placement.Transfer{0 b}]"},
		{"a leader that drains", "a~ b c", "a b c | | a b c | a | a b c", "[placement.Transfer{0 b}]"},
		{"not to who is behind", "a~ b c", "a b c | | a c | a | a b c", "[placement.Transfer{0 c}]"},
		{"not to who is down", "a~ b- c-", "a b c | | a b c | a | a b c", "[]"},
		{"who drains gets nothing new", "a b~", "a | | a | a | a", "[placement.AddLearner{0 b}]"},
		{"a learner that was removed", "a b c", "a b c | x | a b c | a | a b c", "[placement.Remove{0 x}]"},
		{"no even number: the third is down", "a b c-", "a | b | a b | a | a", "[]"},
		{"nor while it drains", "a b c~", "a | b c | a b c | a | a", "[]"},
		{"wanted anew on the way: out before in", "a b c d e", "a b c d | e | a b c d e | a | a b e", "[placement.Remove{0 c}]"},
		{"the registry is followed, whoever is waited for", "a b c- d", "a b | | a b | a | a b c", "[placement.AddLearner{0 d}]"},
		{"no leader: wait", "a b c", "a b | c | a b c | | a b c", "[]"},
		{"the last one stays, gone or not", "a!", "a | | a | a | a", "[]"},
	} {
		v := View{Members: members(c.members), Shards: []Shard{shard(0, c.shard)}, Replicas: 3}
		got := []string{}
		for _, s := range Next(v) {
			got = append(got, fmt.Sprintf("%T%v", s, s))
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%s: %v, not %s", c.what, got, c.want)
		}
		if again := Next(v); fmt.Sprint(again) != fmt.Sprint(Next(v)) {
			t.Errorf("%s: not the same twice", c.what)
		}
	}
}

// world executes steps.
type world struct {
	t     *testing.T
	v     View
	moves int // voters added
}

func (w *world) member(id string) *Member {
	for i := range w.v.Members {
		if w.v.Members[i].ID == id {
			return &w.v.Members[i]
		}
	}
	return nil
}

func (w *world) alive(s *Shard) bool {
	up := 0
	for _, id := range s.Voters {
		if m := w.member(id); m != nil && m.Up {
			up++
		}
	}
	return 2*up > len(s.Voters)
}

func (w *world) do(step Step) {
	var at uint32
	switch s := step.(type) {
	case Place:
		at = s.Shard
	case AddLearner:
		at = s.Shard
	case Promote:
		at = s.Shard
	case Remove:
		at = s.Shard
	case Transfer:
		at = s.Shard
	}
	s := &w.v.Shards[at]
	before := w.alive(s)
	put := func(list *[]string, id string) {
		*list = append(*list, id)
		slices.Sort(*list)
	}
	drop := func(list *[]string, id string) { *list = without(*list, []string{id}) }
	switch step := step.(type) {
	case Place:
		s.Want = step.Voters
	case AddLearner:
		put(&s.Learners, step.Member)
	case Promote:
		if !slices.Contains(s.CaughtUp, step.Member) {
			w.t.Fatalf("%v: not caught up", step)
		}
		drop(&s.Learners, step.Member)
		put(&s.Voters, step.Member)
		w.moves++
	case Remove:
		if s.Leader == step.Member {
			w.t.Fatalf("%v: it leads", step)
		}
		drop(&s.Learners, step.Member)
		drop(&s.Voters, step.Member)
		drop(&s.CaughtUp, step.Member)
	case Transfer:
		if !slices.Contains(s.Voters, step.To) || !w.member(step.To).Up || !slices.Contains(s.CaughtUp, step.To) {
			w.t.Fatalf("%v: it cannot lead", step)
		}
		s.Leader = step.To
	}
	if before && !w.alive(s) {
		w.t.Fatalf("%T%v: the shard has lost its majority: %+v", step, step, *s)
	}
}

// settle takes rounds until nothing is left to do.
func (w *world) settle(r *rand.Rand) {
	w.t.Helper()
	for range 200 {
		for i := range w.v.Shards {
			s := &w.v.Shards[i]
			if m := w.member(s.Leader); m == nil || !m.Up || !slices.Contains(s.Voters, s.Leader) {
				s.Leader = ""
				var up []string
				for _, id := range s.Voters {
					if m := w.member(id); m != nil && m.Up {
						up = append(up, id)
					}
				}
				if 2*len(up) > len(s.Voters) {
					s.Leader = up[r.IntN(len(up))]
				}
			}
			s.CaughtUp = nil
			for _, id := range append(slices.Clone(s.Voters), s.Learners...) {
				if m := w.member(id); m != nil && m.Up && r.IntN(3) > 0 {
					s.CaughtUp = append(s.CaughtUp, id)
				}
			}
			slices.Sort(s.CaughtUp)
		}
		steps := Next(w.v)
		r.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
		for _, s := range steps {
			if r.IntN(10) > 0 { // some fail
				w.do(s)
			}
		}
		for i := range w.v.Shards { // nothing is left, whoever has caught up
			w.v.Shards[i].CaughtUp = append(slices.Clone(w.v.Shards[i].Voters), w.v.Shards[i].Learners...)
		}
		if len(Next(w.v)) == 0 {
			return
		}
	}
	w.t.Fatalf("never settled: %v", Next(w.v))
}

func (w *world) balanced() {
	w.t.Helper()
	replicas, leads := map[string]int{}, map[string]int{}
	for _, s := range w.v.Shards {
		if len(s.Voters) != 3 {
			w.t.Fatalf("%+v", s)
		}
		for _, id := range s.Voters {
			replicas[id]++
		}
		leads[s.Leader]++
	}
	low, high, most := 1<<30, 0, 0
	for _, m := range w.v.Members {
		if m.Gone && replicas[m.ID] > 0 || (m.Draining || !m.Up) && leads[m.ID] > 0 {
			w.t.Fatalf("%+v has %d replicas and leads %d", m, replicas[m.ID], leads[m.ID])
		}
		if m.Up && !m.Draining && !m.Gone {
			low, high = min(low, replicas[m.ID]), max(high, replicas[m.ID])
			most = max(most, leads[m.ID])
		}
	}
	if high-low > 1 {
		w.t.Errorf("members have between %d and %d replicas", low, high)
	}
	if most > 3*high/3 || most > 2*len(w.v.Shards)/len(w.v.Members)+2 {
		w.t.Errorf("a member leads %d", most)
	}
}

// TestTwenty: twenty members with 64 shards stay balanced through joins, leaves, drains
// and deaths, and little moves.
func TestTwenty(t *testing.T) {
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := &world{t: t, v: View{Replicas: 3}}
		for i := range 64 {
			w.v.Shards = append(w.v.Shards, Shard{ID: uint32(i), Voters: []string{"m00"}, Leader: "m00"})
		}
		for i := range 20 { // it grows from one
			w.v.Members = append(w.v.Members, Member{ID: fmt.Sprintf("m%02d", i), Up: true})
			w.settle(r)
		}
		w.balanced()
		next := 20
		for range 12 {
			w.moves = 0
			m := &w.v.Members[r.IntN(len(w.v.Members))]
			switch r.IntN(5) {
			case 0: // one more
				w.v.Members = append(w.v.Members, Member{ID: fmt.Sprintf("m%02d", next), Up: true})
				next++
				w.settle(r)
			case 1: // one is removed
				m.Gone = true
				w.settle(r)
				w.v.Members = slices.DeleteFunc(w.v.Members, func(m Member) bool { return m.Gone })
			case 2: // one dies, and is removed
				m.Up = false
				w.settle(r)
				if w.moves > 0 {
					t.Fatal("a member that is down was replaced")
				}
				m.Gone = true
				w.settle(r)
				w.v.Members = slices.DeleteFunc(w.v.Members, func(m Member) bool { return m.Gone })
			case 3: // one is drained and comes back
				m.Draining = true
				w.settle(r)
				w.balanced()
				m.Draining = false
				w.settle(r)
			case 4: // one restarts
				m.Up = false
				w.settle(r)
				m.Up = true
				w.settle(r)
			}
			w.settle(r)
			w.balanced()
			if share := 64*3/len(w.v.Members) + 12; w.moves > share {
				t.Errorf("seed %d: %d replicas moved; one member's share is about %d", seed, w.moves, share)
			}
		}
	}
}
