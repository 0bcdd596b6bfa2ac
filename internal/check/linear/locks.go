package linear

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"
)

// Mode of a lock.
type Mode uint8

// Modes. Readers go on beside an update that begins; a reader that comes later waits
// for it. Two updates exclude each other.
const (
	Shared Mode = 1 << iota
	Update
	Exclusive
)

func (m Mode) String() string {
	var all []string
	for i, name := range []string{"shared", "update", "exclusive"} {
		if m&(1<<i) != 0 {
			all = append(all, name)
		}
	}
	return strings.Join(all, "+")
}

// covers reports whether a holder of m needs nothing more for n.
func (m Mode) covers(n Mode) bool { return m >= n }

// beside reports whether m is granted beside another's n.
func (m Mode) beside(n Mode) bool { return m < Exclusive && n == Shared }

// Locks records what clients were told of locks. It is safe for concurrent use. The zero
// value is ready.
type Locks struct {
	clock
	grants []grant
	ends   map[string]*ending // by transaction
}

type grant struct {
	id, key     string
	mode        Mode
	call, reply int64
}

type ending struct {
	call, reply int64
	committed   bool
}

// Acquire records that a transaction asks for a key, before it is sent; granted records
// that it was told to have it. What was not told is as if it had never been asked.
func (l *Locks) Acquire(id, key string, m Mode) (granted func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	at := len(l.grants)
	l.grants = append(l.grants, grant{id, key, m, l.now, never})
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.now++
		l.grants[at].reply = l.now
	}
}

// End records that a transaction is asked to commit or to roll back, before it is sent.
// Until then one that commits has its keys; one that aborts may do so by itself, at any
// time after it was last granted a key.
func (l *Locks) End(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	e := l.ending(id)
	e.call = min(e.call, l.now)
}

// Ended records that a transaction was told to have ended.
func (l *Locks) Ended(id string, committed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	e := l.ending(id)
	e.committed, e.reply = committed, min(e.reply, l.now)
}

func (l *Locks) ending(id string) *ending {
	if l.ends == nil {
		l.ends = map[string]*ending{}
	}
	e := l.ends[id]
	if e == nil {
		e = &ending{call: never, reply: never}
		l.ends[id] = e
	}
	return e
}

// Granted is the number of locks that clients were told to have.
func (l *Locks) Granted() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range l.grants {
		if g.reply != never {
			n++
		}
	}
	return n
}

// Check returns the keys that two transactions had at once which exclude each other.
func (l *Locks) Check() []Problem {
	l.mu.Lock()
	defer l.mu.Unlock()
	granted := map[string][]grant{} // to each transaction
	for _, g := range l.grants {
		if g.reply != never {
			granted[g.id] = append(granted[g.id], g)
		}
	}
	var operations []operation
	for _, id := range slices.Sorted(maps.Keys(granted)) {
		from, to := int64(0), int64(never) // between these it may have ended
		for _, g := range granted[id] {
			from = max(from, g.call)
		}
		if e := l.ends[id]; e != nil {
			to = e.reply
			if e.committed {
				from = e.call
			}
		}
		operations = append(operations, uses(granted[id], from, to)...)
	}
	return search(operations, lockModel)
}

// uses of keys by a transaction that ended between two times.
func uses(granted []grant, from, to int64) (operations []operation) {
	held := map[string]bool{}
	for _, g := range granted {
		if g.call >= from && !held[g.key] {
			// It may have ended as soon as it had this: all that is known is one moment.
			operations = append(operations, operation{g.key, use{g.id, g.mode, once}, nil, g.call, g.reply})
			continue
		}
		operations = append(operations, operation{g.key, use{g.id, g.mode, gets}, nil, g.call, g.reply})
		held[g.key] = true
	}
	for _, key := range slices.Sorted(maps.Keys(held)) {
		operations = append(operations, operation{key, use{granted[0].id, 0, ends}, nil, from, to})
	}
	return operations
}

// use of a key.
type use struct {
	id   string
	mode Mode
	what usage
}

type usage uint8

const (
	gets usage = iota
	once       // gets it, and ends
	ends
)

// held is who has a key, and how.
type held map[string]Mode

var lockModel = porcupine.Model{
	Init: func() any { return held{} },
	Step: func(s, in, _ any) (bool, any) {
		h, u := s.(held), in.(use) //nolint:forcetypeassert // nothing else is put in
		return h.apply(u)
	},
	Equal: func(a, b any) bool { return maps.Equal(a.(held), b.(held)) }, //nolint:forcetypeassert // nothing else is put in
	DescribeOperation: func(in, _ any) string {
		u := in.(use) //nolint:forcetypeassert // nothing else is put in
		switch u.what {
		case gets:
			return fmt.Sprintf("%s gets it, %s", u.id, u.mode)
		case once:
			return fmt.Sprintf("%s has it for a moment at least, %s", u.id, u.mode)
		default:
			return u.id + " ends"
		}
	},
}

// apply returns the next state; states are never changed in place.
func (h held) apply(u use) (bool, held) {
	mine := h[u.id]
	if u.what != ends && mine.covers(u.mode) {
		return true, h
	}
	if u.what == ends {
		next := maps.Clone(h)
		delete(next, u.id)
		return true, next
	}
	for id, m := range h { // order does not matter: all must agree
		if id != u.id && !u.mode.beside(m) {
			return false, h
		}
	}
	if u.what == once {
		return true, h
	}
	next := maps.Clone(h)
	next[u.id] = u.mode
	return true, next
}
