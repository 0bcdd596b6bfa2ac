package replog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"github.com/assent-tx/assent/internal/mutant"
)

// errNotFound has the very text that the Raft library compares.
var errNotFound = errors.New("not found")

// database is the Pebble database of all groups.
type database struct {
	db    *pebble.DB
	nonce [nonceBytes]byte
	// synced: all records below this sequence number are on disk.
	synced atomic.Uint64
	log    *Log

	// mu excludes reads after Close: the Raft library has a goroutine that reads
	// now and then and that its shutdown does not wait for.
	mu     sync.RWMutex
	closed bool
}

func (d *database) newBatch() (*pebble.Batch, error) {
	b := d.db.NewBatch()
	var buf [noteBytes]byte
	return b, b.LogData(appendNote(buf[:0], d.nonce, d.synced.Load()), nil)
}

// commit makes a batch durable before it returns. An error is final: it was
// reported, and nothing is written any more.
func (d *database) commit(b *pebble.Batch) error {
	if err := d.log.failure(); err != nil {
		return err
	}
	how := pebble.Sync
	if mutant.On("log-skip-fsync") {
		how = pebble.NoSync
	}
	if err := b.Commit(how); err != nil {
		d.log.fail(fmt.Errorf("append: %w", err))
		return err
	}
	// The database reports some errors only to its logger and then returns nil.
	if err := d.log.failure(); err != nil && !mutant.On("log-ack-after-failure") {
		return err
	}
	if seq := uint64(b.SeqNum()); seq > 0 {
		end := seq + uint64(b.Count())
		for {
			old := d.synced.Load()
			if old >= end || d.synced.CompareAndSwap(old, end) {
				break
			}
		}
	}
	return nil
}

// close waits for reads that are under way.
func (d *database) close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	return d.db.Close()
}

// store is one group's part of the database. Entries are contiguous.
type store struct {
	*database
	shard uint32

	first, last atomic.Uint64 // 0: empty
	// writing is when the write under way began, in nanoseconds since the log's
	// start (never 0); 0: none. The watchdog reads it.
	writing atomic.Int64

	// Volume since start, in bytes and entries; read by the snapshot trigger.
	bytes, entries atomic.Uint64
	appended       func() // told after each append; must not block

	stableMu sync.Mutex
	stable   map[string][]byte // a copy of all stable keys

	term atomic.Uint64 // Raft's current term, as stored
}

var (
	_ raft.LogStore          = (*store)(nil)
	_ raft.StableStore       = (*store)(nil)
	_ raft.MonotonicLogStore = (*store)(nil)
)

// IsMonotonic tells the Raft library that the log has no holes.
func (s *store) IsMonotonic() bool { return true }

// FirstIndex is 0 for an empty log.
func (s *store) FirstIndex() (uint64, error) { return s.first.Load(), nil }

// LastIndex is 0 for an empty log.
func (s *store) LastIndex() (uint64, error) { return s.last.Load(), nil }

// GetLog reads one entry; raft.ErrLogNotFound if it is not there.
func (s *store) GetLog(index uint64, l *raft.Log) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return ErrClosed
	}
	if first := s.first.Load(); first == 0 || index < first || index > s.last.Load() {
		return raft.ErrLogNotFound
	}
	key := entryKey(s.shard, index)
	value, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		if index < s.first.Load() { // truncated meanwhile
			return raft.ErrLogNotFound
		}
		err = fmt.Errorf("%w: shard %d, entry %d is missing", ErrDamaged, s.shard, index)
		s.log.fail(err)
		return err
	}
	if err != nil {
		s.log.fail(fmt.Errorf("read shard %d, entry %d: %w", s.shard, index, err))
		return err
	}
	defer func() { _ = closer.Close() }()
	if err := getEntry(key, value, l); err != nil {
		err = fmt.Errorf("%w: shard %d, entry %d: %w", ErrDamaged, s.shard, index, err)
		s.log.fail(err)
		return err
	}
	return nil
}

// StoreLog appends one entry.
func (s *store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries in one synced write.
func (s *store) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	began := s.begin()
	defer s.writing.Store(0)
	next := s.last.Load() + 1
	if s.last.Load() == 0 {
		next = logs[0].Index // empty: begins anywhere, behind a snapshot
	}
	b, err := s.newBatch()
	if err != nil {
		return err
	}
	var size uint64
	for i, l := range logs {
		if l.Index != next+uint64(i) {
			_ = b.Close()
			err := fmt.Errorf("shard %d: entry %d appended where %d is next", s.shard, l.Index, next+uint64(i))
			s.log.fail(err)
			return err
		}
		n := entrySize(l)
		op := b.SetDeferred(entryKeyBytes, n)
		putEntryKey(op.Key, s.shard, l.Index)
		putEntry(op.Value, op.Key, l)
		if err := op.Finish(); err != nil {
			_ = b.Close()
			return err
		}
		size += uint64(n)
	}
	if err := s.commit(b); err != nil {
		return err // the batch belongs to the broken database
	}
	if err := b.Close(); err != nil {
		return err
	}
	s.last.Store(logs[len(logs)-1].Index)
	s.first.CompareAndSwap(0, logs[0].Index)
	s.bytes.Add(size)
	s.entries.Add(uint64(len(logs)))
	if s.log.cfg.Observer.Append != nil {
		s.log.cfg.Observer.Append(s.shard, s.log.now()-began, len(logs), int(size))
	}
	if s.appended != nil {
		s.appended()
	}
	return nil
}

// begin marks a write as under way and returns when it began.
func (s *store) begin() time.Duration {
	now := s.log.now()
	s.writing.Store(int64(max(now, 1)))
	return now
}

