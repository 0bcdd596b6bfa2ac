package node

import (
	"context"
	"time"

	"github.com/assent-tx/assent/internal/reason"
)

// This file is what the server sees of a node: requests and answers as values.
// Every error a node returns is, or wraps, a *reason.Error.

// WaitMode says when a submission is answered.
type WaitMode uint8

// The wait modes of the API.
const (
	WaitDefault   WaitMode = iota // decided; completed where a service has isolation participant
	WaitDecided                   // at the decision
	WaitCompleted                 // when every branch has acknowledged
	WaitNone                      // as soon as the transaction is durable
)

// LockMode of a declared key.
type LockMode uint8

// The lock modes of the API.
const (
	Exclusive LockMode = iota // also when absent
	Shared
	Update // read now, will write: excludes other updates, becomes exclusive later
)

// WholeService is the key that stands for a service itself.
const WholeService = "/"

// DeclaredLock is a key an operation uses, relative to its service.
type DeclaredLock struct {
	Key  string
	Mode LockMode
}

// Operation is opaque work for one service.
type Operation struct {
	Service string
	Payload []byte // any JSON value; compacted by the server, so that equal requests have equal bytes
	Locks   []DeclaredLock
}

// Submission is a one-shot transaction.
type Submission struct {
	ID          string // UUIDv7; empty: made by the node, and the request is not safely repeatable
	Operations  []Operation
	Timeout     time.Duration // bounds phase 1; zero: the default
	Wait        WaitMode
	TraceParent string // W3C traceparent passed on to participants; may be empty

	// Refusal is the limit of this server that new work of this size exceeds; nil:
	// none. A repeated submission is answered all the same.
	Refusal *reason.Error
}

// Beginning is an interactive transaction to begin.
type Beginning struct {
	ID          string        // UUIDv7; empty: made by the node, and the request is not safely repeatable
	Timeout     time.Duration // until commit is decided; zero: the default
	IdleTimeout time.Duration // of the client's silence; zero: the default
	RetryOf     string        // an aborted transaction that this one tries again: it keeps that one's age; may be empty
	TraceParent string
}

// Step is further work of an interactive transaction: its locks first, then its
// operations.
type Step struct {
	Number     uint32 // chosen by the client, 1 to 2^31-1: the same number with the same work is done once
	Key        string // instead of Number, for who does not know which numbers are taken
	Operations []StepOperation
	Locks      []ServiceLock

	// Refusal is the limit of this server that new work of this size exceeds; nil: none.
	Refusal *reason.Error
}

// StepOperation is an operation of a step.
type StepOperation struct {
	Operation
	Now bool // executed at once, and its result answered; else with prepare
}

// ServiceLock is a key of a service.
type ServiceLock struct {
	Service string
	DeclaredLock
}

// Transaction is what is known of a transaction.
type Transaction struct {
	ID       string
	State    string // active, preparing, committing, committed, aborting, aborted
	Abort    *Abort // with aborting and aborted
	Branches []Branch
	OnePhase bool
	Hazard   bool // some branch ended otherwise than decided, and nobody has resolved it
	// Log times; zero if not reached.
	Began, Granted, Decided, Ended time.Time
	Timeout                        time.Duration
	WaitsFor                       *LockWait // while active: the lock it waits for
	Replayed                       bool      // the id or step was known: this answer repeats an earlier one
	Interactive                    bool
	IdleTimeout                    time.Duration // of an interactive transaction
	Age                            time.Time     // when the first try of it began: elders go first

	// StepResults answer a step: one for each of its operations, nil for those that did not run at once.
	StepResults [][]byte
}

// Terminal reports whether the decision is made.
func (t *Transaction) Terminal() bool {
	return t.State != "active" && t.State != "preparing"
}

// Abort says why a transaction aborted.
type Abort struct {
	Reason  reason.Code
	Message string
	Service string // whose answer or lock it was; may be empty
}

// Branch is the part of a transaction at one service.
type Branch struct {
	ID      string // decimal, 1-based
	Service string
	// State: waiting (nothing sent), preparing, prepared, read_only, refused,
	// committing, committed, rolling_back, rolled_back, hazard, not_contacted (aborted
	// before anybody was asked).
	State      string
	Vote       string   // yes, no, read_only; empty if not known (votes are not logged)
	Results    [][]byte // JSON values of the participant's prepare answer; best effort after a failover
	Operations uint32
	Attempts   uint32 // calls of the current phase by this leader
	LastError  string // of the last indefinite answer; may be empty
	Hazard     string // what the participant said instead: unknown, committed, rolled_back; empty if none
	Resolution string // the operator's note on a resolved hazard
}

// LockWait is a transaction's outstanding lock request.
type LockWait struct {
	Key  string
	Mode string   // IS, IX, S, SIX, X
	For  []string // ids of at most 8 transactions that stand in the way
}

