package lock

import (
	"cmp"
	"slices"

	"github.com/assent-tx/assent/internal/txnid"
)

// A policy says who is served first and who gives way.
type policy int

const (
	eldestFirst policy = iota // the table's: elders pass, at most 8 times; the youngest of a cycle gives way
	fifo                      // in order of arrival; the youngest of a cycle gives way
	woundWait                 // elders pass, and whoever keeps an elder waiting gives way
)

// manager is a lock table for the simulation; keys are services, so that no ancestors
// take part.
type manager interface {
	ask(owner txnid.ID, at uint64, set []Need) (granted bool)
	leave(owner txnid.ID) (woken []txnid.ID)
	giveUp(owner txnid.ID) (woken []txnid.ID) // it rolls back: waits no more, holds until it leaves
	seal(owner txnid.ID)                      // it is prepared, and cannot give way
	loser() (owner txnid.ID, needless, ok bool)
}

// real is the table that is used.
type real struct{ *Table }

func (r real) ask(owner txnid.ID, at uint64, set []Need) bool { return r.Extend(owner, at, set) }
func (r real) leave(owner txnid.ID) []txnid.ID                { return r.Drop(owner, nil) }
func (r real) giveUp(owner txnid.ID) []txnid.ID               { return r.Abandon(owner, nil) }
func (r real) seal(txnid.ID)                                  {}

func (r real) loser() (owner txnid.ID, needless, ok bool) {
	cycle := r.NextCycle()
	if cycle == nil {
		return owner, false, false
	}
	return r.Victim(cycle), false, true
}

// plain is a table without cunning, with a choice of policies.
type plain struct {
	policy  policy
	nodes   map[string]*plainNode
	claims  map[txnid.ID]*plainClaim
	blocked []*plainClaim
	touched []string
}

type plainNode struct{ holders, queue []*plainSlot }

type plainSlot struct {
	c         *plainClaim
	mode      Mode
	converts  bool
	overtaken int
}

type plainClaim struct {
	owner  txnid.ID
	at     uint64
	todo   []Need
	held   map[string]Mode
	wants  *plainSlot // waits at todo[0]
	sealed bool
	doomed bool
}

func newPlain(p policy) *plain {
	return &plain{policy: p, nodes: map[string]*plainNode{}, claims: map[txnid.ID]*plainClaim{}}
}

func (c *plainClaim) elder(than *plainClaim) bool {
	return c.at < than.at || c.at == than.at && c.owner.Less(than.owner)
}

func (t *plain) ask(owner txnid.ID, at uint64, set []Need) bool {
	c := t.claims[owner]
	if c == nil {
		c = &plainClaim{owner: owner, at: at, held: map[string]Mode{}}
		t.claims[owner] = c
	}
	c.todo = set
	return t.advance(c)
}

func (t *plain) advance(c *plainClaim) bool {
	for ; len(c.todo) > 0; c.todo = c.todo[1:] {
		need := c.todo[0]
		own, converts := c.held[need.Key]
		if converts {
			if need.Mode = Join(own, need.Mode); need.Mode == own {
				continue
			}
		}
		n := t.nodes[need.Key]
		if n == nil {
			n = &plainNode{}
			t.nodes[need.Key] = n
		}
		s := &plainSlot{c: c, mode: need.Mode, converts: converts}
		at := len(n.queue)
		for at > 0 && t.passes(s, n.queue[at-1]) {
			at--
			if !s.converts && !mutual(s.mode, n.queue[at].mode) {
				n.queue[at].overtaken++
			}
		}
		n.queue = slices.Insert(n.queue, at, s)
		if len(n.inTheWay(s)) > 0 {
			c.wants = s
			t.blocked = append(t.blocked, c)
			t.touched = append(t.touched, need.Key)
			return false
		}
		n.grant(s, need.Key)
	}
	return true
}

func (t *plain) passes(s, w *plainSlot) bool {
	switch {
	case s.converts && w.converts:
		return s.c.elder(w.c)
	case s.converts != w.converts:
		return s.converts
	case t.policy == fifo || !s.c.elder(w.c):
		return false
	}
	return t.policy == woundWait || w.overtaken < maxOvertakes || mutual(s.mode, w.mode)
}

