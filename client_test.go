package assent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/assent-tx/assent"
	"github.com/assent-tx/assent/internal/cluster"
	"github.com/assent-tx/assent/internal/ledger"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/replog"
	rmhttp "github.com/assent-tx/assent/internal/rm/http"
	"github.com/assent-tx/assent/internal/server"
	"github.com/assent-tx/assent/internal/shard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// coordinator is a real one, with two ledgers, behind a server of the test's.
func coordinator(t *testing.T) string {
	t.Helper()
	return coordinatorWith(t, shard.DefaultConfig(), server.Limits{})[0]
}

// coordinatorWith is one with settings of its own, and a server for each of the limits.
func coordinatorWith(t *testing.T, cfg shard.Config, limits ...server.Limits) (urls []string) {
	t.Helper()
	n := node.New(node.Config{Name: "n1", Shard: cfg}, rmhttp.New(rmhttp.Config{}), nil)
	log, err := replog.Open(replog.Config{Dir: t.TempDir(), NodeID: "n1", Machines: []replog.Machine{n.Machine(0)}, OnFatal: func(err error) { panic(err) }})
	if err != nil {
		t.Fatal(err)
	}
	c := cluster.New(cluster.Config{})
	var closers []func()
	for _, l := range limits {
		reg := prometheus.NewRegistry()
		api, err := server.New(server.Config{Coordinator: c, Registerer: reg, Gatherer: reg, Limits: l})
		if err != nil {
			t.Fatal(err)
		}
		web := httptest.NewServer(api.Handler())
		urls = append(urls, web.URL)
		closers = append(closers, web.Close, api.Close)
	}
	t.Cleanup(func() {
		for _, end := range closers {
			end()
		}
		if err := log.Close(); err != nil {
			t.Error(err)
		}
		n.Close()
		c.Close()
	})
	if err := n.Start(log); err != nil {
		t.Fatal(err)
	}
	c.Start(n, log)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, name := range []string{"bank-a", "bank-b"} {
		l, err := ledger.Open(t.TempDir(), name, 3, 100, nil)
		if err == nil {
			err = l.Serve("127.0.0.1:0")
		}
		if err == nil {
			err = l.Register(ctx, urls[0])
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	return urls
}

// rough is a network that breaks before and after requests took effect.
type rough struct {
	next     http.RoundTripper
	percent  int
	requests atomic.Int64
	broken   atomic.Int64
}

var errBroken = errors.New("the network broke")

func (r *rough) RoundTrip(req *http.Request) (*http.Response, error) {
	r.requests.Add(1)
	switch roll := rand.IntN(100); {
	case roll < r.percent/2:
		r.broken.Add(1)
		return nil, errBroken
	case roll < r.percent:
		r.broken.Add(1)
		resp, err := r.next.RoundTrip(req)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		return nil, errBroken
	}
	return r.next.RoundTrip(req)
}

func client(t *testing.T, url string, network http.RoundTripper) *assent.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	if network == nil {
		network = transport
	} else if r, ok := network.(*rough); ok {
		r.next = transport
	}
	c, err := assent.New(assent.Config{Endpoints: []string{url}, HTTPClient: &http.Client{Transport: network}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func posting(id string, account, amount int) map[string]any {
	return map[string]any{"transfer": id, "account": account, "amount": amount}
}

func balance(t *testing.T, c *assent.Client, service string, account int) (n int) {
	t.Helper()
	err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
		result, err := tx.Now(ctx, service, map[string]any{"op": "read", "account": account}, assent.Shared(fmt.Sprintf("accounts/%d", account)))
		if err != nil {
			return err
		}
		var b ledger.Balance
		err = json.Unmarshal(result, &b)
		n = int(b.Balance)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// transfer moves money if there is enough: it reads first.
func transfer(ctx context.Context, tx *assent.Tx, id string, from, to, amount int) error {
	result, err := tx.Now(ctx, "bank-a", map[string]any{"op": "read", "account": from}, assent.Update(fmt.Sprintf("accounts/%d", from)))
	if err != nil {
		return err
	}
	var b ledger.Balance
	if err := json.Unmarshal(result, &b); err != nil {
		return err
	}
	if int(b.Balance) < amount {
		return errTooLittle
	}
	_, err = tx.Do(ctx,
		assent.StepOperation{Operation: assent.Operation{Service: "bank-a", Payload: posting(id, from, -amount), Locks: []assent.Lock{assent.Exclusive(fmt.Sprintf("accounts/%d", from))}}},
		assent.StepOperation{Operation: assent.Operation{Service: "bank-b", Payload: posting(id, to, amount), Locks: []assent.Lock{assent.Exclusive(fmt.Sprintf("accounts/%d", to))}}})
	return err
}

var errTooLittle = errors.New("too little")

func TestRun(t *testing.T) {
	c := client(t, coordinator(t), nil)
	if err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error { return transfer(ctx, tx, "t1", 1, 2, 30) }); err != nil {
		t.Fatal(err)
	}
	if a, b := balance(t, c, "bank-a", 1), balance(t, c, "bank-b", 2); a != 70 || b != 130 {
		t.Errorf("balances %d and %d", a, b)
	}
	// The function's own error comes back as it is, and nothing has happened.
	var id string
	err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
		id = tx.ID()
		return transfer(ctx, tx, "t2", 1, 2, 500)
	})
	if !errors.Is(err, errTooLittle) {
		t.Errorf("an error of the function: %v", err)
	}
	if state, err := c.Get(t.Context(), id); err != nil || !state.Aborted() || state.Abort.Reason != assent.ReasonClientRollback {
		t.Errorf("%+v, %v", state, err)
	}
	// A panic rolls back and goes on.
	func() {
		defer func() {
			if recover() != "at the disco" {
				t.Error("no panic")
			}
		}()
		_ = c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
			id = tx.ID()
			if err := transfer(ctx, tx, "t3", 1, 2, 1); err != nil {
				t.Error(err)
			}
			panic("at the disco")
		})
	}()
	if state, err := c.Get(t.Context(), id); err != nil || !state.Aborted() {
		t.Errorf("%+v, %v", state, err)
	}
	// What a participant refuses is not tried again.
	tries := 0
	err = c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
		tries++
		return tx.Defer(ctx, "bank-a", posting("t4", 1, -500), assent.Exclusive("accounts/1"))
	})
	var a *assent.AbortedError
	if !errors.As(err, &a) || a.Reason != assent.ReasonVotedNo || a.Service != "bank-a" || a.Retryable() || tries != 1 {
		t.Errorf("%v after %d tries", err, tries)
	}
	// A request that is wrong.
	err = c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
		return tx.Defer(ctx, "nobody", 1, assent.Exclusive("k"))
	})
	var e *assent.Error
	if !errors.As(err, &e) || e.Reason != assent.ReasonUnknownService || e.Hint == "" || e.Status != 400 {
		t.Errorf("an unknown service: %v", err)
	}
	if a := balance(t, c, "bank-a", 1); a != 70 {
		t.Errorf("balance %d", a)
	}
}

