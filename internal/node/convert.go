package node

import (
	"errors"
	"strconv"
	"time"

	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
)

func asReason(err error) *reason.Error {
	var e *reason.Error
	if errors.As(err, &e) {
		return e
	}
	return reason.New(reason.Internal, "", "%v", err)
}

// transaction converts a reply; where both are there, the view goes with the error.
func (n *Node) transaction(rep *shard.Reply) (Transaction, *reason.Error) {
	var t Transaction
	if rep.View != nil {
		t = convert(rep.View)
	}
	return t, rep.Err
}

// result is transaction with a plain error, so that no error is a nil interface.
func (n *Node) result(rep *shard.Reply) (Transaction, error) {
	if t, err := n.transaction(rep); err != nil {
		return t, err
	} else {
		return t, nil
	}
}

func convert(v *shard.View) Transaction {
	t := &v.Txn
	out := Transaction{
		ID: t.ID.String(), State: t.Status.String(), OnePhase: t.OnePhase, Hazard: t.Hazard() && t.Resolution == "", Replayed: v.Repeated,
		Began: unixMs(t.BeganMs), Granted: unixMs(t.GrantedMs), Decided: unixMs(t.DecidedMs), Ended: unixMs(t.EndedMs),
		Timeout: time.Duration(t.TimeoutMs) * time.Millisecond, Branches: make([]Branch, len(t.Branches)),
		Interactive: t.Interactive, IdleTimeout: time.Duration(t.IdleMs) * time.Millisecond, Age: unixMs(t.AgeMs), StepResults: v.StepResults,
	}
	if t.Abort != nil {
		out.Abort = &Abort{Reason: t.Abort.Reason, Message: t.Abort.Message, Service: t.Abort.Service}
	}
	if v.WaitKey != "" {
		out.WaitsFor = &LockWait{Key: v.WaitKey, Mode: v.WaitMode}
		for _, id := range v.WaitsFor {
			out.WaitsFor.For = append(out.WaitsFor.For, id.String())
		}
	}
	for i := range t.Branches {
		b, more := &t.Branches[i], &v.Branches[i]
		state, vote := branchState(t, b, more)
		out.Branches[i] = Branch{
			ID: strconv.Itoa(i + 1), Service: b.Service, State: state, Vote: vote, Results: more.Results, Operations: b.Count,
			Attempts: more.Attempts, LastError: more.LastError, Resolution: t.Resolution,
		}
		switch b.Fate {
		case txn.FateHazardUnknown:
			out.Branches[i].Hazard = "unknown"
		case txn.FateHazardCommitted:
			out.Branches[i].Hazard = "committed"
		case txn.FateHazardRolledBack:
			out.Branches[i].Hazard = "rolled_back"
		case txn.FateOpen, txn.FateFinishing, txn.FateDone, txn.FateReadOnly, txn.FateNeverContacted:
		}
	}
	return out
}

// branchState names the state of a branch, and its vote where that is known: from
// the leader's memory, or because the decision implies it.
func branchState(t *txn.Txn, b *txn.Branch, more *shard.BranchView) (state, vote string) {
	switch more.Vote {
	case shard.VoteYes, shard.VoteNo, shard.VoteReadOnly:
		vote = more.Vote.String()
	case shard.Indefinite, shard.Acknowledged, shard.SaysUnknown, shard.SaysCommitted, shard.SaysRolledBack, shard.Executed, shard.Refused, shard.Conflict, shard.Lost:
	}
	committed := t.Status == txn.Committing || t.Status == txn.Committed
	switch {
	case b.Fate == txn.FateReadOnly:
		return "read_only", "read_only"
	case b.Fate.Hazard():
		if committed {
			vote = "yes"
		}
		return "hazard", vote
	case committed && b.Fate == txn.FateFinishing:
		return "committing", "yes"
	case committed:
		return "committed", "yes"
	case b.Fate == txn.FateNeverContacted:
		return "not_contacted", ""
	case t.Abort != nil && t.Abort.Reason == reason.VotedNo && t.Abort.Service == b.Service:
		return "refused", "no"
	case b.Fate == txn.FateFinishing:
		return "rolling_back", vote
	case b.Fate == txn.FateDone:
		return "rolled_back", vote
	case t.Status == txn.Active && b.Contacted:
		return "executing", ""
	case t.Status == txn.Active:
		return "waiting", ""
	case vote == "yes":
		return "prepared", vote
	case vote == "no":
		return "refused", vote
	case vote == "read_only":
		return "read_only", vote
	}
	return "preparing", ""
}

