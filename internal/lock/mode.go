package lock

import "github.com/assent-tx/assent/internal/mutant"

// Mode is how a node is locked (Gray, Lorie, Putzolu, Traiger: Granularity of
// Locks, 1976). Its numbers are part of the log format: they never change.
type Mode uint8

// The modes. IS and IX announce S and X further down; SIX reads a whole subtree
// and writes parts of it; U reads now and will write: it stands beside the readers
// that came before it, keeps others from reading or updating, and so converts to X
// without a deadlock between two of its kind (Gray and Reuter, Transaction
// Processing, 1993, 7.8.3).
const (
	IS Mode = iota
	IX
	S
	SIX
	X
	U

	modes = iota
)

// Valid reports whether the mode is one of the above.
func (m Mode) Valid() bool { return m < modes }

// String is the mode's usual name.
func (m Mode) String() string {
	if m >= modes {
		return "invalid"
	}
	return [modes]string{"IS", "IX", "S", "SIX", "X", "U"}[m]
}

// ParseMode is the mode that String names, and false if there is none.
func ParseMode(name string) (Mode, bool) {
	for m := range Mode(modes) {
		if m.String() == name {
			return m, true
		}
	}
	return 0, false
}

// bit is the mode as a set of one; sets of modes are or-ed bits.
func (m Mode) bit() uint8 { return 1 << m }

var conflictsOf = [modes]uint8{
	IS:  1 << X,
	IX:  1<<S | 1<<SIX | 1<<X | 1<<U,
	S:   1<<IX | 1<<SIX | 1<<X | 1<<U,
	SIX: 1<<IX | 1<<S | 1<<SIX | 1<<X | 1<<U,
	X:   1<<IS | 1<<IX | 1<<S | 1<<SIX | 1<<X | 1<<U,
	U:   1<<IX | 1<<SIX | 1<<X | 1<<U,
}

// conflicts is the set of modes held by others that a request for m must wait for.
func (m Mode) conflicts() uint8 {
	switch {
	case mutant.On("lock-compat-s-x") && (m == S || m == X):
		return conflictsOf[m] &^ (S.bit() | X.bit())
	case mutant.On("lock-compat-u-u") && m == U:
		return conflictsOf[m] &^ U.bit()
	}
	return conflictsOf[m]
}

// Compatible reports whether a request for mode a is granted beside a holder in mode
// b. It is the same both ways but for S and U: readers go on beside an update that
// begins, and a reader waits for one.
func Compatible(a, b Mode) bool { return a.conflicts()&b.bit() == 0 }

// waitsFor reports whether a request for m must wait: for what others hold, or for
// those who wait ahead, if either would make the other wait.
func (m Mode) waitsFor(held, ahead uint8) bool {
	return m.conflicts()&held|m.yields()&ahead != 0
}

// yields is the set of modes that m waits behind: an update also lets readers ahead
// go first, since they would have to wait for it.
func (m Mode) yields() uint8 {
	if m == U {
		return m.conflicts() | S.bit()
	}
	return m.conflicts()
}

// mutual reports whether neither of two requests makes the other wait.
func mutual(a, b Mode) bool { return a.yields()&b.bit() == 0 }

var join = [modes][modes]Mode{
	IS:  {IS, IX, S, SIX, X, U},
	IX:  {IX, IX, SIX, SIX, X, SIX},
	S:   {S, SIX, S, SIX, X, U},
	SIX: {SIX, SIX, SIX, SIX, X, SIX},
	X:   {X, X, X, X, X, X},
	U:   {U, SIX, U, SIX, X, U},
}

// Join is the least mode that grants what a and b grant together. SIX excludes other
// updates as U does, and so stands for U with IX.
func Join(a, b Mode) Mode { return join[a][b] }

// intention is the mode that every ancestor of a node locked in mode m needs.
func (m Mode) intention() Mode {
	if m == IS || m == S {
		return IS
	}
	return IX
}

// below is what of m is still needed on a node when some ancestor is held in a
// mode that grants, on everything below it, reading (S, U, SIX) or everything (X).
func (m Mode) below(cover Mode) (rest Mode, needed bool) {
	switch {
	case cover == X:
		return 0, false
	case cover != S && cover != SIX && cover != U:
		return m, true
	case m == IS || m == S:
		return 0, false
	case m == SIX:
		return IX, true
	}
	return m, true
}
