package lock

import (
	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/txnid"
)

// A look is where an elder may wait for a younger claim since a moment ago: an owner
// that began to wait, or, with a key, one that converted its lock of that node.
type look struct {
	owner txnid.ID
	key   string
}

// WoundWait turns the policy on (Rosenkrantz, Stearns, Lewis: System level concurrency
// control, 1978): an elder passes every younger waiter, and makes a younger holder give
// way; the younger waits for the elder. Nobody starves, since whoever comes later is
// younger. The caller replicates the switch, never turns it off, and sets it again
// after Restore.
func (t *Table) WoundWait() { t.wound = true }

// NextWound returns a wait of an elder behind a younger claim that may give way as the
// caller says, or false if there is none left. Ask after NextCycle has returned nil, and
// make the younger one give way (or say no of it from then on), until it returns false.
//
// Such a wait appears only where a claim begins to wait, or converts a lock at a node
// where elders wait. Whoever is granted something from a queue stood behind no elder
// that it is in conflict with.
func (t *Table) NextWound(mayGiveWay func(owner txnid.ID) bool) (Wait, bool) {
	for n := len(t.looks); n > 0; n = len(t.looks) {
		l := t.looks[n-1]
		c := t.claims[l.owner]
		if c != nil && !mutant.On("lock-no-wound") {
			var w Wait
			var found bool
			if l.key != "" {
				w, found = t.inTheWayOfElder(c, l.key, mayGiveWay)
			} else {
				w, found = t.youngerInTheWay(c, mayGiveWay)
			}
			if found {
				return w, true
			}
		}
		t.looks = t.looks[:n-1]
	}
	return Wait{}, false
}

// youngerInTheWay: the holders that a waiting claim waits for, and conversions, which
// stand ahead of it whatever their age. All others ahead are its elders.
func (t *Table) youngerInTheWay(c *claim, mayGiveWay func(owner txnid.ID) bool) (Wait, bool) {
	if c.granted() {
		return Wait{}, false
	}
	w := c.outstanding()
	wait := Wait{Owner: c.owner, Key: w.key, Mode: w.mode}
	for h := w.node.holders.head; h != nil; h = h.next {
		if h.claim != c && c.elder(h.claim) && !Compatible(w.mode, h.mode) && mayGiveWay(h.claim.owner) {
			wait.For = h.claim.owner
			return wait, true
		}
	}
	for q := w.node.queue.head; q != nil && q != w && q.converts; q = q.next {
		if c.elder(q.claim) && !mutual(w.mode, q.mode) && mayGiveWay(q.claim.owner) {
			wait.For = q.claim.owner
			return wait, true
		}
	}
	return Wait{}, false
}

// inTheWayOfElder: whoever waits at a node where the claim has converted its lock, or
// waits to.
func (t *Table) inTheWayOfElder(c *claim, key string, mayGiveWay func(owner txnid.ID) bool) (Wait, bool) {
	n := t.nodes[key]
	if n == nil || !mayGiveWay(c.owner) {
		return Wait{}, false
	}
	// While the conversion waits, those ahead of it wait for what it holds: they have
	// been looked at.
	if !c.granted() && c.outstanding().node == n {
		w := c.outstanding()
		for q := w.next; q != nil; q = q.next {
			if q.claim.elder(c) && !mutual(q.mode, w.mode) {
				return Wait{Owner: q.claim.owner, Key: key, Mode: q.mode, For: c.owner}, true
			}
		}
		return Wait{}, false
	}
	h := c.holds(key)
	if h == nil {
		return Wait{}, false
	}
	for q := n.queue.head; q != nil; q = q.next {
		if q.claim != c && q.claim.elder(c) && !Compatible(q.mode, h.mode) {
			return Wait{Owner: q.claim.owner, Key: key, Mode: q.mode, For: c.owner}, true
		}
	}
	return Wait{}, false
}

// WoundOf tells one elder that waits for a node that a claim holds, if there is one.
func (t *Table) WoundOf(owner txnid.ID) (Wait, bool) {
	c := t.claims[owner]
	if c == nil {
		return Wait{}, false
	}
	for i := range c.parts() {
		p := c.at(i)
		for j := range p.slots {
			s := &p.slots[j]
			if s.node == nil {
				continue
			}
			for q := s.node.queue.head; q != nil; q = q.next {
				if q.claim != c && q.claim.elder(c) && !Compatible(q.mode, s.mode) {
					return Wait{Owner: q.claim.owner, Key: s.key, Mode: q.mode, For: owner}, true
				}
			}
		}
	}
	return Wait{}, false
}
