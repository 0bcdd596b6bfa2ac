package txn

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txnid"
)

// Locks over several shards. A key has one lock shard, whatever transaction asks for
// it; a transaction has one home. Where the two differ:
//
//	home                                             lock shard
//	BEGIN or ENLIST names the part   -- ask ------>  CLAIM: takes a place in the table
//	LOCKED                           <- granted ---  claim granted, then or later
//	all parts locked: go on
//	YIELD (one-shot), ABORT          <- give way --  an elder waits for what it holds
//	YIELD raises the request         -- ask ------>  CLAIM of a later request: gives back, queues again
//	acknowledged, ended              -- release -->  RELEASE: gives back
//	                                 <- inquire ---  is it over? (whose release was lost)
//
// Every message may be lost, doubled and late: the request number tells them apart, and
// whoever waits for an answer asks again. An elder never waits for a younger that can
// still give way, so no cycle lasts, whichever shards it runs over.

// MaxShards of a cluster.
const MaxShards = 1 << 10

// LockShard is the shard that keeps a service's keys. A service with several
// partitions keeps a key at the one of the key's first segment.
func LockShard(service, segment string, partitions, shards uint32) uint32 {
	if shards <= 1 {
		return 0
	}
	at := uint64(hashOf(service))
	if partitions > 1 {
		at += uint64(hashOf(segment) % partitions)
	}
	return uint32(at % uint64(shards))
}

func hashOf(s string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s))
	return h.Sum32()
}

// LockPart is what of a lock set is kept by one shard.
type LockPart struct {
	Shard uint32
	Needs []lock.Need // folded
}

// SplitLocks divides a folded set by lock shards. A lock on a whole service is needed in
// every one of its partitions; an intention, only where its keys are. The parts are in
// order of shards.
func SplitLocks(set []lock.Need, partitions func(service string) uint32, shards uint32) []LockPart {
	if len(set) == 0 {
		return nil
	}
	var parts []LockPart
	put := func(shard uint32, n lock.Need) {
		i, found := slices.BinarySearchFunc(parts, shard, func(p LockPart, shard uint32) int { return int(p.Shard) - int(shard) })
		if !found {
			parts = slices.Insert(parts, i, LockPart{Shard: shard})
		}
		p := &parts[i]
		if at, found := slices.BinarySearchFunc(p.Needs, n.Key, byKey); !found {
			p.Needs = slices.Insert(p.Needs, at, n)
		}
	}
	for _, n := range set {
		service, rest, below := strings.Cut(n.Key, "/")
		count := max(partitions(service), 1)
		if below {
			root, _ := slices.BinarySearchFunc(set, service, byKey)
			segment, _, _ := strings.Cut(rest, "/")
			at := LockShard(service, segment, count, shards)
			put(at, set[root])
			put(at, n)
			continue
		}
		if n.Mode != lock.IS && n.Mode != lock.IX {
			first := LockShard(service, "", 1, shards)
			for p := range min(count, shards) {
				put((first+p)%shards, n)
			}
		}
	}
	return parts
}

func byKey(n lock.Need, key string) int { return strings.Compare(n.Key, key) }

// Foreign is what a transaction asks of the lock table of another shard.
type Foreign struct {
	Shard    uint32
	Request  uint32      // the latest, counted from 1; answers to earlier ones are void
	Granted  bool        // the latest request is
	Needs    []lock.Need // of the latest request, until the transaction or its step has all its locks
	Keys     uint32      // asked for in all requests
	Services []string    // whose keys these are
}

// foreignGranted reports whether no part is waited for.
func (t *Txn) foreignGranted() bool {
	for i := range t.Foreign {
		if !t.Foreign[i].Granted {
			return false
		}
	}
	return true
}

// ForeignAt is the transaction's part at a shard, or nil.
func (t *Txn) ForeignAt(shard uint32) *Foreign {
	for i := range t.Foreign {
		if t.Foreign[i].Shard == shard {
			return &t.Foreign[i]
		}
	}
	return nil
}

// ask adds a request to another shard.
func (t *Txn) ask(p *LockPart, intern func(string) string) {
	f := t.ForeignAt(p.Shard)
	if f == nil {
		t.Foreign = append(t.Foreign, Foreign{Shard: p.Shard})
		f = &t.Foreign[len(t.Foreign)-1]
	}
	f.Request++
	f.Granted, f.Needs = false, p.Needs
	f.Keys += uint32(len(p.Needs))
	for _, n := range p.Needs {
		if !strings.Contains(n.Key, "/") && !slices.Contains(f.Services, n.Key) {
			f.Services = append(f.Services, intern(n.Key))
		}
	}
}

