package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/ledger"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/serveproc"
)

// submitTo submits a body and returns the status and the answer.
func submitTo(ctx context.Context, t *testing.T, url, body string) (status int, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/transactions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

// pay makes transfers, but from the last account, and adds what clients were told.
func pay(ctx context.Context, t *testing.T, proc *serveproc.Process, told map[string]string) {
	t.Helper()
	load := &ledger.Load{Coordinator: proc.URL, Services: [2]string{"bank-a", "bank-b"}, Accounts: accounts - 1, Clients: 4, Transfers: 40}
	if err := load.Run(ctx, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if load.Committed.Load() == 0 {
		t.Fatal("nothing was committed")
	}
	for id, outcome := range load.Told() {
		told[id] = outcome
	}
	if err := proc.Settled(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestBackupAndRestore: a cluster that has lost everything goes on from its backup. It
// knows what the backup knew, does not run again what came later, and the one that it
// replaces is refused.
func TestBackupAndRestore(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	binary, dir := build(t), t.TempDir()
	file, restored := filepath.Join(dir, "cluster.backup"), filepath.Join(dir, "restored")
	assent := func(want int, args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(ctx, binary, args...).CombinedOutput()
		code := 0
		if err != nil {
			code = -1
			if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // not wrapped
				code = exit.ExitCode()
			}
		}
		if code != want {
			t.Fatalf("assent %v: exit code %d, want %d\n%s", args, code, want, out)
		}
		return string(out)
	}
	first, err := serveproc.New(binary, filepath.Join(dir, "first"), "--shards", "3")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(first.Kill)
	if err := first.Start(ctx); err != nil {
		t.Fatal(err)
	}
	books := openBooks(t, dir)
	for _, b := range books {
		if err := b.Register(ctx, first.URL); err != nil {
			t.Fatal(err)
		}
	}
	told := map[string]string{}
	pay(ctx, t, first, told)
	known := len(told)

	assent(0, "backup", "--url", first.URL, "--out", file)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	assent(2, "backup", "--url", first.URL, "--out", file)

	// The lost time: after the backup, before the disaster.
	const transfer = `{"id":%q,"timeout":%q,"operations":[` +
		`{"service":"bank-a","payload":{"transfer":%q,"account":20,"amount":-1},"locks":[{"key":"accounts/20"}]},` +
		`{"service":"bank-b","payload":{"transfer":%q,"account":20,"amount":1},"locks":[{"key":"accounts/20"}]}]}`
	body := func(id, timeout string) string { return fmt.Sprintf(transfer, id, timeout, id, id) }
	late := node.NewID().String()
	if status, answer := submitTo(ctx, t, first.URL, body(late, "10s")); status != 200 || !strings.Contains(answer, `"state":"commit`) {
		t.Fatal(status, answer)
	}
	told[late] = "committed"
	if err := first.Settled(ctx); err != nil {
		t.Fatal(err)
	}
	first.Kill()

	if out := assent(0, "restore", "--check", "--from", file); !strings.Contains(out, "SHARD") {
		t.Error(out)
	}
	assent(2, "restore", "--from", file)
	out := assent(0, "restore", "--from", file, "--data", restored, "--node", "node-1")
	if !strings.Contains(out, "incarnation 2") || !strings.Contains(out, "assent serve --data") {
		t.Error(out)
	}
	assent(1, "restore", "--from", file, "--data", restored, "--node", "node-1") // not empty
	cut, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	short := filepath.Join(dir, "short.backup")
	if err := os.WriteFile(short, cut[:len(cut)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	assent(1, "restore", "--from", short, "--data", filepath.Join(dir, "never"), "--node", "node-1")
	if _, err := os.Stat(filepath.Join(dir, "never")); !os.IsNotExist(err) {
		t.Error("a damaged backup made a directory")
	}

	second, err := serveproc.New(binary, restored)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.Kill)
	if err := second.Start(ctx); err != nil {
		t.Fatal(err)
	}
	raw, err := second.Get(ctx, "/v1/cluster")
	var cluster struct {
		Incarnation, Shards uint64
		Nodes               []struct{ Name string }
	}
	if err == nil {
		err = json.Unmarshal(raw, &cluster)
	}
	if err != nil || cluster.Incarnation != 2 || cluster.Shards != 3 || len(cluster.Nodes) != 1 || cluster.Nodes[0].Name != "node-1" {
		t.Fatalf("%s, %v", raw, err)
	}
	raw, err = second.Get(ctx, "/v1/transactions?page_size=1000")
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(raw, []byte(`"branches":`)); n != known {
		t.Errorf("%d transactions are listed, the backup had %d", n, known)
	}
	for id := range told {
		if id != late && !bytes.Contains(raw, []byte(id)) {
			t.Errorf("transaction %s is not listed", id)
		}
	}
	// What is not known may have run: it does not run again, and nobody is told more.
	if status, answer := submitTo(ctx, t, second.URL, body(late, "10s")); status != http.StatusGone || !strings.Contains(answer, "ID_EXPIRED") {
		t.Error("a transaction of the lost time: ", status, answer)
	}
	pay(ctx, t, second, told)

	// The old cluster comes back: the services do not listen to it any more.
	if err := first.Start(ctx); err != nil {
		t.Fatal(err)
	}
	stray := node.NewID().String()
	status, answer := submitTo(ctx, t, first.URL, body(stray, "500ms"))
	if strings.Contains(answer, `"state":"commit`) {
		t.Error("the cluster that was replaced committed: ", status, answer)
	}
	first.Kill()
	settleAndAudit(ctx, t, second, books, told)
}