func TestSubmit(t *testing.T) {
	c := client(t, coordinator(t), nil)
	s := assent.Submission{ID: assent.NewID(), Completed: true, Timeout: 5 * time.Second, Operations: []assent.Operation{
		{Service: "bank-a", Payload: posting("s1", 1, -30), Locks: []assent.Lock{assent.Exclusive("accounts/1")}},
		{Service: "bank-b", Payload: posting("s1", 2, 30), Locks: []assent.Lock{assent.Exclusive("accounts/2")}},
	}}
	r, err := c.Submit(t.Context(), s)
	if err != nil || r.State != "committed" || r.ID != s.ID || len(r.Branches) != 2 || len(r.Branches[0].Results) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if again, err := c.Submit(t.Context(), s); err != nil || !again.Replayed {
		t.Errorf("again: %+v, %v", again, err)
	}
	s.Operations[0].Payload = posting("s2", 1, -500)
	var e *assent.Error
	if _, err := c.Submit(t.Context(), s); !errors.As(err, &e) || e.Reason != assent.ReasonIDConflict {
		t.Errorf("another body: %v", err)
	}
	s.ID = ""
	var a *assent.AbortedError
	if r, err := c.Submit(t.Context(), s); !errors.As(err, &a) || a.Reason != assent.ReasonVotedNo || !r.Aborted() {
		t.Errorf("refused: %+v, %v", r, err)
	}
	if _, err := c.Rollback(t.Context(), r.ID); !errors.As(err, &e) || e.Reason != "ALREADY_COMMITTED" {
		t.Errorf("rollback of a committed one: %v", err)
	}
	never := assent.NewID()
	if r, err := c.Rollback(t.Context(), never); err != nil || !r.Aborted() {
		t.Errorf("rollback of one that never came: %+v, %v", r, err)
	}
	s.ID = never
	if _, err := c.Submit(t.Context(), s); !errors.As(err, &a) {
		t.Errorf("late: %v", err)
	}
}

