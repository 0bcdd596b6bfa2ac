package cluster

import (
	"bytes"
	"slices"
)

// The Raft of one replica, after Ongaro's thesis, with what hashicorp/raft adds: votes
// are refused while a leader is heard, a leader that hears no majority steps down, a
// candidate that is no voter, as far as the one asked knows, is not elected.

type role uint8

const (
	follower role = iota
	candidate
	leader
)

type recKind uint8

const (
	recNoop recKind = iota
	recData
	recConfig
)

// rec is an entry of the log.
type rec struct {
	term    uint64
	kind    recKind
	data    []byte
	config  *config
	by      *leadership // whose proposal it is
	ordinal uint64      // among those
	atUs    int64       // when that was made, by its clock
}

func (a *rec) same(b *rec) bool {
	return a.term == b.term && a.kind == b.kind && a.config == b.config && bytes.Equal(a.data, b.data)
}

// config is who takes part. It holds from when it is appended.
type config struct {
	voters, learners []int // nodes, sorted
}

func (c *config) votes(node int) bool { return c != nil && slices.Contains(c.voters, node) }

func (c *config) has(node int) bool {
	return c != nil && (slices.Contains(c.voters, node) || slices.Contains(c.learners, node))
}

func (c *config) others(node int) []int {
	var all []int
	for _, list := range [][]int{c.voters, c.learners} {
		for _, n := range list {
			if n != node {
				all = append(all, n)
			}
		}
	}
	return all
}

func (c *config) with(voter, learner int) *config {
	out := c.without(max(voter, learner))
	if voter >= 0 {
		out.voters = append(out.voters, voter)
	} else {
		out.learners = append(out.learners, learner)
	}
	slices.Sort(out.voters)
	slices.Sort(out.learners)
	return out
}

func (c *config) without(node int) *config {
	out := &config{}
	for _, n := range c.voters {
		if n != node {
			out.voters = append(out.voters, n)
		}
	}
	for _, n := range c.learners {
		if n != node {
			out.learners = append(out.learners, n)
		}
	}
	return out
}

// saved is a snapshot with what Raft must know of it.
type saved struct {
	index, term uint64
	config      *config
	configAt    uint64
	state       []byte // empty: nothing has been applied
}

type configAt struct {
	index  uint64
	config *config
}

// raft is the state of one replica. What is below the line is lost with the process.
type raft struct {
	term   uint64
	voted  int
	snap   saved
	log    []rec  // those behind first
	first  uint64 // index of the entry before log[0]
	firstT uint64 // its term
	synced uint64 // what a crash cannot take
	// ----
	syncing  uint64
	syncOn   bool
	acks     []ack // wait for a sync
	configs  []configAt
	role     role
	leader   int // -1: not known
	heardUs  int64
	dueUs    int64 // of the next election
	timerOn  bool
	commit   uint64
	votes    map[int]bool
	pre      bool // the votes are pre-votes
	next     map[int]uint64
	match    map[int]uint64
	ackedUs  map[int]int64
	transfer int64 // until when nothing is proposed
}

type ack struct {
	to    int
	term  uint64
	match uint64
}

func (r *raft) last() uint64 { return r.first + uint64(len(r.log)) }

func (r *raft) at(index uint64) *rec { return &r.log[index-r.first-1] }

func (r *raft) termAt(index uint64) uint64 {
	if index == r.first {
		return r.firstT
	}
	return r.at(index).term
}

func (r *raft) config() *config {
	if len(r.configs) == 0 {
		return nil
	}
	return r.configs[len(r.configs)-1].config
}

// configBefore is the latest configuration at an index.
func (r *raft) configBefore(index uint64) configAt {
	for i := len(r.configs) - 1; i >= 0; i-- {
		if r.configs[i].index <= index {
			return r.configs[i]
		}
	}
	return configAt{}
}

// ---- messages

type msgKind uint8

const (
	msgVote msgKind = iota
	msgVoted
	msgAppend
	msgAppended
	msgSnapshot
	msgElect // leadership is handed over
)

type raftMsg struct {
	kind              msgKind
	from              int
	term              uint64
	pre, transfer, ok bool
	index, logTerm    uint64 // last entry of a candidate; entry before; match
	commit            uint64
	entries           []rec
	snap              *saved
}

