package lock

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestModes(t *testing.T) {
	for a := range Mode(modes) {
		for b := range Mode(modes) {
			if Compatible(a, b) != together[a][b] {
				t.Errorf("Compatible(%s, %s) = %v", a, b, Compatible(a, b))
			}
			// A join admits exactly those that both admit, and is the least such mode.
			j := Join(a, b)
			for c := range Mode(modes) {
				if together[j][c] && !(together[a][c] && together[b][c]) {
					t.Errorf("Join(%s, %s) = %s admits %s", a, b, j, c)
				}
				if covers(c, a) && covers(c, b) && !covers(c, j) {
					t.Errorf("Join(%s, %s) = %s is more than %s, which is enough", a, b, j, c)
				}
			}
			if !covers(j, a) || !covers(j, b) {
				t.Errorf("Join(%s, %s) = %s", a, b, j)
			}
		}
	}
	if Join(S, IX) != SIX || X.String() != "X" || Mode(modes).String() != "invalid" {
		t.Error("S + IX, names")
	}
}

// covers: strong grants all that weak does; by the textbook, the modes in the
// order IS < IX < SIX < X and IS < S < U < SIX.
func covers(strong, weak Mode) bool {
	return strong == weak || strong == X || weak == IS || strong == SIX && (weak == IX || weak == S || weak == U) || strong == U && weak == S
}

func ancestors(key string) (up []string) {
	for i, c := range key {
		if c == '/' {
			up = append(up, key[:i])
		}
	}
	return up
}

// fault says what is wrong with a set for these needs, or "".
func fault(set, needs []Need) string {
	at := map[string]Mode{}
	for i, n := range set {
		if i > 0 && set[i-1].Key >= n.Key {
			return "order at " + n.Key
		}
		at[n.Key] = n.Mode
	}
	for _, n := range set {
		for _, up := range ancestors(n.Key) {
			m, ok := at[up]
			announce := IX
			if n.Mode == S || n.Mode == IS {
				announce = IS
			}
			if !ok || !covers(m, announce) {
				return n.Key + " is not announced at " + up
			}
		}
	}
	for _, n := range needs {
		have, some := at[n.Key]
		for _, up := range ancestors(n.Key) {
			switch m, ok := at[up]; {
			case ok && m == X:
				have, some = X, true
			case ok && (m == S || m == SIX) && !some:
				have, some = S, true
			case ok && (m == S || m == SIX) && have == IX:
				have = SIX
			case ok && (m == S || m == SIX) && have == IS:
				have = S
			}
		}
		if !some || !covers(have, n.Mode) {
			return "no " + n.Mode.String() + " on " + n.Key
		}
	}
	return ""
}

func drawNeeds(t *rapid.T, label string, modes ...Mode) []Need {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Need {
		segments := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "a-b", "a.b", "b"}), 1, 4).Draw(t, "segments")
		return Need{Key: strings.Join(segments, "/"), Mode: rapid.SampledFrom(modes).Draw(t, "mode")}
	}), 0, 6).Draw(t, label)
}

func TestFoldIsEnoughAndNoMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		needs := drawNeeds(t, "needs", IS, IX, S, SIX, X)
		given := slices.Clone(needs)
		set := Fold(needs)
		if !slices.Equal(needs, given) {
			t.Fatalf("Fold changed its argument")
		}
		if f := fault(set, needs); f != "" {
			t.Fatalf("Fold(%v) = %v: %s", needs, set, f)
		}
		if again := Fold(set); !slices.Equal(again, set) {
			t.Fatalf("folded twice: %v, once: %v", again, set)
		}
		for i := range set {
			if fault(slices.Delete(slices.Clone(set), i, i+1), needs) == "" {
				t.Fatalf("Fold(%v) = %v: %v could be left out", needs, set, set[i])
			}
			for m := range Mode(modes) {
				less := slices.Clone(set)
				less[i].Mode = m
				if m != set[i].Mode && covers(set[i].Mode, m) && fault(less, needs) == "" {
					t.Fatalf("Fold(%v) = %v: %s would do for %v", needs, set, m, set[i])
				}
			}
		}
		slices.Reverse(needs)
		if other := Fold(needs); !slices.Equal(other, set) {
			t.Fatalf("the order of the needs matters: %v, %v", other, set)
		}
	})
}

// What the whole scheme is for: two folded sets can be held together exactly
// when no declared key of one, read as a whole subtree, conflicts with one of
// the other.
func TestSetsConflictExactlyWhenTheirKeysDo(t *testing.T) {
	under := func(a, b string) bool { return a == b || strings.HasPrefix(a, b+"/") }
	rapid.Check(t, func(t *rapid.T) {
		one, two := drawNeeds(t, "one", S, X), drawNeeds(t, "two", S, X)
		want := true
		for _, a := range one {
			for _, b := range two {
				if (a.Mode == X || b.Mode == X) && (under(a.Key, b.Key) || under(b.Key, a.Key)) {
					want = false
				}
			}
		}
		got := true
		for _, a := range Fold(one) {
			for _, b := range Fold(two) {
				if a.Key == b.Key && !Compatible(a.Mode, b.Mode) {
					got = false
				}
			}
		}
		if got != want {
			t.Fatalf("%v and %v: together %v, want %v; folded %v and %v", one, two, got, want, Fold(one), Fold(two))
		}
	})
}
