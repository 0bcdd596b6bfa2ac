package txn

import "fmt"

// Reincarnation is what changes in a shard's snapshot when its cluster is restored from a
// backup.
type Reincarnation struct {
	Cluster [16]byte
	// Incarnation is greater than that of every cluster of this id that ran before:
	// fencing tokens begin with it.
	Incarnation uint32
	// ExpireMs raises W: an id made until then (Unix ms) that the snapshot does not know
	// may have run, and may have ended either way, after the snapshot was taken. It
	// never begins again, and nobody is told that it aborted.
	ExpireMs uint64
}

// Reincarnate rewrites a snapshot for a cluster that is restored from it. The members of
// the old cluster, and where they were to vote, are dropped: the new one begins with a
// member of its own. applied is the index of the last entry in the snapshot.
func Reincarnate(shard, shards uint32, snapshot []byte, c Reincarnation) (rewritten []byte, applied uint64, err error) {
	s, err := Restore(shard, shards, snapshot)
	if err != nil {
		return nil, 0, err
	}
	switch {
	case !s.booted:
		return nil, 0, fmt.Errorf("%w: snapshot of a shard that never had a leader", ErrFormat)
	case s.cluster != c.Cluster:
		return nil, 0, fmt.Errorf("%w: snapshot of cluster %x, not %x", ErrFormat, s.cluster, c.Cluster)
	case s.incarn >= c.Incarnation:
		return nil, 0, fmt.Errorf("%w: snapshot of incarnation %d, not older than %d", ErrFormat, s.incarn, c.Incarnation)
	case c.ExpireMs >= 1<<48:
		return nil, 0, fmt.Errorf("%w: no id has the time %d", ErrFormat, c.ExpireMs)
	}
	s.incarn = c.Incarnation
	s.w = max(s.w, c.ExpireMs)
	if len(s.members) > 0 || len(s.placement) > 0 {
		s.members, s.placement = map[string]*Member{}, map[uint32][]string{}
		s.membersAt = s.applied
	}
	if err := s.Check(); err != nil {
		return nil, 0, err
	}
	_ = s.Capture().Write(func(b []byte) error { // it fails only if the function does
		rewritten = append(rewritten, b...)
		return nil
	})
	return rewritten, s.applied, nil
}
