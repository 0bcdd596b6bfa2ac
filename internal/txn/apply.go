package txn

import (
	"fmt"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txnid"
)

// EffectKind says what an applied command changed.
type EffectKind uint8

// The effects of applied commands, in the order in which they happened.
const (
	EffectBooted          EffectKind = iota + 1
	EffectLed                        // LEAD of the entry's term: that leader leads
	EffectStale                      // the entry was computed in another term and is ignored
	EffectBegan                      // Txn
	EffectBeginRepeated              // ID has a record: Txn; compare digests
	EffectBeginRefused               // ID; Reason: IDExpired, UnknownService, ServiceDraining; nothing stored
	EffectBlocked                    // Txn began and waits for a lock
	EffectGranted                    // Txn holds all its locks: ask the participants
	EffectDecided                    // Txn: its terminal record is applied
	EffectDecisionIgnored            // ID: decided before, not grantable, or one-phase; Txn may be nil (expired)
	EffectAcked                      // Txn, Branch
	EffectEnded                      // Txn
	EffectForgotten                  // ID
	EffectForgetDone                 // a FORGET was applied, whatever it found
	EffectHazard                     // Txn, Branch: acknowledged otherwise than decided
	EffectResolved                   // Txn: hazard closed by an operator; nil with Reason if there was none
	EffectServicePut                 // Service
	EffectServiceRefused             // Name, Reason
	EffectServiceDraining            // Service
	EffectServiceRemoved             // Name
	EffectStepTaken                  // Txn, Step: enlisted; its locks are asked for
	EffectStepRepeated               // Txn, Step: it was taken before
	EffectStepRefused                // ID, Step, Reason, Name; Txn may be nil; nothing changed
	EffectStepBlocked                // Txn: its last step waits for a lock
	EffectStepGranted                // Txn: its last step holds its locks
	EffectSealed                     // Txn: ask the participants
	EffectSealRefused                // ID, Reason; Txn may be nil
	EffectDeadlock                   // Txn: the victim; Cycle
	EffectCycle                      // ID of another home's transaction: the youngest of Cycle; an elder there makes it give way
	EffectWounded                    // ID gave way to an elder; Txn, if this is its home; Cycle is that one wait; Waiting
	EffectAskAgain                   // Txn, Shard: its part there was given back and is asked for anew
	EffectClaimGranted               // ID of another home's transaction, Request, Token
	EffectClaimBlocked               // ID, Request
	EffectClaimRepeated              // ID, Request: the latest one known
	EffectReleased                   // ID, Name: the service, if one
	EffectGiveWay                    // ID, Request: its home is to be asked; Cycle is that one wait
	EffectDrainedHere                // Name, Generation in Token
	EffectLevel                      // a level was reached
	EffectMemberPut                  // Name: id
	EffectMemberRemoved              // Name: id
	EffectMemberRefused              // Reason, and what of Name, Shard and Request (a level) it is about
	EffectPlaced                     // Shard
	EffectVerify                     // Capture, of the state at entry Token: to be hashed, and given to Hashed
	EffectVerified                   // the state at entry Token was the leader's
)

// Effect is one thing that an applied command changed.
type Effect struct {
	Kind    EffectKind
	ID      txnid.ID
	Txn     *Txn
	Branch  uint32
	Reason  reason.Code
	Name    string
	Service *Service
	Step    uint32
	Cycle   []lock.Wait
	Shard   uint32
	Request uint32
	Token   uint64
	Waiting bool // released: what it waited for; wounded: it waited for a lock itself
	Capture *Capture
}

// Apply applies one committed entry and appends what it changed to eff. An error
// means that this replica cannot follow and must halt: an unknown or damaged
// record, an index out of order, a record of another cluster or shard, a state that is
// not the leader's (ErrDiverged).
func (s *State) Apply(index, term uint64, entry []byte, eff *[]Effect) error {
	if s.diverged != nil {
		return s.diverged
	}
	if index <= s.applied {
		return fmt.Errorf("entry %d applied after entry %d", index, s.applied)
	}
	computedIn, timeMs, err := Header(entry)
	if err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	s.applied = index
	s.eff = eff
	defer func() { s.eff = nil }()
	if computedIn != term && !mutant.On("skip-term-check") {
		s.emit(Effect{Kind: EffectStale})
		return nil
	}
	s.nowMs = max(s.nowMs, timeMs)
	r := &reader{b: entry[HeaderBytes:]}
	for len(r.b) > 0 {
		k := kind(r.byte())
		if s.known(k, r) {
			s.applyOne(k, term, r)
		}
		if r.err != nil {
			return fmt.Errorf("entry %d, command %d: %w", index, k, r.err)
		}
	}
	return nil
}

