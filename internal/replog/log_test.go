package replog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

func TestProposeAppliesInOrderAndSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	m := newRecorder()
	l := open(t, config(dir, m))
	g := l.Group(0)
	first := lead(t, g)
	want := numbered(0, 500)
	var wg sync.WaitGroup
	var failed atomic.Int64
	for _, d := range want {
		wg.Add(1)
		g.Propose([]byte(d), func(err error) {
			defer wg.Done()
			if err != nil {
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	if failed.Load() != 0 {
		t.Fatalf("%d proposals failed", failed.Load())
	}
	if got := m.stream(); !slices.Equal(got, want) {
		t.Fatalf("applied %d entries, not the %d proposed in their order", len(got), len(want))
	}
	if s := g.Stats(); s.Appends != 500 || s.AppendedBytes != 500*12 || s.Fsyncs == 0 || s.LastIndex < 500 || s.AppliedIndex != s.LastIndex {
		t.Errorf("stats %+v", s)
	}
	cluster := l.ClusterID()
	closeLog(t, l)
	if err := propose(g, "late"); !errors.Is(err, ErrClosed) {
		t.Errorf("proposal after Close: %v", err)
	}

	for range 3 {
		m = newRecorder()
		l = open(t, config(dir, m))
		if l.ClusterID() != cluster || l.Incarnation() != 1 || l.Shards() != 1 {
			t.Errorf("cluster %s became %s", cluster, l.ClusterID())
		}
		again := lead(t, l.Group(0))
		if again.Term <= first.Term {
			t.Errorf("term %d after %d", again.Term, first.Term)
		}
		first = again
		if got := m.waitFor(t, len(want)); !slices.Equal(got, want) {
			t.Fatalf("replayed %d entries, want %d", len(got), len(want))
		}
		mustPropose(t, l.Group(0), "more")
		want = append(want, "more")
		closeLog(t, l)
	}
}

func TestSnapshotsAndTruncationUnderLoad(t *testing.T) {
	dir := t.TempDir()
	m := newRecorder()
	cfg := config(dir, m)
	cfg.SnapshotAfterBytes = 64 << 10
	cfg.TrailingEntries = 100
	cfg.MemTableBytes = 512 << 10
	var told atomic.Int64
	cfg.Observer.Snapshot = func(_ uint32, _ time.Duration, bytes int64, err error) {
		if err == nil && bytes > 0 {
			told.Add(1)
		}
	}
	l := open(t, cfg)
	lead(t, l.Group(0))
	const writers, each = 8, 2000
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			var mine sync.WaitGroup
			for i := range each {
				mine.Add(1)
				l.Group(0).Propose(fmt.Appendf(nil, "%d/%04d/%0100d", w, i, i), func(err error) {
					defer mine.Done()
					if err != nil {
						t.Errorf("propose: %v", err)
					}
				})
			}
			mine.Wait()
		})
	}
	wg.Wait()
	// On a slow machine the snapshots may lag behind the writers: go on a while.
	more := 0
	for deadline := time.Now().Add(30 * time.Second); l.Group(0).Stats().Snapshots < 3 && time.Now().Before(deadline); more++ {
		mustPropose(t, l.Group(0), fmt.Sprintf("more/%0100d", more))
	}
	want := m.stream()
	if len(want) != writers*each+more {
		t.Fatalf("%d entries applied, want %d", len(want), writers*each+more)
	}
	s := l.Group(0).Stats()
	if s.Snapshots < 3 || told.Load() < 3 || s.FirstIndex < 1000 || s.SnapshotIndex+1 < s.FirstIndex {
		t.Errorf("stats %+v, observer told %d snapshots", s, told.Load())
	}
	closeLog(t, l)
	snaps, err := filepath.Glob(filepath.Join(dir, snapshotsDir, "0", "*"))
	if err != nil || len(snaps) != 2 {
		t.Errorf("%d snapshot files (%v), want 2", len(snaps), err)
	}

	m = newRecorder()
	cfg.Machines = []Machine{m}
	l = open(t, cfg)
	if m.restored == 0 {
		t.Error("nothing was restored from a snapshot")
	}
	lead(t, l.Group(0))
	mustPropose(t, l.Group(0), "end")
	if got := m.stream(); !slices.Equal(got, append(want, "end")) {
		t.Errorf("after the restart %d entries, want %d in the same order", len(got), len(want)+1)
	}
	closeLog(t, l)
}

