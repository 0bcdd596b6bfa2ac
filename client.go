package assent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/assent-tx/assent/discovery"
)

// Config of a Client. Zero values take the defaults.
type Config struct {
	// Endpoints are base URLs of the REST API, of some nodes or of all: the others are
	// learned. A host name stands for all its addresses. Default, unless there is a File:
	// ASSENT_ENDPOINTS (divided by commas) and the file ASSENT_ENDPOINTS_FILE, else
	// ASSENT_URL, else http://127.0.0.1:7070.
	Endpoints []string
	// File names further endpoints, one URL on a line, behind a # comments. It is read
	// again when a node fails.
	File string
	// Resolve returns the addresses of a host. Default: the system's resolver.
	Resolve func(ctx context.Context, host string) ([]string, error)
	TLS     *tls.Config // for https; default: the system's authorities
	// HTTPClient makes the requests as they are, if it is set: then names, time-outs of
	// dialling and TLS are its business. Its Timeout must be zero: contexts bound them.
	HTTPClient *http.Client
	Logger     *slog.Logger // of repeated requests and failing nodes, at debug level; default: none
}

// Client speaks to a coordinator. It is safe for concurrent use.
type Client struct {
	nodes *discovery.Nodes
	log   *slog.Logger
}

// New returns a client. It connects to nobody yet. Close it.
func New(cfg Config) (*Client, error) {
	nodes, err := discovery.New(discovery.Config{
		Endpoints: cfg.Endpoints, File: cfg.File, Resolve: cfg.Resolve, TLS: cfg.TLS, HTTPClient: cfg.HTTPClient, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("assent: %w", err)
	}
	c := &Client{nodes: nodes, log: cfg.Logger}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Close ends what the client does in the background and closes idle connections; it takes
// no further requests.
func (c *Client) Close() { c.nodes.Close() }

// NewID makes the id of a transaction: a UUIDv7 of this moment.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[6:]) // never fails: it ends the process instead
	ms := uint64(time.Now().UnixMilli())
	for i := range 6 {
		b[i] = byte(ms >> (40 - 8*i))
	}
	b[6] = b[6]&0x0f | 0x70
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// Of the tries of one request, and the pauses between them.
const (
	// maxAnswerBytes bounds one answer.
	maxAnswerBytes = 32 << 20

	firstPause = 10 * time.Millisecond
	maxPause   = time.Second
	// unreadyPause is what a coordinator without a leader is given at most: an election
	// takes less than the second that it may ask for.
	unreadyPause = 250 * time.Millisecond
	// answerWithin is asked of the coordinator, so that a long wait is a repeated
	// question and not a connection that nobody knows to be alive.
	answerWithin = 20 * time.Second
)

// noAnswerError: the context ended before anybody could say whether the request was done.
// What was answered last is told in words alone: an *Error in the chain would say that
// nothing was changed.
type noAnswerError struct{ error }

func (e *noAnswerError) Unwrap() error { return e.error }

// unsentError: the request was never sent.
type unsentError struct{ error }

func (e *unsentError) Unwrap() error { return e.error }

// laterRefusalError: a request was refused after a try that may have been taken, or may
// arrive yet, for a reason that says nothing of that one: a service may be registered
// otherwise by then, another node may have other limits, and what a transaction or its steps
// were is forgotten once it has ended.
type laterRefusalError struct{ refused *Error }

func (e *laterRefusalError) Error() string {
	return e.refused.Error() + "; an earlier try of the request has no answer"
}

// call makes a request about a transaction until it has an answer or ctx ends. All requests
// of this package may be repeated: the coordinator does them once.
func (c *Client) call(ctx context.Context, id, method, path string, body, answer any) error {
	var encoded []byte
	if body != nil {
		var err error
		if encoded, err = json.Marshal(body); err != nil {
			return &unsentError{fmt.Errorf("assent: %w", err)}
		}
	}
	taken := false // an earlier try may have been
	r := &discovery.Request{Key: id, Method: method, Path: path, Body: encoded, Wait: answerWithin, MaxBytes: maxAnswerBytes}
	pause := firstPause
	for {
		after, err := c.try(ctx, r, answer)
		var refused *Error
		if errors.As(err, &refused) {
			if after < 0 && method != http.MethodGet && (taken || r.MaybeTaken()) {
				return ofLaterTry(err)
			}
			taken = taken || !refused.definite() && !refused.untaken()
		}
		if err == nil || after < 0 {
			return err
		}
		if ctx.Err() != nil {
			return &noAnswerError{fmt.Errorf("%w; last: %s", ended(ctx), err.Error())}
		}
		wait := max(after, pause/2+time.Duration(mathrand.Int64N(int64(pause/2)+1)))
		c.log.DebugContext(ctx, "assent: request repeated", "method", method, "path", path, "after", wait, "error", err)
		if !sleep(ctx, wait) {
			return &noAnswerError{fmt.Errorf("%w; last: %s", ended(ctx), err.Error())}
		}
		pause = min(2*pause, maxPause)
	}
}

// ask is call for what is answered with the transaction.
func (c *Client) ask(ctx context.Context, id, method, path string, body any) (*Transaction, error) {
	t := &Transaction{}
	if err := c.call(ctx, id, method, path, body, t); err != nil {
		return nil, err
	}
	if t.ID != id {
		return nil, errStrange
	}
	return t, nil
}

// errStrange: an answer with status 200 does not name the transaction that it is to be about.
var errStrange = errors.New("assent: the answer is not a coordinator's")

// sleep reports whether the time has passed before the context ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// ended is the end of a context, with its cause in words alone: that may be the refusal or
// abort of another request (errgroup), which says nothing of this one.
func ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if cause == err { //nolint:errorlint // the very same
		return err
	}
	return fmt.Errorf("%w: %s", err, cause.Error())
}

// try makes one request, at each node that may be well. after is the least pause before it
// may be repeated; below zero: it may not, the error is definite.
func (c *Client) try(ctx context.Context, r *discovery.Request, answer any) (after time.Duration, err error) {
	got, err := c.nodes.Do(ctx, r)
	switch {
	case errors.Is(err, discovery.ErrClosed), errors.Is(err, discovery.ErrTooLarge):
		return -1, fmt.Errorf("assent: %s %s: %w", r.Method, r.Path, err)
	case err != nil:
		return 0, err
	case got.Status == http.StatusOK:
		if answer == nil {
			return 0, nil
		}
		if err := json.Unmarshal(got.Body, answer); err != nil {
			return -1, fmt.Errorf("assent: answer of %s %s: %w", r.Method, r.Path, err)
		}
		return 0, nil
	}
	refusal := refusalOf(got.Status, got.Body)
	switch {
	case got.Status == http.StatusTooManyRequests, got.Status >= 500 && refusal.Reason != "INTERNAL", refusal.Reason == "STEP_PENDING":
		after = refusal.retryAfter // of which the header tells whole seconds
		if seconds, err := strconv.Atoi(got.Header.Get("Retry-After")); err == nil && after <= 0 {
			after = time.Duration(seconds) * time.Second
		}
		after = max(0, min(after, 5*time.Second))
		if got.Status == http.StatusServiceUnavailable || got.Status == http.StatusGatewayTimeout {
			after = min(after, unreadyPause) // who was asked has waited for a leader already
		}
		return after, refusal
	}
	return -1, refusal
}

// foreignReason begins the reason of a refusal that does not come from a coordinator: a
// proxy's, say. It tells nothing of what was done before.
const foreignReason = "HTTP_"

// errorDomain is that of a coordinator's reasons (google.rpc.ErrorInfo).
const errorDomain = "assent"

// definite reports whether the request was refused by who would know if it had been done.
func (e *Error) definite() bool { return e.ours() && e.Status < http.StatusInternalServerError }

// untaken reports whether a refusal with a status of 5xx says that nothing was taken.
func (e *Error) untaken() bool {
	switch e.Reason {
	case "NOT_READY", "NOT_LEADER", "OVERLOADED", "UPGRADE_PENDING":
		return true
	}
	return false
}

// ofLaterTry is what to tell of a refusal if an earlier try may have been taken, of which it
// says nothing: see laterRefusalError. Those that come from the transaction's record, or from
// its id, do.
func ofLaterTry(err error) error {
	var refused *Error
	if !errors.As(err, &refused) || !refused.definite() {
		return err
	}
	switch refused.Reason {
	case ReasonIDConflict, "STEP_CONFLICT", "ALREADY_COMMITTED", "NOT_INTERACTIVE", "ONE_PHASE_PENDING", "COMMIT_ASKED", "INVALID_ID":
		return err
	}
	return &laterRefusalError{refused}
}

func (e *Error) ours() bool { return !strings.HasPrefix(e.Reason, foreignReason) }

// refusalOf reads the body of an error: google.rpc.Status.
func refusalOf(status int, body []byte) *Error {
	var s struct {
		Message string `json:"message"`
		Details []struct {
			Reason   string            `json:"reason"`
			Domain   string            `json:"domain"`
			Metadata map[string]string `json:"metadata"`
			Delay    string            `json:"retryDelay"` // google.rpc.RetryInfo
		} `json:"details"`
	}
	e := &Error{Status: status, Reason: foreignReason + strconv.Itoa(status), Message: http.StatusText(status)}
	if json.Unmarshal(body, &s) != nil || s.Message == "" {
		return e // of a proxy, say
	}
	e.Message = s.Message
	for _, d := range s.Details {
		if d.Reason != "" && d.Domain == errorDomain {
			e.Reason, e.Hint, e.Details = d.Reason, d.Metadata["hint"], d.Metadata
			delete(e.Details, "hint")
		}
		if delay, err := time.ParseDuration(d.Delay); err == nil {
			e.retryAfter = delay
		}
	}
	return e
}

// Transaction is what the coordinator knows of a transaction.
type Transaction struct {
	ID       string   `json:"id"`
	State    string   `json:"state"` // active, preparing, committing, committed, aborting, aborted
	Abort    *Abort   `json:"abort,omitempty"`
	Branches []Branch `json:"branches"`
	Hazard   bool     `json:"hazard,omitempty"` // a participant ended otherwise than decided
	Replayed bool     `json:"replayed,omitempty"`
}

// Abort says why a transaction aborted.
type Abort struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Service string `json:"service,omitempty"`
}