func (s *State) emit(e Effect) { *s.eff = append(*s.eff, e) }

func (s *State) applyOne(k kind, term uint64, r *reader) {
	switch k {
	case kindBoot:
		s.applyBoot(r)
	case kindLead:
		_ = r.string() // the node's name, for people who read the log
		if r.err == nil {
			s.term = term
			s.emit(Effect{Kind: EffectLed})
		}
	case kindBegin, kindBeginSpread:
		if c := r.begin(k == kindBeginSpread, s.intern); r.err == nil && s.knowsShards(c.Foreign, r) {
			s.applyBegin(c)
		}
	case kindCommit:
		s.applyCommit(r)
	case kindAbort:
		c := AbortCmd{ID: r.id(), Reason: reason.Code(r.string()), Message: r.string(), Service: r.string(), Refused: r.bool()}
		if r.err == nil {
			s.applyAbort(c)
		}
	case kindAck:
		c := Ack{ID: r.id(), Branch: r.uint32("branch"), Fate: r.fate()}
		if r.err == nil {
			s.applyAck(c)
		}
	case kindForget:
		c := Forget{Count: r.uint32("count"), EndedBeforeMs: r.uint()}
		if r.err == nil {
			s.applyForget(c)
		}
	case kindPutService:
		if v := r.service(); r.err == nil {
			s.applyPutService(v)
		}
	case kindDrainService:
		if name := r.string(); r.err == nil {
			s.applyDrainService(name)
		}
	case kindRemoveService:
		if name := r.string(); r.err == nil {
			s.applyRemoveService(name)
		}
	case kindResolve:
		id, note := r.id(), r.string()
		if r.err == nil {
			s.applyResolve(id, note)
		}
	case kindOpen:
		if c := r.open(); r.err == nil {
			s.applyOpen(c)
		}
	case kindEnlist, kindEnlistSpread:
		if c := r.enlist(k == kindEnlistSpread, s.intern); r.err == nil && s.knowsShards(c.Foreign, r) {
			s.applyEnlist(c)
		}
	case kindSeal:
		if id := r.id(); r.err == nil {
			s.applySeal(id)
		}
	case kindPutExecutor:
		if v := r.executor(); r.err == nil {
			s.applyPutService(v)
		}
	case kindPutPartitioned:
		if v := r.partitioned(); r.err == nil {
			s.applyPutService(v)
		}
	case kindLevel:
		if level := r.uint32("level"); r.err == nil {
			s.applyLevel(level, r)
		}
	case kindLocked, kindYield, kindClaim, kindRelease, kindDrainHere:
		s.applyForeign(k, r)
	case kindPutMember:
		if m := r.member(); r.err == nil {
			s.applyPutMember(m)
		}
	case kindRemoveMember:
		if id := r.string(); r.err == nil {
			s.applyRemoveMember(id)
		}
	case kindPlace:
		if c := r.place(); r.err == nil {
			s.applyPlace(c)
		}
	case kindVerify:
		s.applyVerify()
	case kindHash:
		if index, sum := r.uint(), r.digest(); r.err == nil {
			r.err = s.applyHash(index, sum)
		}
	}
}

// knowsShards refuses a record of a cluster with other shards.
func (s *State) knowsShards(parts []LockPart, r *reader) bool {
	for i := range parts {
		if parts[i].Shard >= s.shards || parts[i].Shard == s.shard {
			r.fail(fmt.Sprintf("lock part for shard %d, in shard %d of %d", parts[i].Shard, s.shard, s.shards))
			return false
		}
	}
	return true
}

