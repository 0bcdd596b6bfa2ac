// Package rm is what the coordinator asks of participants and what they may
// answer, whatever protocol carries it. Each protocol is a package below this
// one (rm/http); the node translates the shard's calls into Call values.
//
// A Caller runs each call in the background and reports exactly one Result. It
// owns the queue and in-flight limit of every service, so that a slow service
// delays nobody else; retry and backoff belong to the shard.
package rm

import (
	"strings"
	"time"

	"github.com/assent-tx/assent/internal/txnid"
)

// Phase is what a participant is asked to do.
type Phase uint8

// The phases of the participant contract.
const (
	Prepare  Phase = iota + 1 // execute the operations and vote
	Commit                    // make the prepared branch permanent
	Rollback                  // undo the branch, or leave a tombstone if it is unknown
	Status                    // tell what is durably known of the branch
	Execute                   // execute operations in the branch's open local transaction, before prepare
)

var phaseNames = [...]string{Prepare: "prepare", Commit: "commit", Rollback: "rollback", Status: "status", Execute: "execute"}

func (p Phase) String() string { return phaseNames[p] }

// Works reports whether the call does the work of a branch that is not yet decided:
// it may be dropped once it is.
func (p Phase) Works() bool { return p == Prepare || p == Execute }

// Call is one request to a participant. It is immutable once handed to a Caller.
type Call struct {
	Phase      Phase
	Cluster    string // 32 hexadecimal digits: names the coordinator, whatever its nodes
	Service    string
	Generation uint64 // of the registration the branch is bound to
	Txn        txnid.ID
	Branch     uint32 // 1-based within the transaction
	Attempt    uint32 // orders the calls of one leader; 1 is the first
	Term       uint64 // orders leaders
	Shard      uint32
	Shards     uint32
	Token      string   // fencing token; later grants of a key compare greater as text
	Forgotten  txnid.ID // forgotten_below: ids of this shard below it have ended for good; zero = none
	OnePhase   bool     // prepare only: execute and commit at once; a yes means committed
	Operations [][]byte // prepare and execute: payloads, each compact JSON, in order
	// Digest of the operations: d0 = empty, di = SHA-256(d(i-1) || payload). It begins
	// with those that were executed before, by calls of phase Execute.
	Digest   [32]byte
	First    uint32 // execute only: index of the first operation here among all executed ones of the branch
	Executed uint32 // prepare only: operations that were executed before and are not here
	// Execution is the participant's name for the open local transaction, from the
	// Result of an earlier execute of the branch; at most 64 bytes. With it a
	// participant that lost that transaction says so even if a late duplicate has
	// opened another. Execute and prepare only; empty: not known.
	Execution string
	// Opened says that results of the branch may have been told: a participant where it
	// is not open must refuse instead of beginning anew. Execute only, for a first call
	// without Execution: of a leader that does not know what the last one did.
	Opened bool

	TraceParent string // W3C traceparent to pass on; may be empty
}

// Kind is the class of a participant's answer.
type Kind uint8

// The answers a Caller reports. Everything that is not definite is Indefinite.
const (
	Indefinite  Kind = iota // no definite answer: timeout, refused connection, 5xx, rubbish, queue full
	Yes                     // prepare: prepared and binding (one-phase: committed)
	No                      // prepare: durably refused
	ReadOnly                // prepare: nothing to commit, already ended
	Done                    // commit, rollback: done, or already so
	Contradicts             // commit, rollback: the participant durably says otherwise; see Outcome
	Known                   // status: see Outcome
	Executed                // execute: done in the open local transaction; nothing is durable
	Refused                 // execute: definitely not done; the transaction must be rolled back
)

var kindNames = [...]string{
	Indefinite: "indefinite", Yes: "yes", No: "no", ReadOnly: "read_only", Done: "done", Contradicts: "contradicts", Known: "known",
	Executed: "executed", Refused: "refused",
}

func (k Kind) String() string { return kindNames[k] }

// Outcome is what a participant says became of a branch.
type Outcome uint8

// The outcomes of the participant contract.
const (
	OutcomeUnknown Outcome = iota
	OutcomePrepared
	OutcomeCommitted
	OutcomeRolledBack
)

var outcomeNames = [...]string{"unknown", "prepared", "committed", "rolled_back"}

func (o Outcome) String() string { return outcomeNames[o] }

// ParseOutcome is the inverse of String.
func ParseOutcome(s string) (Outcome, bool) {
	for i, name := range outcomeNames {
		if s == name {
			return Outcome(i), true
		}
	}
	return OutcomeUnknown, false
}

// Result is the answer to one Call.
type Result struct {
	Kind      Kind
	Outcome   Outcome       // with Contradicts and Known
	Reason    string        // with No: the participant's; with Indefinite: what went wrong; with Refused: a stable code. At most 1,024 bytes
	Results   [][]byte      // with Yes and ReadOnly: JSON values for the client that waits; with Executed: one for each operation, or null
	Message   string        // with Refused: for people. At most 1,024 bytes
	Retryable bool          // with Refused: the same work may succeed in a new transaction
	Execution string        // with Executed: see Call
	Took      time.Duration // from send to answer; zero if never sent
	Sent      bool          // false: certainly never left this process
}

// The reasons of a Refused that the coordinator must know; participants have others.
const (
	// ExecutionLost, also the first word of a No's reason: the participant does not have
	// the open local transaction in which the operations were executed.
	ExecutionLost = "EXECUTION_LOST"
	// ExecutionRefused: the service refused the operation.
	ExecutionRefused = "EXECUTION_REFUSED"
)

// Lost reports whether the participant refused, or voted no, because it does not have
// the branch's open local transaction (any more).
func (r *Result) Lost() bool {
	return (r.Kind == Refused || r.Kind == No) && (r.Reason == ExecutionLost || strings.HasPrefix(r.Reason, ExecutionLost+":"))
}

// Endpoint is where and how a service is reached; looked up at every try.
type Endpoint struct {
	Generation uint64
	Version    uint64 // rises with every registration of any service; the later of two holds
	PrepareURL, CommitURL,
	RollbackURL, StatusURL string // StatusURL may be empty
	ExecuteURL     string        // empty: it executes nothing before prepare
	ReadOnly       bool          // may vote read_only
	OnePhase       bool          // accepts one-phase prepare
	MaxInFlight    int           // > 0
	PrepareTimeout time.Duration // of one try of prepare or execute
	FinishTimeout  time.Duration // of one try of commit, rollback or status
}

// Caller sends calls to participants.
//
// Call never blocks and never calls done from within itself; done runs once, on
// another goroutine, also after Close (with Indefinite).
type Caller interface {
	Call(c *Call, e Endpoint, done func(Result))
	// Update tells that a service was registered anew. Calls that wait go to where it
	// is now; those under way at an address that it has left are soon given up.
	Update(service string, e Endpoint)
	Close() // ends in-flight calls, waits until every done has run
}
