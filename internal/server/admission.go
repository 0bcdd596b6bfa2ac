package server

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/assent-tx/assent/internal/reason"
)

// work is what a request asks for, as far as admission cares.
type work uint8

const (
	query      work = iota // and everything else that ends or explains what exists
	submission             // new work: refused first
	step                   // more of what has begun
)

// smallBytes is a body that is taken whatever the others hold, unless it is new work: what
// they wait for is mostly such a step of another transaction. One of unknown length counts
// as the largest.
const smallBytes = 4 << 10

// admission bounds what is being worked on, over both protocols.
type admission struct {
	limits   *Limits
	requests atomic.Int64
	bytes    atomic.Int64
	// submissions are those of the requests that are new work.
	submissions atomic.Int64
	draining    atomic.Bool // no new work: the process is about to end
}

// enter takes a place for a request of so many body bytes; leave gives it back.
func (a *admission) enter(w work, bytes int64) (leave func(), err error) {
	requests, held := a.requests.Add(1), a.bytes.Add(bytes)
	if w == submission {
		a.submissions.Add(1)
	}
	leave = func() {
		a.requests.Add(-1)
		a.bytes.Add(-bytes)
		if w == submission {
			a.submissions.Add(-1)
		}
	}
	limit, heldLimit := int64(a.limits.MaxRequestsInFlight), a.limits.MaxRequestBytesInFlight
	if w != submission {
		limit += max(limit/8, 1)
		heldLimit += heldLimit / 8
	}
	switch {
	case w == submission && a.draining.Load():
		notReady := reason.New(reason.NotReady, "try again: it is being restarted, or replaced", "the coordinator is shutting down")
		notReady.RetryAfterMs = 1000
		err = notReady
	case requests > limit:
		err = reason.New(reason.Overloaded, "try again later, with fewer requests at a time", "%d requests are being worked on", requests-1)
	case w != query && held > heldLimit && (w == submission || bytes > smallBytes):
		err = reason.New(reason.Overloaded, "try again later", "the bodies of unanswered requests hold %d bytes", held-bytes)
	}
	if err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

// deadline bounds a request's wait a little before asked is over, so that the
// current state is answered in time. Zero: the client set none.
func (l *Limits) deadline(ctx context.Context, asked time.Duration) (context.Context, context.CancelFunc) {
	if asked <= 0 {
		asked = l.RequestTimeout
	}
	asked = min(asked, l.MaxTimeout)
	return context.WithTimeout(ctx, asked-min(asked/10, 250*time.Millisecond))
}
