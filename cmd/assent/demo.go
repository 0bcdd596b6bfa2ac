package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/assent-tx/assent/internal/ledger"
	"github.com/assent-tx/assent/internal/serveproc"
)

// demoCmd is `assent demo`.
type demoCmd struct {
	Nodes     int           `default:"3" help:"Nodes of the coordinator: 3 or 5 make a cluster whose leaders are killed; 1 is killed and started again."`
	Transfers int           `default:"3000" help:"Transfers to submit; once killing has begun, they go on until the last kill."`
	Clients   int           `default:"32" help:"Clients that submit at the same time."`
	Accounts  int           `default:"50" help:"Accounts on each ledger; fewer means more waiting for locks."`
	Kills     int           `default:"4" help:"How often a node is killed with SIGKILL."`
	Every     time.Duration `default:"1500ms" help:"Time between kills."`
	Dir       string        `help:"Keep all data here instead of a temporary directory; must be empty or absent." type:"path"`
}

const (
	demoBalance = 200
	demoLimit   = 2 * time.Minute
)

// Help is shown by --help.
func (*demoCmd) Help() string {
	return `Runs the main job with nothing to install: a coordinator of three nodes (real child
processes that elect a leader) and two ledgers (SQLite files that use the public SDK
over HTTP). Thousands of concurrent transfers move money between the ledgers; some are
refused for lack of funds. Meanwhile the leader is killed with SIGKILL, again and again;
the others go on, and it comes back. At the end an audit reads both ledgers: every transfer must
be on both or on neither, as its client was told, with no money made or lost,
nothing in doubt and no lock left. The exit code is 1 if anything is wrong.`
}

// Run runs the demo.
func (d *demoCmd) Run() error {
	if d.Nodes < 1 || d.Nodes > 7 {
		return &exitError{exitUsage, errors.New("--nodes is 1 to 7")}
	}
	if d.Transfers < 1 || d.Clients < 1 || d.Accounts < 1 || d.Kills < 0 || d.Every <= 0 {
		return &exitError{exitUsage, errors.New("--transfers, --clients and --accounts are at least 1, --every is more than 0s")}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, demoLimit)
	defer cancel()

	dir := d.Dir
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "assent-demo-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	} else if left, err := os.ReadDir(dir); err == nil && len(left) > 0 {
		return fmt.Errorf("%s is not empty: name a new directory with --dir", dir)
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return d.run(ctx, dir, os.Stdout)
}

func (d *demoCmd) run(ctx context.Context, dir string, out io.Writer) error {
	start := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(out, "%5.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}

	names := []string{"bank-a", "bank-b"}
	var books []*ledger.Ledger
	for _, name := range names {
		book, err := ledger.Open(dir, name, d.Accounts, demoBalance, nil)
		if err != nil {
			return err
		}
		defer book.Close()
		if err := book.Serve("127.0.0.1:0"); err != nil {
			return err
		}
		say("ledger %s: %d accounts with %d each, at %s", name, d.Accounts, demoBalance, book.URL())
		books = append(books, book)
	}

	nodes, err := d.nodes(dir)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if err := n.Launch(); err != nil {
			return err
		}
		defer n.Kill()
	}
	for i, n := range nodes {
		if err := n.Ready(ctx); err != nil {
			return err
		}
		say("node n%d: process %d at %s", i+1, n.Pid(), n.URL)
	}
	for i, book := range books {
		if err := book.Register(ctx, nodes[0].URL); err != nil {
			return fmt.Errorf("register %s: %w", names[i], err)
		}
	}

	load := &ledger.Load{Coordinator: nodes[0].URL, Services: [2]string{names[0], names[1]}, Accounts: d.Accounts, Clients: d.Clients, Transfers: d.Transfers}
	for _, n := range nodes[1:] {
		load.Others = append(load.Others, n.URL)
	}
	var killing atomic.Bool
	load.More = killing.Load
	done := make(chan error, 1)
	go func() { done <- load.Run(ctx, 20*time.Second) }()
	kills, err := d.breakThings(ctx, nodes, load, &killing, done, say)
	if err != nil {
		return err
	}
	say("done: %d committed, %d refused, %d requests repeated, %d kills; waiting until nothing is open", load.Committed.Load(), load.Aborted.Load(), load.Retried.Load(), kills)
	if n := load.Unknown.Load(); n > 0 {
		say("%d outcomes expired before a client was told: the audit asks of them only that both ledgers agree", n)
	}
	for _, n := range nodes {
		if err := n.Settled(ctx); err != nil {
			return err
		}
	}

	found, err := ledger.Audit(ctx, books, d.Accounts, demoBalance, load.Told())
	if err != nil {
		return err
	}
	for _, f := range found {
		fmt.Fprintln(out, "WRONG:", f)
	}
	if len(found) > 0 {
		return fmt.Errorf("the audit found %d contradictions", len(found))
	}
	if load.Committed.Load() == 0 || load.Aborted.Load() == 0 || kills < d.Kills {
		return fmt.Errorf("the demo proved too little: %d committed, %d refused, %d of %d kills; give it more --transfers", load.Committed.Load(), load.Aborted.Load(), kills, d.Kills)
	}
	say("audit passed: every transfer is on both ledgers or on neither, as its client was told;")
	say("money conserved, nothing in doubt, no lock left")
	return nil
}

