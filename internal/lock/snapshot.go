package lock

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/txnid"
)

// Snapshot format, all numbers as shortest uvarints, strings as length and bytes:
//
//	claims, then each ascending by owner: owner (16 bytes), atMs, 1 if it grew by steps,
//	    needs not asked for yet, then each ascending: key, mode
//	nodes, then each ascending by key: key,
//	    holders, then each in order of grant: claim (index above), mode
//	    waiters, then each from the head: claim, mode, overtaken
//
// What a claim holds or waits for stands at the nodes only. Version 1 has no word on
// growth: there was none.

// Versions of the format. The caller keeps which one it wrote.
const (
	SnapshotVersion1 = 1
	SnapshotVersion  = 2
)

// ErrSnapshot is wrapped by every error of Restore.
var ErrSnapshot = errors.New("damaged lock table snapshot")

// AppendSnapshot appends the whole table to dst. Two tables have the same bytes
// exactly when they will do the same whatever is asked of them.
func (t *Table) AppendSnapshot(dst []byte) []byte {
	owners := t.sortedOwners()
	dst = binary.AppendUvarint(dst, uint64(len(owners)))
	for i, owner := range owners {
		c := t.claims[owner]
		c.index = int32(i)
		dst = append(dst, owner[:]...)
		dst = binary.AppendUvarint(dst, c.atMs)
		dst = append(dst, byte(bit(c.grown != nil)))
		var later []slot
		if !c.granted() {
			p := c.last()
			later = p.slots[p.next+1:]
		}
		dst = binary.AppendUvarint(dst, uint64(len(later)))
		for j := range later {
			dst = appendString(dst, later[j].key)
			dst = append(dst, byte(later[j].mode))
		}
	}
	keys := t.sortedKeys()
	dst = binary.AppendUvarint(dst, uint64(len(keys)))
	for _, key := range keys {
		n := t.nodes[key]
		dst = appendString(dst, key)
		dst = binary.AppendUvarint(dst, n.holding.total())
		for s := n.holders.head; s != nil; s = s.next {
			dst = binary.AppendUvarint(dst, uint64(s.claim.index))
			dst = append(dst, byte(s.mode))
		}
		dst = binary.AppendUvarint(dst, n.waiting.total())
		for s := n.queue.head; s != nil; s = s.next {
			dst = binary.AppendUvarint(dst, uint64(s.claim.index))
			dst = append(dst, byte(s.mode), s.overtaken)
		}
	}
	return dst
}

func (t *tally) total() (sum uint64) {
	for _, n := range t.count {
		sum += uint64(n)
	}
	return sum
}

