package shard

import (
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
)

// Levels: see package txn. What needs a level that the log has not reached is refused, or
// left unsaid until it has: a member that does not know it would have to stop.

// raiseLevel proposes the level that every member knows.
func (s *Shard) raiseLevel(level uint32) {
	if s.allKnow == 0 {
		return
	}
	s.allKnow = max(s.allKnow, min(level, txn.Level))
	if s.leading && s.allKnow > max(s.st.Level(), s.raised) {
		s.raised = s.allKnow
		s.command(txn.AppendLevel(s.openEntry(), s.allKnow))
	}
}

// tooNew refuses a command that the log is not up to, or returns nil.
func (s *Shard) tooNew(command []byte) *reason.Error {
	needs := txn.CommandLevel(command)
	if needs <= s.st.Level() {
		return nil
	}
	return upgradePending(needs, s.st.Level())
}

func upgradePending(needs, has uint32) *reason.Error {
	err := reason.New(reason.UpgradePending, "upgrade every node of the cluster, then try again",
		"the request needs level %d of the log, which is at level %d until every node knows more", needs, has)
	err.RetryAfterMs = 1000
	return err
}
