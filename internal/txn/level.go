package txn

import "fmt"

// Levels: what a cluster may write and how it decides is fixed by the level in its log,
// so that what was written before is read as it was meant, and so that two versions run
// side by side: the log reaches a level only when every member has announced that it
// knows it. Records of a level the log has not reached, or that this binary does not know,
// halt the replica; the snapshot, and with it the hash of the state, has the format of
// the log's level. What a level means never changes.
const (
	levelWoundWait = 1 // elders make the younger give way; locks over several shards

	// LevelSpread is from where on shards have dealings with each other.
	LevelSpread  = levelWoundWait
	levelMembers = 2 // members and placement; states are compared

	levelTop = levelMembers // of this source; a binary may know less, see Level
)

// needs is the level from which on a kind of record is written.
func (k kind) needs() uint32 {
	switch {
	case k >= kindPutMember:
		return levelMembers
	case k >= kindLevel:
		return levelWoundWait
	}
	return 0
}

// CommandLevel is the level that the log must have reached before an encoded command is
// written.
func CommandLevel(command []byte) uint32 {
	if len(command) == 0 {
		return 0
	}
	return kind(command[0]).needs()
}

// known refuses records that this binary, or the log, is not up to.
func (s *State) known(k kind, r *reader) bool {
	switch needs := k.needs(); {
	case k < kindBoot || k > lastKind || needs > Level:
		r.fail(fmt.Sprintf("record kind %d, written by a newer version", k))
		return false
	case needs > levelWoundWait && needs > s.level: // earlier kinds were written before levels were
		r.fail(fmt.Sprintf("record kind %d of level %d in a log of level %d", k, needs, s.level))
		return false
	}
	return true
}

func (s *State) applyLevel(level uint32, r *reader) {
	if level > Level {
		r.fail(fmt.Sprintf("level %d, this binary knows %d", level, Level))
		return
	}
	if level <= s.level {
		return
	}
	s.level = level
	if level >= levelWoundWait {
		s.locks.WoundWait()
	}
	s.emit(Effect{Kind: EffectLevel})
	s.breakCycles() // those who wait by now have been waiting under the earlier rule
}
