package exhaust

import "github.com/assent-tx/assent/internal/shard"

// row is a participant's durable knowledge of a branch.
type row struct {
	outcome  outcome
	vote     shard.AnswerKind // the first: a deterministic service votes the same again
	token    string           // of its execution
	endedBy  bool             // by the participant alone
	executed int
}

type outcome uint8

const (
	nothing outcome = iota // no row; also after a read-only vote
	prepared
	committed
	rolledBack // refused, rolled back, or a tombstone
)

var outcomeNames = [...]string{"-", "prepared", "committed", "rolled_back"}

// deliver lets the participant execute a request; vote is how it votes if it
// executes the branch for the first time.
func (w *world) deliver(c *call, vote shard.AnswerKind, keep bool) {
	answer := w.execute(c, vote)
	c.inNetwork = keep
	if c.from >= 0 && !c.answered {
		c.answered, c.answer = true, answer
	}
	w.sweep()
}

func (w *world) execute(c *call, vote shard.AnswerKind) shard.AnswerKind {
	r := &w.rows[c.txn][c.Branch]
	switch c.Phase {
	case shard.PhasePrepare:
		return w.prepare(c, r, vote)
	case shard.PhaseCommit:
		switch r.outcome {
		case committed:
		case prepared:
			r.outcome = committed
		case nothing:
			w.unless(w.defects, "commit of t%d reaches service %s, which never prepared it", c.txn+1, c.Service)
			return shard.SaysUnknown
		case rolledBack:
			w.unless(w.defects, "commit of t%d reaches service %s, which has rolled it back", c.txn+1, c.Service)
			return shard.SaysRolledBack
		}
	case shard.PhaseRollback:
		if r.outcome == committed {
			w.unless(w.defects, "rollback of t%d reaches service %s, which has committed it", c.txn+1, c.Service)
			return shard.SaysCommitted
		}
		r.outcome = rolledBack
	case shard.PhaseExecute: // the oracle has failed
	}
	return shard.Acknowledged
}

func (w *world) prepare(c *call, r *row, vote shard.AnswerKind) shard.AnswerKind {
	switch {
	case r.outcome == prepared, r.outcome == committed:
		return shard.VoteYes
	case r.outcome == rolledBack:
		return shard.VoteNo
	case r.vote != shard.Indefinite: // read only, or lost its row
		vote = r.vote
	}
	r.vote = vote
	if vote != shard.VoteNo {
		w.excludes(c)
	}
	if vote == shard.VoteNo {
		r.outcome = rolledBack
	}
	if vote == shard.VoteYes {
		r.outcome, r.token = prepared, c.Token
		r.executed++
		w.unless(r.executed == 1 || w.defects, "t%d executed %d times at service %s", c.txn+1, r.executed, c.Service)
		if c.OnePhase {
			r.outcome = committed
		}
	}
	return vote
}

// unilateral ends a prepared branch, or loses it, against the contract.
func (w *world) unilateral(t, branch int, to outcome) {
	r := &w.rows[t][branch]
	r.outcome, r.endedBy = to, true
	w.defects = true
}

func (w *world) unless(ok bool, format string, args ...any) {
	if !ok {
		w.fail(format, args...)
	}
}

// sweep forgets the calls of which nothing is under way any more.
func (w *world) sweep() {
	keep := w.calls[:0]
	for _, c := range w.calls {
		if c.inNetwork || c.from >= 0 {
			keep = append(keep, c)
		}
	}
	w.calls = keep
}
