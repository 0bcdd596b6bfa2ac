//go:build previouslevel

package shard

import (
	"testing"

	"github.com/assent-tx/assent/internal/txn"
)

// A leader of the version before this one raises the log to what it knows itself,
// whatever the others know.
func TestPreviousLevelLeads(t *testing.T) {
	d := newDrive(t)
	d.step(&Lead{Term: 1, Level: txn.Level + 1})
	d.apply(1)
	d.step(&RaiseLevel{Level: txn.Level + 1})
	if !d.s.Leading() || d.s.State().Level() != txn.Level || len(d.entries) > 0 {
		t.Fatalf("level %d of %d, %d entries more", d.s.State().Level(), txn.Level, len(d.entries))
	}
}