// dropNeeds: what was asked for is held, or wanted no more.
func (t *Txn) dropNeeds() {
	for i := range t.Foreign {
		t.Foreign[i].Needs = nil
	}
}

func (t *Txn) foreignKeys() (n int) {
	for i := range t.Foreign {
		n += int(t.Foreign[i].Keys)
	}
	return n
}

// WaitsForLocks reports whether a transaction that can still give way waits for a lock
// itself. One that does not stands in no cycle.
func (t *Txn) WaitsForLocks() bool { return t.Status == Active && (!t.Interactive || t.StepPending) }

// locksHeld goes on with a transaction that has become able to, if it has.
func (s *State) locksHeld(t *Txn) {
	if t.Status != Active || t.Interactive && !t.StepPending || !t.foreignGranted() || t.locked && !s.locks.Granted(t.ID) {
		return
	}
	if t.Interactive {
		s.stepGranted(t)
	} else {
		s.grant(t)
	}
}

// nextToken counts a grant. The counters of shards follow each other as messages pass
// between them, so that the later of two that held a key in conflict has the greater
// token, whichever shards its other keys are at.
func (s *State) nextToken() uint64 {
	s.grants++
	return s.grants
}

// Locked says that a foreign part is held.
type Locked struct {
	ID      txnid.ID
	Shard   uint32
	Request uint32
	Token   uint64
}

func (s *State) applyLocked(c Locked) {
	if !mutant.On("foreign-token-ignored") {
		s.grants = max(s.grants, c.Token)
	}
	t := s.txns[c.ID]
	if t == nil || t.Status != Active {
		return
	}
	f := t.ForeignAt(c.Shard)
	if f == nil || f.Request != c.Request && !mutant.On("foreign-any-request") || f.Granted {
		return
	}
	f.Granted = true
	s.locksHeld(t)
	s.breakCycles()
}

// Yield says that a one-shot transaction gives a foreign part back and asks for it
// again: an elder waits there.
type Yield struct {
	ID      txnid.ID
	Shard   uint32
	Request uint32
}

func (s *State) applyYield(c Yield) {
	t := s.txns[c.ID]
	if t == nil || t.Status != Active && !mutant.On("foreign-yield-prepared") || t.Interactive {
		return
	}
	if f := t.ForeignAt(c.Shard); f != nil && f.Request == c.Request {
		f.Request++
		f.Granted = false
		s.emit(Effect{Kind: EffectAskAgain, ID: t.ID, Txn: t, Shard: c.Shard})
	}
}

// ---- the lock shard's side

// Claim is what a transaction of another home holds or wants in this shard's table.
type Claim struct {
	ID      txnid.ID
	AgeMs   uint64 // of the transaction
	Request uint32 // the latest
	Whole   bool   // of a one-shot transaction: it can be given back and asked for again
	Granted bool
	Token   uint64 // of the latest grant
	Asked   bool   // its home was asked to give way
	Over    bool   // something was released: it takes no more
}

// ForeignClaim returns the claim of a transaction of another home, or nil.
func (s *State) ForeignClaim(id txnid.ID) *Claim { return s.claims[id] }

// ForeignClaims lists the transactions of other homes that hold or wait for locks
// here, in order of ids.
func (s *State) ForeignClaims() []txnid.ID {
	ids := make([]txnid.ID, 0, len(s.claims))
	for id := range s.claims { // order does not matter: the result is sorted
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b txnid.ID) int {
		if a.Less(b) {
			return -1
		}
		return 1
	})
	return ids
}

// ClaimCmd asks for locks for a transaction of another home.
type ClaimCmd struct {
	ID      txnid.ID
	AgeMs   uint64
	Request uint32
	Whole   bool
	Needs   []lock.Need
}

