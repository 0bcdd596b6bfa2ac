package sim

import (
	"fmt"
	"io"
)

// Situation is a rare thing that a batch of seeds must have met: a proof that the
// simulator goes where bugs live.
type Situation int

// The situations.
const (
	Crash Situation = iota
	CrashDecidedNoCommitYet
	CrashBetweenCommits
	SameTermAgain
	LeadRepeated
	StaleEntryIgnored
	DecisionIgnored
	AbortBeatCommit
	CommitBeatAbort
	LateVoteAfterAbort
	TombstoneUsed
	DuplicateCommit
	EndLostRedone
	OldTermRefused
	PrepareBelowForgotten
	AbortBeatBegin
	WatermarkRefusedRetry
	ForgottenAsked
	NotFoundTold
	DrainRefusedBegin
	OutdatedGenerationRefused
	ServiceRemoved
	ServiceRegisteredAgain
	ReadOnlyVote
	ReadOnlyPreparedTwice
	TwoPhaseCommitted
	VotedNo
	PrepareTimedOut
	PartRestartInDoubt
	DeadPartLeftAlone
	OnePhaseCommitted
	OnePhaseRefused
	OnePhaseAnswerLost
	OnePhaseAskedAgain
	OnePhaseTimeoutMetGrant
	OnePhaseToldThenLost
	HazardUnknown
	HazardCommitted
	HazardRolledBack
	HazardResolved
	LockWaited
	LockHandedOff
	LockOvertaken
	LockTimedOut
	SnapshotWithOpenRestored
	RubbishAnswer
	WaitGivenUp
	RequestOverloaded
	FutureIDRefused
	ConflictRefused
	RollbackTooLate
	RollbackDone
	RepeatAnswered
	OutcomeUnknownTold
	ClockWentBack
	CommandsBatched
	StateVerified
	StateVerifiedOnReplay

	situations
)

var situationNames = [situations]string{
	Crash:                     "crash",
	CrashDecidedNoCommitYet:   "leader lost: commit decided, no participant told",
	CrashBetweenCommits:       "leader lost between first and last commit",
	SameTermAgain:             "appends failed, leads again in the same term",
	LeadRepeated:              "LEAD lost and repeated",
	StaleEntryIgnored:         "entry of another term ignored",
	DecisionIgnored:           "decision ignored",
	AbortBeatCommit:           "timeout abort won over a proposed commit",
	CommitBeatAbort:           "commit won over a proposed timeout abort",
	LateVoteAfterAbort:        "yes arrived after the abort",
	TombstoneUsed:             "prepare met the tombstone of its rollback",
	DuplicateCommit:           "commit of a committed branch",
	EndLostRedone:             "acknowledgement lost and redone",
	OldTermRefused:            "participant refused an older term",
	PrepareBelowForgotten:     "prepare below forgotten_below refused",
	AbortBeatBegin:            "ABORT(id) beat BEGIN",
	WatermarkRefusedRetry:     "W refused a retry of an executed id",
	ForgottenAsked:            "forgotten id asked for",
	NotFoundTold:              "not found told",
	DrainRefusedBegin:         "DRAIN refused a BEGIN",
	OutdatedGenerationRefused: "outdated generation refused",
	ServiceRemoved:            "service drained and removed",
	ServiceRegisteredAgain:    "removed service registered again",
	ReadOnlyVote:              "read-only vote",
	ReadOnlyPreparedTwice:     "read-only branch prepared twice",
	TwoPhaseCommitted:         "two-phase commit",
	VotedNo:                   "abort on a no",
	PrepareTimedOut:           "abort on the prepare timeout",
	PartRestartInDoubt:        "participant restarted in doubt",
	DeadPartLeftAlone:         "one participant dead, all that do not touch it ended",
	OnePhaseCommitted:         "one-phase commit",
	OnePhaseRefused:           "one-phase refusal",
	OnePhaseAnswerLost:        "one-phase answer lost",
	OnePhaseAskedAgain:        "one-phase outcome asked again",
	OnePhaseTimeoutMetGrant:   "one-phase timeout met its grant",
	OnePhaseToldThenLost:      "one-phase told, leader lost before the record",
	HazardUnknown:             "hazard: participant knows nothing",
	HazardCommitted:           "hazard: committed against the decision",
	HazardRolledBack:          "hazard: rolled back against the decision",
	HazardResolved:            "hazard resolved",
	LockWaited:                "lock waited for",
	LockHandedOff:             "lock handed off",
	LockOvertaken:             "younger waiter overtaken",
	LockTimedOut:              "lock wait timed out",
	SnapshotWithOpenRestored:  "snapshot with open transactions restored",
	RubbishAnswer:             "rubbish answered",
	WaitGivenUp:               "wait given up",
	RequestOverloaded:         "overload refused",
	FutureIDRefused:           "id from the future refused",
	ConflictRefused:           "same id, other body refused",
	RollbackTooLate:           "rollback after commit refused",
	RollbackDone:              "rollback by the client",
	RepeatAnswered:            "repeat answered from the record",
	OutcomeUnknownTold:        "outcome unknown told",
	ClockWentBack:             "wall clock went back",
	CommandsBatched:           "several commands in one entry",
	StateVerified:             "state hash equal to the logged one",
	StateVerifiedOnReplay:     "the same, when the log was replayed",
}

func (s Situation) String() string { return situationNames[s] }

// Counters counts how often each situation was met.
type Counters [situations]uint64

func (c *Counters) hit(s Situation) { c[s]++ }

// Add adds another run's counts.
func (c *Counters) Add(o *Counters) {
	for i := range c {
		c[i] += o[i]
	}
}

// Missing lists the situations that were never met.
func (c *Counters) Missing() (missing []Situation) {
	for i, n := range c {
		if n == 0 {
			missing = append(missing, Situation(i))
		}
	}
	return missing
}

// Print writes one line for each situation.
func (c *Counters) Print(to io.Writer) {
	for i, n := range c {
		fmt.Fprintf(to, "%10d  %s\n", n, Situation(i))
	}
}
