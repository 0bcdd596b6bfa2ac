package assent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assent-tx/assent"
	"github.com/assent-tx/assent/internal/server"
	"github.com/assent-tx/assent/internal/shard"
)

// lostThen forwards the first request to a path, loses its answer, and gives the next ones
// the answer of a proxy.
func lostThen(t *testing.T, path string, proxy func(w http.ResponseWriter)) http.RoundTripper {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	var n atomic.Int64
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		if !strings.HasSuffix(req.URL.Path, path) {
			return transport.RoundTrip(req)
		}
		if n.Add(1) == 1 {
			resp, err := transport.RoundTrip(req)
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
			return nil, errBroken
		}
		w := httptest.NewRecorder()
		proxy(w)
		return w.Result(), nil
	})
}

// TestUnreadableAnswerOfAStep: a step whose answer cannot be read was perhaps taken: the function was told that it
// failed, so it must not be committed behind its back (Tx: "otherwise ... the transaction
// is not committed").
func TestUnreadableAnswerOfAStep(t *testing.T) {
	url := coordinator(t)
	c := client(t, url, lostThen(t, "/operations", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>sign in</html>") }))
	err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
		if err := tx.Defer(ctx, "bank-a", posting("u1", 1, -5), assent.Exclusive("accounts/1")); err == nil {
			t.Error("the answer was read")
		}
		return nil // it is optional: leave it out
	})
	if a := balance(t, client(t, url, nil), "bank-a", 1); err == nil && a != 100 {
		t.Errorf("committed with the step that the function was told has failed: balance %d", a)
	}
}

