package sessions

import (
	"fmt"

	"github.com/assent-tx/assent/internal/check/linear"
	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// StatusReport is what a run of RunStatus reached.
type StatusReport struct {
	Committed, Aborted, Absent int // transactions in the end
	Questions, Unanswered      int
	Crashes                    int
	VirtualUs                  int64
	Trace                      uint64
	Problems                   []linear.Problem
}

// subject is a transaction that several clients ask about at once.
type subject struct {
	id     txnid.ID
	whole  bool // submitted as a whole; else begun and committed
	submit []byte
	locks  []lock.Need
	step   []byte
	left   int // questions
	last   linear.Outcome
}

// questions about one transaction.
const questions = 14

// RunStatus runs one seed of clients that know nothing of each other and begin, look at,
// roll back and commit the same transactions. Its options are those of Run.
func RunStatus(seed uint64, opt Options) (report StatusReport, err error) {
	return RunStatusOn(seed, opt, alone)
}

// RunStatusOn is RunStatus on other coordinators.
func RunStatusOn(seed uint64, opt Options, build func(*World) Cluster) (report StatusReport, err error) {
	w := newWorld(seed, opt)
	defer w.failed(seed, &err)
	w.cluster = build(w)
	var status linear.Status
	var current, all []*subject
	open := 0 // questions
	asker := func() {}
	asker = func() {
		if len(current) < 2 && w.budget > 0 {
			w.budget--
			s := w.newSubject()
			current, all = append(current, s), append(all, s)
		}
		if len(current) == 0 {
			return
		}
		at := w.rng.IntN(len(current))
		s := current[at]
		if s.left--; s.left == 0 {
			current = append(current[:at], current[at+1:]...)
		}
		open++
		report.Questions++
		w.question(&status, s, func(o linear.Outcome) {
			open--
			if o == linear.Nothing {
				report.Unanswered++
			}
			w.At(w.UpTo(8_000), asker)
		})
	}
	for range opt.Clients {
		w.At(w.UpTo(1000), asker)
	}
	asked := func() bool { return w.budget <= 0 && len(current) == 0 && open == 0 }
	w.until(func() bool { return asked() || w.late() }, 3_600_000_000)
	w.heal()
	w.until(func() bool { return asked() && w.cluster.Quiet() }, 3_600_000_000)
	for _, s := range all {
		w.lookAgain(&status, s)
	}
	w.until(func() bool {
		for _, s := range all {
			if s.last == linear.Nothing {
				return false
			}
		}
		return w.cluster.Quiet()
	}, 600_000_000)
	for _, s := range all {
		switch s.last {
		case linear.Committed:
			report.Committed++
		case linear.Aborted:
			report.Aborted++
		case linear.NotFound:
			report.Absent++
		default:
			w.Fail("%s is %s in the end", s.id, s.last)
		}
	}
	w.cluster.Audit()
	report.Crashes, report.Trace, report.VirtualUs = w.report.Crashes, w.report.Trace, w.nowUs
	report.Problems = status.Check()
	return report, nil
}

func (w *World) newSubject() *subject {
	s := &subject{id: w.newID(txnid.ID{}), whole: w.rng.IntN(2) == 0, left: questions}
	service := w.rng.IntN(len(w.parts))
	key := fmt.Sprintf("s%d/k%d", service, w.rng.IntN(w.opt.Keys))
	w.values++
	op := fmt.Appendf(nil, `{"append":true,"key":%q,"value":%d}`, key, w.values)
	needs := []lock.Need{{Key: key, Mode: lock.X}}
	name := w.parts[service].name
	by := map[string]registration{name: w.registration(name)}
	if s.whole {
		b := &txn.Begin{ID: s.id, Digest: [32]byte{1}, TimeoutMs: 2_000, Branches: []txn.BeginBranch{{Service: name, Generation: by[name].generation, Ops: [][]byte{op}}}}
		b.Locks, b.Foreign = w.split(s.id, needs, by)
		s.submit, s.locks = txn.AppendBegin(nil, b), b.Locks
		return s
	}
	s.submit = txn.AppendOpen(nil, &txn.Open{ID: s.id, Digest: [32]byte{1}, TimeoutMs: 1_000, IdleMs: 500})
	e := &txn.Enlist{ID: s.id, Step: 1, Digest: [32]byte{2}, Branches: []txn.EnlistBranch{{Service: name, Generation: by[name].generation}}}
	e.Ops = []txn.EnlistOp{{Now: w.rng.IntN(2) == 0, Payload: op}}
	e.Locks, e.Foreign = w.split(s.id, needs, by)
	s.step, s.locks = txn.AppendEnlist(nil, e), e.Locks
	return s
}

// question asks one thing about a transaction.
func (w *World) question(status *linear.Status, s *subject, answered func(linear.Outcome)) {
	begin := linear.Begin
	wait := shard.WaitNone
	if s.whole {
		begin = linear.Submit
		wait = []shard.WaitMode{shard.WaitNone, shard.WaitDecided, shard.WaitCompleted}[w.rng.IntN(3)]
	}
	switch n := w.rng.IntN(20); {
	case n < 5:
		w.askAbout(s.id, status.Ask(s.id.String(), begin), answered, func(t shard.Token) shard.Event {
			b := &shard.Submit{Token: t, ID: s.id, Digest: [32]byte{1}, Begin: s.submit, Wait: wait}
			if s.whole {
				b.Locks = s.locks
			}
			return b
		})
	case n < 8 && !s.whole:
		w.askAbout(s.id, status.Ask(s.id.String(), linear.Look), answered, func(t shard.Token) shard.Event {
			return &shard.Enlist{Token: t, ID: s.id, Step: 1, Digest: [32]byte{2}, Enlist: s.step, Locks: s.locks}
		})
	case n < 11 && !s.whole:
		w.askAbout(s.id, status.Ask(s.id.String(), linear.Commit), answered, func(t shard.Token) shard.Event {
			return &shard.Seal{Token: t, ID: s.id, Wait: []shard.WaitMode{shard.WaitNone, shard.WaitDecided, shard.WaitCompleted}[s.left%3]}
		})
	case n < 12:
		w.askAbout(s.id, status.Ask(s.id.String(), linear.Rollback), answered, func(t shard.Token) shard.Event { return &shard.Rollback{Token: t, ID: s.id} })
	default:
		w.look(status, s, answered)
	}
}

// lookAgain looks until there is an answer.
func (w *World) lookAgain(status *linear.Status, s *subject) {
	w.look(status, s, func(o linear.Outcome) {
		if s.last = o; o == linear.Nothing {
			w.At(50_000, func() { w.lookAgain(status, s) })
		}
	})
}

func (w *World) look(status *linear.Status, s *subject, answered func(linear.Outcome)) {
	w.askAbout(s.id, status.Ask(s.id.String(), linear.Look), answered, func(t shard.Token) shard.Event { return &shard.Get{Token: t, ID: s.id} })
}

func (w *World) askAbout(id txnid.ID, told, answered func(linear.Outcome), ev func(shard.Token) shard.Event) {
	w.cluster.Ask(id, ev, func(r *shard.Reply) {
		o := outcomeOf(r)
		told(o)
		answered(o)
	})
}

// outcomeOf is what a client learns of a transaction by an answer.
func outcomeOf(r *shard.Reply) linear.Outcome {
	switch {
	case r == nil:
		return linear.Nothing
	case r.Err != nil && r.Err.Code == reason.NotFound:
		return linear.NotFound
	case r.Err != nil && r.Err.Code == reason.AlreadyCommitted:
		return linear.Committed
	case r.Err != nil || r.View == nil:
		return linear.Nothing
	case !r.View.Txn.Status.Decided():
		return linear.Open
	case r.View.Txn.Abort != nil:
		return linear.Aborted
	default:
		return linear.Committed
	}
}