const (
	heartbeatUs = 60_000
	electionUs  = 250_000 // to twice that
)

func (r *replica) say(to int, m raftMsg) {
	m.from = r.n.id
	r.g.c.send(r.n, to, true, func(n *node) {
		if p := n.reps[r.g.shard]; p != nil && p.sh != nil {
			p.hear(&m)
		}
	})
}

func (r *replica) hear(m *raftMsg) {
	w := r.g.c.w
	switch m.kind {
	case msgVote:
		r.asked(m)
		return
	case msgVoted:
		if m.term > r.term && !m.ok {
			r.stepDown(m.term)
		}
		r.counted(m)
		return
	case msgElect:
		if m.term == r.term && r.role == follower && r.config().votes(r.n.id) {
			r.campaign(false, true)
		}
		return
	case msgAppend, msgAppended, msgSnapshot:
	}
	if m.term > r.term {
		r.stepDown(m.term)
	}
	switch m.kind {
	case msgAppend, msgSnapshot:
		if m.term < r.term {
			r.say(m.from, raftMsg{kind: msgAppended, term: r.term})
			return
		}
		if r.role == leader {
			w.Fail("%s: two leaders of term %d", r, r.term)
		}
		if r.role == candidate {
			r.stepDown(m.term)
		}
		r.leader, r.heardUs = m.from, w.NowUs()
		r.n.belief[r.g.shard] = m.from
		r.postpone()
		if m.kind == msgSnapshot {
			r.install(m)
		} else {
			r.take(m)
		}
	case msgAppended:
		r.acknowledged(m)
	case msgVote, msgVoted, msgElect:
	}
}

// ---- elections

// postpone sets the next election.
func (r *replica) postpone() {
	w := r.g.c.w
	r.dueUs = w.NowUs() + electionUs + w.Rand().Int64N(electionUs)
	if r.timerOn {
		return
	}
	r.timerOn = true
	r.n.later(r.dueUs-w.NowUs(), true, r.electionTimer)
}

func (r *replica) electionTimer() {
	w := r.g.c.w
	if r.sh == nil {
		return
	}
	r.timerOn = false
	switch {
	case r.role == leader:
		r.postpone()
	case w.NowUs() < r.dueUs:
		r.timerOn = true
		r.n.later(r.dueUs-w.NowUs(), true, r.electionTimer)
	case !r.config().votes(r.n.id):
		r.leader = -1
		r.postpone()
	default:
		r.leader = -1
		r.campaign(r.g.c.opt.PreVote, false)
		r.postpone()
	}
}

func (r *replica) campaign(pre, transfer bool) {
	c := r.g.c
	r.role, r.pre, r.votes = candidate, pre, map[int]bool{r.n.id: true}
	term := r.term + 1
	if !pre {
		r.term, r.voted, r.leader = term, r.n.id, -1
		c.w.Mix(term)
	}
	for _, to := range r.config().voters {
		if to != r.n.id {
			r.say(to, raftMsg{kind: msgVote, term: term, pre: pre, transfer: transfer, index: r.last(), logTerm: r.termAt(r.last())})
		}
	}
	r.tally()
}

// asked is asked for a vote.
func (r *replica) asked(m *raftMsg) {
	c := r.g.c
	grant := false
	newer := m.logTerm > r.termAt(r.last()) || m.logTerm == r.termAt(r.last()) && m.index >= r.last()
	heard := r.role == leader || r.leader >= 0 && r.leader != m.from && c.w.NowUs()-r.heardUs < electionUs
	switch {
	case r.config() != nil && !r.config().has(m.from): // a removed member is not heard
		c.hit(RemovedNotHeard)
	case r.config() != nil && !r.config().votes(m.from): // as hashicorp/raft 1.8 does
		c.hit(NonVoterNotElected)
		if !m.pre && m.term > r.term {
			r.stepDown(m.term)
		}
	case m.pre:
		grant = newer && m.term > r.term && !heard
		if heard && newer {
			c.hit(PreVoteRefused)
		}
	case heard && !m.transfer && c.opt.PreVote:
	default:
		if m.term > r.term {
			r.stepDown(m.term)
		}
		grant = newer && m.term == r.term && (r.voted < 0 || r.voted == m.from)
		if grant {
			r.voted = m.from
			r.postpone()
		}
	}
	term := r.term
	if grant {
		term = m.term
	}
	r.say(m.from, raftMsg{kind: msgVoted, term: term, pre: m.pre, ok: grant})
}