// DeleteRange removes entries at either end of the log, both bounds included.
func (s *store) DeleteRange(low, high uint64) error {
	first, last := s.first.Load(), s.last.Load()
	if first == 0 || high < first || low > last || low > high {
		return nil
	}
	low, high = max(low, first), min(high, last)
	if low > first && high < last {
		return fmt.Errorf("shard %d: removing entries %d to %d would tear a hole in %d to %d", s.shard, low, high, first, last)
	}
	if err := s.log.failure(); err != nil {
		return err
	}
	s.begin()
	defer s.writing.Store(0)
	b, err := s.newBatch()
	if err != nil {
		return err
	}
	if err := b.DeleteRange(entryKey(s.shard, low), entryKey(s.shard, high+1), nil); err != nil {
		_ = b.Close()
		return err
	}
	if low > first {
		// A tail that another leader replaces: the floor must come down first.
		s.last.Store(low - 1)
		if err := s.log.writeFloor(); err != nil {
			return err
		}
		if err := s.commit(b); err != nil {
			return err
		}
		return b.Close()
	}
	// A head that a snapshot covers. A crash may bring it back, in order and as a
	// whole, since it is one batch: no need to sync.
	switch {
	case high == last:
		s.first.Store(0)
		s.last.Store(0)
	default:
		s.first.Store(high + 1)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		s.log.fail(fmt.Errorf("truncate: %w", err))
		return err
	}
	return b.Close()
}

// Get of a key that was never set is an error with the text "not found".
func (s *store) Get(key []byte) ([]byte, error) {
	s.stableMu.Lock()
	defer s.stableMu.Unlock()
	v, ok := s.stable[string(key)]
	if !ok {
		return nil, errNotFound
	}
	return append([]byte(nil), v...), nil
}

// Set is durable when it returns.
func (s *store) Set(key, value []byte) error {
	s.stableMu.Lock()
	defer s.stableMu.Unlock()
	if old, ok := s.stable[string(key)]; ok && string(old) == string(value) {
		return nil
	}
	s.begin()
	defer s.writing.Store(0)
	b, err := s.newBatch()
	if err == nil {
		err = b.Set(stableKey(s.shard, key), value, nil)
	}
	if err == nil {
		err = s.commit(b)
	}
	if err != nil {
		return s.condemned(err)
	}
	s.stable[string(key)] = append([]byte(nil), value...)
	if string(key) == "CurrentTerm" && len(value) == 8 {
		s.term.Store(binary.BigEndian.Uint64(value))
	}
	return b.Close()
}

// condemned keeps a Raft goroutine from going on, or panicking, with a term or
// vote that is not on disk: it ends when the log is closed. During Open the
// error is returned instead.
func (s *store) condemned(err error) error {
	if !s.log.voting.Load() {
		return err
	}
	s.stableMu.Unlock()
	defer s.stableMu.Lock()
	<-s.log.closing
	runtime.Goexit()
	return err
}

// SetUint64 is durable when it returns.
func (s *store) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 of a key that was never set is an error with the text "not found".
func (s *store) GetUint64(key []byte) (uint64, error) {
	v, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("stable key %q holds %d bytes, not 8", key, len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

// recovered is what a group's part of the database holds at start.
type recovered struct {
	bytesAfterSnapshot   uint64
	entriesAfterSnapshot uint64
}

// recover reads all of the group's keys, so that bad blocks are met now and not
// in the middle of work, and checks that the entries have no hole and join the
// newest snapshot.
//
// A log that ends before a snapshot which a leader installed is what a crash left of
// the installation: the snapshot takes its place.
func (s *store) recover(dir string, snapshotIndex uint64, installed bool) (recovered, error) {
	var r recovered
	s.stable = map[string][]byte{}
	err := s.scan(kindStable, func(key, value []byte) error {
		s.stable[string(key[5:])] = append([]byte(nil), value...)
		return nil
	})
	if err != nil {
		return r, damaged(dir, "shard %d: %v", s.shard, err)
	}
	if term, err := s.GetUint64([]byte("CurrentTerm")); err == nil {
		s.term.Store(term)
	}
	var l raft.Log
	err = s.scan(kindEntry, func(key, value []byte) error {
		if err := getEntry(key, value, &l); err != nil {
			return err
		}
		last := s.last.Load()
		if last != 0 && l.Index != last+1 {
			return fmt.Errorf("entries %d to %d are missing", last+1, l.Index-1)
		}
		if s.first.Load() == 0 {
			s.first.Store(l.Index)
		}
		s.last.Store(l.Index)
		if l.Index > snapshotIndex {
			r.bytesAfterSnapshot += uint64(len(value))
			r.entriesAfterSnapshot++
		}
		return nil
	})
	if err != nil {
		return r, damaged(dir, "shard %d: %v", s.shard, err)
	}
	first, last := s.first.Load(), s.last.Load()
	if installed && last != 0 && last < snapshotIndex {
		return r, s.DeleteRange(first, last)
	}
	switch {
	case first > snapshotIndex+1:
		return r, damaged(dir, "shard %d: the log begins at entry %d, the newest snapshot ends at %d", s.shard, first, snapshotIndex)
	case last != 0 && last < snapshotIndex:
		return r, damaged(dir, "shard %d: the log ends at entry %d, before the newest snapshot's %d", s.shard, last, snapshotIndex)
	}
	return r, nil
}

func (s *store) scan(kind byte, visit func(key, value []byte) error) error {
	low := binary.BigEndian.AppendUint32([]byte{kind}, s.shard)
	high := binary.BigEndian.AppendUint32([]byte{kind}, s.shard+1)
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: low, UpperBound: high})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err == nil {
			err = visit(it.Key(), value)
		}
		if err != nil {
			return errors.Join(err, it.Close())
		}
	}
	return errors.Join(it.Error(), it.Close())
}
