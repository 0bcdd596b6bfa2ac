// Package shard is what the leader of one shard does next. It drives the
// replicated machine of package txn and keeps beside it only what can be derived
// again: votes, attempts, timers, who waits for an answer.
//
//	Step(event) --> Ready{Entries, Calls, Replies, Notices} --> driver
//	                   | proposed, committed
//	Apply(entry) <-----+            every replica applies; a leader also acts
//
// The driver (internal/node, or internal/sim) calls Step for every input and
// Apply for every committed entry, then takes Ready, acts on it and calls Advance.
// Time is an input. There is no goroutine, clock, lock or randomness in here.
//
// What must hold:
//   - Nothing leaves (Calls, Replies) before the record that justifies it has been
//     applied here: effects, not proposals, produce calls and replies.
//   - A leader leads once it has applied the LEAD record of its own term; every
//     entry names the term it was computed in and is ignored in another.
//   - Everything volatile is derived again from the replicated state by resume.
//   - A transaction that may be prepared is ended only by its votes, its timeout or
//     its client; a one-phase transaction only by its participant's answer.
package shard

import (
	"bytes"
	"slices"
	"strconv"

	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// Config holds what does not change while a shard runs.
type Config struct {
	Shard, Shards uint32
	Node          string
	Cluster       [16]byte // written by the first leader of a new cluster
	Incarnation   uint32

	MaxOpenTransactions   int    // not ended; more are refused
	MaxKeyWaiters         int    // transactions that wait for one key; more are refused, unless they are older
	MaxLockWaitUs         int64  // of a one-shot transaction's locks, or of one step's, before it is aborted; 0: no limit but its timeout
	MaxWaitingRequests    int    // requests that wait for an answer; as many besides of those that end transactions
	MaxAppendsInFlight    int    // entries proposed and not yet applied
	OverlapCommands       int    // an entry with fewer waits until those before it are applied
	MaxEntryBytes         int    // an entry is closed when it has this many; one command may exceed it
	MaxPendingBytes       int    // commands that wait for a free append; new transactions are refused beyond
	MaxResultBytes        int    // participants' results kept for ended transactions
	RetainedTransactions  int    // ended transactions kept
	RetentionMs           uint64 // how long they are kept
	DefaultTimeoutMs      uint32
	AckLingerUs           int64 // an acknowledgement nobody waits for may be this late in the log
	PrepareBackoffUs      int64 // first pause before a prepare is repeated; doubles
	MaxPrepareBackoffUs   int64
	FinishBackoffUs       int64 // the same for commit and rollback
	MaxFinishBackoffUs    int64
	MaxIDAheadMs          uint64 // ids further in the future are refused
	ForgetBatch           int    // retention works in steps of this many
	RecoveryWakeups       int    // branches retried at once when their service answers again
	ForgetCheckIntervalUs int64
	HashCheckIntervalUs   int64  // how often replicas compare their states; 0: never
	HashCheckEntries      uint64 // but not before as many entries
	ResendUs              int64  // a message between shards without an answer is sent again after this
	SweepUs               int64  // how often some locks of other shards' transactions are asked about
}

// DefaultConfig returns the documented defaults.
func DefaultConfig() Config {
	return Config{
		Shards:                1,
		MaxOpenTransactions:   20_000,
		MaxKeyWaiters:         1_000,
		MaxWaitingRequests:    50_000,
		MaxAppendsInFlight:    3,
		OverlapCommands:       16,
		MaxEntryBytes:         256 << 10,
		MaxPendingBytes:       64 << 20,
		MaxResultBytes:        32 << 20,
		RetainedTransactions:  100_000,
		RetentionMs:           10 * 60 * 1000,
		DefaultTimeoutMs:      10_000,
		AckLingerUs:           20_000,
		PrepareBackoffUs:      20_000,
		MaxPrepareBackoffUs:   1_000_000,
		FinishBackoffUs:       50_000,
		MaxFinishBackoffUs:    10_000_000,
		MaxIDAheadMs:          60_000,
		ForgetBatch:           256,
		RecoveryWakeups:       2,
		ForgetCheckIntervalUs: 1_000_000,
		HashCheckIntervalUs:   60_000_000,
		HashCheckEntries:      100,
		ResendUs:              200_000,
		SweepUs:               5_000_000,
	}
}

// Shard is the leader's memory of one shard. It is not safe for concurrent use.
type Shard struct {
	cfg     Config
	st      *txn.State
	now     Time
	term    uint64 // of the LEAD proposed or applied
	leading bool   // LEAD of term has been applied

	runs     map[txnid.ID]*run       // open transactions; leader only
	pending  map[txnid.ID][]waiter   // requests whose record is not applied yet
	steps    map[txnid.ID][]waiter   // steps and seals whose record is not applied yet, in its order
	proposed map[txnid.ID]struct{}   // a BEGIN or ABORT(id) of an unknown id is on its way
	barriers []barrier               // reads that wait for an entry proposed after them
	services map[string][]svcWaiter  // registry requests in the order of their records
	removals map[string][]Token      // deletions that wait until the service is drained
	removing map[string]struct{}     // a REMOVE is on its way
	drains   map[string]struct{}     // services that are to be removed
	backoff  map[string]*backoffList // branches in backoff, by service

	memberWaiters []Token // requests on members and placement, in the order of their records
	kept          keptResults
	deadlocks     []Deadlock // the latest, oldest first
	foreign       foreign
	waiting       int  // requests that wait for an answer
	lowSpace      bool // the disk is nearly full; not forgotten with leadership
	forgetUs      int64
	verifyUs      int64
	forgetOut     bool // a FORGET is on its way

	blockedMs map[txnid.ID]uint64 // log time from which on who waits for locks here has been waiting

	// Commands that wait for a free append: sealed entries, the open one, and lazy
	// acknowledgements that ride on whatever is proposed next.
	sealed       [][]byte
	sealedCount  []int
	open         []byte
	openCount    int
	lazy         []byte
	lazyCount    int
	lazySinceUs  int64
	lazyUrgent   bool
	wantEntry    bool // a barrier needs an entry, if only an empty one
	pendingBytes int
	inFlight     [][]byte // proposed and not applied, in the order of the log
	mine         bool     // what is being applied is the first of them
	proposedSeq  uint64
	appliedSeq   uint64
	leadEntry    []byte // to be proposed
	leadProposed []byte // the LEAD of this leadership; nil: leads, or was told to follow
	leadTry      uint64 // how many LEADs of this term came before
	attemptFloor uint32 // attempts of earlier leaderships of this term, whose answers may come yet: none of this one is as low
	topAttempt   uint32 // of this term
	allKnow      uint32 // the level that every member knows, at most this binary's; 0: not to lead
	raised       uint32 // the level that this leadership has proposed

	timers  timerHeap
	effects []txn.Effect
	out     Ready
}

// run is the leader's memory of an open transaction.
type run struct {
	t          *txn.Txn
	branches   []branchRun
	votes      int  // yes and read_only
	deciding   bool // a decision of this leader is proposed; it may come too late (decisionIgnored)
	onePhase   bool // the participant has committed in one phase: known before it is recorded
	deadlineUs int64
	lockUs     int64 // when its wait for locks is too long; 0: it never is
	beganUs    int64
	decidedUs  int64
	waiters    []waiter

	// Of an interactive transaction.
	touchedUs   int64     // the client was heard, or an answer to it was given up
	idleUs      int64     // when its silence is looked at next
	held        []*Enlist // steps that wait until the one before them has its locks
	resultBytes int       // of stepResults, all branches

	parts map[uint32]*part // what it has at other shards
}

// branchRun is the leader's memory of a branch.
type branchRun struct {
	phase     Phase
	attempt   uint32 // of the last call, over all phases
	calling   bool
	acked     bool // acknowledgement on its way into the log
	listed    bool // in the service's backoff list
	vote      AnswerKind
	failures  uint32 // indefinite answers in a row
	retryAtUs int64  // 0: no retry is due
	lastError string
	results   [][]byte

	// Of an interactive transaction: how many of its operations that run at once the
	// participant has executed as far as this leader knows, those with the ones that it
	// is asked for now, and those that there were when this leader took over.
	executed, asked, inherited int
	digest                     [32]byte // of those executed
	stepResults                [][]byte // of those executed
	execution                  string   // the participant's name for its open local transaction
}

func (b *branchRun) saidYes() bool { return b.vote == VoteYes || b.vote == VoteReadOnly }

type waitKind uint8

const (
	waitSubmit waitKind = iota + 1
	waitGet
	waitRollback
	waitStep
	waitSeal
)

type waiter struct {
	token    Token
	kind     waitKind
	mode     WaitMode
	digest   [32]byte
	repeated bool
	step     uint32
	taken    bool // a step whose record has been seen
}

type barrier struct {
	token    Token
	id       txnid.ID
	seq      uint64
	then     waiter // who waits; of no kind: who asks for the state
	inquirer uint32 // one more than the shard that asks; 0: a client does
}

type svcWaiter struct {
	token Token
	drain bool
}

// New returns a shard that follows.
func New(cfg Config) *Shard {
	s := &Shard{cfg: cfg, st: txn.New(cfg.Shard, cfg.Shards)}
	s.reset()
	return s
}

// Identify sets what the first leader of a new cluster writes into BOOT. It must
// be called before the first Lead.
func (s *Shard) Identify(cluster [16]byte, incarnation uint32) {
	s.cfg.Cluster, s.cfg.Incarnation = cluster, incarnation
}

// State is the replicated state, to read.
func (s *Shard) State() *txn.State { return s.st }

// Leading reports whether this leader has applied its LEAD.
func (s *Shard) Leading() bool { return s.leading }

// Restore replaces the replicated state by a snapshot's. Who leads no more need not have
// been told yet: whoever waits is answered as by Follow.
func (s *Shard) Restore(snapshot []byte) error {
	st, err := txn.Restore(s.cfg.Shard, s.cfg.Shards, snapshot)
	if err != nil {
		return err
	}
	if mutant.On("restore-forgets-waiters") {
		s.reset()
		s.leading = false
	}
	s.follow()
	s.st = st
	return nil
}

// reset forgets everything that is derived.
func (s *Shard) reset() {
	s.runs = map[txnid.ID]*run{}
	s.pending = map[txnid.ID][]waiter{}
	s.steps = map[txnid.ID][]waiter{}
	s.proposed = map[txnid.ID]struct{}{}
	s.services = map[string][]svcWaiter{}
	s.removals = map[string][]Token{}
	s.removing, s.drains = map[string]struct{}{}, map[string]struct{}{}
	s.backoff = map[string]*backoffList{}
	s.barriers, s.memberWaiters = nil, nil
	s.blockedMs = map[txnid.ID]uint64{}
	s.kept = keptResults{byID: map[txnid.ID]keptResult{}}
	s.waiting, s.forgetOut = 0, false
	s.sealed, s.sealedCount, s.open, s.openCount = nil, nil, nil, 0
	s.lazy, s.lazyCount, s.lazyUrgent = nil, 0, false
	s.wantEntry, s.pendingBytes, s.inFlight, s.mine = false, 0, nil, false
	s.proposedSeq, s.appliedSeq = 0, 0
	s.leadEntry, s.leadProposed = nil, nil
	s.allKnow, s.raised = 0, 0
	s.timers = nil
	s.foreign = newForeign()
}

// Step takes one event.
func (s *Shard) Step(now Time, ev Event) {
	s.setNow(now)
	switch ev := ev.(type) {
	case *Submit:
		s.submit(ev)
	case *Enlist:
		s.enlist(ev)
	case *Seal:
		s.sealTxn(ev)
	case *Heartbeat:
		s.heartbeat(ev)
	case *Rollback:
		s.rollback(ev)
	case *Get:
		s.get(ev)
	case *Resolve:
		s.resolve(ev)
	case *PutService:
		s.putService(ev)
	case *DeleteService:
		s.deleteService(ev)
	case *PutMember:
		s.putMember(ev)
	case *RemoveMember:
		s.removeMember(ev)
	case *Place:
		s.place(ev)
	case *Cancel:
		s.cancel(ev)
	case *CallDone:
		s.callDone(ev)
	case *Message:
		s.message(ev)
	case *ServiceBack:
		s.wakeService(ev.Name, 8*s.cfg.RecoveryWakeups)
	case *Hashed:
		s.hashed(ev)
	case *Lead:
		s.lead(ev.Term, ev.Level)
	case *RaiseLevel:
		s.raiseLevel(ev.Level)
	case *Space:
		s.lowSpace = ev.Low
	case *Follow:
		s.follow()
	case *Tick:
	}
	s.fireTimers()
}

// Apply applies one committed entry. An error means that this replica must halt. A leader
// that misses a proposal of its own follows, and can be told to lead again.
func (s *Shard) Apply(now Time, index, term uint64, entry []byte) error {
	s.setNow(now)
	s.effects = s.effects[:0]
	if err := s.st.Apply(index, term, entry, &s.effects); err != nil {
		return err
	}
	if s.leading && term > s.term { // another leader was elected, and the log has yet to say so
		s.follow()
	}
	s.mine = s.leading && s.arrived(entry)
	led := s.leadProposed != nil && term == s.term && bytes.Equal(entry, s.leadProposed)
	for i := range s.effects {
		s.effect(&s.effects[i])
	}
	if led {
		s.leadProposed, s.leading = nil, true
		s.resume()
	}
	if s.mine {
		s.mine = false
		s.appliedSeq++
		s.passBarriers()
	}
	clear(s.effects)
	return nil
}

// arrived reports whether an entry of the log is the proposal whose turn it is. If it is a
// later one, those before it never got there: what became of whoever waits nobody can say.
func (s *Shard) arrived(entry []byte) bool {
	i := slices.IndexFunc(s.inFlight, func(e []byte) bool { return bytes.Equal(e, entry) })
	switch {
	case i < 0: // of an earlier leader, or the log has it twice
		return false
	case i > 0:
		s.follow()
		return false
	}
	s.inFlight = slices.Delete(s.inFlight, 0, 1)
	return true
}

// Ready returns what is to be done. The caller acts on it, then calls Advance.
func (s *Shard) Ready() *Ready {
	s.fillEntries()
	s.out.WakeAtUs = s.nextWakeUs()
	return &s.out
}

// Advance says that the last Ready has been taken over.
func (s *Shard) Advance() {
	clear(s.out.Entries)
	clear(s.out.Calls)
	clear(s.out.Replies)
	clear(s.out.Notices)
	clear(s.out.Messages)
	clear(s.out.Captures)
	s.out = Ready{Entries: s.out.Entries[:0], Calls: s.out.Calls[:0], Messages: s.out.Messages[:0], Replies: s.out.Replies[:0], Notices: s.out.Notices[:0], Captures: s.out.Captures[:0]}
}

func (s *Shard) setNow(now Time) {
	s.now.MonoUs = max(s.now.MonoUs, now.MonoUs)
	s.now.WallMs = now.WallMs
}

func (s *Shard) notice(n Notice) { s.out.Notices = append(s.out.Notices, n) }

// lead proposes LEAD; nothing else is proposed before it is applied.
func (s *Shard) lead(term uint64, level uint32) {
	s.follow()
	if level == 0 {
		level = txn.Level
	}
	s.allKnow = min(level, txn.Level)
	s.leadTry++
	s.attemptFloor = s.topAttempt
	if term != s.term {
		s.leadTry, s.attemptFloor, s.topAttempt = 0, 0, 0
	}
	s.term = term
	entry := make([]byte, txn.HeaderBytes, 128)
	if !s.st.Booted() {
		entry = txn.AppendBoot(entry, txn.Boot{Cluster: s.cfg.Cluster, Incarnation: s.cfg.Incarnation, Shard: s.cfg.Shard, Shards: s.cfg.Shards})
	}
	// A leader that was given up in this term may have a LEAD on its way: this one
	// must not be taken for it, nor it for this one.
	node := s.cfg.Node
	if s.leadTry > 0 {
		node += " try " + strconv.FormatUint(s.leadTry+1, 10)
	}
	s.leadEntry = txn.AppendLead(entry, txn.Lead{Node: node})
	if s.raised = s.allKnow; s.st.Level() < s.raised {
		s.leadEntry = txn.AppendLevel(s.leadEntry, s.raised)
	}
	if mutant.On("leading-before-lead-applied") {
		s.leading = true
		s.resume()
	}
}

// follow gives up leadership: whoever waits is told to ask again.
func (s *Shard) follow() {
	if s.leading {
		s.notice(Notice{Kind: NoticeFollowing})
	}
	s.leading = false
	gone := func(token Token, id string) {
		err := reason.New(reason.OutcomeUnknown, "ask for the transaction by its id, or send the same request again: it is executed once",
			"leadership changed while the request was under way")
		err.Details = map[string]string{"id": id}
		err.RetryAfterMs = 100
		s.reply(Reply{Token: token, Err: err})
	}
	for _, id := range sortedIDs(s.pending) {
		for _, w := range s.pending[id] {
			gone(w.token, id.String())
		}
	}
	for _, id := range sortedIDs(s.steps) {
		for _, w := range s.steps[id] {
			if w.token != 0 { // else the wait was given up, and answered
				gone(w.token, id.String())
			}
		}
	}
	for _, id := range sortedIDs(s.runs) {
		for _, w := range s.runs[id].waiters {
			gone(w.token, id.String())
		}
		for _, ev := range s.runs[id].held {
			gone(ev.Token, id.String())
		}
	}
	for _, b := range s.barriers {
		if b.inquirer == 0 {
			gone(b.token, b.id.String())
		}
	}
	for _, name := range sortedNames(s.services) {
		for _, w := range s.services[name] {
			if w.token != 0 { // else the wait was given up, and answered
				gone(w.token, "")
			}
		}
	}
	for _, token := range s.memberWaiters {
		if token != 0 {
			gone(token, "")
		}
	}
	for _, name := range sortedNames(s.removals) {
		for _, token := range s.removals[name] {
			gone(token, "")
		}
	}
	s.reset()
}

// resume derives everything volatile from the replicated state: rule 2.
func (s *Shard) resume() {
	live := s.st.LiveIDs()
	for _, id := range live {
		r := s.newRun(s.st.Get(id))
		if !r.t.Status.Decided() && mutant.On("failover-aborts-open") {
			s.proposeAbort(r, txn.AbortCmd{Reason: reason.Timeout, Message: "the leader has changed", Refused: r.t.OnePhase})
			continue
		}
		switch r.t.Status {
		case txn.Active:
			s.startDeadline(r)
			s.startLockWait(r)
			if r.t.Interactive {
				s.startIdle(r)
				s.executeAll(r)
			}
		case txn.Preparing:
			s.startDeadline(r)
			s.prepareAll(r)
		case txn.Committing, txn.Aborting:
			if !mutant.On("failover-forgets-decided") {
				s.finishAll(r)
			}
		case txn.Committed, txn.Aborted: // not among the live
		}
	}
	s.raiseLevel(s.allKnow)
	s.resumeForeign(live)
	for _, v := range s.st.Services() {
		s.removeIfDrained(v.Name)
	}
	s.forgetUs = s.now.MonoUs + s.cfg.ForgetCheckIntervalUs
	s.verifyUs = s.now.MonoUs + s.cfg.HashCheckIntervalUs
	s.notice(Notice{Kind: NoticeLeading, N: len(live)})
}

func (s *Shard) newRun(t *txn.Txn) *run {
	r := &run{t: t, branches: make([]branchRun, len(t.Branches)), beganUs: s.now.MonoUs, decidedUs: s.now.MonoUs}
	s.runs[t.ID] = r
	return r
}

func (s *Shard) startDeadline(r *run) {
	r.deadlineUs = s.now.MonoUs + int64(r.t.TimeoutMs)*1000
	if mutant.On("failover-keeps-deadline") {
		r.deadlineUs -= int64(s.st.NowMs()-r.t.BeganMs) * 1000
	}
	s.startTimer(timer{atUs: r.deadlineUs, id: r.t.ID, branch: noBranch})
}

// startLockWait is called when a transaction or a step asks for its locks.
func (s *Shard) startLockWait(r *run) {
	if s.cfg.MaxLockWaitUs == 0 || !r.waitsForLocks() {
		return
	}
	r.lockUs = s.now.MonoUs + s.cfg.MaxLockWaitUs
	if r.lockUs < r.deadlineUs {
		s.startTimer(timer{atUs: r.lockUs, id: r.t.ID, branch: lockBranch})
	}
}

func (r *run) waitsForLocks() bool {
	return r.t.Status == txn.Active && (!r.t.Interactive || r.t.StepPending)
}
