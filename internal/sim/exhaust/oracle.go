package exhaust

import (
	"strings"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// fact is what the oracle knows of a transaction.
type fact struct {
	begun    bool
	decision decision
	told     [3]bool // by decision: some client was told
}

type decision uint8

const (
	undecided decision = iota
	commits
	aborts
)

var decisionNames = [...]string{"undecided", "commit", "abort"}

// judge follows one appended entry with the oracle's own books, and checks that
// the replicated machine came to the same.
func (w *world) judge(entry []byte) {
	before := ""
	computed, _, err := txn.Header(entry)
	if err != nil {
		w.fail("an entry without a header: %v", err)
	}
	if computed != w.raftTerm {
		before = w.tip.String()
	}
	was := make([]txn.Status, len(w.ids))
	for t, id := range w.ids {
		if rec := w.tip.Get(id); rec != nil {
			was[t] = rec.Status
		}
	}
	var effects []txn.Effect
	if err := w.tip.Apply(uint64(len(w.log)), w.raftTerm, entry, &effects); err != nil {
		w.fail("entry %d cannot be applied: %v", len(w.log), err)
	}
	if computed != w.raftTerm {
		w.unless(w.tip.String() == before, "an entry computed in term %d and appended in term %d changed the state", computed, w.raftTerm)
		return
	}
	lines, err := txn.Describe(entry)
	if err != nil {
		w.fail("entry %d cannot be described: %v", len(w.log), err)
	}
	for _, line := range lines {
		w.record(strings.Fields(line), was, effects)
	}
	for t, id := range w.ids {
		w.matches(t, w.tip.Get(id), "the log")
	}
}

// record takes one command into the books.
func (w *world) record(words []string, was []txn.Status, effects []txn.Effect) {
	if len(words) < 2 {
		return
	}
	id, err := txnid.Parse(words[1])
	if err != nil {
		return // not about a transaction
	}
	t := w.named[id]
	f := &w.facts[t]
	if f.decision != undecided {
		return // the first decision wins
	}
	switch words[0] {
	case "BEGIN":
		f.begun = true
	case "COMMIT":
		w.unless(f.begun, "COMMIT of t%d, which never began", t+1)
		for b := range w.rows[t] {
			r := &w.rows[t][b]
			voted := r.outcome == prepared || r.outcome == committed || r.outcome == nothing && r.vote == shard.VoteReadOnly
			w.unless(voted || r.endedBy, "COMMIT of t%d, but its branch %d is %s", t+1, b+1, outcomeNames[r.outcome])
		}
		f.decision = commits
	case "ABORT":
		granted := was[t] == txn.Preparing
		for i := range effects {
			granted = granted || effects[i].Kind == txn.EffectGranted && effects[i].ID == id
		}
		if f.begun && w.cfg.Work[t].OnePhase && granted && words[2] != string(reason.VotedNo) {
			return // only the participant's answer decides
		}
		w.unless(!f.told[commits], "t%d aborts after a client was told that it is committed", t+1)
		f.decision = aborts
	}
}

// matches compares a record with the books.
func (w *world) matches(t int, rec *txn.Txn, where string) {
	f := &w.facts[t]
	got := undecided
	switch {
	case rec == nil:
	case rec.Abort != nil:
		got = aborts
	case rec.Status.Decided():
		got = commits
	}
	w.unless(got == f.decision && (rec != nil) == (f.begun || f.decision != undecided),
		"t%d is decided by the log: %s; %s says %s", t+1, decisionNames[f.decision], where, decisionNames[got])
}

// agree checks a node that has just applied an entry.
func (w *world) agree(i int) {
	n := w.nodes[i]
	if err := n.sh.State().Check(); err != nil {
		w.fail("node %d: %v", i, err)
	}
	for t, id := range w.ids {
		rec := n.sh.State().Get(id)
		if n.applied == len(w.log) {
			w.matches(t, rec, "a node")
		} else if rec != nil && rec.Status.Decided() {
			f := w.facts[t].decision
			w.unless((rec.Abort != nil) == (f == aborts) && f != undecided, "t%d: the log says %s, node %d otherwise", t+1, decisionNames[f], i)
		}
	}
}

// called checks a call as it leaves, and puts it into the network.
func (w *world) called(i int, c *shard.Call) {
	n := w.nodes[i]
	t := w.named[c.ID]
	w.unless(n.led, "node %d calls %s of t%d before its LEAD is applied", i, c.Phase, t+1)
	rec := n.sh.State().Get(c.ID)
	if rec == nil {
		w.fail("%s of t%d, which has no record", c.Phase, t+1)
	}
	f := w.facts[t].decision
	switch c.Phase {
	case shard.PhasePrepare:
		w.unless(rec.Status == txn.Preparing, "prepare of t%d, which is %s", t+1, rec.Status)
	case shard.PhaseCommit:
		w.unless(rec.Status.Decided() && f == commits, "commit of t%d is sent, but it is %s", t+1, rec.Status)
	case shard.PhaseRollback:
		w.unless(rec.Status.Decided() && f == aborts, "rollback of t%d is sent, but it is %s", t+1, rec.Status)
	case shard.PhaseExecute:
		w.fail("execute of t%d, which was submitted as a whole", t+1)
	}
	for _, o := range w.calls {
		w.unless(o.from != i || o.opened != n.opened || o.ID != c.ID || o.Branch != c.Branch || o.Attempt != c.Attempt,
			"node %d calls branch %d of t%d twice by attempt %d", i, c.Branch+1, t+1, c.Attempt)
	}
	w.calls = append(w.calls, &call{Call: *c, txn: t, from: i, opened: n.opened, inNetwork: true})
}

// replied checks an answer to a client.
func (w *world) replied(i int, r *shard.Reply) {
	var q *request
	for k := range w.requests {
		if w.requests[k].token == r.Token {
			q = &w.requests[k]
		}
	}
	if q == nil || q.node != i {
		w.fail("node %d answers request %d, which does not wait there", i, r.Token)
	}
	q.node = -1
	n, t := w.nodes[i], q.txn
	w.unless(n.led || r.View == nil, "node %d answers before its LEAD is applied", i)
	if r.Err != nil && r.View == nil {
		w.refused(i, q, r.Err.Code)
		return
	}
	v := &r.View.Txn
	if q.kind == submits || q.kind == conflicts {
		_, digest := w.begin(t, q.variant())
		w.unless(v.NeverBegun || v.Digest == digest, "a submission of t%d got the outcome of another body", t+1)
	}
	if !v.Status.Decided() {
		w.unless(q.cancelled || !q.decided || q.kind != gets, "t%d was decided when a client asked; it was told %s", t+1, v.Status)
		return
	}
	told := commits
	if v.Abort != nil {
		told = aborts
	}
	f := &w.facts[t]
	f.told[told] = true
	onePhase := w.cfg.Work[t].OnePhase && told == commits && f.decision != aborts &&
		(w.rows[t][0].outcome == committed || w.rows[t][0].vote == shard.VoteReadOnly)
	w.unless(f.decision == told || onePhase, "a client is told %s of t%d, which is %s", decisionNames[told], t+1, decisionNames[f.decision])
	w.unless(f.told[commits] != f.told[aborts], "t%d: one client was told commit, another abort", t+1)
	w.unless(r.Err == nil || r.Err.Code == reason.AlreadyCommitted && told == commits && q.kind == rollsBack, "an outcome came with %v", r.Err)
	if v.Status.Ended() {
		w.settled(t)
	}
}

// refused checks an answer without an outcome.
func (w *world) refused(i int, q *request, code reason.Code) {
	n, t := w.nodes[i], q.txn
	rec := w.tip.Get(w.ids[t])
	deposed := i != w.leader && !n.sh.Leading() // an entry of its successor said so
	ok := false
	switch code {
	case reason.OutcomeUnknown:
		ok = q.cancelled || !n.led || !n.claims || deposed
	case reason.NotLeader:
		ok = deposed
	case reason.IDConflict:
		_, digest := w.begin(t, q.variant())
		ok = rec != nil && rec.Digest != digest && !rec.NeverBegun
	case reason.NotFound:
		ok = q.kind == gets && !q.known
	}
	w.unless(ok, "request %d about t%d is refused with %s", q.token, t+1, code)
}

// excludes checks that no conflicting branch is at work where c executes.
func (w *world) excludes(c *call) {
	mine := w.cfg.Work[c.txn].Branches[c.Branch]
	if w.defects || w.facts[c.txn].decision == commits { // a read-only branch, asked again by a late request
		return
	}
	for u := range w.cfg.Work {
		for b, p := range w.cfg.Work[u].Branches {
			if u == c.txn || p.Service != mine.Service || p.Mode == lock.S && mine.Mode == lock.S {
				continue
			}
			r := &w.rows[u][b]
			w.unless(r.outcome != prepared, "t%d executes at service %s while t%d is prepared there on the same key", c.txn+1, c.Service, u+1)
			w.unless(r.token == "" || r.token < c.Token, "t%d executes at service %s with token %s after t%d with %s", c.txn+1, c.Service, c.Token, u+1, r.token)
		}
	}
}

// settled checks that no participant still has to end a transaction.
func (w *world) settled(t int) {
	for b := range w.rows[t] {
		w.unless(w.rows[t][b].outcome != prepared || w.defects, "t%d has ended, but its branch %d is prepared", t+1, b+1)
	}
}

// holds checks what must hold in every state.
func (w *world) holds() {
	if w.defects {
		return
	}
	for t := range w.rows {
		f := w.facts[t].decision
		for b := range w.rows[t] {
			r := &w.rows[t][b]
			switch {
			case r.outcome == committed && f != commits && !(w.cfg.Work[t].OnePhase && f == undecided):
				w.fail("branch %d of t%d is committed, the decision is %s", b+1, t+1, decisionNames[f])
			case r.outcome == rolledBack && f == commits:
				w.fail("branch %d of t%d is rolled back, the decision is commit", b+1, t+1)
			case r.outcome == rolledBack && f == undecided && r.executed > 0:
				w.fail("branch %d of t%d was prepared and is rolled back without a decision", b+1, t+1)
			}
		}
		if rec := w.tip.Get(w.ids[t]); rec != nil && rec.Status.Ended() {
			w.settled(t)
		}
	}
}

// rests checks a state in which nothing can happen any more: all has ended.
func (w *world) rests() {
	n := w.nodes[w.leader]
	w.unless(n.sh.Leading(), "nobody leads")
	w.unless(n.sh.State().Live() == 0, "%d transactions never end", n.sh.State().Live())
	w.unless(n.sh.State().LockOwners() == 0, "%d owners hold locks for ever", n.sh.State().LockOwners())
	for i := range w.requests {
		q := &w.requests[i]
		w.unless(q.node != w.leader, "request %d about t%d is never answered", q.token, q.txn+1)
	}
	for t := range w.rows {
		rec := w.tip.Get(w.ids[t])
		defect := false
		for b := range w.rows[t] {
			r := &w.rows[t][b]
			if r.endedBy {
				defect = defect || (r.outcome == committed) != (w.facts[t].decision == commits)
				continue
			}
			done := r.outcome != prepared && (w.facts[t].decision != commits || r.outcome == committed || r.vote == shard.VoteReadOnly)
			w.unless(done, "branch %d of t%d is %s for ever, the decision is %s", b+1, t+1, outcomeNames[r.outcome], decisionNames[w.facts[t].decision])
		}
		if rec != nil {
			w.unless(rec.Hazard() == defect, "t%d ended otherwise than decided: %t; recorded: %t", t+1, defect, rec.Hazard())
		}
	}
}

// replayed checks that a node's state is what a snapshot taken half way, and the
// rest of the log, make of an empty one.
func (w *world) replayed(i int) {
	n := w.nodes[i]
	st := txn.New(0, 1)
	var effects []txn.Effect
	for k := range n.applied {
		if err := st.Apply(uint64(k+1), w.log[k].term, w.log[k].data, &effects); err != nil {
			w.fail("replay of entry %d: %v", k+1, err)
		}
		if k != n.applied/2 {
			continue
		}
		var snapshot []byte
		_ = st.Capture().Write(func(b []byte) error {
			snapshot = append(snapshot, b...)
			return nil
		})
		restored, err := txn.Restore(0, 1, snapshot)
		if err != nil {
			w.fail("snapshot after entry %d: %v", k+1, err)
		}
		st = restored
	}
	w.unless(st.Hash() == n.sh.State().Hash(), "a snapshot and the rest of the log make another state than the log")
}