func appendString(dst []byte, s string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

// Restore replaces the table by the snapshot at the start of src and returns what
// follows it. On an error the table is as it was. Whatever the bytes, it neither
// panics nor allocates more than a multiple of their length.
func (t *Table) Restore(version byte, src []byte) (rest []byte, err error) {
	r := reader{b: src, version: version}
	if version != SnapshotVersion1 && version != SnapshotVersion {
		return nil, fmt.Errorf("%w: version %d, this binary knows %d", ErrSnapshot, version, SnapshotVersion)
	}
	made := r.table()
	if r.err == nil {
		r.err = made.Check()
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w, %d bytes before its end: %w", ErrSnapshot, len(r.b), r.err)
	}
	*t = *made
	return r.b, nil
}

// draft collects a claim's slots until all nodes are read: those it holds, then
// the one it waits for, then those that come later.
type draft struct {
	claim   *claim
	grown   bool
	held    []slot
	waiting []slot
	later   []slot
}

// place says where a draft's slot stands, by node, in the order of the snapshot.
type place struct {
	draft *draft
	at    int // index into held, -1: the waiting one
}

type reader struct {
	b       []byte
	version byte
	err     error
}

func (r *reader) table() *Table {
	t := NewTable()
	drafts := make([]draft, 0, r.count(18)) // owner, atMs, count
	for range cap(drafts) {
		drafts = append(drafts, r.draft())
		if i := len(drafts) - 1; i > 0 && !drafts[i-1].claim.owner.Less(drafts[i].claim.owner) {
			r.fail("claims are out of order")
		}
		if r.err != nil {
			return t
		}
	}

	type queued struct {
		key              string
		holders, waiters []place
	}
	nodes := make([]queued, 0, r.count(6)) // key of at least 1 byte, two counts, a holder or waiter
	for range cap(nodes) {
		q := queued{key: r.string()}
		if i := len(nodes); i > 0 && nodes[i-1].key >= q.key {
			r.fail("nodes are out of order")
		}
		q.holders = make([]place, 0, r.count(2))
		for range cap(q.holders) {
			d, s := r.slot(drafts, q.key)
			if r.err != nil {
				return t
			}
			if s.mode == S && mutant.On("lock-restore-drops-shared") {
				continue
			}
			d.held = append(d.held, s)
			q.holders = append(q.holders, place{d, len(d.held) - 1})
		}
		q.waiters = make([]place, 0, r.count(3))
		for range cap(q.waiters) {
			d, s := r.slot(drafts, q.key)
			s.overtaken = r.byte()
			if r.err == nil && len(d.waiting) > 0 {
				r.fail("a claim waits twice")
			}
			if r.err != nil {
				return t
			}
			d.waiting = append(d.waiting, s)
			q.waiters = append(q.waiters, place{d, -1})
		}
		nodes = append(nodes, q)
	}
	if r.err != nil {
		return t
	}

	for i := range drafts {
		d := &drafts[i]
		if len(d.later) > 0 && len(d.waiting) == 0 {
			r.fail("a claim wants more and does not wait")
			return t
		}
		c := d.claim
		wanted := append(d.waiting, d.later...)
		if !d.grown {
			c.part = part{slots: append(d.held, wanted...), next: int32(len(d.held))}
		} else { // what it holds is as good as asked for first
			c.part = part{slots: d.held, next: int32(len(d.held))}
			p := &part{slots: wanted}
			if err := p.check(); err != nil {
				r.fail(err.Error())
				return t
			}
			c.grow(p) // before the nodes are held, and counted as they are
			t.grown++
		}
		for j := range c.parts() {
			for p, k := c.at(j), 0; k < len(p.slots); k++ {
				p.slots[k].claim = c
			}
		}
		if err := c.link(); err != nil {
			r.fail(err.Error())
			return t
		}
		t.claims[c.owner] = c
		t.waiters += len(d.waiting)
	}
	for _, q := range nodes {
		n := &node{key: q.key}
		t.nodes[q.key] = n
		for _, p := range q.holders {
			s := &p.draft.claim.slots[p.at]
			s.node = n
			n.hold(s)
		}
		for _, p := range q.waiters {
			c := p.draft.claim
			s := c.outstanding()
			s.converts = c.grown != nil && c.holds(s.key) != nil
			s.node = n
			if mutant.On("lock-restore-loses-order") {
				n.enqueue(nil, s)
				continue
			}
			n.enqueue(n.queue.tail, s)
		}
	}
	return t
}

func (r *reader) draft() draft {
	var owner txnid.ID
	if len(r.b) < len(owner) {
		r.fail("too short")
		return draft{claim: &claim{}}
	}
	r.b = r.b[copy(owner[:], r.b):]
	d := draft{claim: &claim{owner: owner, atMs: r.uint()}}
	if r.version > SnapshotVersion1 {
		grown := r.byte()
		if d.grown = grown == 1; grown > 1 {
			r.fail("bad flag")
		}
	}
	d.later = make([]slot, 0, r.count(3))
	for range cap(d.later) {
		d.later = append(d.later, slot{key: r.string(), mode: Mode(r.byte())})
	}
	return d
}

func (r *reader) slot(drafts []draft, key string) (*draft, slot) {
	i := r.uint()
	s := slot{key: key, mode: Mode(r.byte())}
	if r.err == nil && i >= uint64(len(drafts)) {
		r.fail("a node names a claim that is not there")
	}
	if r.err == nil && !s.mode.Valid() {
		r.fail("unknown mode")
	}
	if r.err != nil {
		return nil, slot{}
	}
	return &drafts[i], s
}

func (r *reader) fail(why string) {
	if r.err == nil {
		r.err = errors.New(why)
	}
}

func (r *reader) uint() uint64 {
	if r.err != nil {
		return 0
	}
	v, n := binary.Uvarint(r.b)
	// A longer spelling of a number would give one state two snapshots.
	if n <= 0 || n > 1 && r.b[n-1] == 0 {
		r.fail("bad number")
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads how many items follow, each of at least size bytes.
func (r *reader) count(size int) int {
	n := r.uint()
	if n > uint64(len(r.b)/size) {
		r.fail("too short")
	}
	if r.err != nil {
		return 0
	}
	return int(n)
}

func (r *reader) byte() byte {
	if r.err == nil && len(r.b) == 0 {
		r.fail("too short")
	}
	if r.err != nil {
		return 0
	}
	b := r.b[0]
	r.b = r.b[1:]
	return b
}

func (r *reader) string() string {
	n := r.count(1)
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}
