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

// End records that a transaction is asked to commit or to roll back, before it is sent;
// ended records what was told. Until commit is asked one that commits has its keys; one
// that aborts may do so by itself, at any time after it was last granted a key.
func (l *Locks) End(id string) (ended func(committed bool)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	if l.ends == nil {
		l.ends = map[string]*ending{}
	}
	e := l.ends[id]
	if e == nil {
		e = &ending{call: l.now, reply: never}
		l.ends[id] = e
	}
	return func(committed bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.now++
		e.committed, e.reply = committed, min(e.reply, l.now)
	}
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
	var operations []operation
	alive := map[string]int64{}   // the last moment at which it had not ended
	keys := map[string][]string{} // of each transaction
	for _, g := range l.grants {
		if g.reply == never {
			continue
		}
		operations = append(operations, operation{g.key, use{g.id, g.mode}, true, g.call, g.reply})
		alive[g.id] = max(alive[g.id], g.call)
		if !slices.Contains(keys[g.id], g.key) {
			keys[g.id] = append(keys[g.id], g.key)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		release := operation{input: use{id: id}, output: false, call: alive[id], reply: never}
		if e := l.ends[id]; e != nil {
			release.output, release.reply = e.reply != never, e.reply
			if e.committed {
				release.call = e.call
			}
		}
		for _, key := range keys[id] {
			release.object = key
			operations = append(operations, release)
		}
	}
	return search(operations, lockModel)
}

// use of a key; mode 0: released.
type use struct {
	id   string
	mode Mode
}

// held is who has a key, and how.
type held map[string]Mode

var lockModel = porcupine.Model{
	Init: func() any { return held{} },
	Step: func(s, in, _ any) (bool, any) {
		h, u := s.(held), in.(use) //nolint:forcetypeassert // nothing else is put in
		return h.apply(u)
	},
	Equal: func(a, b any) bool { return maps.Equal(a.(held), b.(held)) }, //nolint:forcetypeassert // nothing else is put in
	DescribeOperation: func(in, out any) string {
		u := in.(use) //nolint:forcetypeassert // nothing else is put in
		switch {
		case u.mode != 0:
			return fmt.Sprintf("%s gets it, %s", u.id, u.mode)
		case out == true:
			return u.id + " ends"
		default:
			return u.id + " may end"
		}
	},
}

// apply returns the next state; states are never changed in place.
func (h held) apply(u use) (bool, held) {
	mine := h[u.id]
	if u.mode != 0 && mine.covers(u.mode) {
		return true, h
	}
	next := maps.Clone(h)
	if u.mode == 0 {
		delete(next, u.id)
		return true, next
	}
	for id, m := range h { // order does not matter: all must agree
		if id != u.id && !u.mode.beside(m) {
			return false, h
		}
	}
	next[u.id] = u.mode
	return true, next
}
