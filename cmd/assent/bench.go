package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/assent-tx/assent/internal/bench"
)

// benchCmd is `assent bench`.
type benchCmd struct {
	Concurrency  int           `default:"64" help:"Clients that each wait for their answer."`
	Branches     int           `default:"2" help:"Participants in a transaction."`
	Keys         int           `default:"1" help:"Locks that each operation declares; 0: it takes its whole service."`
	Payload      int           `default:"64" help:"Bytes of each operation's payload."`
	Services     int           `help:"Services to register besides, which take part in nothing."`
	Open         int           `help:"Transactions to keep open besides, waiting for a lock."`
	Rounds       int           `default:"5" help:"Rounds of transactions and floor in turns; medians are reported."`
	Duration     time.Duration `default:"20s" help:"Time for the transactions of all rounds together; the floor takes about as long again."`
	Warmup       time.Duration `default:"2s" help:"Time before the first round, not counted."`
	Suite        bool          `help:"Measure everything that docs/PERFORMANCE.md promises, in about three minutes. Of the settings above, none applies."`
	Nodes        int           `default:"1" help:"Nodes of the coordinator; clients go to the leader of a transaction's home."`
	Shards       int           `default:"1" help:"Shards of the coordinator."`
	Scaling      bool          `help:"Measure how the cost of a transaction grows with nodes, shards, services and open transactions, in about eight minutes. Of the settings above, none applies."`
	Contention   bool          `help:"Measure transactions that get in each other's way - hot keys, long readers, reads that become writes - in about two and a half minutes. Of the settings above, --concurrency, --shards, --nodes and --duration (of each workload) apply."`
	Tables       string        `placeholder:"TEXT" help:"With --scaling: only the tables whose name contains this (shards, services, open, 3 nodes); with --contention: only such workloads (zipf, hot, reader, once, steps)."`
	Participants string        `enum:"http,postgres,postgres-agents" default:"http" help:"Who takes part: http (services that answer at once), postgres (databases behind agents in the coordinator's process) or postgres-agents (each agent in a process of its own). With databases the floor is a loop that does the same by hand."`
	DSN          []string      `name:"dsn" placeholder:"DSN" help:"A PostgreSQL database to move money between, once for each participant. The schema assent_bench is made there anew."`
	URL          string        `help:"Aim at a running coordinator instead of starting one. It must reach this machine's loopback addresses."`
	Dir          string        `type:"path" help:"Where the data goes; the disk that it is on is measured. Default: a temporary directory."`
	Output       string        `enum:"text,json" default:"text" help:"text or json."`
}

// Help is shown by --help.
func (*benchCmd) Help() string {
	return `Measures committed transactions on one machine: clients here, participants in a
second process that answer at once, the coordinator in a third, every append synced
to disk. Every transaction is audited: prepared and committed exactly once at each
participant, or the command fails.

Rates depend on the machine, so the same run measures a floor, in turns with the
transactions: the bare HTTP calls that one transaction needs (one from the client,
two for each participant, with the same bodies, clients and code) and bare appends
of the same number and size to the same kind of log. ratio_to_floor is transactions
per second over what the slower of the two would allow.`
}

// Run runs the benchmark.
func (c *benchCmd) Run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if c.Suite {
		suite, err := bench.RunSuite(ctx, self, c.Dir, os.Stderr)
		if err != nil {
			return err
		}
		if c.Output == "json" {
			return printJSON(suite)
		}
		suite.Print(os.Stdout)
		return nil
	}
	if c.Scaling {
		scaling, err := bench.RunScaling(ctx, self, c.Dir, c.Tables, os.Stderr)
		if c.Output == "json" {
			return errors.Join(err, printJSON(scaling))
		}
		scaling.Print(os.Stdout)
		return err
	}
	if c.Contention {
		if c.URL != "" || len(c.DSN) > 0 || c.Participants != "http" {
			return &exitError{exitUsage, errors.New("--contention starts a coordinator and participants of its own: leave out --url, --dsn and --participants")}
		}
		cfg := bench.Config{Binary: self, Dir: c.Dir, Nodes: c.Nodes, Shards: c.Shards, Concurrency: max(c.Concurrency, 1), Duration: c.Duration}
		contention, err := bench.RunContention(ctx, cfg, c.Tables, os.Stderr)
		if c.Output == "json" {
			return errors.Join(err, printJSON(contention))
		}
		if len(contention.Rows) > 0 { // what was measured before an error
			contention.Print(os.Stdout)
		}
		return err
	}
	switch {
	case c.Participants == "http" && len(c.DSN) > 0:
		c.Participants = "postgres"
	case c.Participants != "http" && len(c.DSN) == 0:
		return &exitError{exitUsage, errors.New("--participants " + c.Participants + " needs databases: give --dsn once for each participant")}
	}
	report, err := bench.Run(ctx, bench.Config{
		Binary: self, Dir: c.Dir, URL: c.URL, Nodes: c.Nodes, Shards: c.Shards, Concurrency: max(c.Concurrency, 1), Branches: max(c.Branches, 1), Keys: max(c.Keys, 0),
		Payload: max(c.Payload, 0), Services: max(c.Services, 0), Open: max(c.Open, 0), Rounds: max(c.Rounds, 1), Duration: c.Duration, Warmup: c.Warmup, DSNs: c.DSN,
		Apart: c.Participants == "postgres-agents",
	}, os.Stderr)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return printJSON(report)
	}
	report.Print(os.Stdout)
	return nil
}

func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// benchParticipantsCmd is the hidden child process of bench.
type benchParticipantsCmd struct{}

// Run serves until its standard input ends.
func (benchParticipantsCmd) Run() error { return bench.ServeParticipants(os.Stdout, os.Stdin) }
