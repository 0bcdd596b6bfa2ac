package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/ledger"
	"github.com/assent-tx/assent/internal/serveproc"
)

// TestDemo runs the command that the README names first, a little smaller.
func TestDemo(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, build(t), "demo", "--transfers", "800", "--kills", "2", "--every", "500ms").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "audit passed") || strings.Count(string(out), "KILLED") != 2 {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestDemoFailsWhenItProvesTooLittle: its exit code can be 1. The transfer is over
// long before the first kill.
func TestDemoFailsWhenItProvesTooLittle(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), build(t), "demo", "--transfers", "1", "--kills", "1", "--every", "1m").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "proved too little") {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestStopUnderLoad: SIGTERM ends the process with exit code 0, and what clients
// were told before and after holds.
func TestStopUnderLoad(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	proc, err := serveproc.New(build(t), filepath.Join(dir, "coordinator"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proc.Kill)
	if err := proc.Start(ctx); err != nil {
		t.Fatal(err)
	}
	books := openBooks(t, dir)
	for _, b := range books {
		if err := b.Register(ctx, proc.URL); err != nil {
			t.Fatal(err)
		}
	}
	load := &ledger.Load{Coordinator: proc.URL, Services: [2]string{"bank-a", "bank-b"}, Accounts: accounts, Clients: 8}
	runCtx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- load.Run(runCtx, 20*time.Second) }()
	reach(ctx, t, load, 100, done)
	if err := syscall.Kill(proc.Pid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-proc.Exited():
	case <-ctx.Done():
		t.Fatal("SIGTERM did not end the process")
	}
	if code := proc.ExitCode(); code != 0 {
		text, _ := os.ReadFile(proc.LogFile())
		t.Fatalf("exit code %d; log:\n%s", code, text)
	}
	if err := proc.Start(ctx); err != nil {
		t.Fatal(err)
	}
	reach(ctx, t, load, load.Committed.Load()+load.Aborted.Load()+100, done)
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	settleAndAudit(ctx, t, proc, books, load.Told())
}

// reach waits until the load has so many outcomes.
func reach(ctx context.Context, t *testing.T, load *ledger.Load, outcomes int64, done <-chan error) {
	t.Helper()
	for load.Committed.Load()+load.Aborted.Load() < outcomes {
		select {
		case err := <-done:
			t.Fatalf("the load ended early: %v", err)
		case <-ctx.Done():
			t.Fatalf("%d outcomes, waited for %d", load.Committed.Load()+load.Aborted.Load(), outcomes)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func openBooks(t *testing.T, dir string) []*ledger.Ledger {
	t.Helper()
	var books []*ledger.Ledger
	for _, name := range []string{"bank-a", "bank-b"} {
		book, err := ledger.Open(dir, name, accounts, balance, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := book.Close(); err != nil {
				t.Error(err)
			}
		})
		if err := book.Serve("127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		books = append(books, book)
	}
	return books
}

func settleAndAudit(ctx context.Context, t *testing.T, proc *serveproc.Process, books []*ledger.Ledger, told map[string]string) {
	t.Helper()
	if err := proc.Settled(ctx); err != nil {
		t.Fatal(err)
	}
	found, err := ledger.Audit(ctx, books, accounts, balance, told)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Error(f)
	}
}

// TestNoRoom: a node whose disk has less room than asked for takes no new transactions, and
// answers everything else.
func TestNoRoom(t *testing.T) {
	binary := build(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	proc, err := serveproc.New(binary, filepath.Join(dir, "coordinator"), "--min-free-space", "900TiB")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proc.Kill)
	if err := proc.Start(ctx); err != nil {
		t.Fatal(err)
	}
	books := openBooks(t, dir)
	for _, b := range books {
		if err := b.Register(ctx, proc.URL); err != nil {
			t.Fatal(err)
		}
	}
	load := &ledger.Load{Coordinator: proc.URL, Services: [2]string{"bank-a", "bank-b"}, Accounts: accounts, Clients: 1}
	runCtx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- load.Run(runCtx, time.Second) }()
	for load.Retried.Load() == 0 && load.Committed.Load()+load.Aborted.Load() == 0 && ctx.Err() == nil {
		time.Sleep(2 * time.Millisecond)
	}
	stop()
	if err := <-done; err == nil {
		t.Fatal("a transfer had an outcome")
	}
	if n := load.Committed.Load() + load.Aborted.Load(); n != 0 || load.Retried.Load() == 0 {
		t.Errorf("%d outcomes, %d repeated", n, load.Retried.Load())
	}
	metrics, err := proc.Get(ctx, "/metrics")
	if err != nil || !strings.Contains(string(metrics), `assent_requests_refused_total{reason="OVERLOADED"}`) {
		t.Error(err)
	}
	proc.Kill()
}
