package exhaust

import (
	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/shard"
)

// Config bounds one search. Budgets count over a whole sequence of choices.
type Config struct {
	Name  string
	Work  []Work
	Large bool // searched on request only

	MaxAppendsInFlight int

	Crashes    int // the leader dies; another node replays the log and leads
	Depose     int // the leader loses its leadership and does not know it yet
	Relead     int // the driver starts over in the same term, because proposals failed
	Late       int // entries computed in an earlier term that are appended in this one
	Timeouts   int // calls given up by the leader, whose requests stay in the network
	Doubles    int // requests delivered and kept in the network
	Deadlines  int // transaction timeouts that fire
	Resubmits  int // the same submission again, by another request
	Conflicts  int // the same id with another body
	Rollbacks  int
	Gets       int
	Cancels    int // waiting requests given up by their clients
	Unilateral int // participants that break the contract: end or lose a prepared branch
}

// Work is one transaction.
type Work struct {
	OnePhase bool
	Branches []Part
	Wait     shard.WaitMode
}

// Part is one branch: its service, its one key there, and how it may vote.
type Part struct {
	Service int // 0 or 1
	Mode    lock.Mode
	Votes   []shard.AnswerKind
}

var (
	yes      = []shard.AnswerKind{shard.VoteYes}
	yesNo    = []shard.AnswerKind{shard.VoteYes, shard.VoteNo}
	yesRead  = []shard.AnswerKind{shard.VoteYes, shard.VoteReadOnly}
	any3     = []shard.AnswerKind{shard.VoteYes, shard.VoteNo, shard.VoteReadOnly}
	services = [2]string{"a", "b"}
)

// transfer has a branch at both services.
func transfer(wait shard.WaitMode, mode lock.Mode, votesA, votesB []shard.AnswerKind) Work {
	return Work{Wait: wait, Branches: []Part{{0, mode, votesA}, {1, mode, votesB}}}
}

// single commits in one phase.
func single(service int, votes []shard.AnswerKind) Work {
	return Work{Wait: shard.WaitDecided, OnePhase: true, Branches: []Part{{service, lock.X, votes}}}
}
