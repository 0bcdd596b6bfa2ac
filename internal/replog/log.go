package replog

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/assent-tx/assent/internal/mutant"
)

// Log is a node's groups and their database.
type Log struct {
	cfg    Config
	disk   *disk
	lock   io.Closer
	id     identity
	db     *database
	groups []*group
	epoch  time.Time
	kept   bool // foundName holds the database's files as they were found

	fsyncs    atomic.Uint64
	voting    atomic.Bool // Raft goroutines may be running
	started   atomic.Bool // Open has succeeded
	failOnce  sync.Once
	failErr   atomic.Pointer[error]
	failed    chan struct{}
	closing   chan struct{}
	closeOnce sync.Once
	closeErr  error
	wg        sync.WaitGroup

	floorMu   sync.Mutex
	floorLast []floorMark
	floorKick chan struct{}
}

// Open claims and checks the data directory and starts the groups. A new
// directory becomes a cluster of this one voter. The machines have been restored
// from their snapshots when Open returns; the entries behind those are applied
// once this node leads.
//
// A directory that cannot be used is a *DirError that wraps ErrForeignDirectory,
// ErrOtherNode, ErrOtherCluster, ErrOtherShardCount, ErrNewerFormat, ErrLocked or
// ErrDamaged; nothing in it was changed, or what was is kept (foundName).
func Open(config Config) (*Log, error) {
	cfg, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Log{
		cfg: cfg, epoch: time.Now(),
		failed: make(chan struct{}), closing: make(chan struct{}), floorKick: make(chan struct{}, 1),
	}
	l.disk = &disk{FS: cfg.FS, fail: l.fail, failure: l.failure, fsyncs: &l.fsyncs}
	if cfg.FS == nil {
		l.disk.FS, l.disk.private = vfs.Default, true
	}
	if err := l.open(); err != nil {
		l.undo()
		return nil, fmt.Errorf("open log: %w", err)
	}
	l.started.Store(true)
	if err := l.failure(); err != nil {
		return nil, errors.Join(fmt.Errorf("open log: %w", err), l.Close())
	}
	return l, nil
}

func (l *Log) open() error {
	if err := makeDirectory(l.disk, l.cfg.Dir); err != nil {
		return err
	}
	// Asked before the lock file is made, and again under the lock.
	err := refuseForeign(l.disk, l.cfg.Dir)
	if err != nil {
		return err
	}
	if l.lock, err = lockDirectory(l.disk, l.cfg.Dir); err != nil {
		return err
	}
	if l.id, err = claimDirectory(l.disk, &l.cfg); err != nil {
		return err
	}
	floor, err := readFloor(l.disk, l.cfg.Dir, len(l.cfg.Machines))
	if err != nil {
		return err
	}
	if err := l.openDatabase(floor == nil); err != nil {
		return err
	}
	snapshots := l.disk.PathJoin(l.cfg.Dir, snapshotsDir)
	if err := l.disk.MkdirAll(snapshots, dirMode); err != nil {
		return err
	}
	if err := syncDir(l.disk, l.cfg.Dir); err != nil {
		return err
	}
	for shard := range l.cfg.Machines {
		g, err := l.recoverGroup(uint32(shard), snapshots, floor)
		if err != nil {
			var refused *DirError
			if errors.As(err, &refused) && errors.Is(err, ErrDamaged) && l.kept {
				refused.Hint = keptHint
			}
			return err
		}
		l.groups = append(l.groups, g)
	}
	if err := l.disk.FS.RemoveAll(l.disk.PathJoin(l.cfg.Dir, foundName)); err != nil {
		return err
	}
	// Before anything is appended: a log with entries and without a floor is damaged.
	if err := l.writeFloor(); err != nil {
		return err
	}
	l.voting.Store(true)
	for _, g := range l.groups {
		if err := l.startRaft(g); err != nil {
			return err
		}
	}
	for _, g := range l.groups {
		g.wg.Add(2)
		go g.finisher()
		go g.watchLeadership()
		go g.takeSnapshots()
		g.kickSnapshot()
	}
	l.wg.Add(2)
	go l.watchStalls()
	go l.keepFloor()
	return nil
}

