// Package rm is what the coordinator asks of participants and what they may
// answer, whatever protocol carries it. Each protocol is a package below this
// one (rm/http); the node translates the shard's calls into Call values.
//
// A Caller runs each call in the background and reports exactly one Result. It
// owns the queue and in-flight limit of every service, so that a slow service
// delays nobody else; retry and backoff belong to the shard.
package rm

import (
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
)

var phaseNames = [...]string{Prepare: "prepare", Commit: "commit", Rollback: "rollback", Status: "status"}

func (p Phase) String() string { return phaseNames[p] }

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
	Operations [][]byte // prepare only: payloads, each compact JSON, in order
	Digest     [32]byte // prepare only: d0 = empty, di = SHA-256(d(i-1) || payload)

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
)

var kindNames = [...]string{Indefinite: "indefinite", Yes: "yes", No: "no", ReadOnly: "read_only", Done: "done", Contradicts: "contradicts", Known: "known"}

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
	Kind    Kind
	Outcome Outcome       // with Contradicts and Known
	Reason  string        // with No: the participant's; with Indefinite: what went wrong. At most 1,024 bytes
	Results [][]byte      // with Yes and ReadOnly: JSON values for the client that waits
	Took    time.Duration // from send to answer; zero if never sent
	Sent    bool          // false: certainly never left this process
}

// Endpoint is where and how a service is reached; looked up at every try.
type Endpoint struct {
	Generation uint64
	Version    uint64 // rises with every registration of any service; the later of two holds
	PrepareURL, CommitURL,
	RollbackURL, StatusURL string // StatusURL may be empty
	ReadOnly       bool          // may vote read_only
	OnePhase       bool          // accepts one-phase prepare
	MaxInFlight    int           // > 0
	PrepareTimeout time.Duration // of one try
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
