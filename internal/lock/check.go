package lock

import (
	"errors"
	"fmt"
)

// Check verifies every invariant of the table. It costs a walk over all of it.
func (t *Table) Check() error {
	waiters, grown := 0, 0
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
		if c.grown != nil {
			grown++
		}
	}
	if grown != t.grown {
		return fmt.Errorf("%d claims have grown, %d are counted", grown, t.grown)
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
	holds := map[string]bool{}
	for i := range c.parts() {
		p := c.at(i)
		if p.next < 0 || int(p.next) > len(p.slots) {
			return fmt.Errorf("stands at node %d of %d", p.next, len(p.slots))
		}
		next := int(p.next)
		if i < c.parts()-1 && !p.done() {
			return errors.New("asked for more while it waited")
		}
		if err := p.check(); err != nil {
			return err
		}
		for j := range p.slots {
			s := &p.slots[j]
			switch {
			case s.claim != c:
				return fmt.Errorf("%q belongs to another", s.key)
			case s.node == nil && j < next && !c.granted() && c.parts() == 1:
				return fmt.Errorf("%q was released while the claim waits", s.key)
			case s.node == nil && j == next:
				return fmt.Errorf("%q was not asked for", s.key)
			case s.node != nil && j > next:
				return fmt.Errorf("%q was asked for before its turn", s.key)
			case s.node != nil && t.nodes[s.key] != s.node:
				return fmt.Errorf("%q is at a node that is not in the table", s.key)
			case s.node != nil && j < next && holds[s.key]:
				return fmt.Errorf("%q is held twice", s.key)
			case s.converts && (j != next || c.holds(s.key) == nil):
				return fmt.Errorf("%q converts what is not held", s.key)
			case !s.converts && j == next && c.holds(s.key) != nil:
				return fmt.Errorf("%q waits for what is held", s.key)
			}
			if s.node != nil && j < next {
				holds[s.key] = true
				if c.holds(s.key) != s {
					return fmt.Errorf("%q is held by another part", s.key)
				}
			}
		}
	}
	if c.grown != nil && len(c.grown.held) != len(holds) {
		return fmt.Errorf("%d nodes are held, %d are known", len(holds), len(c.grown.held))
	}
	return c.checkChains()
}

// checkChains verifies the chains of the first part.
func (c *claim) checkChains() error {
	chained := 0
	for i := range c.slots {
		service := Service(c.slots[i].key)
		if c.slots[i].key != service {
			continue
		}
		for j := i; ; {
			chained++
			s := &c.slots[j]
			if Service(s.key) != service || (s.node == nil) != (c.slots[i].node == nil) && c.granted() && c.parts() == 1 {
				return fmt.Errorf("%q in the chain of service %q", s.key, service)
			}
			next := int(s.same)
			if next == 0 || next >= len(c.slots) && next < cap(c.slots) {
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
	queues := false // somebody who converts nothing was seen
	for s := n.holders.head; s != nil; s = s.next {
		if err := t.checkSlot(n, &n.holders, s); err != nil {
			return err
		}
		if s.claim.holds(s.key) != s {
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
		if s.claim.granted() || s.claim.outstanding() != s {
			return fmt.Errorf("%s waits elsewhere", s.claim.owner)
		}
		if queues = queues || !s.converts; queues && s.converts {
			return fmt.Errorf("the conversion of %s stands behind another waiter", s.claim.owner)
		}
		if !s.mode.waitsFor(n.held(s), waiting.present) {
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

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}
