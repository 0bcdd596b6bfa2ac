package cluster

import (
	"errors"
	"testing"

	"github.com/assent-tx/assent/internal/reason"
)

// A refusal of a later try is no word on an earlier one, unless it comes from the record.
func TestAfterLostTry(t *testing.T) {
	for _, c := range []struct {
		name       string
		told, want reason.Code
	}{
		{"submit", reason.UnknownService, reason.OutcomeUnknown},
		{"submit", reason.IDConflict, reason.IDConflict},
		{"begin", reason.Overloaded, reason.OutcomeUnknown},
		{"enlist", reason.AlreadyDecided, reason.OutcomeUnknown},
		{"enlist", reason.NotFound, reason.OutcomeUnknown},
		{"enlist", reason.StepConflict, reason.StepConflict},
		{"commit", reason.IDExpired, reason.OutcomeUnknown},
		{"rollback", reason.AlreadyCommitted, reason.AlreadyCommitted},
		{"delete-service", reason.NotFound, reason.OutcomeUnknown},
		{"resolve", reason.NotAHazard, reason.OutcomeUnknown},
		{"transaction", reason.NotFound, reason.NotFound},
		{"drop-member", reason.UnknownMember, reason.UnknownMember},
	} {
		var got *reason.Error
		if err := afterLostTry(c.name, reason.New(c.told, "", "said")); !errors.As(err, &got) || got.Code != c.want {
			t.Errorf("%s refused with %s: told %v, want %s", c.name, c.told, err, c.want)
		}
	}
	if err := afterLostTry("submit", nil); err != nil {
		t.Errorf("what was done: %v", err)
	}
}
