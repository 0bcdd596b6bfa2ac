//go:build previouslevel

package txn

import (
	"errors"
	"testing"
)

// A binary of the version before this one stops at what only this one knows, and says
// that it is a newer version's.
func TestPreviousLevelHalts(t *testing.T) {
	if Level != levelTop-1 {
		t.Fatalf("level %d, of the source %d", Level, levelTop)
	}
	n := 0
	for k := kindBoot; k <= lastKind; k++ {
		if k.needs() < levelTop {
			continue
		}
		n++
		s := New(0, 1)
		s.level = levelTop // whatever a log says
		var effects []Effect
		if err := s.Apply(1, 1, entryOf([]byte{byte(k)}), &effects); !errors.Is(err, ErrFormat) || len(effects) > 0 {
			t.Errorf("%s: %v, %d effects", kindNames[k], err, len(effects))
		}
	}
	if n == 0 {
		t.Error("the highest level has no records of its own")
	}
	s := New(0, 1)
	var effects []Effect
	if err := s.Apply(1, 1, entryOf(AppendLevel(nil, levelTop)), &effects); !errors.Is(err, ErrFormat) {
		t.Errorf("LEVEL %d: %v", levelTop, err)
	}
	s = New(0, 1)
	s.level = levelTop
	if _, err := Restore(0, 1, snapshotOf(s)); !errors.Is(err, ErrFormat) {
		t.Errorf("snapshot at level %d: %v", levelTop, err)
	}
}
