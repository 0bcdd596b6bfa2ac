package txn

import (
	"sort"

	"github.com/assent-tx/assent/internal/txnid"
)

// Select returns at most limit transactions with ids above after that match, in
// order of ids. It looks at every record once.
func (s *State) Select(after txnid.ID, limit int, match func(*Txn) bool) []*Txn {
	var found []*Txn
	for id, t := range s.txns { // order does not matter: the result is sorted
		if !after.Less(id) || !match(t) {
			continue
		}
		found = append(found, t)
		if len(found) >= 4*limit+64 {
			found = lowest(found, limit)
		}
	}
	return lowest(found, limit)
}

func lowest(list []*Txn, limit int) []*Txn {
	sort.Slice(list, func(i, j int) bool { return list[i].ID.Less(list[j].ID) })
	return list[:min(limit, len(list))]
}