// matcher turns a query into a condition.
func matcher(q ListQuery) (func(*txn.Txn) bool, bool) {
	inState := func(*txn.Txn) bool { return true }
	switch q.State {
	case "":
	case "in_doubt":
		inState = func(t *txn.Txn) bool { return t.Status == txn.Committing || t.Status == txn.Aborting }
	case "hazard":
		inState = func(t *txn.Txn) bool { return t.Hazard() && t.Resolution == "" }
	default:
		want, known := txn.Status(0), false
		for s := txn.Active; s <= txn.Aborted; s++ {
			if s.String() == q.State {
				want, known = s, true
			}
		}
		if !known {
			return nil, false
		}
		inState = func(t *txn.Txn) bool { return t.Status == want }
	}
	if q.Service == "" {
		return inState, true
	}
	return func(t *txn.Txn) bool {
		for i := range t.Branches {
			if t.Branches[i].Service == q.Service {
				return inState(t)
			}
		}
		return false
	}, true
}

var capabilities = []struct {
	name string
	bit  txn.Capability
}{{"one_phase", txn.OnePhase}, {"read_only", txn.ReadOnly}, {"list_in_doubt", txn.ListInDoubt}, {"tombstone", txn.Tombstone}}

// service builds the registration of a spec, with the defaults filled in.
func (n *Node) service(spec *ServiceSpec) (*txn.Service, error) {
	v := &txn.Service{
		Name: spec.Name, PrepareURL: spec.PrepareURL, CommitURL: spec.CommitURL, RollbackURL: spec.RollbackURL, StatusURL: spec.StatusURL, ExecuteURL: spec.ExecuteURL,
		Resources: spec.Resources, RequireKeys: spec.RequireKeys, Partitions: max(spec.LockPartitions, 1),
		MaxInFlight:      uint32(spec.MaxInFlight),
		PrepareTimeoutMs: uint32(spec.PrepareTimeout.Milliseconds()),
		FinishTimeoutMs:  uint32(spec.FinishTimeout.Milliseconds()),
	}
	bad := func(format string, args ...any) error {
		return reason.New(reason.InvalidService, "see the registration of services in the API reference", format, args...)
	}
	if spec.Capabilities == nil {
		v.Capabilities = txn.Tombstone
	}
	for _, name := range spec.Capabilities {
		bit := txn.Capability(0)
		for _, c := range capabilities {
			if c.name == name {
				bit = c.bit
			}
		}
		if bit == 0 {
			return nil, bad("capability %q is not known", name)
		}
		v.Capabilities |= bit
	}
	if v.Capabilities&(txn.Tombstone|txn.ListInDoubt) == 0 {
		return nil, bad("a participant must keep tombstones or list its in-doubt branches: capability tombstone or list_in_doubt is required")
	}
	if v.Capabilities&txn.OnePhase != 0 && v.Capabilities&txn.Tombstone == 0 {
		return nil, bad("one_phase needs tombstone: a refusal must be durable")
	}
	switch spec.Isolation {
	case "", "coordinator":
	case "participant":
		v.Isolated = true
	default:
		return nil, bad("isolation %q is neither coordinator nor participant", spec.Isolation)
	}
	if v.MaxInFlight == 0 {
		v.MaxInFlight = uint32(n.cfg.DefaultMaxInFlight)
	}
	if v.PrepareTimeoutMs == 0 {
		v.PrepareTimeoutMs = uint32(n.cfg.DefaultPrepareTimeout.Milliseconds())
	}
	if v.FinishTimeoutMs == 0 {
		v.FinishTimeoutMs = uint32(n.cfg.DefaultFinishTimeout.Milliseconds())
	}
	return v, nil
}

func (n *Node) serviceResult(rep *shard.Reply) (Service, error) {
	if rep.Err != nil {
		return Service{}, rep.Err
	}
	if rep.Service == nil {
		return Service{}, reason.New(reason.OutcomeUnknown, "ask for the service by its name", "the registry changed meanwhile")
	}
	return describeService(rep.Service), nil
}

func describeService(v *shard.ServiceView) Service {
	s := &v.Service
	out := Service{
		ServiceSpec: ServiceSpec{
			Name: s.Name, PrepareURL: s.PrepareURL, CommitURL: s.CommitURL, RollbackURL: s.RollbackURL, StatusURL: s.StatusURL, ExecuteURL: s.ExecuteURL,
			Resources: s.Resources, Isolation: "coordinator", RequireKeys: s.RequireKeys, LockPartitions: max(s.Partitions, 1), MaxInFlight: int(s.MaxInFlight),
			PrepareTimeout: time.Duration(s.PrepareTimeoutMs) * time.Millisecond, FinishTimeout: time.Duration(s.FinishTimeoutMs) * time.Millisecond,
		},
		Generation: s.Generation, State: "active", OpenTransactions: v.Open, Registered: unixMs(s.RegisteredMs), Updated: unixMs(s.UpdatedMs),
	}
	if s.Isolated {
		out.Isolation = "participant"
	}
	for _, c := range capabilities {
		if s.Capabilities&c.bit != 0 {
			out.Capabilities = append(out.Capabilities, c.name)
		}
	}
	switch {
	case v.Removed:
		out.State = "removed"
	case s.Draining:
		out.State = "draining"
	}
	return out
}
