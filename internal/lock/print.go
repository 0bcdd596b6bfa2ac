package lock

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/assent-tx/assent/internal/txnid"
)

func (t *Table) sortedKeys() []string { return slices.Sorted(maps.Keys(t.nodes)) }

func (t *Table) sortedOwners() []txnid.ID {
	return slices.SortedFunc(maps.Keys(t.claims), func(a, b txnid.ID) int {
		if a.Less(b) {
			return -1
		}
		return 1 // keys of a map differ
	})
}

// String prints the table for people: each node in key order, its holders in the
// order of their grants, and its queue with the head first.
func (t *Table) String() string {
	var b strings.Builder
	for _, key := range t.sortedKeys() {
		n := t.nodes[key]
		fmt.Fprintln(&b, key)
		for s := n.holders.head; s != nil; s = s.next {
			fmt.Fprintf(&b, "  held    %-3s %s of %d ms\n", s.mode, s.claim.owner, s.claim.atMs)
		}
		for s := n.queue.head; s != nil; s = s.next {
			fmt.Fprintf(&b, "  waiting %-3s %s of %d ms", s.mode, s.claim.owner, s.claim.atMs)
			if s.overtaken > 0 {
				fmt.Fprintf(&b, ", overtaken %d times", s.overtaken)
			}
			fmt.Fprintln(&b)
		}
	}
	return b.String()
}
