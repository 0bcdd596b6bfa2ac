package lock

import (
	"math/bits"

	"github.com/assent-tx/assent/internal/mutant"
)

// A slot is one node of a claim. It stands in one list at most: the holders of
// its node or its queue.
type slot struct {
	claim      *claim
	node       *node // nil: not yet asked for, or released
	prev, next *slot
	key        string
	mode       Mode
	overtaken  uint8 // by incompatible elders, while waiting
	converts   bool  // waits to replace the slot that holds this node for the same claim
	same       int32 // index in the claim's first part of its next slot at the same service; 0: none
}

// list is an intrusive list of slots.
type list struct{ head, tail *slot }

func (l *list) pushBack(s *slot) { l.insertAfter(l.tail, s) }

// insertAfter puts s behind at, or first if at is nil.
func (l *list) insertAfter(at, s *slot) {
	s.prev = at
	if at == nil {
		s.next, l.head = l.head, s
	} else {
		s.next, at.next = at.next, s
	}
	if s.next == nil {
		l.tail = s
	} else {
		s.next.prev = s
	}
}

func (l *list) remove(s *slot) {
	if s.prev == nil {
		l.head = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next == nil {
		l.tail = s.prev
	} else {
		s.next.prev = s.prev
	}
	s.prev, s.next = nil, nil
}

// tally counts slots by mode; present is the set of modes with a count.
type tally struct {
	count   [modes]uint32
	present uint8
}

func (t *tally) add(m Mode) {
	t.count[m]++
	t.present |= m.bit()
}

func (t *tally) remove(m Mode) {
	if t.count[m]--; t.count[m] == 0 {
		t.present &^= m.bit()
	}
}

// A node is what is locked. It exists while somebody holds it or waits for it.
type node struct {
	key      string
	holders  list // in the order of their grants
	queue    list // who is nearer to the head is served first
	holding  tally
	waiting  tally
	disorder bool // see noteDisorder; not part of a snapshot
}

// held is the set of modes that owners other than s's hold.
func (n *node) held(s *slot) uint8 {
	if s.converts {
		if own := s.claim.holds(s.key).mode; n.holding.count[own] == 1 {
			return n.holding.present &^ own.bit()
		}
	}
	return n.holding.present
}

// grant makes a slot a holder, in place of the one that it converts.
func (n *node) grant(s *slot) {
	if s.converts {
		old := s.claim.holds(s.key)
		n.unhold(old)
		old.node, s.converts = nil, false
	}
	n.hold(s)
}

func (n *node) hold(s *slot) {
	n.holders.pushBack(s)
	n.holding.add(s.mode)
	if s.claim.grown != nil {
		s.claim.grown.held[s.key] = s
	}
}

func (n *node) unhold(s *slot) {
	n.holders.remove(s)
	n.holding.remove(s.mode)
	if s.claim.grown != nil {
		delete(s.claim.grown.held, s.key)
	}
}

func (n *node) enqueue(at, s *slot) {
	n.queue.insertAfter(at, s)
	n.waiting.add(s.mode)
}

func (n *node) dequeue(s *slot) {
	n.queue.remove(s)
	n.waiting.remove(s.mode)
}

func (n *node) empty() bool { return n.holders.head == nil && n.queue.head == nil }

// place finds where a new request queues: behind the last waiter that it may not
// overtake (nil: first). It counts the overtaking, and tells the set of modes
// that wait ahead of the place. Conversions stand ahead of all others, the eldest
// first: whoever waits for the node waits for its holders anyway.
func (n *node) place(s *slot, wound bool) (at *slot, ahead uint8) {
	if s.converts && !mutant.On("lock-conversion-queues-up") {
		for next := n.queue.head; next != nil && next.converts && !s.claim.elder(next.claim); next = next.next {
			at = next
			ahead |= next.mode.bit()
		}
		return at, ahead
	}
	if n.queue.head == nil {
		return nil, 0
	}
	left := n.waiting
	for at = n.queue.tail; at != nil && s.mayOvertake(at, wound); at = at.prev {
		if !wound && !mutual(s.mode, at.mode) {
			at.overtaken++
		}
		left.remove(at.mode)
	}
	return at, left.present
}

// grantable reports whether some mode of the set waiting need not wait for those held
// and ahead.
func grantable(waiting, held, ahead uint8) bool {
	for ; waiting != 0; waiting &= waiting - 1 {
		if m := Mode(bits.TrailingZeros8(waiting)); !m.waitsFor(held, ahead) {
			return true
		}
	}
	return false
}
