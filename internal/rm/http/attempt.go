package rmhttp

import (
	"sync"
	"time"
)

// attempt is a request under way: its deadline can be brought forward.
type attempt struct {
	mu       sync.Mutex
	deadline time.Time
	hurried  time.Time // no deadline is later; zero: not hurried
	why      string    // it was hurried
	conn     deadliner // that it waits for now; nil: none
}

type deadliner interface{ SetDeadline(time.Time) error }

// begin sets the deadline of the next request.
func (a *attempt) begin(timeout time.Duration) *attempt {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.deadline = time.Now().Add(timeout)
	if !a.hurried.IsZero() && a.hurried.Before(a.deadline) {
		a.deadline = a.hurried
	}
	return a
}

func (a *attempt) until() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.deadline
}

// take makes c what the attempt waits for, with its deadline.
func (a *attempt) take(c deadliner) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conn = c
	return c.SetDeadline(a.deadline)
}

// leave must come before the connection can serve another attempt.
func (a *attempt) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conn = nil
}

// hurry gives the attempt a last grace: nobody waits for its answer any more. A
// connection that is being made has the dial timeout besides.
func (a *attempt) hurry(why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.hurried.IsZero() {
		return
	}
	a.why, a.hurried = why, time.Now().Add(overtakenGrace)
	if a.hurried.Before(a.deadline) {
		a.deadline = a.hurried
		if a.conn != nil {
			_ = a.conn.SetDeadline(a.deadline) // fails only on a closed connection
		}
	}
}

// reason says why the attempt was hurried, or is empty.
func (a *attempt) reason() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.why
}
