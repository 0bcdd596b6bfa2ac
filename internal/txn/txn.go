// Package txn is the replicated machine of one shard: every replica applies the
// same committed entries in the same order and reaches the same state.
//
//	entry = header + commands     State.Apply(index, term, entry) -> effects
//
// Commands are decisions already taken by a leader (internal/shard); Apply checks
// those that may have been overtaken and ignores what came too late: the first
// terminal record of a transaction wins. Apply reads nothing but its own state
// and the command, and halts on a record it does not know.
//
// Life of a transaction:
//
//	        BEGIN              all locks granted             COMMIT                  last ACK
//	(none) -------> Active -----------------> Preparing -----------> Committing -----------> Committed
//	  |               | ABORT                   | ABORT
//	  |               v (nobody contacted)      v                    last ACK
//	  |            Aborted                   Aborting ------------------------> Aborted
//	  +-- ABORT(id): Aborted, so that a later BEGIN of that id is refused
//
// An interactive transaction begins with OPEN, stays Active through its ENLIST
// records - each takes locks, then adds operations to branches, some of them executed
// at once -, and becomes Preparing with SEAL: commit was asked.
//
// Whoever waits in a cycle is found when the cycle closes, as part of Apply: the
// youngest of it gives way.
//
// The decision is the first COMMIT or ABORT applied. Locks of a service are
// released when its branch has acknowledged (read-only: at the decision).
// A finished transaction is immutable, and is forgotten only by FORGET, which
// raises the watermark W to its timestamp: a BEGIN at or below W without a record
// is expired, so that a late retry never executes twice.
package txn

import (
	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txnid"
)

// Status is where a transaction stands.
type Status uint8

// The states of the diagram in the package comment.
const (
	Active     Status = iota + 1 // begun, waits for its locks; nobody contacted
	Preparing                    // every lock held; participants are asked
	Committing                   // decided, not every branch has acknowledged
	Committed                    // decided and ended
	Aborting
	Aborted
)

var statusNames = [...]string{Active: "active", Preparing: "preparing", Committing: "committing", Committed: "committed", Aborting: "aborting", Aborted: "aborted"}

func (s Status) String() string { return statusNames[s] }

// Decided reports whether the terminal record has been applied.
func (s Status) Decided() bool { return s >= Committing }

// Ended reports whether every branch has acknowledged.
func (s Status) Ended() bool { return s == Committed || s == Aborted }

// Fate is what the log knows of a branch.
type Fate uint8

// Fates. Votes are not logged: an open branch may or may not be prepared.
const (
	FateOpen             Fate = iota + 1 // undecided
	FateFinishing                        // decided; acknowledgement awaited
	FateDone                             // acknowledged
	FateReadOnly                         // voted read_only; ended in phase 1
	FateNeverContacted                   // the transaction aborted before anybody was asked
	FateHazardUnknown                    // acknowledged "I know nothing of it": sticky, alarmed
	FateHazardCommitted                  // rolled back by decision, but durably committed there
	FateHazardRolledBack                 // committed by decision, but durably rolled back there
)

var fateNames = [...]string{
	FateOpen: "open", FateFinishing: "finishing", FateDone: "done", FateReadOnly: "read_only", FateNeverContacted: "never_contacted",
	FateHazardUnknown: "hazard_unknown", FateHazardCommitted: "hazard_committed", FateHazardRolledBack: "hazard_rolled_back",
}

func (f Fate) String() string { return fateNames[f] }

// Hazard reports whether the participant ended otherwise than decided.
func (f Fate) Hazard() bool { return f >= FateHazardUnknown }

// Branch is the part of a transaction at one service.
type Branch struct {
	Service    string
	Generation uint64   // of the registration it is bound to
	Isolated   bool     // isolation participant: holds no locks here
	Ops        [][]byte // payloads; dropped at the decision
	Count      uint32   // of operations
	Digest     [32]byte // of the payloads, see participant contract
	Fate       Fate

	// Of an interactive transaction: payloads that are executed at once, before those
	// in Ops; and whether that may have begun. Digest and Count are the leader's to compute.
	Executed  [][]byte
	Contacted bool
}

