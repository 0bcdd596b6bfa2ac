package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/server"
)

// txnCmd is `assent txn`.
type txnCmd struct {
	Submit   txnSubmitCmd   `cmd:"" help:"Run a transaction."`
	Get      txnGetCmd      `cmd:"" help:"Show a transaction."`
	List     txnListCmd     `cmd:"" help:"List transactions."`
	Rollback txnRollbackCmd `cmd:"" help:"Abort a transaction that is not decided."`
	Begin    txnBeginCmd    `cmd:"" help:"Begin an interactive transaction."`
	Step     txnStepCmd     `cmd:"" help:"Lock keys and add operations to an interactive transaction."`
	Commit   txnCommitCmd   `cmd:"" help:"Commit an interactive transaction."`
	Resolve  txnResolveCmd  `cmd:"" help:"Acknowledge a heuristic hazard after it was repaired."`
}

type txnSubmitCmd struct {
	clientFlags
	File string `arg:"" optional:"" help:"File with the request body as the API takes it; - is standard input."`

	ID      string        `help:"UUIDv7 (default: a new one). The same id and body again give the same outcome, executed once."`
	Op      []string      `sep:"none" placeholder:"SERVICE=JSON" help:"An operation and its payload; repeatable."`
	Lock    []string      `sep:"none" placeholder:"SERVICE=KEY" help:"A key that the first operation on the service uses, exclusively; repeatable."`
	Shared  []string      `sep:"none" placeholder:"SERVICE=KEY" help:"The same, shared."`
	Timeout time.Duration `placeholder:"D" help:"Time until the decision."`
	WaitFor string        `name:"wait" placeholder:"UNTIL" help:"When to answer: decided, completed or none."`
}

// Help is shown by --help.
func (*txnSubmitCmd) Help() string {
	return `  assent txn submit --op bank-a='{"transfer":"t1","account":1,"amount":-30}' --lock bank-a=accounts/1 \
                    --op bank-b='{"transfer":"t1","account":7,"amount":30}' --lock bank-b=accounts/7
  assent txn submit request.json
  echo '{"operations":[{"service":"bank-a","payload":{}}]}' | assent txn submit -

Exit codes: 0 committed (or durable, with --wait none); 1 aborted; 3 not decided yet,
or not known: run the command again with the --id that it shows; 4 refused.`
}

// Run submits.
func (c *txnSubmitCmd) Run(ctx context.Context, std *streams) error {
	body, err := c.body(std.in)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	answer, err := c.client().do(ctx, http.MethodPost, "/v1/transactions", body)
	if err != nil {
		var e *exitError
		if errors.As(err, &e) && e.code == exitUnknown {
			return &exitError{exitUnknown, fmt.Errorf("%w\n  whether the transaction was taken is not known; repeat it safely with --id %s", err, *body.ID)}
		}
		return err
	}
	t, err := read[server.Transaction](answer)
	if err != nil {
		return err
	}
	if err := show(&c.clientFlags, std.out, answer, transactionText); err != nil {
		return err
	}
	switch t.State {
	case "committing", "committed":
		return nil
	case "aborting", "aborted":
		text := "the transaction aborted"
		if t.Abort != nil {
			text += ": " + abortText(t.Abort)
		}
		return &exitError{exitFailed, errors.New(text)}
	}
	if body.Wait == "none" {
		return nil
	}
	return &exitError{exitUnknown, fmt.Errorf("not decided yet: assent txn get %s tells", t.ID)}
}

// body is the request of the file and the flags; it has an id in any case.
func (c *txnSubmitCmd) body(in io.Reader) (*server.SubmitBody, error) {
	b := &server.SubmitBody{}
	switch {
	case c.File != "" && len(c.Op)+len(c.Lock)+len(c.Shared) > 0:
		return nil, errors.New("name a file, or --op and --lock, not both")
	case c.File != "":
		raw, err := readInput(c.File, in)
		if err != nil {
			return nil, err
		}
		if err := server.DecodeJSON(raw, b); err != nil {
			return nil, fmt.Errorf("%s: %w", c.File, err)
		}
	case len(c.Op) == 0:
		return nil, errors.New(`name a file, or at least one --op SERVICE='{"any":"JSON"}'`)
	}
	for _, op := range c.Op {
		service, payload, ok := strings.Cut(op, "=")
		if !ok || !jsontext.Value(payload).IsValid() {
			return nil, fmt.Errorf("--op %s: write SERVICE=JSON, in quotes: --op bank-a='{\"amount\":30}'", op)
		}
		b.Operations = append(b.Operations, server.OperationBody{Service: service, Payload: jsontext.Value(payload)})
	}
	for _, l := range c.Lock {
		if err := addLock(b, "--lock", l, "exclusive"); err != nil {
			return nil, err
		}
	}
	for _, l := range c.Shared {
		if err := addLock(b, "--shared", l, "shared"); err != nil {
			return nil, err
		}
	}
	if c.Timeout != 0 {
		b.Timeout = server.Duration{Duration: c.Timeout, Set: true}
	}
	if c.WaitFor != "" {
		b.Wait = c.WaitFor
	}
	if c.ID != "" {
		b.ID = &c.ID
	}
	if b.ID == nil {
		id := node.NewID().String()
		b.ID = &id
	}
	return b, nil
}