// late keeps the first request to a path and says that the network broke; deliver sends it.
func late(t *testing.T, path string) (network http.RoundTripper, deliver func()) {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	var n atomic.Int64
	var kept *http.Request
	network = roundTripper(func(req *http.Request) (*http.Response, error) {
		if strings.HasSuffix(req.URL.Path, path) && n.Add(1) == 1 {
			body, _ := io.ReadAll(req.Body)
			kept = req.Clone(context.Background())
			kept.Body = io.NopCloser(bytes.NewReader(body))
			return nil, errBroken
		}
		return transport.RoundTrip(req)
	})
	return network, func() {
		resp, err := transport.RoundTrip(kept)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
}

// TestRefusalAfterALostTry: a refusal of the second try says nothing of the first, whose
// answer was lost: it must not be done behind the back of who was told the refusal.
func TestRefusalAfterALostTry(t *testing.T) {
	url := coordinator(t)
	calm := client(t, url, nil)
	register := func() {
		req, err := http.NewRequest(http.MethodPut, url+"/v1/services/late", strings.NewReader(
			`{"http":{"prepare":"http://127.0.0.1:1/p","commit":"http://127.0.0.1:1/c","rollback":"http://127.0.0.1:1/r"}}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		resp.Body.Close()
		http.DefaultClient.CloseIdleConnections()
	}
	network, deliver := late(t, "/transactions")
	id := assent.NewID()
	_, err := client(t, url, network).Submit(t.Context(), assent.Submission{ID: id, Timeout: 200 * time.Millisecond, Operations: []assent.Operation{{Service: "late", Payload: 1, Locks: []assent.Lock{assent.Exclusive("k")}}}})
	register()
	deliver()
	state, getErr := calm.Get(t.Context(), id)
	var u *assent.UnknownOutcomeError
	if getErr == nil && !state.Aborted() && !errors.As(err, &u) {
		t.Errorf("told %T %v, which means that nothing was changed, and it is %s", err, err, state.State)
	}
}

// TestLostTryThatCommitted: the try whose answer was lost has committed by the time that a
// later one is refused: the submission is told as committed.
func TestLostTryThatCommitted(t *testing.T) {
	url := coordinator(t)
	refusal := `{"code":9,"message":"service \"bank-a\" is being removed","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"SERVICE_DRAINING","domain":"assent"}]}`
	refusals := 0
	network := lostThen(t, "/transactions", func(w http.ResponseWriter) {
		refusals++
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, refusal)
	})
	forward := client(t, url, nil)
	c := client(t, url, roundTripper(func(req *http.Request) (*http.Response, error) {
		if refusals > 0 && strings.HasSuffix(req.URL.Path, "/transactions") { // once is enough
			return http.DefaultTransport.RoundTrip(req)
		}
		return network.RoundTrip(req)
	}))
	defer http.DefaultClient.CloseIdleConnections()
	got, err := c.Submit(t.Context(), assent.Submission{Operations: []assent.Operation{{Service: "bank-a", Payload: posting("once", 1, -5), Locks: []assent.Lock{assent.Exclusive("accounts/1")}}}})
	if err != nil || !got.Committed() || refusals != 1 {
		t.Errorf("%+v, %v, after %d refusals", got, err, refusals)
	}
	if a := balance(t, forward, "bank-a", 1); a != 95 {
		t.Errorf("balance %d", a)
	}
}

// TestStrangersAnswers: what no coordinator says does not pass for a step that was taken or
// refused.
func TestStrangersAnswers(t *testing.T) {
	for name, body := range map[string]string{
		"empty":           `{}`,
		"another's abort": `{"transaction":{"id":"x","state":"aborted","abort":{"reason":"VOTED_NO"}}}`,
		"no results":      `{"transaction":{"state":"active"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			url := coordinator(t)
			c := client(t, url, lostThen(t, "/operations", func(w http.ResponseWriter) { _, _ = io.WriteString(w, body) }))
			err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
				if err := tx.Defer(ctx, "bank-a", posting("u1", 1, -5), assent.Exclusive("accounts/1")); err == nil {
					t.Error("the answer passed")
				}
				return nil
			}, assent.WithTries(1))
			if a := balance(t, client(t, url, nil), "bank-a", 1); err == nil || a != 100 {
				t.Errorf("%v, balance %d", err, a)
			}
		})
	}
}

// TestStrangersTransactions: nor does it pass for a transaction that has begun or was
// committed.
func TestStrangersTransactions(t *testing.T) {
	for name, body := range map[string]string{
		"empty":     `{}`,
		"null":      `null`,
		"another":   `{"id":"x","state":"committed"}`,
		"no id":     `{"state":"committed"}`,
		"no answer": ``,
	} {
		t.Run(name, func(t *testing.T) {
			url := coordinator(t)
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			stranger := func(path string) *assent.Client {
				return client(t, url, roundTripper(func(req *http.Request) (*http.Response, error) {
					if !strings.HasSuffix(req.URL.Path, path) {
						return transport.RoundTrip(req)
					}
					w := httptest.NewRecorder()
					_, _ = io.WriteString(w, body)
					return w.Result(), nil
				}))
			}
			op := assent.Operation{Service: "bank-a", Payload: posting("u1", 1, -5), Locks: []assent.Lock{assent.Exclusive("accounts/1")}}
			work := func(ctx context.Context, tx *assent.Tx) error {
				return tx.Defer(ctx, op.Service, op.Payload, op.Locks...)
			}
			if err := stranger(":begin").Run(t.Context(), work); err == nil {
				t.Error("begun")
			}
			var u *assent.UnknownOutcomeError
			if err := stranger("/commit").Run(t.Context(), work); !errors.As(err, &u) {
				t.Fatalf("commit: %v", err)
			}
			if _, err := stranger("/transactions").Submit(t.Context(), assent.Submission{Operations: []assent.Operation{op}}); !errors.As(err, &u) {
				t.Errorf("submit: %v", err)
			}
			if got, err := stranger("/"+u.ID).Get(t.Context(), u.ID); err == nil {
				t.Errorf("get: %+v", got)
			}
			if got, err := stranger("/rollback").Rollback(t.Context(), u.ID); err == nil {
				t.Errorf("rollback: %+v", got)
			}
		})
	}
}

// TestUndecidedAnswers: what is answered as not decided is asked again with pauses.
func TestUndecidedAnswers(t *testing.T) {
	var n atomic.Int64
	id := assent.NewID()
	c := client(t, "http://127.0.0.1:1", roundTripper(func(req *http.Request) (*http.Response, error) {
		if req.Method == http.MethodPost {
			n.Add(1)
		}
		w := httptest.NewRecorder()
		_, _ = io.WriteString(w, `{"id":"`+id+`","state":"preparing"}`)
		return w.Result(), nil
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := c.Submit(ctx, assent.Submission{ID: id, Operations: []assent.Operation{{Service: "a", Payload: 1}}})
	var u *assent.UnknownOutcomeError
	if !errors.As(err, &u) || n.Load() > 10 { // 10, 20, 40 ms and so on
		t.Errorf("%d requests: %v", n.Load(), err)
	}
}

// TestCauseOfAnother: a context ends with the refusal or the abort of another request, as
// errgroup has it, and the answer to this one is lost: those are not told of it.
func TestCauseOfAnother(t *testing.T) {
	url := coordinator(t)
	for name, cause := range map[string]error{
		"refusal": &assent.Error{Status: 400, Reason: assent.ReasonUnknownService, Message: "of another request"},
		"abort":   &assent.AbortedError{ID: assent.NewID(), Reason: assent.ReasonDeadlock, Message: "of another transaction"},
	} {
		for _, how := range []string{"submit", "run"} {
			t.Run(name+"/"+how, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				transport := &http.Transport{}
				defer transport.CloseIdleConnections()
				c := client(t, url, roundTripper(func(req *http.Request) (*http.Response, error) {
					resp, err := transport.RoundTrip(req)
					if !strings.HasSuffix(req.URL.Path, "/commit") && req.URL.Path != "/v1/transactions" {
						return resp, err
					}
					if err == nil { // committed, that is
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
					}
					cancel(cause)
					return nil, errBroken
				}))
				id := assent.NewID()
				op := assent.Operation{Service: "bank-a", Payload: posting(name+how, 1, -5), Locks: []assent.Lock{assent.Exclusive("accounts/1")}}
				var err error
				if how == "submit" {
					_, err = c.Submit(ctx, assent.Submission{ID: id, Operations: []assent.Operation{op}})
				} else {
					err = c.Run(ctx, func(ctx context.Context, tx *assent.Tx) error {
						id = tx.ID()
						return tx.Defer(ctx, op.Service, op.Payload, op.Locks...)
					})
				}
				if state, err := client(t, url, nil).Get(t.Context(), id); err != nil || !state.Committed() {
					t.Fatal(state, err)
				}
				var refused *assent.Error
				var aborted *assent.AbortedError
				var unknown *assent.UnknownOutcomeError
				if !errors.As(err, &unknown) || unknown.ID != id || errors.As(err, &refused) || errors.As(err, &aborted) || !errors.Is(err, context.Canceled) {
					t.Errorf("a commit is told as %T: %v", err, err)
				}
				if !strings.Contains(err.Error(), "of another") {
					t.Errorf("the cause is not told: %v", err)
				}
			})
		}
	}
}

// TestRefusalOfAnotherDomain: a gateway refuses in the shape that coordinators do, after a
// try whose answer was lost.
func TestRefusalOfAnotherDomain(t *testing.T) {
	for _, path := range []string{"/commit", "/transactions"} {
		url := coordinator(t)
		c := client(t, url, lostThen(t, path, func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"code":7,"message":"quota exceeded","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"RATE_LIMIT_EXCEEDED","domain":"example.com"}]}`)
		}))
		id := assent.NewID()
		op := assent.Operation{Service: "bank-a", Payload: posting("once", 1, -5), Locks: []assent.Lock{assent.Exclusive("accounts/1")}}
		var err error
		if path == "/commit" {
			err = c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
				id = tx.ID()
				return tx.Defer(ctx, op.Service, op.Payload, op.Locks...)
			})
		} else {
			_, err = c.Submit(t.Context(), assent.Submission{ID: id, Operations: []assent.Operation{op}})
		}
		if state, err := client(t, url, nil).Get(t.Context(), id); err != nil || !state.Committed() {
			t.Fatal(path, state, err)
		}
		var u *assent.UnknownOutcomeError
		if !errors.As(err, &u) {
			t.Errorf("%s: a commit is told as %T: %v", path, err, err)
		}
	}
}