func (r *replica) counted(m *raftMsg) {
	want := r.term
	if r.pre {
		want++
	}
	if r.role != candidate || m.pre != r.pre || !m.ok || m.term != want {
		return
	}
	r.votes[m.from] = true
	r.tally()
}

func (r *replica) tally() {
	n := 0
	for _, v := range r.config().voters {
		if r.votes[v] {
			n++
		}
	}
	switch {
	case n <= len(r.config().voters)/2:
	case r.pre:
		r.campaign(false, false)
	default:
		r.win()
	}
}

func (r *replica) win() {
	c := r.g.c
	r.g.elected(r)
	r.role, r.leader = leader, r.n.id
	r.n.belief[r.g.shard] = r.n.id
	r.next, r.match, r.ackedUs, r.transfer = map[int]uint64{}, map[int]uint64{}, map[int]int64{}, 0
	for _, to := range r.config().others(r.n.id) {
		r.next[to], r.ackedUs[to] = r.last()+1, c.w.NowUs()
	}
	left := r.leftover
	r.leftover = nil
	r.appendRec(rec{kind: recNoop})
	for _, p := range left { // of an earlier leadership: the queue in front of the log still held it
		c.hit(ProposalDoubled)
		r.appendRec(p)
	}
	r.replicateAll()
	r.leadershipLater()
	r.beat(r.term)
}

// beat is a leader's heartbeat.
func (r *replica) beat(term uint64) {
	if r.sh == nil || r.role != leader || r.term != term {
		return
	}
	c := r.g.c
	if c.opt.Lease && !r.hearsMajority() {
		c.hit(LeaseLost)
		r.stepDown(r.term)
		return
	}
	if r.transfer > 0 && c.w.NowUs() > r.transfer {
		r.transfer = 0
	}
	r.replicateAll()
	r.n.later(heartbeatUs, true, func() { r.beat(term) })
}

func (r *replica) hearsMajority() bool {
	n := 0
	for _, v := range r.config().voters {
		if v == r.n.id || r.g.c.w.NowUs()-r.ackedUs[v] < 2*electionUs {
			n++
		}
	}
	return n > len(r.config().voters)/2
}

// stepDown follows, in this term or a later one.
func (r *replica) stepDown(term uint64) {
	if term > r.term {
		r.term, r.voted, r.leader = term, -1, -1
	}
	was := r.role
	r.role = follower
	r.votes = nil
	if was == leader {
		r.leader = -1
		r.deposed()
		r.leadershipLater()
	}
	r.postpone()
}

// handOver asks another voter to lead.
func (r *replica) handOver() {
	c := r.g.c
	if r.role != leader || r.transfer > 0 {
		return
	}
	var ready []int
	for _, v := range r.config().voters {
		if v != r.n.id && r.match[v] == r.last() {
			ready = append(ready, v)
		}
	}
	if len(ready) == 0 {
		return
	}
	c.hit(Transferred)
	r.transfer = c.w.NowUs() + 2*electionUs
	r.say(ready[c.w.Rand().IntN(len(ready))], raftMsg{kind: msgElect, term: r.term})
}

// ---- the log

// appendRec appends an entry as the leader.
func (r *replica) appendRec(e rec) {
	e.term = r.term
	r.log = append(r.log, e)
	r.appended(r.last(), &e)
	r.syncLater()
}

func (r *replica) appended(index uint64, e *rec) {
	if e.kind == recConfig {
		r.configs = append(r.configs, configAt{index, e.config})
		if r.role == leader {
			for _, to := range e.config.others(r.n.id) {
				if r.next[to] == 0 {
					r.next[to], r.ackedUs[to] = r.last(), r.g.c.w.NowUs()
				}
			}
		}
	}
}

func (r *replica) replicateAll() {
	for _, to := range r.config().others(r.n.id) {
		r.replicate(to)
	}
}

// maxAppend entries go in one message.
const maxAppend = 32

