package replog

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// hookFS calls before ahead of every operation that changes something.
type hookFS struct {
	vfs.FS
	before func()
	mu     sync.Mutex
}

func (h *hookFS) hook() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.before()
}

func (h *hookFS) Unwrap() vfs.FS { return h.FS }

func (h *hookFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	h.hook()
	f, err := h.FS.Create(name, c)
	if err != nil {
		return nil, err
	}
	return &hookFile{File: f, hook: h.hook}, nil
}

func (h *hookFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	h.hook()
	f, err := h.FS.ReuseForWrite(oldname, newname, c)
	if err != nil {
		return nil, err
	}
	return &hookFile{File: f, hook: h.hook}, nil
}

func (h *hookFS) OpenDir(name string) (vfs.File, error) {
	f, err := h.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &hookFile{File: f, hook: h.hook}, nil
}

func (h *hookFS) Rename(a, b string) error { h.hook(); return h.FS.Rename(a, b) }

func (h *hookFS) Remove(a string) error { h.hook(); return h.FS.Remove(a) }

type hookFile struct {
	vfs.File
	hook func()
}

func (f *hookFile) Write(p []byte) (int, error) { f.hook(); return f.File.Write(p) }

func (f *hookFile) Sync() error { f.hook(); return f.File.Sync() }

func (f *hookFile) SyncData() error { f.hook(); return f.File.SyncData() }

// A write or sync error anywhere ends the log at once; nothing is acknowledged
// afterwards, and a restart on a sound disk has everything that was.
func TestWriteErrorsAreFatal(t *testing.T) {
	for name, broken := range map[string]func(errorfs.Op) bool{
		"append write":   func(op errorfs.Op) bool { return op.Kind == errorfs.OpFileWrite && strings.HasSuffix(op.Path, ".log") },
		"append sync":    func(op errorfs.Op) bool { return isSync(op) && strings.HasSuffix(op.Path, ".log") },
		"snapshot write": func(op errorfs.Op) bool { return op.Kind == errorfs.OpFileWrite && strings.HasSuffix(op.Path, ".tmp") },
		"snapshot sync":  func(op errorfs.Op) bool { return isSync(op) && strings.HasSuffix(op.Path, snapTmpSuffix) },
		"table write":    func(op errorfs.Op) bool { return op.Kind == errorfs.OpFileWrite && strings.HasSuffix(op.Path, ".sst") },
		"table sync":     func(op errorfs.Op) bool { return isSync(op) && strings.HasSuffix(op.Path, ".sst") },
		"manifest write": func(op errorfs.Op) bool {
			return op.Kind == errorfs.OpFileWrite && strings.Contains(op.Path, "MANIFEST")
		},
		"manifest sync": func(op errorfs.Op) bool { return isSync(op) && strings.Contains(op.Path, "MANIFEST") },
		"create":        func(op errorfs.Op) bool { return op.Kind == errorfs.OpCreate },
		"disk full":     func(op errorfs.Op) bool { return op.Kind == errorfs.OpFileWrite },
	} {
		t.Run(name, func(t *testing.T) {
			injected := error(errorfs.ErrInjected)
			if name == "disk full" {
				injected = syscall.ENOSPC
			}
			var armed atomic.Bool
			mem := vfs.NewCrashableMem()
			m := newRecorder()
			f := make(fatal, 1)
			cfg := config("data", m)
			cfg.OnFatal = f.hook
			cfg.MemTableBytes = 256 << 10
			cfg.SnapshotAfterBytes = 100 << 10
			cfg.TrailingEntries = 10
			cfg.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if armed.Load() && broken(op) {
					return injected
				}
				return nil
			}))
			l := open(t, cfg)
			lead(t, l.Group(0))
			acknowledged := &tally{n: map[string]int{}}
			var lastGood atomic.Int64
			send := func(i int) error {
				err := propose(l.Group(0), fmt.Sprintf("w/%d/%01000d", i, 0))
				if err == nil {
					acknowledged.add("w")
					lastGood.Store(int64(i))
				}
				return err
			}
			for i := range 20 {
				if err := send(i); err != nil {
					t.Fatal(err)
				}
			}
			armed.Store(true)
			var err error
			for i := 20; err == nil && i < 5000; i++ {
				err = send(i)
			}
			if err == nil {
				t.Fatal("5,000 proposals and no failure")
			}
			cause := f.wait(t)
			if !errors.Is(cause, injected) && !strings.Contains(cause.Error(), injected.Error()) {
				t.Errorf("OnFatal was told %v", cause)
			}
			if errors.Is(err, ErrClosed) {
				t.Errorf("the failed proposal: %v", err)
			}
			armed.Store(false) // the disk works again, but it is too late
			if _, err := l.disk.Create("data/again", vfs.WriteCategoryUnspecified); err == nil {
				t.Error("files are still made after the failure")
			}
			if err := l.disk.Remove("data/" + floorName); err == nil {
				t.Error("files are still removed after the failure")
			}
			before := l.Group(0).Stats().LastIndex
			for range 10 {
				if err := propose(l.Group(0), "late"); err == nil {
					t.Fatal("acknowledged after the failure")
				}
			}
			if after := l.Group(0).Stats().LastIndex; after != before {
				t.Errorf("entries %d to %d were appended after the failure", before, after)
			}
			crashed := mem.CrashClone(vfs.CrashCloneCfg{})
			if err := l.Close(); err == nil {
				t.Error("Close says nothing of the failure")
			}
			m = newRecorder()
			cfg = config("data", m)
			cfg.FS = crashed
			l = open(t, cfg)
			lead(t, l.Group(0))
			mustPropose(t, l.Group(0), "probe/0")
			inOrder(t, m.stream(), acknowledged.copy())
			closeLog(t, l)
		})
	}
}

