// Package serveproc runs `assent serve` as a child process that can be killed at
// any moment, for the demo and the crash tests.
package serveproc

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is one coordinator: its data directory and addresses stay, the process
// comes and goes.
type Process struct {
	Name   string // of the node, in a cluster
	URL    string // of the REST API
	Data   string
	binary string
	http   string
	grpc   string
	extra  []string
	cmd    *exec.Cmd
	ended  bool          // by Kill or Terminate
	exited chan struct{} // closed when the process is gone
	client *http.Client
}

// New prepares a coordinator with its data in a directory and free loopback
// ports; extra are further flags of `serve`.
func New(binary, data string, extra ...string) (*Process, error) {
	p := &Process{Data: data, binary: binary, extra: extra, client: &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second,
	}}
	for _, addr := range []*string{&p.http, &p.grpc} {
		var err error
		if *addr, err = FreeAddress(); err != nil {
			return nil, err
		}
	}
	p.URL = "http://" + p.http
	return p, nil
}

// ports gives away ports, each once, of ranges that no other process has: the process
// listens on the first port of a range as long as it lives.
type ports struct {
	mu        sync.Mutex
	ranges    []net.Listener
	next, end int // of the range taken last
}

var given ports

// FreeAddress is a loopback address that nobody listens on, each time another one, and
// none that another process gets here. Its port is none that the system gives to outgoing
// connections: so it stays free while a process that is to come back there is down.
func FreeAddress() (string, error) { return given.free() }

func (p *ports) free() (string, error) {
	const lowest, ranges, size, tries = 12000, 100, 200, 1000
	p.mu.Lock()
	defer p.mu.Unlock()
	var last error
	for range tries {
		if p.next == p.end {
			first := lowest + rand.IntN(ranges)*size
			l, err := listen(first)
			if err != nil {
				last = err // another process has the range
				continue
			}
			p.ranges = append(p.ranges, l)
			p.next, p.end = first+1, first+size
		}
		l, err := listen(p.next)
		p.next++
		if err == nil {
			return l.Addr().String(), l.Close()
		}
		last = err
	}
	return "", fmt.Errorf("no free port: %w", last)
}

func listen(port int) (net.Listener, error) {
	return net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

// Use has the next start run another binary.
func (p *Process) Use(binary string) { p.binary = binary }

// LogFile is where the process writes what it has to say.
func (p *Process) LogFile() string { return p.Data + ".log" }

// Pid of the running process.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Exited is closed when the process started last is gone.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// ExitCode of the process that is gone; -1 if a signal ended it.
func (p *Process) ExitCode() int {
	<-p.exited
	return p.cmd.ProcessState.ExitCode()
}

// Start starts the process, with further environment, and returns once it is ready.
func (p *Process) Start(ctx context.Context, env ...string) error {
	if err := p.Launch(env...); err != nil {
		return err
	}
	return p.Ready(ctx)
}

// Launch starts the process and does not wait.
func (p *Process) Launch(env ...string) error {
	logFile, err := os.OpenFile(p.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close() // the child has its own
	args := append([]string{"serve", "--data", p.Data, "--http", p.http, "--grpc", p.grpc}, p.extra...)
	cmd := exec.Command(p.binary, args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = attributes()
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is the test's business: it was killed
		close(exited)
	}()
	p.cmd, p.exited, p.ended = cmd, exited, false
	return nil
}

// ErrExited: the process ended while it was waited for.
var ErrExited = errors.New("the coordinator ended instead of serving")

// Ready returns when /readyz says so.
func (p *Process) Ready(ctx context.Context) error {
	for {
		if _, err := p.Get(ctx, "/readyz"); err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("%w; its log ends:\n%s", ErrExited, p.logTail())
		case <-ctx.Done():
			return fmt.Errorf("the coordinator is not ready: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Kill ends the process with SIGKILL, if it runs, and returns when it is gone.
func (p *Process) Kill() {
	if p.cmd == nil {
		return
	}
	p.ended = true
	_ = p.cmd.Process.Kill() // fails only if it is gone already
	<-p.exited
}

// endTime is more than a process takes to end that has a limit for everything it waits for.
const endTime = 45 * time.Second

// Terminate asks the process to end, and returns its exit code. One that does not end
// writes into its log where it hangs, and its exit code is 2.
func (p *Process) Terminate() int {
	p.ended = true
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails only if it is gone already
	select {
	case <-p.exited:
	case <-time.After(endTime):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT)
	}
	return p.ExitCode()
}

// Pause stops the process, which does not know of it, until Resume.
func (p *Process) Pause() { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume lets it go on.
func (p *Process) Resume() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

// Running reports whether the process is there, paused or not.
func (p *Process) Running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Died reports whether the process ended by itself.
func (p *Process) Died() bool { return p.cmd != nil && !p.ended && !p.Running() }

// Get returns the body of a 200 answer.
func (p *Process) Get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %d: %s", path, resp.StatusCode, body)
	}
	return body, err
}

func (p *Process) logTail() []byte {
	text, _ := os.ReadFile(p.LogFile()) // a report without it is a report still
	return text[max(0, len(text)-4096):]
}

// Report says for a failed test what the process is at: its metrics, the
// transactions it has open, and the end of its log.
func (p *Process) Report(ctx context.Context) string {
	var b strings.Builder
	for _, path := range []string{"/readyz", "/v1/services", "/v1/transactions?state=active", "/v1/transactions?state=preparing", "/v1/transactions?state=in_doubt", "/metrics"} {
		body, err := p.Get(ctx, path)
		fmt.Fprintf(&b, "%s: %v\n", path, err)
		for line := range strings.Lines(string(body[:min(len(body), 16<<10)])) {
			if path != "/metrics" || strings.HasPrefix(line, "assent_") && !strings.Contains(line, "_bucket{") {
				b.WriteString(line)
			}
		}
	}
	fmt.Fprintf(&b, "\nlog:\n%s", p.logTail())
	return b.String()
}

// Settled waits until every transaction has ended and no hazard and no lock is left. A
// question that meets an election is asked again.
func (p *Process) Settled(ctx context.Context) error {
	for {
		left, err := p.unsettled(ctx)
		if err == nil && left == "" {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("%w; its log ends:\n%s", ErrExited, p.logTail())
		case <-ctx.Done():
			return errors.Join(errors.New(cmp.Or(left, "it is not known whether transactions are open")), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// unsettled says what is left, or "".
func (p *Process) unsettled(ctx context.Context) (string, error) {
	left, example := 0, ""
	for _, state := range []string{"active", "preparing", "in_doubt", "hazard"} {
		body, err := p.Get(ctx, "/v1/transactions?state="+state)
		if err != nil {
			return "", err
		}
		var page struct {
			Transactions []json.RawMessage
		}
		if err := json.Unmarshal(body, &page); err != nil {
			return "", err
		}
		if left += len(page.Transactions); len(page.Transactions) > 0 {
			example = string(page.Transactions[0])
		}
	}
	if left > 0 {
		return fmt.Sprintf("%d transactions are still open: %s", left, example), nil
	}
	metrics, err := p.Get(ctx, "/metrics")
	if err != nil {
		return "", err
	}
	if !strings.Contains(string(metrics), "\nassent_lock_owners 0\n") { // those of other shards are released after the end
		return "no transaction is open, but locks are left", nil
	}
	return "", nil
}