// TestRunVictims: transactions that cross each other all get through, in the end.
func TestRunVictims(t *testing.T) {
	c := client(t, coordinator(t), nil)
	var tries atomic.Int64
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			from, to := 1+i%2, 2-i%2
			err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
				tries.Add(1)
				for step, account := range []int{from, to} {
					if err := tx.Lock(ctx, assent.Exclusive(fmt.Sprintf("accounts/%d", account)).Of("bank-a")); err != nil {
						return err
					}
					if err := tx.Defer(ctx, "bank-a", posting(fmt.Sprintf("v%d/%d", i, step), account, 1-2*step), assent.Exclusive(fmt.Sprintf("accounts/%d", account))); err != nil {
						return fmt.Errorf("wrapped: %w", err)
					}
				}
				return nil
			}, assent.WithTries(200))
			if err != nil {
				t.Errorf("transaction %d: %v", i, err)
			}
		})
	}
	all.Wait()
	if a, b := balance(t, c, "bank-a", 1), balance(t, c, "bank-a", 2); a != 100 || b != 100 {
		t.Errorf("balances %d and %d", a, b)
	}
	t.Logf("12 transactions in %d tries", tries.Load())
}

// TestRoughNetwork: whatever breaks, each transfer happens once or not at all, and the
// client knows which.
func TestRoughNetwork(t *testing.T) {
	url := coordinator(t)
	network := &rough{percent: 30}
	c := client(t, url, network)
	want := 100
	for i := range 30 {
		err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error { return transfer(ctx, tx, fmt.Sprint("r", i), 1, 1, 1) })
		if err != nil {
			t.Fatal(err)
		}
		want--
		s := assent.Submission{Operations: []assent.Operation{{Service: "bank-a", Payload: posting(fmt.Sprint("q", i), 1, -1), Locks: []assent.Lock{assent.Exclusive("accounts/1")}}}}
		if _, err := c.Submit(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		want--
	}
	calm := client(t, url, nil)
	if a := balance(t, calm, "bank-a", 1); a != want {
		t.Errorf("balance %d, want %d", a, want)
	}
	if network.broken.Load() < 20 {
		t.Errorf("only %d of %d requests broke", network.broken.Load(), network.requests.Load())
	}
}

