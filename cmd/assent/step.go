package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/server"
	"github.com/assent-tx/assent/internal/txnid"
)

// This file is interactive transactions: begin, steps, commit.

type txnBeginCmd struct {
	clientFlags
	ID          string        `help:"UUIDv7 (default: a new one)."`
	Timeout     time.Duration `placeholder:"D" help:"Time until the decision (default: 1m)."`
	IdleTimeout time.Duration `placeholder:"D" help:"How long nothing may be heard of you (default: 10s)."`
	RetryOf     string        `placeholder:"ID" help:"An aborted transaction that this one tries again: it keeps that one's age."`
}

// Help is shown by --help.
func (*txnBeginCmd) Help() string {
	return `  TX=$(assent txn begin --timeout 5m --idle-timeout 5m)
  assent txn step $TX 1 --op bank-a='{"op":"read","account":1}' --lock bank-a=accounts/1 --now
  assent txn step $TX 2 --op bank-a='{"transfer":"t2","account":1,"amount":-30}' --lock bank-a=accounts/1
  assent txn commit $TX

Writes the id alone; --output json shows the transaction.`
}

// Run begins.
func (c *txnBeginCmd) Run(ctx context.Context, std *streams) error {
	b := server.BeginBody{ID: &c.ID}
	if c.RetryOf != "" {
		b.RetryOf = &c.RetryOf
	}
	if c.ID == "" {
		id := node.NewID()
		if first, err := txnid.Parse(c.RetryOf); err == nil { // else the coordinator says what is wrong
			id = id.Beside(first) // whose record has the age
		}
		c.ID = id.String()
	}
	if c.Timeout != 0 {
		b.Timeout = server.Duration{Duration: c.Timeout, Set: true}
	}
	if c.IdleTimeout != 0 {
		b.IdleTimeout = server.Duration{Duration: c.IdleTimeout, Set: true}
	}
	answer, err := c.client().do(ctx, http.MethodPost, "/v1/transactions:begin", b)
	if err != nil {
		return err
	}
	return show(&c.clientFlags, std.out, answer, func(out io.Writer, t *server.Transaction) { fmt.Fprintln(out, t.ID) })
}

type txnStepCmd struct {
	clientFlags
	ID     string   `arg:"" help:"Id of the transaction."`
	Number uint32   `arg:"" help:"Number of the step, your choice: the same number and work again is done once."`
	Op     []string `sep:"none" placeholder:"SERVICE=JSON" help:"An operation and its payload; repeatable."`
	Now    bool     `help:"Execute the operations at once and show their results; else they run at commit."`
	Lock   []string `sep:"none" placeholder:"SERVICE=KEY" help:"A key to lock first, exclusively; repeatable."`
	Shared []string `sep:"none" placeholder:"SERVICE=KEY" help:"The same, shared."`
	Update []string `sep:"none" placeholder:"SERVICE=KEY" help:"The same, to read now and write later."`
}

// Help is shown by --help.
func (*txnStepCmd) Help() string {
	return `Waits for the locks, then for the results. Exit codes: 0 done; 1 the transaction has
aborted; 3 not known: run the command again as it is; 4 refused.`
}

// Run takes the step.
func (c *txnStepCmd) Run(ctx context.Context, std *streams) error {
	locks, err := c.locks()
	if err != nil {
		return &exitError{exitUsage, err}
	}
	if len(c.Op) == 0 {
		if c.Now {
			return &exitError{exitUsage, errors.New("--now without --op: name what is to be executed at once")}
		}
		answer, err := c.client().do(ctx, http.MethodPost, transactionPath(c.ID)+"/locks", server.LocksBody{Step: c.Number, Locks: locks})
		if err != nil {
			return err
		}
		return stepShown(&c.clientFlags, std.out, answer, func(t *server.Transaction) *server.Transaction { return t }, transactionText)
	}
	b := server.EnlistBody{Step: c.Number, Locks: locks}
	for _, op := range c.Op {
		service, payload, ok := strings.Cut(op, "=")
		if !ok || !jsontext.Value(payload).IsValid() {
			return &exitError{exitUsage, fmt.Errorf("--op %s: write SERVICE=JSON, in quotes: --op bank-a='{\"amount\":30}'", op)}
		}
		o := server.StepOperationBody{Service: service, Payload: jsontext.Value(payload)}
		if c.Now {
			o.When = "now"
		}
		b.Operations = append(b.Operations, o)
	}
	answer, err := c.client().do(ctx, http.MethodPost, transactionPath(c.ID)+"/operations", b)
	if err != nil {
		return err
	}
	return stepShown(&c.clientFlags, std.out, answer, func(a *server.EnlistAnswer) *server.Transaction { return a.Transaction }, func(out io.Writer, a *server.EnlistAnswer) {
		if !c.Now {
			transactionText(out, a.Transaction)
			return
		}
		for _, r := range a.Results {
			fmt.Fprintln(out, string(r))
		}
	})
}

func (c *txnStepCmd) locks() (locks []server.ServiceLockBody, err error) {
	for _, list := range []struct {
		flag, mode string
		keys       []string
	}{{"--lock", "exclusive", c.Lock}, {"--shared", "shared", c.Shared}, {"--update", "update", c.Update}} {
		for _, text := range list.keys {
			service, key, ok := strings.Cut(text, "=")
			if !ok {
				return nil, fmt.Errorf("%s %s: write SERVICE=KEY", list.flag, text)
			}
			locks = append(locks, server.ServiceLockBody{Service: service, Key: key, Mode: list.mode})
		}
	}
	return locks, nil
}

type txnCommitCmd struct {
	clientFlags
	ID      string `arg:"" help:"Id of the transaction."`
	WaitFor string `name:"wait" placeholder:"UNTIL" help:"When to answer: decided, completed or none."`
}

// Run commits.
func (c *txnCommitCmd) Run(ctx context.Context, std *streams) error {
	answer, err := c.client().do(ctx, http.MethodPost, transactionPath(c.ID)+"/commit", server.CommitBody{Wait: c.WaitFor})
	if err != nil {
		return err
	}
	return stepShown(&c.clientFlags, std.out, answer, func(t *server.Transaction) *server.Transaction { return t }, transactionText)
}

// stepShown shows an answer, and tells an abort by the exit code.
func stepShown[T any](f *clientFlags, out io.Writer, answer []byte, transaction func(*T) *server.Transaction, text func(io.Writer, *T)) error {
	v, err := read[T](answer)
	if err != nil {
		return err
	}
	if err := show(f, out, answer, text); err != nil {
		return err
	}
	if t := transaction(v); t != nil && t.Abort != nil {
		return &exitError{exitFailed, errors.New("the transaction aborted: " + abortText(t.Abort))}
	}
	return nil
}
