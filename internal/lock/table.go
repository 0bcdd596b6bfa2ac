package lock

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/txnid"
)

// maxOvertakes bounds how often incompatible elders may pass one waiter, without
// wound-wait.
const maxOvertakes = 8

// Table is the lock table of one shard. It is not safe for concurrent use.
type Table struct {
	nodes   map[string]*node
	claims  map[txnid.ID]*claim
	waiters int        // claims that wait
	grown   int        // claims that grew by steps: without them there is no cycle
	blocked []txnid.ID // claims that began to wait since NextCycle was asked, if any had grown; not part of a snapshot
	wound   bool       // see WoundWait; the caller's, not part of a snapshot
	looks   looks      // where an elder may have begun to wait for a younger since NextWound was asked; not part of a snapshot
}

// mayOvertake: elders pass younger waiters, freely if both can hold together and
// else until the waiter has had enough; with wound-wait always. Nobody passes a
// conversion.
func (s *slot) mayOvertake(w *slot, wound bool) bool {
	if w.converts || !s.claim.elder(w.claim) {
		return false
	}
	return wound || w.overtaken < maxOvertakes || mutual(s.mode, w.mode) || mutant.On("lock-no-overtake-bound")
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
	c := &claim{owner: owner, atMs: atMs}
	c.part = c.newPart(set)
	if err := c.link(); err != nil {
		panic(fmt.Sprintf("lock: claim of %s: %v", owner, err))
	}
	t.claims[owner] = c
	return t.advance(c)
}

// Extend asks for a further folded set: as Claim if the owner has no claim yet. What
// the claim holds already, here or further up, is not asked for again; a node that it
// holds in a weaker mode is converted. Extend panics if the claim waits.
func (t *Table) Extend(owner txnid.ID, atMs uint64, set []Need) (granted bool) {
	c := t.claims[owner]
	if c == nil {
		return t.Claim(owner, atMs, set)
	}
	if !c.granted() {
		panic(fmt.Sprintf("lock: %s asks for more while it waits for %q", owner, c.outstanding().key))
	}
	p := c.newPart(set)
	if err := p.check(); err != nil {
		panic(fmt.Sprintf("lock: extension of %s: %v", owner, err))
	}
	if c.grown == nil {
		t.grown++
	}
	c.grow(&p)
	return t.advance(c)
}

// advance asks for one node after the other until one must be waited for.
func (t *Table) advance(c *claim) (granted bool) {
	for p := c.last(); !p.done(); p.next++ {
		if !t.request(c, &p.slots[p.next]) {
			return false
		}
	}
	return true
}

func (t *Table) request(c *claim, s *slot) (granted bool) {
	if c.grown != nil {
		mode, converts, needed := c.lacks(s)
		if !needed {
			return true
		}
		s.mode, s.converts = mode, converts
	}
	n := t.nodes[s.key]
	if n == nil {
		n = &node{key: s.key}
		t.nodes[s.key] = n
	}
	s.node = n
	at, ahead := n.place(s, t.wound)
	if s.converts && t.wound && !mutant.On("lock-wound-misses-conversions") {
		t.looks.add(look{claim: c, key: s.key})
	}
	if mutant.On("lock-holder-only-wait") {
		ahead = 0
	}
	if !s.mode.waitsFor(n.held(s), ahead) {
		n.grant(s)
		return true
	}
	n.enqueue(at, s)
	t.waiters++
	if t.grown > 0 {
		t.blocked = append(t.blocked, c.owner)
	}
	if t.wound {
		t.looks.add(look{claim: c})
	}
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
		panic(fmt.Sprintf("lock: release of service %q by %s, which waits for %q", service, owner, c.outstanding().key))
	}
	// All is given back before any is handed on, so that a woken claim does not
	// queue at nodes that are about to be free.
	if c.grown != nil {
		var left []*node
		c.eachAt(service, func(s *slot) {
			s.node.unhold(s)
			left = append(left, s.node)
			s.node = nil
		})
		return t.handAllOn(left, woken)
	}
	head, ok := c.find(service)
	if !ok {
		return woken
	}
	for s := &c.slots[head]; s != nil; s = c.after(s) {
		if s.node != nil {
			s.node.unhold(s)
		}
	}
	for s := &c.slots[head]; s != nil; s = c.after(s) {
		if n := s.node; n != nil {
			s.node = nil
			woken = t.handOn(n, woken)
		}
	}
	return woken
}

// handAllOn hands on the nodes that a claim left which grew, in order of their keys,
// whichever steps they were asked for in: a restored table no longer knows those.
func (t *Table) handAllOn(left []*node, woken []txnid.ID) []txnid.ID {
	slices.SortFunc(left, func(a, b *node) int { return cmp.Compare(a.key, b.key) })
	for _, n := range slices.Compact(left) {
		woken = t.handOn(n, woken)
	}
	return woken
}

