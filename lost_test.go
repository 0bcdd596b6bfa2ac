package assent_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assent-tx/assent"
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
	refusal := `{"code":9,"message":"service \"bank-a\" is being removed","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"SERVICE_DRAINING"}]}`
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