func (r *replica) replicate(to int) {
	next := r.next[to]
	if next <= r.first {
		s := r.snap
		r.say(to, raftMsg{kind: msgSnapshot, term: r.term, snap: &s, commit: r.commit})
		return
	}
	end := min(r.last(), next+maxAppend-1)
	m := raftMsg{kind: msgAppend, term: r.term, index: next - 1, logTerm: r.termAt(next - 1), commit: r.commit}
	if end >= next {
		m.entries = slices.Clone(r.log[next-r.first-1 : end-r.first])
		r.next[to] = end + 1 // as if it had arrived; a refusal tells otherwise
	}
	r.say(to, m)
}

// take takes a leader's entries.
func (r *replica) take(m *raftMsg) {
	refuse := func(hint uint64) {
		r.say(m.from, raftMsg{kind: msgAppended, term: r.term, index: hint})
	}
	prev, entries := m.index, m.entries
	if prev < r.first { // what a snapshot covers is there
		skip := min(r.first-prev, uint64(len(entries)))
		entries = entries[skip:]
		if prev += skip; prev < r.first {
			r.ackLater(m.from, prev)
			return
		}
	} else if prev > r.last() {
		refuse(r.last())
		return
	} else if r.termAt(prev) != m.logTerm {
		refuse(max(r.commit, prev-1-min(prev-1, uint64(r.g.c.w.Rand().IntN(4)))))
		return
	}
	for i := range entries {
		index := prev + uint64(i) + 1
		if index <= r.last() {
			if r.termAt(index) == entries[i].term {
				continue
			}
			r.truncate(index)
		}
		r.log = append(r.log, entries[i])
		r.appended(index, &entries[i])
	}
	match := prev + uint64(len(entries))
	r.syncLater()
	r.ackLater(m.from, match)
	r.commitTo(min(m.commit, match))
}

func (r *replica) truncate(from uint64) {
	c := r.g.c
	if from <= r.commit {
		c.w.Fail("%s: entry %d, which is committed, is overwritten", r, from)
	}
	c.hit(TailOverwritten)
	for i := from; i <= r.last(); i++ {
		r.g.overwritten(r.at(i))
	}
	r.log = slices.Clip(r.log[:from-r.first-1])
	r.synced, r.syncing = min(r.synced, from-1), min(r.syncing, from-1)
	for len(r.configs) > 0 && r.configs[len(r.configs)-1].index >= from {
		r.configs = r.configs[:len(r.configs)-1]
	}
}

func (r *replica) ackLater(to int, match uint64) {
	r.acks = append(r.acks, ack{to, r.term, match})
	r.flushAcks()
}

func (r *replica) flushAcks() {
	keep := r.acks[:0]
	for _, a := range r.acks {
		switch {
		case a.term != r.term: // it may have been overwritten since
		case a.match <= r.synced:
			r.say(a.to, raftMsg{kind: msgAppended, term: r.term, ok: true, index: a.match})
		default:
			keep = append(keep, a)
		}
	}
	r.acks = keep
}

// syncLater makes what is appended by now durable, in a while.
func (r *replica) syncLater() {
	c := r.g.c
	if r.syncOn || r.synced >= r.last() {
		return
	}
	r.syncOn, r.syncing = true, r.last()
	r.n.later(20+c.w.UpTo(c.opt.SyncUs), true, func() {
		if r.sh == nil {
			return
		}
		r.syncOn = false
		r.synced = max(r.synced, r.syncing)
		if r.role == leader {
			r.match[r.n.id] = r.synced
			r.advance()
		}
		r.flushAcks()
		r.syncLater()
	})
}

func (r *replica) acknowledged(m *raftMsg) {
	c := r.g.c
	if r.role != leader || m.term != r.term {
		return
	}
	to := m.from
	if _, known := r.next[to]; !known {
		return
	}
	r.ackedUs[to] = c.w.NowUs()
	if m.ok {
		r.match[to] = max(r.match[to], m.index)
		r.next[to] = max(r.next[to], m.index+1)
		r.advance()
		if r.sh != nil && r.role == leader && r.next[to] <= r.last() {
			r.replicate(to)
		}
		return
	}
	if hint := m.index + 1; hint < r.next[to] && hint > r.match[to] {
		r.next[to] = hint
		r.replicate(to)
	}
}