// Abandon takes back what the owner waits for and had not been asked for yet; it
// keeps what it holds. It appends to woken as Release does.
func (t *Table) Abandon(owner txnid.ID, woken []txnid.ID) []txnid.ID {
	c := t.claims[owner]
	if c == nil || c.granted() {
		return woken
	}
	p, s := c.last(), c.outstanding()
	n := s.node
	n.dequeue(s)
	s.node, s.converts = nil, false
	t.waiters--
	p.slots = p.slots[:p.next]
	return t.handOn(n, woken)
}

// Drop ends the owner's claim: it gives back all that is held, and the place in a
// queue. It appends to woken as Release does. Nothing happens if the owner has no claim.
func (t *Table) Drop(owner txnid.ID, woken []txnid.ID) []txnid.ID {
	c := t.claims[owner]
	if c == nil {
		return woken
	}
	delete(t.claims, owner)
	if c.grown != nil {
		t.grown--
	}
	for i := range c.parts() {
		p := c.at(i)
		for j := range p.next {
			if s := &p.slots[j]; s.node != nil {
				s.node.unhold(s)
			}
		}
	}
	if !c.granted() {
		s := c.outstanding()
		s.node.dequeue(s)
		t.waiters--
	}
	var left []*node
	for i := range c.parts() {
		p := c.at(i)
		for j := range p.slots {
			switch n := p.slots[j].node; {
			case n == nil:
			case c.grown == nil:
				woken = t.handOn(n, woken)
			default:
				left = append(left, n)
			}
		}
	}
	return t.handAllOn(left, woken)
}

// handOn grants from the head of the queue whatever is compatible with the
// holders and with those that still wait ahead. It looks no further than the
// last waiter that could be granted by its mode; so where only S and X meet it
// looks at one waiter more than it grants.
func (t *Table) handOn(n *node, woken []txnid.ID) []txnid.ID {
	if n.queue.head == nil {
		if n.holders.head == nil {
			delete(t.nodes, n.key)
		}
		return woken
	}
	left, ahead := n.waiting, uint8(0)
	for s := n.queue.head; s != nil && (s.converts || grantable(left.present, n.holding.present, ahead)); {
		next := s.next
		left.remove(s.mode)
		if s.mode.waitsFor(n.held(s), ahead) {
			ahead |= s.mode.bit()
		} else {
			n.dequeue(s)
			t.waiters--
			n.grant(s)
			s.overtaken = 0
			c := s.claim
			c.last().next++
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
func (t *Table) Waiting(owner txnid.ID, limit int) (need Need, behind []txnid.ID, ok bool) {
	c := t.claims[owner]
	if c == nil || c.granted() {
		return Need{}, nil, false
	}
	for b := range c.blockers() {
		if len(behind) == limit {
			break
		}
		behind = append(behind, b.owner)
	}
	w := c.outstanding()
	return Need{Key: w.key, Mode: w.mode}, behind, true
}

// Contended reports whether somebody waits at a node that the owner holds at
// this service. It looks at the owner's nodes there, and at no other.
func (t *Table) Contended(owner txnid.ID, service string) (contended bool) {
	c := t.claims[owner]
	if c == nil {
		return false
	}
	c.eachAt(service, func(s *slot) {
		contended = contended || s.node.queue.head != nil && (c.granted() || s != c.outstanding())
	})
	return contended
}

// Holds reports whether an owner holds a node, in whatever mode.
func (t *Table) Holds(owner txnid.ID, key string) (holds bool) {
	c, at := t.claims[owner], t.nodes[key]
	if c == nil || at == nil {
		return false
	}
	c.eachAt(Service(key), func(s *slot) {
		holds = holds || s.node == at && (c.granted() || s != c.outstanding())
	})
	return holds
}

// Queue counts those that wait at a node.
func (t *Table) Queue(key string) (n int) {
	if at := t.nodes[key]; at != nil {
		n = int(at.waiting.total())
	}
	return n
}

// Elders counts those that wait at a node and are older than a claim of this age.
func (t *Table) Elders(key string, owner txnid.ID, atMs uint64) (n int) {
	if at := t.nodes[key]; at != nil {
		c := &claim{owner: owner, atMs: atMs}
		for s := at.queue.head; s != nil; s = s.next {
			if s.claim.elder(c) {
				n++
			}
		}
	}
	return n
}

// InUse reports whether somebody holds a node, or waits for it; of a service, any of its keys.
func (t *Table) InUse(key string) bool { return t.nodes[key] != nil }

// LongestQueue counts those that wait at the node where most do. It looks at every claim.
func (t *Table) LongestQueue() (n int) {
	if t.waiters == 0 {
		return 0
	}
	for _, c := range t.claims { // order does not matter: the greatest is the same
		if !c.granted() {
			n = max(n, int(c.outstanding().node.waiting.total()))
		}
	}
	return n
}

// Len counts the claims.
func (t *Table) Len() int { return len(t.claims) }

// Nodes counts the nodes that are held or waited for, ancestors included.
func (t *Table) Nodes() int { return len(t.nodes) }

// Waiters counts the claims that wait.
func (t *Table) Waiters() int { return t.waiters }
