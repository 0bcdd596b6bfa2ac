package txn

import (
	"fmt"
	"sort"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txnid"
)

// Versions of the snapshot. The first had no interactive transactions and no execute
// endpoints, the second no locks over several shards; they are read, and written no more.
// The third has no members. It is written until the log's level allows them, so that a
// member of the version before can read it and hashes the same bytes.
const (
	snapshotVersion1 = 1
	snapshotVersion2 = 2
	snapshotVersion3 = 3
	snapshotVersion4 = 4
)

// snapshotVersion is the version that is written at a level.
func snapshotVersion(level uint32) byte {
	if level >= levelMembers {
		return snapshotVersion4
	}
	return snapshotVersion3
}

// lockVersion is the lock table's part of a version.
func lockVersion(version byte) byte {
	if version == snapshotVersion1 {
		return lock.SnapshotVersion1
	}
	return lock.SnapshotVersion
}

// Capture is a state at one index. Taking it costs time in proportion to the open
// transactions; ended ones are immutable and only pointed at.
type Capture struct {
	head    []byte // everything but the ended transactions
	hazards []*Txn
	done    []*Txn
}

// Capture captures the state. Later Apply calls do not change it.
func (s *State) Capture() *Capture {
	c := &Capture{
		head: s.appendHead(make([]byte, 0, 4096+256*s.live)),
		done: s.done.items[s.done.head:len(s.done.items):len(s.done.items)],
	}
	// pop clears the slots it leaves behind, so the queue's own array cannot be shared.
	c.done = append([]*Txn(nil), c.done...)
	for _, id := range s.hazards {
		c.hazards = append(c.hazards, s.txns[id])
	}
	return c
}

// Write hands the snapshot's bytes to put, in pieces.
func (c *Capture) Write(put func([]byte) error) error {
	const pieceBytes = 256 << 10
	buf := append(make([]byte, 0, pieceBytes+4096), c.head...)
	for _, list := range [2][]*Txn{c.hazards, c.done} {
		buf = uv(buf, uint64(len(list)))
		for _, t := range list {
			buf = appendTxn(buf, t)
			if len(buf) >= pieceBytes {
				if err := put(buf); err != nil {
					return err
				}
				buf = buf[:0]
			}
		}
	}
	return put(buf)
}

// Hash is the SHA-256 of the snapshot: equal on replicas at the same index.
func (s *State) Hash() [32]byte { return s.Capture().Hash() }

func (s *State) appendHead(dst []byte) []byte {
	dst = append(dst, snapshotVersion(s.level))
	dst = uv(dst, uint64(s.shard))
	dst = uv(dst, uint64(s.shards))
	dst = uv(dst, s.applied)
	dst = uv(dst, s.term)
	dst = uv(dst, s.nowMs)
	dst = flag(dst, s.booted)
	dst = append(dst, s.cluster[:]...)
	dst = uv(dst, uint64(s.incarn))
	dst = uv(dst, s.grants)
	dst = uv(dst, s.w)
	dst = uv(dst, s.nextGen)
	dst = uv(dst, uint64(s.level))
	services := s.Services()
	dst = uv(dst, uint64(len(services)))
	for _, v := range services {
		dst = uv(str(appendService(dst, v), v.ExecuteURL), uint64(v.Partitions))
	}
	names := make([]string, 0, len(s.served))
	for name := range s.served {
		names = append(names, name)
	}
	sort.Strings(names)
	dst = uv(dst, uint64(len(names)))
	for _, name := range names {
		dst = str(dst, name)
		dst = uv(dst, s.served[name].generation)
		dst = flag(dst, s.served[name].drained)
	}
	live := s.LiveIDs()
	dst = uv(dst, uint64(len(live)))
	for _, id := range live {
		dst = appendTxn(dst, s.txns[id])
	}
	if s.level >= levelMembers {
		dst = s.appendMembers(dst)
	}
	return s.locks.AppendSnapshot(s.appendClaims(dst))
}

// LiveIDs lists the transactions that have not ended, in order of ids.
func (s *State) LiveIDs() []txnid.ID {
	live := make([]txnid.ID, 0, s.live)
	for _, id := range s.liveHeap { // every open transaction, and some that have ended
		if t := s.txns[id]; t != nil && !t.Status.Ended() {
			live = append(live, id)
		}
	}
	sort.Slice(live, func(i, j int) bool { return live[i].Less(live[j]) })
	return live
}

