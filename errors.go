package assent

import (
	"fmt"
	"net/http"
	"time"
)

// Reasons of aborts and refusals that callers may want to tell apart; docs/API.md has
// all of them.
const (
	ReasonVotedNo         = "VOTED_NO"
	ReasonTimeout         = "TIMEOUT"
	ReasonLockTimeout     = "LOCK_TIMEOUT"
	ReasonTooManyWaiters  = "TOO_MANY_WAITERS"
	ReasonDeadlock        = "DEADLOCK"
	ReasonWounded         = "WOUNDED"
	ReasonIdleTimeout     = "IDLE_TIMEOUT"
	ReasonExecuteRefused  = "EXECUTE_REFUSED"
	ReasonExecuteConflict = "EXECUTE_CONFLICT"
	ReasonExecutionLost   = "EXECUTION_LOST"
	ReasonClientRollback  = "CLIENT_ROLLBACK"
	ReasonUnknownService  = "UNKNOWN_SERVICE"
	ReasonOverloaded      = "OVERLOADED"
	ReasonIDConflict      = "ID_CONFLICT"
	ReasonAlreadyDecided  = "ALREADY_DECIDED"
)

// AbortedError: the transaction did not happen, anywhere, and never will.
type AbortedError struct {
	ID      string
	Reason  string // stable, one of the constants above
	Message string // for people
	Service string // whose answer or lock it was; may be empty
}

// Error implements error.
func (e *AbortedError) Error() string {
	if e.Service == "" {
		return fmt.Sprintf("transaction %s aborted: %s: %s", e.ID, e.Reason, e.Message)
	}
	return fmt.Sprintf("transaction %s aborted: %s at %s: %s", e.ID, e.Reason, e.Service, e.Message)
}

// Retryable reports whether the same work may succeed in a new transaction, as Run
// tries by itself.
func (e *AbortedError) Retryable() bool {
	switch e.Reason {
	case ReasonDeadlock, ReasonWounded, ReasonLockTimeout, ReasonTooManyWaiters, ReasonExecuteConflict, ReasonExecutionLost:
		return true
	}
	return false
}

// Permanent reports whether asking again is of no use: always, of an abort.
func (e *AbortedError) Permanent() bool { return true }

// UnknownOutcomeError: the transaction may have been committed or not, and nobody could
// say before the context ended; or what answered was no coordinator, or spoke of a later try
// only. Get tells later; sending the same submission again is safe, too.
type UnknownOutcomeError struct {
	ID  string
	Err error // what happened last
}

// Error implements error.
func (e *UnknownOutcomeError) Error() string {
	return fmt.Sprintf("transaction %s: the outcome is not known: %v", e.ID, e.Err)
}

// Unwrap is what happened last.
func (e *UnknownOutcomeError) Unwrap() error { return e.Err }

// Error is a refusal: the request is wrong, or cannot be taken now, and changed nothing.
type Error struct {
	Status  int    // of HTTP
	Reason  string // stable
	Message string
	Hint    string            // what to do about it; may be empty
	Details map[string]string // field, limit and the like; may be nil

	retryAfter time.Duration
}

// Error implements error.
func (e *Error) Error() string {
	text := e.Reason + ": " + e.Message
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// Permanent reports whether the same request is refused again, however often it is sent.
// What a proxy answers instead of a coordinator is not permanent.
func (e *Error) Permanent() bool {
	return e.definite() && e.Status != http.StatusTooManyRequests && e.Reason != "STEP_PENDING"
}

// aborted returns the abort of a transaction in an error chain, wherever it stands there.
func aborted(err error, id string) *AbortedError {
	if a, ok := err.(*AbortedError); ok && a.ID == id { //nolint:errorlint // the chain is walked below
		return a
	}
	switch e := err.(type) { //nolint:errorlint // likewise
	case interface{ Unwrap() error }:
		return aborted(e.Unwrap(), id)
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			if a := aborted(one, id); a != nil {
				return a
			}
		}
	}
	return nil
}
