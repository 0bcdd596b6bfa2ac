package assent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Config of a Client. Zero values take the defaults.
type Config struct {
	// Endpoints are base URLs of the REST API; one that does not answer is passed over.
	// Default: ASSENT_ENDPOINTS (divided by commas), ASSENT_URL, http://127.0.0.1:7070.
	Endpoints []string
	// HTTPClient makes the requests. Its Timeout must be zero: contexts bound them.
	HTTPClient *http.Client
	Logger     *slog.Logger // of repeated requests, at debug level; default: none
}

// Client speaks to a coordinator. It is safe for concurrent use.
type Client struct {
	endpoints []string
	current   atomic.Uint32 // index of the endpoint that answered last
	http      *http.Client
	log       *slog.Logger
}

// maxAnswerBytes bounds one answer.
const maxAnswerBytes = 32 << 20

// New returns a client. It connects to nobody yet.
func New(cfg Config) (*Client, error) {
	if len(cfg.Endpoints) == 0 {
		for e := range strings.SplitSeq(os.Getenv("ASSENT_ENDPOINTS"), ",") {
			if e = strings.TrimSpace(e); e != "" {
				cfg.Endpoints = append(cfg.Endpoints, e)
			}
		}
	}
	if len(cfg.Endpoints) == 0 {
		cfg.Endpoints = []string{"http://127.0.0.1:7070"}
		if e := os.Getenv("ASSENT_URL"); e != "" {
			cfg.Endpoints[0] = e
		}
	}
	c := &Client{http: cfg.HTTPClient, log: cfg.Logger}
	for _, e := range cfg.Endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("assent: endpoint %q is not a URL such as http://127.0.0.1:7070", e)
		}
		c.endpoints = append(c.endpoints, strings.TrimRight(e, "/"))
	}
	if c.http == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // it is one
		transport.MaxIdleConnsPerHost = 256
		c.http = &http.Client{Transport: transport}
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

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

// Pauses between the tries of one request.
const (
	firstPause = 10 * time.Millisecond
	maxPause   = time.Second
	// answerWithin is asked of the coordinator, so that a long wait is a repeated
	// question and not a connection that nobody knows to be alive.
	answerWithin = 20 * time.Second
)

// call makes a request until it has an answer or ctx ends. All requests of this package
// may be repeated: the coordinator does them once.
func (c *Client) call(ctx context.Context, method, path string, body, answer any) error {
	var encoded []byte
	if body != nil {
		var err error
		if encoded, err = json.Marshal(body); err != nil {
			return fmt.Errorf("assent: %w", err)
		}
	}
	pause := firstPause
	for {
		after, err := c.try(ctx, method, path, encoded, answer)
		if err == nil || after < 0 {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w; last: %w", context.Cause(ctx), err)
		}
		wait := max(after, pause/2+time.Duration(mathrand.Int64N(int64(pause/2)+1)))
		c.log.DebugContext(ctx, "assent: request repeated", "method", method, "path", path, "after", wait, "error", err)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w; last: %w", context.Cause(ctx), err)
		}
		pause = min(2*pause, maxPause)
	}
}

// try makes one request. after is the least pause before it may be repeated; below zero:
// it may not, the error is definite.
func (c *Client) try(ctx context.Context, method, path string, body []byte, answer any) (after time.Duration, err error) {
	at := c.current.Load()
	// A little more than the coordinator takes at most.
	ctx, cancel := context.WithTimeout(ctx, answerWithin+5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.endpoints[int(at)%len(c.endpoints)]+path, bytes.NewReader(body))
	if err != nil {
		return -1, fmt.Errorf("assent: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	within := answerWithin
	if end, ok := ctx.Deadline(); ok {
		within = min(within, time.Until(end))
	}
	if within >= 10*time.Millisecond {
		req.Header.Set("Assent-Timeout", within.Round(time.Millisecond).String())
	}
	resp, err := c.http.Do(req)
	if err != nil {
		c.current.CompareAndSwap(at, at+1) // another one may be there
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }() // read, or of no use
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		return 0, err
	case len(text) > maxAnswerBytes:
		return -1, fmt.Errorf("assent: the answer is over the limit of %d bytes", maxAnswerBytes)
	case resp.StatusCode == http.StatusOK:
		if answer == nil {
			return 0, nil
		}
		if err := json.Unmarshal(text, answer); err != nil {
			return -1, fmt.Errorf("assent: answer of %s %s: %w", method, path, err)
		}
		return 0, nil
	}
	refusal := refusalOf(resp.StatusCode, text)
	switch {
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode >= 500 && refusal.Reason != "INTERNAL", refusal.Reason == "STEP_PENDING":
		if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
			after = min(time.Duration(seconds)*time.Second, 5*time.Second)
		}
		if resp.StatusCode == http.StatusServiceUnavailable {
			c.current.CompareAndSwap(at, at+1)
		}
		return after, refusal
	}
	return -1, refusal
}

// refusalOf reads the body of an error: google.rpc.Status.
func refusalOf(status int, body []byte) *Error {
	var s struct {
		Message string `json:"message"`
		Details []struct {
			Reason   string            `json:"reason"`
			Metadata map[string]string `json:"metadata"`
		} `json:"details"`
	}
	e := &Error{Status: status, Reason: "HTTP_" + strconv.Itoa(status), Message: http.StatusText(status)}
	if json.Unmarshal(body, &s) != nil || s.Message == "" {
		return e // of a proxy, say
	}
	e.Message = s.Message
	for _, d := range s.Details {
		if d.Reason != "" {
			e.Reason, e.Hint, e.Details = d.Reason, d.Metadata["hint"], d.Metadata
			delete(e.Details, "hint")
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

// Get tells the state of a transaction.
func (c *Client) Get(ctx context.Context, id string) (*Transaction, error) {
	t := &Transaction{}
	return t, c.call(ctx, http.MethodGet, "/v1/transactions/"+url.PathEscape(id), nil, t)
}

// Rollback aborts a transaction that is not decided, and makes sure that one which never
// arrived never begins. A transaction that is committed answers an *Error with the reason
// ALREADY_COMMITTED.
func (c *Client) Rollback(ctx context.Context, id string) (*Transaction, error) {
	t := &Transaction{}
	return t, c.call(ctx, http.MethodPost, "/v1/transactions/"+url.PathEscape(id)+"/rollback", nil, t)
}

// unknown is the error for a transaction that may have been committed.
func unknown(id string, err error) error {
	var refused *Error
	if errors.As(err, &refused) && refused.Status < 500 && refused.Status != http.StatusTooManyRequests && refused.Reason != "ID_EXPIRED" {
		return err
	}
	return &UnknownOutcomeError{ID: id, Err: err}
}
