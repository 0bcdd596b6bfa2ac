package lock

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/txnid"
)

// maxOvertakes bounds how often incompatible elders may pass one waiter.
const maxOvertakes = 8

// Table is the lock table of one shard. It is not safe for concurrent use.
type Table struct {
	nodes   map[string]*node
	claims  map[txnid.ID]*claim
	waiters int // claims that wait
}

// claim is what one owner holds and wants. Slots before next have been granted,
// the slot at next waits, those behind it have not been asked for.
type claim struct {
	owner txnid.ID
	atMs  uint64
	slots []slot // ascending by key; the whole set
	next  int
	index int // scratch of AppendSnapshot
}

// elder orders claims by age; ties go to the lesser id.
func (c *claim) elder(than *claim) bool {
	if c.atMs != than.atMs {
		return c.atMs < than.atMs
	}
	return c.owner.Less(than.owner)
}

func (c *claim) granted() bool { return c.next == len(c.slots) }

// find is the index of the claim's slot with this key.
func (c *claim) find(key string) (int, bool) {
	return slices.BinarySearchFunc(c.slots, key, func(s slot, key string) int { return cmp.Compare(s.key, key) })
}

// mayOvertake: elders pass younger waiters, freely if both can hold together and
// else until the waiter has had enough.
func (s *slot) mayOvertake(w *slot) bool {
	if !s.claim.elder(w.claim) {
		return false
	}
	return w.overtaken < maxOvertakes || Compatible(s.mode, w.mode) || mutant.On("lock-no-overtake-bound")
}

// NewTable returns a table in which nothing is held.
func NewTable() *Table {
	return &Table{nodes: make(map[string]*node), claims: make(map[txnid.ID]*claim)}
}

// Claim asks for a folded set, atMs being the log time that gives the owner its
// age. It takes the nodes in order until one must be waited for, and reports
// whether all are held now; the rest follows by itself as others release. An
// empty set is granted and makes no claim; any other claim lasts until Drop, also
// when every service has been released. The table keeps the keys, not the slice. Claim panics if the
// owner has a claim already, or if the set is not in canonical order with each
// key's service in it.
func (t *Table) Claim(owner txnid.ID, atMs uint64, set []Need) (granted bool) {
	if _, ok := t.claims[owner]; ok {
		panic(fmt.Sprintf("lock: second claim of %s", owner))
	}
	if len(set) == 0 {
		return true
	}
	c := &claim{owner: owner, atMs: atMs, slots: make([]slot, len(set))}
	for i, n := range set {
		c.slots[i] = slot{claim: c, key: n.Key, mode: n.Mode}
	}
	if err := c.link(); err != nil {
		panic(fmt.Sprintf("lock: claim of %s: %v", owner, err))
	}
	t.claims[owner] = c
	return t.advance(c)
}

