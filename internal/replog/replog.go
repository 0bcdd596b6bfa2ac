// Package replog is a durable, replicated order of opaque bytes: one Raft group
// per shard, all groups of a node in one database, so that concurrent appends
// share one fsync.
//
//	Propose -> group commit, replicate, fsync -> Machine.Apply, in one order on every replica
//
// The applied stream is the only truth. The answer to a proposal gives
// back-pressure and errors; it is never needed to know what happened.
package replog

import (
	"errors"
	"io"
	"net"
	"time"
)

// What became of a proposal that did not succeed.
var (
	// ErrNotAppended: certainly not in the log, now or later.
	ErrNotAppended = errors.New("not appended")
	// ErrUnknown: may be in the log, now or later. The applied stream tells.
	ErrUnknown = errors.New("outcome of the append unknown")
	// ErrNotTaken: a voter that was asked to lead does not.
	ErrNotTaken = errors.New("the lead was not taken over")
	// ErrClosed: the log was closed; an earlier proposal may still be in it.
	ErrClosed = errors.New("log closed")
)

// Entry is one committed entry.
type Entry struct {
	Index uint64
	Term  uint64 // of the leader that appended it
	Data  []byte // valid during Apply only
}

// Machine consumes a group's applied stream. Its methods are called from one
// goroutine of the group, in order.
type Machine interface {
	// Apply returns when the entries have been applied: a snapshot taken next is
	// labelled with the last of them. An error ends the process: it means that
	// this replica cannot follow (unknown record, broken invariant).
	Apply(entries []Entry) error
	// Snapshot captures the state at this point of the stream, quickly; Persist
	// writes it later, concurrently with further Apply calls.
	Snapshot() (Snapshot, error)
	// Restore replaces the state by a snapshot's.
	Restore(r io.Reader) error
}

// Snapshot is a captured state.
type Snapshot interface {
	Persist(w io.Writer) error // called at most once
	Release()                  // called once, at the end
}

// Leadership tells a group's change of leadership. Term is the term in which this
// node leads. Flips may be merged: only an applied entry of Term proves the lead.
type Leadership struct {
	Leading bool
	Term    uint64
}

// Group is the log of one shard on this node.
type Group interface {
	// Propose appends data, which must not change afterwards. It may block while
	// the pipeline is full; callers use a goroutine of their own and propose in
	// order. done runs exactly once, on another goroutine, with nil once the entry
	// is applied here, or with an error that wraps ErrNotAppended, ErrUnknown or
	// ErrClosed. It must be quick and not propose: it holds up the next done.
	Propose(data []byte, done func(error))
	// Leadership delivers changes, latest value only.
	Leadership() <-chan Leadership
	// Leader is the member id of the leader as far as this node knows, or empty. A
	// hint: it may have been replaced.
	Leader() string
	// Members of the group, as far as this node knows; none: it has no replica here.
	Members() []Replica
	// AddLearner takes a member in that receives the log and has no vote; Promote gives
	// it one; Remove takes it out; Transfer asks a voter to lead. Only the
	// leader can; they return when the change is committed, or began in the case of
	// Transfer. Repeating them is harmless. Errors wrap ErrNotAppended or ErrUnknown;
	// that of a Transfer which was not taken ErrNotTaken, and then the same voter is not asked
	// again for 10 s: the library would take no proposals while it waits for its senders.
	AddLearner(member string) error
	Promote(member string) error
	Remove(member string) error
	Transfer(to string) error
	// Stats of this group since start.
	Stats() Stats
}

// Replica is a member of a group.
type Replica struct {
	Member string
	Voter  bool
}

// Network connects the groups of this node with those of other nodes.
type Network interface {
	// Listener accepts the connections that other nodes dial for the shard.
	Listener(shard uint32) net.Listener
	// Dial connects to a member's shard.
	Dial(member string, shard uint32, timeout time.Duration) (net.Conn, error)
}

// Stats counts a group's work since start.
type Stats struct {
	Appends       uint64 // entries appended by this node's proposals
	AppendedBytes uint64
	Fsyncs        uint64 // synced writes of the shared database (all groups)
	Snapshots     uint64
	FirstIndex    uint64
	LastIndex     uint64
	AppliedIndex  uint64
	SnapshotIndex uint64
}