func appendTxn(dst []byte, t *Txn) []byte {
	dst = append(dst, t.ID[:]...)
	dst = append(dst, t.Digest[:]...)
	dst = append(dst, byte(t.Status))
	dst = flag(dst, t.NeverBegun)
	dst = flag(dst, t.OnePhase)
	dst = flag(dst, t.locked)
	dst = uv(dst, uint64(t.TimeoutMs))
	dst = uv(dst, t.Token)
	dst = uv(dst, t.BeganMs)
	dst = uv(dst, t.GrantedMs)
	dst = uv(dst, t.DecidedMs)
	dst = uv(dst, t.EndedMs)
	dst = str(dst, t.TraceParent)
	dst = flag(dst, t.Abort != nil)
	if t.Abort != nil {
		dst = str(dst, string(t.Abort.Reason))
		dst = str(dst, t.Abort.Message)
		dst = str(dst, t.Abort.Service)
	}
	dst = str(dst, t.Resolution)
	dst = uv(dst, uint64(len(t.Branches)))
	for i := range t.Branches {
		b := &t.Branches[i]
		dst = str(dst, b.Service)
		dst = uv(dst, b.Generation)
		dst = flag(dst, b.Isolated)
		dst = uv(dst, uint64(b.Count))
		dst = append(dst, b.Digest[:]...)
		dst = append(dst, byte(b.Fate))
		dst = appendList(dst, b.Ops)
	}
	dst = flag(dst, t.Interactive)
	if t.Interactive {
		dst = appendInteractive(dst, t)
	}
	return appendForeign(dst, t)
}

func appendList(dst []byte, list [][]byte) []byte {
	dst = uv(dst, uint64(len(list)))
	for _, v := range list {
		dst = bin(dst, v)
	}
	return dst
}

func appendInteractive(dst []byte, t *Txn) []byte {
	dst = uv(dst, uint64(t.IdleMs))
	dst = uv(dst, t.AgeMs)
	dst = flag(dst, t.StepPending)
	for i := range t.Branches {
		dst = flag(dst, t.Branches[i].Contacted)
		dst = appendList(dst, t.Branches[i].Executed)
	}
	dst = uv(dst, uint64(len(t.Steps)))
	for i := range t.Steps {
		step := &t.Steps[i]
		dst = uv(dst, uint64(step.Number))
		dst = append(dst, step.Digest[:]...)
		dst = uv(dst, uint64(len(step.Ops)))
		for _, op := range step.Ops {
			dst = uv(dst, uint64(op.Branch))
			dst = flag(dst, op.Now)
			dst = uv(dst, uint64(op.Index))
		}
	}
	return dst
}

func (r *reader) txn(version byte, intern func(string) string) *Txn {
	t := &Txn{ID: r.id(), Digest: r.digest(), Status: Status(r.byte())}
	if t.Status < Active || t.Status > Aborted {
		r.fail("unknown status")
		return t
	}
	t.NeverBegun = r.bool()
	t.OnePhase = r.bool()
	t.locked = r.bool()
	t.TimeoutMs = r.uint32("timeout")
	t.Token = r.uint()
	t.BeganMs = r.uint()
	t.GrantedMs = r.uint()
	t.DecidedMs = r.uint()
	t.EndedMs = r.uint()
	t.TraceParent = r.string()
	if r.bool() {
		t.Abort = &Abort{Reason: reason.Code(r.string()), Message: r.string(), Service: r.string()}
	}
	t.Resolution = r.string()
	n := r.count(MaxBranches, "branches")
	t.Branches = make([]Branch, n)
	for i := range t.Branches {
		b := &t.Branches[i]
		b.Service = intern(r.string())
		b.Generation = r.uint()
		b.Isolated = r.bool()
		b.Count = r.uint32("operations")
		b.Digest = r.digest()
		b.Fate = r.fate()
		if b.Ops = r.list(); r.err != nil {
			return t
		}
	}
	t.AgeMs = t.BeganMs
	if version > snapshotVersion1 {
		if t.Interactive = r.bool(); t.Interactive {
			r.interactive(t)
		}
	}
	if version > snapshotVersion2 {
		r.foreign(t, intern)
	}
	return t
}

// list reads payloads and copies them.
func (r *reader) list() (list [][]byte) {
	for n := r.count(MaxOps, "operations"); n > 0 && r.err == nil; n-- {
		list = append(list, append([]byte(nil), r.bytes()...))
	}
	return list
}

