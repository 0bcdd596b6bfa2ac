package linear

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// asked is a question in the notation of these tests: "begin 0-3 open" was asked at 0
// and answered at 3; "commit 5 nothing" never was.
func asked(t *testing.T, text string) []inquiry {
	t.Helper()
	var all []inquiry
	for part := range strings.SplitSeq(text, ";") {
		words := strings.Fields(part)
		var call, reply int64
		if n, _ := fmt.Sscanf(words[1], "%d-%d", &call, &reply); n == 1 {
			reply = never
		}
		q := slices.IndexFunc([]Question{Begin, Submit, Look, Rollback, Commit}, func(q Question) bool { return q.String() == words[0] })
		o := slices.IndexFunc([]Outcome{Nothing, NotFound, Open, Committed, Aborted}, func(o Outcome) bool { return o.String() == strings.Join(words[2:], " ") })
		if q < 0 || o < 0 || (reply == never) != (Outcome(o) == Nothing) {
			t.Fatalf("%q", part)
		}
		all = append(all, inquiry{"T", Question(q), Outcome(o), call, reply})
	}
	return all
}

// TestStatus: what can be told of a transaction, and what cannot.
func TestStatus(t *testing.T) {
	for text, ok := range map[string]bool{
		"begin 0-1 open; look 2-3 open; commit 4-5 committed; look 6-7 committed":    true,
		"begin 0-1 open; look 2-3 aborted; commit 4-5 aborted; rollback 6-7 aborted": true,  // a timeout
		"begin 0-1 open; commit 2-9 committed; rollback 3-8 committed":               true,  // too late
		"begin 0-1 open; commit 2-9 aborted; rollback 3-8 aborted":                   true,  // in time
		"begin 0-1 open; commit 2-9 committed; look 3-4 committed; look 5-6 open":    false, // and yet not
		"begin 0-1 open; commit 2-9 committed; look 3-4 open; look 5-6 committed":    true,
		"begin 0-1 open; commit 2-3 committed; look 4-5 aborted":                     false,
		"begin 0-1 open; commit 2-3 aborted; look 4-5 committed":                     false,
		"begin 0-1 open; commit 2-9 committed; rollback 3-8 aborted":                 false, // both won
		"begin 0-1 open; rollback 2-3 aborted; look 4-5 open":                        false, // told before it was so
		"begin 0-1 open; rollback 2-9 aborted; look 4-5 open; look 6-7 aborted":      true,
		"begin 0-1 open; rollback 2-9 aborted; look 4-5 aborted; look 6-7 open":      false,
		"begin 0-1 open; look 2-3 committed":                                         false, // nobody asked for it
		"begin 0-1 open; commit 2 nothing; look 3-4 open; look 5-6 committed":        true,
		"begin 0-1 open; look 3-4 committed; commit 5 nothing":                       false, // before it was asked for
		"begin 0 nothing; look 3-4 not found; look 5-6 open; look 7-8 open":          true,  // it came late
		"begin 0-1 open; look 2-3 not found":                                         false, // forgotten
		"look 0-1 not found; begin 2-3 open":                                         true,
		"rollback 0-1 aborted; begin 2-3 aborted":                                    true,
		"rollback 0-1 aborted; begin 2-3 open":                                       false, // it was said to never begin
		"rollback 0-1 aborted; look 2-3 not found":                                   false,
		"look 0-1 aborted; begin 2-3 aborted":                                        false, // nobody aborted it
		"begin 0 nothing; rollback 1 nothing; begin 2-3 aborted":                     true,
		"submit 0-1 committed; submit 2-3 committed; rollback 4-5 committed":         true,
		"submit 0-1 open; look 2-3 committed; submit 4-5 committed":                  true,
		"submit 0-9 committed; look 1-2 committed; look 3-4 aborted":                 false,
		"submit 0 nothing; rollback 1-2 aborted; submit 3-4 aborted":                 true,
		"submit 0 nothing; rollback 1-2 aborted; submit 3-4 committed":               false,
		"commit 0-1 not found; begin 2-3 open; commit 4-5 committed":                 true,
		"submit 0-9 aborted; look 1-2 open; look 3-4 open; rollback 5-8 aborted":     true,
		"begin 0-1 open; commit 2-9 not found":                                       false,
		"commit 0-9 not found; begin 1-2 open; look 3-4 committed":                   false, // it was not asked for
		"begin 0-1 open; commit 2-3 not found":                                       false,
	} {
		if problems := checkStatus(asked(t, text)); (len(problems) == 0) != ok {
			t.Errorf("%s: %v", text, problems)
		}
	}
}

// lockings is a history of one key: "A S 0-2" asked for it at 0 and was told at 2, "A end
// 3-4 committed" asked for its end.
func lockings(t *testing.T, text string) *Locks {
	t.Helper()
	modes := map[string]Mode{"S": Shared, "U": Update, "X": Exclusive}
	type moment struct {
		at int
		do func()
	}
	var moments []moment
	l := &Locks{}
	for part := range strings.SplitSeq(text, ";") {
		words := strings.Fields(part)
		call, reply := 0, -1
		if n, err := fmt.Sscanf(words[2], "%d-%d", &call, &reply); n == 0 {
			t.Fatalf("%q: %v", part, err)
		}
		var granted func()
		moments = append(moments, moment{call, func() {
			if words[1] == "end" {
				l.End(words[0])
				return
			}
			granted = l.Acquire(words[0], "k", modes[words[1]])
		}})
		if reply < 0 {
			continue
		}
		moments = append(moments, moment{reply, func() {
			if words[1] == "end" {
				l.Ended(words[0], words[3] == "committed")
				return
			}
			granted()
		}})
	}
	slices.SortStableFunc(moments, func(a, b moment) int { return a.at - b.at })
	for _, m := range moments {
		m.do()
	}
	return l
}

