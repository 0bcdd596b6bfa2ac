package shard

import "github.com/assent-tx/assent/internal/txn"

// Entries of the log: group commit without a timer. A batch closes when an append is free.

// openEntry is the entry that takes the next command; pass the result to command.
func (s *Shard) openEntry() []byte {
	if len(s.open) == 0 {
		s.open = make([]byte, txn.HeaderBytes, 4096)
	}
	return s.open
}

// command takes the open entry back with one command appended to it.
func (s *Shard) command(entry []byte) {
	s.pendingBytes += len(entry) - max(len(s.open), txn.HeaderBytes)
	s.open = entry
	s.openCount++
	if len(entry) >= s.cfg.MaxEntryBytes {
		s.seal()
	}
}

func (s *Shard) seal() {
	s.sealed = append(s.sealed, s.open)
	s.sealedCount = append(s.sealedCount, s.openCount)
	s.open, s.openCount = nil, 0
}

// lazyAck keeps an acknowledgement for whatever entry comes next. Losing it is
// harmless: the branch is told its decision again.
func (s *Shard) lazyAck(a txn.Ack) {
	s.lazyCommand(func(dst []byte) []byte { return txn.AppendAck(dst, a) })
}

// lazyCommand is lazyAck for another command that will be asked for again if it is lost.
func (s *Shard) lazyCommand(add func(dst []byte) []byte) {
	if len(s.lazy) == 0 {
		s.lazySinceUs = s.now.MonoUs
	}
	s.lazy = add(s.lazy)
	s.lazyCount++
}

func (s *Shard) fillEntries() {
	if s.leadEntry != nil {
		s.propose(s.leadEntry, 1)
		s.leadEntry, s.leadProposed = nil, s.leadEntry
	}
	if !s.leading {
		return
	}
	for s.mayPropose() && s.hasEntry() {
		if len(s.sealed) == 0 {
			s.openEntry()
			s.seal()
		}
		entry, count := s.sealed[0], s.sealedCount[0]
		s.sealed, s.sealedCount = s.sealed[1:], s.sealedCount[1:]
		s.pendingBytes -= len(entry) - txn.HeaderBytes
		entry = append(entry, s.lazy...)
		count += s.lazyCount
		s.lazy, s.lazyCount, s.lazyUrgent, s.wantEntry = s.lazy[:0], 0, false, false
		s.inFlight = append(s.inFlight, entry)
		s.proposedSeq++
		s.propose(entry, count)
	}
}

// mayPropose: an append costs much the same whatever it carries, so a small one waits for
// the one before it, and takes along what comes meanwhile.
func (s *Shard) mayPropose() bool {
	if len(s.inFlight) == 0 {
		return true
	}
	return len(s.inFlight) < s.cfg.MaxAppendsInFlight && (len(s.sealed) > 0 || s.openCount >= s.cfg.OverlapCommands)
}

func (s *Shard) propose(entry []byte, count int) {
	txn.PutHeader(entry, s.term, s.now.WallMs)
	s.out.Entries = append(s.out.Entries, entry)
	s.notice(Notice{Kind: NoticeProposed, N: count, Bytes: len(entry)})
}

func (s *Shard) hasEntry() bool {
	return len(s.sealed) > 0 || s.openCount > 0 || s.wantEntry ||
		len(s.lazy) > 0 && (s.lazyUrgent || len(s.lazy) >= s.cfg.MaxEntryBytes || s.now.MonoUs >= s.lazySinceUs+s.cfg.AckLingerUs)
}
