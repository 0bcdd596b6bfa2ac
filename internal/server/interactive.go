package server

import (
	"context"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
)

// This file is the REST side of interactive transactions and of locks, and the
// checks that both protocols share.

const (
	// maxStep keeps the numbers of steps within what every language can count. The node
	// gives the numbers above to steps that have a key.
	maxStep         = 1<<31 - 1
	maxStepKeyBytes = 128
)

func beginTransaction(s *Server, ctx context.Context, r *request) (any, error) {
	var b BeginBody
	if len(r.body) > 0 {
		if err := r.decode(&b); err != nil {
			return nil, err
		}
	}
	begin, err := s.limits.beginning(&b, traceParent(r.Header.Get("Traceparent")))
	if err != nil {
		return nil, err
	}
	return transactionAnswer(s.coordinator.Begin(ctx, begin))
}

func enlistOperations(s *Server, ctx context.Context, r *request) (any, error) {
	id := r.PathValue("id")
	if err := checkID(id); err != nil {
		return nil, err
	}
	var b EnlistBody
	if err := r.decode(&b); err != nil {
		return nil, err
	}
	step, err := s.limits.step(&b)
	if err != nil {
		return nil, err
	}
	t, err := s.coordinator.Enlist(ctx, id, step)
	if err != nil {
		return nil, withTransaction(&t, err)
	}
	state := transactionJSON(&t)
	answer := &EnlistAnswer{Transaction: &state}
	if t.StepResults != nil {
		answer.Results = make([]jsontext.Value, len(t.StepResults))
		for i, v := range t.StepResults {
			answer.Results[i] = orNull(v)
		}
	}
	return answer, nil
}

// orNull: an operation that did not run at once has no result.
func orNull(v []byte) []byte {
	if v == nil {
		return []byte("null")
	}
	return v
}

func acquireLocks(s *Server, ctx context.Context, r *request) (any, error) {
	id := r.PathValue("id")
	if err := checkID(id); err != nil {
		return nil, err
	}
	var b LocksBody
	if err := r.decode(&b); err != nil {
		return nil, err
	}
	step, err := s.limits.lockStep(&b)
	if err != nil {
		return nil, err
	}
	return transactionAnswer(s.coordinator.Enlist(ctx, id, step))
}

func commitTransaction(s *Server, ctx context.Context, r *request) (any, error) {
	id := r.PathValue("id")
	if err := checkID(id); err != nil {
		return nil, err
	}
	var b CommitBody
	if len(r.body) > 0 {
		if err := r.decode(&b); err != nil {
			return nil, err
		}
	}
	wait, err := parseWait(b.Wait)
	if err != nil {
		return nil, err
	}
	return transactionAnswer(s.coordinator.Commit(ctx, id, wait))
}

func heartbeatTransaction(s *Server, ctx context.Context, r *request) (any, error) {
	id := r.PathValue("id")
	if err := checkID(id); err != nil {
		return nil, err
	}
	if len(r.body) > 0 {
		if err := r.decode(&struct{}{}); err != nil {
			return nil, err
		}
	}
	return transactionAnswer(s.coordinator.Heartbeat(ctx, id))
}

func listLocks(s *Server, ctx context.Context, r *request) (any, error) {
	q := node.LockQuery{Service: r.query.Get("service"), Key: r.query.Get("key"), PageToken: r.query.Get("page_token")}
	if text := r.query.Get("waited"); text != "" {
		waited, err := strconv.ParseBool(text)
		if err != nil {
			return nil, inField(reason.New(reason.InvalidField, "true or false", "%.40q is neither true nor false", text), "waited")
		}
		q.Waited = waited
	}
	if text := r.query.Get("page_size"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, inField(reason.New(reason.InvalidField, "1 to "+strconv.Itoa(s.limits.MaxPageSize), "%.40q is no page size", text), "page_size")
		}
		q.PageSize = n
	}
	if err := s.limits.lockQuery(&q); err != nil {
		return nil, err
	}
	page, err := s.coordinator.Locks(ctx, q)
	if err != nil {
		return nil, err
	}
	return locksJSON(&page), nil
}

