package cluster

import (
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/sim/sessions"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// group is one shard: the truth about its log, and the books of what was done and told.
type group struct {
	c     *Cluster
	shard int

	committed   []rec    // by index, from 1
	committedIn []uint64 // the term of who committed it first
	leaders     map[uint64]int
	maxTerm     uint64
	oracle      *txn.State          // has applied what is committed, once, and never restores
	hashes      map[uint64][32]byte // of the state at some indexes
	effects     []txn.Effect

	books    map[txnid.ID]*book
	open     []*book // begun, not ended
	said     map[saying]bool
	rolls    map[txnid.ID]bool // a client asked to roll it back
	gaveWay  map[txnid.ID]bool // a message asked for it
	claims   map[claim]uint64  // index of the grant
	released map[txnid.ID]bool
	wounds   map[txnid.ID]uint64 // index at which an elder came to wait for what it holds here
	changes  int                 // configurations committed
	latest   *config             // committed
	removed  map[int]bool        // nodes that were members and may not be again
}

// claim is a grant to a transaction of another home.
type claim struct {
	id      txnid.ID
	request uint32
	token   uint64
}

type saying struct {
	id txnid.ID
	k  shard.AnswerKind
}

// book is what is known of a transaction.
type book struct {
	id                txnid.ID
	begun             uint64 // index of its BEGIN, 0: none
	ready             uint64 // of the grant or SEAL that made it preparing
	decided           uint64
	committed         bool
	yes               map[uint32]bool // branches that are to commit
	by                *leadership     // who proposed the decision
	asked             *leadership     // who was asked to begin it first
	commitCalls, acks int
	ended             bool
	spread            map[int]bool    // lock shards
	failed            map[uint64]bool // shards that lost their leader while it was open and spread
}

func newGroup(c *Cluster, s int) *group {
	return &group{
		c: c, shard: s, leaders: map[uint64]int{}, hashes: map[uint64][32]byte{}, books: map[txnid.ID]*book{}, claims: map[claim]uint64{}, released: map[txnid.ID]bool{}, wounds: map[txnid.ID]uint64{}, gaveWay: map[txnid.ID]bool{}, said: map[saying]bool{},
		rolls: map[txnid.ID]bool{}, removed: map[int]bool{}, oracle: txn.New(uint32(s), uint32(c.w.Options().Shards)),
	}
}

func (g *group) book(id txnid.ID) *book {
	b := g.books[id]
	if b == nil {
		b = &book{id: id}
		g.books[id] = b
	}
	return b
}

// leader is the one of the greatest term that leads by the log, or nil.
func (g *group) leader() (l *replica) {
	for _, n := range g.c.nodes {
		if r := n.reps[g.shard]; r != nil && r.sh != nil && r.role == leader && (l == nil || r.term > l.term) {
			l = r
		}
	}
	return l
}

// ---- what Raft promises

// elected: one leader a term, and it has all that was committed in earlier ones. It may
// win when a leader of a later term has committed more: by votes that were long under way.
func (g *group) elected(r *replica) {
	w := g.c.w
	if was, ok := g.leaders[r.term]; ok {
		w.Fail("%s: n%d was elected in this term before", r, was)
	}
	g.leaders[r.term] = r.n.id
	g.maxTerm = max(g.maxTerm, r.term)
	last := uint64(len(g.committed))
	for last > 0 && g.committedIn[last-1] >= r.term {
		last--
	}
	if last > 0 && (r.last() < last || last >= r.first && r.termAt(last) != g.committed[last-1].term) {
		w.Fail("%s is elected without entry %d, which was committed in an earlier term", r, last)
	}
	g.c.hit(Elected)
	g.c.line("%s is elected", r)
	for _, b := range g.open {
		if b.decided > 0 && b.by != nil && b.by.term < r.term && b.committed && !b.ended {
			switch {
			case b.commitCalls == 0:
				g.c.hit(ElectedBeforeFirstCommit)
			case b.acks > 0 && b.acks < len(b.yes):
				g.c.hit(ElectedBetweenCommits)
			}
		}
	}
}

// committedAt: what is committed is the same everywhere and for ever.
func (g *group) committedAt(r *replica, index uint64, e *rec) {
	w := g.c.w
	if index <= uint64(len(g.committed)) {
		if !g.committed[index-1].same(e) {
			w.Fail("%s: entry %d of term %d is committed, but it was another one of term %d before", r, index, e.term, g.committed[index-1].term)
		}
		return
	}
	if index != uint64(len(g.committed))+1 {
		w.Fail("%s: entry %d is committed after %d", r, index, len(g.committed))
	}
	g.committed, g.committedIn = append(g.committed, *e), append(g.committedIn, r.term)
	if e.term < g.maxTerm {
		g.c.hit(CommittedAfterDeposed)
	}
	switch e.kind {
	case recConfig:
		g.c.line("shard %d: members %v", g.shard, *e.config)
		g.reconfigured(e.config)
		if g.changes++; g.changes > 1 && g.oracle.Live() > 0 {
			g.c.hit(MembersChangedWithOpen)
		}
	case recData:
		g.durable(index, e)
	case recNoop:
	}
}

// holds: a snapshot is of what is committed.
func (g *group) holds(r *replica, index, term uint64) {
	if index > uint64(len(g.committed)) || g.committed[index-1].term != term {
		g.c.w.Fail("%s gets a snapshot of entry %d of term %d, which is not committed", r, index, term)
	}
}

// sameState: replicas at one index are equal.
func (g *group) sameState(r *replica, sure bool) {
	w := g.c.w
	if r.applied > uint64(len(g.committed)) {
		w.Fail("%s has applied entry %d, which is not committed", r, r.applied)
	}
	want, ok := g.hashes[r.applied]
	if !ok && !sure {
		return
	}
	if !ok {
		if want = g.oracle.Hash(); r.applied < uint64(len(g.committed)) {
			want = g.replay(r.applied)
		}
		g.hashes[r.applied] = want
	}
	if r.sh.State().Hash() != want {
		w.Fail("%s: the state at entry %d differs from another replica's\n%s", r, r.applied, r.sh.State())
	}
}

func (g *group) replay(upTo uint64) [32]byte {
	st := txn.New(uint32(g.shard), uint32(len(g.c.groups)))
	var effects []txn.Effect
	for i := range g.committed[:upTo] {
		if e := &g.committed[i]; e.kind == recData {
			if err := st.Apply(uint64(i+1), e.term, e.data, &effects); err != nil {
				g.c.w.Fail("replay of shard %d: %v", g.shard, err)
			}
			effects = effects[:0]
		}
	}
	return st.Hash()
}

// ---- entries

// hashEvery so many entries the replicas' states are compared.
const hashEvery = 32

// durable judges an entry as it is committed first.
func (g *group) durable(index uint64, e *rec) {
	w := g.c.w
	g.effects = g.effects[:0]
	if err := g.oracle.Apply(index, e.term, e.data, &g.effects); err != nil {
		w.Fail("shard %d: the log cannot be followed: %v", g.shard, err)
	}
	if index%8 == 0 {
		if err := g.oracle.Check(); err != nil {
			w.Fail("shard %d: %v\n%s", g.shard, err, g.oracle)
		}
	}
	if index%hashEvery == 0 {
		g.hashes[index] = g.oracle.Hash()
	}
	if computedIn, _, err := txn.Header(e.data); err != nil || computedIn != e.by.term {
		w.Fail("shard %d: entry %d says that it was computed in term %d, and its leader's is %d", g.shard, index, computedIn, e.by.term)
	}
	if e.by.term != e.term && (len(g.effects) != 1 || g.effects[0].Kind != txn.EffectStale) {
		w.Fail("shard %d: entry %d was computed in term %d, appended in term %d, and is not ignored", g.shard, index, e.by.term, e.term)
	}
	w.Mix(index ^ e.term<<32 ^ uint64(g.shard)<<56)
	g.c.line("shard %d: entry %d of term %d, proposed by n%d in term %d", g.shard, index, e.term, e.by.node, e.by.term)
	victims := map[txnid.ID]bool{}
	for i := range g.effects {
		f := &g.effects[i]
		switch f.Kind {
		case txn.EffectStale:
			g.c.hit(StaleEntryIgnored)
			if e.by.term == e.term {
				w.Fail("shard %d: entry %d is ignored in its own term", g.shard, index)
			}
		case txn.EffectBegan:
			b := g.book(f.ID)
			if b.begun > 0 || b.decided > 0 {
				w.Fail("shard %d: %s begins twice, or after its end", g.shard, f.ID)
			}
			b.begun = index
			for j := range f.Txn.Foreign {
				if b.spread == nil {
					b.spread = map[int]bool{}
				}
				b.spread[int(f.Txn.Foreign[j].Shard)] = true
			}
			g.open = append(g.open, b)
		case txn.EffectGranted, txn.EffectSealed:
			g.book(f.ID).ready = index
		case txn.EffectWounded, txn.EffectDeadlock:
			victims[f.ID] = true
		case txn.EffectDecided:
			g.decides(index, e, f.Txn, victims)
		case txn.EffectDecisionIgnored:
			if f.Txn != nil && f.Txn.Status.Decided() {
				g.c.hit(SecondDecisionIgnored)
			}
		case txn.EffectClaimGranted:
			g.claims[claim{f.ID, f.Request, f.Token}] = index
			if g.released[f.ID] {
				g.c.hit(ClaimAfterRelease)
			}
		case txn.EffectReleased:
			g.released[f.ID] = g.released[f.ID] || f.Name == "" && !f.Waiting
		case txn.EffectGiveWay:
			if _, ok := g.wounds[f.ID]; !ok {
				g.wounds[f.ID] = index
			}
		case txn.EffectVerify:
			if _, err := g.oracle.Hashed(f.Token, f.Capture.Hash()); err != nil {
				w.Fail("shard %d: %v", g.shard, err)
			}
		case txn.EffectVerified:
			g.c.hit(StatesCompared)
		case txn.EffectAcked:
			g.book(f.ID).acks++
		case txn.EffectHazard:
			w.Fail("shard %d: hazard of %s, and every participant keeps the contract", g.shard, f.ID)
		case txn.EffectEnded:
			b := g.book(f.ID)
			b.ended = true
			if len(b.failed) > 1 && b.failed[uint64(g.shard)] {
				g.c.hit(BothSidesFailedOver)
			}
		case txn.EffectForgotten:
			if !g.book(f.ID).ended {
				w.Fail("shard %d: %s is forgotten before it has ended", g.shard, f.ID)
			}
			g.c.hit(Forgotten)
		default: // the oracle has it
		}
	}
	w.Durable(g.effects)
	keep := g.open[:0]
	for _, b := range g.open {
		if !b.ended {
			keep = append(keep, b)
		}
	}
	g.open = keep
}

// decides: the first decision is for ever, and an abort has a reason that happened.
func (g *group) decides(index uint64, e *rec, t *txn.Txn, victims map[txnid.ID]bool) {
	w := g.c.w
	b := g.book(t.ID)
	if b.decided > 0 {
		w.Fail("shard %d: %s is decided twice", g.shard, t.ID)
	}
	if t.NeverBegun && b.asked != nil && b.asked != e.by {
		g.c.hit(AbortBeatBegin)
	}
	b.decided, b.committed, b.by, b.yes = index, t.Abort == nil, e.by, map[uint32]bool{}
	g.c.line("shard %d: %s: %s", g.shard, t.ID, t.Status)
	if l := g.leader(); l != nil {
		g.aim(l)
	}
	if e.term < g.maxTerm {
		g.c.hit(DecidedAfterDeposed)
	}
	if t.Abort == nil {
		for i := range t.Branches {
			if t.Branches[i].Fate != txn.FateReadOnly {
				b.yes[uint32(i)] = true
				if !g.said[saying{t.ID, shard.VoteYes}] {
					w.Fail("shard %d: %s commits, and nobody voted yes", g.shard, t.ID)
				}
			}
		}
		return
	}
	since := e.atUs - e.by.ledUs // that this leader had it
	if began, ok := e.by.began[t.ID]; ok {
		since = min(since, e.atUs-began)
	}
	happened := false
	switch t.Abort.Reason {
	case reason.ClientRollback:
		happened = g.rolls[t.ID] || t.NeverBegun
	case reason.VotedNo:
		happened = g.said[saying{t.ID, shard.VoteNo}]
	case reason.ExecutionLost:
		happened = g.said[saying{t.ID, shard.Lost}]
	case reason.ExecuteRefused:
		happened = g.said[saying{t.ID, shard.Refused}]
	case reason.ExecuteConflict:
		happened = g.said[saying{t.ID, shard.Conflict}]
	case reason.Timeout:
		happened = since >= int64(t.TimeoutMs)*1000
	case reason.LockTimeout:
		wait := int64(t.TimeoutMs) * 1000
		if g.c.opt.LockWaitUs > 0 {
			wait = min(wait, g.c.opt.LockWaitUs)
		}
		happened = since >= wait
	case reason.IdleTimeout:
		happened = since >= int64(t.IdleMs)*1000
	case reason.Wounded, reason.Deadlock:
		happened = victims[t.ID] || g.gaveWay[t.ID] && e.by.asked[t.ID]
	}
	if !happened {
		w.Fail("shard %d: %s is aborted with %s (%s), which did not happen; its leader n%d of term %d had it for %d us", g.shard, t.ID, t.Abort.Reason, t.Abort.Message, e.by.node, e.by.term, since)
	}
}

// overwritten: an entry that was never committed is gone from one log.
func (g *group) overwritten(e *rec) {
	if e.kind == recConfig {
		g.c.hit(ConfigOverwritten)
	}
}

// ---- leadership

// leaderLost: a process or a leadership ended.
func (g *group) leaderLost(r *replica) {
	if r.sh == nil || r.role != leader && !r.sh.Leading() && (r.lead == nil || !r.word.leads) {
		return
	}
	for _, o := range g.c.groups {
		for _, b := range o.open {
			if len(b.spread) == 0 || o != g && !b.spread[g.shard] {
				continue
			}
			if b.failed == nil {
				b.failed = map[uint64]bool{}
			}
			b.failed[uint64(g.shard)] = true
		}
	}
}

// leads: a shard leads only by a LEAD of its own term that it has applied.
func (g *group) leads(r *replica) {
	if !r.word.leads || r.lead == nil || r.lead.term != r.word.term || r.sh.State().Term() != r.word.term {
		g.c.w.Fail("%s: the shard leads term %d before it has applied the LEAD that it proposed for it (%d)", r, r.word.term, r.sh.State().Term())
	}
	if r.word.term > 1 && r.sh.State().Live() > 0 {
		g.c.hit(LedWithOpen)
	}
	g.c.line("%s: the shard leads", r)
}

// mayAct: only who leads speaks to others; a follower proposes its LEAD and nothing else.
func (g *group) mayAct(r *replica, entries, calls, messages int) {
	if r.acted {
		return
	}
	if calls > 0 || messages > 0 {
		g.c.w.Fail("%s: a follower makes %d calls and sends %d messages", r, calls, messages)
	}
	if entries > 1 || entries > 0 && !r.word.leads {
		g.c.w.Fail("%s: a follower proposes", r)
	}
}

// superseded reports whether somebody else has come to lead since.
func (g *group) superseded(r *replica) bool {
	return r.lead != nil && r.lead.term < g.oracle.Term()
}

// ---- calls, messages, answers

// called judges a call before it is sent.
func (g *group) called(r *replica, call *shard.Call) {
	w := g.c.w
	b := g.books[call.ID]
	if r.lead == nil || call.Term != r.lead.term {
		w.Fail("%s: %s of %s names term %d", r, call.Phase, call.ID, call.Term)
	}
	if b == nil || b.begun == 0 || b.begun > r.applied {
		w.Fail("%s: %s of %s before its BEGIN is applied here", r, call.Phase, call.ID)
	}
	if g.superseded(r) {
		g.c.hit(ZombieCalled)
	}
	w.Mix(uint64(call.Phase)<<8 ^ uint64(call.Attempt))
	g.c.line("%s: %s of %s branch %d attempt %d", r, call.Phase, call.ID, call.Branch, call.Attempt)
	decided := b.decided > 0 && b.decided <= r.applied
	switch call.Phase {
	case shard.PhasePrepare:
		if b.ready == 0 || b.ready > r.applied {
			w.Fail("%s: prepare of %s before its locks are granted, or its commit asked for", r, call.ID)
		}
	case shard.PhaseExecute:
	case shard.PhaseCommit:
		if !decided || !b.committed || !b.yes[call.Branch] {
			w.Fail("%s: commit of %s, which is not decided here (decision at %d, applied %d)", r, call.ID, b.decided, r.applied)
		}
		b.commitCalls++
	case shard.PhaseRollback:
		if !decided || b.committed {
			w.Fail("%s: rollback of %s, which is not decided here (decision at %d, applied %d)", r, call.ID, b.decided, r.applied)
		}
	}
}

// served: a participant has answered.
func (g *group) served(call *shard.Call, d *shard.CallDone) {
	if d.Answer != shard.Indefinite {
		g.said[saying{call.ID, d.Answer}] = true
	}
	if d.Reason == sessions.OlderTerm {
		g.c.hit(OldTermRefused)
		if call.Term < g.oracle.Term() {
			g.c.hit(ZombieRefused)
		}
	}
}

// messaged judges a message before it is sent.
func (g *group) messaged(r *replica, m *shard.Message) {
	w := g.c.w
	if int(m.From) != g.shard || int(m.To) == g.shard || int(m.To) >= len(g.c.groups) {
		w.Fail("%s: a message %s from shard %d to %d", r, m.Kind, m.From, m.To)
	}
	st := r.sh.State()
	switch m.Kind {
	case shard.MessageGranted:
		if at, ok := g.claims[claim{m.ID, m.Request, m.Token}]; !ok || at > r.applied {
			w.Fail("%s: tells that request %d of %s is granted, which it is not", r, m.Request, m.ID)
		}
	case shard.MessageGiveWay:
		if at, ok := g.wounds[m.ID]; !ok || at > r.applied {
			w.Fail("%s: asks %s to give way, and nobody waits", r, m.ID)
		}
	case shard.MessageRelease:
		if b := g.books[m.ID]; b == nil || b.decided == 0 || b.decided > r.applied {
			if !st.Expired(m.ID) {
				w.Fail("%s: gives back what %s has, which is not decided here", r, m.ID)
			}
		}
	default:
	}
	if g.superseded(r) {
		g.c.hit(ZombieMessaged)
	}
}

// heard: a message has come to a leader.
func (g *group) heard(r *replica, m *shard.Message) {
	if m.Kind == shard.MessageGiveWay {
		g.gaveWay[m.ID] = true
		r.lead.asked[m.ID] = true
	}
}

// allAnswered: nobody waits at who does not lead.
func (g *group) allAnswered(r *replica) {
	if len(r.waiting) > 0 && !r.sh.Leading() {
		g.c.w.Fail("%s: %d requests wait for a shard that does not lead", r, len(r.waiting))
	}
}

// fresh: the leader that was asked has applied what it proposed after the question.
func (g *group) fresh(r *replica, q *request) bool {
	return q.lead != nil && q.lead == r.lead && r.lead.seen > q.ordinal
}

// told judges what a client is told.
func (g *group) told(r *replica, q *request, rep *shard.Reply) {
	w := g.c.w
	w.Mix(uint64(rep.Token))
	if g.superseded(r) && rep.Err == nil {
		g.c.hit(ZombieTold)
	}
	if rep.Err != nil {
		g.c.line("%s: tells %s of %s", r, rep.Err.Code, q.id)
		if b := g.books[q.id]; rep.Err.Code == reason.AlreadyCommitted && (b == nil || !b.committed || b.decided > r.applied) {
			w.Fail("%s: tells that %s is committed, which the log does not say", r, q.id)
		}
		if rep.Err.Code == reason.NotFound && !g.fresh(r, q) {
			w.Fail("%s: tells that %s is not found, without an entry proposed after the question", r, q.id)
		}
		return
	}
	if v := rep.Service; v != nil {
		g.c.line("%s: tells of service %s, generation %d, removed: %t", r, v.Service.Name, v.Service.Generation, v.Removed)
		return
	}
	if rep.View == nil {
		w.Fail("%s: an answer that says nothing", r)
	}
	t, b := &rep.View.Txn, g.books[rep.View.Txn.ID]
	g.c.line("%s: tells %s of %s", r, t.Status, q.id)
	switch {
	case t.ID != q.id:
		w.Fail("%s: asked for %s, tells of %s", r, q.id, t.ID)
	case b == nil:
		w.Fail("%s: tells %s of %s, of which the log knows nothing", r, t.Status, t.ID)
	case !t.Status.Decided():
		if b.begun == 0 || b.begun > r.applied {
			w.Fail("%s: tells %s of %s before its BEGIN is applied here", r, t.Status, t.ID)
		}
		if !g.fresh(r, q) {
			w.Fail("%s: tells %s of %s, without an entry proposed after the question", r, t.Status, t.ID)
		}
	case b.decided == 0 || b.decided > r.applied || b.committed != (t.Abort == nil):
		w.Fail("%s: tells %s of %s, which the log does not say (decision at %d, applied %d)", r, t.Status, t.ID, b.decided, r.applied)
	}
}

// ---- the end

// finalAudit: every replica holds the same, and it is what the log makes of nothing.
func (g *group) finalAudit() {
	w := g.c.w
	last := uint64(len(g.committed))
	if g.replay(last) != g.oracle.Hash() {
		w.Fail("shard %d: two replays of the log differ", g.shard)
	}
	if err := g.oracle.Check(); err != nil {
		w.Fail("shard %d: %v", g.shard, err)
	}
	l := g.leader()
	for _, id := range append(l.config().others(l.n.id), l.n.id) {
		r := g.c.nodes[id].reps[g.shard]
		if r.applied != last || r.sh.State().Hash() != g.oracle.Hash() {
			w.Fail("%s: is not what the log says in the end", r)
		}
		if n := len(r.waiting); n > 0 && r != l {
			w.Fail("%s: %d requests wait at a follower", r, n)
		}
	}
	for id, b := range g.books { // order does not matter: any one fails the run
		if b.begun > 0 && !b.ended || b.decided == 0 && b.begun > 0 {
			w.Fail("shard %d: %s has not ended", g.shard, id)
		}
	}
}