// openDatabase checks the database's files and opens it. A new one is opened
// twice: only the second write-ahead file has the format asked for.
func (l *Log) openDatabase(unfinished bool) error {
	dir := l.disk.PathJoin(l.cfg.Dir, dbName)
	l.db = &database{log: l}
	if _, err := hex.Decode(l.db.nonce[:], []byte(l.id.Nonce)); err != nil {
		return err
	}
	if _, err := l.disk.Stat(dir); err == nil {
		torn, err := checkDatabaseFiles(l.disk, dir, l.db.nonce)
		if err != nil {
			return err
		}
		for _, t := range torn {
			l.cfg.Logger.Info("log: an unfinished write is cut off", "file", t)
		}
	} else if !unfinished {
		return damaged(l.cfg.Dir, "the directory %q is missing", dbName)
	}
	if unfinished {
		db, err := l.openPebble(dir, false)
		if err != nil {
			return err
		}
		if err := db.Close(); err != nil {
			return err
		}
	}
	if err := l.keepFound(dir); err != nil {
		return fmt.Errorf("keep the database's files as they were found: %w", err)
	}
	var err error
	l.db.db, err = l.openPebble(dir, true)
	return err
}

// foundName is a directory with links to the database's files as they were before
// it was opened, until the log has proved sound: opening rewrites them, and what is
// missing from them shows only then. What an earlier start found is kept.
const foundName = "found"

func (l *Log) keepFound(dir string) error {
	found := l.disk.PathJoin(l.cfg.Dir, foundName)
	if _, err := l.disk.Stat(found); err == nil {
		l.kept = true
		return nil
	}
	names, err := l.disk.List(dir)
	if err != nil {
		return err
	}
	if err := l.disk.MkdirAll(found, dirMode); err != nil {
		return err
	}
	for _, name := range names {
		// Not through l.disk: a file system without links is no failing disk.
		err := l.disk.FS.Link(l.disk.PathJoin(dir, name), l.disk.PathJoin(found, name))
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.EOPNOTSUPP) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	l.kept = true
	return nil
}

// openPebble gives up soon after a write has failed: the database may try for ever.
func (l *Log) openPebble(dir string, mustExist bool) (*pebble.DB, error) {
	type result struct {
		db  *pebble.DB
		err error
	}
	opened, ended := make(chan result, 1), make(chan struct{})
	l.disk.opening.Store(&ended)
	go func() {
		db, err := l.tryPebble(dir, mustExist)
		close(ended)
		opened <- result{db, err}
	}()
	var r result
	select {
	case r = <-opened:
	case <-l.failed:
		select {
		case r = <-opened:
		case <-time.After(openGiveUp):
		}
	}
	if err := l.failure(); err != nil {
		if r.db != nil {
			err = errors.Join(err, r.db.Close())
		}
		return nil, err
	}
	return r.db, r.err
}

func (l *Log) tryPebble(dir string, mustExist bool) (db *pebble.DB, err error) {
	defer func() {
		if p := recover(); p != nil {
			db, err = nil, damaged(l.cfg.Dir, "the database panics: %v", p)
		}
	}()
	cache := pebble.NewCache(8 << 20)
	defer cache.Unref()
	db, err = pebble.Open(dir, &pebble.Options{
		FS:                          l.disk,
		FormatMajorVersion:          pebble.FormatWALSyncChunks,
		ErrorIfNotExists:            mustExist,
		Cache:                       cache,
		MaxOpenFiles:                256,
		MemTableSize:                l.cfg.MemTableBytes,
		MemTableStopWritesThreshold: 4,
		Logger:                      dbLogger{logger: l.cfg.Logger, fail: l.fail},
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) {
				if pebble.IsCorruptionError(err) {
					err = fmt.Errorf("%w: %w", ErrDamaged, err)
				}
				l.fail(fmt.Errorf("log database: %w", err))
			},
			DataCorruption: func(info pebble.DataCorruptionInfo) {
				l.fail(fmt.Errorf("%w: %s: %w", ErrDamaged, info.Path, info.Details))
			},
			FlushEnd: func(pebble.FlushInfo) { l.kickFloor() },
		},
	})
	if err == nil {
		return db, nil
	}
	if pebble.IsCorruptionError(err) || errors.Is(err, pebble.ErrDBDoesNotExist) || oserror.IsNotExist(err) {
		return nil, damaged(l.cfg.Dir, "%v", err)
	}
	return nil, fmt.Errorf("open database: %w", err)
}