func (s *State) applyBoot(r *reader) {
	var c Boot
	copy(c.Cluster[:], r.take(len(c.Cluster)))
	c.Incarnation = r.uint32("incarnation")
	c.Shard = r.uint32("shard")
	c.Shards = r.uint32("shards")
	if r.err != nil || s.booted { // the first one wins
		return
	}
	if c.Shard != s.shard || c.Shards != s.shards {
		r.fail(fmt.Sprintf("log of shard %d of %d read as shard %d of %d", c.Shard, c.Shards, s.shard, s.shards))
		return
	}
	s.booted, s.cluster, s.incarn = true, c.Cluster, c.Incarnation
	s.emit(Effect{Kind: EffectBooted})
}

// intern returns one string for all records that name the same service.
func (s *State) intern(name string) string {
	if v := s.served[name]; v != nil {
		return v.name
	}
	return name
}

func (s *State) applyBegin(c *Begin) {
	if t := s.txns[c.ID]; t != nil && !(t.NeverBegun && mutant.On("begin-beats-abort-record")) {
		s.emit(Effect{Kind: EffectBeginRepeated, ID: c.ID, Txn: t})
		return
	}
	if c.ID.UnixMs() <= s.w && !mutant.On("expired-id-begins") {
		s.emit(Effect{Kind: EffectBeginRefused, ID: c.ID, Reason: reason.IDExpired})
		return
	}
	for i := range c.Branches {
		if why := s.Admits(c.Branches[i].Service, c.Branches[i].Generation); why != "" {
			s.emit(Effect{Kind: EffectBeginRefused, ID: c.ID, Reason: why, Name: c.Branches[i].Service})
			return
		}
	}
	t := &Txn{
		ID: c.ID, Digest: c.Digest, Status: Active, OnePhase: c.OnePhase, TimeoutMs: c.TimeoutMs,
		BeganMs: s.nowMs, AgeMs: s.nowMs, TraceParent: c.TraceParent, Branches: make([]Branch, len(c.Branches)), locked: len(c.Locks) > 0,
	}
	for i := range c.Branches {
		b := &c.Branches[i]
		v := s.serve(b.Service, b.Generation)
		v.open++
		t.Branches[i] = Branch{
			Service: v.name, Generation: b.Generation, Isolated: b.Isolated,
			Ops: b.Ops, Count: uint32(len(b.Ops)), Digest: b.Digest, Fate: FateOpen,
		}
	}
	for i := range c.Foreign {
		t.ask(&c.Foreign[i], s.intern)
	}
	s.began(t)
	if s.locks.Claim(c.ID, t.AgeMs, c.Locks) {
		s.locksHeld(t)
	} else {
		s.emit(Effect{Kind: EffectBlocked, ID: c.ID, Txn: t})
	}
	s.breakCycles()
}

func (s *State) began(t *Txn) {
	s.txns[t.ID] = t
	s.live++
	s.liveHeap.push(t.ID)
	if len(s.liveHeap) > 1024+2*s.live {
		s.liveHeap = s.LiveIDs() // sorted, which is a heap
	}
	s.emit(Effect{Kind: EffectBegan, ID: t.ID, Txn: t})
}

// Admits says why this shard refuses a branch, or "".
func (s *State) Admits(service string, generation uint64) reason.Code {
	v := s.served[service]
	switch {
	case v == nil && generation <= s.nextGen:
		return reason.UnknownService // the registry is here, and this generation was removed from it
	case v == nil:
		return ""
	case generation < v.generation:
		return reason.UnknownService // computed from an outdated copy of the registry
	case generation == v.generation && v.drained && !mutant.On("drain-admits"):
		return reason.ServiceDraining
	}
	return ""
}

// serve notes the highest generation of a service that this shard has seen.
func (s *State) serve(service string, generation uint64) *served {
	v := s.served[service]
	if v == nil {
		v = &served{name: service}
		s.served[service] = v
	}
	if generation > v.generation {
		v.generation, v.drained = generation, false
	}
	return v
}

func (s *State) grant(t *Txn) {
	t.Status, t.Token, t.GrantedMs = Preparing, s.nextToken(), s.nowMs
	t.dropNeeds()
	s.emit(Effect{Kind: EffectGranted, ID: t.ID, Txn: t})
}

