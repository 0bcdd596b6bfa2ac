package lock

import "github.com/assent-tx/assent/internal/mutant"

// Mode is how a node is locked (Gray, Lorie, Putzolu, Traiger: Granularity of
// Locks, 1976). Its numbers are part of the log format: they never change.
type Mode uint8

// The modes. IS and IX announce S and X further down; SIX reads a whole subtree
// and writes parts of it.
const (
	IS Mode = iota
	IX
	S
	SIX
	X

	modes = iota
)

// String is the mode's usual name.
func (m Mode) String() string {
	if m >= modes {
		return "invalid"
	}
	return [modes]string{"IS", "IX", "S", "SIX", "X"}[m]
}

// bit is the mode as a set of one; sets of modes are or-ed bits.
func (m Mode) bit() uint8 { return 1 << m }

var conflictsOf = [modes]uint8{
	IS:  1 << X,
	IX:  1<<S | 1<<SIX | 1<<X,
	S:   1<<IX | 1<<SIX | 1<<X,
	SIX: 1<<IX | 1<<S | 1<<SIX | 1<<X,
	X:   1<<IS | 1<<IX | 1<<S | 1<<SIX | 1<<X,
}

// conflicts is the set of modes that another owner must not hold beside m.
func (m Mode) conflicts() uint8 {
	if mutant.On("lock-compat-s-x") && (m == S || m == X) {
		return conflictsOf[m] &^ (S.bit() | X.bit())
	}
	return conflictsOf[m]
}

// Compatible reports whether two owners may hold a node in modes a and b.
func Compatible(a, b Mode) bool { return a.conflicts()&b.bit() == 0 }

var join = [modes][modes]Mode{
	IS:  {IS, IX, S, SIX, X},
	IX:  {IX, IX, SIX, SIX, X},
	S:   {S, SIX, S, SIX, X},
	SIX: {SIX, SIX, SIX, SIX, X},
	X:   {X, X, X, X, X},
}

// Join is the least mode that grants what a and b grant together.
func Join(a, b Mode) Mode { return join[a][b] }

// intention is the mode that every ancestor of a node locked in mode m needs.
func (m Mode) intention() Mode {
	if m == IS || m == S {
		return IS
	}
	return IX
}

// below is what of m is still needed on a node when some ancestor is held in a
// mode that grants, on everything below it, reading (S, SIX) or everything (X).
func (m Mode) below(cover Mode) (rest Mode, needed bool) {
	switch {
	case cover == X:
		return 0, false
	case cover != S && cover != SIX:
		return m, true
	case m == IS || m == S:
		return 0, false
	case m == SIX:
		return IX, true
	}
	return m, true
}
