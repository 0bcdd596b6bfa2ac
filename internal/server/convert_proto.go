package server

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	assentv1 "github.com/assent-tx/assent/api/assent/v1"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
)

// restEnum maps between an enum of the proto file and its names in REST: the value
// names without their prefix, in lower case; the zero value is the empty name.
type restEnum[E ~int32] struct {
	name   string
	values map[string]E
	names  map[E]string
}

func newRESTEnum[E ~int32](name string, protoNames map[int32]string) restEnum[E] {
	prefix, ok := strings.CutSuffix(protoNames[0], "UNSPECIFIED")
	if !ok {
		panic("the zero value of enum " + name + " is " + protoNames[0])
	}
	e := restEnum[E]{name: name, values: map[string]E{"": 0}, names: map[E]string{0: ""}}
	for value, full := range protoNames {
		if value != 0 {
			rest := strings.ToLower(strings.TrimPrefix(full, prefix))
			e.values[rest], e.names[E(value)] = E(value), rest
		}
	}
	return e
}

var (
	waitModes         = newRESTEnum[assentv1.WaitMode]("WaitMode", assentv1.WaitMode_name)
	lockModes         = newRESTEnum[assentv1.LockMode]("LockMode", assentv1.LockMode_name)
	transactionStates = newRESTEnum[assentv1.TransactionState]("TransactionState", assentv1.TransactionState_name)
	branchStates      = newRESTEnum[assentv1.BranchState]("BranchState", assentv1.BranchState_name)
	votes             = newRESTEnum[assentv1.Vote]("Vote", assentv1.Vote_name)
	outcomes          = newRESTEnum[assentv1.Outcome]("Outcome", assentv1.Outcome_name)
	capabilities      = newRESTEnum[assentv1.Capability]("Capability", assentv1.Capability_name)
	isolations        = newRESTEnum[assentv1.Isolation]("Isolation", assentv1.Isolation_name)
	whens             = newRESTEnum[assentv1.When]("When", assentv1.When_name)
	serviceStates     = newRESTEnum[assentv1.ServiceState]("ServiceState", assentv1.ServiceState_name)
	nodeStates        = newRESTEnum[assentv1.NodeState]("NodeState", assentv1.NodeState_name)
)

// read is the REST name of a value that a client sent.
func (e *restEnum[E]) read(v E, field string) (string, error) {
	name, ok := e.names[v]
	if !ok {
		return "", inField(reason.New(reason.InvalidField, "use a value of "+e.name+" of the proto file", "%d is not a %s", v, e.name), field)
	}
	return name, nil
}

// submitBody reads a message; its slices stay shared with the body.
func submitBody(m *assentv1.SubmitTransactionRequest) (*SubmitBody, error) {
	if err := noUnknown(m, "the request"); err != nil {
		return nil, err
	}
	b := &SubmitBody{Operations: make([]OperationBody, len(m.GetOperations()))}
	if m.GetId() != "" {
		b.ID = &m.Id
	}
	var err error
	if b.Timeout, err = duration(m.GetTimeout(), "timeout"); err != nil {
		return nil, err
	}
	if b.Wait, err = waitModes.read(m.GetWait(), "wait"); err != nil {
		return nil, err
	}
	for i, op := range m.GetOperations() {
		if err := noUnknown(op, fmt.Sprintf("operations[%d]", i)); err != nil {
			return nil, err
		}
		b.Operations[i] = OperationBody{Service: op.GetService(), Payload: op.GetPayload()}
		if len(op.GetLocks()) > 0 {
			b.Operations[i].Locks = make([]LockBody, len(op.GetLocks()))
		}
		for j, l := range op.GetLocks() {
			at := fmt.Sprintf("operations[%d].locks[%d]", i, j)
			if err := noUnknown(l, at); err != nil {
				return nil, err
			}
			mode, err := lockModes.read(l.GetMode(), at+".mode")
			if err != nil {
				return nil, err
			}
			b.Operations[i].Locks[j] = LockBody{Key: l.GetKey(), Mode: mode}
		}
	}
	return b, nil
}