func isSync(op errorfs.Op) bool {
	return op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData
}

const failVariable = "REPLOG_TEST_FAIL_OPENING"

// openWithFailure is a process whose disk fails at one change, named with the
// directory: exit status 0 if Open said so, 2 if it came through without meeting
// the failure, 1 if it hid it.
func openWithFailure(arg string) int {
	number, dir, _ := strings.Cut(arg, ":")
	at, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return 1
	}
	var n atomic.Int64
	cfg := config(dir, newRecorder())
	cfg.ElectionTimeoutMs = 600_000
	cfg.OnFatal = func(error) {}
	cfg.FS = errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpFileClose && op.Kind != errorfs.OpFilePreallocate &&
			op.Kind != errorfs.OpRemove && n.Add(1) == at {
			return errorfs.ErrInjected
		}
		return nil
	}))
	l, err := Open(cfg)
	switch {
	case err == nil && n.Load() >= at && l.Err() == nil:
		fmt.Println("change", at, "failed and nobody says so")
		return 1
	case err == nil:
		return 2
	case !errors.Is(err, errorfs.ErrInjected) && !strings.Contains(err.Error(), errorfs.ErrInjected.Error()):
		fmt.Println(err)
		return 1
	}
	return 0
}

// An error while a log is opened is Open's answer, whichever change it hits; a
// later start succeeds.
func TestWriteErrorsWhileOpening(t *testing.T) {
	for _, existing := range []bool{false, true} {
		failures := 0
		for at := 1; ; at += 3 {
			dir := filepath.Join(t.TempDir(), "data")
			if existing {
				dir = made(t, 3)
			}
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d:%s", failVariable, at, dir))
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if errors.As(err, &exit) && exit.ExitCode() == 2 {
				break
			}
			if err != nil {
				t.Fatalf("change %d: %v\n%s", at, err, out)
			}
			failures++
			m := newRecorder()
			l := open(t, config(dir, m))
			lead(t, l.Group(0))
			mustPropose(t, l.Group(0), "x")
			if got := len(m.stream()); got != 1 && got != 4 {
				t.Errorf("change %d: %d entries", at, got)
			}
			closeLog(t, l)
		}
		if failures < 5 {
			t.Errorf("only %d changes were hit", failures)
		}
	}
}