// Abort says why.
type Abort struct {
	Reason  reason.Code
	Message string // at most MaxMessageBytes
	Service string // may be empty
}

// Step is what is remembered of a step of an interactive transaction until the
// decision.
type Step struct {
	Number uint32
	Digest [32]byte
	Ops    []StepOp
}

// StepOp is where an operation went: the branch, and its place in Executed or Ops.
type StepOp struct {
	Branch uint32
	Now    bool
	Index  uint32
}

// Txn is one transaction's record. Once Ended it is never modified: changes
// replace it, so that a snapshot may keep a pointer.
type Txn struct {
	ID          txnid.ID
	Digest      [32]byte // of the client's request
	NeverBegun  bool     // made by ABORT(id): there was no BEGIN
	Status      Status
	OnePhase    bool
	TimeoutMs   uint32
	Token       uint64 // the shard's grant counter at the grant; 0 before
	BeganMs     uint64 // log times, Unix ms
	GrantedMs   uint64
	DecidedMs   uint64
	EndedMs     uint64
	TraceParent string
	Abort       *Abort // with Aborting and Aborted
	Branches    []Branch
	Resolution  string // operator's note that closed a hazard

	// Of an interactive transaction.
	Interactive bool
	IdleMs      uint32
	AgeMs       uint64 // log time of the first try's begin: elders go first, the youngest is the victim
	Steps       []Step // until the decision
	StepPending bool   // the last step waits for its locks
	stepBytes   int    // payloads in all steps; derived
	locked      bool   // has a claim in the lock table: false without keys, and once ended

	Foreign []Foreign // what other shards keep of its locks
}

// Hazard reports whether some branch ended otherwise than decided.
func (t *Txn) Hazard() bool {
	for i := range t.Branches {
		if t.Branches[i].Fate.Hazard() {
			return true
		}
	}
	return false
}

// Service is a registration. Values are immutable: a change replaces them.
type Service struct {
	Name             string
	Generation       uint64 // identity
	PrepareURL       string
	CommitURL        string
	RollbackURL      string
	StatusURL        string
	ExecuteURL       string // empty: operations run with prepare only
	Partitions       uint32 // shards that share its keys; 0 and 1: one shard keeps them
	Resources        []string
	Capabilities     Capability
	Isolated         bool // isolation participant
	RequireKeys      bool
	MaxInFlight      uint32
	PrepareTimeoutMs uint32
	FinishTimeoutMs  uint32
	RegisteredMs     uint64
	UpdatedMs        uint64
	Draining         bool
}

// Capability is a set of what a participant can do.
type Capability uint8

// The capabilities of the contract.
const (
	OnePhase Capability = 1 << iota
	ReadOnly
	ListInDoubt
	Tombstone
)

// Limits of the record format. They are part of it: the decoder refuses more.
const (
	MaxBranches      = 1 << 12
	MaxOps           = 1 << 16
	MaxNeeds         = 1 << 16
	MaxSteps         = 1 << 12
	MaxStepBytes     = 16 << 20 // payloads of all steps of a transaction
	MaxMessageBytes  = 1 << 10
	MaxResources     = 1 << 10
	MaxServices      = 100_000
	MaxHazards       = 10_000  // open hazards kept outside the retention limits
	WatermarkLagMs   = 10_000  // W stays this far behind log time, so that ids made just now are never expired
	maxForgetPerStep = 1 << 12 // records forgotten by one FORGET
)