// TestUnknownOutcome: nobody answers in time.
func TestUnknownOutcome(t *testing.T) {
	url := coordinator(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := client(t, url, roundTripper(func(req *http.Request) (*http.Response, error) {
		if strings.HasSuffix(req.URL.Path, "/commit") {
			cancel() // not before: then the outcome would be known
			return nil, errBroken
		}
		return http.DefaultTransport.RoundTrip(req)
	}))
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	var id string
	err := c.Run(ctx, func(ctx context.Context, tx *assent.Tx) error {
		id = tx.ID()
		return transfer(ctx, tx, "u1", 1, 1, 1)
	})
	var u *assent.UnknownOutcomeError
	if !errors.As(err, &u) || u.ID != id || !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	if state, err := c.Get(t.Context(), id); err != nil || state.State != "active" { // it was not rolled back: it might have been committed
		t.Errorf("%+v, %v", state, err)
	}
	// And where nobody listens at all.
	dead, err := assent.New(assent.Config{Endpoints: []string{"http://127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	ctx, end := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer end()
	if _, err := dead.Submit(ctx, assent.Submission{Operations: []assent.Operation{{Service: "a", Payload: 1}}}); !errors.As(err, &u) {
		t.Errorf("nobody there: %v", err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// TestEndpoints: an endpoint that does not answer is passed over.
func TestEndpoints(t *testing.T) {
	url := coordinator(t)
	c, err := assent.New(assent.Config{Endpoints: []string{"http://127.0.0.1:1", url + "/"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if a := balance(t, c, "bank-a", 1); a != 100 {
		t.Errorf("balance %d", a)
	}
	t.Setenv("ASSENT_ENDPOINTS", " "+url+" , http://127.0.0.1:1")
	if c, err = assent.New(assent.Config{}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if a := balance(t, c, "bank-a", 1); a != 100 {
		t.Errorf("balance %d", a)
	}
	for _, bad := range []string{"127.0.0.1:7070", "ftp://h", "http://", ":"} {
		if _, err := assent.New(assent.Config{Endpoints: []string{bad}}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestHeartbeats: a function that thinks longer than it may be silent keeps its
// transaction.
func TestHeartbeats(t *testing.T) {
	url := coordinator(t)
	beats := make(chan struct{}, 100)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	c := client(t, url, roundTripper(func(req *http.Request) (*http.Response, error) {
		if strings.HasSuffix(req.URL.Path, "/heartbeat") {
			beats <- struct{}{}
		}
		return transport.RoundTrip(req)
	}))
	err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
		if err := tx.Lock(ctx, assent.Shared("k").Of("bank-a")); err != nil {
			return err
		}
		for range 4 { // there are three in the time
			<-beats
		}
		return nil
	}, assent.WithIdleTimeout(time.Second), assent.WithTimeout(20*time.Second))
	if err != nil {
		t.Error(err)
	}
}

// TestRunUnansweredStep: what a function was told has failed is not committed behind its
// back, though it goes on as if nothing had been.
func TestRunUnansweredStep(t *testing.T) {
	c := client(t, coordinator(t), nil)
	var id string
	runs := 0
	holds, release := make(chan struct{}), make(chan struct{})
	var holder sync.WaitGroup
	holder.Go(func() {
		if err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
			if err := tx.Lock(ctx, assent.Exclusive("accounts/1").Of("bank-a")); err != nil {
				return err
			}
			close(holds)
			<-release
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	<-holds
	time.Sleep(10 * time.Millisecond) // the ages differ: the holder is the elder, and not made to give way
	err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
		id = tx.ID()
		if err := tx.Defer(ctx, "bank-b", posting("s", 2, 5), assent.Exclusive("accounts/2")); err != nil {
			return err
		}
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		err := tx.Defer(short, "bank-a", posting("s", 1, -5), assent.Exclusive("accounts/1"))
		var refused *assent.Error
		if !errors.Is(err, context.DeadlineExceeded) || errors.As(err, &refused) { // that: it has changed nothing
			t.Errorf("a lock that another has: %v", err)
		}
		runs++
		if err := tx.Lock(ctx, assent.Exclusive("accounts/3").Of("bank-b")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a step after that: %v", err)
		}
		return nil // it is busy: leave it out
	})
	if runs != 1 {
		t.Errorf("it ran %d times", runs)
	}
	close(release)
	holder.Wait()
	var unknown *assent.UnknownOutcomeError
	if !errors.Is(err, context.DeadlineExceeded) || errors.As(err, &unknown) || !strings.Contains(err.Error(), id) {
		t.Errorf("%v", err)
	}
	if state, err := c.Get(t.Context(), id); err != nil || !state.Aborted() {
		t.Errorf("%+v, %v", state, err)
	}
	if a, b := balance(t, c, "bank-a", 1), balance(t, c, "bank-b", 2); a != 100 || b != 100 {
		t.Errorf("balances %d and %d", a, b)
	}
	// A step that is refused has changed nothing: that is no reason to give up.
	if err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
		if err := tx.Lock(ctx, assent.Exclusive("k").Of("nobody")); err == nil {
			t.Error("a lock of an unknown service")
		}
		return tx.Defer(ctx, "bank-b", posting("s", 2, 5), assent.Exclusive("accounts/2"))
	}); err != nil {
		t.Error(err)
	}
}

// TestRunEndsBeforeCommit: a context that ends before the commit was asked for leaves
// nothing unknown.
func TestRunEndsBeforeCommit(t *testing.T) {
	c := client(t, coordinator(t), nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var id string
	err := c.Run(ctx, func(ctx context.Context, tx *assent.Tx) error {
		id = tx.ID()
		defer cancel()
		return tx.Defer(ctx, "bank-a", posting("e", 1, -5), assent.Exclusive("accounts/1"))
	})
	var unknown *assent.UnknownOutcomeError
	if !errors.Is(err, context.Canceled) || errors.As(err, &unknown) {
		t.Errorf("%v", err)
	}
	if state, err := c.Get(t.Context(), id); err != nil || !state.Aborted() {
		t.Errorf("%+v, %v", state, err)
	}
}

// TestRunUnknownOfAnother: that nobody can say what became of another transaction is no
// reason to leave this one open.
func TestRunUnknownOfAnother(t *testing.T) {
	c := client(t, coordinator(t), nil)
	var id string
	err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
		id = tx.ID()
		if err := tx.Lock(ctx, assent.Exclusive("k").Of("bank-a")); err != nil {
			return err
		}
		return fmt.Errorf("the other one: %w", &assent.UnknownOutcomeError{ID: assent.NewID(), Err: context.DeadlineExceeded})
	})
	var u *assent.UnknownOutcomeError
	if !errors.As(err, &u) || u.ID == id {
		t.Fatalf("%v", err)
	}
	if state, err := c.Get(t.Context(), id); err != nil || !state.Aborted() {
		t.Errorf("%+v, %v", state, err)
	}
}

// TestCommitRefusedByAProxy: a commit whose answer was lost is not undone by what a proxy
// says to its repetition.
func TestCommitRefusedByAProxy(t *testing.T) {
	c := client(t, coordinator(t), lostThen(t, "/commit", func(w http.ResponseWriter) { http.Error(w, "no such page", http.StatusNotFound) }))
	var id string
	err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
		id = tx.ID()
		return transfer(ctx, tx, "p1", 1, 2, 1)
	})
	state, getErr := c.Get(t.Context(), id)
	if getErr != nil || !state.Committed() {
		t.Fatalf("%+v, %v", state, getErr)
	}
	var u *assent.UnknownOutcomeError
	if err != nil && !errors.As(err, &u) {
		t.Errorf("a committed transaction is told as %T: %v", err, err)
	}
	var proxy *assent.Error
	if errors.As(err, &proxy) && proxy.Permanent() {
		t.Errorf("a proxy's word is taken for permanent: %v", proxy)
	}
}

// TestRollbackEndsWithTheContext: a context that has ended leaves the rollback a second.
func TestRollbackEndsWithTheContext(t *testing.T) {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	c := client(t, coordinator(t), roundTripper(func(req *http.Request) (*http.Response, error) {
		if strings.HasSuffix(req.URL.Path, ":begin") {
			return transport.RoundTrip(req)
		}
		<-req.Context().Done() // it has gone
		return nil, req.Context().Err()
	}))
	for try := 1; ; try++ {
		ctx, cancel := context.WithCancel(t.Context())
		begin := time.Now()
		err := c.Run(ctx, func(context.Context, *assent.Tx) error { cancel(); return nil })
		took := time.Since(begin)
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if took < 4*time.Second { // a rollback has 5 s otherwise
			return
		}
		if try == 5 { // a machine that stands still does not do so five times
			t.Fatalf("Run returned %v after its context had ended", took)
		}
	}
}