func putServiceBody(m *assentv1.PutServiceRequest) (*PutServiceBody, error) {
	h, l := m.GetHttp(), m.GetLimits()
	for _, part := range []struct {
		message proto.Message
		name    string
	}{{m, "the request"}, {h, "http"}, {l, "limits"}} {
		if err := noUnknown(part.message, part.name); err != nil {
			return nil, err
		}
	}
	b := &PutServiceBody{
		HTTP:      HTTPEndpoints{Prepare: h.GetPrepare(), Commit: h.GetCommit(), Rollback: h.GetRollback(), Status: h.GetStatus(), Execute: h.GetExecute()},
		Resources: m.GetResources(), RequireKeys: m.GetRequireKeys(), LockPartitions: m.GetLockPartitions(),
	}
	var err error
	if b.Isolation, err = isolations.read(m.GetIsolation(), "isolation"); err != nil {
		return nil, err
	}
	for i, c := range m.GetCapabilities() {
		name, err := capabilities.read(c, fmt.Sprintf("capabilities[%d]", i))
		if err != nil {
			return nil, err
		}
		b.Capabilities = append(b.Capabilities, name)
	}
	if n := l.GetMaxInFlight(); n != 0 {
		b.Limits.MaxInFlight = &n
	}
	if b.Limits.PrepareTimeout, err = duration(l.GetPrepareTimeout(), "limits.prepare_timeout"); err != nil {
		return nil, err
	}
	b.Limits.FinishTimeout, err = duration(l.GetFinishTimeout(), "limits.finish_timeout")
	return b, err
}

// noUnknown refuses fields of a newer contract, as REST does: to drop one silently
// could change what the request means.
func noUnknown(m proto.Message, name string) error {
	if len(m.ProtoReflect().GetUnknown()) == 0 {
		return nil
	}
	return reason.New(reason.UnknownField, "use the proto file of this server's version, which reflection shows", "%s has a field that this server does not know", name)
}

func duration(d *durationpb.Duration, field string) (Duration, error) {
	if d == nil {
		return Duration{}, nil
	}
	if err := d.CheckValid(); err != nil {
		return Duration{}, inField(reason.New(reason.InvalidDuration, "see google/protobuf/duration.proto", "%v", err), field)
	}
	return Duration{d.AsDuration(), true}, nil
}

func transactionProto(t *node.Transaction) *assentv1.Transaction {
	out := &assentv1.Transaction{
		Id: t.ID, State: transactionStates.values[t.State], OnePhase: t.OnePhase, Hazard: t.Hazard, Replayed: t.Replayed,
		BeganAt: timestamp(t.Began), GrantedAt: timestamp(t.Granted), DecidedAt: timestamp(t.Decided), EndedAt: timestamp(t.Ended),
		Branches: make([]*assentv1.Branch, len(t.Branches)), Interactive: t.Interactive, Age: timestamp(retriedAge(t)),
	}
	if t.IdleTimeout != 0 {
		out.IdleTimeout = durationpb.New(t.IdleTimeout)
	}
	if t.Timeout != 0 {
		out.Timeout = durationpb.New(t.Timeout)
	}
	if t.Abort != nil {
		out.Abort = &assentv1.Abort{Reason: string(t.Abort.Reason), Message: utf8Only(t.Abort.Message), Service: t.Abort.Service}
	}
	if w := t.WaitsFor; w != nil {
		out.WaitsFor = &assentv1.LockWait{Key: w.Key, Mode: w.Mode, For: w.For}
	}
	for i := range t.Branches {
		b := &t.Branches[i]
		out.Branches[i] = &assentv1.Branch{
			Id: b.ID, Service: b.Service, State: branchStates.values[b.State], Vote: votes.values[b.Vote], Results: b.Results,
			Operations: b.Operations, Attempts: b.Attempts, LastError: utf8Only(b.LastError),
			Hazard: outcomes.values[b.Hazard], Resolution: utf8Only(b.Resolution),
		}
	}
	return out
}

func serviceProto(s *node.Service) *assentv1.Service {
	out := &assentv1.Service{
		Name:      s.Name,
		Http:      &assentv1.HttpEndpoints{Prepare: s.PrepareURL, Commit: s.CommitURL, Rollback: s.RollbackURL, Status: s.StatusURL, Execute: s.ExecuteURL},
		Resources: s.Resources, Isolation: isolations.values[s.Isolation], RequireKeys: s.RequireKeys,
		Limits: &assentv1.ServiceLimits{
			MaxInFlight: uint32(s.MaxInFlight), PrepareTimeout: durationpb.New(s.PrepareTimeout), FinishTimeout: durationpb.New(s.FinishTimeout),
		},
		Generation: s.Generation, State: serviceStates.values[s.State], OpenTransactions: uint32(s.OpenTransactions),
		RegisteredAt: timestamp(s.Registered), UpdatedAt: timestamp(s.Updated), LockPartitions: s.LockPartitions,
	}
	for _, c := range s.Capabilities {
		out.Capabilities = append(out.Capabilities, capabilities.values[c])
	}
	return out
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// utf8Only: gRPC refuses to send a string that is not UTF-8, and what participants
// write must not cost an answer.
func utf8Only(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
