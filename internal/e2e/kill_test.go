// Package e2e tests the built binary as a whole: real processes, real disks.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/assent-tx/assent/internal/ledger"
	"github.com/assent-tx/assent/internal/serveproc"
)

var buildDir string

func TestMain(m *testing.M) {
	var err error
	if buildDir, err = os.MkdirTemp("", "assent-e2e-"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(buildDir)
		os.Exit(code)
	}))
}

var rounds = flag.Int("kill.rounds", 1, "how often TestKillAtEveryPoint goes through all points; each round arms later hits")

const (
	accounts = 20
	balance  = 300
)

// points are the places where the coordinator kills itself: before and after each
// kind of record is appended and applied, before and after each kind of call.
func points() []string {
	var list []string
	for _, kind := range []string{"LEAD", "PUT_SERVICE", "BEGIN", "COMMIT", "ABORT", "ACK", "FORGET"} {
		for _, stage := range []string{"before-append", "after-apply", "after-append"} {
			list = append(list, stage+":"+kind)
		}
	}
	for _, phase := range []string{"prepare", "commit", "rollback"} {
		list = append(list, "before-call:"+phase, "after-call:"+phase)
	}
	return list
}

// built is the binary under test, with the failpoints in it; released is the one that users
// run, for what is measured.
var built, released = sync.OnceValues(buildWith("failpoints")), sync.OnceValues(buildWith(""))

func buildWith(tags string) func() (string, error) {
	return func() (string, error) {
		binary := filepath.Join(buildDir, "assent"+tags)
		out, err := exec.Command("go", "build", "-tags", tags, "-o", binary, "github.com/assent-tx/assent/cmd/assent").CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("go build: %w\n%s", err, out)
		}
		return binary, nil
	}
}

func build(t testing.TB) string { return must(t, built) }

func must(t testing.TB, binary func() (string, error)) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestKillAtEveryPoint arms one point after the other, lets the coordinator kill
// itself there under load, restarts it on the same data, and audits both ledgers.
func TestKillAtEveryPoint(t *testing.T) {
	binary := build(t)
	dir := t.TempDir()
	books := openBooks(t, dir)
	proc, err := serveproc.New(binary, filepath.Join(dir, "coordinator"), "--transactions-retained", "20")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proc.Kill)
	told := map[string]string{}
	for round := range *rounds {
		for i, point := range points() {
			t.Run(fmt.Sprintf("%s/%d", point, round), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				hit := 1
				rare := strings.HasSuffix(point, "LEAD") || strings.HasSuffix(point, "SERVICE") || strings.HasSuffix(point, "FORGET")
				if !rare { // those are reached once or so in a process's life
					hit = 1 + (i+round*7)%5
				}
				killAt(ctx, t, proc, books, fmt.Sprintf("%s@%d", point, hit), told)
			})
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d transfers", len(told))
}

func killAt(ctx context.Context, t *testing.T, proc *serveproc.Process, books []*ledger.Ledger, failpoint string, told map[string]string) {
	t.Helper()
	if err := proc.Launch("ASSENT_FAILPOINT=" + failpoint); err != nil {
		t.Fatal(err)
	}
	runCtx, stop := context.WithCancel(ctx)
	defer stop()
	load := &ledger.Load{Coordinator: proc.URL, Services: [2]string{"bank-a", "bank-b"}, Accounts: accounts, Clients: 8}
	done := make(chan error, 1)
	go func() {
		for _, book := range books { // registers again and again until it is taken
			if err := book.Register(runCtx, proc.URL); err != nil {
				done <- err
				return
			}
		}
		done <- load.Run(runCtx, 30*time.Second)
	}()
	select {
	case <-proc.Exited():
	case err := <-done:
		t.Fatalf("the load ended before %s was reached: %v", failpoint, err)
	case <-ctx.Done():
		t.Fatalf("%s was never reached; %d transfers committed, %d aborted, %d sent again\n%s",
			failpoint, load.Committed.Load(), load.Aborted.Load(), load.Retried.Load(), proc.Report(context.WithoutCancel(ctx)))
	}
	if err := proc.Start(ctx); err != nil {
		t.Fatal(err)
	}
	reach(ctx, t, load, load.Committed.Load()+load.Aborted.Load()+20, done)
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for id, state := range load.Told() {
		told[id] = state
	}
	settleAndAudit(ctx, t, proc, books, told)
	proc.Kill()
}
