package shard

import "github.com/assent-tx/assent/internal/txn"

// Replicas compare their states now and then: see package txn. Every replica hands its
// captures to its driver; the leader logs its own hash.

// Capture is the state at a point where replicas are compared.
type Capture struct {
	Index uint64
	State *txn.Capture
}

// Hashed brings the hash of a Capture.
type Hashed struct {
	Index uint64
	Hash  [32]byte
}

func (*Hashed) event() {}

// verify proposes a point if there is enough that could have gone wrong since the last.
func (s *Shard) verify() {
	s.verifyUs = s.now.MonoUs + s.cfg.HashCheckIntervalUs
	if s.st.Applied()-s.st.LastVerify() < s.cfg.HashCheckEntries {
		return
	}
	if command := txn.AppendVerify(nil); s.tooNew(command) == nil {
		s.command(append(s.openEntry(), command...))
	}
}

// hashed compares or logs a hash. A replica that differs leads no more; its next Apply
// says why.
func (s *Shard) hashed(ev *Hashed) {
	verdict, err := s.st.Hashed(ev.Index, ev.Hash)
	switch {
	case err != nil:
		s.notice(Notice{Kind: NoticeDiverged, Text: err.Error()})
		s.follow()
	case verdict == txn.VerdictEqual:
		s.notice(Notice{Kind: NoticeVerified, N: int(ev.Index)})
	case verdict == txn.VerdictUnlogged && s.leading:
		s.command(txn.AppendHash(s.openEntry(), ev.Index, ev.Hash))
	}
}
