// Command assent runs a coordinator of distributed transactions, and talks to one.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"

	"github.com/assent-tx/assent/internal/config"
)

// cli is the command line. Each command lives in a file of its own.
type cli struct {
	Serve     serveCmd     `cmd:"" help:"Run a coordinator."`
	Service   serviceCmd   `cmd:"" help:"Register services and look at them."`
	Txn       txnCmd       `cmd:"" help:"Submit transactions and look at them."`
	Locks     locksCmd     `cmd:"" help:"Show who holds and who waits for which keys."`
	Deadlocks deadlocksCmd `cmd:"" help:"Show the latest deadlocks and who gave way."`
	Cluster   clusterCmd   `cmd:"" help:"Show the nodes of the cluster, and move what they hold."`
	Backup    backupCmd    `cmd:"" help:"Write the state of the whole cluster to a file."`
	Restore   restoreCmd   `cmd:"" help:"Begin a cluster anew from a backup."`
	Demo      demoCmd      `cmd:"" help:"See it work: transfers, kills, an audit. Nothing to install."`
	Ledger    ledgerCmd    `cmd:"" help:"Run an example service."`
	Agent     agentCmd     `cmd:"" help:"Dress a database as a participant."`
	Bench     benchCmd     `cmd:"" help:"Measure committed transactions beside their floor."`
	Version   versionCmd   `cmd:"" help:"Tell the version."`

	BenchParticipants benchParticipantsCmd `cmd:"" hidden:""`
}

const description = `Assent makes one atomic, durable transaction out of operations on several services.

  assent demo                                 watch it survive kills
  assent serve --data ./data                  run a coordinator
  assent ledger --name bank-a                 run an example service, which registers itself
  assent txn submit --op bank-a='{"transfer":"t1","account":1,"amount":-30}' --lock bank-a=accounts/1

Every flag of serve is also an environment variable: --max-keys is ASSENT_MAX_KEYS.
The other commands find their coordinator by --url or ASSENT_ENDPOINTS.

Exit codes: 0 done; 1 the transaction aborted, the audit failed, or the command could
not do its work; 2 bad usage; 3 the coordinator cannot be reached, or the outcome is
not known yet; 4 the coordinator refused the request.`

// The exit codes of every command.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitUnknown
	exitRefused
)

// exitError is an error with its exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// streams are where commands read and write.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

func main() {
	os.Exit(run(context.Background(), os.Args[1:], &streams{os.Stdin, os.Stdout, os.Stderr}))
}

// run is main without the process.
func run(ctx context.Context, args []string, std *streams) int {
	exited := -1
	parser, err := kong.New(&cli{},
		kong.Name("assent"), kong.Description(description),
		config.Environment(), config.Groups,
		kong.Writers(std.out, std.err), kong.Exit(func(code int) { exited = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.Bind(std), kong.BindTo(ctx, (*context.Context)(nil)),
	)
	if err != nil {
		fmt.Fprintln(std.err, "assent:", err)
		return exitFailed
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	switch {
	case exited >= 0: // --help was answered
		return exited
	case err != nil:
		fmt.Fprintf(std.err, "assent: %v\n%s --help shows what there is\n", err, usageOf(err))
		return exitUsage
	}
	err = command.Run()
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(std.err, "assent:", err)
	var e *exitError
	if errors.As(err, &e) {
		return e.code
	}
	return exitFailed
}

// usageOf names the command that was meant, as far as it was understood.
func usageOf(err error) string {
	var parse *kong.ParseError
	if errors.As(err, &parse) && parse.Context != nil {
		if node := parse.Context.Selected(); node != nil {
			return "assent " + node.Path()
		}
	}
	return "assent"
}
