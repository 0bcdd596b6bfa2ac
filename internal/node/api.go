package node

import (
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
)

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
	Replayed                       bool      // the id was known: this answer repeats an earlier submission's outcome
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
	Resources      []string
	Capabilities   []string // one_phase, read_only, list_in_doubt, tombstone; nil: tombstone
	Isolation      string   // coordinator (default) or participant
	RequireKeys    bool
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
	Term    uint64
	Applied uint64
	Open    int // transactions not ended
	Hazards int
}
