package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/ledger"
	"github.com/assent-tx/assent/internal/serveproc"
)

// TestMixedVersions: nodes of the version before and of this one run together, one after
// the other is upgraded under load, and what only the new version knows is written when
// all have it. From then on the old version stops instead of misreading the log.
func TestMixedVersions(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	dir := t.TempDir()
	previous := filepath.Join(dir, "assent-previous")
	if out, err := exec.CommandContext(ctx, "go", "build", "-tags", "previouslevel", "-o", previous, "../../cmd/assent").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var founders, peers []string
	for i := range 3 {
		peer, err := serveproc.FreeAddress()
		if err != nil {
			t.Fatal(err)
		}
		peers = append(peers, peer)
		founders = append(founders, fmt.Sprintf("n%d=%s", i+1, peer))
	}
	var nodes []*serveproc.Process
	for i, peer := range peers {
		name := fmt.Sprintf("n%d", i+1)
		n, err := serveproc.New(previous, filepath.Join(dir, name), "--node", name, "--peer", peer, "--cluster", strings.Join(founders, ","))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.Kill)
		if i == 2 {
			n.Use(build(t))
		}
		if err := n.Launch(); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		if err := n.Ready(ctx); err != nil {
			t.Fatal(err)
		}
	}
	books := openBooks(t, dir)
	for _, b := range books {
		if err := b.Register(ctx, nodes[0].URL); err != nil {
			t.Fatal(err)
		}
	}
	load := &ledger.Load{Coordinator: nodes[0].URL, Others: []string{nodes[1].URL, nodes[2].URL}, Services: [2]string{"bank-a", "bank-b"}, Accounts: accounts, Clients: 4}
	runCtx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- load.Run(runCtx, 20*time.Second) }()
	// The table of members is what the new version writes and the old one does not know.
	members := func(n *serveproc.Process) int {
		content, err := os.ReadFile(filepath.Join(n.Data, "members.json"))
		if err != nil {
			return 0
		}
		return strings.Count(string(content), `"ID"`)
	}
	for i, n := range nodes[:2] {
		reach(ctx, t, load, load.Committed.Load()+load.Aborted.Load()+50, done)
		if members(n) > 0 || members(nodes[2]) > 0 {
			t.Fatal("records of the new level were written beside a node that does not know them")
		}
		n.Kill()
		n.Use(build(t))
		if err := n.Start(ctx); err != nil {
			t.Fatalf("upgrade %d: %v", i+1, err)
		}
	}
	for _, n := range nodes {
		for members(n) < 3 {
			select {
			case <-ctx.Done():
				t.Fatal("the new level was never reached\n", n.Report(context.Background()))
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	reach(ctx, t, load, load.Committed.Load()+load.Aborted.Load()+50, done)
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if err := n.Settled(ctx); err != nil {
			t.Fatal(err)
		}
	}
	found, err := ledger.Audit(ctx, books, accounts, balance, load.Told())
	if err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
	// No way back: the old version refuses what it does not know.
	nodes[0].Kill()
	nodes[0].Use(previous)
	if err := nodes[0].Start(ctx); err == nil {
		t.Fatal("the old version serves a log that it does not know")
	}
	if code := nodes[0].ExitCode(); code != 1 && code != 3 {
		t.Errorf("exit code %d", code)
	}
	nodes[0].Use(build(t))
	if err := nodes[0].Start(ctx); err != nil {
		t.Fatal(err)
	}
}