func addLock(b *server.SubmitBody, flag, text, mode string) error {
	service, key, ok := strings.Cut(text, "=")
	if !ok {
		return fmt.Errorf("%s %s: write SERVICE=KEY", flag, text)
	}
	for i := range b.Operations {
		if b.Operations[i].Service == service {
			b.Operations[i].Locks = append(b.Operations[i].Locks, server.LockBody{Key: key, Mode: mode})
			return nil
		}
	}
	return fmt.Errorf("%s %s: no --op names service %q", flag, text, service)
}

// maxInputBytes bounds a request file; the server's limit is its own.
const maxInputBytes = 64 << 20

func readInput(name string, in io.Reader) ([]byte, error) {
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // only read
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, maxInputBytes))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return raw, nil
}

type txnGetCmd struct {
	clientFlags
	ID string `arg:"" help:"Id of the transaction."`
}

// Run shows the transaction.
func (c *txnGetCmd) Run(ctx context.Context, std *streams) error {
	answer, err := c.client().do(ctx, http.MethodGet, transactionPath(c.ID), nil)
	if err != nil {
		return err
	}
	return show(&c.clientFlags, std.out, answer, transactionText)
}

type txnListCmd struct {
	clientFlags
	State     string `placeholder:"STATE" help:"active, preparing, committing, committed, aborting, aborted, in_doubt or hazard."`
	Service   string `placeholder:"NAME" help:"With a branch at this service."`
	PageSize  int    `default:"100" help:"Transactions on a page, at most 1000."`
	PageToken string `placeholder:"TOKEN" help:"Go on where the previous page ended."`
}

// Run lists one page.
func (c *txnListCmd) Run(ctx context.Context, std *streams) error {
	q := url.Values{"page_size": {strconv.Itoa(c.PageSize)}}
	for name, value := range map[string]string{"state": c.State, "service": c.Service, "page_token": c.PageToken} {
		if value != "" {
			q.Set(name, value)
		}
	}
	answer, err := c.client().do(ctx, http.MethodGet, "/v1/transactions?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	return show(&c.clientFlags, std.out, answer, transactionsText)
}

func transactionsText(out io.Writer, list *server.TransactionList) {
	if len(list.Transactions) == 0 {
		fmt.Fprintln(out, "no such transactions")
		return
	}
	w := table(out, "TRANSACTION", "STATE", "BEGAN", "SERVICES", "NOTE")
	for i := range list.Transactions {
		t := &list.Transactions[i]
		var services, notes []string
		for _, b := range t.Branches {
			services = append(services, b.Service)
		}
		if t.Hazard {
			notes = append(notes, "HAZARD")
		}
		if t.Abort != nil {
			notes = append(notes, abortText(t.Abort))
		}
		if t.WaitsFor != nil {
			notes = append(notes, "waits for "+plain(t.WaitsFor.Key))
		}
		began := ""
		if !t.BeganAt.IsZero() {
			began = t.BeganAt.Format(time.RFC3339)
		}
		row(w, t.ID, t.State, began, strings.Join(services, ","), strings.Join(notes, "; "))
	}
	_ = w.Flush() // into memory
	if list.NextPageToken != "" {
		fmt.Fprintf(out, "\nmore: --page-token %s\n", shellWord(list.NextPageToken))
	}
}

type txnRollbackCmd struct {
	clientFlags
	ID string `arg:"" help:"Id of the transaction."`
}

// Help is shown by --help.
func (*txnRollbackCmd) Help() string {
	return `An id that nobody knows is recorded as aborted, so that a late submission of it is
refused. A transaction whose commit is decided stays committed (exit code 4).`
}

// Run aborts.
func (c *txnRollbackCmd) Run(ctx context.Context, std *streams) error {
	answer, err := c.client().do(ctx, http.MethodPost, transactionPath(c.ID)+"/rollback", nil)
	if err != nil {
		return err
	}
	return show(&c.clientFlags, std.out, answer, transactionText)
}

type txnResolveCmd struct {
	clientFlags
	ID   string `arg:"" help:"Id of the transaction."`
	Note string `required:"" help:"What was found and done; kept with the transaction."`
}

// Run records the note.
func (c *txnResolveCmd) Run(ctx context.Context, std *streams) error {
	answer, err := c.client().do(ctx, http.MethodPost, transactionPath(c.ID)+"/resolve", server.ResolveBody{Note: c.Note})
	var refused *refusal
	if errors.As(err, &refused) && refused.reason == string(reason.NotAHazard) {
		return fmt.Errorf("%w\n  assent txn get %s shows what is known of it", err, c.ID)
	}
	if err != nil {
		return err
	}
	return show(&c.clientFlags, std.out, answer, transactionText)
}
