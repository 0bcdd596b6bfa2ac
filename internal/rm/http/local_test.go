package rmhttp

import (
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/rm"
)

// hereClient is a client with a handler of this process behind the host that the
// endpoint names; no connection to anywhere is allowed.
func hereClient(t *testing.T, h http.HandlerFunc) (*Client, rm.Endpoint) {
	t.Helper()
	cl := New(Config{AllowedNetworks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, MaxResponseBytes: 1 << 10})
	t.Cleanup(cl.Close)
	const host = "127.0.0.1:1"
	cl.Serve(host, h)
	base := "http://" + host + "/x/"
	return cl, rm.Endpoint{
		PrepareURL: base + "prepare", CommitURL: base + "commit", RollbackURL: base + "rollback", StatusURL: base + "status",
		MaxInFlight: 4, PrepareTimeout: time.Minute, FinishTimeout: time.Minute,
	}
}

func askHere(t *testing.T, cl *Client, e rm.Endpoint, c *rm.Call) rm.Result {
	t.Helper()
	answer := make(chan rm.Result, 1)
	cl.Call(c, e, func(r rm.Result) { answer <- r })
	select {
	case r := <-answer:
		return r
	case <-time.After(30 * time.Second):
		t.Fatal("no answer")
		return rm.Result{}
	}
}

// TestHere: a handler of this process sees the request that a connection would have
// carried, and its answer counts as one from there.
func TestHere(t *testing.T) {
	cl, e := hereClient(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" || !strings.Contains(string(body), `"phase":"`) {
			t.Errorf("%s %v: %s", r.Method, err, body)
		}
		switch r.URL.Path {
		case "/x/prepare":
			_, _ = io.WriteString(w, `{"vote":"yes","results":[7]}`)
		case "/x/commit":
			w.WriteHeader(http.StatusOK)
		case "/x/rollback":
			_, _ = io.WriteString(w, `{"vote":"`+strings.Repeat("x", 4<<10)+`"}`)
		default:
			panic("not asked for")
		}
	})
	if r := askHere(t, cl, e, &rm.Call{Phase: rm.Prepare, Service: "s"}); r.Kind != rm.Yes || !r.Sent || string(r.Results[0]) != "7" {
		t.Errorf("prepare: %+v", r)
	}
	if r := askHere(t, cl, e, &rm.Call{Phase: rm.Commit, Service: "s"}); r.Kind != rm.Done {
		t.Errorf("commit: %+v", r)
	}
	if r := askHere(t, cl, e, &rm.Call{Phase: rm.Rollback, Service: "s"}); r.Kind != rm.Done { // the status says it all
		t.Errorf("rollback: %+v", r)
	}
	if r := askHere(t, cl, e, &rm.Call{Phase: rm.Status, Service: "s"}); r.Kind != rm.Indefinite || !r.Sent || !strings.Contains(r.Reason, "panicked") {
		t.Errorf("a panic: %+v", r)
	}
	cl.Serve("127.0.0.1:1", nil)
	if r := askHere(t, cl, e, &rm.Call{Phase: rm.Commit, Service: "s"}); r.Kind != rm.Indefinite || r.Sent {
		t.Errorf("after it ended: %+v", r)
	}
}

func TestHereLimits(t *testing.T) {
	cl, e := hereClient(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/x/prepare" {
			<-r.Context().Done()
			http.Error(w, "not done in time", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, `{"outcome":"committed","pad":"`)
		_, _ = io.WriteString(w, strings.Repeat("x", 4<<10)+`"}`)
	})
	if r := askHere(t, cl, e, &rm.Call{Phase: rm.Status, Service: "s"}); r.Kind != rm.Indefinite || !strings.Contains(r.Reason, "limit of 1024 bytes") {
		t.Errorf("too long an answer: %+v", r)
	}
	short := e
	short.PrepareTimeout = 10 * time.Millisecond
	if r := askHere(t, cl, short, &rm.Call{Phase: rm.Prepare, Service: "s"}); r.Kind != rm.Indefinite || !r.Sent {
		t.Errorf("a deadline: %+v", r)
	}
	// A prepare whose branch is decided is hurried: its minute shrinks to the grace.
	answer := make(chan rm.Result, 1)
	cl.Call(&rm.Call{Phase: rm.Prepare, Service: "s", Branch: 1}, e, func(r rm.Result) { answer <- r })
	_ = askHere(t, cl, e, &rm.Call{Phase: rm.Rollback, Service: "s", Branch: 1})
	select {
	case r := <-answer:
		if r.Kind != rm.Indefinite {
			t.Errorf("hurried: %+v", r)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("not hurried")
	}
}