func (l *Log) recoverGroup(shard uint32, snapshots string, floor []floorMark) (*group, error) {
	g := newGroup(l, shard)
	var err error
	if g.snaps, err = openSnapStore(l.disk, snapshots, shard, l.cfg.RetainSnapshots); err != nil {
		return nil, err
	}
	if err := g.snaps.recover(); err != nil {
		return nil, damaged(l.cfg.Dir, "shard %d: %v", shard, err)
	}
	snapshotIndex := g.snaps.index.Load()
	g.store = &store{database: l.db, shard: shard}
	g.snaps.logEnd = g.store.last.Load
	r, err := g.store.recover(l.cfg.Dir, snapshotIndex, g.snaps.installed)
	if err != nil {
		return nil, err
	}
	g.baseBytes.Store(-int64(r.bytesAfterSnapshot))
	g.baseEntries.Store(-int64(r.entriesAfterSnapshot))
	g.store.appended = g.kickSnapshot
	g.fsm = &follower{log: l, shard: shard, machine: l.cfg.Machines[shard], snaps: g.snaps}
	g.fsm.applied.Store(snapshotIndex)

	last, term := max(g.store.last.Load(), snapshotIndex), g.store.term.Load()
	if floor != nil {
		if mark := floor[shard]; (last < mark.last || term < mark.term) && !mutant.On("log-no-floor-check") {
			return nil, damaged(l.cfg.Dir, "shard %d: the log ends at entry %d, term %d; it once was durable up to entry %d, term %d",
				shard, last, term, mark.last, mark.term)
		}
		return g, nil
	}
	if last > 1 || term > 1 {
		return nil, damaged(l.cfg.Dir, "%s is missing although shard %d has %d entries", floorName, shard, last)
	}
	if last == 0 {
		return g, l.bootstrap(g)
	}
	return g, nil
}

// bootstrap makes the founders a group's members. It can be repeated after a crash at
// any point, and is the same on each of them. A group that this node does not belong to
// stays empty, and so do all of a node that joins: until a leader takes it in.
func (l *Log) bootstrap(g *group) error {
	if l.id.Joined {
		return nil
	}
	voters, learners := l.id.voters(g.shard)
	if !slices.Contains(voters, l.id.member()) && !slices.Contains(learners, l.id.member()) {
		return nil
	}
	var servers []raft.Server
	for _, m := range voters {
		servers = append(servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(m), Address: raft.ServerAddress(m)})
	}
	for _, m := range learners {
		servers = append(servers, raft.Server{Suffrage: raft.Nonvoter, ID: raft.ServerID(m), Address: raft.ServerAddress(m)})
	}
	if err := g.store.SetUint64([]byte("CurrentTerm"), 1); err != nil {
		return err
	}
	return g.store.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{Servers: servers})})
}

// startRaft starts a group.
func (l *Log) startRaft(g *group) (err error) {
	defer func() { // the Raft library panics when it cannot store its term
		if p := recover(); p != nil {
			_ = g.transport.Close()
			err = fmt.Errorf("shard %d: panic while starting: %v\n%s", g.shard, p, debug.Stack())
		}
	}()
	timeout := time.Duration(l.cfg.ElectionTimeoutMs) * time.Millisecond
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(l.id.member())
	rc.ProtocolVersion = raft.ProtocolVersionMax
	rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = timeout, timeout, timeout
	rc.MaxAppendEntries = l.cfg.MaxBatchEntries
	rc.BatchApplyCh = true
	rc.TrailingLogs = l.cfg.TrailingEntries
	rc.SnapshotInterval = 24 * time.Hour // never: takeSnapshots decides
	rc.SnapshotThreshold = 1 << 62
	rc.NotifyCh = g.notify
	rc.Logger = raftLogger(l.cfg.Logger.With("shard", g.shard), l.cfg.Peers == nil)
	rc.NoLegacyTelemetry = true
	rc.ShutdownOnRemove = false // it idles, and may be taken in again
	g.transport = l.newTransport(g.shard)
	g.raft, err = raft.NewRaft(rc, g.fsm, g.store, g.store, g.snaps, g.transport)
	if err != nil {
		_ = g.transport.Close() // it has served nobody
		if cause := l.failure(); cause != nil {
			return cause
		}
		if g.fsm.restoreErr != nil { // the file is sound; the machine does not accept it
			return fmt.Errorf("shard %d: restore the snapshot at entry %d: %w", g.shard, g.snaps.index.Load(), g.fsm.restoreErr)
		}
		return fmt.Errorf("shard %d: %w", g.shard, err)
	}
	if !l.cfg.still {
		g.standIfAlone()
	}
	return nil
}

