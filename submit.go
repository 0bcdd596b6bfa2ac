package assent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Mode of a lock.
type Mode string

// Modes of locks.
const (
	ModeExclusive Mode = "exclusive"
	ModeShared    Mode = "shared"
	ModeUpdate    Mode = "update"
)

// Lock is a key of a service: segments joined by "/", which covers every key below it.
type Lock struct {
	Service string `json:"service,omitempty"` // only where it stands for itself: Tx.Lock
	Key     string `json:"key"`
	Mode    Mode   `json:"mode,omitempty"`
}

// WholeService is the key of a service as a whole: a lock on it covers all its keys.
const WholeService = "/"

// Exclusive locks a key for writing.
func Exclusive(key string) Lock { return Lock{Key: key, Mode: ModeExclusive} }

// Shared locks a key for reading.
func Shared(key string) Lock { return Lock{Key: key, Mode: ModeShared} }

// Update locks a key for reading now and writing later.
func Update(key string) Lock { return Lock{Key: key, Mode: ModeUpdate} }

// Of names the service of a lock that is taken on its own.
func (l Lock) Of(service string) Lock {
	l.Service = service
	return l
}

// Operation is opaque work for one service.
type Operation struct {
	Service string `json:"service"`
	Payload any    `json:"payload"` // anything that encoding/json takes, or a json.RawMessage
	Locks   []Lock `json:"locks,omitempty"`
}

// Submission is a transaction as a whole.
type Submission struct {
	ID         string // UUIDv7, as NewID makes it; empty: a new one. The same id and work again is done once
	Operations []Operation
	Timeout    time.Duration // until the decision; zero: the coordinator's default
	Completed  bool          // answer when every participant has acknowledged, not at the decision
}

// Submit runs a transaction as a whole. It returns the committed transaction, an
// *AbortedError with the aborted one, an *UnknownOutcomeError if nobody can say, or an *Error
// if the coordinator refuses it. If the answer of an earlier try was lost, a refusal is made
// certain by a rollback: the id is used up then.
func (c *Client) Submit(ctx context.Context, s Submission) (*Transaction, error) {
	body := struct {
		ID         string      `json:"id"`
		Operations []Operation `json:"operations"`
		Timeout    string      `json:"timeout,omitempty"`
		Wait       string      `json:"wait,omitempty"`
	}{ID: s.ID, Operations: s.Operations}
	if body.ID == "" {
		body.ID = NewID()
	}
	if s.Timeout > 0 {
		body.Timeout = s.Timeout.String()
	}
	if s.Completed {
		body.Wait = "completed"
	}
	taken := false
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		t, err := c.ask(ctx, body.ID, http.MethodPost, "/v1/transactions", body)
		if taken {
			err = ofLaterTry(err)
		}
		taken = taken || err == nil
		var later *laterRefusalError
		switch {
		case errors.As(err, &later):
			// The earlier try is decided by a rollback: one that never began never will.
			rolled, err := c.Rollback(ctx, body.ID)
			var refused *Error
			switch {
			case err == nil && rolled.Aborted():
				if a := aborted(rolled.err(), body.ID); a != nil && a.Reason == ReasonClientRollback {
					return nil, later.refused
				}
				return rolled, rolled.err()
			case errors.As(err, &refused) && refused.Reason == "ALREADY_COMMITTED":
				if t, err := c.Get(ctx, body.ID); err == nil && (t.State == "committed" || t.Committed() && !s.Completed) {
					return t, nil
				}
				if taken = true; !sleep(ctx, pause) {
					return nil, unknown(body.ID, fmt.Errorf("it is committed: %w", ended(ctx)))
				}
				continue // until its record answers
			case err == nil:
				err = fmt.Errorf("it is %s: %w", rolled.State, later)
			case refused != nil:
				err = errors.New(err.Error()) // as in unknown
			}
			return nil, &UnknownOutcomeError{ID: body.ID, Err: err}
		case err != nil:
			return nil, unknown(body.ID, err)
		case t.Aborted():
			return t, t.err()
		case t.State == "committed", t.Committed() && !s.Completed:
			return t, nil
		case ctx.Err() != nil:
			return t, unknown(body.ID, fmt.Errorf("it is %s: %w", t.State, ended(ctx)))
		}
		sleep(ctx, pause)
	}
}
