package lock

import (
	"slices"

	"github.com/assent-tx/assent/internal/txnid"
)

// Node is a node of the table for those who look.
type Node struct {
	Key     string
	Holders []Holder // in the order of their grants
	Waiters []Holder // who is served first comes first
}

// Holder is a claim at a node.
type Holder struct {
	Owner txnid.ID
	AtMs  uint64 // its age
	Mode  Mode
}

// Size counts the nodes that an owner holds, waits for, or will ask for.
func (t *Table) Size(owner txnid.ID) (n int) {
	c := t.claims[owner]
	if c == nil {
		return 0
	}
	for i := range c.parts() {
		p := c.at(i)
		for j := range p.slots {
			// What was released, replaced or not needed does not count: a restored table
			// does not know of it.
			if p.slots[j].node != nil || j > int(p.next) {
				n++
			}
		}
	}
	return n
}

// List returns at most limit nodes with keys from one on that match, in order of keys. It
// looks at every node once. A node of intentions only is one, too.
func (t *Table) List(from string, limit int, match func(key string, waiters int) bool) []Node {
	var keys []string
	for key, n := range t.nodes { // order does not matter: the result is sorted
		if key < from || !match(key, int(n.waiting.total())) {
			continue
		}
		if keys = append(keys, key); len(keys) >= 4*limit+64 {
			slices.Sort(keys)
			keys = keys[:limit]
		}
	}
	slices.Sort(keys)
	list := make([]Node, 0, min(limit, len(keys)))
	for _, key := range keys[:min(limit, len(keys))] {
		n := t.nodes[key]
		list = append(list, Node{Key: key, Holders: n.holders.all(), Waiters: n.queue.all()})
	}
	return list
}

func (l *list) all() []Holder {
	var all []Holder
	for s := l.head; s != nil; s = s.next {
		all = append(all, Holder{Owner: s.claim.owner, AtMs: s.claim.atMs, Mode: s.mode})
	}
	return all
}
