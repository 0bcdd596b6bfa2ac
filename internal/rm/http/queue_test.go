package rmhttp

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/rm"
)

func prefixes(t *testing.T, s string) []netip.Prefix {
	t.Helper()
	if s == "" {
		return nil
	}
	return []netip.Prefix{netip.MustParsePrefix(s)}
}

// gate is a participant that answers nothing until it is opened.
type gate struct {
	open    chan struct{}
	opened  sync.Once
	arrived chan rm.Phase
	inside  atomic.Int32
	most    atomic.Int32
	preps   atomic.Int32
	mostPre atomic.Int32
}

func (g *gate) release() { g.opened.Do(func() { close(g.open) }) }

func raise(most *atomic.Int32, n int32) {
	for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
	}
}

func newGate(t *testing.T) (*gate, rm.Endpoint) {
	g := &gate{open: make(chan struct{}), arrived: make(chan rm.Phase, 10_000)}
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		raise(&g.most, g.inside.Add(1))
		defer g.inside.Add(-1)
		phase := rm.Commit
		if r.URL.Path == "/prepare" {
			phase = rm.Prepare
			raise(&g.mostPre, g.preps.Add(1))
			defer g.preps.Add(-1)
		}
		g.arrived <- phase
		<-g.open
		fmt.Fprint(w, `{"vote":"yes"}`)
	})
	t.Cleanup(g.release) // before the server's Close, which waits for its handlers
	return g, at(s.URL)
}