func listDeadlocks(s *Server, ctx context.Context, _ *request) (any, error) {
	list, err := s.coordinator.Deadlocks(ctx)
	if err != nil {
		return nil, err
	}
	return deadlocksJSON(list), nil
}

// ---- checks

func (l *Limits) beginning(b *BeginBody, traceParent string) (node.Beginning, error) {
	begin := node.Beginning{TraceParent: traceParent}
	if b.ID != nil {
		if err := checkID(*b.ID); err != nil {
			return begin, err
		}
		begin.ID = *b.ID
	}
	if b.RetryOf != nil {
		if err := checkID(*b.RetryOf); err != nil {
			return begin, inField(err, "retry_of")
		}
		begin.RetryOf = *b.RetryOf
	}
	var err error
	if begin.Timeout, err = within(b.Timeout, "timeout", l.MinTimeout, l.MaxInteractiveTimeout); err != nil {
		return begin, err
	}
	begin.IdleTimeout, err = within(b.IdleTimeout, "idle_timeout", l.MinIdleTimeout, l.MaxTimeout)
	return begin, err
}

// step checks a step. Payloads are compacted in place.
func (l *Limits) step(b *EnlistBody) (node.Step, error) {
	s := node.Step{Operations: make([]node.StepOperation, len(b.Operations))}
	if err := nameStep(&s, b.Step, b.StepKey); err != nil {
		return s, err
	}
	if len(b.Operations) == 0 {
		return s, named(reason.New(reason.EmptyOperations, "name at least one operation; locks alone go to …/locks", "the step has no operations"), "operations")
	}
	keys := len(b.Locks)
	for i := range b.Operations {
		op := &b.Operations[i]
		keys += len(op.Locks)
		if err := operation(&OperationBody{Service: op.Service, Payload: op.Payload, Locks: op.Locks}, i, &s.Operations[i].Operation); err != nil {
			return s, err
		}
		switch op.When {
		case "", "prepare":
		case "now":
			s.Operations[i].Now = true
		default:
			return s, inField(notOneOf(op.When, "now", "prepare"), "operations["+strconv.Itoa(i)+"].when")
		}
	}
	if n := len(b.Operations); n > l.MaxOperations {
		s.Refusal = limited(reason.New(reason.TooManyOperations, "use several steps", "the step has %d operations; at most %d are accepted", n, l.MaxOperations), "operations", l.MaxOperations)
	}
	return s, l.stepLocks(b.Locks, keys, &s)
}

func (l *Limits) lockStep(b *LocksBody) (node.Step, error) {
	var s node.Step
	if err := nameStep(&s, b.Step, b.StepKey); err != nil {
		return s, err
	}
	if len(b.Locks) == 0 {
		return s, named(reason.New(reason.EmptyOperations, `name at least one: {"step":1,"locks":[{"service":"...","key":"..."}]}`, "the step has no locks"), "locks")
	}
	return s, l.stepLocks(b.Locks, len(b.Locks), &s)
}

func (l *Limits) stepLocks(locks []ServiceLockBody, keys int, s *node.Step) error {
	s.Locks = make([]node.ServiceLock, len(locks))
	for i := range locks {
		b, at := &locks[i], "locks["+strconv.Itoa(i)+"]"
		if err := checkServiceName(b.Service); err != nil {
			return inField(err, at+".service")
		}
		declared, err := declaredLock(LockBody{Key: b.Key, Mode: b.Mode}, at)
		if err != nil {
			return err
		}
		s.Locks[i] = node.ServiceLock{Service: b.Service, DeclaredLock: declared}
	}
	if keys > l.MaxKeys && s.Refusal == nil {
		s.Refusal = limited(reason.New(reason.TooManyKeys, "use several steps, or a key further up, which covers all below it",
			"the step declares %d keys; at most %d are accepted", keys, l.MaxKeys), "locks", l.MaxKeys)
	}
	return nil
}

