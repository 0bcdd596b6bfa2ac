package shard

import (
	"crypto/sha256"
	"slices"
	"strconv"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// Interactive transactions. A step is proposed when the step before it holds its
// locks, so that a transaction has one outstanding lock request:
//
//	Enlist --> [held] --> ENLIST applied --> locks granted --> execute "now" operations --> answer
//
// What the participants executed is not in the log: a new leader asks for it again,
// operation by operation, and gets the results that the open local transaction
// remembers.

// maxHeldSteps of one transaction wait for the step before them.
const maxHeldSteps = 64

func (s *Shard) enlist(ev *Enlist) {
	if !s.admit(ev.Token) {
		return
	}
	if t := s.st.Get(ev.ID); t != nil && (t.Interactive || t.NeverBegun) {
		w := waiter{token: ev.Token, kind: waitStep, step: ev.Step, digest: ev.Digest, repeated: true}
		if t.Status.Decided() {
			s.attach(t, w)
			return
		}
		r := s.runs[ev.ID]
		r.touchedUs = s.now.MonoUs
		if known := t.FindStep(ev.Step); known != nil {
			if known.Digest != ev.Digest {
				s.refuse(ev.Token, stepRefusal(reason.StepConflict, ev.ID, ev.Step, ""))
				return
			}
			w.taken = true
			s.attachFresh(t, w)
			return
		}
		if t.StepPending || len(s.steps[ev.ID]) > 0 {
			if len(r.held) >= maxHeldSteps {
				err := reason.New(reason.Overloaded, "wait for the answer of a step before sending the next", "%d steps of the transaction wait", len(r.held))
				err.RetryAfterMs = 100
				s.refuse(ev.Token, err)
				return
			}
			r.held = append(r.held, ev)
			s.waiting++
			return
		}
	}
	err := s.tooNew(ev.Enlist)
	if err == nil {
		err = s.fullQueue(ev.ID, ev.Locks)
	}
	if err == nil {
		err = s.takesNoLocks(ev.LocksOf)
	}
	if err != nil {
		s.refuse(ev.Token, err)
		return
	}
	s.proposeStep(ev)
}

func (s *Shard) proposeStep(ev *Enlist) {
	s.steps[ev.ID] = append(s.steps[ev.ID], waiter{token: ev.Token, kind: waitStep, step: ev.Step, digest: ev.Digest})
	s.waiting++
	s.command(append(s.openEntry(), ev.Enlist...))
}

// nextHeld proposes the step that waited for the one before it. Those that repeat it, or
// come after the decision, are answered besides.
func (s *Shard) nextHeld(r *run) {
	for r != nil && len(r.held) > 0 && !r.t.StepPending && len(s.steps[r.t.ID]) == 0 {
		ev := r.held[0]
		r.held = r.held[1:]
		s.waiting--
		s.enlist(ev)
	}
}

// dropHeld answers the steps that wait, by the decision.
func (s *Shard) dropHeld(r *run) {
	held := r.held
	r.held = nil
	for _, ev := range held {
		s.waiting--
		s.attach(r.t, waiter{token: ev.Token, kind: waitStep, step: ev.Step, digest: ev.Digest})
	}
}

// takeStep is the request whose ENLIST or SEAL has been applied: they are answered in
// the order of their records.
func (s *Shard) takeStep(id txnid.ID) (waiter, bool) {
	queue := s.steps[id]
	if len(queue) == 0 {
		return waiter{}, false
	}
	w := queue[0]
	if queue = queue[1:]; len(queue) == 0 {
		delete(s.steps, id)
	} else {
		s.steps[id] = queue
	}
	if w.token != 0 { // else the wait was given up, and counted off
		s.waiting--
	}
	return w, true
}

func (s *Shard) stepTaken(e *txn.Effect) {
	w, ok := s.takeStep(e.ID)
	r := s.runs[e.ID]
	if r == nil {
		return // decided and ended in the same entry; nobody can wait before the record
	}
	r.touchedUs = s.now.MonoUs
	if e.Kind == txn.EffectStepTaken {
		s.askAll(r.t)
		s.startLockWait(r)
	}
	if ok && w.token != 0 {
		w.repeated, w.taken = e.Kind == txn.EffectStepRepeated, true
		s.attach(e.Txn, w)
	}
	s.nextHeld(r)
}

func (s *Shard) stepGranted(t *txn.Txn) {
	r := s.runs[t.ID]
	if r == nil {
		return
	}
	s.notice(Notice{Kind: NoticeStep, ID: t.ID, N: len(t.Steps), DurUs: s.now.MonoUs - r.touchedUs})
	s.executeAll(r)
	s.settleWaiters(r)
	s.nextHeld(r)
}

func (s *Shard) stepRefused(e *txn.Effect) {
	w, ok := s.takeStep(e.ID)
	if ok && w.token != 0 {
		// A step that came after an abort is answered by it, and a commit that was
		// asked for twice by what becomes of the first.
		if e.Reason == reason.AlreadyDecided && (w.kind == waitSeal || e.Txn.Status.Decided()) {
			s.attach(e.Txn, w)
		} else {
			s.refuse(w.token, stepRefusal(e.Reason, e.ID, w.step, e.Name))
		}
	}
	s.nextHeld(s.runs[e.ID])
}

func stepRefusal(code reason.Code, id txnid.ID, step uint32, service string) *reason.Error {
	switch code {
	case reason.NotFound:
		return reason.New(code, "begin it with POST /v1/transactions:begin", "no transaction %s", id)
	case reason.NotInteractive:
		return reason.New(code, "only transactions begun with POST /v1/transactions:begin take steps", "transaction %s was submitted as a whole", id)
	case reason.CommitAsked:
		return reason.New(code, "use a new transaction for further work", "commit of transaction %s was asked for already", id)
	case reason.AlreadyDecided:
		return reason.New(code, "use a new transaction for further work", "transaction %s is committed and takes no steps any more", id)
	case reason.StepConflict:
		return reason.New(code, "number each step of a transaction anew, and repeat one with the same body only", "step %d of transaction %s was another one", step, id)
	case reason.StepPending:
		err := reason.New(code, "wait for the answers of all steps first", "a step of transaction %s is under way", id)
		err.RetryAfterMs = 50
		return err
	case reason.TooManySteps:
		return reason.New(code, "put several operations in one step", "transaction %s has its limit of %d steps", id, txn.MaxSteps)
	case reason.TooManyOperations:
		return reason.New(code, "split the work", "transaction %s would have more than %d operations, or %d branches", id, txn.MaxOps, txn.MaxBranches)
	case reason.TooManyKeys:
		return reason.New(code, "lock keys further up, which cover all below them", "transaction %s would have more than %d locks", id, txn.MaxNeeds)
	case reason.RequestTooLarge:
		return reason.New(code, "split the work", "the payloads of transaction %s would have more than %d bytes", id, txn.MaxStepBytes)
	}
	return refusal(code, service)
}

// sealTxn takes a request to commit.
func (s *Shard) sealTxn(ev *Seal) {
	if !s.admitEnd(ev.Token) {
		return
	}
	w := waiter{token: ev.Token, kind: waitSeal, mode: ev.Wait}
	t := s.st.Get(ev.ID)
	switch {
	case t != nil && !t.Interactive && !t.NeverBegun:
		s.refuse(ev.Token, stepRefusal(reason.NotInteractive, ev.ID, 0, ""))
		return
	case t != nil && t.Status != txn.Active:
		w.repeated = true
		s.attachFresh(t, w)
		return
	case t != nil:
		r := s.runs[ev.ID]
		r.touchedUs = s.now.MonoUs
		if t.StepPending || len(r.held) > 0 || len(s.steps[ev.ID]) > 0 || r.waitsForStep() || r.executing() >= 0 {
			s.refuse(ev.Token, stepRefusal(reason.StepPending, ev.ID, 0, ""))
			return
		}
	}
	s.steps[ev.ID] = append(s.steps[ev.ID], w)
	s.waiting++
	s.command(txn.AppendSeal(s.openEntry(), ev.ID))
}

// commitIsAsked: a SEAL is on its way into the log.
func (s *Shard) commitIsAsked(id txnid.ID) bool {
	return slices.ContainsFunc(s.steps[id], func(w waiter) bool { return w.kind == waitSeal })
}

func (r *run) waitsForStep() bool {
	for i := range r.waiters {
		if r.waiters[i].kind == waitStep {
			return true
		}
	}
	return false
}

// executing is a branch that has not executed what it was asked for, whether or not
// somebody still waits for that; below zero: there is none. What an earlier leader asked
// for does not count: its answer may have been told, and prepare finds out what is lost.
func (r *run) executing() int {
	for i := range r.branches {
		if b := &r.branches[i]; max(b.executed, b.inherited) < r.t.GrantedOps(i) {
			return i
		}
	}
	return -1
}

// commitAsked: SEAL is applied.
func (s *Shard) commitAsked(t *txn.Txn) {
	w, ok := s.takeStep(t.ID)
	r := s.runs[t.ID]
	if r == nil {
		return
	}
	if ok && w.token != 0 {
		s.attach(t, w)
	}
	if t.Status == txn.Preparing {
		s.prepareAll(r)
	}
	s.nextHeld(r) // whoever came behind the SEAL is refused
}

// heartbeat is a question after the transaction that also says: the client is there.
func (s *Shard) heartbeat(ev *Heartbeat) {
	if t := s.st.Get(ev.ID); s.leading && t != nil && !t.Interactive && !t.NeverBegun {
		s.refuse(ev.Token, stepRefusal(reason.NotInteractive, ev.ID, 0, ""))
		return
	}
	if r := s.runs[ev.ID]; r != nil {
		r.touchedUs = s.now.MonoUs
	}
	s.get(&Get{Token: ev.Token, ID: ev.ID})
}

// grow makes room for branches that an entry has enlisted: the whole entry is applied
// before any of its effects is acted on.
func (r *run) grow() {
	for r != nil && len(r.branches) < len(r.t.Branches) {
		r.branches = append(r.branches, branchRun{})
	}
}

// ---- execution

// executeAll asks every branch for what it has not executed yet.
func (s *Shard) executeAll(r *run) {
	for i := range r.branches {
		s.execute(r, i)
	}
}

// maxExecuteOps of one call. More may have been granted while a call was under way.
const maxExecuteOps = 64

func (s *Shard) execute(r *run, i int) {
	b := &r.branches[i]
	if r.t.Status != txn.Active || r.deciding || b.calling || b.retryAtUs != 0 {
		return
	}
	granted := r.t.GrantedOps(i)
	if b.executed >= granted {
		return
	}
	// Calls of an earlier leader may have covered any part of what was there when
	// this one took over: one operation a call is always a repetition or the next.
	if b.asked = min(granted, b.executed+maxExecuteOps); b.executed < b.inherited {
		b.asked = b.executed + 1
	}
	s.call(r, i, PhaseExecute)
}

// fillExecute makes a call for the operations that were asked for. A repetition asks
// for the same ones.
func (s *Shard) fillExecute(c *Call, rec *txn.Branch, b *branchRun) {
	c.First = uint32(b.executed)
	c.Operations = rec.Executed[b.executed:b.asked]
	c.Digest = digest(b.digest, b.executed, c.Operations)
	c.Execution = b.execution
	c.Opened = (b.inherited > 0 || b.executed > 0) && !mutant.On("execute-as-if-new")
}

// maxStepResultBytes bounds what the operations of a transaction return before its commit:
// the leader keeps it as long as the transaction is open. As many are its payloads.
const maxStepResultBytes = 16 << 20

func size(results [][]byte) (bytes int) {
	for _, result := range results {
		bytes += len(result)
	}
	return bytes
}

// executed takes the answer to an execute.
func (s *Shard) executed(r *run, i int, ev *CallDone) {
	if r.t.Status != txn.Active || r.deciding {
		return
	}
	b, rec := &r.branches[i], &r.t.Branches[i]
	abort := txn.AbortCmd{Reason: reason.ExecuteRefused, Message: ev.Reason, Service: rec.Service}
	switch {
	case ev.Answer == Lost:
		abort.Reason = reason.ExecutionLost
	case ev.Answer == Conflict:
		abort.Reason = reason.ExecuteConflict
	case ev.Answer == Refused:
	case r.resultBytes+size(ev.Results) > maxStepResultBytes:
		abort.Message = "its operations have returned more than " + strconv.Itoa(maxStepResultBytes) + " bytes"
	case ev.Answer != Executed || len(ev.Results) != b.asked-b.executed:
		s.retryLater(r, i, "answered execute with "+ev.Answer.String()+" and "+strconv.Itoa(len(ev.Results))+" results")
		return
	default:
		b.digest = digest(b.digest, b.executed, rec.Executed[b.executed:b.asked])
		b.executed, b.execution = b.asked, ev.Execution
		b.stepResults = append(b.stepResults, ev.Results...)
		r.resultBytes += size(ev.Results)
		s.settleWaiters(r)
		s.execute(r, i)
		return
	}
	s.proposeAbort(r, abort)
}

// stepDone reports whether the step's locks are held and its operations have run.
func (s *Shard) stepDone(t *txn.Txn, r *run, number uint32) bool {
	step := t.FindStep(number)
	if step == nil || r == nil || t.StepPending && &t.Steps[len(t.Steps)-1] == step {
		return false
	}
	for _, op := range step.Ops {
		if op.Now && int(op.Index) >= r.branches[op.Branch].executed {
			return false
		}
	}
	return true
}

// stepResults are those of a step that is done.
func stepResults(t *txn.Txn, r *run, number uint32) [][]byte {
	step := t.FindStep(number)
	results := make([][]byte, len(step.Ops))
	for i, op := range step.Ops {
		if op.Now {
			results[i] = r.branches[op.Branch].stepResults[op.Index]
		}
	}
	return results
}

// digest continues the contract's digest, of which n payloads are known, by others:
// d0 is empty, di = SHA-256(d(i-1) || payload).
func digest(d [32]byte, n int, payloads [][]byte) [32]byte {
	for _, p := range payloads {
		h := sha256.New()
		if n > 0 {
			h.Write(d[:])
		}
		h.Write(p)
		h.Sum(d[:0])
		n++
	}
	return d
}

// ---- silence

func (s *Shard) startIdle(r *run) {
	r.touchedUs = s.now.MonoUs
	for i := range r.branches {
		r.branches[i].inherited = r.t.GrantedOps(i)
	}
	s.armIdle(r)
}

func (s *Shard) armIdle(r *run) {
	r.idleUs = r.touchedUs + int64(r.t.IdleMs)*1000
	s.startTimer(timer{atUs: r.idleUs, id: r.t.ID, branch: idleBranch})
}

// lookIdle aborts a transaction whose client has been silent too long. A client that
// waits for an answer is not silent.
func (s *Shard) lookIdle(r *run) {
	if r.t.Status != txn.Active || r.deciding {
		return
	}
	if len(r.waiters)+len(r.held) > 0 || len(s.steps[r.t.ID]) > 0 {
		r.touchedUs = s.now.MonoUs
	}
	if s.now.MonoUs < r.touchedUs+int64(r.t.IdleMs)*1000 {
		s.armIdle(r)
		return
	}
	s.proposeAbort(r, txn.AbortCmd{Reason: reason.IdleTimeout, Message: "nothing was heard of the client for " + strconv.FormatUint(uint64(r.t.IdleMs), 10) + " ms"})
}

// deadlock tells of a cycle in this shard's table that the machine has broken.
func (s *Shard) deadlock(e *txn.Effect) {
	restarted := e.Txn != nil && !e.Txn.Interactive
	if c := s.st.ForeignClaim(e.ID); c != nil {
		restarted = c.Whole
	}
	if restarted {
		s.lookLater(e.ID)
	}
	s.brokeCycle(s.st.NowMs(), e.ID, restarted, e.Cycle)
}

// brokeCycle tells of a cycle of waiting of which one has given way.
func (s *Shard) brokeCycle(atMs uint64, victim txnid.ID, restarted bool, cycle []lock.Wait) {
	s.notice(Notice{Kind: NoticeDeadlock, ID: victim, N: len(cycle), Text: txn.DescribeCycle(cycle)})
	d := Deadlock{AtMs: atMs, Victim: victim, Restarted: restarted, Cycle: cycle}
	if s.deadlocks = append(s.deadlocks, d); len(s.deadlocks) > maxDeadlocks {
		s.deadlocks = append(s.deadlocks[:0:0], s.deadlocks[1:]...)
	}
}

// wish is an elder's that a younger transaction gives way.
type wish struct {
	wait    lock.Wait
	text    string
	here    bool   // the elder waits at this shard, and the younger's claim has been given back
	atMs    uint64 // when it was known
	waiting bool   // the younger waits, too
}

// cycleOfTwo is the cycle that an elder's wait closes, where the younger is known to wait
// behind that elder at some other shard; nil if it is not. Longer cycles over several
// shards are known to nobody: whoever gives way there is told the one wait that counts.
func (s *Shard) cycleOfTwo(r *run, w *wish) []lock.Wait {
	elder := w.wait.Owner
	if need, behind, waits := s.st.Waiting(r.t.ID, maxBehind); waits && slices.Contains(behind, elder) && !(w.here && need.Key == w.wait.Key) { // that: queued anew
		return []lock.Wait{w.wait, {Owner: r.t.ID, Key: need.Key, Mode: need.Mode, For: elder}}
	}
	for _, f := range r.t.Foreign { // in order of shards
		if p := r.parts[f.Shard]; p != nil && p.key != "" && slices.Contains(p.behind, elder) {
			if mode, ok := lock.ParseMode(p.mode); ok {
				return []lock.Wait{w.wait, {Owner: r.t.ID, Key: p.key, Mode: mode, For: elder}}
			}
		}
	}
	return nil
}

// gaveWay tells of a transaction that gives way to an elder, and returns the cycle that it
// stood in if that is known.
func (s *Shard) gaveWay(r *run, w *wish) []lock.Wait {
	cycle := s.cycleOfTwo(r, w)
	if cycle != nil {
		s.brokeCycle(w.atMs, r.t.ID, !r.t.Interactive, cycle)
	} else {
		s.wounded(r.t.ID, w.text, w.waiting)
	}
	return cycle
}

// wounded tells of a transaction that gave way to an elder. It was in vain if it stood in
// no cycle, which is sure if it waited for nobody, and where all locks are in one table:
// there, cycles are broken first.
func (s *Shard) wounded(id txnid.ID, text string, waiting bool) {
	s.notice(Notice{Kind: NoticeWounded, ID: id, Text: text, Needless: !waiting || s.cfg.Shards <= 1})
}