// Group is the log of one shard; it panics if there is no such shard.
func (l *Log) Group(shard uint32) Group { return l.groups[shard] }

// Shards is their number.
func (l *Log) Shards() uint32 { return uint32(len(l.groups)) }

// ClusterID is 32 hexadecimal digits, made when the directory was.
func (l *Log) ClusterID() string { return l.id.Cluster }

// Identity says whose log this is.
func (l *Log) Identity() Identity { return l.id.public() }

// Incarnation is 1, and more after a restore from a backup.
func (l *Log) Incarnation() uint64 { return l.id.Incarnation }

// Snapshot takes a snapshot of a shard now and truncates its log.
func (l *Log) Snapshot(shard uint32) error {
	if err := l.groups[shard].snapshot(); err != nil {
		return fmt.Errorf("snapshot of shard %d: %w", shard, err)
	}
	return nil
}

// Failed closes when the log has failed; Err then says why.
func (l *Log) Failed() <-chan struct{} { return l.failed }

// Err is why the log has failed, or nil.
func (l *Log) Err() error { return l.failure() }

func (l *Log) now() time.Duration { return time.Since(l.epoch) }

func (l *Log) failure() error {
	if p := l.failErr.Load(); p != nil {
		return *p
	}
	return nil
}

// fail condemns the log, for good: the first error counts.
func (l *Log) fail(err error) {
	l.failOnce.Do(func() {
		l.failErr.Store(&err)
		close(l.failed)
		if !l.started.Load() {
			return // Open returns it
		}
		select {
		case <-l.closing: // Close returns it
			return
		default:
		}
		for _, g := range l.groups {
			g.retire()
		}
		if l.cfg.OnFatal != nil {
			go l.cfg.OnFatal(err)
			return
		}
		l.cfg.Logger.Error("the log has failed; the process ends, so that a restart recovers what is durable", "error", err)
		os.Exit(ExitFatal)
	})
}

// watchStalls ends the process when a write hangs: a leader whose disk hangs
// would otherwise keep its lead for ever.
func (l *Log) watchStalls() {
	defer l.wg.Done()
	w := newStallWatch(time.Duration(l.cfg.AppendStallMs)*time.Millisecond, len(l.groups))
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-l.closing:
			return
		case <-l.failed:
			return
		}
		w.tick(l.now())
		for i, g := range l.groups {
			if took := w.took(i, g.store.writing.Load()); took > w.limit {
				l.fail(fmt.Errorf("%w: shard %d: a write is not on disk after %v", ErrAppendStalled, g.shard, took.Round(time.Millisecond)))
			}
		}
	}
}

// stallWatch measures writes in time that this process has run. A process that was
// stopped, or whose machine was, finds all its writes old when it goes on, and the disk
// is not to blame for that.
type stallWatch struct {
	limit, every time.Duration
	last, ran    time.Duration
	writes       []watchedWrite // by group
}

type watchedWrite struct {
	began int64         // as in store.writing
	since time.Duration // of stallWatch.ran, when it was first seen
}

func newStallWatch(limit time.Duration, groups int) *stallWatch {
	return &stallWatch{limit: limit, every: max(limit/8, time.Millisecond), writes: make([]watchedWrite, groups)}
}

// tick is told the time, every so often: a gap between two counts as twice that at most.
func (w *stallWatch) tick(now time.Duration) {
	w.ran += min(now-w.last, 2*w.every)
	w.last = now
}