func (s *State) applyCommit(r *reader) {
	c := Commit{ID: r.id(), Enlisted: r.uint32("enlisted")}
	var buf [16]uint32
	c.Yes = r.indices(buf[:0:8])
	c.ReadOnly = r.indices(buf[8:8:16])
	if r.err != nil {
		return
	}
	t := s.txns[c.ID]
	if t == nil || t.Status != Preparing || t.locked && !s.locks.Granted(c.ID) || !covers(t, &c) {
		s.emit(Effect{Kind: EffectDecisionIgnored, ID: c.ID, Txn: t})
		return
	}
	t.Status, t.DecidedMs = Committing, s.nowMs
	for _, i := range c.Yes {
		t.Branches[i].Fate = FateFinishing
		if t.OnePhase {
			t.Branches[i].Fate = FateDone
		}
	}
	for _, i := range c.ReadOnly {
		t.Branches[i].Fate = FateReadOnly
		if mutant.On("read-only-told-to-commit") {
			t.Branches[i].Fate = FateFinishing
		}
	}
	s.decided(t)
	s.breakCycles()
}

// covers reports whether the decision names every enlisted branch exactly once.
func covers(t *Txn, c *Commit) bool {
	if int(c.Enlisted) != len(t.Branches) || len(c.Yes)+len(c.ReadOnly) != len(t.Branches) {
		return false
	}
	for i := range t.Branches {
		n := 0
		for _, list := range [2][]uint32{c.Yes, c.ReadOnly} {
			for _, b := range list {
				if b == uint32(i) {
					n++
				}
			}
		}
		if n != 1 {
			return false
		}
	}
	return true
}

func (s *State) applyAbort(c AbortCmd) {
	t := s.txns[c.ID]
	abort := &Abort{Reason: c.Reason, Message: c.Message, Service: c.Service}
	switch {
	case t == nil && c.ID.UnixMs() <= s.w:
		s.emit(Effect{Kind: EffectDecisionIgnored, ID: c.ID, Reason: reason.IDExpired})
	case t == nil:
		// Presumed abort, made true: the id can never begin.
		t = &Txn{ID: c.ID, NeverBegun: true, Status: Aborting, BeganMs: s.nowMs, DecidedMs: s.nowMs, Abort: abort}
		s.txns[c.ID] = t
		s.live++
		s.emit(Effect{Kind: EffectDecided, ID: c.ID, Txn: t})
		s.end(t)
	case t.Status == Preparing && t.OnePhase && !c.Refused && !mutant.On("one-phase-aborted-by-timeout"),
		t.Status == Preparing && c.Reason == reason.Wounded, // its SEAL came first: whoever is prepared is no victim
		t.Status.Decided() && !mutant.On("second-decision-wins"):
		s.emit(Effect{Kind: EffectDecisionIgnored, ID: c.ID, Txn: t})
	default:
		s.abort(t, abort, c.Refused)
		s.breakCycles()
	}
}

// abort decides. refused: the participant of a one-phase transaction has ended it.
func (s *State) abort(t *Txn, why *Abort, refused bool) {
	before := t.Status
	t.Status, t.DecidedMs, t.Abort = Aborting, s.nowMs, why
	for i := range t.Branches {
		b := &t.Branches[i]
		switch {
		case before == Active && (!b.Contacted || mutant.On("active-abort-contacts-nobody")):
			b.Fate = FateNeverContacted
		case refused:
			b.Fate = FateDone
		default:
			b.Fate = FateFinishing
		}
	}
	if t.StepPending {
		t.StepPending = false
		s.wake(s.locks.Abandon(t.ID, s.woken[:0]))
	}
	s.decided(t)
}

// decided ends what the decision itself ends: branches that owe no answer give
// back their keys now, the others when they acknowledge.
func (s *State) decided(t *Txn) {
	for i := range t.Branches {
		t.Branches[i].Ops, t.Branches[i].Executed = nil, nil
	}
	t.Steps = nil
	t.dropNeeds()
	s.emit(Effect{Kind: EffectDecided, ID: t.ID, Txn: t})
	open := 0
	for i := range t.Branches {
		if t.Branches[i].Fate == FateFinishing {
			open++
		}
	}
	switch {
	case open == 0:
		s.end(t)
	case open < len(t.Branches) || mutant.On("release-at-decision"):
		for i := range t.Branches {
			if t.Branches[i].Fate != FateFinishing || mutant.On("release-at-decision") {
				s.release(t, t.Branches[i].Service)
			}
		}
	}
}

