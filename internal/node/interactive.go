package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// Begin starts an interactive transaction, or finds the one that its id names.
func (n *Node) Begin(ctx context.Context, b Beginning) (Transaction, error) {
	if b.ID == "" {
		var err error
		if b.ID, err = n.NewBeginningID(&b); err != nil {
			return Transaction{}, err
		}
	}
	c := txn.Open{TimeoutMs: millis(b.Timeout, n.cfg.InteractiveTimeout), IdleMs: millis(b.IdleTimeout, n.cfg.IdleTimeout), TraceParent: b.TraceParent}
	var err error
	if c.ID, err = parseID(b.ID); err != nil {
		return Transaction{}, err
	}
	if b.RetryOf != "" {
		if c.RetryOf, err = parseID(b.RetryOf); err != nil {
			return Transaction{}, err
		}
		if c.RetryOf == c.ID {
			return Transaction{}, reason.New(reason.InvalidField, "make a new id for the retry, and name the aborted transaction in retry_of", "retry_of is the transaction itself")
		}
		if c.RetryOf.Shard(n.cfg.Shards) != c.ID.Shard(n.cfg.Shards) {
			return Transaction{}, reason.New(reason.InvalidField, "leave the id out, or take the three digits behind the version's 7 from the id in retry_of",
				"retry_of has its home at another shard than the id, and that does not know its age")
		}
	}
	c.Digest = digestOf(func(text func([]byte), count func(uint64)) {
		text([]byte("begin"))
		count(uint64(b.Timeout.Milliseconds()))
		count(uint64(b.IdleTimeout.Milliseconds()))
		text([]byte(b.RetryOf))
	})
	token := shard.Token(n.tokens.Add(1))
	ev := &shard.Submit{Token: token, ID: c.ID, Digest: c.Digest, Begin: txn.AppendOpen(nil, &c), Wait: shard.WaitNone, RetryOf: c.RetryOf}
	rep := n.home(c.ID).do(ctx, token, ev, &shard.Cancel{ID: c.ID})
	return n.result(&rep)
}

// NewBeginningID makes an id for a transaction that has none: a retry's at the home of
// the first try, whose record has the age.
func (n *Node) NewBeginningID(b *Beginning) (string, error) {
	id := NewID()
	if b.RetryOf != "" {
		first, err := parseID(b.RetryOf)
		if err != nil {
			return "", err
		}
		id = id.At(first.Shard(n.cfg.Shards), n.cfg.Shards)
	}
	return id.String(), nil
}

func millis(d, otherwise time.Duration) uint32 {
	if d <= 0 {
		d = otherwise
	}
	return uint32(min(max(d.Milliseconds(), 1), 1<<31))
}

// Enlist adds a step to an interactive transaction, or finds the one that its number
// names, and waits until its locks are held and its operations that run at once have
// run. A transaction that was aborted meanwhile is the answer, too.
func (n *Node) Enlist(ctx context.Context, id string, s Step) (Transaction, error) {
	tid, err := parseID(id)
	if err != nil {
		return Transaction{}, err
	}
	digest := stepDigest(&s)
	var t Transaction
	var refused *reason.Error
	if s.Key != "" {
		t, refused = n.enlistKeyed(ctx, tid, &s, digest)
	} else {
		t, refused = n.enlistNumbered(ctx, tid, &s, digest)
	}
	if refused != nil {
		return t, refused
	}
	return t, nil
}

func (n *Node) enlistNumbered(ctx context.Context, id txnid.ID, s *Step, digest [32]byte) (Transaction, *reason.Error) {
	return n.withRegistry(ctx, s.services, func(reg *registry) (Transaction, *reason.Error) { return n.enlistOnce(ctx, reg, id, s, digest) })
}

// Steps with a key have numbers that no client can choose: the key's hash. The first
// half of such a step's digest is the key's, so that two keys with one hash are told
// apart: the later one takes the next number of its own. Steps stay until the decision,
// so every repetition finds the same place.
const (
	keyedSteps     = 1 << 31
	keyDigestBytes = 16
	maxKeyProbes   = 16
)

func (n *Node) enlistKeyed(ctx context.Context, id txnid.ID, s *Step, digest [32]byte) (Transaction, *reason.Error) {
	key := sha256.Sum256([]byte(s.Key))
	copy(digest[:keyDigestBytes], key[:])
	for probe := range uint32(maxKeyProbes) {
		s.Number = keyedStep(key, probe)
		t, err := n.enlistNumbered(ctx, id, s, digest)
		if err == nil || err.Code != reason.StepConflict {
			return t, err
		}
		if other, err := n.stepOfOtherKey(ctx, id, s.Number, digest); err != nil {
			return t, err
		} else if !other {
			break
		}
	}
	return Transaction{}, reason.New(reason.StepConflict, "give each step a key of its own, and repeat one with the same body only",
		"step %q of transaction %s was another one", s.Key, id)
}