// Branch is the part of a transaction at one service.
type Branch struct {
	Service string            `json:"service"`
	State   string            `json:"state"`
	Results []json.RawMessage `json:"results,omitempty"` // of operations that ran with prepare, best effort
	Hazard  string            `json:"hazard,omitempty"`
}

// Committed reports whether commit is decided, and Aborted whether abort is: neither
// ever changes.
func (t *Transaction) Committed() bool { return t.State == "committing" || t.State == "committed" }

// Aborted reports whether abort is decided.
func (t *Transaction) Aborted() bool { return t.State == "aborting" || t.State == "aborted" }

// err is the abort as an error; nil unless it is decided.
func (t *Transaction) err() error {
	if !t.Aborted() {
		return nil
	}
	e := &AbortedError{ID: t.ID}
	if t.Abort != nil {
		e.Reason, e.Message, e.Service = t.Abort.Reason, t.Abort.Message, t.Abort.Service
	}
	return e
}

// Get tells the state of a transaction. Without a record of it the error is an *Error, with
// the reason NOT_FOUND if it has never begun, and ID_EXPIRED if it is too old to say: a
// record that was there is forgotten by now.
func (c *Client) Get(ctx context.Context, id string) (*Transaction, error) {
	return c.ask(ctx, id, http.MethodGet, "/v1/transactions/"+url.PathEscape(id), nil)
}

// Rollback aborts a transaction that is not decided, and makes sure that one which never
// arrived never begins. A transaction that is committed answers an *Error with the reason
// ALREADY_COMMITTED.
func (c *Client) Rollback(ctx context.Context, id string) (*Transaction, error) {
	return c.ask(ctx, id, http.MethodPost, "/v1/transactions/"+url.PathEscape(id)+"/rollback", nil)
}

// unknown is the error for a transaction that may have been committed.
func unknown(id string, err error) error {
	if _, ok := err.(*unsentError); ok { //nolint:errorlint // as call returns it
		return err
	}
	if refused, ok := err.(*Error); ok { //nolint:errorlint // as call returns it
		if refused.definite() && refused.Status != http.StatusTooManyRequests && refused.Reason != "ID_EXPIRED" {
			return err
		}
		err = errors.New(err.Error()) // an *Error in the chain would say that nothing was changed
	}
	return &UnknownOutcomeError{ID: id, Err: err}
}
