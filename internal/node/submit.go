package node

import (
	"context"
	"crypto/sha256"
	"slices"
	"time"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// Submit starts a one-shot transaction, or finds the one that its id names, and
// waits as s.Wait says. The context bounds the wait, not the transaction.
func (n *Node) Submit(ctx context.Context, s Submission) (Transaction, error) {
	text := s.ID
	if text == "" {
		text = n.NewSubmissionID(&s)
	}
	id, err := parseID(text)
	if err != nil {
		return Transaction{}, err
	}
	t, refused := n.withRegistry(ctx, s.services, func(reg *registry) (Transaction, *reason.Error) { return n.submitOnce(ctx, reg, id, &s) })
	if refused != nil {
		return t, refused
	}
	return t, nil
}

// NewSubmissionID makes an id for a submission that has none: with its home where its
// first key is kept.
func (n *Node) NewSubmissionID(s *Submission) string {
	if len(s.Operations) == 0 {
		return NewID().String()
	}
	return n.nearby(NewID(), &s.Operations[0]).String()
}

func (s *Submission) services() []string {
	names := make([]string, 0, len(s.Operations))
	for i := range s.Operations {
		names = append(names, s.Operations[i].Service)
	}
	return distinct(names)
}

func distinct(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

func (n *Node) submitOnce(ctx context.Context, reg *registry, id txnid.ID, s *Submission) (Transaction, *reason.Error) {
	r := n.home(id)
	b, wait, err := n.begin(reg, id, s)
	if err != nil {
		// A known id is answered by its record, whatever the registry and the limits
		// say by now.
		if t, known := n.known(ctx, id, s); known != nil {
			return t, known.err
		}
		return Transaction{}, err
	}
	token := shard.Token(n.tokens.Add(1))
	rep := r.do(ctx, token, &shard.Submit{Token: token, ID: id, Digest: b.Digest, Begin: txn.AppendBegin(nil, b), Locks: b.Locks, Wait: wait}, &shard.Cancel{ID: id})
	return n.computed(&rep)
}

// knownID is what becomes of a submission whose id has a record.
type knownID struct{ err *reason.Error }

// known returns the transaction that a submission's id names, or a conflict if
// that was asked for with other words; nil if there is no such transaction.
func (n *Node) known(ctx context.Context, id txnid.ID, s *Submission) (Transaction, *knownID) {
	if s.ID == "" {
		return Transaction{}, nil
	}
	var there, same bool
	err := n.settled(ctx, id, func(sh *shard.Shard) bool { return sh.UnderWay(id) }, func(sh *shard.Shard) {
		t := sh.State().Get(id)
		there = t != nil
		same = there && (t.NeverBegun || t.Digest == submissionDigest(s))
	})
	if err != nil && err.Code == reason.OutcomeUnknown {
		return Transaction{}, &knownID{err}
	}
	switch {
	case err != nil || !there:
		return Transaction{}, nil
	case !same:
		return Transaction{}, &knownID{reason.New(reason.IDConflict, "use a new id for new work, and the same body to repeat", "%s was submitted with another body", id)}
	}
	t, failed := n.Transaction(ctx, id.String())
	if failed != nil {
		return Transaction{}, &knownID{asReason(failed)}
	}
	t.Replayed = true
	return t, &knownID{}
}

// settled looks at a shard when no record of an id is on its way: what is refused while the
// record of an earlier try is, may be done after all. It fails with OUTCOME_UNKNOWN if that
// is not told in time.
func (n *Node) settled(ctx context.Context, id txnid.ID, underWay func(*shard.Shard) bool, look func(*shard.Shard)) *reason.Error {
	for range 2 {
		coming := false
		if err := n.home(id).run(ctx, func(sh *shard.Shard) {
			if coming = underWay(sh); !coming {
				look(sh)
			}
		}); err != nil {
			return asReason(err)
		}
		if !coming {
			return nil
		}
		if _, err := n.Transaction(ctx, id.String()); err != nil && asReason(err).Code != reason.NotFound { // told through the log, behind that record
			break
		}
	}
	err := reason.New(reason.OutcomeUnknown, "send the same request again: it is executed once", "a request on %s that this one repeats is under way", id)
	err.Details = map[string]string{"id": id.String()}
	err.RetryAfterMs = 100
	return err
}

func (n *Node) timeoutMs(s *Submission) uint32 {
	if s.Timeout <= 0 {
		return n.runners[0].sh.DefaultTimeoutMs()
	}
	return uint32(min(max(s.Timeout.Milliseconds(), 1), 1<<31))
}

// begin computes the BEGIN record: branches in order of their first operation,
// the folded lock set, the digests.
func (n *Node) begin(reg *registry, id txnid.ID, s *Submission) (*txn.Begin, shard.WaitMode, *reason.Error) {
	if s.Refusal != nil {
		return nil, 0, s.Refusal
	}
	if len(s.Operations) == 0 {
		return nil, 0, reason.New(reason.EmptyOperations, "name at least one operation", "the transaction has no operations")
	}
	b := &txn.Begin{ID: id, TimeoutMs: n.timeoutMs(s), TraceParent: s.TraceParent, Branches: make([]txn.BeginBranch, 0, min(len(s.Operations), 4))}
	b.Digest = submissionDigest(s)
	needs := make([]lock.Need, 0, 4*len(s.Operations))
	isolated := false
	var only *txn.Service
	for i := range s.Operations {
		op := &s.Operations[i]
		e := reg.byName[op.Service]
		if e == nil {
			return nil, 0, unknownError(op.Service)
		}
		v := e.service
		if v.Draining {
			return nil, 0, drainingError(v.Name)
		}
		only = v
		isolated = isolated || v.Isolated
		at := branchOf(b.Branches, v.Name)
		if at < 0 {
			at = len(b.Branches)
			b.Branches = append(b.Branches, txn.BeginBranch{Service: v.Name, Generation: v.Generation, Isolated: v.Isolated})
		}
		b.Branches[at].Ops = append(b.Branches[at].Ops, op.Payload)
		var err *reason.Error
		if needs, err = n.needs(needs, op, v, place{id: id, index: i}); err != nil {
			return nil, 0, err
		}
	}
	for i := range b.Branches {
		b.Branches[i].Digest = payloadDigest(b.Branches[i].Ops)
	}
	b.OnePhase = len(b.Branches) == 1 && only.Capabilities&txn.OnePhase != 0
	needs, err := foldNeeds(needs)
	if err != nil {
		return nil, 0, err
	}
	b.Locks, b.Foreign = n.split(reg, id.Shard(n.cfg.Shards), needs)
	return b, waitMode(s.Wait, isolated), nil
}

// foldNeeds is lock.Fold within the limit of a record: each key brings the segments above it.
func foldNeeds(needs []lock.Need) ([]lock.Need, *reason.Error) {
	set := lock.Fold(needs)
	if len(set) > txn.MaxNeeds {
		return nil, reason.New(reason.TooManyKeys, "lock keys further up, which cover all below them", "%d locks with the segments above them; at most %d are accepted", len(set), txn.MaxNeeds)
	}
	return set, nil
}

func unknownError(service string) *reason.Error {
	return reason.New(reason.UnknownService, "register it with PUT /v1/services/"+service, "service %q is not registered", service)
}

func drainingError(service string) *reason.Error {
	return reason.New(reason.ServiceDraining, "wait until it is removed, then register it again", "service %q is being removed", service)
}

func waitMode(w WaitMode, isolated bool) shard.WaitMode {
	switch w {
	case WaitDecided:
		return shard.WaitDecided
	case WaitCompleted:
		return shard.WaitCompleted
	case WaitNone:
		return shard.WaitNone
	case WaitDefault:
	}
	if isolated {
		return shard.WaitCompleted
	}
	return shard.WaitDecided
}

func branchOf(branches []txn.BeginBranch, service string) int {
	for i := range branches {
		if branches[i].Service == service {
			return i
		}
	}
	return -1
}

// needs appends the locks of an operation: rule 5. Without keys it takes its
// whole service, unless the service isolates itself.
func (n *Node) needs(dst []lock.Need, op *Operation, v *txn.Service, at place) ([]lock.Need, *reason.Error) {
	if v.Isolated {
		return dst, nil
	}
	if len(op.Locks) == 0 {
		if v.RequireKeys {
			return dst, reason.New(reason.KeysRequired, "declare the keys that the operation uses under \"locks\"",
				"service %q was registered with require_keys, and %s on it declares none", v.Name, at)
		}
		n.undeclared(v.Name, at)
		mode := lock.X
		if mutant.On("undeclared-keys-shared") {
			mode = lock.S
		}
		return append(dst, lock.Need{Key: v.Name, Mode: mode}), nil
	}
	for i := range op.Locks {
		l := &op.Locks[i]
		key := v.Name
		if l.Key != WholeService {
			key += "/" + l.Key
		}
		if err := lock.CheckKey(l.Key); err != nil && l.Key != WholeService {
			return dst, reason.New(reason.InvalidKey, "segments separated by '/', UTF-8 in NFC, at most 256 bytes and 16 segments", "lock key %q: %v", l.Key, err)
		}
		mode := lock.X
		switch l.Mode {
		case Shared:
			mode = lock.S
		case Update:
			mode = lock.U
		case Exclusive:
		}
		dst = append(dst, lock.Need{Key: key, Mode: mode})
	}
	return dst, nil
}

// submissionDigest identifies the decoded request: same digest, same work. It
// reads nothing but the request: defaults may change between two tries.
func submissionDigest(s *Submission) [32]byte {
	return digestOf(func(text func([]byte), count func(uint64)) {
		count(uint64(s.Timeout.Milliseconds()))
		for i := range s.Operations {
			op := &s.Operations[i]
			text([]byte(op.Service))
			text(op.Payload)
			count(uint64(len(op.Locks)))
			for _, l := range op.Locks {
				text([]byte(l.Key))
				count(uint64(l.Mode))
			}
		}
	})
}

// payloadDigest is the contract's digest: d0 is empty, di = SHA-256(d(i-1) || payload).
func payloadDigest(ops [][]byte) [32]byte {
	var d [32]byte
	h := sha256.New()
	for i, op := range ops {
		h.Reset()
		if i > 0 {
			h.Write(d[:])
		}
		h.Write(op)
		h.Sum(d[:0])
	}
	return d
}

func parseID(s string) (txnid.ID, error) {
	id, err := txnid.Parse(s)
	if err != nil {
		return id, reason.New(reason.InvalidID, "make ids as UUIDv7 (RFC 9562), in lower case", "%q: %v", s, err)
	}
	return id, nil
}

// Transaction returns the current state of a transaction.
func (n *Node) Transaction(ctx context.Context, id string) (Transaction, error) {
	tid, err := parseID(id)
	if err != nil {
		return Transaction{}, err
	}
	token := shard.Token(n.tokens.Add(1))
	rep := n.home(tid).do(ctx, token, &shard.Get{Token: token, ID: tid}, &shard.Cancel{ID: tid})
	return n.result(&rep)
}

// Rollback aborts a transaction that is not decided, and makes sure that an
// unknown id never begins.
func (n *Node) Rollback(ctx context.Context, id string) (Transaction, error) {
	tid, err := parseID(id)
	if err != nil {
		return Transaction{}, err
	}
	token := shard.Token(n.tokens.Add(1))
	rep := n.home(tid).do(ctx, token, &shard.Rollback{Token: token, ID: tid}, &shard.Cancel{ID: tid})
	return n.result(&rep)
}

// Resolve closes a hazard with an operator's note.
func (n *Node) Resolve(ctx context.Context, id, note string) (Transaction, error) {
	tid, err := parseID(id)
	if err != nil {
		return Transaction{}, err
	}
	if len(note) == 0 || len(note) > txn.MaxMessageBytes {
		return Transaction{}, reason.New(reason.InvalidField, "say what was found and done", "note: %d bytes; 1 to %d are accepted", len(note), txn.MaxMessageBytes)
	}
	token := shard.Token(n.tokens.Add(1))
	rep := n.home(tid).do(ctx, token, &shard.Resolve{Token: token, ID: tid, Note: note}, &shard.Cancel{ID: tid})
	return n.result(&rep)
}

// PutService registers a service, or replaces its endpoints and limits.
func (n *Node) PutService(ctx context.Context, spec ServiceSpec) (Service, error) {
	v, err := n.service(&spec)
	if err != nil {
		return Service{}, err
	}
	token := shard.Token(n.tokens.Add(1))
	rep := n.runners[0].do(ctx, token, &shard.PutService{Token: token, Service: v}, &shard.Cancel{Name: v.Name})
	return n.serviceResult(&rep)
}

// DeleteService drains a service and removes it. When ctx ends first, it answers
// with the draining service, which is removed once its last transaction has ended.
func (n *Node) DeleteService(ctx context.Context, name string) (Service, error) {
	token := shard.Token(n.tokens.Add(1))
	rep := n.runners[0].do(ctx, token, &shard.DeleteService{Token: token, Name: name}, &shard.Cancel{Name: name})
	if rep.Err != nil && rep.Err.Code == reason.UnknownService {
		rep.Err.Code = reason.NotFound
	}
	return n.serviceResult(&rep)
}

// unixMs converts a log time; 0 is the zero time.
func unixMs(ms uint64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms)).UTC()
}