// A service that hangs, with a full queue, costs no other service anything.
func TestHangingServiceDelaysNobodyElse(t *testing.T) {
	g, hanging := newGate(t)
	hanging.MaxInFlight = 8
	fast := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"vote":"yes"}`) })
	cl := newClient(t, Config{MaxWaitingPrepares: 100})
	hung := make(chan rm.Result, 1000)
	before := runtime.NumGoroutine()
	for range 106 {
		cl.Call(call(rm.Prepare), hanging, func(r rm.Result) { hung <- r })
	}
	for range 6 { // a quarter of the slots is kept for finishing
		receive(t, g.arrived)
	}
	// Waiting calls hold no goroutine: those in flight have a few each (ours, the
	// transport's two, the test server's).
	if n := runtime.NumGoroutine() - before; n > 60 {
		t.Errorf("%d goroutines for 6 calls in flight and 100 waiting", n)
	}
	for i := range 50 {
		e := at(fast.URL)
		c := call(rm.Prepare)
		c.Service = fmt.Sprintf("fast-%d", i%5)
		if r := ask(t, cl, c, e); r.Kind != rm.Yes {
			t.Fatalf("%+v", r)
		}
	}
	if len(hung) != 0 {
		t.Errorf("the hanging service answered: %+v", <-hung)
	}
}

func TestInFlightLimitAndReserve(t *testing.T) {
	g, e := newGate(t)
	e.MaxInFlight = 8
	cl := newClient(t, Config{})
	results := make(chan rm.Result, 1000)
	tell := func(r rm.Result) { results <- r }
	for range 100 {
		cl.Call(call(rm.Prepare), e, tell)
	}
	for range 6 {
		receive(t, g.arrived)
	}
	for range 100 {
		cl.Call(ofBranch(3, rm.Commit), e, tell)
	}
	for range 2 { // the reserve
		if p := receive(t, g.arrived); p != rm.Commit {
			t.Errorf("a %s took a reserved slot", p)
		}
	}
	g.release()
	for range 200 {
		if r := receive(t, results); r.Kind != rm.Yes && r.Kind != rm.Done {
			t.Fatalf("%+v", r)
		}
	}
	if g.most.Load() != 8 || g.mostPre.Load() != 6 {
		t.Errorf("at most %d calls, %d prepares in flight; want 8 and 6", g.most.Load(), g.mostPre.Load())
	}
	waitForNoServices(t, cl)
}

// Waiting commits go before waiting prepares, whatever the order they came in.
func TestFinishingGoesFirst(t *testing.T) {
	order := make(chan rm.Phase, 100)
	enter := make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Phase string }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		if body.Phase == "prepare" {
			order <- rm.Prepare
		} else {
			order <- rm.Commit
		}
		<-enter
		fmt.Fprint(w, `{"vote":"yes"}`)
	})
	e := at(s.URL)
	e.MaxInFlight = 1 // no reserve is possible: the order alone must do
	cl := newClient(t, Config{})
	results := make(chan rm.Result, 100)
	tell := func(r rm.Result) { results <- r }
	cl.Call(call(rm.Prepare), e, tell)
	receive(t, order)
	for range 10 {
		cl.Call(call(rm.Prepare), e, tell)
	}
	for range 10 {
		cl.Call(ofBranch(3, rm.Commit), e, tell)
	}
	close(enter)
	for i := range 20 {
		want := rm.Commit
		if i >= 10 {
			want = rm.Prepare
		}
		if p := receive(t, order); p != want {
			t.Fatalf("call %d was a %s", i, p)
		}
	}
	for range 21 {
		receive(t, results)
	}
}

func TestFullQueueRefusesUnsent(t *testing.T) {
	g, e := newGate(t)
	e.MaxInFlight = 4
	cl := newClient(t, Config{MaxWaitingPrepares: 5, MaxWaitingFinishes: 7})
	refused, answered := make(chan rm.Result, 100), make(chan rm.Result, 100)
	tell := func(r rm.Result) {
		if r.Sent {
			answered <- r
		} else {
			refused <- r
		}
	}
	for range 3 + 5 + 10 {
		cl.Call(call(rm.Prepare), e, tell)
	}
	for range 1 + 7 + 20 {
		cl.Call(call(rm.Commit), e, tell)
	}
	for range 30 {
		if r := receive(t, refused); r.Kind != rm.Indefinite || !strings.Contains(r.Reason, "waiting") || r.Took != 0 {
			t.Fatalf("%+v", r)
		}
	}
	g.release()
	for range 16 {
		receive(t, answered)
	}
	waitForNoServices(t, cl)
}

func TestPrepareThatWaitedTooLongIsNotSent(t *testing.T) {
	g, e := newGate(t)
	e.MaxInFlight = 1
	cl := newClient(t, Config{})
	first, second := make(chan rm.Result, 1), make(chan rm.Result, 1)
	cl.Call(call(rm.Prepare), e, func(r rm.Result) { first <- r })
	receive(t, g.arrived)
	short := e
	short.PrepareTimeout = time.Nanosecond
	cl.Call(call(rm.Prepare), short, func(r rm.Result) { second <- r })
	g.release()
	if r := receive(t, first); r.Kind != rm.Yes {
		t.Errorf("%+v", r)
	}
	if r := receive(t, second); r.Kind != rm.Indefinite || r.Sent || !strings.Contains(r.Reason, "waited longer") {
		t.Errorf("%+v", r)
	}
}

// A raised limit is used at once by what waits.
func TestRaisedLimitStartsWaitingCalls(t *testing.T) {
	g, e := newGate(t)
	e.MaxInFlight = 1
	cl := newClient(t, Config{})
	results := make(chan rm.Result, 100)
	for range 20 {
		cl.Call(call(rm.Commit), e, func(r rm.Result) { results <- r })
	}
	receive(t, g.arrived)
	e.MaxInFlight = 12
	cl.Call(call(rm.Commit), e, func(r rm.Result) { results <- r })
	for range 11 {
		receive(t, g.arrived)
	}
	g.release()
	for range 21 {
		receive(t, results)
	}
}

func TestCloseEndsEverythingOnce(t *testing.T) {
	g, e := newGate(t)
	e.MaxInFlight = 4
	cl := New(Config{})
	var done atomic.Int32
	told := make([]atomic.Int32, 50)
	for i := range told {
		cl.Call(call(rm.Prepare), e, func(r rm.Result) {
			done.Add(1)
			if told[i].Add(1) != 1 || r.Kind != rm.Indefinite || r.Reason != "the coordinator is shutting down" {
				t.Errorf("call %d: %+v", i, r)
			}
		})
	}
	for range 3 {
		receive(t, g.arrived)
	}
	cl.Close()
	if n := done.Load(); n != 50 {
		t.Fatalf("Close returned with %d of 50 calls told", n)
	}
	cl.Close() // again: nothing to do
	late := make(chan rm.Result, 1)
	cl.Call(call(rm.Prepare), e, func(r rm.Result) { late <- r })
	if r := receive(t, late); r.Kind != rm.Indefinite || r.Sent {
		t.Errorf("%+v", r)
	}
}

// A done that calls again, from a slot of the same service, does not deadlock.
func TestDoneMayCall(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"vote":"yes"}`) })
	e := at(s.URL)
	e.MaxInFlight = 1
	cl := newClient(t, Config{})
	end := make(chan rm.Result, 1)
	var again func(n int) func(rm.Result)
	again = func(n int) func(rm.Result) {
		return func(r rm.Result) {
			if n == 0 {
				end <- r
				return
			}
			cl.Call(call(rm.Commit), e, again(n-1))
		}
	}
	cl.Call(call(rm.Prepare), e, again(20))
	if r := receive(t, end); r.Kind != rm.Done {
		t.Errorf("%+v", r)
	}
}

