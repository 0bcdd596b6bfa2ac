package server

import (
	"context"
	"fmt"

	"google.golang.org/grpc/metadata"

	assentv1 "github.com/assent-tx/assent/api/assent/v1"
	"github.com/assent-tx/assent/internal/node"
)

// This file is the gRPC side of interactive transactions and of locks.

func (v *transactionService) BeginTransaction(ctx context.Context, r *assentv1.BeginTransactionRequest) (*assentv1.Transaction, error) {
	if err := noUnknown(r, "the request"); err != nil {
		return nil, err
	}
	b := &BeginBody{ID: given(r.GetId()), RetryOf: given(r.GetRetryOf())}
	var err error
	if b.Timeout, err = duration(r.GetTimeout(), "timeout"); err != nil {
		return nil, err
	}
	if b.IdleTimeout, err = duration(r.GetIdleTimeout(), "idle_timeout"); err != nil {
		return nil, err
	}
	trace := ""
	if md := metadata.ValueFromIncomingContext(ctx, "traceparent"); len(md) == 1 {
		trace = traceParent(md[0])
	}
	begin, err := v.s.limits.beginning(b, trace)
	if err != nil {
		return nil, err
	}
	return transactionMessage(v.s.coordinator.Begin(ctx, begin))
}

func (v *transactionService) EnlistOperations(ctx context.Context, r *assentv1.EnlistOperationsRequest) (*assentv1.EnlistOperationsResponse, error) {
	if err := checkNamed(r, r.GetId()); err != nil {
		return nil, err
	}
	b := &EnlistBody{Step: r.GetStep(), StepKey: given(r.GetStepKey()), Operations: make([]StepOperationBody, len(r.GetOperations()))}
	for i, op := range r.GetOperations() {
		at := fmt.Sprintf("operations[%d]", i)
		if err := noUnknown(op, at); err != nil {
			return nil, err
		}
		when, err := whens.read(op.GetWhen(), at+".when")
		if err != nil {
			return nil, err
		}
		b.Operations[i] = StepOperationBody{Service: op.GetService(), Payload: op.GetPayload(), When: when}
		for j, l := range op.GetLocks() {
			at := fmt.Sprintf("%s.locks[%d]", at, j)
			if err := noUnknown(l, at); err != nil {
				return nil, err
			}
			mode, err := lockModes.read(l.GetMode(), at+".mode")
			if err != nil {
				return nil, err
			}
			b.Operations[i].Locks = append(b.Operations[i].Locks, LockBody{Key: l.GetKey(), Mode: mode})
		}
	}
	var err error
	if b.Locks, err = serviceLocks(r.GetLocks()); err != nil {
		return nil, err
	}
	step, err := v.s.limits.step(b)
	if err != nil {
		return nil, err
	}
	t, err := v.s.coordinator.Enlist(ctx, r.GetId(), step)
	if err != nil {
		return nil, withTransaction(&t, err)
	}
	out := &assentv1.EnlistOperationsResponse{Transaction: transactionProto(&t)}
	for _, result := range t.StepResults {
		out.Results = append(out.Results, orNull(result))
	}
	return out, nil
}

// given is a text that may have been left out.
func given(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

func serviceLocks(list []*assentv1.ServiceLock) ([]ServiceLockBody, error) {
	var out []ServiceLockBody
	for i, l := range list {
		at := fmt.Sprintf("locks[%d]", i)
		if err := noUnknown(l, at); err != nil {
			return nil, err
		}
		mode, err := lockModes.read(l.GetMode(), at+".mode")
		if err != nil {
			return nil, err
		}
		out = append(out, ServiceLockBody{Service: l.GetService(), Key: l.GetKey(), Mode: mode})
	}
	return out, nil
}

func (v *transactionService) AcquireLocks(ctx context.Context, r *assentv1.AcquireLocksRequest) (*assentv1.Transaction, error) {
	if err := checkNamed(r, r.GetId()); err != nil {
		return nil, err
	}
	locks, err := serviceLocks(r.GetLocks())
	if err != nil {
		return nil, err
	}
	step, err := v.s.limits.lockStep(&LocksBody{Step: r.GetStep(), StepKey: given(r.GetStepKey()), Locks: locks})
	if err != nil {
		return nil, err
	}
	return transactionMessage(v.s.coordinator.Enlist(ctx, r.GetId(), step))
}

func (v *transactionService) CommitTransaction(ctx context.Context, r *assentv1.CommitTransactionRequest) (*assentv1.Transaction, error) {
	if err := checkNamed(r, r.GetId()); err != nil {
		return nil, err
	}
	name, err := waitModes.read(r.GetWait(), "wait")
	if err != nil {
		return nil, err
	}
	wait, err := parseWait(name)
	if err != nil {
		return nil, err
	}
	return transactionMessage(v.s.coordinator.Commit(ctx, r.GetId(), wait))
}

func (v *transactionService) HeartbeatTransaction(ctx context.Context, r *assentv1.HeartbeatTransactionRequest) (*assentv1.Transaction, error) {
	if err := checkNamed(r, r.GetId()); err != nil {
		return nil, err
	}
	return transactionMessage(v.s.coordinator.Heartbeat(ctx, r.GetId()))
}

func (v *transactionService) ListLocks(ctx context.Context, r *assentv1.ListLocksRequest) (*assentv1.ListLocksResponse, error) {
	if err := noUnknown(r, "the request"); err != nil {
		return nil, err
	}
	q := node.LockQuery{Service: r.GetService(), Key: r.GetKey(), Waited: r.GetWaited(), PageSize: int(r.GetPageSize()), PageToken: r.GetPageToken()}
	if err := v.s.limits.lockQuery(&q); err != nil {
		return nil, err
	}
	page, err := v.s.coordinator.Locks(ctx, q)
	if err != nil {
		return nil, err
	}
	out := &assentv1.ListLocksResponse{NextPageToken: page.NextPageToken}
	owners := func(list []node.LockHolder) (out []*assentv1.LockOwner) {
		for _, h := range list {
			out = append(out, &assentv1.LockOwner{Transaction: h.Transaction, Mode: h.Mode, Age: timestamp(h.Age), Since: timestamp(h.Since)})
		}
		return out
	}
	for i := range page.Locks {
		l := &page.Locks[i]
		out.Locks = append(out.Locks, &assentv1.LockInfo{Service: l.Service, Key: l.Key, Shard: l.Shard, Holders: owners(l.Holders), Waiters: owners(l.Waiters)})
	}
	return out, nil
}

func (v *transactionService) ListDeadlocks(ctx context.Context, r *assentv1.ListDeadlocksRequest) (*assentv1.ListDeadlocksResponse, error) {
	if err := noUnknown(r, "the request"); err != nil {
		return nil, err
	}
	list, err := v.s.coordinator.Deadlocks(ctx)
	if err != nil {
		return nil, err
	}
	out := &assentv1.ListDeadlocksResponse{}
	for i := range list {
		d := &list[i]
		m := &assentv1.Deadlock{At: timestamp(d.At), Shard: d.Shard, Victim: d.Victim, Restarted: d.Restarted}
		for _, w := range d.Cycle {
			m.Cycle = append(m.Cycle, &assentv1.DeadlockWait{Transaction: w.Transaction, Service: w.Service, Key: w.Key, Mode: w.Mode, WaitsFor: w.WaitsFor})
		}
		out.Deadlocks = append(out.Deadlocks, m)
	}
	return out, nil
}