// nameStep takes the number or the key of a step.
func nameStep(s *node.Step, number uint32, key *string) error {
	switch {
	case key == nil && (number == 0 || number > maxStep):
		return inField(reason.New(reason.InvalidField, "number the steps of a transaction 1, 2, 3, …", "%d is no number of a step", number), "step")
	case key == nil:
		s.Number = number
		return nil
	case number != 0:
		return inField(reason.New(reason.InvalidField, "leave one of both out", "a step has a number or a key"), "step_key")
	}
	plain := len(*key) > 0 && len(*key) <= maxStepKeyBytes
	for i := range len(*key) {
		plain = plain && (*key)[i] > ' ' && (*key)[i] < 0x7f
	}
	if !plain {
		return inField(reason.New(reason.InvalidField, "1 to "+strconv.Itoa(maxStepKeyBytes)+" visible characters of ASCII", "%.40q is no key of a step", *key), "step_key")
	}
	s.Key = *key
	return nil
}

// declaredLock checks a key and its mode; at names the field that holds them.
func declaredLock(b LockBody, at string) (node.DeclaredLock, error) {
	if err := lock.CheckKey(b.Key); err != nil && b.Key != node.WholeService {
		return node.DeclaredLock{}, inField(reason.New(reason.InvalidKey,
			"segments divided by '/', UTF-8 in NFC without control characters, no empty, '.' or '..' segment, at most 256 bytes and 16 segments; a range is locked by the segment above it, and \"/\" is the whole service",
			"%v", err), at+".key")
	}
	d := node.DeclaredLock{Key: b.Key}
	switch b.Mode {
	case "", "exclusive":
		d.Mode = node.Exclusive
	case "shared":
		d.Mode = node.Shared
	case "update":
		d.Mode = node.Update
	default:
		return d, inField(notOneOf(b.Mode, "exclusive", "shared", "update"), at+".mode")
	}
	return d, nil
}

func (l *Limits) lockQuery(q *node.LockQuery) error {
	if q.Service != "" {
		if err := checkServiceName(q.Service); err != nil {
			return inField(err, "service")
		}
	}
	if q.Key != "" {
		if q.Service == "" {
			return inField(reason.New(reason.InvalidField, "name the service, too", "a key without a service"), "key")
		}
		if err := lock.CheckKey(q.Key); err != nil && q.Key != node.WholeService {
			return inField(reason.New(reason.InvalidKey, "as it was declared; '/' is the whole service", "%v", err), "key")
		}
	}
	if q.PageSize < 0 || q.PageSize > l.MaxPageSize {
		return inField(reason.New(reason.InvalidField, "1 to "+strconv.Itoa(l.MaxPageSize), "%d is out of range", q.PageSize), "page_size")
	}
	if q.PageToken != "" {
		if err := node.CheckLockToken(q.PageToken); err != nil {
			return inField(err, "page_token")
		}
	}
	return nil
}

// within checks a duration that may be absent; absent is zero.
func within(d Duration, field string, least, most time.Duration) (time.Duration, error) {
	if !d.Set {
		return 0, nil
	}
	if d.Duration < least || d.Duration > most {
		return 0, inField(reason.New(reason.InvalidDuration, least.String()+" to "+most.String(), "%v is out of range", d.Duration), field)
	}
	return d.Duration, nil
}

// ---- answers

func locksJSON(p *node.LockPage) *LockList {
	out := &LockList{Locks: make([]LockInfo, len(p.Locks)), NextPageToken: p.NextPageToken}
	owners := func(list []node.LockHolder) []LockOwner {
		out := make([]LockOwner, len(list))
		for i, h := range list {
			out[i] = LockOwner{Transaction: h.Transaction, Mode: h.Mode, Age: Time{h.Age}, Since: Time{h.Since}}
		}
		return out
	}
	for i := range p.Locks {
		l := &p.Locks[i]
		out.Locks[i] = LockInfo{Service: l.Service, Key: l.Key, Shard: l.Shard, Holders: owners(l.Holders), Waiters: owners(l.Waiters)}
	}
	return out
}

func deadlocksJSON(list []node.Deadlock) *DeadlockList {
	out := &DeadlockList{Deadlocks: make([]Deadlock, len(list))}
	for i := range list {
		d := &list[i]
		out.Deadlocks[i] = Deadlock{At: Time{d.At}, Shard: d.Shard, Victim: d.Victim, Restarted: d.Restarted, Cycle: make([]DeadlockWait, len(d.Cycle))}
		for j, w := range d.Cycle {
			out.Deadlocks[i].Cycle[j] = DeadlockWait(w)
		}
	}
	return out
}
