package shard

import (
	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// Time is the driver's clock at one Step. Mono never goes back and drives every
// timer; WallMs (Unix ms) is only written into records and compared with ids.
type Time struct {
	MonoUs int64
	WallMs uint64
}

// Event is an input of Step: one of the types below, and no other.
type Event interface{ event() }

// Token names a waiting request; the driver makes it and gets it back in a Reply.
type Token uint64

// WaitMode says when a submission is answered.
type WaitMode uint8

// Wait modes.
const (
	WaitDecided   WaitMode = iota + 1 // at the decision
	WaitCompleted                     // when every branch has acknowledged
	WaitNone                          // when BEGIN is applied
)

// Submit asks for a transaction. Begin is the encoded command, whose ID and
// Digest are repeated here.
type Submit struct {
	Token  Token
	ID     txnid.ID
	Digest [32]byte
	Begin  []byte
	Locks  []lock.Need // those of Begin
	Wait   WaitMode

	RetryOf txnid.ID // of an interactive one; zero: none
}

// Enlist asks for a step of an interactive transaction. Enlist is the encoded
// command, whose ID, Step and Digest are repeated here. It is answered when the step's
// locks are held and its operations that run at once have run, or by the decision.
type Enlist struct {
	Token  Token
	ID     txnid.ID
	Step   uint32
	Digest [32]byte
	Enlist []byte
	Locks  []lock.Need // those of Enlist

	// Services of which the step has locks and no operation. The record says nothing of
	// their registrations, so they are looked at before it is proposed.
	LocksOf []Registration
}

// Registration is one of a service's, which differ in what locks are computed from.
type Registration struct {
	Service    string
	Generation uint64
}

// Seal asks for the commit of an interactive transaction.
type Seal struct {
	Token Token
	ID    txnid.ID
	Wait  WaitMode
}

// Heartbeat says that the client of an interactive transaction is alive.
type Heartbeat struct {
	Token Token
	ID    txnid.ID
}

// Rollback asks for an abort: answered once the transaction is decided.
type Rollback struct {
	Token Token
	ID    txnid.ID
}

// Get asks for the current state: terminal states at once, all else through the log.
type Get struct {
	Token Token
	ID    txnid.ID
}

// Resolve closes a hazard with an operator's note.
type Resolve struct {
	Token Token
	ID    txnid.ID
	Note  string
}

// PutService registers a service or replaces its endpoints and limits.
type PutService struct {
	Token   Token
	Service *txn.Service
}

// DeleteService drains a service and removes it: answered once it is removed.
type DeleteService struct {
	Token Token
	Name  string
}

// Cancel ends the wait of a request: its Reply tells the current state.
type Cancel struct {
	Token Token
	ID    txnid.ID // of the transaction asked for
	Name  string   // of the service asked for
}

// Phase of a call.
type Phase uint8

// The phases that a shard sends.
const (
	PhasePrepare Phase = iota + 1
	PhaseCommit
	PhaseRollback
	PhaseExecute
)

var phaseNames = [...]string{PhasePrepare: "prepare", PhaseCommit: "commit", PhaseRollback: "rollback", PhaseExecute: "execute"}

func (p Phase) String() string { return phaseNames[p] }

// AnswerKind is the class of a participant's answer.
type AnswerKind uint8

// Answers. Whatever is not definite is Indefinite and is asked again.
const (
	Indefinite AnswerKind = iota
	VoteYes
	VoteNo
	VoteReadOnly
	Acknowledged
	SaysUnknown    // commit: "I know nothing of this branch"
	SaysCommitted  // rollback: "durably committed"
	SaysRolledBack // commit: "durably rolled back"
	Executed       // execute: done, with a result for each operation
	Refused        // execute: not possible; the transaction aborts
	Conflict       // execute: not possible now; the transaction aborts, and may be tried again
	Lost           // execute: what was executed before is gone; the transaction aborts
)

var answerNames = [...]string{"indefinite", "yes", "no", "read_only", "acknowledged", "says unknown", "says committed", "says rolled back", "executed", "refused", "conflict", "lost"}

func (k AnswerKind) String() string { return answerNames[k] }

// CallDone is the answer to one Call; every Call gets exactly one.
type CallDone struct {
	ID      txnid.ID
	Branch  uint32 // 0-based
	Phase   Phase
	Attempt uint32
	Term    uint64
	Answer  AnswerKind
	Reason  string   // of a no, or of an indefinite answer
	Results [][]byte // with a yes, read_only or executed

	Execution string // with executed: the participant's name for its open local transaction
}

// maxDeadlocks are remembered by a leader.
const maxDeadlocks = 100

// Deadlock is a cycle of waiting that was broken.
type Deadlock struct {
	AtMs      uint64 // log time
	Victim    txnid.ID
	Restarted bool // the victim gave back its locks and queued again; else it aborted
	Cycle     []lock.Wait
}

// Deadlocks are the latest that this leader has seen, oldest first; at most 100.
func (s *Shard) Deadlocks() []Deadlock { return s.deadlocks }

// Lead says that this node leads in Term as far as the log knows; leadership
// begins when the LEAD record that Step proposes now is applied. Level is what every
// member of the cluster knows: the log is raised to it, and not beyond what this binary
// knows. 0 is that: a node alone.
type Lead struct {
	Term  uint64
	Level uint32
}

// RaiseLevel says that by now every member knows a level: see Lead. A shard that neither
// leads nor is about to ignores it.
type RaiseLevel struct{ Level uint32 }

// Space says whether the disk is nearly full. While it is, new transactions are refused;
// what is open goes on to its end.
type Space struct{ Low bool }

// Follow says that leadership is lost, or that a proposal failed.
type Follow struct{}

// Tick says that time has passed.
type Tick struct{}

func (*Submit) event()        {}
func (*Enlist) event()        {}
func (*Seal) event()          {}
func (*Heartbeat) event()     {}
func (*Rollback) event()      {}
func (*Get) event()           {}
func (*Resolve) event()       {}
func (*PutService) event()    {}
func (*DeleteService) event() {}
func (*Cancel) event()        {}
func (*CallDone) event()      {}
func (*Lead) event()          {}
func (*RaiseLevel) event()    {}
func (*Space) event()         {}
func (*Follow) event()        {}
func (*Tick) event()          {}

// Ready is what the driver has to do. It is valid until Advance.
type Ready struct {
	// Entries are to be proposed in this order, each once. Nothing else in this
	// Ready depends on them: Calls and Replies were justified by records already
	// applied, and may be acted on at once, before, during or after the append.
	Entries [][]byte

	// Calls go to participants. Every one must be answered by one CallDone. A call
	// that is lost with its leader is derived again by the next.
	Calls []Call

	// Messages go to other shards' leaders. Losing one is harmless: it is sent again
	// as long as it is needed.
	Messages []Message

	// Replies go to the clients that wait. At most one for each Token.
	Replies []Reply

	// Captures are to be hashed (State.Hash), beside the loop that drives the shard, and
	// brought back as Hashed; on followers too. Losing one is harmless: that comparison is
	// left out.
	Captures []Capture

	// Notices are for logs and metrics; nothing depends on them.
	Notices []Notice

	// WakeAtUs is when Tick is due at the latest; 0: no timer.
	WakeAtUs int64
}

// Call is one request to a participant.
type Call struct {
	Phase       Phase
	Service     string
	Generation  uint64
	ID          txnid.ID
	Branch      uint32 // 0-based
	Attempt     uint32
	Term        uint64
	Token       string
	Forgotten   txnid.ID
	OnePhase    bool
	Operations  [][]byte // prepare and execute only
	Digest      [32]byte // prepare: over what was executed and Operations; execute: up to and with Operations
	First       uint32   // execute only: how many operations of the branch ran before these
	Executed    uint32   // prepare only: how many operations ran before, by execute
	Opened      bool     // execute only: results may have been told before, by an earlier leader
	Execution   string   // execute and prepare: of the open local transaction; empty: not known
	TraceParent string
}

// Reply answers a request: Err, or View, or Service; none of them: done, as asked.
type Reply struct {
	Token   Token
	Err     *reason.Error
	View    *View
	Service *ServiceView
}

// View is what a client is told of a transaction.
type View struct {
	Txn      txn.Txn // a copy: branches are the view's own
	Branches []BranchView
	WaitKey  string // active: the key it waits for
	WaitMode string
	WaitsFor []txnid.ID
	Repeated bool // the submission repeats an earlier one

	// Of a step: a result for each of its operations, nil for those that did not run at once.
	StepResults [][]byte
}

// BranchView is the leader's knowledge of a branch beyond the record.
type BranchView struct {
	Vote      AnswerKind // Indefinite: not known
	Results   [][]byte
	Attempts  uint32
	LastError string
}

// ServiceView is what a client is told of a service.
type ServiceView struct {
	Service txn.Service
	Open    int
	Removed bool
}

// NoticeKind says what a Notice tells.
type NoticeKind uint8

// Notices.
const (
	NoticeLeading    NoticeKind = iota + 1 // N: open transactions taken over
	NoticeFollowing                        //
	NoticeBegan                            // ID
	NoticeRefused                          // Reason
	NoticeBlocked                          // ID: waits for a lock
	NoticeGranted                          // ID; DurUs since begun
	NoticeDecided                          // ID, Committed, Reason, Service; DurUs since begun
	NoticeEnded                            // ID, Committed; DurUs since decided
	NoticeRetry                            // ID, Service, Phase, Text, N: failures in a row
	NoticeHazard                           // ID, Service, Text
	NoticeResolved                         // ID
	NoticeProposed                         // N commands, Bytes
	NoticeStaleEntry                       // an entry of another term was ignored
	NoticeIgnored                          // ID: a decision came second
	NoticeService                          // Service, Text: registered, draining, removed
	NoticeStep                             // ID, N: the step; DurUs until its locks were held
	NoticeDeadlock                         // ID: the victim; Text: the cycle; N: its length
	NoticeWounded                          // ID: gave way to an elder; Text; Needless
	NoticeLevel                            // N: the log has reached this level
	NoticeMember                           // Member, Text: put, removed
	NoticePlaced                           // N: the shard; Text: who is to vote there
	NoticeVerified                         // N: the entry at which the state was the leader's
	NoticeDiverged                         // Text: the state is not the leader's, and this replica is about to halt
)

// Notice is one event for people and meters.
type Notice struct {
	Kind      NoticeKind
	ID        txnid.ID
	Service   string
	Member    string
	Phase     Phase
	Reason    reason.Code
	Text      string
	Committed bool
	OnePhase  bool
	Needless  bool // it surely stood in no cycle
	DurUs     int64
	N         int
	Bytes     int
}
