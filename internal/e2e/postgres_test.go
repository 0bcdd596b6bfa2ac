package e2e

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/ledger"
	"github.com/assent-tx/assent/internal/pgtest"
	"github.com/assent-tx/assent/internal/serveproc"
)

var killMinutes = flag.Float64("kill.minutes", 0.25, "how long TestKillPostgres kills")

const pgAccounts, pgBalance = 30, 150

// child is a process at a fixed address that can be killed and started again.
type child struct {
	args []string
	env  []string
	log  string
	cmd  *exec.Cmd     // nil: killed, or never started
	gone chan struct{} // closed once cmd has ended
}

func (c *child) start(t *testing.T, binary string) {
	t.Helper()
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // the child has its own
	c.cmd = exec.Command(binary, c.args...)
	c.cmd.Env = append(os.Environ(), c.env...)
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd, gone := c.cmd, make(chan struct{})
	c.gone = gone
	go func() { // also one that ends by itself
		_ = cmd.Wait()
		close(gone)
	}()
}

// died reports whether it ended without being killed.
func (c *child) died() bool {
	if c.cmd == nil {
		return false
	}
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

func (c *child) kill() {
	if c.cmd != nil {
		_ = c.cmd.Process.Kill() // fails only if it is gone already
		<-c.gone
		c.cmd = nil
	}
}

// signal sends one, if the process is there.
func (c *child) signal(s os.Signal) {
	if c.cmd != nil {
		_ = c.cmd.Process.Signal(s) // fails only if it is gone already
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	address, err := serveproc.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// TestKillPostgres moves money between two databases that know nothing of each
// other, and books every transfer in an HTTP service, while each of the five - the
// coordinator, the servers, the agents, the service - is killed again and again.
// At the end every transfer is in all three places or in none, no money was made,
// nothing is prepared and no lock is left.
func TestKillPostgres(t *testing.T) {
	length := time.Duration(*killMinutes * float64(time.Minute))
	ctx, cancel := context.WithTimeout(t.Context(), length+3*time.Minute)
	defer cancel()
	binary := build(t)
	dir := t.TempDir()
	proc, err := serveproc.New(binary, filepath.Join(dir, "coordinator"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proc.Kill)
	if err := proc.Start(ctx); err != nil {
		t.Fatal(err)
	}
	names := []string{"pg-a", "pg-b"}
	servers := make([]*pgtest.Cluster, len(names))
	children := map[string]*child{}
	for i, name := range names {
		servers[i] = pgtest.Start(t)
		if err := servers[i].SQL(ctx, "postgres", "CREATE DATABASE bank"); err != nil {
			t.Fatal(err)
		}
		err := servers[i].SQL(ctx, "bank",
			"CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0))",
			"CREATE TABLE transfer (id text PRIMARY KEY, amount bigint NOT NULL)",
			fmt.Sprintf("INSERT INTO account SELECT i, %d FROM generate_series(1, %d) i", pgBalance, pgAccounts))
		if err != nil {
			t.Fatal(err)
		}
		children["agent "+name] = &child{
			log:  filepath.Join(dir, name+".log"),
			env:  []string{"ASSENT_AGENT_DSN=" + servers[i].DSN("bank")},
			args: []string{"agent", "postgres", "--service", name, "--listen", freeAddress(t), "--coordinator", proc.URL, "--sweep-interval", "1s", "--orphan-after", "2s"},
		}
	}
	children["book"] = &child{
		log:  filepath.Join(dir, "book.log"),
		args: []string{"ledger", "--name", "book", "--dir", dir, "--listen", freeAddress(t), "--coordinator", proc.URL},
	}
	for _, name := range []string{"agent pg-a", "agent pg-b", "book"} {
		children[name].start(t, binary)
		t.Cleanup(children[name].kill)
	}
	registered(ctx, t, proc, append(names, "book"))

	load := &ledger.Load{Coordinator: proc.URL, Clients: 8, Operations: pgTransfer}
	runCtx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- load.Run(runCtx, time.Minute) }()
	reach(ctx, t, load, 50, done)

	restart := map[string]func(){
		"coordinator": func() {
			proc.Kill()
			if err := proc.Start(ctx); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, c := range children {
		restart[name] = func() { c.kill(); c.start(t, binary) }
	}
	for i, name := range names {
		restart["server "+name] = func() {
			end := servers[i].Kill
			if rand.IntN(2) == 0 {
				end = servers[i].Stop
			}
			end()
			if err := servers[i].Restart(); err != nil {
				t.Fatal(err)
			}
		}
	}
	victims := []string{"coordinator", "agent pg-a", "server pg-a", "book", "agent pg-b", "server pg-b"}
	kills := 0
	for end := time.Now().Add(length); time.Now().Before(end) || kills < len(victims); kills++ {
		if kills%len(victims) == 0 { // each once in a round, in another order
			rand.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
		}
		restart[victims[kills%len(victims)]]()
		outcomes := load.Committed.Load() + load.Aborted.Load()
		reach(ctx, t, load, outcomes+10+rand.Int64N(40), done)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d kills, %d transfers committed, %d aborted, %d sent again", kills, load.Committed.Load(), load.Aborted.Load(), load.Retried.Load())
	if err := proc.Settled(ctx); err != nil {
		t.Fatal(err)
	}
	children["book"].kill() // its file is read below
	auditPostgres(ctx, t, servers, filepath.Join(dir, "book.db"), load.Told())
	if load.Committed.Load() < int64(kills) || load.Aborted.Load() == 0 {
		t.Errorf("%d transfers committed, %d aborted: that proves too little", load.Committed.Load(), load.Aborted.Load())
	}
}

func pgTransfer(id string) []any {
	amount, way := 1+rand.IntN(100), rand.IntN(2)
	accounts := []int{1 + rand.IntN(pgAccounts), 1 + rand.IntN(pgAccounts)}
	ops := []any{map[string]any{
		"service": "book", "payload": ledger.Posting{Transfer: id, Account: 1, Amount: 1}, "locks": []any{map[string]string{"key": "accounts/1"}},
	}}
	for i, service := range []string{"pg-a", "pg-b"} {
		signed := amount
		if i == way {
			signed = -amount // refused by the table's check when there is not enough
		}
		ops = append(ops, map[string]any{
			"service": service, "locks": []any{map[string]string{"key": fmt.Sprintf("account/%d", accounts[i])}},
			"payload": map[string]any{"statements": []any{
				map[string]any{"sql": "UPDATE account SET balance = balance + $1 WHERE id = $2", "args": []any{signed, accounts[i]}, "expect": map[string]int{"rows": 1}},
				map[string]any{"sql": "INSERT INTO transfer VALUES ($1, $2)", "args": []any{id, signed}},
			}},
		})
	}
	return ops
}

func registered(ctx context.Context, t *testing.T, proc *serveproc.Process, names []string) {
	t.Helper()
	for _, name := range names {
		for {
			_, err := proc.Get(ctx, "/v1/services/"+name)
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				t.Fatalf("%s does not register: %v", name, err)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
}

// auditPostgres compares what the three participants hold with each other and with
// what clients were told.
func auditPostgres(ctx context.Context, t *testing.T, servers []*pgtest.Cluster, book string, told map[string]string) {
	t.Helper()
	seen := map[string][]string{} // transfer -> where it is
	total := 0
	for i, s := range servers {
		query := func(sql string) string {
			out, err := s.Query(ctx, "bank", sql)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		if n := query("SELECT count(*) FROM pg_prepared_xacts"); n != "0" {
			t.Errorf("database %d: %s transactions are still prepared", i+1, n)
		}
		var balance, moved int
		_, _ = fmt.Sscan(query("SELECT sum(balance) FROM account"), &balance)
		_, _ = fmt.Sscan(query("SELECT coalesce(sum(amount), 0) FROM transfer"), &moved)
		if balance != pgAccounts*pgBalance+moved {
			t.Errorf("database %d: the accounts hold %d, the transfers say %d", i+1, balance, pgAccounts*pgBalance+moved)
		}
		total += balance
		for id := range strings.FieldsSeq(query("SELECT id FROM transfer")) {
			seen[id] = append(seen[id], fmt.Sprint("database ", i+1))
		}
	}
	if want := len(servers) * pgAccounts * pgBalance; total != want {
		t.Errorf("money was made or lost: %d, at the start %d", total, want)
	}
	db, err := sql.Open("sqlite", book)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, "SELECT transfer FROM entry")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		seen[id] = append(seen[id], "book")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	for id, places := range seen {
		if len(places) != 3 {
			t.Errorf("transfer %s is only in %v", id, places)
		}
		if strings.HasPrefix(told[id], "abort") {
			t.Errorf("transfer %s is in %v, but its client was told %s", id, places, told[id])
		}
	}
	for id, state := range told {
		if strings.HasPrefix(state, "commit") && seen[id] == nil {
			t.Errorf("transfer %s is nowhere, but its client was told %s", id, state)
		}
	}
}

// TestServeHostsAgents: databases of the configuration file take part, also one
// that does not answer when the coordinator starts.
func TestServeHostsAgents(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	server := pgtest.Start(t)
	if err := server.SQL(ctx, "postgres", "CREATE DATABASE other", "CREATE TABLE t (n int)"); err != nil {
		t.Fatal(err)
	}
	if err := server.SQL(ctx, "other", "CREATE TABLE t (n int)"); err != nil {
		t.Fatal(err)
	}
	server.Stop()
	conf := filepath.Join(dir, "assent.yaml")
	text := "agents:\n"
	for name, database := range map[string]string{"one": "postgres", "two": "other"} {
		dsn := filepath.Join(dir, name+".dsn")
		if err := os.WriteFile(dsn, []byte(server.DSN(database)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf("  - postgres:\n      service: %s\n      dsn-file: %s\n", name, dsn)
	}
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	proc, err := serveproc.New(build(t), filepath.Join(dir, "coordinator"), "--config", conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proc.Kill)
	if err := proc.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	registered(ctx, t, proc, []string{"one", "two"})
	load := &ledger.Load{Coordinator: proc.URL, Clients: 2, Transfers: 10, Wait: "completed", Operations: func(string) []any {
		var ops []any
		for _, name := range []string{"one", "two"} {
			ops = append(ops, map[string]any{"service": name, "payload": map[string]any{"statements": []any{map[string]any{"sql": "INSERT INTO t VALUES (1)"}}}})
		}
		return ops
	}}
	if err := load.Run(ctx, time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, database := range []string{"postgres", "other"} {
		if n, err := server.Query(ctx, database, "SELECT count(*) FROM t"); n != "10" || err != nil {
			t.Errorf("%s: %s rows, %v, want 10", database, n, err)
		}
	}
}
