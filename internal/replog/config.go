package replog

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Config of a node's log. Zero values of the limits mean their defaults.
type Config struct {
	// Dir is the data directory. It is created (mode 0700) if absent; it must be
	// empty or made by an earlier Open with the same identity.
	Dir string
	// NodeID names this node within its cluster, for ever: 1 to 64 characters of
	// letters, digits, '-', '_' and '.'.
	NodeID string
	// ClusterID, if not empty, is the cluster the directory must belong to: 32
	// hexadecimal digits. A new directory takes it; empty: a random one is made.
	ClusterID string
	// Founders are the member ids of all founders of a new cluster, in the same order at
	// each of them; empty: this node alone. Replicas of them vote in a group: shard k
	// begins with those from the k-th on. Both are recorded in a new directory.
	Founders []string
	Replicas int
	// Join makes a new directory wait for a cluster (ClusterID) to take this node in,
	// instead of founding one.
	Join bool
	// Incarnation of a new directory; 0: 1.
	Incarnation uint64
	// Peers connects the groups with those of other nodes; nil: nobody is reached.
	Peers Network
	// Machines consume the groups' streams; their number is the shard count,
	// fixed when the directory is made. 1 to 1,024.
	Machines []Machine
	// Logger receives this package's, the Raft library's and the database's
	// messages, warnings and above. nil: slog.Default().
	Logger *slog.Logger
	// OnFatal is called once, on a goroutine of its own, when the process must
	// end: a write or sync failed or hangs, data was found damaged, or a machine
	// cannot follow. From then on no proposal succeeds. nil: log and os.Exit(ExitFatal).
	OnFatal func(error)
	// Observer is told of work done. Its functions must be quick.
	Observer Observer

	// ElectionTimeoutMs is how long a voter waits for a leader before it stands;
	// up to twice that (random). A lone voter stands at once. Default 500.
	ElectionTimeoutMs int
	still             bool // of tests: a lone voter waits that long, too
	// AppendStallMs: an append or vote not on disk after that time ends the
	// process. Default 10,000.
	AppendStallMs int
	// MaxEntryBytes refuses larger proposals. Default 16 MiB, at most 256 MiB.
	MaxEntryBytes int
	// MaxBatchEntries bounds the entries of one append (group commit) and of one
	// Machine.Apply. Default 256, at most 1,024.
	MaxBatchEntries int
	// MaxPendingProposals and MaxPendingBytes bound what a group has accepted and
	// not yet finished; Propose blocks beyond. Defaults 4,096 and 64 MiB.
	MaxPendingProposals int
	MaxPendingBytes     int
	// SnapshotAfterBytes and SnapshotAfterEntries: a snapshot is taken when that
	// much was appended to a group since the last. Defaults 64 MiB and 500,000.
	SnapshotAfterBytes   int64
	SnapshotAfterEntries uint64
	// TrailingEntries stay in the log below a snapshot. Default 1,024.
	TrailingEntries uint64
	// RetainSnapshots is how many snapshots of a group are kept. Default 2.
	RetainSnapshots int
	// MemTableBytes is the size of the database's memory table, and about that of
	// a write-ahead file: what a restart replays. Default 64 MiB.
	MemTableBytes uint64
	// CloseTimeoutMs bounds how long Close waits for accepted proposals. Default 2,000.
	CloseTimeoutMs int

	// FS replaces the file system, for tests. nil: the operating system's, with
	// files 0600 and directories 0700.
	FS vfs.FS
}

// Observer is told of work done. Functions may be nil; they run on the path that
// they observe.
type Observer struct {
	// Append: one synced write of a group's entries.
	Append func(shard uint32, took time.Duration, entries, bytes int)
	// Snapshot: one finished or failed snapshot; bytes is its size.
	Snapshot func(shard uint32, took time.Duration, bytes int64, err error)
}

// ExitFatal is the exit status of the process when OnFatal is nil.
const ExitFatal = 3

const (
	maxShards         = 1024
	maxEntryBytes     = 256 << 20
	maxNodeIDChars    = 64
	snapshotRetryWait = time.Second
	openGiveUp        = time.Second
)

func (c *Config) withDefaults() (Config, error) {
	d := *c
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	for _, v := range []struct {
		name   string
		field  *int
		preset int
		min    int
		max    int
	}{
		{"ElectionTimeoutMs", &d.ElectionTimeoutMs, 500, 5, 600_000},
		{"AppendStallMs", &d.AppendStallMs, 10_000, 10, 3_600_000},
		{"MaxEntryBytes", &d.MaxEntryBytes, 16 << 20, 1, maxEntryBytes},
		{"MaxBatchEntries", &d.MaxBatchEntries, 256, 1, 1024},
		{"MaxPendingProposals", &d.MaxPendingProposals, 4096, 1, 1 << 20},
		{"MaxPendingBytes", &d.MaxPendingBytes, 64 << 20, 1, 1 << 30},
		{"RetainSnapshots", &d.RetainSnapshots, 2, 1, 100},
		{"CloseTimeoutMs", &d.CloseTimeoutMs, 2_000, 1, 600_000},
	} {
		if *v.field == 0 {
			*v.field = v.preset
		}
		if *v.field < v.min || *v.field > v.max {
			return d, fmt.Errorf("replog: %s is %d, must be %d to %d", v.name, *v.field, v.min, v.max)
		}
	}
	if d.SnapshotAfterBytes == 0 {
		d.SnapshotAfterBytes = 64 << 20
	}
	if d.SnapshotAfterEntries == 0 {
		d.SnapshotAfterEntries = 500_000
	}
	if d.TrailingEntries == 0 {
		d.TrailingEntries = 1024
	}
	if d.MemTableBytes == 0 {
		d.MemTableBytes = 64 << 20
	}
	switch {
	case d.Dir == "":
		return d, errors.New("replog: Dir is empty")
	case !validNodeID(d.NodeID):
		return d, fmt.Errorf("replog: node id %q: must be 1 to %d letters, digits, '-', '_' or '.'", d.NodeID, maxNodeIDChars)
	case d.ClusterID != "" && !validClusterID(d.ClusterID):
		return d, fmt.Errorf("replog: cluster id %q: must be 32 lower-case hexadecimal digits", d.ClusterID)
	case len(d.Machines) < 1 || len(d.Machines) > maxShards:
		return d, fmt.Errorf("replog: %d machines, must be 1 to %d", len(d.Machines), maxShards)
	case d.SnapshotAfterBytes < 0:
		return d, fmt.Errorf("replog: SnapshotAfterBytes is %d, must not be negative", d.SnapshotAfterBytes)
	case d.MemTableBytes < 256<<10 || d.MemTableBytes > 1<<30:
		return d, fmt.Errorf("replog: MemTableBytes is %d, must be 256 KiB to 1 GiB", d.MemTableBytes)
	}
	for i, m := range d.Machines {
		if m == nil {
			return d, fmt.Errorf("replog: machine %d is nil", i)
		}
	}
	return d, nil
}

func validNodeID(s string) bool {
	if len(s) < 1 || len(s) > maxNodeIDChars {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

func validClusterID(s string) bool {
	if len(s) != 32 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
