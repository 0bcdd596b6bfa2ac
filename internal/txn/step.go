package txn

import (
	"fmt"
	"strings"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txnid"
)

// applyOpen starts an interactive transaction.
func (s *State) applyOpen(c *Open) {
	if t := s.txns[c.ID]; t != nil {
		s.emit(Effect{Kind: EffectBeginRepeated, ID: c.ID, Txn: t})
		return
	}
	if c.ID.UnixMs() <= s.w {
		s.emit(Effect{Kind: EffectBeginRefused, ID: c.ID, Reason: reason.IDExpired})
		return
	}
	t := &Txn{
		ID: c.ID, Digest: c.Digest, Status: Active, Interactive: true, TimeoutMs: c.TimeoutMs, IdleMs: c.IdleMs,
		BeganMs: s.nowMs, AgeMs: s.nowMs, TraceParent: c.TraceParent,
	}
	// A retried transaction keeps its place among its elders, or it could starve. Only
	// an abort is retried: a commit would hand its age on and on.
	if old := s.txns[c.RetryOf]; old != nil && old.Abort != nil && old.Interactive {
		t.AgeMs = old.AgeMs
	}
	s.began(t)
}

// FindStep returns what is remembered of a step, or nil.
func (t *Txn) FindStep(number uint32) *Step {
	for i := range t.Steps {
		if t.Steps[i].Number == number {
			return &t.Steps[i]
		}
	}
	return nil
}

// applyEnlist takes a step: its locks are asked for, and its operations stand in
// their branches. None of them is sent before the locks are granted.
func (s *State) applyEnlist(c *Enlist) {
	t := s.txns[c.ID]
	if why, name := s.refusesStep(t, c); why != "" {
		s.emit(Effect{Kind: EffectStepRefused, ID: c.ID, Txn: t, Step: c.Step, Reason: why, Name: name})
		return
	}
	if t.FindStep(c.Step) != nil {
		s.emit(Effect{Kind: EffectStepRepeated, ID: c.ID, Txn: t, Step: c.Step})
		return
	}
	step := Step{Number: c.Step, Digest: c.Digest}
	at := make([]uint32, len(c.Branches))
	for i := range c.Branches {
		at[i] = s.enlistBranch(t, &c.Branches[i])
	}
	for i := range c.Ops {
		op := &c.Ops[i]
		b := &t.Branches[at[op.Branch]]
		list := &b.Ops
		if op.Now {
			list = &b.Executed
		}
		step.Ops = append(step.Ops, StepOp{Branch: at[op.Branch], Now: op.Now, Index: uint32(len(*list))})
		*list = append(*list, op.Payload)
		t.stepBytes += len(op.Payload)
		b.Count++
	}
	t.Steps = append(t.Steps, step)
	t.StepPending = true
	s.emit(Effect{Kind: EffectStepTaken, ID: t.ID, Txn: t, Step: c.Step})
	for i := range c.Foreign {
		t.ask(&c.Foreign[i], s.intern)
	}
	granted := true
	if len(c.Locks) > 0 {
		t.locked = true
		granted = s.locks.Extend(t.ID, t.AgeMs, c.Locks)
	}
	if granted {
		s.locksHeld(t)
	} else {
		s.emit(Effect{Kind: EffectStepBlocked, ID: t.ID, Txn: t})
	}
	s.breakCycles()
}

// refusesStep says why a step cannot be taken, or "".
func (s *State) refusesStep(t *Txn, c *Enlist) (why reason.Code, name string) {
	switch {
	case t == nil && c.ID.UnixMs() <= s.w:
		return reason.IDExpired, ""
	case t == nil:
		return reason.NotFound, ""
	case !t.Interactive:
		return reason.NotInteractive, ""
	case t.Status.Decided():
		return reason.AlreadyDecided, ""
	}
	if known := t.FindStep(c.Step); known != nil {
		if known.Digest != c.Digest {
			return reason.StepConflict, ""
		}
		return "", ""
	}
	switch {
	case t.Status != Active:
		return reason.CommitAsked, ""
	case t.StepPending: // the leader holds steps back; this one is of an earlier leader
		return reason.StepPending, ""
	case len(t.Steps) >= MaxSteps:
		return reason.TooManySteps, ""
	case len(t.Branches)+len(c.Branches) > MaxBranches, t.operations()+len(c.Ops) > MaxOps:
		return reason.TooManyOperations, ""
	case s.locks.Size(t.ID)+t.foreignKeys()+c.keys() > MaxNeeds:
		return reason.TooManyKeys, ""
	}
	bytes := t.stepBytes
	for i := range c.Ops {
		bytes += len(c.Ops[i].Payload)
	}
	if bytes > MaxStepBytes {
		return reason.RequestTooLarge, ""
	}
	for i := range c.Branches {
		b := &c.Branches[i]
		if why := s.Admits(b.Service, b.Generation); why != "" {
			return why, b.Service
		}
		if at := t.branchAt(b.Service); at >= 0 && t.Branches[at].Generation != b.Generation {
			return reason.UnknownService, b.Service // registered anew meanwhile
		}
	}
	return "", ""
}

