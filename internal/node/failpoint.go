package node

import (
	"strings"

	"github.com/assent-tx/assent/internal/failpoint"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
)

// failpointEntry reaches the point "stage:KIND" for every kind of record in an entry.
func failpointEntry(stage string, entry []byte) {
	if !failpoint.Enabled {
		return
	}
	lines, _ := txn.Describe(entry)
	for _, line := range lines {
		kind, _, _ := strings.Cut(line, " ")
		failpoint.Here(stage + ":" + kind)
	}
}

// failpointCall reaches the point "stage:phase".
func failpointCall(stage string, phase shard.Phase) {
	if failpoint.Enabled {
		failpoint.Here(stage + ":" + phase.String())
	}
}
