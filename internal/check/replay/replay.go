// Package replay does what was committed once more, in the order in which it was
// decided: what the transactions read, and what they left, must come out again.
//
//	the coordinator's record  ->  order  \
//	what clients were told    ->  reads   >  replayed from nothing, one after the other
//	what participants hold    ->  final  /
//
// It is complete where package check is not: it needs no cycle to find that an order is
// wrong, and looks at what participants hold when all is over. It asks for more, too:
// the coordinator's record.
//
// A coordinator keeps a transaction's locks until its decision is durable, so of two that
// conflict the one decided first comes first, whichever shards they are of. Decisions of
// equal rank have no order of their own; of those, the lists tell who came first, as far
// as it matters.
package replay

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/assent-tx/assent/internal/check"
)

// Decision is that a transaction commits.
type Decision struct {
	ID   string
	Rank uint64 // decisions of lower rank came before; of equal rank: nobody knows
}

// maxProblems of a run are told.
const maxProblems = 20

// Run replays what was committed and returns what does not come out again, at most 20
// problems; nothing if all is well. told is what clients know, by ids; a transaction that
// they do not know the outcome of is replayed if it was committed, but nobody knows what
// it read. final is what the participants hold in the end, by keys.
func Run(decisions []Decision, told []check.Txn, final map[string][]int64) []string {
	r := &run{final: final, lists: map[string][]int64{}, known: make(map[string]*check.Txn, len(told)), replayed: map[string]bool{}}
	for i := range told {
		r.known[told[i].ID] = &told[i]
	}
	order := slices.Clone(decisions)
	slices.SortStableFunc(order, func(a, b Decision) int { return cmp.Compare(a.Rank, b.Rank) })
	for len(order) > 0 && r.wrong == nil {
		n := 1
		for n < len(order) && order[n].Rank == order[0].Rank {
			n++
		}
		r.together(order[:n])
		order = order[n:]
	}
	if r.wrong != nil {
		return r.wrong // what follows from a wrong state says nothing
	}
	for i := range told {
		if t := &told[i]; t.Status == check.Committed && !r.replayed[t.ID] {
			r.problem("%s was told that it committed, and no decision says so", t.ID)
		}
	}
	r.ends()
	return r.wrong
}

type run struct {
	final    map[string][]int64
	lists    map[string][]int64
	known    map[string]*check.Txn
	replayed map[string]bool
	begun    int // latest beginning of those replayed so far
	wrong    []string
}

func (r *run) problem(format string, args ...any) {
	if len(r.wrong) < maxProblems {
		r.wrong = append(r.wrong, fmt.Sprintf(format, args...))
	}
}

// work is a transaction that waits for its turn among those of its rank.
type work struct {
	*check.Txn
	needs   map[string]int // length that a list must have when its turn comes, where that is known
	appends map[string]bool
}

// together replays decisions of one rank, in an order in which each finds what it needs.
func (r *run) together(decisions []Decision) {
	var waiting []*work
	for _, d := range decisions {
		t := r.known[d.ID]
		switch {
		case t == nil:
			r.problem("%s is committed, and nobody asked for it", d.ID)
		case r.replayed[d.ID]:
			r.problem("%s is committed twice", d.ID)
		case t.Status == check.Aborted:
			r.problem("%s was told that it aborted, and is committed", d.ID)
		case t.Status == check.Committed && t.Answered < r.begun:
			r.problem("%s had its answer before one began that was decided before it", d.ID)
		default:
			waiting = append(waiting, r.prepare(t))
		}
		r.replayed[d.ID] = true
	}
	for len(waiting) > 0 && r.wrong == nil {
		next := slices.IndexFunc(waiting, func(w *work) bool { return r.misfit(w) == "" && !blocks(w, waiting, r.lists) })
		if next < 0 {
			for _, w := range waiting {
				why := r.misfit(w)
				if why == "" {
					why = "others decided with it must come before it, and after it"
				}
				r.problem("%s, replayed when it was decided: %s", w.ID, why)
			}
			return
		}
		w := waiting[next]
		waiting = slices.Delete(waiting, next, next+1)
		for _, m := range w.Mops {
			if m.Append {
				r.lists[m.Key] = append(r.lists[m.Key], m.Value)
			}
		}
		r.begun = max(r.begun, w.Invoked)
	}
}

// prepare finds out at which length of each list it is a transaction's turn: what it read
// tells, and the place of what it appended.
func (r *run) prepare(t *check.Txn) *work {
	w := &work{Txn: t, needs: map[string]int{}, appends: map[string]bool{}}
	own := map[string]int{}
	for _, m := range t.Mops {
		_, known := w.needs[m.Key]
		switch {
		case m.Append:
			if at := slices.Index(r.final[m.Key], m.Value); at >= 0 && !known {
				w.needs[m.Key] = at - own[m.Key]
			}
			w.appends[m.Key] = true
			own[m.Key]++
		case t.Status == check.Committed && !known:
			w.needs[m.Key] = len(m.List) - own[m.Key]
		}
	}
	return w
}

// misfit says why it is not a transaction's turn.
func (r *run) misfit(w *work) string {
	now := map[string][]int64{}
	for _, m := range w.Mops {
		list, touched := now[m.Key]
		if !touched {
			list = slices.Clip(r.lists[m.Key])
		}
		if m.Append {
			list = append(list, m.Value)
			if end := r.final[m.Key]; len(list) > len(end) || end[len(list)-1] != m.Value {
				return fmt.Sprintf("it appends %d to %s as number %d, and in the end that holds %v", m.Value, m.Key, len(list), end)
			}
		} else if w.Status == check.Committed && !slices.Equal(m.List, list) {
			return fmt.Sprintf("it read %s as %v, where the replay has %v", m.Key, m.List, list)
		}
		now[m.Key] = list
	}
	return ""
}

// blocks reports whether a transaction would change a list that another one of its rank
// must see as it is.
func blocks(w *work, waiting []*work, lists map[string][]int64) bool {
	for _, other := range waiting {
		if other == w {
			continue
		}
		for key, length := range other.needs { // order does not matter: any one blocks
			if w.appends[key] && length == len(lists[key]) {
				return true
			}
		}
	}
	return false
}

// ends compares what is left.
func (r *run) ends() {
	var keys []string
	for key := range r.final {
		keys = append(keys, key)
	}
	for key := range r.lists {
		if _, ok := r.final[key]; !ok {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		if !slices.Equal(r.lists[key], r.final[key]) {
			r.problem("in the end %s holds %v, where the replay has %v", key, r.final[key], r.lists[key])
		}
	}
}
