package replog

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/assent-tx/assent/internal/mutant"
)

// errHalted answers entries that were committed but not applied, because the
// machine could not follow or the process is ending.
var errHalted = errors.New("not applied: the log has halted")

// follower stands between the Raft library's applier goroutine and a Machine.
// Once anything failed it applies nothing more: an entry is never skipped.
type follower struct {
	log     *Log
	shard   uint32
	machine Machine
	snaps   *snapStore
	entries []Entry // reused

	restoreErr error // of the restore at start

	applied atomic.Uint64 // index of the last entry given to the machine, or of the restored snapshot
}

var (
	_ raft.FSM         = (*follower)(nil)
	_ raft.BatchingFSM = (*follower)(nil)
)

// Apply is the single-entry form; the Raft library uses ApplyBatch.
func (f *follower) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch returns when the machine has applied the entries. The answers are
// nil, or errHalted.
func (f *follower) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	if err := f.apply(logs); err != nil {
		for i := range answers {
			answers[i] = err
		}
	}
	return answers
}

func (f *follower) apply(logs []*raft.Log) (err error) {
	if f.log.failure() != nil && !mutant.On("log-ack-after-failure") {
		return errHalted
	}
	f.entries = f.entries[:0]
	for _, l := range logs {
		if l.Type == raft.LogCommand {
			f.entries = append(f.entries, Entry{Index: l.Index, Term: l.Term, Data: l.Data})
		}
	}
	last := logs[len(logs)-1].Index
	defer func() {
		if p := recover(); p != nil {
			err = errHalted
			f.log.fail(fmt.Errorf("shard %d: panic while applying entries up to %d: %v\n%s", f.shard, last, p, debug.Stack()))
		}
	}()
	if len(f.entries) > 0 {
		if aerr := f.machine.Apply(f.entries); aerr != nil && !mutant.On("log-skip-failed-apply") {
			f.log.fail(fmt.Errorf("shard %d: apply entries up to %d: %w", f.shard, last, aerr))
			return errHalted
		}
	}
	clear(f.entries) // let go of the data
	f.applied.Store(last)
	return nil
}

// Snapshot captures the machine's state in stream order.
func (f *follower) Snapshot() (raft.FSMSnapshot, error) {
	if f.log.failure() != nil {
		return nil, errHalted
	}
	snap, err := f.machine.Snapshot()
	if err != nil {
		return nil, err
	}
	return &capture{follower: f, snap: snap}, nil
}

// Restore replaces the machine's state.
func (f *follower) Restore(r io.ReadCloser) error {
	defer func() { _ = r.Close() }()
	if err := f.machine.Restore(r); err != nil {
		if !f.log.started.Load() {
			f.restoreErr = err
		} else {
			f.log.fail(fmt.Errorf("shard %d: restore a snapshot that the leader sent: %w", f.shard, err))
		}
		return err
	}
	// The machine may stop before the end; the rest must be sound all the same.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	f.applied.Store(f.snaps.index.Load())
	return nil
}

type capture struct {
	follower *follower
	snap     Snapshot
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// Persist runs concurrently with further entries.
func (c *capture) Persist(sink raft.SnapshotSink) error {
	began := time.Now()
	w := &countingWriter{w: sink}
	err := c.snap.Persist(w)
	if err == nil {
		err = sink.Close()
	}
	if o := c.follower.log.cfg.Observer.Snapshot; o != nil {
		o(c.follower.shard, time.Since(began), w.n, err)
	}
	return err
}

func (c *capture) Release() { c.snap.Release() }