func keyedStep(key [32]byte, probe uint32) uint32 {
	h := sha256.Sum256(binary.BigEndian.AppendUint32(key[:], probe))
	return keyedSteps | binary.BigEndian.Uint32(h[:])
}

func (n *Node) stepOfOtherKey(ctx context.Context, id txnid.ID, number uint32, digest [32]byte) (other bool, refused *reason.Error) {
	err := n.home(id).run(ctx, func(sh *shard.Shard) {
		if t := sh.State().Get(id); t != nil {
			step := t.FindStep(number)
			// Without the step it is decided: whoever asks again is answered by that.
			other = step == nil || !bytes.Equal(step.Digest[:keyDigestBytes], digest[:keyDigestBytes])
		}
	})
	errors.As(err, &refused)
	return other, refused
}

func (s *Step) services() []string {
	names := make([]string, 0, len(s.Operations)+len(s.Locks))
	for i := range s.Operations {
		names = append(names, s.Operations[i].Service)
	}
	for i := range s.Locks {
		names = append(names, s.Locks[i].Service)
	}
	return distinct(names)
}

func (n *Node) enlistOnce(ctx context.Context, reg *registry, id txnid.ID, s *Step, digest [32]byte) (Transaction, *reason.Error) {
	c, locksOf, err := n.step(reg, id, s)
	if err != nil {
		// A step that was taken is answered by its record, and a transaction that is
		// decided by its decision, whatever the registry and the limits say by now.
		if known, unsure := n.answersStep(ctx, id, s.Number, digest); unsure != nil {
			return Transaction{}, unsure
		} else if !known {
			return Transaction{}, err
		}
		c = &txn.Enlist{ID: id, Step: s.Number}
	}
	c.Digest = digest
	token := shard.Token(n.tokens.Add(1))
	ev := &shard.Enlist{Token: token, ID: id, Step: s.Number, Digest: digest, Enlist: txn.AppendEnlist(nil, c), Locks: c.Locks, LocksOf: locksOf}
	rep := n.home(id).do(ctx, token, ev, &shard.Cancel{ID: id})
	return n.computed(&rep)
}

func (n *Node) answersStep(ctx context.Context, id txnid.ID, number uint32, digest [32]byte) (known bool, unsure *reason.Error) {
	err := n.settled(ctx, id, func(sh *shard.Shard) bool { return sh.StepUnderWay(id, number) }, func(sh *shard.Shard) {
		if t := sh.State().Get(id); t != nil && t.Interactive {
			step := t.FindStep(number)
			known = t.Status.Decided() || step != nil && step.Digest == digest
		}
	})
	if err != nil && err.Code == reason.OutcomeUnknown {
		return false, err
	}
	return known, nil
}

// step computes the ENLIST record, and of which services it has locks alone.
func (n *Node) step(reg *registry, id txnid.ID, s *Step) (c *txn.Enlist, locksOf []shard.Registration, refused *reason.Error) {
	switch {
	case s.Refusal != nil:
		return nil, nil, s.Refusal
	case s.Number == 0: // one with a key has got its number
		return nil, nil, reason.New(reason.InvalidField, "number the steps of a transaction 1, 2, 3, …", "step: missing or 0")
	case len(s.Operations)+len(s.Locks) == 0:
		return nil, nil, reason.New(reason.EmptyOperations, "name at least one operation or lock", "the step has neither operations nor locks")
	}
	c = &txn.Enlist{ID: id, Step: s.Number}
	var needs []lock.Need
	find := func(name string) (*txn.Service, *reason.Error) {
		switch e := reg.byName[name]; {
		case e == nil:
			return nil, unknownError(name)
		case e.service.Draining:
			return nil, drainingError(name)
		default:
			return e.service, nil
		}
	}
	for i := range s.Operations {
		op := &s.Operations[i]
		v, err := find(op.Service)
		if err != nil {
			return nil, nil, err
		}
		if op.Now && v.ExecuteURL == "" {
			return nil, nil, reason.New(reason.CannotExecute, `register the service with the URL http.execute, or leave "when" out: the operation then runs with prepare`,
				"service %q executes nothing before prepare", v.Name)
		}
		at := enlistedAt(c, v.Name)
		if at < 0 {
			at = len(c.Branches)
			c.Branches = append(c.Branches, txn.EnlistBranch{Service: v.Name, Generation: v.Generation, Isolated: v.Isolated})
		}
		c.Ops = append(c.Ops, txn.EnlistOp{Branch: uint32(at), Now: op.Now, Payload: op.Payload})
		if len(op.Locks) == 0 && coveredBy(s.Locks, v.Name) {
			continue // the step's own locks say what it uses there
		}
		if needs, err = n.needs(needs, &op.Operation, v, place{id, s, i}); err != nil {
			return nil, nil, err
		}
	}
	for i := range s.Locks {
		l := &s.Locks[i]
		v, err := find(l.Service)
		if err != nil {
			return nil, nil, err
		}
		if v.Isolated {
			return nil, nil, reason.New(reason.InvalidField, "leave its keys out: the service isolates itself", "service %q has isolation participant and takes no locks", v.Name)
		}
		if of := (shard.Registration{Service: v.Name, Generation: v.Generation}); enlistedAt(c, v.Name) < 0 && !slices.Contains(locksOf, of) {
			locksOf = append(locksOf, of)
		}
		if needs, err = n.needs(needs, &Operation{Service: l.Service, Locks: []DeclaredLock{l.DeclaredLock}}, v, place{id, s, i}); err != nil {
			return nil, nil, err
		}
	}
	needs, err := foldNeeds(needs)
	if err != nil {
		return nil, nil, err
	}
	c.Locks, c.Foreign = n.split(reg, id.Shard(n.cfg.Shards), needs)
	return c, locksOf, nil
}

