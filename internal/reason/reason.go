// Package reason is the list of stable codes that tell a client or an operator
// why: why a request was refused, and why a transaction aborted. Codes are part
// of the public contract: they are added, never renamed or reused.
//
// The pure core and the node return *Error; internal/server alone maps a code to
// a gRPC and HTTP status.
package reason

import "fmt"

// Code is a stable, upper-case reason.
type Code string

// Why a request was refused. Nothing was stored unless the text says otherwise.
const (
	InvalidID          Code = "INVALID_ID"          // not a canonical UUIDv7
	IDFromFuture       Code = "ID_FROM_FUTURE"      // timestamp more than 60 s ahead of the coordinator
	IDExpired          Code = "ID_EXPIRED"          // at or below the watermark, no record: executed once or never, not known
	IDConflict         Code = "ID_CONFLICT"         // same id, other body
	InvalidJSON        Code = "INVALID_JSON"        // malformed or trailing data
	UnknownField       Code = "UNKNOWN_FIELD"       // a field the contract does not have
	InvalidField       Code = "INVALID_FIELD"       // a field with a bad value; the message names it
	InvalidKey         Code = "INVALID_KEY"         // lock key in bad spelling
	InvalidDuration    Code = "INVALID_DURATION"    // not a duration, or out of range
	InvalidURL         Code = "INVALID_URL"         // not http(s), or with userinfo or fragment
	InvalidService     Code = "INVALID_SERVICE"     // bad service name or contradictory registration
	EmptyOperations    Code = "EMPTY_OPERATIONS"    // a transaction without operations
	TooManyOperations  Code = "TOO_MANY_OPERATIONS" // more than the limit
	TooManyKeys        Code = "TOO_MANY_KEYS"       // more than the limit
	RequestTooLarge    Code = "REQUEST_TOO_LARGE"   // body over the limit
	KeysRequired       Code = "KEYS_REQUIRED"       // the service was registered with require_keys
	UnknownService     Code = "UNKNOWN_SERVICE"     // not registered
	ServiceDraining    Code = "SERVICE_DRAINING"    // being removed; takes no new transactions
	NotFound           Code = "NOT_FOUND"           // no such transaction or service
	AlreadyCommitted   Code = "ALREADY_COMMITTED"   // rollback asked after the commit decision
	OnePhasePending    Code = "ONE_PHASE_PENDING"   // only the participant's answer decides, and it is awaited
	Overloaded         Code = "OVERLOADED"          // a limit is reached; try again later
	NotReady           Code = "NOT_READY"           // starting, without a leader, or shutting down
	NotLeader          Code = "NOT_LEADER"          // this replica does not lead the shard: another may
	UpgradePending     Code = "UPGRADE_PENDING"     // some node of the cluster runs a version that does not know this yet
	UnknownMember      Code = "UNKNOWN_MEMBER"      // no such node in the cluster
	InvalidMember      Code = "INVALID_MEMBER"      // a text is missing or too long
	MemberInUse        Code = "MEMBER_IN_USE"       // it still holds a replica of a shard
	MemberTooOld       Code = "MEMBER_TOO_OLD"      // its version does not know what the log holds already
	TooManyMembers     Code = "TOO_MANY_MEMBERS"    // of the cluster
	InvalidPlacement   Code = "INVALID_PLACEMENT"   // no such shard, or a wrong number of voters
	OutcomeUnknown     Code = "OUTCOME_UNKNOWN"     // the request may or may not have been taken: ask with the id
	Internal           Code = "INTERNAL"            // a broken invariant or an unforeseen error
	MethodNotAllowed   Code = "METHOD_NOT_ALLOWED"  // the path exists, the method does not
	UnsupportedContent Code = "UNSUPPORTED_MEDIA"   // a body that is not JSON
	TooManyServices    Code = "TOO_MANY_SERVICES"   // registry limit
	CrossOrigin        Code = "CROSS_ORIGIN"        // sent by a web page of another origin
	NotAHazard         Code = "NOT_A_HAZARD"        // resolve asked for a transaction without an open hazard
	NotInteractive     Code = "NOT_INTERACTIVE"     // a step or commit asked of a one-shot transaction
	AlreadyDecided     Code = "ALREADY_DECIDED"     // a step or lock asked of a transaction that has its decision
	CommitAsked        Code = "COMMIT_ASKED"        // a step asked after commit was
	StepConflict       Code = "STEP_CONFLICT"       // same step, other body
	StepPending        Code = "STEP_PENDING"        // commit asked while a step is under way
	TooManySteps       Code = "TOO_MANY_STEPS"      // of one transaction
	TooManyWaiters     Code = "TOO_MANY_WAITERS"    // at one lock key; also why a transaction aborted
	CannotExecute      Code = "CANNOT_EXECUTE"      // "when": "now" at a service without an execute endpoint
)

// Why a transaction aborted. TooManyWaiters is another: it is met when the transaction has
// begun, where the key is kept at another shard.
const (
	VotedNo         Code = "VOTED_NO"         // a participant refused
	Timeout         Code = "TIMEOUT"          // the transaction's timeout ended while participants were asked
	LockTimeout     Code = "LOCK_TIMEOUT"     // the transaction's timeout ended while waiting for a lock
	ClientRollback  Code = "CLIENT_ROLLBACK"  // the client asked for it
	Deadlock        Code = "DEADLOCK"         // waited in a cycle, and was the youngest there
	Wounded         Code = "WOUNDED"          // held what an older transaction needed, before commit was asked for
	IdleTimeout     Code = "IDLE_TIMEOUT"     // the client of an interactive transaction was silent too long
	ExecuteRefused  Code = "EXECUTE_REFUSED"  // a participant refused an operation that was to run at once
	ExecuteConflict Code = "EXECUTE_CONFLICT" // the same for now: a new transaction may succeed
	ExecutionLost   Code = "EXECUTION_LOST"   // a participant lost what it had executed: a restart, a lost connection
)

// Error is a refusal with its stable code and what to do about it.
type Error struct {
	Code         Code
	Message      string            // one sentence: what is wrong, with the offending value
	Hint         string            // what the caller or operator can do; may be empty
	RetryAfterMs uint32            // >0: the same request may succeed after this many milliseconds
	Details      map[string]string // further facts for programs (field, limit, service); may be nil
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return fmt.Sprintf("%s: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("%s: %s (%s)", e.Code, e.Message, e.Hint)
}

// Is makes errors.Is(err, &Error{Code: c}) compare codes.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// New returns an error with a formatted message.
func New(code Code, hint, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Hint: hint}
}
