package replog

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// refused opens a directory that must be refused for a reason, with advice, and
// unchanged.
func refused(t *testing.T, cfg Config, want error) {
	t.Helper()
	before := tree(t, cfg.Dir)
	l, err := Open(cfg)
	if err == nil {
		closeLog(t, l)
		t.Fatalf("opened, want %v", want)
	}
	var refusal *DirError
	if !errors.Is(err, want) || !errors.As(err, &refusal) {
		t.Fatalf("got %v, want %v", err, want)
	}
	if refusal.Dir == "" || refusal.Detail == "" || refusal.Hint == "" {
		t.Errorf("an empty part in %+v", refusal)
	}
	if !errors.Is(want, ErrDamaged) { // a check inside the database may leave its own traces
		if after := tree(t, cfg.Dir); !slices.Equal(before, after) {
			t.Errorf("directory changed: %q, then %q", before, after)
		}
	}
}

func tree(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		names = append(names, path+"="+string(content))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// made returns a directory with n entries, closed.
func made(t *testing.T, n int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	m := newRecorder()
	l := open(t, config(dir, m))
	lead(t, l.Group(0))
	for _, d := range numbered(0, n) {
		mustPropose(t, l.Group(0), d)
	}
	closeLog(t, l)
	return dir
}

func TestForeignDirectories(t *testing.T) {
	t.Run("files of others", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "holiday.jpg"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, config(dir, newRecorder()), ErrForeignDirectory)
	})
	t.Run("a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, config(file, newRecorder()), ErrForeignDirectory)
	})
	t.Run("an empty file system", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
			t.Fatal(err)
		}
		closeLog(t, open(t, config(dir, newRecorder())))
	})
	dir := made(t, 3)
	t.Run("another node", func(t *testing.T) {
		cfg := config(dir, newRecorder())
		cfg.NodeID = "n2"
		refused(t, cfg, ErrOtherNode)
	})
	t.Run("another cluster", func(t *testing.T) {
		cfg := config(dir, newRecorder())
		cfg.ClusterID = strings.Repeat("0", 32)
		refused(t, cfg, ErrOtherCluster)
	})
	t.Run("another shard count", func(t *testing.T) {
		refused(t, config(dir, newRecorder(), newRecorder()), ErrOtherShardCount)
	})
	t.Run("a newer format", func(t *testing.T) {
		dir := made(t, 1)
		content, err := identity{Format: dirFormat + 1, Node: "n1", Shards: 1, Cluster: "?"}.encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, identityName), content, 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, config(dir, newRecorder()), ErrNewerFormat)
	})
	t.Run("a damaged identity", func(t *testing.T) {
		dir := made(t, 1)
		name := filepath.Join(dir, identityName)
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range content {
			bad := slices.Clone(content)
			bad[i] ^= 4
			if err := os.WriteFile(name, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			refused(t, config(dir, newRecorder()), ErrDamaged)
		}
	})
}

func TestNewDirectoryTakesClusterID(t *testing.T) {
	cfg := config(filepath.Join(t.TempDir(), "a", "b"), newRecorder())
	cfg.ClusterID = strings.Repeat("ab", 16)
	l := open(t, cfg)
	if l.ClusterID() != cfg.ClusterID {
		t.Errorf("cluster %s", l.ClusterID())
	}
	closeLog(t, l)
}

func TestBadConfig(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no directory": func(c *Config) { c.Dir = "" },
		"node id":      func(c *Config) { c.NodeID = "a/b" },
		"no node id":   func(c *Config) { c.NodeID = "" },
		"cluster id":   func(c *Config) { c.ClusterID = "x" },
		"no machine":   func(c *Config) { c.Machines = nil },
		"nil machine":  func(c *Config) { c.Machines = []Machine{nil} },
		"limit":        func(c *Config) { c.MaxBatchEntries = 5000 },
		"negative":     func(c *Config) { c.MaxPendingBytes = -1 },
		"memory table": func(c *Config) { c.MemTableBytes = 1 },
	} {
		cfg := config(filepath.Join(t.TempDir(), "never"), newRecorder())
		change(&cfg)
		if l, err := Open(cfg); err == nil {
			closeLog(t, l)
			t.Errorf("%s: opened", name)
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(cfg.Dir), "never")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the directory was made", name)
		}
	}
}

func TestLockedBySelf(t *testing.T) {
	dir := t.TempDir()
	l := open(t, config(dir, newRecorder()))
	lead(t, l.Group(0))
	mustPropose(t, l.Group(0), "x") // from here on nothing is written by itself
	refused(t, config(dir, newRecorder()), ErrLocked)
	closeLog(t, l)
	closeLog(t, open(t, config(dir, newRecorder())))
}

const holdVariable = "REPLOG_TEST_HOLD_DIRECTORY"

// TestHoldDirectory is the other process of TestLockedByAnotherProcess: it opens
// the directory, says so, and holds it until its standard input ends.
func TestHoldDirectory(t *testing.T) {
	dir := os.Getenv(holdVariable)
	if dir == "" {
		dir = t.TempDir() // run by itself: nothing to hold for anybody
	}
	l := open(t, config(dir, newRecorder()))
	lead(t, l.Group(0))
	mustPropose(t, l.Group(0), "x") // from here on nothing is written by itself
	if os.Getenv(holdVariable) != "" {
		_, _ = os.Stdout.WriteString("held\n")
		_, _ = os.Stdin.Read(make([]byte, 1))
	}
	closeLog(t, l)
}

func TestLockedByAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHoldDirectory$")
	cmd.Env = append(os.Environ(), holdVariable+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 5)
	if _, err := out.Read(line); err != nil || string(line) != "held\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	refused(t, config(dir, newRecorder()), ErrLocked)
	// Killed, not closed: its lock goes with it.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	_ = in.Close()
	closeLog(t, open(t, config(dir, newRecorder())))
}