// inTheWay are those that a slot of the queue waits for: holders, then from the nearest
// ahead to the head.
func (n *plainNode) inTheWay(s *plainSlot) (list []*plainClaim) {
	for _, h := range n.holders {
		if h.c != s.c && !Compatible(s.mode, h.mode) {
			list = append(list, h.c)
		}
	}
	for i := slices.Index(n.queue, s) - 1; i >= 0; i-- {
		if !mutual(s.mode, n.queue[i].mode) {
			list = append(list, n.queue[i].c)
		}
	}
	return list
}

func (n *plainNode) remove(c *plainClaim, holds bool) {
	out := func(s *plainSlot) bool { return s.c == c }
	n.queue = slices.DeleteFunc(n.queue, out)
	if holds {
		n.holders = slices.DeleteFunc(n.holders, out)
	}
}

func (n *plainNode) grant(s *plainSlot, key string) {
	n.remove(s.c, true)
	n.holders = append(n.holders, s)
	s.converts = false
	s.c.held[key] = s.mode
}

func (t *plain) handOn(key string) (woken []txnid.ID) {
	n := t.nodes[key]
	for i := 0; i < len(n.queue); {
		s := n.queue[i]
		if len(n.inTheWay(s)) > 0 {
			i++
			continue
		}
		n.grant(s, key)
		s.c.wants, s.c.todo = nil, s.c.todo[1:]
		if t.advance(s.c) {
			woken = append(woken, s.c.owner)
		}
	}
	t.touched = append(t.touched, key)
	return woken
}

func (t *plain) leave(owner txnid.ID) (woken []txnid.ID) {
	c := t.claims[owner]
	delete(t.claims, owner)
	var keys []string
	for key := range c.held { // sorted below
		keys = append(keys, key)
	}
	if c.wants != nil {
		keys = append(keys, c.todo[0].Key)
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	for _, key := range keys {
		t.nodes[key].remove(c, true)
	}
	c.wants = nil
	for _, key := range keys {
		woken = append(woken, t.handOn(key)...)
	}
	return woken
}

func (t *plain) giveUp(owner txnid.ID) []txnid.ID {
	c := t.claims[owner]
	c.doomed = true
	if c.wants == nil {
		return nil
	}
	key := c.todo[0].Key
	t.nodes[key].remove(c, false)
	c.wants, c.todo = nil, nil
	return t.handOn(key)
}

func (t *plain) seal(owner txnid.ID) { t.claims[owner].sealed = true }

func (t *plain) loser() (owner txnid.ID, needless, ok bool) {
	if t.policy == woundWait {
		return t.wounded()
	}
	for ; len(t.blocked) > 0; t.blocked = t.blocked[:len(t.blocked)-1] {
		c := t.blocked[len(t.blocked)-1]
		if t.claims[c.owner] != c || c.wants == nil {
			continue
		}
		if cycle := t.cycle(c); cycle != nil {
			return slices.MaxFunc(cycle, byAge).owner, false, true
		}
	}
	return owner, false, false
}

func byAge(a, b *plainClaim) int {
	return cmp.Or(cmp.Compare(a.at, b.at), compareID(a.owner, b.owner))
}

// wounded is somebody who keeps an elder waiting; it was needless if it waits in no cycle.
func (t *plain) wounded() (owner txnid.ID, needless, ok bool) {
	t.blocked = nil
	for ; len(t.touched) > 0; t.touched = t.touched[1:] {
		n := t.nodes[t.touched[0]]
		for _, s := range n.queue {
			for _, b := range n.inTheWay(s) {
				if s.c.elder(b) && !b.sealed && !b.doomed {
					return b.owner, b.wants == nil || t.cycle(b) == nil, true
				}
			}
		}
	}
	return owner, false, false
}

// cycle is a shortest one through a claim that waits.
func (t *plain) cycle(from *plainClaim) []*plainClaim {
	cameBy := map[*plainClaim]*plainClaim{from: nil}
	for next := []*plainClaim{from}; len(next) > 0; next = next[1:] {
		c := next[0]
		for _, b := range t.nodes[c.todo[0].Key].inTheWay(c.wants) {
			if b == from {
				var cycle []*plainClaim
				for ; c != nil; c = cameBy[c] {
					cycle = append(cycle, c)
				}
				return cycle
			}
			if _, seen := cameBy[b]; !seen && b.wants != nil {
				cameBy[b] = c
				next = append(next, b)
			}
		}
	}
	return nil
}
