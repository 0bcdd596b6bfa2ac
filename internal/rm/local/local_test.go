package local

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/assent-tx/assent/internal/rm"
	"github.com/assent-tx/assent/internal/txnid"
	"github.com/assent-tx/assent/participant"
)

// fake notes what it is asked and answers as it is told.
type fake struct {
	participant.Resource
	got     *participant.Call
	vote    participant.Vote
	outcome participant.Outcome
	err     error
}

func (f *fake) Prepare(_ context.Context, c *participant.Call) (participant.Vote, error) {
	f.got = c
	return f.vote, f.err
}

func (f *fake) Finish(_ context.Context, c *participant.Call) (participant.Outcome, error) {
	f.got = c
	return f.outcome, f.err
}

func (f *fake) Status(_ context.Context, c *participant.Call) (participant.Outcome, error) {
	f.got = c
	return f.outcome, f.err
}

// TestTranslates: the resource sees what a call over HTTP would have carried, and
// its operations match their digest.
func TestTranslates(t *testing.T) {
	payload := []byte(`{"a":1}`)
	digest := participant.Digest([]json.RawMessage{payload})
	c := &rm.Call{
		Phase: rm.Prepare, Cluster: strings.Repeat("c", 32), Service: "bank", Txn: txnid.New(1_790_000_000_000, [10]byte{}), Branch: 2, Attempt: 3, Term: 4,
		Shard: 5, Shards: 6, Token: "t", Forgotten: txnid.Floor(7), OnePhase: true, Operations: [][]byte{payload},
	}
	if _, err := hex.Decode(c.Digest[:], []byte(digest)); err != nil {
		t.Fatal(err)
	}
	f := &fake{vote: participant.Vote{Vote: "yes", Reason: "r", Results: []json.RawMessage{[]byte("8")}}, outcome: participant.OutcomeRolledBack}
	p := New("bank", f, slog.New(slog.DiscardHandler))
	vote, reason, results, err := p.Prepare(t.Context(), c)
	if err != nil || vote != "yes" || reason != "r" || len(results) != 1 || string(results[0]) != "8" {
		t.Errorf("%s %s %s %v", vote, reason, results, err)
	}
	want := participant.Call{
		Phase: participant.PhasePrepare, Cluster: c.Cluster, Service: "bank", Transaction: c.Txn.String(), Branch: 2, Attempt: 3, Term: 4,
		Shard: 5, Shards: 6, Token: "t", ForgottenBelow: txnid.Floor(7).String(), OnePhase: true, Operations: []json.RawMessage{payload}, Count: 1, Digest: digest,
	}
	if fmt.Sprint(*f.got) != fmt.Sprint(want) || f.got.Mismatch() != "" {
		t.Errorf("the resource saw %+v, want %+v", *f.got, want)
	}
	for phase, wanted := range map[rm.Phase]participant.Phase{rm.Commit: participant.PhaseCommit, rm.Rollback: participant.PhaseRollback} {
		c.Phase = phase
		if o, err := p.Finish(t.Context(), c); err != nil || o != rm.OutcomeRolledBack || f.got.Phase != wanted {
			t.Errorf("%s: %v %v, the resource saw %s", phase, o, err, f.got.Phase)
		}
	}
	if o, err := p.Status(t.Context(), c); err != nil || o != rm.OutcomeRolledBack || f.got.Phase != participant.PhaseStatus {
		t.Errorf("status: %v %v, the resource saw %s", o, err, f.got.Phase)
	}
}

// executor is a fake that executes.
type executor struct {
	fake
	execution participant.Execution
}

func (f *executor) Execute(_ context.Context, c *participant.Call) (participant.Execution, error) {
	f.got = c
	return f.execution, f.err
}

// TestExecute: the same for execute, and for what prepare says of it.
func TestExecute(t *testing.T) {
	c := &rm.Call{
		Phase: rm.Execute, Service: "bank", Txn: txnid.New(1_790_000_000_000, [10]byte{}), Branch: 2, Term: 4, First: 3, Execution: "x1", Opened: true,
		Operations: [][]byte{[]byte("1"), []byte("2")}, Digest: [32]byte{0xab},
	}
	f := &executor{execution: participant.Execution{Executed: true, ID: "x2", Results: []json.RawMessage{nil, []byte("7")}}}
	p := New("bank", f, slog.New(slog.DiscardHandler))
	r, err := p.Execute(t.Context(), c)
	if err != nil || r.Kind != rm.Executed || r.Execution != "x2" || fmt.Sprintf("%s", r.Results) != "[null 7]" {
		t.Errorf("%+v, %v", r, err)
	}
	digest := hex.EncodeToString(c.Digest[:])
	if g := f.got; g.Phase != participant.PhaseExecute || g.First != 3 || g.Executed != 0 || g.Execution != "x1" || !g.Opened || g.Count != 2 || g.Digest != digest || fmt.Sprintf("%s", g.Operations) != "[1 2]" {
		t.Errorf("the resource saw %+v", g)
	}
	f.execution = participant.Execution{Reason: "GONE", Message: "m", Retryable: true}
	if r, err = p.Execute(t.Context(), c); err != nil || r.Kind != rm.Refused || r.Reason != "GONE" || r.Message != "m" || !r.Retryable {
		t.Errorf("%+v, %v", r, err)
	}
	f.err = errors.New("password=secret")
	if r, err = p.Execute(t.Context(), c); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err = New("bank", &f.fake, nil).Execute(t.Context(), c); err != nil || r.Kind != rm.Refused || r.Reason != participant.ReasonExecuteUnsupported {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err = New("other", f, nil).Execute(t.Context(), c); !errors.Is(err, errMisdirected) {
		t.Errorf("%+v, %v", r, err)
	}
	c.Phase, c.First, c.Executed, f.err = rm.Prepare, 0, 3, nil
	if _, _, _, err = p.Prepare(t.Context(), c); err != nil || f.got.Executed != 3 || f.got.First != 0 || f.got.Execution != "x1" {
		t.Errorf("the resource saw %+v, %v", f.got, err)
	}
}

// TestErrors: what the database said of a failure is not told to clients.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		told string
	}{
		{errors.New("password=secret"), "internal error"},
		{fmt.Errorf("%w: term 3", participant.ErrStale), "term 3"},
		{participant.ErrOverloaded, "overloaded"},
		{participant.ErrCluster, "cluster"},
		{context.DeadlineExceeded, "not done in time"},
	} {
		p := New("bank", &fake{err: c.err}, slog.New(slog.DiscardHandler))
		_, _, _, err := p.Prepare(t.Context(), &rm.Call{Service: "bank"})
		if _, finish := p.Finish(t.Context(), &rm.Call{Service: "bank"}); err == nil || finish == nil || !strings.Contains(err.Error(), c.told) || err.Error() != finish.Error() {
			t.Errorf("%v is told as %v and %v", c.err, err, finish)
		}
	}
	p := New("bank", &fake{outcome: "new"}, nil)
	if _, err := p.Status(t.Context(), &rm.Call{Service: "bank"}); err == nil {
		t.Error("an unknown outcome passed")
	}
	if _, err := p.Status(t.Context(), &rm.Call{Service: "other"}); !errors.Is(err, errMisdirected) {
		t.Errorf("a call for another service: %v", err)
	}
}