// link checks the order of the slots and chains those of each service.
func (c *claim) link() error {
	for i := range c.slots {
		if c.slots[i].key == "" {
			return errors.New("a node without a key")
		}
		if i > 0 && c.slots[i-1].key >= c.slots[i].key {
			return fmt.Errorf("%q does not sort before %q", c.slots[i-1].key, c.slots[i].key)
		}
	}
	head := 0
	for i := len(c.slots) - 1; i >= 0; i-- {
		s := &c.slots[i]
		if s.mode >= modes {
			return fmt.Errorf("%q has the unknown mode %d", s.key, s.mode)
		}
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

// advance asks for one node after the other until one must be waited for.
func (t *Table) advance(c *claim) (granted bool) {
	for ; !c.granted(); c.next++ {
		if !t.request(&c.slots[c.next]) {
			return false
		}
	}
	return true
}

func (t *Table) request(s *slot) (granted bool) {
	n := t.nodes[s.key]
	if n == nil {
		n = &node{key: s.key}
		t.nodes[s.key] = n
	}
	s.node = n
	at, ahead := n.place(s)
	if mutant.On("lock-holder-only-wait") {
		ahead = 0
	}
	if s.mode.conflicts()&(n.holding.present|ahead) == 0 {
		n.hold(s)
		return true
	}
	n.enqueue(at, s)
	t.waiters++
	return false
}

// Release gives back all that a granted claim holds at one service, and appends
// to woken, in the order of their grants, the owners whose whole claim became
// granted by it: they hold their locks already. Nothing happens if nothing is
// held there. The claim itself lasts until Drop. It panics if the claim waits.
func (t *Table) Release(owner txnid.ID, service string, woken []txnid.ID) []txnid.ID {
	c := t.claims[owner]
	if c == nil {
		return woken
	}
	if !c.granted() {
		panic(fmt.Sprintf("lock: release of service %q by %s, which waits for %q", service, owner, c.slots[c.next].key))
	}
	head, ok := c.find(service)
	if !ok || c.slots[head].node == nil {
		return woken
	}
	// All is given back before any is handed on, so that a woken claim does not
	// queue at nodes that are about to be free.
	for i := head; ; {
		s := &c.slots[i]
		s.node.unhold(s)
		if i = int(s.same); i == 0 {
			break
		}
	}
	for i := head; ; {
		s := &c.slots[i]
		n := s.node
		s.node = nil
		woken = t.handOn(n, woken)
		if i = int(s.same); i == 0 {
			return woken
		}
	}
}

// Drop ends the owner's claim: it gives back all that is held, and the place in a
// queue. It appends to woken as Release does. Nothing happens if the owner has no claim.
func (t *Table) Drop(owner txnid.ID, woken []txnid.ID) []txnid.ID {
	c := t.claims[owner]
	if c == nil {
		return woken
	}
	delete(t.claims, owner)
	touched := c.slots[:c.next]
	for i := range touched {
		if s := &touched[i]; s.node != nil {
			s.node.unhold(s)
		}
	}
	if !c.granted() {
		s := &c.slots[c.next]
		s.node.dequeue(s)
		t.waiters--
		touched = c.slots[:c.next+1]
	}
	for i := range touched {
		if n := touched[i].node; n != nil {
			woken = t.handOn(n, woken)
		}
	}
	return woken
}

// handOn grants from the head of the queue whatever is compatible with the
// holders and with those that still wait ahead. It looks no further than the
// last waiter that could be granted by its mode; so where only S and X meet it
// looks at one waiter more than it grants.
func (t *Table) handOn(n *node, woken []txnid.ID) []txnid.ID {
	left, ahead := n.waiting, uint8(0)
	for s := n.queue.head; s != nil && grantable(left.present, n.holding.present|ahead); {
		next := s.next
		left.remove(s.mode)
		if s.mode.conflicts()&(n.holding.present|ahead) != 0 {
			ahead |= s.mode.bit()
		} else {
			n.dequeue(s)
			t.waiters--
			n.hold(s)
			s.overtaken = 0
			c := s.claim
			c.next++
			// Later nodes only: this queue does not change under the loop.
			if t.advance(c) {
				woken = append(woken, c.owner)
			}
		}
		s = next
	}
	if n.empty() {
		delete(t.nodes, n.key)
	}
	return woken
}

// Has reports whether the owner has a claim.
func (t *Table) Has(owner txnid.ID) bool { return t.claims[owner] != nil }

// Granted reports whether the owner has a claim and all of it was granted. What
// was released since makes no difference.
func (t *Table) Granted(owner txnid.ID) bool {
	c := t.claims[owner]
	return c != nil && c.granted()
}

// Waiting tells the owner's outstanding request and at most limit of those it
// waits for: incompatible holders, then incompatible waiters ahead of it.
func (t *Table) Waiting(owner txnid.ID, limit int) (need Need, blockers []txnid.ID, ok bool) {
	c := t.claims[owner]
	if c == nil || c.granted() {
		return Need{}, nil, false
	}
	w := &c.slots[c.next]
	for s := w.node.holders.head; s != nil && len(blockers) < limit; s = s.next {
		if !Compatible(s.mode, w.mode) {
			blockers = append(blockers, s.claim.owner)
		}
	}
	for s := w.node.queue.head; s != w && len(blockers) < limit; s = s.next {
		if !Compatible(s.mode, w.mode) {
			blockers = append(blockers, s.claim.owner)
		}
	}
	return Need{Key: w.key, Mode: w.mode}, blockers, true
}

// Contended reports whether somebody waits at a node that the owner holds at
// this service. It looks at the owner's nodes there, and at no other.
func (t *Table) Contended(owner txnid.ID, service string) bool {
	c := t.claims[owner]
	if c == nil {
		return false
	}
	head, ok := c.find(service)
	if !ok {
		return false
	}
	for i := head; i < c.next; {
		s := &c.slots[i]
		if s.node != nil && s.node.queue.head != nil {
			return true
		}
		if i = int(s.same); i == 0 {
			break
		}
	}
	return false
}

// Len counts the claims.
func (t *Table) Len() int { return len(t.claims) }

// Nodes counts the nodes that are held or waited for, ancestors included.
func (t *Table) Nodes() int { return len(t.nodes) }

// Waiters counts the claims that wait.
func (t *Table) Waiters() int { return t.waiters }
