package sim

import (
	"strings"

	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// auditor keeps its own books of one shard: of the log, of what participants did
// and of what clients were told.
type auditor struct {
	w *world
	h *home

	recs    map[txnid.ID]*record
	order   []*record // as first seen
	live    []*record // begun and not ended
	hazards []*record
	held    map[string][]*hold
	tokens  map[string][]keyToken
	drained map[string]uint64 // service: generation that takes no BEGIN
	removed map[string]bool

	leadOrdinal, leadTerm, leadLife uint64 // the last LEAD that this process proposed and applied
}

// record is what the auditor knows of an id, for ever.
type record struct {
	id         txnid.ID
	begun      bool
	beginIndex uint64
	digest     [32]byte
	onePhase   bool
	branches   []branchBook
	work       *body // what the client declared

	decision      decision
	decisionIndex uint64
	ended         bool
	forgotten     bool
	resolved      bool

	toldCommitted   bool
	commitProposed  bool
	timeoutProposed bool
	needs           []need
	beganMs         uint64
	waitKey         string // of its lock request
	waitMode        byte
	waitIndex       uint64
	wasActive       bool
}

type decision uint8

const (
	undecided decision = iota
	commit
	abort
)

type branchBook struct {
	cmdBranch
	vote    shard.AnswerKind // the first definite one, at the participant
	execs   int
	effects int
	listed  bool // the decision says yes
	acked   bool // in the log
	hazard  bool // in the log
	ackSeen bool // answered to the leader
	defect  bool // the participant broke the contract here
}

// hold is a branch that works on its keys at a participant.
type hold struct {
	r     *record
	locks []declared
}

type keyToken struct {
	key   string
	excl  bool
	token string
	id    txnid.ID
}

func newAuditor(w *world, h *home) *auditor {
	return &auditor{w: w, h: h, recs: map[txnid.ID]*record{}, held: map[string][]*hold{}, tokens: map[string][]keyToken{}, drained: map[string]uint64{}, removed: map[string]bool{}}
}

func (a *auditor) rec(id txnid.ID) *record {
	r := a.recs[id]
	if r == nil {
		r = &record{id: id}
		a.recs[id] = r
		a.order = append(a.order, r)
	}
	return r
}

func (r *record) branch(service string) *branchBook {
	for i := range r.branches {
		if r.branches[i].service == service {
			return &r.branches[i]
		}
	}
	return nil
}

// ---- the log

// proposed looks at an entry on its way into the log and tells whether it is a LEAD
// and whether a transaction is decided or ends by it.
func (a *auditor) proposed(entry []byte) (lead, decides bool) {
	_, cmds := decode(entry)
	if len(cmds) > 1 {
		a.w.reached.hit(CommandsBatched)
	}
	for i := range cmds {
		c := &cmds[i]
		switch c.kind {
		case cmdLead:
			lead = true
		case cmdAck:
			decides = true
		case cmdCommit:
			decides = true
			a.rec(c.id).commitProposed = true
		case cmdAbort:
			decides = true
			if c.reason == string(reason.Timeout) || c.reason == string(reason.LockTimeout) {
				a.rec(c.id).timeoutProposed = true
			}
		}
	}
	if !lead && !a.h.sh.Leading() {
		a.w.fail("a follower proposes")
	}
	return lead, decides
}

// durable judges an entry as it becomes durable, on the oracle's state before and
// after it.
func (a *auditor) durable(index uint64, e *logged, apply func()) {
	st := a.h.log.oracle
	computed, cmds := decode(e.data)
	type was struct {
		status  txn.Status
		known   bool
		granted bool
	}
	before := make([]was, len(cmds))
	for i := range cmds {
		if t := st.Get(cmds[i].id); t != nil {
			before[i] = was{t.Status, true, t.Token > 0}
		}
	}
	w0, live0, registry0 := st.Watermark(), st.Live(), st.RegistryVersion()
	apply()
	if st.Watermark() < w0 {
		a.w.fail("W went back from %d to %d", w0, st.Watermark())
	}
	if computed != e.term {
		for i := range cmds {
			t := st.Get(cmds[i].id)
			if (t != nil) != before[i].known || t != nil && t.Status != before[i].status {
				a.w.fail("an entry computed in term %d and appended in term %d changed %s", computed, e.term, short(cmds[i].id))
			}
		}
		if st.Live() != live0 || st.RegistryVersion() != registry0 || st.Watermark() != w0 {
			a.w.fail("an entry computed in term %d and appended in term %d changed the state", computed, e.term)
		}
		return
	}
	forgot := false
	for i := range cmds {
		c := &cmds[i]
		switch c.kind {
		case cmdBegin:
			a.begun(c, index, w0)
		case cmdCommit:
			a.commits(c, index)
		case cmdAbort:
			a.aborts(c, index, before[i].granted && before[i].status == txn.Preparing)
		case cmdAck:
			a.acks(c)
		case cmdForget:
			forgot = true
		case cmdDrainService:
			if v := st.Service(c.name); v != nil && v.Draining {
				a.drained[c.name] = v.Generation
			}
		case cmdRemoveService:
			if st.Service(c.name) == nil && !a.removed[c.name] {
				for _, r := range a.live {
					if r.branch(c.name) != nil && !r.over() {
						a.w.fail("service %s is removed while %s is open there", c.name, short(r.id))
					}
				}
				a.removed[c.name] = true
				a.w.reached.hit(ServiceRemoved)
			}
		case cmdPutService:
			if a.removed[c.name] && st.Service(c.name) != nil {
				a.removed[c.name] = false
				a.w.reached.hit(ServiceRegisteredAgain)
			}
		case cmdResolve:
			if r := a.rec(c.id); r.hazard() && !r.resolved {
				r.resolved = true
				a.w.reached.hit(HazardResolved)
			}
		}
	}
	for i := range cmds {
		if !cmds[i].id.IsZero() {
			a.agree(a.rec(cmds[i].id), st.Get(cmds[i].id), forgot)
		}
	}
	if forgot {
		for _, r := range a.order {
			a.agree(r, st.Get(r.id), true)
		}
	}
	a.settleLive(index)
}

func (a *auditor) begun(c *command, index, w0 uint64) {
	r, t := a.rec(c.id), a.h.log.oracle.Get(c.id)
	if r.begun || r.decision != undecided {
		return // agree checks that nothing came of it
	}
	if t == nil || t.NeverBegun {
		return // refused
	}
	if c.id.UnixMs() <= w0 {
		a.w.fail("%s begins below the watermark %d", short(c.id), w0)
	}
	r.begun, r.beginIndex, r.digest, r.onePhase = true, index, c.digest, c.onePhase
	r.work = a.w.clients.byDigest[c.digest]
	r.wasActive, r.needs, r.beganMs = true, c.needs, t.BeganMs
	for _, b := range c.branches {
		if gen, ok := a.drained[b.service]; ok && b.generation <= gen {
			a.w.fail("%s begins at service %s, generation %d, which drains", short(c.id), b.service, b.generation)
		}
		r.branches = append(r.branches, branchBook{cmdBranch: b})
	}
	a.live = append(a.live, r)
}

func (a *auditor) commits(c *command, index uint64) {
	r := a.rec(c.id)
	if !r.begun || r.decision != undecided {
		return
	}
	if int(c.enlisted) != len(r.branches) || len(c.yes)+len(c.ro) != len(r.branches) {
		a.w.fail("COMMIT of %s counts %d branches, %d yes and %d read-only of %d", short(r.id), c.enlisted, len(c.yes), len(c.ro), len(r.branches))
	}
	r.decision, r.decisionIndex = commit, index
	a.w.aim(a.h)
	if r.timeoutProposed {
		a.w.reached.hit(CommitBeatAbort)
	}
	if r.onePhase {
		a.w.reached.hit(OnePhaseCommitted)
	} else {
		a.w.reached.hit(TwoPhaseCommitted)
	}
	for _, i := range c.yes {
		b := &r.branches[i]
		b.listed = true
		if b.vote != shard.VoteYes && !b.defect {
			a.w.fail("COMMIT of %s: %s never voted yes", short(r.id), b.service)
		}
	}
	for _, i := range c.ro {
		b := &r.branches[i]
		if b.vote != shard.VoteReadOnly && !b.defect {
			a.w.fail("COMMIT of %s: %s never voted read_only", short(r.id), b.service)
		}
		a.unhold(b.service, r)
	}
}

func (a *auditor) aborts(c *command, index uint64, preparing bool) {
	r, t := a.rec(c.id), a.h.log.oracle.Get(c.id)
	if r.decision != undecided || t == nil || t.Abort == nil {
		if r.begun && r.onePhase && preparing && strings.HasSuffix(c.reason, "TIMEOUT") {
			a.w.reached.hit(OnePhaseTimeoutMetGrant)
		}
		return
	}
	if r.begun && r.onePhase && preparing && !c.refused {
		a.w.fail("one-phase transaction %s aborted by %s although its participant may have committed", short(r.id), c.reason)
	}
	r.decision, r.decisionIndex = abort, index
	switch {
	case c.refused:
		a.w.reached.hit(OnePhaseRefused)
	case c.reason == string(reason.VotedNo):
		a.w.reached.hit(VotedNo)
	case c.reason == string(reason.Timeout):
		a.w.reached.hit(PrepareTimedOut)
	case c.reason == string(reason.LockTimeout):
		a.w.reached.hit(LockTimedOut)
	case c.reason == string(reason.ClientRollback) && r.begun:
		a.w.reached.hit(RollbackDone)
	}
	if r.commitProposed && strings.HasSuffix(c.reason, "TIMEOUT") {
		a.w.reached.hit(AbortBeatCommit)
	}
	for i := range r.branches {
		if r.branches[i].vote == shard.VoteReadOnly {
			a.unhold(r.branches[i].service, r)
		}
	}
}

func (a *auditor) acks(c *command) {
	r := a.rec(c.id)
	if int(c.branch) >= len(r.branches) || r.decision == undecided {
		a.w.fail("acknowledgement of %s branch %d, which has no decision", short(c.id), c.branch+1)
	}
	b := &r.branches[c.branch]
	if b.acked {
		return
	}
	b.acked = true
	switch txn.Fate(c.fate) {
	case txn.FateDone:
		switch p := a.w.part(b.service); {
		case b.defect:
		case r.decision == commit && b.effects != 1:
			a.w.fail("commit of %s acknowledged at %s, which has %d effects", short(r.id), b.service, b.effects)
		case r.decision == abort && p.rows[r.id] != nil && p.rows[r.id].outcome != rolledBack && p.rows[r.id].outcome != readOnly:
			a.w.fail("rollback of %s acknowledged at %s, which still has it", short(r.id), b.service)
		}
		return
	case txn.FateHazardUnknown:
		a.w.reached.hit(HazardUnknown)
	case txn.FateHazardCommitted:
		a.w.reached.hit(HazardCommitted)
	case txn.FateHazardRolledBack:
		a.w.reached.hit(HazardRolledBack)
	default:
		a.w.fail("acknowledgement of %s with fate %d", short(r.id), c.fate)
	}
	if !b.defect {
		a.w.fail("hazard of %s at %s, which keeps the contract", short(r.id), b.service)
	}
	b.hazard = true
	a.hazards = append(a.hazards, r)
}

func (r *record) hazard() bool {
	for i := range r.branches {
		if r.branches[i].hazard {
			return true
		}
	}
	return false
}

// over reports whether every branch has ended, by the auditor's books.
func (r *record) over() bool {
	if r.decision == undecided {
		return false
	}
	for i := range r.branches {
		b := &r.branches[i]
		owes := r.decision == commit && b.listed && !r.onePhase || r.decision == abort && b.execs > 0 && b.vote != shard.VoteNo && !r.onePhase
		if owes && !b.acked {
			return false
		}
	}
	return true
}

// agree compares a record of the replicated state with the books.
func (a *auditor) agree(r *record, t *txn.Txn, forgot bool) {
	if r.forgotten {
		if t != nil {
			a.w.fail("%s was forgotten and is back", short(r.id))
		}
		return
	}
	if t == nil {
		if !r.begun && r.decision == undecided {
			return
		}
		switch {
		case !forgot:
			a.w.fail("the record of %s is lost", short(r.id))
		case !r.over():
			a.w.fail("%s is forgotten before every branch has acknowledged", short(r.id))
		case r.hazard() && !r.resolved:
			a.w.fail("the hazard of %s is forgotten unresolved", short(r.id))
		case r.id.UnixMs() > a.h.log.oracle.Watermark():
			a.w.fail("%s is forgotten above the watermark: it could begin again", short(r.id))
		}
		r.forgotten, r.ended = true, true
		return
	}
	switch {
	case !r.begun && r.decision == undecided:
		a.w.fail("%s has a record that no command made", short(r.id))
	case r.begun == t.NeverBegun:
		a.w.fail("%s: begun %v in the log, never begun %v in the state", short(r.id), r.begun, t.NeverBegun)
	case (r.decision != undecided) != t.Status.Decided(), r.decision != undecided && (r.decision == abort) != (t.Abort != nil):
		a.w.fail("%s is %s, but the first terminal record of the log says otherwise (%d)", short(r.id), t.Status, r.decision)
	case t.Status.Ended() && !r.over():
		a.w.fail("%s ended before every branch has acknowledged", short(r.id))
	}
	for i := range r.branches {
		if r.branches[i].hazard && !t.Branches[i].Fate.Hazard() {
			a.w.fail("the hazard of %s at %s is gone", short(r.id), r.branches[i].service)
		}
	}
	r.ended = t.Status.Ended()
}

// settleLive drops what has ended from the list of live ones, and watches the
// lock queues.
func (a *auditor) settleLive(index uint64) {
	st := a.h.log.oracle
	keep := a.live[:0]
	for _, r := range a.live {
		t := st.Get(r.id)
		if t == nil || t.Status.Ended() {
			continue
		}
		keep = append(keep, r)
		if t.Status == txn.Active {
			if need, _, ok := st.Waiting(r.id, 0); ok && need.Key != r.waitKey {
				r.waitKey, r.waitMode, r.waitIndex = need.Key, byte(need.Mode), index
			}
			continue
		}
		if r.wasActive {
			r.wasActive = false
			if r.beginIndex != index {
				a.handedOff(r)
			} else {
				a.fair(r, index)
			}
		}
	}
	a.live = keep
}

// fair: who has just begun and holds all its locks has passed no incompatible
// waiter but younger ones.
func (a *auditor) fair(r *record, index uint64) {
	for _, o := range a.live {
		if !o.wasActive || o.waitKey == "" || o.waitIndex >= index || r.elder(o) {
			continue
		}
		if _, _, still := a.h.log.oracle.Waiting(o.id, 0); !still {
			continue
		}
		for _, n := range r.needs {
			if n.key == o.waitKey && !compatible[n.mode][o.waitMode] {
				a.w.fail("%s is granted %s past %s, which is elder and waits for it", short(r.id), n.key, short(o.id))
			}
		}
	}
}

func (r *record) elder(o *record) bool {
	return r.beganMs < o.beganMs || r.beganMs == o.beganMs && r.id.Less(o.id)
}

// compatible is the matrix of lock modes: IS, IX, S, SIX, X.
var compatible = [5][5]bool{
	{true, true, true, true, false},
	{true, true, false, false, false},
	{true, false, true, false, false},
	{true, false, false, false, false},
	{false, false, false, false, false},
}

func (a *auditor) handedOff(r *record) {
	a.w.reached.hit(LockHandedOff)
	for _, o := range a.live {
		if o != r && o.wasActive && o.waitKey == r.waitKey && o.waitIndex < r.waitIndex {
			if t := a.h.log.oracle.Get(o.id); t != nil && t.Status == txn.Active {
				a.w.reached.hit(LockOvertaken)
			}
		}
	}
}

// ---- the process

// applied notes what this process has applied.
func (a *auditor) applied(e *logged) {
	if e.life == a.h.life && e.lead && headerTerm(e.data) == e.term {
		a.leadOrdinal, a.leadTerm, a.leadLife = e.ordinal, e.term, e.life
	}
}

// leadership: a shard leads only after it has applied the LEAD of this leadership.
func (a *auditor) leadership() {
	h := a.h
	if !h.sh.Leading() {
		return
	}
	if !h.leads {
		a.w.fail("the shard leads although leadership was lost")
	}
	if a.leadLife != h.life || a.leadOrdinal <= h.leadSince || a.leadTerm != h.term {
		a.w.fail("the shard leads term %d before it has applied the LEAD that it proposed for it", h.term)
	}
}

// leaderLost counts in which state transactions meet a failover.
func (a *auditor) leaderLost() {
	for _, r := range a.live {
		effects, listed := 0, 0
		for i := range r.branches {
			effects += r.branches[i].effects
			if r.branches[i].listed {
				listed++
			}
		}
		switch {
		case r.onePhase && r.toldCommitted && r.decision == undecided:
			a.w.reached.hit(OnePhaseToldThenLost)
		case r.decision != commit || r.onePhase:
		case effects == 0:
			a.w.reached.hit(CrashDecidedNoCommitYet)
		case effects < listed:
			a.w.reached.hit(CrashBetweenCommits)
		}
	}
}

// bounds checks what must stay small.
func (a *auditor) bounds() {
	h := a.h
	n := 0
	for _, p := range h.log.inFlight {
		if !p.lead && p.since == h.leadSince && p.life == h.life {
			n++
		}
	}
	if n > h.cfg.MaxAppendsInFlight {
		a.w.fail("%d appends in flight, at most %d allowed", n, h.cfg.MaxAppendsInFlight)
	}
	if n, ends := a.w.clients.open(h); n-ends > h.cfg.MaxWaitingRequests || n > 2*h.cfg.MaxWaitingRequests {
		a.w.fail("%d requests wait, %d of them end transactions; at most %d allowed, and as many besides of those", n, ends, h.cfg.MaxWaitingRequests)
	}
	if n := h.log.oracle.Live(); n > h.cfg.MaxOpenTransactions {
		a.w.fail("%d transactions are open, at most %d allowed", n, h.cfg.MaxOpenTransactions)
	}
}

// called judges a message to a participant as it leaves.
func (a *auditor) called(c *shard.Call) {
	r := a.rec(c.ID)
	if !r.begun || r.beginIndex > a.h.log.applied {
		a.w.fail("%s of %s is sent before BEGIN is durable and applied", c.Phase, short(c.ID))
	}
	if int(c.Branch) >= len(r.branches) || r.branches[c.Branch].service != c.Service {
		a.w.fail("%s of %s goes to %s, which BEGIN does not name", c.Phase, short(c.ID), c.Service)
	}
	b := &r.branches[c.Branch]
	decided := r.decision
	if r.decisionIndex > a.h.log.applied {
		decided = undecided
	}
	switch c.Phase {
	case shard.PhasePrepare:
		if a.h.sh.State().Get(c.ID) != nil && a.h.sh.State().Get(c.ID).Token == 0 {
			a.w.fail("prepare of %s is sent before its locks are granted", short(c.ID))
		}
		if len(c.Operations) != b.ops {
			a.w.fail("prepare of %s at %s carries %d operations of %d", short(c.ID), c.Service, len(c.Operations), b.ops)
		}
	case shard.PhaseCommit:
		if decided != commit {
			a.w.fail("commit of %s is sent before that decision is durable and applied", short(c.ID))
		}
		if !b.listed || r.onePhase {
			a.w.fail("commit of %s is sent to %s, which did not vote yes", short(c.ID), c.Service)
		}
	case shard.PhaseRollback:
		if decided != abort {
			a.w.fail("rollback of %s is sent before that decision is durable and applied", short(c.ID))
		}
	case shard.PhaseExecute:
		a.w.fail("execute of %s, which was submitted as a whole", short(c.ID))
	}
	if c.Forgotten.IsZero() {
		return
	}
	if limit := txnid.Floor(a.h.log.oracle.Watermark() + 1); limit.Less(c.Forgotten) {
		a.w.fail("forgotten_below %s is above the watermark: such an id may still begin", short(c.Forgotten))
	}
	for _, r := range a.live {
		if r.id.Less(c.Forgotten) {
			a.w.fail("forgotten_below %s is above %s, which has not ended", short(c.Forgotten), short(r.id))
		}
	}
}

// answered notes an answer that reaches the leader.
func (a *auditor) answered(c *shard.Call, k shard.AnswerKind) {
	if c.Phase != shard.PhasePrepare && k == shard.Acknowledged {
		a.rec(c.ID).branches[c.Branch].ackSeen = true
	}
}

// lateVote notes a yes that arrives when nobody waits for it any more.
func (a *auditor) lateVote(c *shard.Call) {
	if a.rec(c.ID).decision == abort {
		a.w.reached.hit(LateVoteAfterAbort)
	}
}

// redone notes a decision that is told a second time.
func (a *auditor) redone(c *shard.Call) {
	if r := a.rec(c.ID); int(c.Branch) < len(r.branches) && r.branches[c.Branch].ackSeen && !r.branches[c.Branch].acked {
		a.w.reached.hit(EndLostRedone)
	}
}
