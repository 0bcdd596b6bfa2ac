package linear

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// Question about a transaction.
type Question uint8

// Questions. All but Look change the transaction, if it is not decided.
const (
	Begin    Question = iota // of an interactive transaction
	Submit                   // as a whole: commit is asked for at once
	Look                     // its state, or a step of it
	Rollback                 // also what never began: then it never will
	Commit
)

func (q Question) String() string {
	return [...]string{"begin", "submit", "look", "rollback", "commit"}[q]
}

// Outcome is what a client was told.
type Outcome uint8

// Outcomes. A refusal that says nothing of the transaction is Nothing.
const (
	Nothing Outcome = iota // no answer
	NotFound
	Open // not decided
	Committed
	Aborted
)

func (o Outcome) String() string {
	return [...]string{"nothing", "not found", "open", "committed", "aborted"}[o]
}

// Status records what clients asked about transactions, and were told. It is safe for
// concurrent use. The zero value is ready.
type Status struct {
	clock
	asked []inquiry
}

type inquiry struct {
	id          string
	question    Question
	outcome     Outcome
	call, reply int64
}

// Ask records a question before it is sent, and returns what records its answer after it
// came: at most once, and not at all if none came.
func (s *Status) Ask(id string, q Question) (told func(Outcome)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now++
	at := len(s.asked)
	s.asked = append(s.asked, inquiry{id, q, Nothing, s.now, never})
	return func(o Outcome) {
		if o == Nothing {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.now++
		s.asked[at].outcome, s.asked[at].reply = o, s.now
	}
}

// Check returns the transactions that nobody can have told like this.
func (s *Status) Check() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return checkStatus(s.asked)
}

// checkStatus takes a question for two operations: it has its effect at one moment, and
// its answer, which may wait for a decision, tells of another.
func checkStatus(asked []inquiry) []Problem {
	var operations []operation
	for _, a := range asked {
		if a.question != Look && a.outcome != NotFound {
			operations = append(operations, operation{a.id, a.question, nil, a.call, a.reply})
		}
		if a.outcome != Nothing {
			operations = append(operations, operation{a.id, a.question, a.outcome, a.call, a.reply})
		}
	}
	return search(operations, statusModel)
}

// state of a transaction, as far as clients can know it.
type state uint8

const (
	absent state = iota
	active
	sealed // commit was asked for
	committed
	aborted
)

var statusModel = porcupine.Model{
	Init: func() any { return absent },
	Step: func(s, q, o any) (bool, any) {
		if o == nil {
			return true, arrives(s.(state), q.(Question)) //nolint:forcetypeassert // nothing else is put in
		}
		return tell(s.(state), o.(Outcome)) //nolint:forcetypeassert // nothing else is put in
	},
	DescribeOperation: func(q, o any) string {
		if o == nil {
			return fmt.Sprintf("%s takes effect", q)
		}
		return fmt.Sprintf("%s is told: %s", q, o)
	},
}

// arrives is what a question changes. A rollback of what has begun gives the coordinator
// a reason more for what it may do anyway.
func arrives(s state, q Question) state {
	switch {
	case q == Begin && s == absent:
		return active
	case q == Submit && s == absent, q == Commit && s == active:
		return sealed
	case q == Rollback && s == absent:
		return aborted // it will never begin
	}
	return s
}

// tell is whether a client may be told this. What the coordinator may decide by itself is
// decided when it is told: an abort of what has begun (a timeout, a victim, a no), and a
// commit of what is sealed.
func tell(s state, told Outcome) (bool, state) {
	switch told {
	case NotFound:
		return s == absent, s
	case Open:
		return s == active || s == sealed, s
	case Committed:
		return s == sealed || s == committed, committed
	default:
		return s != absent && s != committed, aborted
	}
}