// LockQuery selects locks.
type LockQuery struct {
	Service   string // empty: all
	Key       string // of the service: it, all below, and what is locked as such above it; WholeService; empty: all
	Waited    bool   // only those that somebody waits for
	PageSize  int    // 1..1000; zero: 100
	PageToken string
}

// Lock is one node of the lock tree that is held or waited for.
type Lock struct {
	Service string
	Key     string // empty: the whole service
	Shard   uint32
	Holders []LockHolder
	Waiters []LockHolder // who is served first comes first
}

// LockHolder is a transaction at a lock.
type LockHolder struct {
	Transaction string
	Mode        string    // IS, IX, S, U, SIX, X
	Age         time.Time // of the transaction
	Since       time.Time // it holds, or waits; zero: not known
}

// LockPage is one page, in order of services and keys.
type LockPage struct {
	Locks         []Lock
	NextPageToken string
}

// Deadlock is a cycle of waiting that was broken.
type Deadlock struct {
	At        time.Time
	Shard     uint32
	Victim    string
	Restarted bool // the victim gave back its locks and queued again; else it aborted
	Cycle     []CycleWait
}

// CycleWait is one edge of a cycle.
type CycleWait struct {
	Transaction string
	Service     string
	Key         string
	Mode        string
	WaitsFor    string
}

// ListQuery selects transactions.
type ListQuery struct {
	State     string // empty: all; "in_doubt": committing and aborting; "hazard": open hazards
	Service   string // empty: all
	PageSize  int    // 1..1000; zero: 100
	PageToken string // from the previous page
}

// TransactionPage is one page, ordered by id.
type TransactionPage struct {
	Transactions  []Transaction
	NextPageToken string // empty: this was the last page
}

// ServiceSpec is a registration.
type ServiceSpec struct {
	Name           string
	PrepareURL     string
	CommitURL      string
	RollbackURL    string
	StatusURL      string // optional
	ExecuteURL     string // optional: without it operations run with prepare only
	Resources      []string
	Capabilities   []string // one_phase, read_only, list_in_doubt, tombstone; nil: tombstone
	Isolation      string   // coordinator (default) or participant
	RequireKeys    bool
	LockPartitions uint32        // shards that share the locks of its keys; zero: 1
	MaxInFlight    int           // zero: the default
	PrepareTimeout time.Duration // of one try; zero: the default
	FinishTimeout  time.Duration // of one try of commit or rollback; zero: the default
}

// Service is a registered service.
type Service struct {
	ServiceSpec             // with the defaults filled in
	Generation       uint64 // identity: changes only by removal and new registration
	State            string // active, draining, removed
	OpenTransactions int    // with a branch here and not ended
	Registered       time.Time
	Updated          time.Time
}

// Health is what /healthz and /readyz tell.
type Health struct {
	Ready   bool
	Message string // why not ready, or a summary
	Shards  []ShardHealth
}

// ShardHealth is one shard's part of Health.
type ShardHealth struct {
	Shard   uint32
	Leading bool
	Leader  string // name of the node that leads it, as far as this one knows; may be empty
	Term    uint64
	Applied uint64
	Open    int // transactions not ended
	Hazards int
}

// Cluster is what a node knows of its cluster.
type Cluster struct {
	ID          string // 32 hexadecimal digits
	Incarnation uint64 // rises when the cluster is restored from a backup
	Node        string // the name of the node that answers
	Shards      []ShardReplicas
	Members     []Member
}

// Member is a node of the cluster.
type Member struct {
	ID       string // name@digits: of the node with its data directory
	Name     string
	Peer     string // host:port between nodes; empty: the node is alone
	HTTP     string // base URL of its REST API; may be empty
	GRPC     string // host:port of its gRPC API; may be empty
	State    string // up, down (not heard lately), leaving (being removed)
	Draining bool   // leads nothing, and gets nothing new
	Level    uint32 // of records that its version knows
}

// ShardReplicas says where a shard is.
type ShardReplicas struct {
	Shard    uint32
	Leader   string // member id; empty: not known
	Term     uint64
	Voters   []string // member ids, in order
	Learners []string
}

// Add adds a replica, as the log names it.
func (s *ShardReplicas) Add(member string, voter bool) {
	if voter {
		s.Voters = append(s.Voters, member)
	} else {
		s.Learners = append(s.Learners, member)
	}
}

// Backup is the state of every shard, captured at its leader.
type Backup struct {
	Cluster     string // 32 hexadecimal digits
	Incarnation uint64
	Sizes       []int64 // bytes of each shard's part
	// Part hands a shard's part to put, in pieces. Each can be had once, and soon: what
	// was captured is not kept for long.
	Part func(ctx context.Context, shard uint32, put func([]byte) error) error
	// Release lets go of what was not read; to be called once, at the end.
	Release func()
}