// State is one shard's replicated state. It is not safe for concurrent use.
type State struct {
	shard, shards uint32

	applied  uint64 // index of the last applied entry
	term     uint64 // of the last LEAD applied
	nowMs    uint64 // log time: never goes back
	cluster  [16]byte
	incarn   uint32
	booted   bool
	grants   uint64 // fencing counter
	level    uint32 // see Level
	w        uint64 // watermark, Unix ms of ids
	nextGen  uint64
	services map[string]*Service // the registry; shard 0 only
	served   map[string]*served  // what this shard knows of service generations
	txns     map[txnid.ID]*Txn
	live     int // not ended
	hazards  []txnid.ID
	done     doneQueue // ended, without open hazard, in order of their end
	locks    *lock.Table
	claims   map[txnid.ID]*Claim // of transactions of other homes
	liveHeap idHeap              // derived: ids that were live, for the lowest one

	// Shard 0 only: see member.go.
	members   map[string]*Member
	placement map[uint32][]string
	membersAt uint64 // index of the last change

	points   []point // not replicated, as the next: see verify.go
	diverged error

	registry uint64     // counts changes of the registry; not part of the replicated state
	woken    []txnid.ID // scratch
	eff      *[]Effect
}

// served is the shard's own knowledge of a service: rule 13.
type served struct {
	name       string
	generation uint64 // highest seen
	drained    bool   // takes no further BEGIN of this generation
	open       int    // transactions not ended with a branch here
}

// New returns the empty state of a shard among shards.
func New(shard, shards uint32) *State {
	return &State{
		shard: shard, shards: shards,
		services: map[string]*Service{},
		served:   map[string]*served{},
		txns:     map[txnid.ID]*Txn{},
		locks:    lock.NewTable(),
		claims:   map[txnid.ID]*Claim{},

		members:   map[string]*Member{},
		placement: map[uint32][]string{},
	}
}

// Get returns a transaction's record, or nil. The caller must not modify it.
func (s *State) Get(id txnid.ID) *Txn { return s.txns[id] }

// Service returns a registration, or nil.
func (s *State) Service(name string) *Service { return s.services[name] }

// RegistryVersion changes whenever the registry does; it means nothing elsewhere.
func (s *State) RegistryVersion() uint64 { return s.registry }

// OpenAt counts the transactions that have a branch at the service and have not ended.
func (s *State) OpenAt(service string) int {
	if v := s.served[service]; v != nil {
		return v.open
	}
	return 0
}

// Live counts the transactions that have not ended.
func (s *State) Live() int { return s.live }

// Done counts the retained transactions that have ended, open hazards apart.
func (s *State) Done() int { return s.done.len() }

// Hazards counts the open hazards.
func (s *State) Hazards() int { return len(s.hazards) }

// OldestDoneMs is the end time of the longest retained transaction; 0 if there is none.
func (s *State) OldestDoneMs() uint64 {
	if t := s.done.front(); t != nil {
		return t.EndedMs
	}
	return 0
}

// Watermark is W in Unix ms: an id at or below it without a record is expired.
func (s *State) Watermark() uint64 { return s.w }

// Expired reports whether the id has no record and can never get one.
func (s *State) Expired(id txnid.ID) bool {
	return id.UnixMs() <= s.w && s.txns[id] == nil && !mutant.On("expired-id-begins")
}

// Forgotten is F: every id of this shard below it has ended and can never begin
// again, so participants may delete what they keep for it. Zero: nothing yet.
func (s *State) Forgotten() txnid.ID {
	if s.w == 0 {
		return txnid.ID{}
	}
	f := txnid.Floor(s.w + 1)
	if mutant.On("forgotten-below-now") {
		return txnid.Floor(s.nowMs)
	}
	for len(s.liveHeap) > 0 {
		low := s.liveHeap[0]
		if t := s.txns[low]; t == nil || t.Status.Ended() {
			s.liveHeap.pop()
			continue
		}
		if low.Less(f) {
			f = low
		}
		break
	}
	return f
}

// Applied is the index of the last applied entry; Term the term of the last LEAD.
func (s *State) Applied() uint64 { return s.applied }

// Term is the term of the last LEAD applied.
func (s *State) Term() uint64 { return s.term }

// NowMs is log time.
func (s *State) NowMs() uint64 { return s.nowMs }

// Level is the highest level that the log has reached.
func (s *State) Level() uint32 { return s.level }

// Grants is the fencing counter.
func (s *State) Grants() uint64 { return s.grants }

// Booted reports whether BOOT has been applied.
func (s *State) Booted() bool { return s.booted }

