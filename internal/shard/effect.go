package shard

import (
	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// effect acts on one thing that an applied record changed. Only a leader acts: a
// follower's replicated state is all it needs. The whole entry has been applied
// by now, so a transaction may already be further than the effect says.
func (s *Shard) effect(e *txn.Effect) {
	switch e.Kind { //nolint:exhaustive // the others are the leader's
	case txn.EffectStale:
		s.notice(Notice{Kind: NoticeStaleEntry})
	case txn.EffectVerify:
		s.out.Captures = append(s.out.Captures, Capture{Index: e.Token, State: e.Capture})
	case txn.EffectVerified:
		s.notice(Notice{Kind: NoticeVerified, N: int(e.Token)})
	}
	if !s.leading {
		return
	}
	if e.Txn != nil && e.Txn.Interactive {
		s.runs[e.Txn.ID].grow()
	}
	switch e.Kind {
	case txn.EffectBegan:
		s.began(e.Txn)
	case txn.EffectBeginRepeated:
		s.settlePending(e.Txn)
	case txn.EffectBeginRefused:
		s.refusePending(e)
	case txn.EffectBlocked:
		s.blocked(e.ID)
	case txn.EffectGranted:
		s.granted(e.Txn)
	case txn.EffectDecided:
		s.decided(e.Txn)
	case txn.EffectDecisionIgnored:
		s.notice(Notice{Kind: NoticeIgnored, ID: e.ID})
		s.decisionIgnored(e)
	case txn.EffectAcked:
		s.releaseReady(e.Txn)
	case txn.EffectHazard:
		b := &e.Txn.Branches[e.Branch]
		s.notice(Notice{Kind: NoticeHazard, ID: e.ID, Service: b.Service, Text: b.Fate.String(), Committed: e.Txn.Abort == nil})
	case txn.EffectEnded:
		s.ended(e.Txn)
	case txn.EffectForgotten:
		s.kept.drop(e.ID)
	case txn.EffectForgetDone:
		s.forgetOut = false
	case txn.EffectResolved:
		s.resolved(e)
	case txn.EffectServicePut:
		s.serviceDone(e.Name, Reply{Service: s.serviceView(e.Service)})
		s.notice(Notice{Kind: NoticeService, Service: e.Name, Text: "registered"})
		s.wakeService(e.Name, 8*s.cfg.RecoveryWakeups)
	case txn.EffectServiceRefused:
		s.serviceDone(e.Name, Reply{Err: refusal(e.Reason, e.Name)})
	case txn.EffectServiceDraining:
		s.draining(e)
	case txn.EffectServiceRemoved:
		s.removed(e.Name)
	case txn.EffectStepTaken, txn.EffectStepRepeated:
		s.stepTaken(e)
	case txn.EffectStepBlocked:
		s.blocked(e.ID)
	case txn.EffectStepGranted:
		s.stepGranted(e.Txn)
	case txn.EffectStepRefused, txn.EffectSealRefused:
		s.stepRefused(e)
	case txn.EffectSealed:
		s.commitAsked(e.Txn)
	case txn.EffectDeadlock:
		s.deadlock(e)
	case txn.EffectWounded:
		if _, told := s.foreign.cycles[e.ID]; told { // and it has given way here
			delete(s.foreign.cycles, e.ID)
			break
		}
		s.lookLater(e.ID) // one that queues again waits for somebody, too
		text := txn.DescribeWound(e.Cycle[0])
		if r := s.runs[e.ID]; r != nil {
			s.gaveWay(r, &wish{wait: e.Cycle[0], text: text, here: true, atMs: s.st.NowMs(), waiting: e.Waiting})
		} else {
			s.wounded(e.ID, text, e.Waiting)
		}
	case txn.EffectCycle:
		s.foreign.cycles[e.ID] = txn.DescribeCycle(e.Cycle)
		s.deadlock(e)
	case txn.EffectAskAgain:
		s.ask(e.ID, e.Shard, e.Txn.ForeignAt(e.Shard).Request)
	case txn.EffectClaimGranted, txn.EffectClaimBlocked, txn.EffectClaimRepeated:
		s.claimed(e)
	case txn.EffectReleased:
		s.released(e)
	case txn.EffectGiveWay:
		s.giveWay(e.ID)
	case txn.EffectDrainedHere:
		s.drainedHere(e)
	case txn.EffectMemberPut, txn.EffectMemberRemoved, txn.EffectMemberRefused, txn.EffectPlaced:
		s.memberDone(e)
	case txn.EffectLevel:
		s.notice(Notice{Kind: NoticeLevel, N: int(s.st.Level())})
	case txn.EffectBooted, txn.EffectLed, txn.EffectStale, txn.EffectVerify, txn.EffectVerified: // Apply knows whose LEAD it was
	}
}

func (s *Shard) began(t *txn.Txn) {
	r := s.newRun(t)
	s.startDeadline(r)
	s.startLockWait(r)
	if t.Interactive {
		s.startIdle(r)
	}
	s.notice(Notice{Kind: NoticeBegan, ID: t.ID})
	s.askAll(t)
	s.settlePending(t)
}

func (s *Shard) granted(t *txn.Txn) {
	r := s.runs[t.ID]
	s.notice(Notice{Kind: NoticeGranted, ID: t.ID, DurUs: s.now.MonoUs - r.beganUs})
	if t.Status == txn.Preparing { // and not already aborted by a later record of the same entry
		s.prepareAll(r)
	}
}

func (s *Shard) prepareAll(r *run) {
	for i := range r.branches {
		s.call(r, i, PhasePrepare)
	}
}

// finishAll sends the decision to every branch that has not acknowledged it.
func (s *Shard) finishAll(r *run) {
	phase := PhaseCommit
	if r.t.Abort != nil {
		phase = PhaseRollback
	}
	for i := range r.branches {
		if r.t.Branches[i].Fate == txn.FateFinishing {
			r.branches[i].failures = 0
			s.call(r, i, phase)
		}
	}
}

func (s *Shard) decided(t *txn.Txn) {
	delete(s.proposed, t.ID)
	r := s.runs[t.ID]
	if r == nil { // ABORT(id) of an unknown id
		r = s.newRun(t)
	}
	r.decidedUs = s.now.MonoUs
	n := Notice{Kind: NoticeDecided, ID: t.ID, Committed: t.Abort == nil, OnePhase: t.OnePhase, DurUs: s.now.MonoUs - r.beganUs}
	if t.Abort != nil {
		n.Reason, n.Service = t.Abort.Reason, t.Abort.Service
	}
	s.notice(n)
	s.settlePending(t)
	s.settleWaiters(r)
	s.dropHeld(r)
	s.releaseReady(t)
	s.finishAll(r)
}

// decisionIgnored handles a decision that came second or too late. The timeout of a
// one-phase transaction can meet its grant in the log: then its vote decides. A yes that
// came meanwhile counts; who said anything else is asked again. (No abort to give way is
// proposed behind a SEAL, see askedToGiveWay.)
func (s *Shard) decisionIgnored(e *txn.Effect) {
	delete(s.proposed, e.ID)
	if e.Txn == nil {
		s.refusePending(e)
		return
	}
	s.settlePending(e.Txn)
	r := s.runs[e.ID]
	if r == nil || e.Txn.Status.Decided() {
		return
	}
	r.deciding = false
	if e.Txn.Status != txn.Preparing {
		return
	}
	if r.votes == len(r.branches) {
		s.proposeCommit(r)
		return
	}
	for i := range r.branches {
		if b := &r.branches[i]; b.phase == PhasePrepare && !b.calling && b.retryAtUs == 0 && !b.saidYes() {
			s.call(r, i, PhasePrepare)
		}
	}
}

func (s *Shard) ended(t *txn.Txn) {
	r := s.runs[t.ID]
	s.notice(Notice{Kind: NoticeEnded, ID: t.ID, Committed: t.Abort == nil, DurUs: s.now.MonoUs - r.decidedUs})
	s.settleWaiters(r)
	s.releaseReady(t)
	s.kept.keep(t.ID, r, s.cfg.MaxResultBytes)
	delete(s.runs, t.ID)
	s.lookAtDrains()
	s.forget(false)
}

// blocked: a transaction waits for a lock here.
func (s *Shard) blocked(id txnid.ID) {
	s.lookLater(id)
	// An acknowledgement that waits to be recorded may hold the key.
	s.lazyUrgent = s.lazyUrgent || len(s.lazy) > 0
	s.notice(Notice{Kind: NoticeBlocked, ID: id})
	if len(s.blockedMs) > 1024+2*s.st.LockWaiters() {
		for other := range s.blockedMs { // order does not matter: each for itself
			if _, _, waits := s.st.Waiting(other, 0); !waits {
				delete(s.blockedMs, other)
			}
		}
	}
	s.blockedMs[id] = s.st.NowMs()
}

// BlockedSinceMs is the log time from which on a transaction that waits for locks here has
// been waiting; 0: that was before this leader.
func (s *Shard) BlockedSinceMs(id txnid.ID) uint64 { return s.blockedMs[id] }

// call sends one request of a phase to a branch.
func (s *Shard) call(r *run, i int, phase Phase) {
	t := r.t
	b, rec := &r.branches[i], &t.Branches[i]
	if b.phase != phase {
		b.phase, b.failures = phase, 0
	}
	b.attempt = max(b.attempt, s.attemptFloor) + 1
	s.topAttempt = max(s.topAttempt, b.attempt)
	b.calling, b.retryAtUs = true, 0
	c := Call{
		Phase: phase, Service: rec.Service, Generation: rec.Generation, ID: t.ID, Branch: uint32(i),
		Attempt: b.attempt, Term: s.term, Token: s.st.FencingToken(t, rec), Forgotten: s.st.Forgotten(),
		TraceParent: t.TraceParent,
	}
	switch {
	case phase == PhaseExecute:
		s.fillExecute(&c, rec, b)
	case phase == PhasePrepare && t.Interactive:
		c.Operations, c.Executed, c.Digest = rec.Ops, uint32(len(rec.Executed)), digest(digest([32]byte{}, 0, rec.Executed), len(rec.Executed), rec.Ops)
		c.Execution = b.execution
	case phase == PhasePrepare:
		c.OnePhase, c.Operations, c.Digest = t.OnePhase, rec.Ops, rec.Digest
	}
	s.out.Calls = append(s.out.Calls, c)
}

// callDone takes a participant's answer.
func (s *Shard) callDone(ev *CallDone) {
	r := s.runs[ev.ID]
	if !s.leading || r == nil || ev.Term != s.term || int(ev.Branch) >= len(r.branches) {
		return
	}
	b := &r.branches[ev.Branch]
	if ev.Answer != Indefinite {
		s.wakeService(r.t.Branches[ev.Branch].Service, s.cfg.RecoveryWakeups)
	}
	if b.phase != ev.Phase || b.attempt != ev.Attempt || !b.calling {
		return // late: the branch has moved on
	}
	b.calling = false
	if ev.Answer == Indefinite && r.t.OnePhase && mutant.On("one-phase-guesses-no") {
		ev = &CallDone{ID: ev.ID, Branch: ev.Branch, Phase: ev.Phase, Answer: VoteNo}
	}
	if ev.Answer == Indefinite {
		s.retryLater(r, int(ev.Branch), ev.Reason)
		return
	}
	b.failures, b.lastError = 0, ""
	switch ev.Phase {
	case PhaseExecute:
		s.executed(r, int(ev.Branch), ev)
	case PhasePrepare:
		s.voted(r, int(ev.Branch), ev)
	default:
		s.acknowledged(r, int(ev.Branch), ev)
	}
}

func (s *Shard) voted(r *run, i int, ev *CallDone) {
	b := &r.branches[i]
	yes := ev.Answer == VoteYes || ev.Answer == VoteReadOnly
	if r.t.Status != txn.Preparing || b.saidYes() || r.deciding && !yes {
		return // too late to count: the decision will reach the branch
	}
	switch ev.Answer {
	case VoteYes, VoteReadOnly:
		b.vote, b.results = ev.Answer, ev.Results
		r.votes++
		if !r.deciding && (r.votes == len(r.branches) || mutant.On("commit-on-first-yes")) {
			s.proposeCommit(r)
		}
	case Lost:
		b.vote = VoteNo
		s.proposeAbort(r, txn.AbortCmd{Reason: reason.ExecutionLost, Message: ev.Reason, Service: r.t.Branches[i].Service, Refused: r.t.OnePhase})
	case VoteNo:
		b.vote = VoteNo
		s.proposeAbort(r, txn.AbortCmd{Reason: reason.VotedNo, Message: ev.Reason, Service: r.t.Branches[i].Service, Refused: r.t.OnePhase})
	default:
		s.retryLater(r, i, "answered prepare with "+ev.Answer.String())
	}
}

func (s *Shard) proposeCommit(r *run) {
	c := txn.Commit{ID: r.t.ID, Enlisted: uint32(len(r.branches))}
	for i := range r.branches {
		if r.branches[i].vote == VoteReadOnly {
			c.ReadOnly = append(c.ReadOnly, uint32(i))
		} else {
			c.Yes = append(c.Yes, uint32(i))
		}
	}
	r.deciding = true
	s.command(txn.AppendCommit(s.openEntry(), c))
	if r.t.OnePhase {
		// The participant has committed durably and BEGIN says that its answer
		// decides: whoever leads next gets the same answer. The client need not
		// wait for the record.
		r.onePhase = true
		s.settleWaiters(r)
	}
	if mutant.On("commit-sent-before-applied") && !r.t.OnePhase {
		for i := range r.branches {
			s.call(r, i, PhaseCommit)
		}
	}
}

func (s *Shard) proposeAbort(r *run, c txn.AbortCmd) {
	c.ID = r.t.ID
	r.deciding = true
	s.command(txn.AppendAbort(s.openEntry(), c))
	if mutant.On("abort-told-before-applied") {
		t := *r.t
		t.Status, t.Abort = txn.Aborting, &txn.Abort{Reason: c.Reason}
		for _, w := range r.waiters {
			s.answer(w.token, &View{Txn: t, Branches: make([]BranchView, len(t.Branches))})
		}
		r.waiters = nil
	}
}

func (s *Shard) acknowledged(r *run, i int, ev *CallDone) {
	ack := txn.Ack{ID: r.t.ID, Branch: uint32(i), Fate: txn.FateDone}
	switch {
	case ev.Answer == Acknowledged:
	case ev.Answer == SaysUnknown && ev.Phase == PhaseCommit:
		ack.Fate = txn.FateHazardUnknown
	case ev.Answer == SaysRolledBack && ev.Phase == PhaseCommit:
		ack.Fate = txn.FateHazardRolledBack
	case ev.Answer == SaysCommitted && ev.Phase == PhaseRollback:
		ack.Fate = txn.FateHazardCommitted
	default:
		s.retryLater(r, i, "answered "+ev.Phase.String()+" with "+ev.Answer.String())
		return
	}
	if mutant.On("unknown-is-success") {
		ack.Fate = txn.FateDone
	}
	service := r.t.Branches[i].Service
	r.branches[i].acked = true
	s.lazyAck(ack)
	v := s.st.Service(service)
	s.lazyUrgent = s.lazyUrgent || len(r.waiters) > 0 || len(r.t.Foreign) > 0 || ack.Fate.Hazard() || s.st.Contended(r.t.ID, service) || v != nil && v.Draining
}

// onePhaseQuickTries of a one-phase prepare are as soon as those of any prepare.
const onePhaseQuickTries = 6

// retryLater repeats the branch's call after a pause that doubles up to a bound,
// spread over half its length so that branches do not come back in step.
func (s *Shard) retryLater(r *run, i int, why string) {
	b := &r.branches[i]
	first, most := s.cfg.FinishBackoffUs, s.cfg.MaxFinishBackoffUs
	// A one-phase prepare may have to be asked without end, as a commit has.
	if b.phase == PhaseExecute || b.phase == PhasePrepare && (!r.t.OnePhase || b.failures < onePhaseQuickTries) {
		first, most = s.cfg.PrepareBackoffUs, s.cfg.MaxPrepareBackoffUs
	}
	pause := most
	if b.failures < 20 {
		pause = min(most, first<<b.failures)
	}
	b.failures++
	b.lastError = why
	if b.failures > 3 && (b.phase == PhaseCommit || b.phase == PhaseRollback) && mutant.On("phase-two-gives-up") {
		return
	}
	pause = pause/2 + int64(spread(r.t.ID, uint32(i), b.attempt)%uint64(pause/2+1))
	b.retryAtUs = s.now.MonoUs + pause
	s.startTimer(timer{atUs: b.retryAtUs, id: r.t.ID, branch: i})
	service := r.t.Branches[i].Service
	s.listBackoff(service, r.t.ID, i)
	s.notice(Notice{Kind: NoticeRetry, ID: r.t.ID, Service: service, Phase: b.phase, Text: why, N: int(b.failures)})
}

// retryNow repeats the call of a branch in backoff, unless the transaction no
// longer needs it.
func (s *Shard) retryNow(r *run, i int) {
	b := &r.branches[i]
	b.retryAtUs = 0
	switch {
	case b.calling || b.acked:
	case r.t.Status == txn.Preparing && b.phase == PhasePrepare:
		if !r.deciding {
			s.call(r, i, PhasePrepare)
		}
	case r.t.Status == txn.Active && b.phase == PhaseExecute:
		if !r.deciding {
			s.call(r, i, PhaseExecute)
		}
	case r.t.Branches[i].Fate == txn.FateFinishing && b.phase != PhasePrepare && b.phase != PhaseExecute:
		s.call(r, i, b.phase)
	}
}
