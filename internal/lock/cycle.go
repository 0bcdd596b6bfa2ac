package lock

import (
	"fmt"
	"iter"
	"slices"

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

// NextCycle returns a shortest cycle of waiting through one of the claims that began to
// wait, or nil if there is none; its first owner is that claim. Ask after every call
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
		if c != nil && !c.granted() && t.grown > 0 && c.waitedFor() {
			if cycle := t.cycle(c); cycle != nil {
				return cycle
			}
		}
		t.blocked = t.blocked[:n-1]
	}
	return nil
}

// waitedFor reports whether somebody may wait for a claim that waits; if nobody does,
// no cycle goes through it. Most claims end the search here.
func (c *claim) waitedFor() bool {
	if c.outstanding().next != nil {
		return true
	}
	for i := range c.parts() {
		p := c.at(i)
		for j := range p.next {
			if n := p.slots[j].node; n != nil && n.queue.head != nil {
				return true
			}
		}
	}
	return false
}

// search goes breadth first along the wait-for graph. It looks at a slot once for each
// mode in which somebody waits at its node, however many wait there.
type search struct {
	from    *claim
	cameBy  map[*claim]*claim
	next    []*claim
	holders map[*node]uint8 // modes for which the holders were looked at
	ahead   map[*slot]uint8 // modes for which this waiter and all ahead of it were looked at
}

// cycle is a shortest way from a waiting claim back to it, or nil.
func (t *Table) cycle(from *claim) []Wait {
	s := search{from: from, cameBy: map[*claim]*claim{from: nil}, next: []*claim{from}, holders: map[*node]uint8{}, ahead: map[*slot]uint8{}}
	for len(s.next) > 0 {
		c := s.next[0]
		s.next = s.next[1:]
		if s.expand(c) {
			return s.way(c)
		}
	}
	return nil
}

// expand looks at whatever c waits for, and reports whether the search's start is among it.
func (s *search) expand(c *claim) (back bool) {
	w := c.outstanding()
	if s.holders[w.node]&w.mode.bit() == 0 {
		if c != s.from { // it may convert, and pass over itself: others must not
			s.holders[w.node] |= w.mode.bit()
		}
		for h := w.node.holders.head; h != nil; h = h.next {
			if h.claim != c && !Compatible(w.mode, h.mode) && s.reach(c, h.claim) {
				return true
			}
		}
	}
	if mutant.On("lock-cycle-ignores-waiters") {
		return false
	}
	for q := w.prev; q != nil && s.ahead[q]&w.mode.bit() == 0; q = q.prev {
		s.ahead[q] |= w.mode.bit()
		if !mutual(w.mode, q.mode) && s.reach(c, q.claim) {
			return true
		}
	}
	return false
}

func (s *search) reach(by, c *claim) (back bool) {
	if c == s.from {
		return true
	}
	if _, seen := s.cameBy[c]; !seen && !c.granted() {
		s.cameBy[c] = by
		s.next = append(s.next, c)
	}
	return false
}

// way is the cycle that last closes.
func (s *search) way(last *claim) []Wait {
	var cycle []Wait
	behind := s.from
	for c := last; c != nil; c = s.cameBy[c] {
		w := c.outstanding()
		cycle = append(cycle, Wait{Owner: c.owner, Key: w.key, Mode: w.mode, For: behind.owner})
		behind = c
	}
	slices.Reverse(cycle)
	return cycle
}

// blockers are the claims that a waiting claim waits for: holders in the order of their
// grants, then waiters ahead from the head of the queue.
func (c *claim) blockers() iter.Seq[*claim] {
	w := c.outstanding()
	return func(yield func(*claim) bool) {
		for s := w.node.holders.head; s != nil; s = s.next {
			if s.claim != c && !Compatible(w.mode, s.mode) && !yield(s.claim) {
				return
			}
		}
		for s := w.node.queue.head; s != w; s = s.next {
			if !mutual(w.mode, s.mode) && !yield(s.claim) {
				return
			}
		}
	}
}

// SkipCycle passes over the cycle that NextCycle has returned: somebody else breaks it.
func (t *Table) SkipCycle() { t.blocked = t.blocked[:len(t.blocked)-1] }

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
// again, with the age that it has. It is for a claim that never grew, waiting or granted;
// it may be granted at once. It appends to woken as Release does.
//
// The claim then queues behind every elder, so that only younger claims wait for it:
// in any cycle that it stands in again some other claim is the youngest.
func (t *Table) Restart(owner txnid.ID, woken []txnid.ID) (granted bool, all []txnid.ID) {
	c := t.claims[owner]
	if c == nil || c.grown != nil {
		panic(fmt.Sprintf("lock: restart of %s, which has no claim or one that grew", owner))
	}
	set := make([]Need, len(c.slots))
	for i := range c.slots {
		set[i] = Need{Key: c.slots[i].key, Mode: c.slots[i].mode}
	}
	woken = t.Drop(owner, woken)
	return t.Claim(owner, c.atMs, set), woken
}
