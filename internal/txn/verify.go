package txn

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/assent-tx/assent/internal/mutant"
)

// Replicas compare their states: equal logs must make equal states, and a replica of which
// this is not true - a fault of Apply, of a snapshot, of memory - must not go on.
//
//	VERIFY applied --> every replica captures its state at this point of the log
//	                   and hashes it beside its loop; Hashed takes the result
//	HASH {point, hash of the leader} applied --> a replica whose own differs halts
//
// The hash is that of the snapshot's bytes, which contain the whole replicated state in a
// fixed order, in the format of the log's level. Apply only captures, which snapshots do
// as well and more often; the rest, more than half of the cost (BenchmarkCapture), is
// nobody's wait. A hash that Apply kept up itself would cost every transaction, and would
// be of what Apply believes to have changed: a faulty snapshot, or a change that tells
// nobody, would escape it.
//
// Points and hashes are not replicated state. A replica that was restored from a snapshot
// behind a point, or has not hashed it when it stops, just misses that comparison. The
// leader's hash counts: which of two states is right cannot be told from them, and that
// both go on is what must not be.

// ErrDiverged is wrapped by the error of a replica whose state is not the leader's.
var ErrDiverged = errors.New("the state of this replica differs from the leader's")

// maxPoints are remembered; hashes come back long before as many are made.
const maxPoints = 8

// point of the log at which states are compared.
type point struct {
	index       uint64
	own, logged *[32]byte // nil: not known yet
}

// LastVerify is the index of the last VERIFY that was applied here; 0: none.
func (s *State) LastVerify() uint64 {
	if n := len(s.points); n > 0 {
		return s.points[n-1].index
	}
	return 0
}

func (s *State) point(index uint64) *point {
	for i := range s.points {
		if s.points[i].index == index {
			return &s.points[i]
		}
	}
	return nil
}

func (s *State) applyVerify() {
	if s.LastVerify() == s.applied {
		return // one of an entry is enough
	}
	if len(s.points) >= maxPoints {
		s.points = append(s.points[:0], s.points[1:]...)
	}
	s.points = append(s.points, point{index: s.applied})
	s.emit(Effect{Kind: EffectVerify, Token: s.applied, Capture: s.Capture()})
}

func (s *State) applyHash(index uint64, sum [32]byte) error {
	p := s.point(index)
	if p == nil || p.logged != nil { // restored behind it; or a second leader logs it
		return nil
	}
	if p.logged = &sum; p.own == nil {
		return nil
	}
	if err := s.compare(p); err != nil {
		return err
	}
	s.emit(Effect{Kind: EffectVerified, Token: index})
	return nil
}

// Verdict is what a replica knows of a point once it has its own hash.
type Verdict uint8

// Verdicts.
const (
	VerdictNone     Verdict = iota // it is none of this replica's points any more
	VerdictUnlogged                // no leader has logged a hash yet
	VerdictEqual                   // this state is the leader's
)

// Hashed takes the hash of an EffectVerify's capture. An error is ErrDiverged, and Apply
// returns it from now on.
func (s *State) Hashed(index uint64, sum [32]byte) (Verdict, error) {
	p := s.point(index)
	switch {
	case p == nil || p.own != nil:
		return VerdictNone, nil
	case p.logged == nil:
		p.own = &sum
		return VerdictUnlogged, nil
	}
	p.own = &sum
	return VerdictEqual, s.compare(p)
}

func (s *State) compare(p *point) error {
	if *p.own != *p.logged && !mutant.On("divergence-ignored") {
		s.diverged = fmt.Errorf("%w: at entry %d its hash is %x, and the leader logged %x", ErrDiverged, p.index, *p.own, *p.logged)
		return s.diverged
	}
	return nil
}

// Hash is the SHA-256 of the snapshot: equal on replicas at the same index.
func (c *Capture) Hash() [32]byte {
	h := sha256.New()
	_ = c.Write(func(b []byte) error {
		h.Write(b)
		return nil
	})
	var sum [32]byte
	copy(sum[:], h.Sum(nil))
	return sum
}

// AppendVerify appends: all replicas hash their state at this point.
func AppendVerify(dst []byte) []byte { return append(dst, byte(kindVerify)) }

// AppendHash appends the leader's hash at the VERIFY of an entry.
func AppendHash(dst []byte, index uint64, sum [32]byte) []byte {
	return append(uv(append(dst, byte(kindHash)), index), sum[:]...)
}
