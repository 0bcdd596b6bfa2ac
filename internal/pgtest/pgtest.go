// Package pgtest starts throw-away PostgreSQL clusters for tests: real servers in
// temporary directories, on free loopback ports, that can be killed and started
// again on the same data.
package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/serveproc"
)

// Cluster is one server with its data. It listens on a loopback port and a Unix
// socket in its own directory; anybody there is the superuser "postgres".
type Cluster struct {
	Port int

	bin  string
	dir  string
	cred *syscall.Credential // who runs it, if not this process's user
	cmd  *exec.Cmd
	gone chan struct{} // closed when the postmaster has ended
}

// startWait bounds a start, recovery from a crash included: on a busy machine with a
// slow disk that takes a while, since the server syncs every file it has.
const startWait = 3 * time.Minute

// Start makes a cluster and starts it; settings are further lines of
// postgresql.conf. It is stopped and removed when the test ends.
func Start(t testing.TB, settings ...string) *Cluster {
	t.Helper()
	c, err := create(settings)
	if c != nil {
		t.Cleanup(func() {
			c.Kill()
			_ = os.RemoveAll(c.dir)
		})
	}
	if err == nil {
		err = c.Restart()
	}
	if err != nil {
		t.Fatalf("PostgreSQL: %v", err)
	}
	return c
}