// TestLaterRefusalByALimit: the next try meets a node with a lower limit, in a rolling
// restart, say.
func TestLaterRefusalByALimit(t *testing.T) {
	urls := coordinatorWith(t, shard.DefaultConfig(), server.Limits{}, server.Limits{MaxRequestBytes: 150})
	second, err := url.Parse(urls[1])
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	var tries atomic.Int64
	c := client(t, urls[0], roundTripper(func(req *http.Request) (*http.Response, error) {
		if !strings.HasSuffix(req.URL.Path, "/transactions") {
			return transport.RoundTrip(req)
		}
		if tries.Add(1) > 1 {
			req = req.Clone(req.Context())
			req.URL.Host, req.Host = second.Host, second.Host
			return transport.RoundTrip(req)
		}
		resp, err := transport.RoundTrip(req)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		return nil, errBroken
	}))
	id := assent.NewID()
	got, err := c.Submit(t.Context(), assent.Submission{ID: id, Operations: []assent.Operation{{
		Service: "bank-a", Payload: posting("once", 1, -5), Locks: []assent.Lock{assent.Exclusive("accounts/1")},
	}}})
	state, getErr := client(t, urls[0], nil).Get(t.Context(), id)
	if getErr != nil || tries.Load() < 2 {
		t.Fatal(tries.Load(), getErr)
	}
	var u *assent.UnknownOutcomeError
	if state.Committed() && !errors.As(err, &u) && (err != nil || !got.Committed()) {
		t.Errorf("it is %s, and told as %T: %v", state.State, err, err)
	}
}