// took is for how long a group's write that began then has been under way; 0: none is.
func (w *stallWatch) took(group int, began int64) time.Duration {
	s := &w.writes[group]
	if began != s.began {
		*s = watchedWrite{began, w.ran}
	}
	if began == 0 {
		return 0
	}
	return w.ran - s.since
}

func (l *Log) kickFloor() {
	select {
	case l.floorKick <- struct{}{}:
	default:
	}
}

func (l *Log) keepFloor() {
	defer l.wg.Done()
	for {
		select {
		case <-l.floorKick:
		case <-l.closing:
			return
		case <-l.failed:
			return
		}
		if err := l.writeFloor(); err != nil {
			l.fail(fmt.Errorf("write floor: %w", err))
		}
	}
}

// writeFloor records how far every group is durable.
func (l *Log) writeFloor() error {
	l.floorMu.Lock()
	defer l.floorMu.Unlock()
	marks := make([]floorMark, len(l.groups))
	for i, g := range l.groups {
		marks[i] = floorMark{last: g.store.last.Load(), term: g.store.term.Load()}
		if marks[i].last == 0 {
			marks[i].last = g.snaps.index.Load()
		}
	}
	if l.floorLast != nil && slices.Equal(marks, l.floorLast) {
		return nil
	}
	if err := writeFile(l.disk, l.cfg.Dir, floorName, encodeFloor(marks)); err != nil {
		return err
	}
	l.floorLast = marks
	return nil
}

// Close refuses new proposals, waits for the accepted ones (CloseTimeoutMs at
// most), stops the groups and closes the database. Every done has run when it
// returns. After a failure it leaves what hangs.
func (l *Log) Close() error {
	l.closeOnce.Do(func() { l.closeErr = l.close() })
	return l.closeErr
}

func (l *Log) close() error {
	deadline := time.NewTimer(time.Duration(l.cfg.CloseTimeoutMs) * time.Millisecond)
	defer deadline.Stop()
	expired := false
	wait := func(c <-chan struct{}) {
		if expired {
			select {
			case <-c:
			default:
			}
			return
		}
		select {
		case <-c:
		case <-deadline.C:
			expired = true
		}
	}
	for _, g := range l.groups {
		g.drain()
	}
	for _, g := range l.groups {
		wait(g.drained)
	}
	close(l.closing)
	l.wg.Wait()
	stopped := l.stopGroups()
	grace := time.NewTimer(time.Duration(l.cfg.CloseTimeoutMs) * time.Millisecond)
	defer grace.Stop()
	select {
	case <-stopped:
	case <-grace.C:
	}
	for _, g := range l.groups {
		g.abandon()
	}
	if err := l.failure(); err != nil {
		select {
		case <-stopped:
			l.undo()
		default: // a hung disk or machine; the process is ending
			go func() {
				<-stopped
				l.undo()
			}()
		}
		return fmt.Errorf("close log: it has failed: %w", err)
	}
	<-stopped
	err := l.writeFloor()
	err = errors.Join(err, l.db.close(), l.lock.Close())
	if err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}

// stopGroups tells all groups to stop and returns a channel that closes when
// they have.
func (l *Log) stopGroups() <-chan struct{} {
	var futures []raft.Future
	for _, g := range l.groups {
		if g.raft != nil {
			futures = append(futures, g.raft.Shutdown())
		}
	}
	for _, g := range l.groups {
		if g.raft != nil {
			g.transport.hangUp()
		}
	}
	stopped := make(chan struct{})
	go func() {
		for _, f := range futures {
			_ = f.Error() // always nil
		}
		for _, g := range l.groups {
			g.wg.Wait()
		}
		close(stopped)
	}()
	return stopped
}

// undo releases what a failed Open or a failed log holds; errors add nothing.
func (l *Log) undo() {
	if !l.started.Load() {
		close(l.closing)
		for _, g := range l.groups {
			if g.raft != nil {
				_ = g.raft.Shutdown().Error()
			}
		}
	}
	if l.db != nil && l.db.db != nil {
		_ = l.db.close()
	}
	if l.lock != nil {
		_ = l.lock.Close()
	}
}