func (r *reader) interactive(t *Txn) {
	t.IdleMs = r.uint32("idle timeout")
	t.AgeMs = r.uint()
	t.StepPending = r.bool()
	for i := range t.Branches {
		b := &t.Branches[i]
		b.Contacted = r.bool()
		b.Executed = r.list()
		for _, list := range [2][][]byte{b.Executed, b.Ops} {
			for _, payload := range list {
				t.stepBytes += len(payload)
			}
		}
	}
	for n := r.count(MaxSteps, "steps"); n > 0 && r.err == nil; n-- {
		step := Step{Number: r.uint32("step"), Digest: r.digest()}
		for n := r.count(MaxOps, "operations"); n > 0 && r.err == nil; n-- {
			op := StepOp{Branch: r.uint32("branch"), Now: r.bool(), Index: r.uint32("operation")}
			if int(op.Branch) >= len(t.Branches) {
				r.fail("operation of no branch")
				return
			}
			b := &t.Branches[op.Branch]
			if list := b.Ops; !op.Now && int(op.Index) >= len(list) || op.Now && int(op.Index) >= len(b.Executed) {
				r.fail("operation that its branch does not have")
				return
			}
			step.Ops = append(step.Ops, op)
		}
		t.Steps = append(t.Steps, step)
	}
}

// Restore reads a snapshot of the same shard.
func Restore(shard, shards uint32, snapshot []byte) (*State, error) {
	s := New(shard, shards)
	s.registry = 1
	r := &reader{b: snapshot}
	version := r.byte()
	if newest := snapshotVersion(Level); version < snapshotVersion1 || version > newest {
		r.fail(fmt.Sprintf("snapshot version %d, this binary knows %d", version, newest))
	}
	if a, b := r.uint(), r.uint(); a != uint64(shard) || b != uint64(shards) {
		r.fail(fmt.Sprintf("snapshot of shard %d of %d read as shard %d of %d", a, b, shard, shards))
	}
	s.applied = r.uint()
	s.term = r.uint()
	s.nowMs = r.uint()
	s.booted = r.bool()
	copy(s.cluster[:], r.take(len(s.cluster)))
	s.incarn = r.uint32("incarnation")
	s.grants = r.uint()
	s.w = r.uint()
	s.nextGen = r.uint()
	if version > snapshotVersion2 {
		s.level = r.uint32("level")
	}
	if s.level > Level {
		r.fail(fmt.Sprintf("snapshot at level %d, this binary knows %d", s.level, Level))
	}
	if version >= snapshotVersion3 && version != snapshotVersion(s.level) {
		r.fail(fmt.Sprintf("snapshot of version %d at level %d", version, s.level))
	}
	for n := r.count(MaxServices, "services"); n > 0 && r.err == nil; n-- {
		v := r.service()
		if version > snapshotVersion1 {
			v.ExecuteURL = r.string()
		}
		if version > snapshotVersion2 {
			v.Partitions = r.uint32("partitions")
		}
		s.services[v.Name] = v
	}
	for n := r.count(len(r.b), "served services"); n > 0 && r.err == nil; n-- {
		v := &served{name: r.string(), generation: r.uint(), drained: r.bool()}
		s.served[v.name] = v
	}
	for n := r.count(len(r.b), "open transactions"); n > 0 && r.err == nil; n-- {
		s.restoreLive(version, r)
	}
	if version > snapshotVersion3 {
		s.restoreMembers(r)
	}
	if version > snapshotVersion2 {
		s.restoreClaims(r)
	}
	if r.err == nil {
		rest, err := s.locks.Restore(lockVersion(version), r.b)
		if err != nil {
			r.fail(err.Error())
		} else {
			r.b = rest
		}
	}
	if s.level >= levelWoundWait {
		s.locks.WoundWait()
	}
	for n := r.count(MaxHazards, "hazards"); n > 0 && r.err == nil; n-- {
		t := r.txn(version, s.intern)
		s.txns[t.ID] = t
		s.hazards = append(s.hazards, t.ID)
	}
	for n := r.count(len(r.b), "ended transactions"); n > 0 && r.err == nil; n-- {
		t := r.txn(version, s.intern)
		s.txns[t.ID] = t
		s.done.push(t)
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("bytes after the end")
	}
	if r.err != nil {
		return nil, r.err
	}
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("%w: snapshot contradicts itself: %w", ErrFormat, err)
	}
	return s, nil
}

func (s *State) restoreLive(version byte, r *reader) {
	t := r.txn(version, s.intern)
	if r.err != nil {
		return
	}
	s.txns[t.ID] = t
	s.live++
	s.liveHeap.push(t.ID)
	for i := range t.Branches {
		v := s.served[t.Branches[i].Service]
		if v == nil {
			r.fail("branch at a service that the shard does not know")
			return
		}
		v.open++
	}
}
