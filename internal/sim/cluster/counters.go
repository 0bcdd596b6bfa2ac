package cluster

import (
	"fmt"
	"io"
)

// Situation is a rare thing that a batch of seeds must have met: a proof that the
// simulator goes where bugs live.
type Situation int

// The situations.
const (
	Elected Situation = iota
	ElectedBeforeFirstCommit
	ElectedBetweenCommits
	LedWithOpen
	LeadRepeated
	FlipsMerged
	Transferred
	LeaseLost
	PreVoteRefused
	RemovedNotHeard
	NonVoterNotElected
	ProposalFailed
	ProposalDoubled
	CommittedAfterDeposed
	DecidedAfterDeposed
	TailOverwritten
	ConfigOverwritten
	UnsyncedLost
	AllRestarted
	StaleEntryIgnored
	SecondDecisionIgnored
	AbortBeatBegin
	SnapshotSent
	SnapshotWithOpenInstalled
	OwnSnapshotWithOpen
	RestoredWhileLeading
	ZombieCalled
	ZombieMessaged
	ZombieTold
	OldTermRefused
	ZombieRefused
	PartitionFull
	PartitionMinority
	PartitionBridge
	PartitionOneWay
	MinorityRefused
	NoLeaderRefused
	Forwarded
	TerminalToldByFollower
	MessageAtNonLeader
	BothSidesFailedOver
	ClaimAfterRelease
	MembersChangedWithOpen
	LearnerPromoted
	VoterRemoved
	LeaderRemoved
	GoneRemoved
	NodeReplaced
	ClocksDiffer
	ClockJumped
	WaitGivenUp
	Forgotten
	StatesCompared

	situations
)

var situationNames = [situations]string{
	Elected:                   "leader elected",
	ElectedBeforeFirstCommit:  "leader change between decision and first commit call",
	ElectedBetweenCommits:     "leader change between first and last commit",
	LedWithOpen:               "led with open transactions",
	LeadRepeated:              "LEAD lost and repeated in its term",
	FlipsMerged:               "shard heard of two leaderships as of one",
	Transferred:               "leadership handed over",
	LeaseLost:                 "leader heard no majority and stepped down",
	PreVoteRefused:            "pre-vote refused while a leader is heard",
	RemovedNotHeard:           "vote asked for by no member",
	NonVoterNotElected:        "vote asked for by who is no voter as far as is known",
	ProposalFailed:            "proposal failed",
	ProposalDoubled:           "proposal appended again in a later term",
	CommittedAfterDeposed:     "proposal committed after its leader was deposed",
	DecidedAfterDeposed:       "decision committed after its leader was deposed",
	TailOverwritten:           "conflicting tail overwritten",
	ConfigOverwritten:         "configuration overwritten",
	UnsyncedLost:              "unsynced tail lost at a crash",
	AllRestarted:              "all nodes restarted at once",
	StaleEntryIgnored:         "entry of another term ignored",
	SecondDecisionIgnored:     "second decision ignored",
	AbortBeatBegin:            "ABORT(id) of one leader beat the BEGIN that another was asked for",
	SnapshotSent:              "snapshot installed",
	SnapshotWithOpenInstalled: "snapshot with open transactions installed",
	OwnSnapshotWithOpen:       "own snapshot with open transactions restored",
	RestoredWhileLeading:      "snapshot installed where the shard believed to lead",
	ZombieCalled:              "deposed leader called a participant",
	ZombieMessaged:            "deposed leader sent a message to another shard",
	ZombieTold:                "deposed leader answered a client",
	OldTermRefused:            "participant refused an older term",
	ZombieRefused:             "participant refused a deposed leader by its term",
	PartitionFull:             "full partition",
	PartitionMinority:         "minority cut off",
	PartitionBridge:           "bridge",
	PartitionOneWay:           "one-way partition",
	MinorityRefused:           "minority refused a request",
	NoLeaderRefused:           "request refused for want of a leader",
	Forwarded:                 "request forwarded",
	TerminalToldByFollower:    "outcome told by a follower",
	MessageAtNonLeader:        "message between shards came to a follower",
	BothSidesFailedOver:       "both sides of a cross-shard lock failed over",
	ClaimAfterRelease:         "late lock request after its release",
	MembersChangedWithOpen:    "members changed with open transactions",
	LearnerPromoted:           "learner promoted",
	VoterRemoved:              "voter removed",
	LeaderRemoved:             "leader removed itself",
	GoneRemoved:               "dead member removed",
	NodeReplaced:              "node lost for ever and replaced",
	ClocksDiffer:              "node with a wrong clock",
	ClockJumped:               "wall clock jumped",
	WaitGivenUp:               "wait given up",
	Forgotten:                 "transaction forgotten",
	StatesCompared:            "states compared by their hash in the log",
}

func (s Situation) String() string { return situationNames[s] }

// Counters counts how often each situation was met.
type Counters [situations]uint64

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
