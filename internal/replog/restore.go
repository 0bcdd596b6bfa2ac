package replog

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// Restoration is what Restore makes a directory of.
type Restoration struct {
	Cluster     string // 32 hexadecimal digits: of the cluster that the backup is of
	Incarnation uint64 // greater than that of every cluster of this id before
	Shards      uint32
	// Term is greater than that of every leader before, also of those that came after
	// the backup was taken: participants refuse the calls of an older one.
	Term uint64
	// Snapshot returns a shard's snapshot and the index of the last entry in it. It is
	// called once for each shard, in order.
	Snapshot func(shard uint32) (index uint64, data []byte, err error)
	Logger   *slog.Logger // nil: slog.Default()
	FS       vfs.FS       // nil: the operating system's
}

func (r *Restoration) check(node string) error {
	switch {
	case !validNodeID(node):
		return fmt.Errorf("node id %q: must be 1 to %d letters, digits, '-', '_' or '.'", node, maxNodeIDChars)
	case !validClusterID(r.Cluster):
		return fmt.Errorf("cluster id %q: must be 32 lower-case hexadecimal digits", r.Cluster)
	case r.Shards < 1 || r.Shards > maxShards:
		return fmt.Errorf("%d shards, must be 1 to %d", r.Shards, maxShards)
	case r.Incarnation < 2 || r.Term < 2:
		return fmt.Errorf("incarnation %d, term %d: a restored cluster is not the first", r.Incarnation, r.Term)
	}
	return nil
}

// Restore makes a new data directory whose groups begin with snapshots: a cluster of one
// voter, with a member id of its own. Others may join it.
//
// The directory must be absent or empty. Its identity is written last: a restore that
// was cut short leaves a directory that Open refuses.
func Restore(dir, node string, r Restoration) (Identity, error) {
	if err := r.check(node); err != nil {
		return Identity{}, fmt.Errorf("restore: %w", err)
	}
	if r.Logger == nil {
		r.Logger = slog.Default()
	}
	l := &Log{
		cfg: Config{
			Dir: dir, NodeID: node, Machines: make([]Machine, r.Shards), Logger: r.Logger, MemTableBytes: 64 << 20, RetainSnapshots: 1,
		},
		epoch: time.Now(), failed: make(chan struct{}), closing: make(chan struct{}), floorKick: make(chan struct{}, 1),
	}
	l.disk = &disk{FS: r.FS, fail: l.fail, failure: l.failure, fsyncs: &l.fsyncs}
	if r.FS == nil {
		l.disk.FS, l.disk.private = vfs.Default, true
	}
	if err := l.claimEmpty(); err != nil {
		return Identity{}, fmt.Errorf("restore: %w", err)
	}
	l.id = identity{
		Format: dirFormat, Cluster: r.Cluster, Incarnation: r.Incarnation, Node: node, Member: node + "@" + randomHex(4),
		Shards: r.Shards, Nonce: randomHex(nonceBytes),
	}
	err := l.restore(&r)
	if err != nil {
		err = fmt.Errorf("restore: %w", errors.Join(err, l.removeUnfinished()))
	}
	return l.id.public(), errors.Join(err, l.lock.Close())
}

// claimEmpty locks a directory with nothing in it.
func (l *Log) claimEmpty() error {
	dir := l.cfg.Dir
	if err := makeDirectory(l.disk, dir); err != nil {
		return err
	}
	names, err := l.disk.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name != lockName && name != "lost+found" { // the lock file of a restore that failed
			return &DirError{
				Dir: dir, Err: ErrForeignDirectory, Detail: fmt.Sprintf("it holds %q", name),
				Hint: "give an empty or absent directory; nothing was changed",
			}
		}
	}
	l.lock, err = lockDirectory(l.disk, dir)
	return err
}

func (l *Log) restore(r *Restoration) error {
	if err := l.openDatabase(true); err != nil {
		return err
	}
	floor, err := l.restoreGroups(r)
	if err = errors.Join(err, l.db.close(), l.failure()); err != nil {
		return err
	}
	if err := l.disk.FS.RemoveAll(l.disk.PathJoin(l.cfg.Dir, foundName)); err != nil {
		return err
	}
	if err := writeFile(l.disk, l.cfg.Dir, floorName, encodeFloor(floor)); err != nil {
		return fmt.Errorf("write floor: %w", err)
	}
	return l.id.write(l.disk, l.cfg.Dir)
}

func (l *Log) restoreGroups(r *Restoration) ([]floorMark, error) {
	snapshots := l.disk.PathJoin(l.cfg.Dir, snapshotsDir)
	if err := l.disk.MkdirAll(snapshots, dirMode); err != nil {
		return nil, err
	}
	if err := syncDir(l.disk, l.cfg.Dir); err != nil {
		return nil, err
	}
	alone := raft.Configuration{Servers: []raft.Server{
		{Suffrage: raft.Voter, ID: raft.ServerID(l.id.member()), Address: raft.ServerAddress(l.id.member())},
	}}
	floor := make([]floorMark, r.Shards)
	for shard := range r.Shards {
		index, data, err := r.Snapshot(shard)
		if err != nil {
			return nil, err
		}
		floor[shard] = floorMark{last: max(index, 1), term: r.Term}
		snaps, err := openSnapStore(l.disk, snapshots, shard, l.cfg.RetainSnapshots)
		if err != nil {
			return nil, err
		}
		snaps.logEnd = func() uint64 { return 0 } // the log is empty
		sink, err := snaps.Create(1, floor[shard].last, r.Term, alone, floor[shard].last, nil)
		if err != nil {
			return nil, err
		}
		if _, err := sink.Write(data); err != nil {
			return nil, errors.Join(err, sink.Cancel())
		}
		if err := sink.Close(); err != nil {
			return nil, err
		}
		s := &store{database: l.db, shard: shard, stable: map[string][]byte{}}
		if err := s.SetUint64([]byte("CurrentTerm"), r.Term); err != nil {
			return nil, err
		}
	}
	return floor, nil
}

// removeUnfinished removes what a failed restore has made.
func (l *Log) removeUnfinished() error {
	var errs []error
	for _, name := range []string{dbName, snapshotsDir, foundName, floorName, floorName + ".tmp", identityName + ".tmp"} {
		errs = append(errs, l.disk.FS.RemoveAll(l.disk.PathJoin(l.cfg.Dir, name)))
	}
	return errors.Join(errs...)
}