// TestRefusalAfterUndecided: what was answered as not decided yet, or is committed by the word
// of a rollback, is not told as refused when the next node takes no such request.
func TestRefusalAfterUndecided(t *testing.T) {
	const tooLarge = `{"code":3,"message":"the body is too large","details":[{"reason":"REQUEST_TOO_LARGE","domain":"assent"}]}`
	const committed = `{"code":9,"message":"it is committed","details":[{"reason":"ALREADY_COMMITTED","domain":"assent"}]}`
	for name, first := range map[string]string{"lost": "", "preparing": `{"id":"ID","state":"preparing"}`, "committing": `{"id":"ID","state":"committing"}`} {
		t.Run(name, func(t *testing.T) {
			var id atomic.Value // asked for in the background, too
			id.Store(assent.NewID())
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			var posts atomic.Int64
			var network roundTripper = func(req *http.Request) (*http.Response, error) {
				w := httptest.NewRecorder()
				say := func(status int, body string) (*http.Response, error) {
					w.WriteHeader(status)
					_, _ = io.WriteString(w, strings.ReplaceAll(body, "ID", id.Load().(string))) //nolint:forcetypeassert // it is
					return w.Result(), nil
				}
				switch {
				case strings.HasSuffix(req.URL.Path, ":begin"):
					var body struct{ ID string }
					_ = json.NewDecoder(req.Body).Decode(&body)
					id.Store(body.ID)
					return say(200, `{"id":"ID","state":"active"}`)
				case strings.HasSuffix(req.URL.Path, "/rollback"):
					return say(409, committed)
				case req.Method == http.MethodGet && strings.HasPrefix(req.URL.Path, "/v1/transactions/"):
					return say(200, `{"id":"ID","state":"committing"}`)
				case !strings.HasSuffix(req.URL.Path, "/transactions") && !strings.HasSuffix(req.URL.Path, "/commit"):
					return say(404, "")
				}
				switch n := posts.Add(1); {
				case n == 1 && first == "":
					return nil, errBroken
				case n == 1:
					return say(200, first)
				case n == 5: // it never gets better
					cancel()
				}
				return say(413, tooLarge)
			}
			var u *assent.UnknownOutcomeError
			got, err := client(t, "http://127.0.0.1:1", network).Submit(ctx, assent.Submission{ID: id.Load().(string), Completed: true, Operations: []assent.Operation{{Service: "a", Payload: 1}}})
			if !errors.As(err, &u) {
				t.Errorf("Submit: %+v, %T %v", got, err, err)
			}
			if first == `{"id":"ID","state":"committing"}` { // which a commit takes
				return
			}
			posts.Store(0)
			ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := client(t, "http://127.0.0.1:1", network).Run(ctx, func(context.Context, *assent.Tx) error { return nil }); !errors.As(err, &u) {
				t.Errorf("Run: %T %v", err, err)
			}
		})
	}
}

// TestWrongInputAfterALostTry: what certainly changed nothing is told so.
func TestWrongInputAfterALostTry(t *testing.T) {
	url := coordinator(t)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	var begins atomic.Int64
	c := client(t, url, roundTripper(func(req *http.Request) (*http.Response, error) {
		if strings.HasSuffix(req.URL.Path, ":begin") && begins.Add(1) == 1 {
			return nil, errBroken
		}
		return transport.RoundTrip(req)
	}))
	var refused *assent.Error
	err := c.Run(t.Context(), func(context.Context, *assent.Tx) error { return nil }, assent.WithTimeout(time.Millisecond))
	if !errors.As(err, &refused) || begins.Load() < 2 {
		t.Errorf("a timeout out of range: %T %v", err, err)
	}
	var u *assent.UnknownOutcomeError
	_, err = c.Submit(t.Context(), assent.Submission{Operations: []assent.Operation{{Service: "bank-a", Payload: make(chan int)}}})
	if err == nil || errors.As(err, &u) {
		t.Errorf("a payload that is no JSON: %T %v", err, err)
	}
}
