package lock

import (
	"cmp"
	"slices"
)

// Need is one node of a set and the mode it is needed in. Key is the node's full
// path: "service", or "service/segment/...".
type Need struct {
	Key  string
	Mode Mode
}

func (n Need) compareKey(key string) int { return cmp.Compare(n.Key, key) }

// Fold makes the set that Claim takes: every ancestor gets its intention mode,
// each node appears once in the least mode that covers all its uses, what a
// lock further up already grants is left out, and the order is canonical (byte
// order of keys, so an ancestor precedes what is below it). Folding twice
// changes nothing. The argument is not modified.
func Fold(needs []Need) []Need {
	all := make([]Need, 0, 3*len(needs))
	for _, n := range needs {
		all = append(all, n)
		for up, ok := parent(n.Key); ok; up, ok = parent(up) {
			all = append(all, Need{Key: up, Mode: n.Mode.intention()})
		}
	}
	slices.SortFunc(all, func(a, b Need) int { return cmp.Compare(a.Key, b.Key) })
	set := all[:0]
	for _, n := range all {
		if last := len(set) - 1; last >= 0 && set[last].Key == n.Key {
			set[last].Mode = Join(set[last].Mode, n.Mode)
		} else {
			set = append(set, n)
		}
	}

	// cover[i] joins node i with all its ancestors: what it grants on everything
	// below. Subtrees are not contiguous in byte order ("a", "a-b", "a/c"), so the
	// parent is looked up; it is present, and before its children.
	cover := make([]Mode, len(set))
	needed := make([]bool, len(set))
	for i, n := range set {
		cover[i], needed[i] = n.Mode, true
		up, ok := parent(n.Key)
		if !ok {
			continue
		}
		above, _ := slices.BinarySearchFunc(set[:i], up, Need.compareKey)
		cover[i] = Join(cover[above], n.Mode)
		set[i].Mode, needed[i] = n.Mode.below(cover[above])
	}
	kept := set[:0]
	for i, n := range set {
		if needed[i] {
			kept = append(kept, n)
		}
	}
	return kept
}
