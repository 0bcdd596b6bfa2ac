package rmhttp

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/rm"
)

// localStub answers as its fields say.
type localStub struct {
	vote, reason string
	results      [][]byte
	outcome      rm.Outcome
	executed     rm.Result
	err          error
	panics       bool
	stuck        chan<- struct{} // told when a prepare begins, which ends with its context
}

func (s *localStub) Prepare(ctx context.Context, _ *rm.Call) (vote, reason string, results [][]byte, err error) {
	if s.stuck != nil {
		s.stuck <- struct{}{}
		<-ctx.Done()
		return "", "", nil, ctx.Err()
	}
	return s.vote, s.reason, s.results, s.err
}

func (s *localStub) Finish(context.Context, *rm.Call) (rm.Outcome, error) { return s.outcome, s.err }

func (s *localStub) Status(context.Context, *rm.Call) (rm.Outcome, error) {
	if s.panics {
		panic("not asked for")
	}
	return s.outcome, s.err
}

func (s *localStub) Execute(context.Context, *rm.Call) (rm.Result, error) { return s.executed, s.err }

const localHost = "127.0.0.1:1"

// localClient is a client that may connect nowhere, with a participant of its process.
func localClient(t *testing.T, p Local) (*Client, rm.Endpoint) {
	t.Helper()
	cl := New(Config{AllowedNetworks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, MaxResponseBytes: 1 << 10, MaxResults: 3})
	t.Cleanup(cl.Close)
	cl.Serve(localHost, p)
	const base = "http://" + localHost + "/x/"
	return cl, rm.Endpoint{
		PrepareURL: base + "prepare", CommitURL: base + "commit", RollbackURL: base + "rollback", StatusURL: base + "status", ExecuteURL: base + "execute",
		MaxInFlight: 4, PrepareTimeout: time.Minute, FinishTimeout: time.Minute,
	}
}

