package lock

import (
	"errors"
	"fmt"
)

// Check verifies every invariant of the table. It costs a walk over all of it.
func (t *Table) Check() error {
	waiters := 0
	for _, owner := range t.sortedOwners() {
		c := t.claims[owner]
		if c.owner != owner {
			return fmt.Errorf("claim of %s is filed under %s", c.owner, owner)
		}
		if err := t.checkClaim(c); err != nil {
			return fmt.Errorf("claim of %s: %w", owner, err)
		}
		if !c.granted() {
			waiters++
		}
	}
	if waiters != t.waiters {
		return fmt.Errorf("%d claims wait, %d are counted", waiters, t.waiters)
	}
	for _, key := range t.sortedKeys() {
		n := t.nodes[key]
		if n.key != key {
			return fmt.Errorf("node %q is filed under %q", n.key, key)
		}
		if err := t.checkNode(n); err != nil {
			return fmt.Errorf("node %q: %w", key, err)
		}
	}
	return nil
}

func (t *Table) checkClaim(c *claim) error {
	if c.next < 0 || c.next > len(c.slots) {
		return fmt.Errorf("stands at node %d of %d", c.next, len(c.slots))
	}
	for i := range c.slots {
		s := &c.slots[i]
		switch {
		case s.claim != c:
			return fmt.Errorf("%q belongs to another", s.key)
		case s.mode >= modes:
			return fmt.Errorf("%q in mode %d", s.key, s.mode)
		case i > 0 && c.slots[i-1].key >= s.key:
			return fmt.Errorf("%q is out of order", s.key)
		case s.node == nil && i < c.next && !c.granted():
			return fmt.Errorf("%q was released while the claim waits", s.key)
		case s.node == nil && i == c.next:
			return fmt.Errorf("%q was not asked for", s.key)
		case s.node != nil && i > c.next:
			return fmt.Errorf("%q was asked for before its turn", s.key)
		case s.node != nil && t.nodes[s.key] != s.node:
			return fmt.Errorf("%q is at a node that is not in the table", s.key)
		}
	}
	chained := 0
	for i := range c.slots {
		service := Service(c.slots[i].key)
		if c.slots[i].key != service {
			continue
		}
		for j := i; ; {
			chained++
			s := &c.slots[j]
			if Service(s.key) != service || (s.node == nil) != (c.slots[i].node == nil) && c.granted() {
				return fmt.Errorf("%q in the chain of service %q", s.key, service)
			}
			next := int(s.same)
			if next == 0 {
				break
			}
			if next <= j || next >= len(c.slots) {
				return fmt.Errorf("chain of service %q goes from %d to %d", service, j, next)
			}
			j = next
		}
	}
	if chained != len(c.slots) {
		return fmt.Errorf("%d of %d nodes are in the chain of a service", chained, len(c.slots))
	}
	return nil
}

func (t *Table) checkNode(n *node) error {
	if n.empty() {
		return errors.New("nobody holds it or waits")
	}
	var holding, waiting tally
	for s := n.holders.head; s != nil; s = s.next {
		if err := t.checkSlot(n, &n.holders, s); err != nil {
			return err
		}
		if s.index() >= s.claim.next {
			return fmt.Errorf("%s holds what it was not granted", s.claim.owner)
		}
		if s.mode.conflicts()&holding.present != 0 {
			return fmt.Errorf("%s holds %s against another holder", s.claim.owner, s.mode)
		}
		holding.add(s.mode)
	}
	for s := n.queue.head; s != nil; s = s.next {
		if err := t.checkSlot(n, &n.queue, s); err != nil {
			return err
		}
		if s.index() != s.claim.next {
			return fmt.Errorf("%s waits elsewhere", s.claim.owner)
		}
		if s.mode.conflicts()&(holding.present|waiting.present) == 0 {
			return fmt.Errorf("%s waits for %s that could be granted", s.claim.owner, s.mode)
		}
		if s.overtaken > maxOvertakes {
			return fmt.Errorf("%s was overtaken %d times", s.claim.owner, s.overtaken)
		}
		waiting.add(s.mode)
	}
	if holding != n.holding || waiting != n.waiting {
		return fmt.Errorf("counts are %v and %v, lists have %v and %v", n.holding, n.waiting, holding, waiting)
	}
	return nil
}

// checkSlot also ends a walk over a list that became a ring.
func (t *Table) checkSlot(n *node, l *list, s *slot) error {
	switch {
	case s.node != n || s.key != n.key:
		return fmt.Errorf("has a slot of %q", s.key)
	case t.claims[s.claim.owner] != s.claim:
		return fmt.Errorf("has a slot of %s, which has no such claim", s.claim.owner)
	case (s.prev == nil) != (l.head == s), (s.next == nil) != (l.tail == s),
		s.prev != nil && s.prev.next != s, s.next != nil && s.next.prev != s:
		return fmt.Errorf("the list is torn at %s", s.claim.owner)
	}
	return nil
}

// index is the slot's place in its claim, or len if it is not there.
func (s *slot) index() int {
	i, ok := s.claim.find(s.key)
	if !ok || &s.claim.slots[i] != s {
		return len(s.claim.slots)
	}
	return i
}
