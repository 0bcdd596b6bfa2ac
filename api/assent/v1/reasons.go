package assentv1

// ErrorDomain is the domain of every ErrorInfo that Assent returns.
const ErrorDomain = "assent"

// Reason is a stable code: why a request was refused (ErrorInfo.reason), or why a
// transaction aborted (Abort.reason). Codes are added, never renamed or reused.
type Reason string

// Why a request was refused. Nothing was stored, but for ReasonOutcomeUnknown.
const (
	ReasonInvalidID          Reason = "INVALID_ID"          // not a canonical UUIDv7
	ReasonIDFromFuture       Reason = "ID_FROM_FUTURE"      // timestamp more than 60 s ahead of the coordinator
	ReasonIDExpired          Reason = "ID_EXPIRED"          // too old to be known: executed once or never
	ReasonIDConflict         Reason = "ID_CONFLICT"         // same id, other body
	ReasonInvalidJSON        Reason = "INVALID_JSON"        // malformed, trailing data or duplicate names
	ReasonUnknownField       Reason = "UNKNOWN_FIELD"       // a field that the contract does not have
	ReasonInvalidField       Reason = "INVALID_FIELD"       // a field with a bad value
	ReasonInvalidKey         Reason = "INVALID_KEY"         // lock key in bad spelling
	ReasonInvalidDuration    Reason = "INVALID_DURATION"    // not a duration, or out of range
	ReasonInvalidURL         Reason = "INVALID_URL"         // not http(s), or with userinfo or fragment
	ReasonInvalidService     Reason = "INVALID_SERVICE"     // bad service name or contradictory registration
	ReasonEmptyOperations    Reason = "EMPTY_OPERATIONS"    // a transaction without operations
	ReasonTooManyOperations  Reason = "TOO_MANY_OPERATIONS" // more than the limit
	ReasonTooManyKeys        Reason = "TOO_MANY_KEYS"       // more than the limit
	ReasonRequestTooLarge    Reason = "REQUEST_TOO_LARGE"   // body over the limit
	ReasonKeysRequired       Reason = "KEYS_REQUIRED"       // the service was registered with require_keys
	ReasonUnknownService     Reason = "UNKNOWN_SERVICE"     // not registered
	ReasonServiceDraining    Reason = "SERVICE_DRAINING"    // being removed; takes no new transactions
	ReasonNotFound           Reason = "NOT_FOUND"           // no such transaction, service or path
	ReasonAlreadyCommitted   Reason = "ALREADY_COMMITTED"   // rollback asked after the commit decision
	ReasonOnePhasePending    Reason = "ONE_PHASE_PENDING"   // only the participant's answer decides, and it is awaited
	ReasonOverloaded         Reason = "OVERLOADED"          // a limit is reached; try again later
	ReasonNotReady           Reason = "NOT_READY"           // starting, without leader, or shutting down
	ReasonNotLeader          Reason = "NOT_LEADER"          // this node does not lead the shard: another may
	ReasonUpgradePending     Reason = "UPGRADE_PENDING"     // some node of the cluster runs a version that does not know this yet
	ReasonUnknownMember      Reason = "UNKNOWN_MEMBER"      // no such node in the cluster
	ReasonInvalidMember      Reason = "INVALID_MEMBER"      // a text is missing or too long
	ReasonMemberInUse        Reason = "MEMBER_IN_USE"       // it still holds a replica of a shard
	ReasonMemberTooOld       Reason = "MEMBER_TOO_OLD"      // its version does not know what the log holds already
	ReasonTooManyMembers     Reason = "TOO_MANY_MEMBERS"    // of the cluster
	ReasonInvalidPlacement   Reason = "INVALID_PLACEMENT"   // no such shard, or a wrong number of voters
	ReasonOutcomeUnknown     Reason = "OUTCOME_UNKNOWN"     // the request may or may not have been taken: ask with the id
	ReasonInternal           Reason = "INTERNAL"            // a broken invariant or an unforeseen error
	ReasonMethodNotAllowed   Reason = "METHOD_NOT_ALLOWED"  // the path exists, the method does not
	ReasonUnsupportedContent Reason = "UNSUPPORTED_MEDIA"   // a body that is not plain JSON
	ReasonTooManyServices    Reason = "TOO_MANY_SERVICES"   // registry limit
	ReasonNotAHazard         Reason = "NOT_A_HAZARD"        // resolve asked for a transaction without an open hazard
	ReasonNotInteractive     Reason = "NOT_INTERACTIVE"     // a step or commit asked of a one-shot transaction
	ReasonAlreadyDecided     Reason = "ALREADY_DECIDED"     // a step or lock asked of a transaction that has its decision
	ReasonCommitAsked        Reason = "COMMIT_ASKED"        // a step asked after commit was
	ReasonStepConflict       Reason = "STEP_CONFLICT"       // same step, other body
	ReasonStepPending        Reason = "STEP_PENDING"        // commit asked while a step is under way
	ReasonTooManySteps       Reason = "TOO_MANY_STEPS"      // of one transaction
	ReasonTooManyWaiters     Reason = "TOO_MANY_WAITERS"    // at one lock key
	ReasonCannotExecute      Reason = "CANNOT_EXECUTE"      // "when": "now" at a service without an execute endpoint
	ReasonCrossOrigin        Reason = "CROSS_ORIGIN"        // sent by a web page of another origin
)

// Why a transaction aborted.
const (
	ReasonVotedNo         Reason = "VOTED_NO"         // a participant refused
	ReasonTimeout         Reason = "TIMEOUT"          // the timeout ended while participants were asked
	ReasonLockTimeout     Reason = "LOCK_TIMEOUT"     // the timeout ended while waiting for a lock
	ReasonClientRollback  Reason = "CLIENT_ROLLBACK"  // a client asked for it
	ReasonDeadlock        Reason = "DEADLOCK"         // waited in a cycle, and was the youngest there
	ReasonWounded         Reason = "WOUNDED"          // held what an older transaction needed, before commit was asked for
	ReasonIdleTimeout     Reason = "IDLE_TIMEOUT"     // the client of an interactive transaction was silent too long
	ReasonExecuteRefused  Reason = "EXECUTE_REFUSED"  // a participant refused an operation that was to run at once
	ReasonExecuteConflict Reason = "EXECUTE_CONFLICT" // the same for now: a new transaction may succeed
	ReasonExecutionLost   Reason = "EXECUTION_LOST"   // a participant lost what it had executed
)