// Cluster is the cluster's id and incarnation.
func (s *State) Cluster() ([16]byte, uint32) { return s.cluster, s.incarn }

// Waiting returns the outstanding lock request of an active transaction and at
// most limit of those that stand in its way.
func (s *State) Waiting(id txnid.ID, limit int) (need lock.Need, blockers []txnid.ID, ok bool) {
	return s.locks.Waiting(id, limit)
}

// Contended reports whether somebody waits for a key that the transaction holds at the service.
func (s *State) Contended(id txnid.ID, service string) bool { return s.locks.Contended(id, service) }

// Locks lists nodes of the lock table, as lock.Table.List does.
func (s *State) Locks(from string, limit int, match func(key string, waiters int) bool) []lock.Node {
	return s.locks.List(from, limit, match)
}

// LockQueue counts the transactions that wait for one node.
func (s *State) LockQueue(key string) int { return s.locks.Queue(key) }

// LockElders counts the transactions that wait for one node and are older than this one.
func (s *State) LockElders(key string, id txnid.ID, ageMs uint64) int {
	return s.locks.Elders(key, id, ageMs)
}

// LockInUse reports whether somebody holds or waits for a key of a service here.
func (s *State) LockInUse(service string) bool { return s.locks.InUse(service) }

// HoldsLock reports whether a transaction holds a node here, in whatever mode.
func (s *State) HoldsLock(id txnid.ID, key string) bool { return s.locks.Holds(id, key) }

// LockWaiters counts the transactions that wait for a lock.
func (s *State) LockWaiters() int { return s.locks.Waiters() }

// LongestLockQueue counts those that wait at the node where most do.
func (s *State) LongestLockQueue() int { return s.locks.LongestQueue() }

// LockOwners counts the transactions that hold or wait for a lock.
func (s *State) LockOwners() int { return s.locks.Len() }

// FencingToken is (incarnation, service generation, grant counter) in fixed-width
// hexadecimal: of two transactions that held a key in conflict, the later has the
// greater text.
func (s *State) FencingToken(t *Txn, b *Branch) string {
	const digits = "0123456789abcdef"
	var buf [8 + 1 + 16 + 1 + 16]byte
	put := func(at, width int, v uint64) {
		for i := width - 1; i >= 0; i-- {
			buf[at+i] = digits[v&15]
			v >>= 4
		}
	}
	put(0, 8, uint64(s.incarn))
	buf[8] = '-'
	put(9, 16, b.Generation)
	buf[25] = '-'
	put(26, 16, t.Token)
	return string(buf[:])
}

// doneQueue is a FIFO of ended transactions.
type doneQueue struct {
	items []*Txn
	head  int
}

func (q *doneQueue) len() int { return len(q.items) - q.head }

func (q *doneQueue) push(t *Txn) { q.items = append(q.items, t) }

func (q *doneQueue) front() *Txn {
	if q.len() == 0 {
		return nil
	}
	return q.items[q.head]
}

func (q *doneQueue) pop() *Txn {
	t := q.items[q.head]
	q.items[q.head] = nil
	q.head++
	if q.head > 1024 && q.head*2 > len(q.items) {
		// A fresh slice: a snapshot may still read the old one.
		q.items = append([]*Txn(nil), q.items[q.head:]...)
		q.head = 0
	}
	return t
}

// idHeap is a binary min-heap.
type idHeap []txnid.ID

func (h *idHeap) push(id txnid.ID) {
	*h = append(*h, id)
	a := *h
	for i := len(a) - 1; i > 0; {
		up := (i - 1) / 2
		if !a[i].Less(a[up]) {
			break
		}
		a[i], a[up] = a[up], a[i]
		i = up
	}
}

func (h *idHeap) pop() {
	a := *h
	last := len(a) - 1
	a[0] = a[last]
	a = a[:last]
	*h = a
	for i := 0; ; {
		l := 2*i + 1
		if l >= last {
			return
		}
		if r := l + 1; r < last && a[r].Less(a[l]) {
			l = r
		}
		if !a[l].Less(a[i]) {
			return
		}
		a[i], a[l] = a[l], a[i]
		i = l
	}
}
