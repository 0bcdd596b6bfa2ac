package shard

import (
	"strconv"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

const (
	noBranch   = -1
	idleBranch = -2 // the client's silence
	lockBranch = -3 // a wait for locks
)

// timer is a deadline of a transaction (noBranch, idleBranch, lockBranch) or the retry of a
// branch. It is void if the run no longer has that time.
type timer struct {
	atUs   int64
	id     txnid.ID
	branch int
}

func (t timer) before(o timer) bool {
	switch {
	case t.atUs != o.atUs:
		return t.atUs < o.atUs
	case t.id != o.id:
		return t.id.Less(o.id)
	}
	return t.branch < o.branch
}

// timerHeap is a binary min-heap.
type timerHeap []timer

func (h *timerHeap) push(t timer) {
	*h = append(*h, t)
	a := *h
	for i := len(a) - 1; i > 0; {
		up := (i - 1) / 2
		if !a[i].before(a[up]) {
			return
		}
		a[i], a[up] = a[up], a[i]
		i = up
	}
}

func (h *timerHeap) pop() timer {
	a := *h
	first, last := a[0], len(a)-1
	a[0] = a[last]
	a = a[:last]
	*h = a
	for i := 0; ; {
		l := 2*i + 1
		if l >= last {
			return first
		}
		if r := l + 1; r < last && a[r].before(a[l]) {
			l = r
		}
		if !a[l].before(a[i]) {
			return first
		}
		a[i], a[l] = a[l], a[i]
		i = l
	}
}

// startTimer adds a timer, and clears out void ones when they outnumber the rest.
func (s *Shard) startTimer(t timer) {
	s.timers.push(t)
	if len(s.timers) < 4096+8*len(s.runs) {
		return
	}
	var live timerHeap
	for _, t := range s.timers {
		r := s.runs[t.id]
		if r != nil && r.awaits(t) {
			live.push(t)
		}
	}
	s.timers = live
}

// awaits reports whether the timer still means something.
func (r *run) awaits(t timer) bool {
	switch t.branch {
	case noBranch:
		return r.deadlineUs == t.atUs && !r.t.Status.Decided()
	case lockBranch:
		return r.lockUs == t.atUs && r.waitsForLocks()
	case idleBranch:
		return r.idleUs == t.atUs && r.t.Status == txn.Active
	}
	return r.branches[t.branch].retryAtUs == t.atUs
}

func (s *Shard) fireTimers() {
	if !s.leading {
		return
	}
	for len(s.timers) > 0 && s.timers[0].atUs <= s.now.MonoUs {
		t := s.timers.pop()
		r := s.runs[t.id]
		switch {
		case r == nil:
		case t.branch == noBranch:
			if r.deadlineUs == t.atUs {
				s.timedOut(r)
			}
		case t.branch == lockBranch:
			if r.awaits(t) && !r.deciding {
				s.lockTimedOut(r, " for "+strconv.FormatInt(s.cfg.MaxLockWaitUs/1000, 10)+" ms, the limit of a wait,")
			}
		case t.branch == idleBranch:
			if r.idleUs == t.atUs {
				s.lookIdle(r)
			}
		case r.branches[t.branch].retryAtUs == t.atUs:
			s.retryNow(r, t.branch)
		}
	}
	if s.cfg.Shards > 1 {
		s.fireResends()
	}
	if s.now.MonoUs >= s.forgetUs {
		s.forgetUs = s.now.MonoUs + s.cfg.ForgetCheckIntervalUs
		s.forget(true)
	}
	if s.cfg.HashCheckIntervalUs > 0 && s.now.MonoUs >= s.verifyUs {
		s.verify()
	}
}

// timedOut ends phase 1. It never touches a one-phase transaction that may have
// reached its participant, nor a decision that is on its way.
func (s *Shard) timedOut(r *run) {
	t := r.t
	if t.Status.Decided() || r.deciding {
		return
	}
	if t.Status == txn.Active && t.Interactive && !t.StepPending {
		c := txn.AbortCmd{Reason: reason.Timeout, Message: "commit was not asked for within the transaction's timeout"}
		if i := r.executing(); i >= 0 {
			r.blame(&c, i, "no result from ")
		}
		s.proposeAbort(r, c)
		return
	}
	if t.Status == txn.Active {
		s.lockTimedOut(r, "")
		return
	}
	if t.OnePhase {
		return
	}
	c := txn.AbortCmd{Reason: reason.Timeout, Message: "not every participant voted within the transaction's timeout"}
	for i := range r.branches {
		if r.branches[i].vote == Indefinite {
			r.blame(&c, i, "no vote from ")
			break
		}
	}
	s.proposeAbort(r, c)
}

// blame says in an abort what a branch did not answer.
func (r *run) blame(c *txn.AbortCmd, i int, what string) {
	c.Service = r.t.Branches[i].Service
	c.Message = what + c.Service
	if why := r.branches[i].lastError; why != "" {
		c.Message += ": " + why
	}
}

// lockTimedOut aborts a transaction that has waited for its locks too long: for its
// timeout, or for as long as is said.
func (s *Shard) lockTimedOut(r *run, long string) {
	c := txn.AbortCmd{Reason: reason.LockTimeout, Message: "no lock within the transaction's timeout"}
	if need, ids, ok := s.st.Waiting(r.t.ID, 1); ok {
		c.Message = "waited" + long + " for " + need.Key + " (" + need.Mode.String() + ")"
		if len(ids) > 0 {
			c.Message += " behind transaction " + ids[0].String()
		}
		c.Service = lock.Service(need.Key)
	} else if p := r.waitsAt(); p != nil {
		c.Message, c.Service = "waited"+long+" for "+p.key+" ("+p.mode+")", lock.Service(p.key)
		if len(p.behind) > 0 {
			c.Message += " behind transaction " + p.behind[0].String()
		}
	}
	s.proposeAbort(r, c)
}

func (s *Shard) nextWakeUs() int64 {
	if !s.leading {
		return 0
	}
	at := s.forgetUs
	if s.cfg.HashCheckIntervalUs > 0 {
		at = min(at, s.verifyUs)
	}
	if s.cfg.Shards > 1 {
		at = min(at, s.nextResendUs())
	}
	if len(s.timers) > 0 {
		at = min(at, s.timers[0].atUs)
	}
	if len(s.lazy) > 0 && s.mayPropose() { // else the next Apply lets them go
		at = min(at, s.lazySinceUs+s.cfg.AckLingerUs)
	}
	return at
}