func (s *State) applyAck(c Ack) {
	t := s.txns[c.ID]
	if t == nil || int(c.Branch) >= len(t.Branches) || t.Branches[c.Branch].Fate != FateFinishing || c.Fate != FateDone && !c.Fate.Hazard() {
		return // a repeated acknowledgement, of this leader or an earlier one
	}
	b := &t.Branches[c.Branch]
	b.Fate = c.Fate
	s.emit(Effect{Kind: EffectAcked, ID: t.ID, Txn: t, Branch: c.Branch})
	if c.Fate.Hazard() {
		s.emit(Effect{Kind: EffectHazard, ID: t.ID, Txn: t, Branch: c.Branch})
	}
	for i := range t.Branches {
		if t.Branches[i].Fate == FateFinishing && !mutant.On("end-at-first-ack") {
			s.release(t, b.Service)
			s.breakCycles()
			return
		}
	}
	s.end(t)
	s.breakCycles()
}

// release gives back the transaction's keys at one service.
func (s *State) release(t *Txn, service string) {
	s.wake(s.locks.Release(t.ID, service, s.woken[:0]))
}

func (s *State) wake(woken []txnid.ID) {
	s.woken = mutant.MapOrder("map-order-in-apply", woken)
	for _, id := range s.woken {
		if f := s.claims[id]; f != nil {
			s.claimGranted(f)
		} else {
			s.locksHeld(s.txns[id])
		}
	}
}

func (s *State) end(t *Txn) {
	if t.Status == Committing {
		t.Status = Committed
	} else {
		t.Status = Aborted
	}
	t.EndedMs = s.nowMs
	s.live--
	for i := range t.Branches {
		s.served[t.Branches[i].Service].open--
	}
	locked := t.locked
	t.locked = false
	s.emit(Effect{Kind: EffectEnded, ID: t.ID, Txn: t})
	s.retain(t)
	if locked {
		s.wake(s.locks.Drop(t.ID, s.woken[:0]))
	}
}

// retain keeps an ended transaction: open hazards until an operator resolves
// them, the others until the retention limits.
func (s *State) retain(t *Txn) {
	if !t.Hazard() || mutant.On("hazard-forgotten") {
		s.done.push(t)
		return
	}
	s.hazards = append(s.hazards, t.ID)
	if len(s.hazards) > MaxHazards {
		oldest := s.hazards[0]
		s.hazards = append([]txnid.ID(nil), s.hazards[1:]...)
		s.done.push(s.txns[oldest])
	}
}

func (s *State) applyForget(c Forget) {
	n := uint32(0)
	for left := s.done.len(); n < maxForgetPerStep && left > 0; left-- {
		t := s.done.front()
		if n >= c.Count && t.EndedMs > c.EndedBeforeMs || !s.mayForget(t, s.nowMs) {
			break
		}
		s.done.pop()
		if t.ID.UnixMs()+WatermarkLagMs > s.nowMs {
			s.done.push(t)
			continue
		}
		if !mutant.On("forget-without-watermark") {
			s.w = max(s.w, t.ID.UnixMs())
		}
		delete(s.txns, t.ID)
		n++
		s.emit(Effect{Kind: EffectForgotten, ID: t.ID})
	}
	s.emit(Effect{Kind: EffectForgetDone})
}

// mayForget reports whether the watermark can be raised to the transaction's id.
// An id from a clock that was ahead is passed over instead, so that it neither
// raises W to the present nor keeps others from being forgotten.
func (s *State) mayForget(t *Txn, nowMs uint64) bool {
	return t.ID.UnixMs()+WatermarkLagMs <= nowMs || t.ID.UnixMs() > t.EndedMs
}

// CanForget reports whether a FORGET at that time would find something to do.
func (s *State) CanForget(nowMs uint64) bool {
	t := s.done.front()
	return t != nil && s.mayForget(t, nowMs)
}

func (s *State) applyResolve(id txnid.ID, note string) {
	for i, h := range s.hazards {
		if h != id {
			continue
		}
		s.hazards = append(append([]txnid.ID(nil), s.hazards[:i]...), s.hazards[i+1:]...)
		t := *s.txns[id]
		t.Resolution = note
		s.txns[id] = &t
		s.done.push(&t)
		s.emit(Effect{Kind: EffectResolved, ID: id, Txn: &t})
		return
	}
	s.emit(Effect{Kind: EffectResolved, ID: id, Reason: reason.NotAHazard})
}
