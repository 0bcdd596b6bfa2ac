package replog

import (
	"errors"
	"fmt"
)

// Why a data directory was refused, or why the process must end.
var (
	// ErrForeignDirectory: not empty, and not made by this program.
	ErrForeignDirectory = errors.New("not a data directory of this program")
	// ErrOtherNode: made by another node.
	ErrOtherNode = errors.New("data directory of another node")
	// ErrOtherCluster: made by a node of another cluster.
	ErrOtherCluster = errors.New("data directory of another cluster")
	// ErrOtherShardCount: made for another number of shards.
	ErrOtherShardCount = errors.New("data directory with another shard count")
	// ErrNewerFormat: written by a later version of this program.
	ErrNewerFormat = errors.New("data directory of a newer format")
	// ErrLocked: in use by another process.
	ErrLocked = errors.New("data directory in use")
	// ErrDamaged: bytes that were once durable are missing or wrong.
	ErrDamaged = errors.New("data directory damaged")
	// ErrAppendStalled: a write was not on disk within AppendStallMs.
	ErrAppendStalled = errors.New("append stalled")
	// ErrTooLarge: a proposal over MaxEntryBytes; it wraps ErrNotAppended.
	ErrTooLarge = fmt.Errorf("entry too large: %w", ErrNotAppended)
)

// DirError is a refused data directory. It wraps one of the sentinels above.
type DirError struct {
	Dir    string
	Err    error  // the sentinel
	Detail string // what was found
	Hint   string // what to do about it
}

func (e *DirError) Error() string {
	return fmt.Sprintf("%s: %v: %s; %s", e.Dir, e.Err, e.Detail, e.Hint)
}

func (e *DirError) Unwrap() error { return e.Err }

const damagedHint = "nothing was changed; keep a copy of the directory for analysis, then restore it from a backup " +
	"taken while the node was stopped (a replica of a cluster is instead removed and joins again with an empty directory)"

// keptHint is for damage that shows only after the database has been opened, which
// rewrites its files.
const keptHint = "the files as they were found are in its directory " + foundName + "; keep them for analysis, then restore the directory " +
	"from a backup taken while the node was stopped (a replica of a cluster is instead removed and joins again with an empty directory)"

func damaged(dir, format string, args ...any) error {
	return &DirError{Dir: dir, Err: ErrDamaged, Detail: fmt.Sprintf(format, args...), Hint: damagedHint}
}