// nodes prepares the processes.
func (d *demoCmd) nodes(dir string) ([]*serveproc.Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if d.Nodes == 1 {
		alone, err := serveproc.New(self, filepath.Join(dir, "n1"))
		return []*serveproc.Process{alone}, err
	}
	var peers, founders []string
	for i := range d.Nodes {
		peer, err := serveproc.FreeAddress()
		if err != nil {
			return nil, err
		}
		peers = append(peers, peer)
		founders = append(founders, fmt.Sprintf("n%d=%s", i+1, peer))
	}
	var nodes []*serveproc.Process
	for i, peer := range peers {
		name := fmt.Sprintf("n%d", i+1)
		n, err := serveproc.New(self, filepath.Join(dir, name), "--node", name, "--peer", peer, "--cluster", strings.Join(founders, ","))
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// breakThings kills the leader and starts it again, until the load is done. From the first
// kill to the last, killing keeps the load going: a restart may take longer than what is
// left of it.
func (d *demoCmd) breakThings(ctx context.Context, nodes []*serveproc.Process, load *ledger.Load, killing *atomic.Bool, done <-chan error, say func(string, ...any)) (kills int, err error) {
	kill := time.NewTicker(d.Every)
	defer kill.Stop()
	progress := time.NewTicker(500 * time.Millisecond)
	defer progress.Stop()
	for {
		select {
		case err := <-done:
			return kills, err
		case <-ctx.Done():
			return kills, errors.Join(ctx.Err(), <-done)
		case <-progress.C:
			n := load.Committed.Load() + load.Aborted.Load()
			width := int(n * 30 / int64(max(d.Transfers, 1)))
			say("[%-30s] %d of %d: %d committed, %d refused", strings.Repeat("#", min(width, 30)), n, d.Transfers, load.Committed.Load(), load.Aborted.Load())
		case <-kill.C:
			if kills == d.Kills {
				continue
			}
			killing.Store(true)
			if err := d.killLeader(ctx, nodes, say); err != nil {
				return kills, err
			}
			kills++
			killing.Store(kills < d.Kills)
		}
	}
}

// killLeader kills who leads, and starts it again once another one does.
func (d *demoCmd) killLeader(ctx context.Context, nodes []*serveproc.Process, say func(string, ...any)) error {
	at, err := leaderOf(ctx, nodes)
	if err != nil {
		return err
	}
	dead := nodes[at]
	pid, down := dead.Pid(), time.Now()
	dead.Kill()
	say("KILLED n%d, process %d, which led (SIGKILL)", at+1, pid)
	if len(nodes) > 1 {
		next, err := leaderOf(ctx, nodes)
		if err != nil {
			return err
		}
		say("n%d leads, %d ms after", next+1, time.Since(down).Milliseconds())
	}
	if err := dead.Launch(); err != nil {
		return err
	}
	if err := dead.Ready(ctx); err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	say("n%d is back as process %d, ready %d ms after the kill", at+1, dead.Pid(), time.Since(down).Milliseconds())
	return nil
}

// leaderOf waits until one of the nodes leads, and returns which.
func leaderOf(ctx context.Context, nodes []*serveproc.Process) (int, error) {
	for {
		for i, n := range nodes {
			var health struct{ Shards []struct{ Leading bool } }
			if body, err := n.Get(ctx, "/healthz"); err == nil && json.Unmarshal(body, &health) == nil && len(health.Shards) > 0 && health.Shards[0].Leading {
				return i, nil
			}
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return 0, fmt.Errorf("no node leads: %w", ctx.Err())
		}
	}
}

// ledgerCmd is `assent ledger`: the example participant of the tour.
type ledgerCmd struct {
	Name        string `required:"" help:"Name to register as, for example bank-a."`
	Listen      string `default:"127.0.0.1:7081" help:"Address to serve on."`
	Coordinator string `placeholder:"URL" help:"Coordinator to register at; several nodes of it are divided by commas (default: ASSENT_ENDPOINTS, ASSENT_ENDPOINTS_FILE, ASSENT_URL, else http://127.0.0.1:7070)."`
	Dir         string `default:"." type:"path" help:"Directory of the SQLite file NAME.db."`
	DSN         string `name:"dsn" env:"ASSENT_LEDGER_DSN" placeholder:"DSN" help:"A PostgreSQL database to keep the book in, instead of the file. Transactions then work in it side by side step by step, too."`
	Accounts    int    `default:"10" help:"Accounts to open, numbered from 1."`
	Balance     int64  `default:"100" help:"Money in each new account."`
}

// Help is shown by --help.
func (*ledgerCmd) Help() string {
	return `An example service to try Assent with: an account book in a SQLite file that takes
part in transactions through the public SDK. It registers itself, then serves:

  assent ledger --name bank-a --listen 127.0.0.1:7081
  curl 127.0.0.1:7081/accounts/1

Its operations are {"transfer":"any unique text","account":1,"amount":-30}.`
}

// Run serves until it is interrupted.
func (l *ledgerCmd) Run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	open := func() (*ledger.Ledger, error) {
		return ledger.Open(l.Dir, l.Name, l.Accounts, l.Balance, slog.Default())
	}
	if l.DSN != "" {
		open = func() (*ledger.Ledger, error) {
			return ledger.OpenPostgreSQL(l.DSN, l.Name, l.Accounts, l.Balance, slog.Default())
		}
	}
	book, err := open()
	if err != nil {
		return err
	}
	defer book.Close()
	if err := book.Serve(l.Listen); err != nil {
		return err
	}
	if err := book.Register(ctx, l.Coordinator); err != nil {
		return err
	}
	fmt.Fprintf(os.Stdout, "ledger %s serves at %s and is registered\n", l.Name, book.URL())
	<-ctx.Done()
	return nil
}
