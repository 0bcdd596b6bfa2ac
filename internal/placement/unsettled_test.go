package placement

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

// observe lets shards elect leaders, and replicas catch up or fall behind.
func (w *world) observe(r *rand.Rand, all bool) {
	for i := range w.v.Shards {
		s := &w.v.Shards[i]
		if m := w.member(s.Leader); m == nil || !m.Up || !slices.Contains(s.Voters, s.Leader) || !w.alive(s) {
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
			if m := w.member(id); m != nil && m.Up && (all || id == s.Leader || r.IntN(3) > 0) {
				s.CaughtUp = append(s.CaughtUp, id)
			}
		}
		slices.Sort(s.CaughtUp)
	}
}

func shardOf(s Step) uint32 {
	switch s := s.(type) {
	case Place:
		return s.Shard
	case AddLearner:
		return s.Shard
	case Promote:
		return s.Shard
	case Remove:
		return s.Shard
	case Transfer:
		return s.Shard
	}
	panic("a step of another type")
}

func cloneView(v View) View {
	v.Members = slices.Clone(v.Members)
	v.Shards = slices.Clone(v.Shards)
	for i := range v.Shards {
		s := &v.Shards[i]
		s.Voters, s.Learners, s.CaughtUp, s.Want = slices.Clone(s.Voters), slices.Clone(s.Learners), slices.Clone(s.CaughtUp), slices.Clone(s.Want)
	}
	return v
}

// round takes one: some steps fail, in any order.
func (w *world) round(r *rand.Rand, calm bool) (steps int) {
	w.t.Helper()
	w.observe(r, calm)
	before := cloneView(w.v)
	list := Next(w.v)
	if !reflect.DeepEqual(before, w.v) {
		w.t.Fatal("the view was changed")
	}
	if again := Next(cloneView(w.v)); !reflect.DeepEqual(list, again) {
		w.t.Fatalf("%v, and then %v", list, again)
	}
	seen := map[uint32]bool{}
	for _, s := range list {
		if seen[shardOf(s)] {
			w.t.Fatalf("two steps for shard %d: %v", shardOf(s), list)
		}
		seen[shardOf(s)] = true
	}
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	for _, s := range list {
		if !calm && r.IntN(10) == 0 {
			continue
		}
		if p, ok := s.(Promote); ok { // it must not take the shard's voters over what is wanted by more than one
			if sh := w.v.Shards[p.Shard]; !slices.Contains(sh.Want, p.Member) || len(sh.Voters) > w.v.Replicas {
				w.t.Fatalf("%v: %+v", s, sh)
			}
		}
		w.do(s)
		if sh := w.v.Shards[shardOf(s)]; len(sh.Want) > 1 && len(sh.Want)%2 == 0 && len(sh.Want) > len(before.Shards[shardOf(s)].wants()) {
			w.t.Fatalf("%v: grown to an even number", s)
		}
	}
	return len(list)
}

func (w *world) spreadOf(r *rand.Rand) (replicas, leaders int) {
	count, leads := map[string]int{}, map[string]int{}
	for _, s := range w.v.Shards {
		for _, id := range s.Voters {
			count[id]++
		}
		leads[s.Leader]++
	}
	low, high, few, most := 1<<30, 0, 1<<30, 0
	for _, m := range w.v.Members {
		if m.Up && !m.Draining && !m.Gone {
			low, high = min(low, count[m.ID]), max(high, count[m.ID])
			few, most = min(few, leads[m.ID]), max(most, leads[m.ID])
		}
	}
	return high - low, most - few
}

// TestUnsettled: joins, deaths, returns, drains and removals come in the middle of each
// other's work. What has a majority keeps it through every step, and once no more happens
// the cluster settles in few rounds.
func TestUnsettled(t *testing.T) {
	worst, widest := 0, 0
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 2))
		replicas := 3 + 2*int(seed%2)
		w := &world{t: t, v: View{Replicas: replicas, Registry: 0}}
		for i := range 64 {
			w.v.Shards = append(w.v.Shards, Shard{ID: uint32(i), Voters: []string{"m00"}, Leader: "m00"})
		}
		next := 0
		join := func() {
			w.v.Members = append(w.v.Members, Member{ID: fmt.Sprintf("m%02d", next), Up: true})
			next++
		}
		for range 20 {
			join()
			w.round(r, false)
		}
		for range 60 {
			down := 0
			for _, m := range w.v.Members {
				if !m.Up {
					down++
				}
			}
			m := &w.v.Members[r.IntN(len(w.v.Members))]
			switch r.IntN(8) {
			case 0:
				if len(w.v.Members) < 24 {
					join()
				}
			case 1:
				if down == 0 {
					m.Up = false
				}
			case 2, 3:
				for i := range w.v.Members {
					w.v.Members[i].Up = true
				}
			case 4:
				m.Draining = !m.Draining
			case 5:
				if staying := len(slices.DeleteFunc(slices.Clone(w.v.Members), func(m Member) bool { return m.Gone })); staying > 12 {
					m.Gone = true
				}
			}
			for range r.IntN(6) {
				w.round(r, false)
			}
		}
		// The last act: one is down and stays so, perhaps.
		for i := range w.v.Members {
			w.v.Members[i].Up = seed%3 > 0 || i != 3
			w.v.Members[i].Draining = seed%4 == 0 && i == 5
		}
		rounds := 0
		for w.round(r, true) > 0 {
			if rounds++; rounds > 100 {
				t.Fatalf("seed %d: never settles: %v", seed, Next(w.v))
			}
		}
		worst = max(worst, rounds)
		for _, s := range w.v.Shards {
			if !slices.Equal(s.Voters, s.Want) && seed%3 > 0 {
				t.Fatalf("seed %d: %+v", seed, s)
			}
			for _, m := range w.v.Members {
				if follows := slices.Contains(s.Learners, m.ID) || slices.Contains(s.Voters, m.ID); s.ID == 0 && m.Up && !m.Gone && !follows {
					t.Errorf("seed %d: %s does not follow the registry: %+v", seed, m.ID, s)
				}
			}
		}
		rep, lead := w.spreadOf(r)
		widest = max(widest, lead)
		if seed%3 > 0 && (rep > 1 || lead > 1) || rep > 1 {
			t.Errorf("seed %d: replicas differ by %d, leaders by %d", seed, rep, lead)
		}
	}
	t.Logf("at most %d rounds to settle; leaders differ by at most %d", worst, widest)
}