// keys counts those that a step asks for.
func (c *Enlist) keys() int {
	n := len(c.Locks)
	for i := range c.Foreign {
		n += len(c.Foreign[i].Needs)
	}
	return n
}

// GrantedOps counts the operations of a branch that run at once and whose step holds
// its locks.
func (t *Txn) GrantedOps(branch int) int {
	n := len(t.Branches[branch].Executed)
	if !t.StepPending || mutant.On("step-sent-before-granted") {
		return n
	}
	for _, op := range t.Steps[len(t.Steps)-1].Ops {
		if op.Now && int(op.Branch) == branch {
			n--
		}
	}
	return n
}

// operations counts those of all branches.
func (t *Txn) operations() (n int) {
	for i := range t.Branches {
		n += len(t.Branches[i].Executed) + len(t.Branches[i].Ops)
	}
	return n
}

func (t *Txn) branchAt(service string) int {
	for i := range t.Branches {
		if t.Branches[i].Service == service {
			return i
		}
	}
	return -1
}

// enlistBranch is the index of the service's branch, which is added if it is new.
func (s *State) enlistBranch(t *Txn, c *EnlistBranch) uint32 {
	if at := t.branchAt(c.Service); at >= 0 {
		return uint32(at)
	}
	v := s.serve(c.Service, c.Generation)
	v.open++
	t.Branches = append(t.Branches, Branch{Service: v.name, Generation: c.Generation, Isolated: c.Isolated, Fate: FateOpen})
	return uint32(len(t.Branches) - 1)
}

// stepGranted: the locks of the last step are held, so its operations may be sent.
func (s *State) stepGranted(t *Txn) {
	t.Token, t.GrantedMs, t.StepPending = s.nextToken(), s.nowMs, false
	t.dropNeeds()
	for i := range t.Branches {
		if b := &t.Branches[i]; len(b.Executed) > 0 {
			b.Contacted = true
		}
	}
	s.emit(Effect{Kind: EffectStepGranted, ID: t.ID, Txn: t})
}

// applySeal: commit was asked. A transaction without branches has nothing to ask for.
func (s *State) applySeal(id txnid.ID) {
	t := s.txns[id]
	why := reason.Code("")
	switch {
	case t == nil && id.UnixMs() <= s.w:
		why = reason.IDExpired
	case t == nil:
		why = reason.NotFound
	case !t.Interactive:
		why = reason.NotInteractive
	case t.Status != Active:
		why = reason.AlreadyDecided // or sealed: its answer is on the way
	case t.StepPending:
		why = reason.StepPending
	}
	if why != "" {
		s.emit(Effect{Kind: EffectSealRefused, ID: id, Txn: t, Reason: why})
		return
	}
	t.Status = Preparing
	s.emit(Effect{Kind: EffectSealed, ID: id, Txn: t})
	if len(t.Branches) == 0 {
		t.Status, t.DecidedMs = Committing, s.nowMs
		s.decided(t)
		s.breakCycles()
	}
}

// breakCycles makes those give way who must: of a cycle of waiting that the command has
// closed the youngest, and whoever keeps an elder waiting and still can. Whoever was
// asked to prepare never does. An interactive one aborts; what it holds at participants
// that it has reached is released as they acknowledge. A one-shot one has reached nobody:
// it gives back what it holds and queues again, and its client sees nothing.
func (s *State) breakCycles() {
	for {
		if cycle := s.locks.NextCycle(); cycle != nil {
			s.breakCycle(cycle)
			continue
		}
		if s.level < levelWoundWait {
			return
		}
		w, ok := s.locks.NextWound(s.mayGiveWay)
		if !ok {
			return
		}
		s.wound(w)
	}
}

func (s *State) breakCycle(cycle []lock.Wait) {
	victim := s.txns[s.locks.Victim(cycle)]
	if victim == nil { // of another home; an elder in the cycle will ask it to give way
		if f := s.claims[s.locks.Victim(cycle)]; f != nil && !f.Asked && !f.Over {
			s.emit(Effect{Kind: EffectCycle, ID: f.ID, Cycle: cycle})
		}
		s.locks.SkipCycle()
		return
	}
	s.emit(Effect{Kind: EffectDeadlock, ID: victim.ID, Txn: victim, Cycle: cycle})
	if victim.Interactive {
		s.abort(victim, &Abort{Reason: reason.Deadlock, Message: cut(DescribeCycle(cycle))}, false)
		return
	}
	s.restart(victim.ID)
}

// DescribeCycle says in words who waits for whom: "A waits for k (X) behind B; B waits for ...".
func DescribeCycle(cycle []lock.Wait) string {
	var b strings.Builder
	for i, w := range cycle {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s waits for %s (%s) behind %s", w.Owner, w.Key, w.Mode, w.For)
	}
	return b.String()
}