func askedLocally(t *testing.T, cl *Client, e rm.Endpoint, c *rm.Call) rm.Result {
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

func TestLocalAnswers(t *testing.T) {
	var many [][]byte
	for range 4 {
		many = append(many, []byte("1"))
	}
	for _, c := range []struct {
		name  string
		phase rm.Phase
		p     localStub
		want  rm.Result
	}{
		{"yes", rm.Prepare, localStub{vote: "yes", results: many[:1]}, rm.Result{Kind: rm.Yes, Results: many[:1]}},
		{"no", rm.Prepare, localStub{vote: "no", reason: "why\n"}, rm.Result{Kind: rm.No, Reason: "why."}},
		{"read only, not registered so", rm.Prepare, localStub{vote: "read_only"}, rm.Result{Kind: rm.No, Reason: "protocol"}},
		{"nonsense", rm.Prepare, localStub{vote: "maybe"}, rm.Result{Reason: "unknown vote"}},
		{"an error", rm.Prepare, localStub{vote: "yes", err: errors.New("lost")}, rm.Result{Reason: "lost"}},
		{"too many results", rm.Prepare, localStub{vote: "yes", results: many}, rm.Result{Reason: "limit of 3"}},
		{"too long results", rm.Prepare, localStub{vote: "yes", results: [][]byte{make([]byte, 2<<10)}}, rm.Result{Reason: "limit of 1024"}},
		{"committed", rm.Commit, localStub{outcome: rm.OutcomeCommitted}, rm.Result{Kind: rm.Done}},
		{"commit contradicted", rm.Commit, localStub{outcome: rm.OutcomeRolledBack}, rm.Result{Kind: rm.Contradicts, Outcome: rm.OutcomeRolledBack}},
		{"commit of the unknown, confirmed by status", rm.Commit, localStub{outcome: rm.OutcomeUnknown}, rm.Result{Kind: rm.Contradicts}},
		{"still prepared", rm.Rollback, localStub{outcome: rm.OutcomePrepared}, rm.Result{Reason: "still prepared"}},
		{"rollback of the unknown", rm.Rollback, localStub{outcome: rm.OutcomeUnknown}, rm.Result{Kind: rm.Done}},
		{"rollback fails", rm.Rollback, localStub{outcome: rm.OutcomeRolledBack, err: errors.New("lost")}, rm.Result{Reason: "lost"}},
		{"status", rm.Status, localStub{outcome: rm.OutcomePrepared}, rm.Result{Kind: rm.Known, Outcome: rm.OutcomePrepared}},
		{"executed", rm.Execute, localStub{executed: rm.Result{Kind: rm.Executed, Results: many[:2]}}, rm.Result{Kind: rm.Executed, Results: many[:2]}},
		{"refused", rm.Execute, localStub{executed: rm.Result{Kind: rm.Refused, Reason: "GONE", Results: many}}, rm.Result{Kind: rm.Refused, Reason: "GONE"}},
		{"executed in part", rm.Execute, localStub{executed: rm.Result{Kind: rm.Executed, Results: many[:1]}}, rm.Result{Reason: "1 results for 2"}},
		{"executed with too much", rm.Execute, localStub{executed: rm.Result{Kind: rm.Executed, Results: [][]byte{make([]byte, 2<<10), nil}}}, rm.Result{Reason: "limit of 1024"}},
		{"executed, it says, and yes", rm.Execute, localStub{executed: rm.Result{Kind: rm.Yes, Results: many[:2]}}, rm.Result{Reason: "answered yes"}},
		{"execute fails", rm.Execute, localStub{err: errors.New("lost")}, rm.Result{Reason: "lost"}},
		{"a panic", rm.Status, localStub{panics: true}, rm.Result{Reason: "panicked"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl, e := localClient(t, &c.p)
			r := askedLocally(t, cl, e, &rm.Call{Phase: c.phase, Service: "s", Operations: [][]byte{[]byte("1"), []byte("2")}})
			if r.Kind != c.want.Kind || r.Outcome != c.want.Outcome || !strings.Contains(r.Reason, c.want.Reason) || len(r.Results) != len(c.want.Results) || !r.Sent {
				t.Errorf("%+v, want %+v", r, c.want)
			}
		})
	}
}

func TestLocalEnds(t *testing.T) {
	cl, e := localClient(t, &localStub{outcome: rm.OutcomeCommitted})
	if r := askedLocally(t, cl, e, &rm.Call{Phase: rm.Commit, Service: "s"}); r.Kind != rm.Done {
		t.Fatalf("%+v", r)
	}
	cl.Serve(localHost, nil)
	if r := askedLocally(t, cl, e, &rm.Call{Phase: rm.Commit, Service: "s"}); r.Kind != rm.Indefinite || r.Sent {
		t.Errorf("after it ended: %+v", r)
	}
}

// TestLocalDeadline: a stuck call ends at its timeout, and soon after its branch is
// decided.
func TestLocalDeadline(t *testing.T) {
	begun := make(chan struct{}, 2)
	cl, e := localClient(t, &localStub{stuck: begun, outcome: rm.OutcomeRolledBack})
	short := e
	short.PrepareTimeout = 10 * time.Millisecond
	if r := askedLocally(t, cl, short, &rm.Call{Phase: rm.Prepare, Service: "s"}); r.Kind != rm.Indefinite || !r.Sent {
		t.Errorf("at its timeout: %+v", r)
	}
	receive(t, begun)
	answer := make(chan rm.Result, 1)
	cl.Call(&rm.Call{Phase: rm.Prepare, Service: "s", Branch: 1}, e, func(r rm.Result) { answer <- r })
	receive(t, begun) // decided before, it would not be asked at all
	if r := askedLocally(t, cl, e, &rm.Call{Phase: rm.Rollback, Service: "s", Branch: 1}); r.Kind != rm.Done {
		t.Errorf("rollback: %+v", r)
	}
	select {
	case r := <-answer:
		if r.Kind != rm.Indefinite {
			t.Errorf("decided: %+v", r)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the prepare of a decided branch goes on")
	}
}
