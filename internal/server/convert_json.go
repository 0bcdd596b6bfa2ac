package server

import (
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/assent-tx/assent/internal/node"
)

func transactionJSON(t *node.Transaction) Transaction {
	out := Transaction{
		ID: t.ID, State: t.State, OnePhase: t.OnePhase, Hazard: t.Hazard, Replayed: t.Replayed,
		Timeout: Duration{t.Timeout, t.Timeout != 0},
		BeganAt: Time{t.Began}, GrantedAt: Time{t.Granted}, DecidedAt: Time{t.Decided}, EndedAt: Time{t.Ended},
		Branches:    make([]Branch, len(t.Branches)),
		Interactive: t.Interactive, IdleTimeout: Duration{t.IdleTimeout, t.IdleTimeout != 0}, Age: Time{retriedAge(t)},
	}
	if t.Abort != nil {
		out.Abort = &Abort{Reason: string(t.Abort.Reason), Message: t.Abort.Message, Service: t.Abort.Service}
	}
	if w := t.WaitsFor; w != nil {
		out.WaitsFor = &LockWait{Key: w.Key, Mode: w.Mode, For: w.For}
	}
	for i := range t.Branches {
		b := &t.Branches[i]
		out.Branches[i] = Branch{
			ID: b.ID, Service: b.Service, State: b.State, Vote: b.Vote, Operations: b.Operations, Attempts: b.Attempts,
			LastError: b.LastError, Hazard: b.Hazard, Resolution: b.Resolution,
		}
		if len(b.Results) > 0 {
			out.Branches[i].Results = make([]jsontext.Value, len(b.Results))
			for j, r := range b.Results {
				out.Branches[i].Results[j] = r
			}
		}
	}
	return out
}

// retriedAge is the age of a transaction that tries another again; zero else.
func retriedAge(t *node.Transaction) time.Time {
	if t.Age.Equal(t.Began) {
		return time.Time{}
	}
	return t.Age
}

func serviceJSON(s *node.Service) Service {
	inFlight := uint32(s.MaxInFlight)
	return Service{
		Name:      s.Name,
		HTTP:      HTTPEndpoints{Prepare: s.PrepareURL, Commit: s.CommitURL, Rollback: s.RollbackURL, Status: s.StatusURL, Execute: s.ExecuteURL},
		Resources: s.Resources, Capabilities: s.Capabilities, Isolation: s.Isolation, RequireKeys: s.RequireKeys,
		Limits: ServiceLimits{
			MaxInFlight:    &inFlight,
			PrepareTimeout: Duration{s.PrepareTimeout, true},
			FinishTimeout:  Duration{s.FinishTimeout, true},
		},
		Generation: s.Generation, State: s.State, OpenTransactions: uint32(s.OpenTransactions),
		RegisteredAt: Time{s.Registered}, UpdatedAt: Time{s.Updated}, LockPartitions: s.LockPartitions,
	}
}

func pageJSON(p *node.TransactionPage) *TransactionList {
	out := &TransactionList{Transactions: make([]Transaction, len(p.Transactions)), NextPageToken: p.NextPageToken}
	for i := range p.Transactions {
		out.Transactions[i] = transactionJSON(&p.Transactions[i])
	}
	return out
}

func servicesJSON(list []node.Service) *ServiceList {
	out := &ServiceList{Services: make([]Service, len(list))}
	for i := range list {
		out.Services[i] = serviceJSON(&list[i])
	}
	return out
}

func healthJSON(h *node.Health) *HealthAnswer {
	out := &HealthAnswer{Status: "ok", Message: h.Message}
	for _, s := range h.Shards {
		out.Shards = append(out.Shards, ShardHealth(s))
	}
	return out
}
