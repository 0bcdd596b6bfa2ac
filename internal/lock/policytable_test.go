package lock

import (
	"cmp"
	"slices"

	"github.com/assent-tx/assent/internal/txnid"
)

// A policy says who is served first and who gives way.
type policy int

const (
	eldestFirst policy = iota // the table's without wound-wait: elders pass, at most 8 times; the youngest of a cycle gives way
	fifo                      // in order of arrival; the youngest of a cycle gives way
	woundWait                 // the table's: elders pass; the youngest of a cycle gives way, and whoever keeps an elder waiting
)

// manager is a lock table for the simulation; keys are services, so that no ancestors
// take part.
type manager interface {
	ask(owner txnid.ID, at uint64, set []Need) (granted bool)
	leave(owner txnid.ID) (woken []txnid.ID)
	giveUp(owner txnid.ID) (woken []txnid.ID)   // it rolls back: waits no more, holds until it leaves
	seal(owner txnid.ID)                        // it is prepared, and cannot give way
	loser() (owner txnid.ID, needless, ok bool) // needless: it stood in no cycle
}

// realTable is the table that is used.
type realTable struct {
	*Table
	firm map[txnid.ID]bool // they cannot give way
}

func newReal(wound bool) realTable {
	r := realTable{NewTable(), map[txnid.ID]bool{}}
	if wound {
		r.WoundWait()
	}
	return r
}

func (r realTable) ask(owner txnid.ID, at uint64, set []Need) bool { return r.Extend(owner, at, set) }
func (r realTable) seal(owner txnid.ID)                            { r.firm[owner] = true }

func (r realTable) leave(owner txnid.ID) []txnid.ID {
	delete(r.firm, owner)
	return r.Drop(owner, nil)
}

func (r realTable) giveUp(owner txnid.ID) []txnid.ID {
	r.firm[owner] = true
	return r.Abandon(owner, nil)
}

func (r realTable) loser() (owner txnid.ID, needless, ok bool) {
	if cycle := r.NextCycle(); cycle != nil {
		return r.Victim(cycle), false, true
	}
	w, ok := r.NextWound(func(owner txnid.ID) bool { return !r.firm[owner] })
	return w.For, true, ok
}

// plain is a table without cunning, with a choice of policies.
type plain struct {
	policy  policy
	nodes   map[string]*plainNode
	claims  map[txnid.ID]*plainClaim
	blocked []*plainClaim
	looks   []plainLook
}

// plainLook is a claim that began to wait, or that converted its lock of a key.
type plainLook struct {
	c   *plainClaim
	key string
}

type plainNode struct{ holders, queue []*plainSlot }

type plainSlot struct {
	c         *plainClaim
	mode      Mode
	converts  bool
	overtaken int
}

type plainClaim struct {
	owner txnid.ID
	at    uint64
	todo  []Need
	held  map[string]Mode
	wants *plainSlot // waits at todo[0]
	firm  bool       // it is prepared, or rolls back: it cannot give way
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
		if converts {
			t.looks = append(t.looks, plainLook{c, need.Key})
		}
		if len(n.inTheWay(s)) > 0 {
			c.wants = s
			t.blocked = append(t.blocked, c)
			t.looks = append(t.looks, plainLook{c, ""})
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
	c.firm = true
	if c.wants == nil {
		return nil
	}
	key := c.todo[0].Key
	t.nodes[key].remove(c, false)
	c.wants, c.todo = nil, nil
	return t.handOn(key)
}

func (t *plain) seal(owner txnid.ID) { t.claims[owner].firm = true }

func (t *plain) loser() (owner txnid.ID, needless, ok bool) {
	for ; len(t.blocked) > 0; t.blocked = t.blocked[:len(t.blocked)-1] {
		c := t.blocked[len(t.blocked)-1]
		if t.claims[c.owner] != c || c.wants == nil {
			continue
		}
		if cycle := t.cycle(c); cycle != nil {
			return slices.MaxFunc(cycle, byAge).owner, false, true
		}
	}
	if t.policy == woundWait {
		owner, ok = t.wounded()
	}
	return owner, true, ok
}

func byAge(a, b *plainClaim) int {
	return cmp.Or(cmp.Compare(a.at, b.at), compareID(a.owner, b.owner))
}

// wounded is somebody who keeps an elder waiting. Conversions are looked at first, and
// then the eldest.
func (t *plain) wounded() (owner txnid.ID, ok bool) {
	for len(t.looks) > 0 {
		i := 0
		for j, l := range t.looks {
			if first := t.looks[i]; (l.key == "") != (first.key == "") {
				if l.key != "" {
					i = j
				}
			} else if cmp.Or(byAge(l.c, first.c), cmp.Compare(l.key, first.key)) < 0 {
				i = j
			}
		}
		if owner, ok = t.wound(t.looks[i]); ok {
			return owner, true
		}
		t.looks = slices.Delete(t.looks, i, i+1)
	}
	return owner, false
}

func (t *plain) wound(l plainLook) (owner txnid.ID, ok bool) {
	switch {
	case t.claims[l.c.owner] != l.c:
	case l.key != "":
		for _, s := range t.nodes[l.key].queue {
			if s.c.elder(l.c) && !l.c.firm && slices.Contains(t.nodes[l.key].inTheWay(s), l.c) {
				return l.c.owner, true
			}
		}
	case l.c.wants != nil:
		for _, b := range t.nodes[l.c.todo[0].Key].inTheWay(l.c.wants) {
			if l.c.elder(b) && !b.firm {
				return b.owner, true
			}
		}
	}
	return owner, false
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
