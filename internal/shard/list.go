package shard

import (
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// DefaultTimeoutMs is the timeout of a transaction that names none.
func (s *Shard) DefaultTimeoutMs() uint32 { return s.cfg.DefaultTimeoutMs }

// List returns at most limit transactions above an id that match, in order of ids.
func (s *Shard) List(after txnid.ID, limit int, match func(*txn.Txn) bool) []*View {
	found := s.st.Select(after, limit, match)
	views := make([]*View, len(found))
	for i, t := range found {
		views[i] = s.view(t, false)
	}
	return views
}

// InDoubt counts decided transactions that have not ended and returns the log
// time of the oldest such decision in Unix ms; 0 if there is none.
func (s *Shard) InDoubt() (n int, oldestMs uint64) {
	for _, r := range s.runs { // order does not matter: a count and a minimum
		if r.t.Status.Decided() {
			n++
			if oldestMs == 0 || r.t.DecidedMs < oldestMs {
				oldestMs = r.t.DecidedMs
			}
		}
	}
	return n, oldestMs
}
