package sim

import (
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
)

// told judges what a client is told.
func (a *auditor) told(q *request, rep *shard.Reply) {
	if rep.Err == nil && rep.View == nil && rep.Service == nil {
		a.w.fail("an answer that says nothing")
	}
	if rep.View != nil {
		a.toldState(q, rep)
	}
	if rep.Err != nil {
		a.refused(q, rep.Err)
	}
}

func (a *auditor) toldState(q *request, rep *shard.Reply) {
	t := &rep.View.Txn
	r := a.rec(t.ID)
	applied := a.h.log.applied
	if t.ID != q.id {
		a.w.fail("asked for %s, told of %s", short(q.id), short(t.ID))
	}
	if r.beginIndex > applied || !r.begun && r.decision == undecided {
		a.w.fail("told %s of %s before its record is applied", t.Status, short(r.id))
	}
	known := r.decision
	if r.decisionIndex > applied {
		known = undecided
	}
	switch {
	case t.Status == txn.Committing || t.Status == txn.Committed:
		if known == commit {
			break
		}
		if !r.onePhase || r.decision == abort || len(r.branches) != 1 || r.branches[0].effects == 0 && r.branches[0].vote != shard.VoteReadOnly {
			a.w.fail("told %s of %s, which the log does not say", t.Status, short(r.id))
		}
		r.toldCommitted = true
	case t.Status.Decided() && known != abort:
		a.w.fail("told %s of %s before that decision is durable and applied", t.Status, short(r.id))
	case !t.Status.Decided():
		// What is told may be a moment old, but for a question it is not older than that.
		if q.kind == reqGet && !q.givenUp && q.decided {
			a.w.fail("told %s of %s, which was decided before the question", t.Status, short(r.id))
		}
		if q.kind == reqGet && !q.givenUp && a.h.log.ordinal <= q.proposals {
			a.w.fail("told %s of %s without a record proposed after the question", t.Status, short(r.id))
		}
	}
	for i := range rep.View.Branches {
		for _, v := range rep.View.Branches[i].Results {
			if string(v) != resultOf(t.Branches[i].Service) {
				a.w.fail("%s is told the result %s for its branch at %s", short(r.id), v, t.Branches[i].Service)
			}
		}
	}
	if q.kind == reqSubmit {
		a.submitTold(q, rep, r)
	}
	if rep.Err == nil && q.kind == reqRollback && !q.givenUp && known != abort {
		a.w.fail("rollback of %s answered with %s", short(r.id), t.Status)
	}
	if rep.Err == nil && q.kind == reqGet && !q.givenUp && r.onePhase && t.Status == txn.Preparing {
		a.w.fail("status of one-phase transaction %s told while its participant is asked", short(r.id))
	}
}

func (a *auditor) submitTold(q *request, rep *shard.Reply, r *record) {
	t := &rep.View.Txn
	if r.begun && r.digest != q.body.digest {
		a.w.fail("%s was begun with another body, but this one is told %s", short(r.id), t.Status)
	}
	if t.NeverBegun {
		a.w.reached.hit(AbortBeatBegin)
	}
	if rep.View.Repeated {
		a.w.reached.hit(RepeatAnswered)
	}
	switch {
	case q.givenUp:
	case q.wait == shard.WaitDecided && !t.Status.Decided(),
		q.wait == shard.WaitCompleted && !t.Status.Ended():
		a.w.fail("submission of %s (wait mode %d) told %s", short(r.id), q.wait, t.Status)
	}
}

// refused judges an error.
func (a *auditor) refused(q *request, err *reason.Error) {
	w := a.w
	r := a.rec(q.id)
	applied := a.h.log.applied
	// What a process that has applied everything so far must know.
	kept := r.begun && r.beginIndex <= applied || r.decision != undecided && r.decisionIndex <= applied
	kept = kept && !r.forgotten
	switch err.Code {
	case reason.NotFound:
		w.reached.hit(NotFoundTold)
		if q.begun && !r.forgotten {
			w.fail("told that %s is not found, but its record was durable before the question", short(q.id))
		}
		if a.h.log.ordinal <= q.proposals {
			w.fail("told that %s is not found without a record proposed after the question", short(q.id))
		}
	case reason.IDExpired:
		switch {
		case q.kind == reqSubmit && r.begun:
			w.reached.hit(WatermarkRefusedRetry)
		case q.kind == reqGet && r.forgotten:
			w.reached.hit(ForgottenAsked)
		}
		if kept {
			w.fail("told that %s is expired, but its record is kept", short(q.id))
		}
		if q.id.UnixMs() > a.h.log.oracle.Watermark() {
			w.fail("told that %s is expired, but it is above the watermark", short(q.id))
		}
	case reason.IDConflict:
		w.reached.hit(ConflictRefused)
		if !r.begun || r.digest == q.body.digest {
			w.fail("conflict told for the body that began %s", short(q.id))
		}
	case reason.IDFromFuture:
		w.reached.hit(FutureIDRefused)
	case reason.Overloaded:
		w.reached.hit(RequestOverloaded)
	case reason.OutcomeUnknown:
		w.reached.hit(OutcomeUnknownTold)
	case reason.AlreadyCommitted:
		w.reached.hit(RollbackTooLate)
		if !(r.decision == commit && r.decisionIndex <= applied) && !r.onePhase {
			w.fail("told that %s is committed, which the log does not say", short(q.id))
		}
	case reason.ServiceDraining, reason.UnknownService:
		if q.kind == reqSubmit {
			w.reached.hit(map[bool]Situation{true: DrainRefusedBegin, false: OutdatedGenerationRefused}[err.Code == reason.ServiceDraining])
			if q.begun && r.begun && !r.forgotten {
				w.fail("%s refused with %s, but it has begun", short(q.id), err.Code)
			}
		}
	case reason.NotLeader, reason.OnePhasePending, reason.NotAHazard, reason.InvalidService:
	default:
		w.fail("unforeseen answer %s", err)
	}
}