// advance commits what a majority has.
func (r *replica) advance() {
	voters := r.config().voters
	have := make([]uint64, 0, len(voters))
	for _, v := range voters {
		have = append(have, r.match[v])
	}
	slices.Sort(have)
	if index := have[(len(have)-1)/2]; index > r.commit && index > r.first && r.termAt(index) == r.term {
		r.commitTo(index)
		r.replicateAll()
		if !r.config().has(r.n.id) && r.configs[len(r.configs)-1].index <= r.commit {
			r.g.c.hit(LeaderRemoved)
			r.stepDown(r.term)
		}
	}
}

func (r *replica) commitTo(index uint64) {
	if index <= r.commit {
		return
	}
	from := r.commit
	r.commit = index
	for i := max(from, r.first) + 1; i <= index; i++ {
		r.g.committedAt(r, i, r.at(i))
	}
	r.applyLater()
}

// install takes a leader's snapshot.
func (r *replica) install(m *raftMsg) {
	c := r.g.c
	s := m.snap
	if s.index <= r.commit || s.index <= r.snap.index {
		r.ackLater(m.from, min(s.index, r.commit))
		return
	}
	r.g.holds(r, s.index, s.term)
	if s.index < r.last() && s.index > r.first && r.termAt(s.index) == s.term {
		r.log = slices.Clone(r.log[s.index-r.first:]) // the rest follows it
	} else {
		r.log = nil
	}
	r.snap, r.first, r.firstT = *s, s.index, s.term
	r.synced, r.syncing = max(min(r.synced, r.last()), s.index), max(min(r.syncing, r.last()), s.index)
	r.readConfigs()
	r.commit = s.index
	r.restoring = true
	c.hit(SnapshotSent)
	r.syncLater()
	r.ackLater(m.from, s.index)
	r.applyLater()
}

// readConfigs finds the configurations in what is kept.
func (r *raft) readConfigs() {
	r.configs = nil
	if r.snap.config != nil {
		r.configs = append(r.configs, configAt{r.snap.configAt, r.snap.config})
	}
	for i := range r.log {
		if index := r.first + uint64(i) + 1; r.log[i].kind == recConfig && index > r.snap.configAt {
			r.configs = append(r.configs, configAt{index, r.log[i].config})
		}
	}
}

// compact keeps a snapshot, and some entries before it for followers that are behind.
func (r *replica) compact(index uint64, state []byte) {
	if index <= r.snap.index || index < r.first {
		return
	}
	at := r.configBefore(index)
	r.snap = saved{index: index, term: r.termAt(index), config: at.config, configAt: at.index, state: state}
	keep := uint64(r.g.c.w.Rand().IntN(r.g.c.opt.Trailing + 1))
	first := max(r.first, index-min(index, keep))
	r.firstT = r.termAt(first)
	r.log = slices.Clone(r.log[first-r.first:])
	r.first = first
	if r.synced < index { // a snapshot is synced by itself, the entries before it are not needed
		r.synced = index
		r.syncing = max(r.syncing, index)
	}
	r.readConfigs()
}

// lose is what a crash does to the disk.
func (r *replica) lose() {
	c := r.g.c
	if loose := r.last() - r.synced; loose > 0 {
		kept := r.synced + uint64(c.w.Rand().IntN(int(loose)+1))
		if kept < r.last() {
			c.hit(UnsyncedLost)
		}
		r.log = slices.Clip(r.log[:kept-r.first])
	}
	d := raft{term: r.term, voted: r.voted, snap: r.snap, log: r.log, first: r.first, firstT: r.firstT}
	d.synced = d.last()
	d.leader = -1
	d.commit = d.snap.index
	r.raft = d
	r.readConfigs()
}

// ---- members

// change proposes the next configuration: one at a time, by a leader that has committed
// in its own term.
func (r *replica) change(to *config) bool {
	if !r.mayChange() || len(to.voters) == 0 {
		return false
	}
	r.appendRec(rec{kind: recConfig, config: to})
	r.replicateAll()
	r.advance() // what is there may be a majority of those who are left
	return true
}

func (r *replica) mayChange() bool {
	return r.role == leader && r.transfer == 0 && r.commit > 0 && r.commit >= r.first && r.termAt(r.commit) == r.term && r.configs[len(r.configs)-1].index <= r.commit
}
