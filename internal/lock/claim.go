package lock

import (
	"errors"
	"fmt"
	"sort"

	"github.com/assent-tx/assent/internal/txnid"
)

// claim is what one owner holds and wants: what it asked for first, and what it
// asked for later, step by step. Only the last part may wait.
type claim struct {
	owner txnid.ID
	atMs  uint64
	part  // the first
	grown *growth
}

// growth is what only a claim has that grew by steps.
type growth struct {
	parts []*part          // the later ones
	held  map[string]*slot // all that hold a node for the claim, by key
}

// part is a folded set. Slots before next have been granted, the slot at next waits,
// those behind it have not been asked for. A granted slot without a node was released,
// was replaced by a conversion, or was not needed.
type part struct {
	slots []slot // ascending by key; never moved, since nodes point at them
	next  int32
	index int32 // scratch of AppendSnapshot, in the first part
}

// elder orders claims by age; ties go to the lesser id.
func (c *claim) elder(than *claim) bool {
	if c.atMs != than.atMs {
		return c.atMs < than.atMs
	}
	return c.owner.Less(than.owner)
}

func (c *claim) last() *part {
	if c.grown != nil {
		return c.grown.parts[len(c.grown.parts)-1]
	}
	return &c.part
}

func (p *part) done() bool { return int(p.next) == len(p.slots) }

func (c *claim) granted() bool { return c.last().done() }

// outstanding is the slot that waits.
func (c *claim) outstanding() *slot {
	p := c.last()
	return &p.slots[p.next]
}

// parts is the number of parts, the first counted.
func (c *claim) parts() int {
	if c.grown == nil {
		return 1
	}
	return 1 + len(c.grown.parts)
}

func (c *claim) at(i int) *part {
	if i == 0 {
		return &c.part
	}
	return c.grown.parts[i-1]
}

// grow adds a part.
func (c *claim) grow(p *part) {
	if c.grown == nil {
		c.grown = &growth{held: make(map[string]*slot, len(c.slots)+len(p.slots))}
		for i := range c.slots {
			if s := &c.slots[i]; s.node != nil {
				c.grown.held[s.key] = s
			}
		}
	}
	c.grown.parts = append(c.grown.parts, p)
}

// find is the index of the part's slot with this key.
func (p *part) find(key string) (int, bool) {
	i := sort.Search(len(p.slots), func(i int) bool { return p.slots[i].key >= key })
	return i, i < len(p.slots) && p.slots[i].key == key
}

// holds is the slot that holds a node for the claim; nil: it does not.
func (c *claim) holds(key string) *slot {
	if c.grown != nil {
		return c.grown.held[key]
	}
	if i, ok := c.find(key); ok && i < int(c.next) && c.slots[i].node != nil {
		return &c.slots[i]
	}
	return nil
}

// lacks is what of a need a claim that grew by steps has to ask for: nothing if it is
// covered by what it holds here or further up, and a conversion if it holds the node
// in a weaker mode.
func (c *claim) lacks(s *slot) (mode Mode, converts, needed bool) {
	cover, covered := IS, false
	for up, ok := parent(s.key); ok; up, ok = parent(up) {
		if h := c.holds(up); h != nil {
			cover, covered = Join(cover, h.mode), true
		}
	}
	mode = s.mode
	if covered {
		if mode, needed = mode.below(cover); !needed {
			return 0, false, false
		}
	}
	h := c.holds(s.key)
	if h == nil {
		return mode, false, true
	}
	mode = Join(h.mode, mode)
	return mode, true, mode != h.mode
}

// newPart makes the slots of a folded set.
func (c *claim) newPart(set []Need) part {
	p := part{slots: make([]slot, len(set))}
	for i, n := range set {
		p.slots[i] = slot{claim: c, key: n.Key, mode: n.Mode}
	}
	return p
}

// check says what is wrong with the order or the modes of a part.
func (p *part) check() error {
	for i := range p.slots {
		s := &p.slots[i]
		switch {
		case s.key == "":
			return errors.New("a node without a key")
		case i > 0 && p.slots[i-1].key >= s.key:
			return fmt.Errorf("%q does not sort before %q", p.slots[i-1].key, s.key)
		case !s.mode.Valid():
			return fmt.Errorf("%q has the unknown mode %d", s.key, s.mode)
		}
	}
	return nil
}

// link checks the first part and chains its slots of each service.
func (c *claim) link() error {
	if err := c.check(); err != nil {
		return err
	}
	head := 0
	for i := len(c.slots) - 1; i >= 0; i-- {
		s := &c.slots[i]
		service := Service(s.key)
		if c.slots[head].key != service {
			var ok bool
			if head, ok = c.find(service); !ok {
				return fmt.Errorf("%q comes without a lock on its service", s.key)
			}
		}
		// Index 0 is a service, since a service sorts before all its keys: 0 ends a chain.
		if i != head {
			s.same, c.slots[head].same = c.slots[head].same, int32(i)
		}
	}
	return nil
}

// after is the next slot of the same service in the first part, or nil.
func (c *claim) after(s *slot) *slot {
	if s.same == 0 || int(s.same) >= len(c.slots) { // a claim that gave up waiting is shorter than its chains
		return nil
	}
	return &c.slots[s.same]
}

// eachAt calls f with the slots of a service that stand at a node.
func (c *claim) eachAt(service string, f func(s *slot)) {
	if head, ok := c.find(service); ok {
		for s := &c.slots[head]; s != nil; {
			next := c.after(s)
			if s.node != nil {
				f(s)
			}
			s = next
		}
	}
	for i := 1; i < c.parts(); i++ {
		p := c.at(i)
		for j := range p.slots {
			if s := &p.slots[j]; s.node != nil && Service(s.key) == service {
				f(s)
			}
		}
	}
}