func TestLocks(t *testing.T) {
	for text, ok := range map[string]bool{
		"A X 0-1; A end 2-3 committed; B X 4-5; B end 6-7 committed": true,
		"A X 0-1; B X 2-9; A end 3-4 committed":                      true,
		"A X 0-1; B X 2-5; A end 6-7 committed":                      false,
		"A X 0-1; B S 2-5; A end 6-7 committed":                      false,
		"A S 0-1; B X 2-5; A end 6-7 committed":                      false,
		"A S 0-1; B S 2-5; A end 6-7 committed":                      true,
		"A S 0-1; B U 2-5; A end 6-7 committed":                      true,
		"A U 0-1; B S 2-5; A end 6-7 committed":                      false,
		"A U 0-1; B S 2-9; A end 3-4 committed":                      true,
		"A U 0-1; B U 2-5; A end 6-7 committed":                      false,
		"A S 0-1; B S 2-3; A X 4-5; B end 6-7 committed":             false, // an upgrade past a reader
		"A S 0-1; B S 2-3; A X 4-8; B end 5-6 committed":             true,
		"A U 0-1; A S 2-3; A X 4-5; A S 6-7; B S 8-9":                true,  // A was aborted, for all that is known
		"A X 0-1; B X 2-3":                                           true,  // likewise
		"A X 0-1; B X 2-3; A end 4-5 aborted":                        true,  // likewise: before it was asked
		"A X 0-1; B X 2-3; A X 4-5; A end 6-7 aborted":               false, // it was not: it was granted a key later
		"A X 0-9; B X 1-8; A end 10-11 committed":                    true,  // at once, and one after the other
		"A X 0; B X 1-2; A end 10-11 aborted":                        true,  // never told
		"A X 0-1; B X 2-5; A end 6 ":                                 true,  // nobody knows how it ended
		"A X 0-9; A end 0-9 committed; B X 1-8; B end 1-8 committed": true,  // as a whole
	} {
		l := lockings(t, text)
		if problems := l.Check(); (len(problems) == 0) != ok {
			t.Errorf("%s: %v", text, problems)
		}
	}
}

// TestExplained: who was told what, and when.
func TestExplained(t *testing.T) {
	problems := lockings(t, "A X 0-1; B X 2-5; A end 6-7 committed").Check()
	if len(problems) != 1 || problems[0].Object != "k" || !strings.Contains(problems[0].Text, "B has it for a moment at least, exclusive") || !strings.Contains(problems[0].Text, "at most 1 of 3") {
		t.Error(problems)
	}
	var s Status
	s.Ask("T", Begin)(Open)
	s.Ask("T", Commit)(Nothing)
	s.Ask("T", Look)(NotFound)
	s.Ask("U", Look)(NotFound)
	problems = s.Check()
	if len(problems) != 1 || problems[0].Object != "T" || !strings.Contains(problems[0].Text, "answered at never: commit takes effect") {
		t.Error(problems)
	}
}

// TestTooMany: what cannot be judged is not acquitted.
func TestTooMany(t *testing.T) {
	var s Status
	for range MaxOperations {
		s.Ask("T", Look)(NotFound)
	}
	if problems := s.Check(); problems != nil {
		t.Error(problems)
	}
	s.Ask("T", Look)(NotFound)
	if problems := s.Check(); len(problems) != 1 || !strings.Contains(problems[0].Text, "too many") {
		t.Error(problems)
	}
}

// TestToyTable: a lock table that excludes is acquitted, and one that forgets a holder
// now and then is convicted.
func TestToyTable(t *testing.T) {
	for _, forgets := range []bool{false, true} {
		convicted := 0
		for seed := range uint64(20) {
			if len(toyTable(rand.New(rand.NewPCG(seed, 1)), forgets)) > 0 {
				convicted++
			}
		}
		if !forgets && convicted > 0 || forgets && convicted < 18 {
			t.Errorf("forgets: %t: convicted %d of 20 times", forgets, convicted)
		}
	}
}

// toyTable is a table that grants one of several clients at a time what is compatible.
func toyTable(rng *rand.Rand, forgets bool) []Problem {
	l := &Locks{}
	type client struct {
		id      string
		key     string
		wants   Mode
		granted func()
		held    bool
		ending  bool
	}
	table := map[string]map[string]Mode{"k0": {}, "k1": {}}
	var clients []*client
	next := 0
	for range 2000 {
		if len(clients) < 5 {
			next++
			c := &client{id: fmt.Sprint("T", next), key: fmt.Sprint("k", rng.IntN(2)), wants: []Mode{Shared, Shared, Update, Exclusive}[rng.IntN(4)]}
			c.granted = l.Acquire(c.id, c.key, c.wants)
			clients = append(clients, c)
		}
		i := rng.IntN(len(clients))
		c := clients[i]
		if !c.held {
			c.held = true
			for id, m := range table[c.key] { // order does not matter: all must agree
				c.held = c.held && (id == c.id || c.wants.beside(m))
			}
			if c.held {
				table[c.key][c.id] = c.wants
				c.granted()
				if forgets && rng.IntN(20) == 0 {
					delete(table[c.key], c.id)
				}
			}
			continue
		}
		if !c.ending {
			c.ending = true
			l.End(c.id)
			continue
		}
		delete(table[c.key], c.id)
		l.Ended(c.id, true)
		clients = slices.Delete(clients, i, i+1)
	}
	return l.Check()
}
