package node_test

import (
	"testing"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/shard"
)

// States are hashed beside the loop, and the hash comes back and is logged: only then is
// the next comparison due, and so an idle log grows by itself. When the log is read again
// the hashes in it are compared; one that differed would end the process.
func TestStatesAreCompared(t *testing.T) {
	s := start(t, func(c *shard.Config) { c.HashCheckIntervalUs, c.HashCheckEntries = 1_000, 1 })
	s.register(newFake(t, "a"), nil)
	for range 2 {
		s.submit(node.Submission{Operations: []node.Operation{op("a", "k")}})
		before := s.node.Health().Shards[0].Applied
		s.eventually("the log grows by comparisons", func() bool { return s.node.Health().Shards[0].Applied >= before+20 })
		s.restart()
	}
}
