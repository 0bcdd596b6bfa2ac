package lock

import (
	"cmp"
	"container/heap"

	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/txnid"
)

// A look is where an elder may wait for a younger claim since a moment ago: a claim
// that began to wait, or, with a key, one that converted its lock of that node.
type look struct {
	claim *claim
	key   string
	past  *slot // the holders up to this one have been looked at
}

// looks is a heap: conversions first, then the eldest. Why, see doc.go.
type looks []look

func (l looks) Len() int { return len(l) }

func (l looks) Less(i, j int) bool {
	a, b := &l[i], &l[j]
	if (a.key == "") != (b.key == "") {
		return b.key == ""
	}
	if a.claim != b.claim {
		return a.claim.elder(b.claim)
	}
	return cmp.Less(a.key, b.key)
}

func (l looks) Swap(i, j int) { l[i], l[j] = l[j], l[i] }
func (l *looks) Push(x any)   { *l = append(*l, x.(look)) }

func (l *looks) Pop() any {
	last := len(*l) - 1
	x := (*l)[last]
	(*l)[last] = look{}
	*l = (*l)[:last]
	return x
}

// add and done spare the usual only look the heap's allocations.
func (l *looks) add(x look) {
	if len(*l) == 0 {
		*l = append(*l, x)
		return
	}
	heap.Push(l, x)
}

func (l *looks) done() {
	if len(*l) == 1 {
		(*l)[0] = look{}
		*l = (*l)[:0]
		return
	}
	heap.Pop(l)
}

// WoundWait turns the policy on (Rosenkrantz, Stearns, Lewis: System level concurrency
// control, 1978): an elder passes every younger waiter, and makes a younger holder give
// way; the younger waits for the elder. The caller replicates the switch, never turns it
// off, and sets it again after Restore. Who waits by then is looked at, too.
func (t *Table) WoundWait() {
	if t.wound {
		return
	}
	t.wound = true
	for _, owner := range t.sortedOwners() {
		if c := t.claims[owner]; !c.granted() {
			t.looks.add(look{claim: c})
			c.outstanding().node.noteDisorder()
		}
	}
}

// noteDisorder marks a node whose queue was formed without wound-wait, if a younger
// waiter that had been passed often enough stands ahead of an elder there.
func (n *node) noteDisorder() {
	for s := n.queue.head; s != nil && s.next != nil; s = s.next {
		n.disorder = n.disorder || !s.converts && s.next.claim.elder(s.claim)
	}
}

// NextWound returns a wait of an elder behind a younger claim that may give way as the
// caller says, or false if there is none left. Ask after NextCycle has returned nil, and
// make the younger one give way (Restart, Abandon and abort, or say no of it from then
// on), until it returns false.
//
// Such a wait appears only where a claim begins to wait, or converts a lock at a node
// where elders wait. Whoever is granted something from a queue stood behind no elder
// that it is in conflict with.
func (t *Table) NextWound(mayGiveWay func(owner txnid.ID) bool) (Wait, bool) {
	for len(t.looks) > 0 {
		l := &t.looks[0]
		c := l.claim
		if t.claims[c.owner] == c && !mutant.On("lock-no-wound") {
			w, found := Wait{}, false
			if l.key == "" {
				w, found = t.youngerInTheWay(l, mayGiveWay)
			} else if n := t.nodes[l.key]; n != nil && mayGiveWay(c.owner) {
				w, found = n.elderBehind(c)
			}
			if found {
				return w, true
			}
		}
		t.looks.done()
	}
	return Wait{}, false
}

// youngerInTheWay: the holders that a waiting claim waits for, and conversions, which
// stand ahead of it whatever their age. All others ahead are its elders, unless the
// queue is older than the policy.
func (t *Table) youngerInTheWay(l *look, mayGiveWay func(owner txnid.ID) bool) (Wait, bool) {
	c := l.claim
	if c.granted() {
		return Wait{}, false
	}
	w := c.outstanding()
	wait := Wait{Owner: c.owner, Key: w.key, Mode: w.mode}
	h := w.node.holders.head
	if w.mode.conflicts()&w.node.held(w) == 0 {
		h = nil
	} else if p := l.past; p != nil && p.node == w.node && t.claims[p.claim.owner] == p.claim {
		h = p.next
	}
	for ; h != nil; h = h.next {
		if c.elder(h.claim) && !Compatible(w.mode, h.mode) && mayGiveWay(h.claim.owner) {
			l.past, wait.For = h.prev, h.claim.owner
			return wait, true
		}
	}
	for q := w.node.queue.head; q != w && (q.converts || w.node.disorder); q = q.next {
		if c.elder(q.claim) && !mutual(w.mode, q.mode) && mayGiveWay(q.claim.owner) {
			wait.For = q.claim.owner
			return wait, true
		}
	}
	return Wait{}, false
}

// elderBehind: an elder that waits for what the claim holds at the node, or stands
// behind its conversion there.
func (n *node) elderBehind(c *claim) (Wait, bool) {
	held := c.holds(n.key)
	var waits *slot
	if !c.granted() && c.outstanding().node == n {
		waits = c.outstanding()
	}
	ahead := true
	for q := n.queue.head; q != nil && (q.converts || n.disorder || q.claim.elder(c)); q = q.next {
		if q == waits {
			ahead = false
			continue
		}
		if !q.claim.elder(c) {
			continue
		}
		if held != nil && !Compatible(q.mode, held.mode) || waits != nil && !ahead && !mutual(q.mode, waits.mode) {
			return Wait{Owner: q.claim.owner, Key: n.key, Mode: q.mode, For: c.owner}, true
		}
	}
	return Wait{}, false
}

// Blocks reports whether the younger of a wait holds what the elder waits for.
func (t *Table) Blocks(w Wait) bool {
	elder, younger := t.claims[w.Owner], t.claims[w.For]
	if elder == nil || younger == nil || elder.granted() || elder.outstanding().key != w.Key {
		return false
	}
	h := younger.holds(w.Key)
	return h != nil && !Compatible(w.Mode, h.mode)
}

// WoundOf tells one elder that waits for the owner at a node, if there is one: the
// first by node and then by place.
func (t *Table) WoundOf(owner txnid.ID) (Wait, bool) {
	c := t.claims[owner]
	if c == nil {
		return Wait{}, false
	}
	for i := range c.parts() {
		p := c.at(i)
		for j := range p.slots {
			if n := p.slots[j].node; n != nil {
				if w, found := n.elderBehind(c); found {
					return w, true
				}
			}
		}
	}
	return Wait{}, false
}
