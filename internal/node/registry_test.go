package node

import (
	"testing"

	"github.com/assent-tx/assent/internal/reason"
)

// TestRegistryBehind: a service that is registered, but not known to this node in time, is
// no unknown one: the request is to be sent again.
func TestRegistryBehind(t *testing.T) {
	n := &Node{stop: make(chan struct{})}
	n.registry.Store(&registry{byName: map[string]*registered{}})
	if err := n.notHereYet(t.Context(), "late"); err.Code != reason.NotReady || err.RetryAfterMs == 0 {
		t.Errorf("it did not come: %+v", err)
	}
	n.registry.Store(&registry{byName: map[string]*registered{"late": {}}})
	if err := n.notHereYet(t.Context(), "late"); err.Code != reason.UnknownService || err.RetryAfterMs == 0 { // computed anew
		t.Errorf("it came: %+v", err)
	}
}