// Services that come and go leave nothing behind.
func TestIdleServicesAreForgotten(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"vote":"yes"}`) })
	cl := newClient(t, Config{})
	results := make(chan rm.Result, 500)
	for i := range 500 {
		c := call(rm.Prepare)
		c.Service = fmt.Sprint("s", i)
		cl.Call(c, at(s.URL), func(r rm.Result) { results <- r })
	}
	for range 500 {
		receive(t, results)
	}
	waitForNoServices(t, cl)
	for i := range 3 * maxParsedURLs {
		if _, err := cl.parseURL(fmt.Sprintf("%s/%d", s.URL, i)); err != nil {
			t.Fatal(err)
		}
	}
	if len(cl.urls) > maxParsedURLs {
		t.Errorf("%d parsed URLs kept", len(cl.urls))
	}
}

func waitForNoServices(t *testing.T, cl *Client) {
	t.Helper()
	for end := time.Now().Add(deadline); ; runtime.Gosched() {
		cl.mu.Lock()
		n := len(cl.services)
		cl.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d services still have state", n)
		}
	}
}

func TestFIFO(t *testing.T) {
	var f fifo
	next, want := 0, 0
	for round := range 1000 {
		for range round % 7 {
			f.push(&job{call: &rm.Call{Attempt: uint32(next)}})
			next++
		}
		for range min(round%5, f.len()) {
			if got := int(f.pop().call.Attempt); got != want {
				t.Fatalf("popped %d, want %d", got, want)
			}
			want++
		}
		if f.len() != next-want {
			t.Fatalf("length %d, want %d", f.len(), next-want)
		}
	}
	for f.len() > 0 {
		if got := int(f.pop().call.Attempt); got != want {
			t.Fatalf("popped %d, want %d", got, want)
		}
		want++
	}
}

// A service that moves while calls wait and others hang: what waits goes to the new
// address at once, and what hangs at the old one is given up soon.
func TestMovedServiceIsAskedAtItsNewAddress(t *testing.T) {
	g, e := newGate(t)
	e.MaxInFlight, e.Version = 2, 1
	e.PrepareTimeout, e.FinishTimeout = 10*deadline, 10*deadline
	var sent atomic.Int32
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		sent.Add(1)
		fmt.Fprint(w, `{"vote":"yes"}`)
	})
	cl := newClient(t, Config{})
	results := make(chan rm.Result, 10)
	done := func(r rm.Result) { results <- r }
	cl.Call(call(rm.Commit), e, done) // both hang at the old address
	cl.Call(ofBranch(3, rm.Prepare), e, done)
	receive(t, g.arrived)
	receive(t, g.arrived)
	for i := range 4 {
		cl.Call(ofBranch(uint32(10+i), rm.Prepare), e, done)
	}
	moved := at(s.URL)
	moved.MaxInFlight, moved.Version = 8, 2
	cl.Update("ledger", moved)
	for range 4 {
		if r := receive(t, results); r.Kind != rm.Yes {
			t.Errorf("a call that waited: %+v", r)
		}
	}
	cl.Call(ofBranch(20, rm.Prepare), e, done) // from who has not heard of the move yet
	if r := receive(t, results); r.Kind != rm.Yes || sent.Load() != 5 {
		t.Errorf("%+v, %d calls at the new address, want 5", r, sent.Load())
	}
	for range 2 {
		if r := receive(t, results); r.Kind != rm.Indefinite || !strings.Contains(r.Reason, "moved") {
			t.Errorf("a call that hangs: %+v", r)
		}
	}
}

// A prepare or execute whose transaction was decided meanwhile keeps no slot: one
// that hangs is given up, one that waits is not sent.
func TestOvertakenWorkFreesItsSlot(t *testing.T) {
	for _, phase := range []rm.Phase{rm.Prepare, rm.Execute} {
		t.Run(phase.String(), func(t *testing.T) { overtaken(t, phase) })
	}
}

func overtaken(t *testing.T, phase rm.Phase) {
	hang := make(chan struct{})
	var prepares atomic.Int32
	arrived := make(chan struct{}, 1)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/"+phase.String() {
			if prepares.Add(1) == 1 {
				arrived <- struct{}{}
				<-hang
			}
		}
		fmt.Fprint(w, `{"vote":"yes","executed":true,"results":[1,2]}`)
	})
	t.Cleanup(func() { close(hang) })
	e := at(s.URL)
	e.MaxInFlight, e.PrepareTimeout = 2, 10*deadline // one of the two is kept for rollbacks
	cl := newClient(t, Config{})
	results := map[uint32]chan rm.Result{}
	prepare := func(branch uint32) {
		ch := make(chan rm.Result, 1)
		results[branch] = ch
		cl.Call(ofBranch(branch, phase), e, func(r rm.Result) { ch <- r })
	}
	prepare(1)
	receive(t, arrived)
	prepare(2)
	prepare(3)
	for _, branch := range []uint32{1, 2} {
		if r := ask(t, cl, ofBranch(branch, rm.Rollback), e); r.Kind != rm.Done {
			t.Fatalf("%+v", r)
		}
	}
	for branch, want := range map[uint32]string{1: "given up", 2: "decided before the call was sent"} {
		if r := receive(t, results[branch]); r.Kind != rm.Indefinite || !strings.Contains(r.Reason, want) {
			t.Errorf("branch %d: %+v, want %q", branch, r, want)
		}
	}
	if r := receive(t, results[3]); r.Kind != rm.Yes && r.Kind != rm.Executed {
		t.Errorf("%+v", r)
	}
	if n := prepares.Load(); n != 2 {
		t.Errorf("%d prepares were sent, want 2", n)
	}
	waitForNoServices(t, cl)
	if len(cl.prepares) != 0 {
		t.Errorf("%d prepares are remembered", len(cl.prepares))
	}
}