func TestSnapshotIsCapturedInStreamOrderAndPersistedConcurrently(t *testing.T) {
	dir := t.TempDir()
	m := newRecorder()
	writing, release := make(chan struct{}), make(chan struct{})
	m.persist = func() { close(writing); <-release }
	l := open(t, config(dir, m))
	lead(t, l.Group(0))
	mustPropose(t, l.Group(0), "before")
	taken := make(chan error, 1)
	go func() { taken <- l.Snapshot(0) }()
	<-writing
	mustPropose(t, l.Group(0), "meanwhile") // while Persist hangs
	close(release)
	if err := <-taken; err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	m = newRecorder()
	l = open(t, config(dir, m))
	if m.restored != 1 {
		t.Errorf("the snapshot holds %d entries, want the one before it", m.restored)
	}
	lead(t, l.Group(0))
	if got := m.waitFor(t, 2); !slices.Equal(got, []string{"before", "meanwhile"}) {
		t.Errorf("stream %q", got)
	}
	closeLog(t, l)
}

func TestMachineThatFailsItsSnapshot(t *testing.T) {
	dir := t.TempDir()
	spoilt := errors.New("spoilt")
	m := newRecorder()
	l := open(t, config(dir, m)) // which fails the test if that were fatal
	lead(t, l.Group(0))
	mustPropose(t, l.Group(0), "a")
	if err := l.Snapshot(0); err != nil {
		t.Fatal(err)
	}
	mustPropose(t, l.Group(0), "b")
	m.mu.Lock()
	m.spoilt = spoilt
	m.mu.Unlock()
	if err := l.Snapshot(0); err == nil || l.Group(0).Stats().Snapshots != 1 {
		t.Errorf("a failed Persist: %v, %+v", err, l.Group(0).Stats())
	}
	mustPropose(t, l.Group(0), "c")
	closeLog(t, l)
	if _, err := Open(config(dir, m)); !errors.Is(err, spoilt) {
		t.Errorf("a failed Restore: %v", err)
	}
	m = newRecorder()
	l = open(t, config(dir, m))
	lead(t, l.Group(0))
	if got := m.waitFor(t, 3); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("stream %q", got)
	}
	closeLog(t, l)
}

func TestGroupsShareOneDatabase(t *testing.T) {
	dir := t.TempDir()
	const shards, each = 4, 300
	open4 := func() (*Log, []*recorder) {
		var machines []Machine
		var recorders []*recorder
		for range shards {
			r := newRecorder()
			recorders = append(recorders, r)
			machines = append(machines, r)
		}
		cfg := config(dir, machines...)
		cfg.SnapshotAfterEntries = 120
		cfg.TrailingEntries = 10
		l := open(t, cfg)
		for s := range shards {
			lead(t, l.Group(uint32(s)))
		}
		return l, recorders
	}
	l, recorders := open4()
	var wg sync.WaitGroup
	for s := range shards {
		wg.Go(func() {
			for i := range each {
				mustPropose(t, l.Group(uint32(s)), fmt.Sprintf("%d-%d", s, i))
			}
		})
	}
	wg.Wait()
	var want [shards][]string
	for s, r := range recorders {
		want[s] = r.stream()
	}
	closeLog(t, l)
	l, recorders = open4()
	for s, r := range recorders {
		if got := r.waitFor(t, each); !slices.Equal(got, want[s]) || got[each-1] != fmt.Sprintf("%d-%d", s, each-1) {
			t.Errorf("shard %d: %d entries, want %d", s, len(got), len(want[s]))
		}
	}
	closeLog(t, l)
}

// Appends of several groups that wait for the disk at the same time share a sync.
func TestGroupsShareSyncs(t *testing.T) {
	const shards, rounds = 8, 20
	disk := &stallFS{FS: vfs.NewMem()}
	var machines []Machine
	for range shards {
		machines = append(machines, newRecorder())
	}
	cfg := config("data", machines...)
	cfg.FS = disk
	l := open(t, cfg)
	for s := range shards {
		lead(t, l.Group(uint32(s)))
		mustPropose(t, l.Group(uint32(s)), "first")
	}
	before := l.Group(0).Stats().Fsyncs
	for range rounds {
		disk.gate.Lock()
		var wg sync.WaitGroup
		for s := range shards {
			wg.Add(1)
			l.Group(uint32(s)).Propose([]byte("x"), func(err error) {
				defer wg.Done()
				if err != nil {
					t.Error(err)
				}
			})
		}
		for _, g := range l.groups {
			for g.store.writing.Load() == 0 {
				runtime.Gosched()
			}
		}
		disk.gate.Unlock()
		wg.Wait()
	}
	if n := l.Group(0).Stats().Fsyncs - before; n < rounds || n > rounds*shards/2 {
		t.Errorf("%d syncs for %d appends at a time, %d times", n, shards, rounds)
	}
	closeLog(t, l)
}