func enlistedAt(c *txn.Enlist, service string) int {
	return slices.IndexFunc(c.Branches, func(b txn.EnlistBranch) bool { return b.Service == service })
}

func coveredBy(locks []ServiceLock, service string) bool {
	for i := range locks {
		if locks[i].Service == service {
			return true
		}
	}
	return false
}

// Commit asks for the commit of an interactive transaction and waits as w says.
func (n *Node) Commit(ctx context.Context, id string, w WaitMode) (Transaction, error) {
	tid, err := parseID(id)
	if err != nil {
		return Transaction{}, err
	}
	home := n.home(tid)
	isolated := false
	if w == WaitDefault { // what the branches took from the registry when they were enlisted
		if err := home.run(ctx, func(sh *shard.Shard) {
			if t := sh.State().Get(tid); t != nil {
				for i := range t.Branches {
					isolated = isolated || t.Branches[i].Isolated
				}
			}
		}); err != nil {
			return Transaction{}, err
		}
	}
	token := shard.Token(n.tokens.Add(1))
	rep := home.do(ctx, token, &shard.Seal{Token: token, ID: tid, Wait: waitMode(w, isolated)}, &shard.Cancel{ID: tid})
	return n.result(&rep)
}

// Heartbeat says that the client of an interactive transaction is alive.
func (n *Node) Heartbeat(ctx context.Context, id string) (Transaction, error) {
	tid, err := parseID(id)
	if err != nil {
		return Transaction{}, err
	}
	token := shard.Token(n.tokens.Add(1))
	rep := n.home(tid).do(ctx, token, &shard.Heartbeat{Token: token, ID: tid}, &shard.Cancel{ID: tid})
	if rep.Err != nil && rep.Err.Code == reason.NotFound {
		rep.Err = reason.New(reason.NotFound, "begin it with POST /v1/transactions:begin", "no transaction %s", id)
	}
	return n.result(&rep)
}

// stepDigest identifies the decoded request.
func stepDigest(s *Step) [32]byte {
	return digestOf(func(text func([]byte), count func(uint64)) {
		text([]byte("step"))
		for i := range s.Operations {
			op := &s.Operations[i]
			text([]byte(op.Service))
			text(op.Payload)
			now := uint64(0)
			if op.Now {
				now = 1
			}
			count(now)
			count(uint64(len(op.Locks)))
			for _, l := range op.Locks {
				text([]byte(l.Key))
				count(uint64(l.Mode))
			}
		}
		count(uint64(len(s.Locks)))
		for i := range s.Locks {
			text([]byte(s.Locks[i].Service))
			text([]byte(s.Locks[i].Key))
			count(uint64(s.Locks[i].Mode))
		}
	})
}

// digestOf is the SHA-256 of texts and numbers, none of which can be taken for another.
func digestOf(write func(text func([]byte), count func(uint64))) [32]byte {
	h := sha256.New()
	buf := make([]byte, 0, binary.MaxVarintLen64)
	count := func(v uint64) {
		buf = binary.AppendUvarint(buf[:0], v)
		h.Write(buf)
	}
	write(func(b []byte) {
		count(uint64(len(b)))
		h.Write(b)
	}, count)
	return [32]byte(h.Sum(nil))
}