func create(settings []string) (*Cluster, error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	address, err := serveproc.FreeAddress() // a connection may not take it while the server is down
	if err != nil {
		return nil, err
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	port := int(at.Port())
	// Not the test's own directory: another user must reach it, and a path of a Unix
	// socket is at most 107 bytes long.
	dir, err := os.MkdirTemp("", "assent-pg-")
	if err != nil {
		return nil, err
	}
	c := &Cluster{Port: port, bin: bin, dir: dir}
	if os.Geteuid() == 0 { // the server refuses to run as root
		if c.cred, err = unprivileged(); err != nil {
			return c, err
		}
		if err := os.Chown(dir, int(c.cred.Uid), int(c.cred.Gid)); err != nil {
			return c, err
		}
	}
	out, err := c.command("initdb", "--pgdata", c.data(), "--username", "postgres", "--auth", "trust", "--encoding", "UTF8",
		"--locale", "C", "--no-sync", "--no-instructions").CombinedOutput()
	if err != nil {
		return c, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	conf := append([]string{
		"listen_addresses = '127.0.0.1'", fmt.Sprintf("port = %d", port), fmt.Sprintf("unix_socket_directories = '%s'", dir),
		"max_prepared_transactions = 200", "max_connections = 100", "shared_buffers = '32MB'", "log_min_messages = warning",
		"autovacuum = off",
	}, settings...)
	if major, err := c.majorVersion(); err != nil {
		return c, err
	} else if major >= 14 {
		conf = append(conf, "recovery_init_sync_method = syncfs") // after a crash: not file by file
	}
	f, err := os.OpenFile(filepath.Join(c.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return c, err
	}
	_, err = f.WriteString(strings.Join(conf, "\n") + "\n")
	return c, errors.Join(err, f.Close())
}

// Provide writes a file of the server's, into its data directory: server.key, say.
func (c *Cluster) Provide(name string, content []byte) error {
	path := filepath.Join(c.data(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	if c.cred == nil {
		return nil
	}
	return os.Chown(path, int(c.cred.Uid), int(c.cred.Gid))
}

// DSN of a database of this cluster, as the superuser.
func (c *Cluster) DSN(database string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", c.Port, database)
}

// Restart starts the server if it does not run, and returns when it takes
// connections.
func (c *Cluster) Restart() error {
	ctx, cancel := context.WithTimeout(context.Background(), startWait)
	defer cancel()
	for {
		if !c.Running() {
			if err := c.launch(); err != nil {
				return err
			}
		}
		err := c.accepts(ctx)
		// Backends of a postmaster that was killed end by themselves; until then the
		// data directory is refused, and the new postmaster ends.
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// launch starts the postmaster.
func (c *Cluster) launch() error {
	log, err := os.OpenFile(c.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the child has its own
	cmd := c.command("postgres", "-D", c.data())
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed, mostly
		close(gone)
	}()
	c.cmd, c.gone = cmd, gone
	return nil
}

// accepts waits until the server takes connections, or has ended.
func (c *Cluster) accepts(ctx context.Context) error {
	for {
		if c.SQL(ctx, "postgres", "SELECT 1") == nil {
			return nil
		}
		select {
		case <-c.gone:
			return fmt.Errorf("the server does not start:\n%s", c.Log())
		case <-ctx.Done():
			return fmt.Errorf("the server takes no connections:\n%s", c.Log())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Running reports whether the postmaster is there.
func (c *Cluster) Running() bool {
	if c.gone == nil {
		return false
	}
	select {
	case <-c.gone:
		return false
	default:
		return true
	}
}

// Kill ends the postmaster with SIGKILL: a crash.
func (c *Cluster) Kill() { c.signal(syscall.SIGKILL) }

// Stop ends the server in immediate mode: every backend at once, no checkpoint.
func (c *Cluster) Stop() { c.signal(syscall.SIGQUIT) }

// Shutdown ends the server in fast mode: sessions are ended, then a checkpoint.
func (c *Cluster) Shutdown() { c.signal(syscall.SIGINT) }

func (c *Cluster) signal(s syscall.Signal) {
	if c.Running() {
		_ = c.cmd.Process.Signal(s) // fails only if it is gone already
		<-c.gone
	}
}

// SQL runs statements with psql, each on its own; it fails with the first that fails.
func (c *Cluster) SQL(ctx context.Context, database string, statements ...string) error {
	_, err := c.Query(ctx, database, statements...)
	return err
}

// Query is SQL that returns the rows, unaligned, fields separated by "|".
func (c *Cluster) Query(ctx context.Context, database string, statements ...string) (string, error) {
	args := []string{"--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1", "--dbname", c.DSN(database)}
	for _, s := range statements {
		args = append(args, "--command", s)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "psql"), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("psql: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}

// Log is the end of the server's log.
func (c *Cluster) Log() string {
	text, _ := os.ReadFile(c.logFile()) // a report without it is a report still
	return string(text[max(0, len(text)-4096):])
}

func (c *Cluster) data() string    { return filepath.Join(c.dir, "data") }
func (c *Cluster) logFile() string { return filepath.Join(c.dir, "server.log") }

func (c *Cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.bin, name), args...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+c.dir)
	cmd.SysProcAttr = attributes(c.cred)
	return cmd
}

// binaries is the directory of the newest server that is installed.
func binaries() (string, error) {
	const debian = "/usr/lib/postgresql"
	versions, _ := os.ReadDir(debian) // none is no error: the PATH is next
	slices.SortFunc(versions, func(a, b os.DirEntry) int {
		x, _ := strconv.Atoi(a.Name())
		y, _ := strconv.Atoi(b.Name())
		return y - x
	})
	for _, v := range versions {
		if bin := filepath.Join(debian, v.Name(), "bin"); exists(filepath.Join(bin, "postgres")) && exists(filepath.Join(bin, "initdb")) {
			return bin, nil
		}
	}
	path, err := exec.LookPath("postgres")
	if err != nil {
		return "", errors.New("no server is installed: run `make deps`, or install Debian's package postgresql")
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", err
	}
	return filepath.Dir(path), nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func (c *Cluster) majorVersion() (int, error) {
	out, err := c.command("postgres", "--version").Output() // postgres (PostgreSQL) 15.18 (Debian …)
	if err != nil {
		return 0, fmt.Errorf("postgres --version: %w", err)
	}
	var version float64
	if _, err := fmt.Sscanf(string(out), "postgres (PostgreSQL) %f", &version); err != nil {
		return 0, fmt.Errorf("postgres --version says %q: %w", out, err)
	}
	return int(version), nil
}

// unprivileged is a user that the server agrees to run as.
func unprivileged() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), NoSetGroups: true}, nil
	}
	return nil, errors.New("this process is root, and there is neither a user postgres nor nobody to run the server as")
}