// The database removes old files in the background. One that waits because a write
// failed while the database opened must end with the opening: Close waits for it.
func TestChangesThatHangWhileOpeningEndWithIt(t *testing.T) {
	failed := errors.New("failed")
	d := &disk{FS: vfs.NewMem(), failure: func() error { return failed }}
	ended := make(chan struct{})
	d.opening.Store(&ended)
	removed := make(chan error, 1)
	go func() { removed <- d.Remove("old") }()
	select {
	case err := <-removed:
		t.Fatalf("the change did not wait: %v", err)
	case <-time.After(10 * time.Millisecond): // it may not have begun: then this proves nothing, but the rest holds
	}
	close(ended)
	if err := <-removed; !errors.Is(err, failed) {
		t.Errorf("%v, want %v", err, failed)
	}
}

// stallFS hangs syncs of data while gate is locked.
type stallFS struct {
	vfs.FS
	gate sync.RWMutex
}

func (s *stallFS) Unwrap() vfs.FS { return s.FS }

func (s *stallFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := s.FS.Create(name, c)
	return &stallFile{File: f, fs: s}, err
}

func (s *stallFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := s.FS.ReuseForWrite(oldname, newname, c)
	return &stallFile{File: f, fs: s}, err
}

type stallFile struct {
	vfs.File
	fs *stallFS
}

func (f *stallFile) SyncData() error {
	f.fs.gate.RLock()
	f.fs.gate.RUnlock() //nolint:staticcheck // only waits
	return f.File.SyncData()
}

func TestHungDiskIsFatal(t *testing.T) {
	disk := &stallFS{FS: vfs.NewMem()}
	f := make(fatal, 1)
	cfg := config("data", newRecorder())
	cfg.FS = disk
	cfg.OnFatal = f.hook
	cfg.AppendStallMs = 50
	cfg.CloseTimeoutMs = 50
	l := open(t, cfg)
	lead(t, l.Group(0))
	mustPropose(t, l.Group(0), "x")
	disk.gate.Lock()
	outcome := make(chan error, 1)
	l.Group(0).Propose([]byte("hangs"), func(err error) { outcome <- err })
	if err := f.wait(t); !errors.Is(err, ErrAppendStalled) {
		t.Errorf("OnFatal was told %v", err)
	}
	select {
	case <-l.Failed():
	case <-time.After(20 * time.Second):
		t.Error("Failed is open")
	}
	if err := l.Err(); !errors.Is(err, ErrAppendStalled) {
		t.Errorf("Err is %v", err)
	}
	if err := l.Close(); !errors.Is(err, ErrAppendStalled) {
		t.Errorf("Close: %v", err)
	}
	if err := <-outcome; err == nil { // although the disk still hangs
		t.Error("the hung append was acknowledged")
	}
	disk.gate.Unlock()
}

// TestStallWatch: only time in which the process ran counts.
func TestStallWatch(t *testing.T) {
	const limit, second = 3 * time.Second, int64(time.Second)
	w := newStallWatch(limit, 2)
	at := func(now time.Duration) (stalled bool) {
		w.tick(now)
		_ = w.took(1, 0)
		return w.took(0, second) > limit
	}
	now := time.Second
	for ; now < 2*time.Second; now += w.every {
		if at(now) {
			t.Fatal("a write of a second is stalled")
		}
	}
	now += time.Hour // the process is stopped
	resumed := now
	for !at(now) {
		now += w.every
	}
	if ran := now - resumed; ran < limit/4 || ran > limit {
		t.Errorf("stalled %v after the process went on, and a second before", ran)
	}
	w.tick(now + w.every)
	if took := w.took(0, int64(now)); took != 0 {
		t.Errorf("the next write has taken %v when it is first seen", took)
	}
}
