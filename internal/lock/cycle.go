package lock

import (
	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/txnid"
)

// Wait is one edge of the wait-for graph: Owner waits for a node behind For, which
// holds it or waits ahead in a mode that conflicts.
type Wait struct {
	Owner txnid.ID
	Key   string
	Mode  Mode
	For   txnid.ID
}

// NextCycle returns a cycle of waiting, or nil if there is none. Ask after every call
// that claims, extends, releases or drops, and make one of its owners stop waiting,
// until it returns nil.
//
// A cycle appears only when a claim begins to wait: it needs an edge out of each of its
// members, and all other changes - a hand-off, a conversion, an elder that passes -
// add edges into claims that wait for nothing, or that begin to wait now. So those that
// began to wait since the last question are searched from, and no others.
func (t *Table) NextCycle() []Wait {
	for n := len(t.blocked); n > 0; n = len(t.blocked) {
		c := t.claims[t.blocked[n-1]]
		if c != nil && !c.granted() && t.grown > 0 {
			if cycle := t.cycle(c); cycle != nil {
				return cycle
			}
		}
		t.blocked = t.blocked[:n-1]
	}
	return nil
}

// cycle searches depth first from a waiting claim for a way back to it.
func (t *Table) cycle(from *claim) []Wait {
	type step struct {
		claim *claim
		ways  []*claim
	}
	seen := map[*claim]bool{from: true}
	path := []step{{claim: from, ways: blockers(from)}}
	for len(path) > 0 {
		top := &path[len(path)-1]
		if len(top.ways) == 0 {
			path = path[:len(path)-1]
			continue
		}
		next := top.ways[0]
		top.ways = top.ways[1:]
		if next == from {
			cycle := make([]Wait, len(path))
			for i := range path {
				w, behind := path[i].claim.outstanding(), from
				if i+1 < len(path) {
					behind = path[i+1].claim
				}
				cycle[i] = Wait{Owner: path[i].claim.owner, Key: w.key, Mode: w.mode, For: behind.owner}
			}
			return cycle
		}
		if !seen[next] && !next.granted() {
			seen[next] = true
			path = append(path, step{claim: next, ways: blockers(next)})
		}
	}
	return nil
}

// blockers are the claims that a waiting claim waits for: holders in the order of their
// grants, then waiters ahead from the head of the queue.
func blockers(c *claim) []*claim {
	w := c.outstanding()
	var list []*claim
	for s := w.node.holders.head; s != nil; s = s.next {
		if s.claim != c && !Compatible(w.mode, s.mode) {
			list = append(list, s.claim)
		}
	}
	if mutant.On("lock-cycle-ignores-waiters") {
		return list
	}
	for s := w.node.queue.head; s != w; s = s.next {
		if !mutual(w.mode, s.mode) {
			list = append(list, s.claim)
		}
	}
	return list
}

// Victim is the youngest of a cycle's owners. The table knows their ages.
func (t *Table) Victim(cycle []Wait) txnid.ID {
	youngest := t.claims[cycle[0].Owner]
	for _, w := range cycle[1:] {
		if c := t.claims[w.Owner]; youngest.elder(c) {
			youngest = c
		}
	}
	return youngest.owner
}

// Restart gives back all that a claim holds and waits for, and asks for its first set
// again, with the age that it has. It is for a claim that never grew; it may be granted
// at once. It appends to woken as Release does.
//
// The claim then queues behind every elder, so that only younger claims wait for it:
// in any cycle that it stands in again some other claim is the youngest.
func (t *Table) Restart(owner txnid.ID, woken []txnid.ID) (granted bool, all []txnid.ID) {
	c := t.claims[owner]
	set := make([]Need, len(c.slots))
	for i := range c.slots {
		set[i] = Need{Key: c.slots[i].key, Mode: c.slots[i].mode}
	}
	woken = t.Drop(owner, woken)
	return t.Claim(owner, c.atMs, set), woken
}
