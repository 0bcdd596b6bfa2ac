// Package local lets the coordinator call a participant of its own process: the
// calls and answers of the participant contract, without HTTP between them.
package local

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"

	"github.com/assent-tx/assent/internal/rm"
	rmhttp "github.com/assent-tx/assent/internal/rm/http"
	"github.com/assent-tx/assent/participant"
)

// Participant is a participant.Resource as the coordinator's callers see it.
type Participant struct {
	service  string
	resource participant.Resource
	log      *slog.Logger
}

var _ rmhttp.Local = (*Participant)(nil)

// New returns the resource of a service. How many calls it gets at a time is the
// coordinator's limit for the service. A nil logger is slog's default.
func New(service string, r participant.Resource, log *slog.Logger) *Participant {
	if log == nil {
		log = slog.Default()
	}
	return &Participant{service: service, resource: r, log: log}
}

// errMisdirected is a call for another service, which has no business here.
var errMisdirected = errors.New("the call is for another service")

// Prepare implements rmhttp.Local.
func (p *Participant) Prepare(ctx context.Context, c *rm.Call) (vote, reason string, results [][]byte, err error) {
	if c.Service != p.service {
		return "", "", nil, errMisdirected
	}
	call := translateWork(c, participant.PhasePrepare)
	call.OnePhase, call.Executed = c.OnePhase, int(c.Executed)
	v, err := p.resource.Prepare(ctx, call)
	if err != nil {
		return "", "", nil, p.failed(call, err)
	}
	return v.Vote, v.Reason, values(v.Results), nil
}

// executing is a resource that executes before prepare.
type executing interface {
	Execute(ctx context.Context, c *participant.Call) (participant.Execution, error)
}

// Execute implements rmhttp.Local.
func (p *Participant) Execute(ctx context.Context, c *rm.Call) (rm.Result, error) {
	if c.Service != p.service {
		return rm.Result{}, errMisdirected
	}
	r, can := p.resource.(executing)
	if !can {
		return rm.Result{Kind: rm.Refused, Reason: participant.ReasonExecuteUnsupported}, nil
	}
	call := translateWork(c, participant.PhaseExecute)
	call.First, call.Opened = int(c.First), c.Opened
	x, err := r.Execute(ctx, call)
	switch {
	case err != nil:
		return rm.Result{}, p.failed(call, err)
	case !x.Executed:
		return rm.Result{Kind: rm.Refused, Reason: x.Reason, Message: x.Message, Retryable: x.Retryable}, nil
	}
	return rm.Result{Kind: rm.Executed, Results: values(x.Results), Execution: x.ID}, nil
}

// values are results as callers have them; nil is null.
func values(results []json.RawMessage) [][]byte {
	if len(results) == 0 {
		return nil
	}
	list := make([][]byte, len(results))
	for i, r := range results {
		if list[i] = r; r == nil {
			list[i] = []byte("null")
		}
	}
	return list
}

// Finish implements rmhttp.Local.
func (p *Participant) Finish(ctx context.Context, c *rm.Call) (rm.Outcome, error) {
	phase := participant.PhaseCommit
	if c.Phase == rm.Rollback {
		phase = participant.PhaseRollback
	}
	return p.outcome(ctx, translate(c, phase), p.resource.Finish)
}

// Status implements rmhttp.Local.
func (p *Participant) Status(ctx context.Context, c *rm.Call) (rm.Outcome, error) {
	return p.outcome(ctx, translate(c, participant.PhaseStatus), p.resource.Status)
}

func (p *Participant) outcome(ctx context.Context, c *participant.Call, ask func(context.Context, *participant.Call) (participant.Outcome, error)) (rm.Outcome, error) {
	if c.Service != p.service {
		return 0, errMisdirected
	}
	o, err := ask(ctx, c)
	if err != nil {
		return 0, p.failed(c, err)
	}
	outcome, known := rm.ParseOutcome(string(o))
	if !known {
		return 0, errors.New("unknown outcome")
	}
	return outcome, nil
}

// failed is what the coordinator may know of an error. As over HTTP the cause of an
// unexpected one stays in this log: answers are told to clients.
func (p *Participant) failed(c *participant.Call, err error) error {
	level, told := slog.LevelError, errors.New("internal error, see the log of the service's agent")
	switch {
	case errors.Is(err, participant.ErrStale), errors.Is(err, participant.ErrOverloaded):
		level, told = slog.LevelDebug, err
	case errors.Is(err, participant.ErrCluster):
		told = err
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		level, told = slog.LevelWarn, errors.New("not done in time")
	}
	p.log.Log(context.Background(), level, "participant call failed", "service", p.service, "call", c.Phase, "transaction", c.Transaction, "branch", c.Branch, "error", err)
	return told
}

// translateWork is translate for a call with operations.
func translateWork(c *rm.Call, phase participant.Phase) *participant.Call {
	call := translate(c, phase)
	call.Count, call.Digest, call.Execution = len(c.Operations), hex.EncodeToString(c.Digest[:]), c.Execution
	call.Operations = make([]json.RawMessage, len(c.Operations))
	for i, payload := range c.Operations {
		call.Operations[i] = payload
	}
	return call
}

func translate(c *rm.Call, phase participant.Phase) *participant.Call {
	call := &participant.Call{
		Phase: phase, Cluster: c.Cluster, Transaction: c.Txn.String(), Branch: c.Branch, Service: c.Service,
		Attempt: uint64(c.Attempt), Term: c.Term, Token: c.Token, Shard: c.Shard, Shards: c.Shards,
	}
	if !c.Forgotten.IsZero() {
		call.ForgottenBelow = c.Forgotten.String()
	}
	return call
}
