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
	operations []operation
}

// Ask records a question before it is sent, and returns what records its answer after it
// came: at most once, and not at all if none came.
func (s *Status) Ask(id string, q Question) (told func(Outcome)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now++
	at := len(s.operations)
	s.operations = append(s.operations, operation{object: id, input: q, output: Nothing, call: s.now, reply: never})
	return func(o Outcome) {
		if o == Nothing {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.now++
		s.operations[at].output, s.operations[at].reply = o, s.now
	}
}

// Len is the number of questions.
func (s *Status) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.operations)
}

// Check returns the transactions that nobody can have told like this.
func (s *Status) Check() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return search(append([]operation(nil), s.operations...), statusModel)
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
		from, question, outcome := s.(state), q.(Question), o.(Outcome) //nolint:forcetypeassert // nothing else is put in
		return step(from, question, outcome)
	},
	DescribeOperation: func(q, o any) string { return fmt.Sprintf("%s, told: %s", q, o) },
}

// step does what the question asks, and then lets the coordinator decide what it may
// decide by itself, if that is what was told: an abort of what has begun (a timeout, a
// victim, a no), a commit of what was sealed.
func step(s state, q Question, told Outcome) (bool, state) {
	switch {
	case q == Begin && s == absent:
		s = active
	case q == Submit && s == absent, q == Commit && s == active:
		s = sealed
	case q == Rollback && s < committed:
		// Told otherwise, it came too late, or was not the one to decide.
		if told == Nothing || told == Aborted {
			s = aborted
		}
	}
	switch told {
	case NotFound:
		return s == absent, s
	case Open:
		return s == active || s == sealed, s
	case Committed:
		return s == sealed || s == committed, committed
	case Aborted:
		return s != absent && s != committed, aborted
	default:
		return true, s
	}
}
