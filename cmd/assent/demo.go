package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/assent-tx/assent/internal/ledger"
	"github.com/assent-tx/assent/internal/serveproc"
)

// demoCmd is `assent demo`.
type demoCmd struct {
	Transfers int           `default:"3000" help:"Transfers to submit."`
	Clients   int           `default:"32" help:"Clients that submit at the same time."`
	Accounts  int           `default:"50" help:"Accounts on each ledger; fewer means more waiting for locks."`
	Kills     int           `default:"4" help:"How often the coordinator is killed with SIGKILL."`
	Every     time.Duration `default:"1500ms" help:"Time between kills."`
	Dir       string        `help:"Keep all data here instead of a temporary directory; must be empty or absent." type:"path"`
}

const (
	demoBalance = 200
	demoLimit   = 2 * time.Minute
)

// Help is shown by --help.
func (*demoCmd) Help() string {
	return `Runs the main job with nothing to install: a coordinator (a real child
process) and two ledgers (SQLite files that use the public SDK over HTTP).
Thousands of concurrent transfers move money between the ledgers; some are refused
for lack of funds. Meanwhile the coordinator is killed with SIGKILL and started
again, several times. At the end an audit reads both ledgers: every transfer must
be on both or on neither, as its client was told, with no money made or lost,
nothing in doubt and no lock left. The exit code is 1 if anything is wrong.`
}

// Run runs the demo.
func (d *demoCmd) Run() error {
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

	self, err := os.Executable()
	if err != nil {
		return err
	}
	child, err := serveproc.New(self, filepath.Join(dir, "coordinator"))
	if err != nil {
		return err
	}
	if err := child.Start(ctx); err != nil {
		return err
	}
	defer child.Kill()
	say("coordinator: process %d at %s", child.Pid(), child.URL)
	for i, book := range books {
		if err := book.Register(ctx, child.URL); err != nil {
			return fmt.Errorf("register %s: %w", names[i], err)
		}
	}

	load := &ledger.Load{Coordinator: child.URL, Services: [2]string{names[0], names[1]}, Accounts: d.Accounts, Clients: d.Clients, Transfers: d.Transfers}
	done := make(chan error, 1)
	go func() { done <- load.Run(ctx, 20*time.Second) }()
	kills, err := d.breakThings(ctx, child, load, done, say)
	if err != nil {
		return err
	}
	say("done: %d committed, %d refused, %d requests repeated, %d kills; waiting until nothing is open", load.Committed.Load(), load.Aborted.Load(), load.Retried.Load(), kills)
	if err := child.Settled(ctx); err != nil {
		return err
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

// breakThings kills and restarts the coordinator until the load is done.
func (d *demoCmd) breakThings(ctx context.Context, child *serveproc.Process, load *ledger.Load, done <-chan error, say func(string, ...any)) (kills int, err error) {
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
			kills++
			pid := child.Pid()
			child.Kill()
			down := time.Now()
			if err := child.Start(ctx); err != nil {
				return kills, fmt.Errorf("restart after kill %d: %w", kills, err)
			}
			say("KILLED coordinator %d (SIGKILL); process %d is ready again after %d ms", pid, child.Pid(), time.Since(down).Milliseconds())
		}
	}
}

// ledgerCmd is `assent ledger`: the example participant of the tour.
type ledgerCmd struct {
	Name        string `required:"" help:"Name to register as, for example bank-a."`
	Listen      string `default:"127.0.0.1:7081" help:"Address to serve on."`
	Coordinator string `default:"http://127.0.0.1:7070" env:"ASSENT_URL" help:"Coordinator to register at."`
	Dir         string `default:"." type:"path" help:"Directory of the SQLite file NAME.db."`
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
	book, err := ledger.Open(l.Dir, l.Name, l.Accounts, l.Balance, slog.Default())
	if err != nil {
		return err
	}
	defer book.Close()
	if err := book.Serve(l.Listen); err != nil {
		return err
	}
	if err := book.Register(ctx, l.Coordinator); err != nil {
		return fmt.Errorf("register %s at %s: %w", l.Name, l.Coordinator, err)
	}
	fmt.Fprintf(os.Stdout, "ledger %s serves at %s and is registered at %s\n", l.Name, book.URL(), l.Coordinator)
	<-ctx.Done()
	return nil
}