func TestLimits(t *testing.T) {
	m := newRecorder()
	cfg := config(t.TempDir(), m)
	cfg.MaxEntryBytes = 10
	cfg.MaxPendingProposals = 3
	cfg.MaxPendingBytes = 15
	l := open(t, cfg)
	lead(t, l.Group(0))
	if err := propose(l.Group(0), "eleven byte"); !errors.Is(err, ErrTooLarge) || !errors.Is(err, ErrNotAppended) {
		t.Errorf("too large: %v", err)
	}
	var wg sync.WaitGroup
	for range 100 {
		wg.Add(1)
		l.Group(0).Propose([]byte("ten bytes!"), func(err error) {
			defer wg.Done()
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	closeLog(t, l)
	if n := len(m.stream()); n != 100 {
		t.Errorf("%d applied", n)
	}
}

// A lone voter leads at once, so this needs one that cannot.
func TestProposeWithoutLeading(t *testing.T) {
	c := newTestCluster(t, 3)
	alone := c.nodes[0]
	c.stop(c.nodes[1])
	c.stop(c.nodes[2])
	c.await("it does not lead", func() bool { return alone.log.groups[0].raft.State() != raft.Leader })
	if err := propose(alone.group(), "x"); !errors.Is(err, ErrNotAppended) {
		t.Errorf("without a leader: %v", err)
	}
}

func TestCloseFinishesEveryProposal(t *testing.T) {
	for _, abrupt := range []bool{false, true} {
		t.Run(fmt.Sprintf("abrupt=%v", abrupt), func(t *testing.T) {
			m := newRecorder()
			release := make(chan struct{})
			cfg := config(t.TempDir(), m)
			cfg.MaxPendingProposals = 64
			var entered sync.Once
			inApply := make(chan struct{})
			if abrupt {
				// The machine hangs, so no accepted proposal can end by itself.
				cfg.CloseTimeoutMs = 50
				m.refuse = func(Entry) error {
					entered.Do(func() { close(inApply) })
					<-release
					return nil
				}
			}
			l := open(t, cfg)
			lead(t, l.Group(0))
			var outcomes [3]atomic.Int64
			var calls, wg sync.WaitGroup
			for range 200 {
				calls.Add(1)
				wg.Go(func() {
					var once atomic.Int64
					l.Group(0).Propose([]byte("x"), func(err error) {
						defer calls.Done()
						if once.Add(1) != 1 {
							t.Error("done ran twice")
						}
						switch {
						case err == nil:
							outcomes[0].Add(1)
						case errors.Is(err, ErrClosed):
							outcomes[1].Add(1)
						default:
							outcomes[2].Add(1)
							t.Errorf("outcome %v", err)
						}
					})
				})
			}
			if abrupt {
				<-inApply
				closed := make(chan error, 1)
				go func() { closed <- l.Close() }()
				calls.Wait() // every done runs although the machine still hangs
				close(release)
				if err := <-closed; err != nil {
					t.Error(err)
				}
				if outcomes[1].Load() == 0 {
					t.Error("no proposal ended with ErrClosed")
				}
			} else {
				closeLog(t, l)
				calls.Wait()
			}
			wg.Wait()
			if n := int64(len(m.stream())); n < outcomes[0].Load() {
				t.Errorf("%d acknowledged, %d applied", outcomes[0].Load(), n)
			}
		})
	}
}

func TestApplyErrorHalts(t *testing.T) {
	dir := t.TempDir()
	for _, how := range []string{"error", "panic"} {
		t.Run(how, func(t *testing.T) {
			m := newRecorder()
			m.refuse = func(e Entry) error {
				if string(e.Data) != "poison" {
					return nil
				}
				if how == "panic" {
					panic("broken invariant")
				}
				return errors.New("unknown record")
			}
			f := make(fatal, 1)
			cfg := config(dir, m)
			cfg.OnFatal = f.hook
			l := open(t, cfg)
			lead(t, l.Group(0))
			if how == "error" { // the second run meets the poison while it replays
				mustPropose(t, l.Group(0), "good")
				if err := propose(l.Group(0), "poison"); !errors.Is(err, ErrUnknown) {
					t.Errorf("poison: %v", err)
				}
			}
			t.Log(f.wait(t))
			if err := propose(l.Group(0), "after"); err == nil {
				t.Error("a proposal succeeded after the halt")
			}
			if got := m.stream(); !slices.Equal(got, []string{"good"}) {
				t.Errorf("applied %q", got)
			}
			if err := l.Snapshot(0); err == nil {
				t.Error("a halted machine was snapshotted")
			}
			if err := l.Close(); err == nil {
				t.Error("Close says nothing of the failure")
			}
		})
	}
}

func TestFilesArePrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	l := open(t, config(dir, newRecorder()))
	lead(t, l.Group(0))
	mustPropose(t, l.Group(0), "x")
	if err := l.Snapshot(0); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		want := fileMode
		if d.IsDir() {
			want = dirMode
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, info.Mode().Perm(), want)
		}
		seen++
		return nil
	})
	if err != nil || seen < 10 {
		t.Errorf("%d files, %v", seen, err)
	}
}