func (s *State) applyClaim(c *ClaimCmd) {
	f := s.claims[c.ID]
	switch {
	case f == nil:
		f = &Claim{ID: c.ID, AgeMs: c.AgeMs, Whole: c.Whole}
		s.claims[c.ID] = f
	case f.Over || c.Request <= f.Request:
		s.emit(Effect{Kind: EffectClaimRepeated, ID: c.ID, Request: f.Request})
		return
	case f.Whole:
		s.wake(s.locks.Drop(c.ID, s.woken[:0]))
	case !f.Granted:
		return // a home asks for more only when it has what it asked for
	}
	f.Request, f.Granted = c.Request, false
	if f.Whole {
		f.Asked = false // what the elder waited for was given back
	}
	if s.locks.Extend(c.ID, f.AgeMs, c.Needs) {
		s.claimGranted(f)
	} else {
		s.emit(Effect{Kind: EffectClaimBlocked, ID: c.ID, Request: c.Request})
	}
	s.breakCycles()
}

func (s *State) claimGranted(f *Claim) {
	f.Granted, f.Token = true, s.nextToken()
	s.emit(Effect{Kind: EffectClaimGranted, ID: f.ID, Request: f.Request, Token: f.Token})
}

// Release gives back what a transaction of another home has here: its keys at one
// service, or what it waits for, or else everything.
type Release struct {
	ID      txnid.ID
	Service string // empty: not one service
	Waiting bool   // what it waits for
	Token   uint64 // the home's grant counter
}

func (s *State) applyRelease(c Release) {
	s.grants = max(s.grants, c.Token)
	f := s.claims[c.ID]
	switch {
	case f == nil:
	case c.Service == "" && !c.Waiting:
		delete(s.claims, c.ID)
		s.wake(s.locks.Drop(c.ID, s.woken[:0]))
	default:
		f.Over = true
		if !f.Granted {
			f.Granted = true
			s.wake(s.locks.Abandon(c.ID, s.woken[:0]))
		}
		if c.Service != "" {
			s.wake(s.locks.Release(c.ID, c.Service, s.woken[:0]))
		}
	}
	s.emit(Effect{Kind: EffectReleased, ID: c.ID, Name: c.Service, Waiting: c.Waiting})
	s.breakCycles()
}

// ---- giving way

// mayGiveWay reports whether a transaction can still be made to. One that was asked to
// prepare, or has decided, is waited for.
func (s *State) mayGiveWay(id txnid.ID) bool {
	if f := s.claims[id]; f != nil {
		return !f.Asked && !f.Over
	}
	t := s.txns[id]
	return t != nil && (t.Status == Active || t.Status == Preparing && t.Interactive && mutant.On("victim-is-prepared"))
}

// wound makes the younger of a wait give way: an interactive transaction aborts, a
// one-shot one gives back what it has and queues again, and its client sees nothing.
// One of another home is asked to.
func (s *State) wound(w lock.Wait) {
	if f := s.claims[w.For]; f != nil {
		if f.Whole && !f.Granted { // its home has nothing of it
			s.emit(Effect{Kind: EffectWounded, ID: f.ID, Waiting: true, Cycle: []lock.Wait{w}})
			s.queueBehind(w)
			return
		}
		f.Asked = true
		s.emit(Effect{Kind: EffectGiveWay, ID: f.ID, Request: f.Request, Cycle: []lock.Wait{w}})
		return
	}
	t := s.txns[w.For]
	s.emit(Effect{Kind: EffectWounded, ID: t.ID, Txn: t, Waiting: t.WaitsForLocks(), Cycle: []lock.Wait{w}})
	if t.Interactive {
		s.abort(t, &Abort{Reason: reason.Wounded, Message: cut(DescribeWound(w)), Service: lock.Service(w.Key)}, false)
		return
	}
	s.queueBehind(w)
}

// queueBehind restarts the younger of a wait.
func (s *State) queueBehind(w lock.Wait) {
	s.restart(w.For)
	if s.locks.Blocks(w) {
		panic(fmt.Sprintf("txn: %s gave way to %s, its elder, and got %s back before it", w.For, w.Owner, w.Key))
	}
}

// restart makes a claim that was made at once give back what it has and queue again.
func (s *State) restart(id txnid.ID) {
	granted, woken := s.locks.Restart(id, s.woken[:0])
	s.wake(woken)
	switch f := s.claims[id]; {
	case !granted:
	case f != nil:
		s.claimGranted(f)
	default:
		s.locksHeld(s.txns[id])
	}
}

// DescribeWound says who needs what.
func DescribeWound(w lock.Wait) string {
	return "transaction " + w.Owner.String() + ", which is older, needs " + w.Key + " (" + w.Mode.String() + ")"
}

// WoundOf tells one elder that waits for what a claim of another home holds.
func (s *State) WoundOf(id txnid.ID) (lock.Wait, bool) { return s.locks.WoundOf(id) }
