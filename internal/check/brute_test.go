package check

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestEveryOrder compares the verdict on small histories with a search of every order in
// which their transactions can have taken effect.
func TestEveryOrder(t *testing.T) {
	const histories = 40_000
	good := 0
	for seed := range uint64(histories) {
		rng := rand.New(rand.NewPCG(seed, 9))
		var events []Event
		if seed%4 == 0 {
			levels := []string{"dirty", "committed", "snapshot", "losing", "locking", "stale"}
			y := &toy{rng: rng, level: levels[rng.IntN(len(levels))]}
			events = y.run(2 + rng.IntN(5))
		} else {
			events = nearlySerial(rng)
		}
		txns, err := Pair(events)
		if err != nil {
			t.Fatal(err)
		}
		possible := false
		for _, model := range []Model{Serializable, StrictSerializable} {
			found := Check(txns, model)
			possible = (&orders{txns: txns, model: model, placed: make([]bool, len(txns)), lists: map[string][]int64{}}).rest()
			if possible != (len(found) == 0) {
				t.Fatalf("seed %d, model %d: an order that explains it exists: %t; found %v\n%+v", seed, model, possible, kinds(found), events)
			}
		}
		if possible {
			good++
		}
	}
	if good < histories/10 || good > histories*9/10 {
		t.Errorf("%d of %d are strictly serializable: that shows only one side", good, histories)
	}
}

// orders places transactions one after the other.
type orders struct {
	txns   []Txn
	model  Model
	placed []bool
	lists  map[string][]int64
}

// rest reports whether all that are not placed can follow in some order. Aborted ones
// do not, and those of unknown outcome need not.
func (s *orders) rest() bool {
	done := true
	for i := range s.txns {
		t := &s.txns[i]
		if s.placed[i] || t.Status == Aborted {
			continue
		}
		done = done && t.Status == Unknown
		if !s.mayBeNext(t) {
			continue
		}
		before := map[string][]int64{}
		if s.run(t, before) {
			s.placed[i] = true
			if s.rest() {
				return true
			}
			s.placed[i] = false
		}
		for key, list := range before { // order does not matter: each key by itself
			s.lists[key] = list
		}
	}
	return done
}

// mayBeNext: nobody who was answered before it began is still to come, if time matters.
func (s *orders) mayBeNext(t *Txn) bool {
	if s.model == Serializable {
		return true
	}
	for i := range s.txns {
		if u := &s.txns[i]; !s.placed[i] && u.Status == Committed && u.Answered < t.Invoked {
			return false
		}
	}
	return true
}

// run reports whether the transaction reads here what it was told. Before is how to undo it.
func (s *orders) run(t *Txn, before map[string][]int64) bool {
	for _, m := range t.Mops {
		switch {
		case m.Append:
			if _, saved := before[m.Key]; !saved {
				before[m.Key] = s.lists[m.Key]
			}
			s.lists[m.Key] = append(slices.Clone(s.lists[m.Key]), m.Value)
		case t.Status == Committed && !slices.Equal(m.List, s.lists[m.Key]):
			return false
		}
	}
	return true
}

// nearlySerial is a history of a few transactions that ran one after the other, of which
// some reads are too short or too long, and whose order in time is not quite that.
func nearlySerial(rng *rand.Rand) []Event {
	n, keys, value := 2+rng.IntN(5), 1+rng.IntN(3), int64(0)
	txns, effective := make([]Txn, n), make([]bool, n)
	final := map[string][]int64{}
	for i := range txns { // in the order of their effects
		t := &txns[i]
		t.Status = []Status{Committed, Committed, Committed, Committed, Committed, Committed, Aborted, Unknown}[rng.IntN(8)]
		effective[i] = t.Status == Committed || t.Status == Unknown && rng.IntN(2) == 0
		for range 1 + rng.IntN(4) {
			m := Mop{Key: string(rune('x' + rng.IntN(keys))), Append: rng.IntN(2) == 0}
			if m.Append {
				value++
				m.Value = value
				if effective[i] {
					final[m.Key] = append(final[m.Key], value)
				}
			}
			t.Mops = append(t.Mops, m)
		}
	}
	lists, wrong := map[string][]int64{}, rng.IntN(3) > 0
	for i := range txns {
		for j := range txns[i].Mops {
			switch m := &txns[i].Mops[j]; {
			case m.Append && effective[i]:
				lists[m.Key] = append(lists[m.Key], m.Value)
			case m.Append:
			case wrong && rng.IntN(6) == 0:
				m.List = slices.Clone(final[m.Key][:rng.IntN(len(final[m.Key])+1)])
			default:
				m.List = slices.Clone(lists[m.Key])
			}
		}
	}
	if a, b := rng.Int64N(value+1), rng.Int64N(value+1); wrong && rng.IntN(3) == 0 {
		for i := range txns {
			for _, m := range txns[i].Mops {
				swap(m.List, a, b)
			}
		}
	}
	return inSomeTime(rng, txns)
}

func swap(list []int64, a, b int64) {
	for i, v := range list {
		switch v {
		case a:
			list[i] = b
		case b:
			list[i] = a
		}
	}
}

// inSomeTime lets transactions begin and end about in their order. Processes go on, also
// after an outcome that they do not know.
func inSomeTime(rng *rand.Rand, txns []Txn) []Event {
	type moment struct {
		at     float64
		txn    int
		begins bool
	}
	var moments []moment
	spread := 3 * rng.Float64()
	for i := range txns {
		begins := float64(i) - spread*rng.Float64()
		if rng.IntN(8) == 0 { // after its effect
			begins += 3 * rng.Float64()
		}
		ends := max(begins, float64(i)) + spread*rng.Float64() + 1e-9
		moments = append(moments, moment{begins, i, true}, moment{ends, i, false})
	}
	slices.SortFunc(moments, func(a, b moment) int { return cmp.Compare(a.at, b.at) })
	var events []Event
	var idle []int
	process := make([]int, len(txns))
	for _, at := range moments {
		t := &txns[at.txn]
		switch {
		case at.begins && len(idle) > 0 && rng.IntN(2) == 0:
			process[at.txn], idle = idle[0], idle[1:]
		case at.begins:
			process[at.txn] = len(txns) + at.txn
		}
		if at.begins {
			events = append(events, Event{Process: process[at.txn], Status: Invoked, Mops: bare(t.Mops)})
			continue
		}
		idle = append(idle, process[at.txn])
		e := Event{Process: process[at.txn], Status: t.Status}
		if t.Status == Committed {
			e.Mops = t.Mops
		}
		events = append(events, e)
	}
	return events
}

// String helps to read a failure.
func (m Mop) String() string {
	if m.Append {
		return fmt.Sprintf("a:%s=%d", m.Key, m.Value)
	}
	return fmt.Sprintf("r:%s=%v", m.Key, m.List)
}
