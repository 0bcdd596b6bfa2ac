package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/assent-tx/assent/internal/server"
)

// serviceCmd is `assent service`.
type serviceCmd struct {
	Put    servicePutCmd    `cmd:"" help:"Register a service, or replace its endpoints and limits."`
	Get    serviceGetCmd    `cmd:"" help:"Show a service."`
	List   serviceListCmd   `cmd:"" help:"List the services."`
	Delete serviceDeleteCmd `cmd:"" help:"Drain a service, then remove it."`
}

type servicePutCmd struct {
	clientFlags
	Name string `arg:"" help:"Name: a-z, 0-9, '.', '_' and '-'."`

	Base     string `placeholder:"URL" help:"Short for --prepare URL/prepare, --commit URL/commit and so on."`
	Prepare  string `placeholder:"URL" help:"Executes a branch and votes."`
	Commit   string `placeholder:"URL" help:"Makes a branch permanent."`
	Rollback string `placeholder:"URL" help:"Undoes a branch."`
	Status   string `placeholder:"URL" help:"Tells what is known of a branch; optional."`

	Capability     []string      `placeholder:"NAME" help:"one_phase, read_only, list_in_doubt, tombstone; repeatable (default: tombstone)."`
	Resource       []string      `placeholder:"NAME" help:"What the service offers; repeatable."`
	Isolation      string        `placeholder:"WHO" help:"coordinator (default) or participant."`
	RequireKeys    bool          `help:"Refuse operations that declare no key."`
	LockPartitions uint32        `placeholder:"N" help:"Shards that share the locks of its keys, by the first segment of a key (default: 1)."`
	MaxInFlight    uint32        `placeholder:"N" help:"Calls at one time."`
	PrepareTimeout time.Duration `placeholder:"D" help:"One try of prepare."`
	FinishTimeout  time.Duration `placeholder:"D" help:"One try of commit or rollback."`
}

// Help is shown by --help.
func (*servicePutCmd) Help() string {
	return `  assent service put bank-a --base http://127.0.0.1:7081
  assent service put bank-b --prepare http://b/p --commit http://b/c --rollback http://b/r --max-in-flight 64

A registered service keeps its identity; its endpoints and limits change at once.`
}

// Run registers.
func (c *servicePutCmd) Run(ctx context.Context, std *streams) error {
	body := server.PutServiceBody{
		HTTP:         server.HTTPEndpoints{Prepare: c.Prepare, Commit: c.Commit, Rollback: c.Rollback, Status: c.Status},
		Capabilities: c.Capability, Resources: c.Resource, Isolation: c.Isolation, RequireKeys: c.RequireKeys, LockPartitions: c.LockPartitions,
		Limits: server.ServiceLimits{
			PrepareTimeout: server.Duration{Duration: c.PrepareTimeout, Set: c.PrepareTimeout != 0},
			FinishTimeout:  server.Duration{Duration: c.FinishTimeout, Set: c.FinishTimeout != 0},
		},
	}
	if c.MaxInFlight != 0 {
		body.Limits.MaxInFlight = &c.MaxInFlight
	}
	if base := strings.TrimSuffix(c.Base, "/"); base != "" {
		for _, e := range []struct {
			url  *string
			path string
		}{{&body.HTTP.Prepare, "/prepare"}, {&body.HTTP.Commit, "/commit"}, {&body.HTTP.Rollback, "/rollback"}, {&body.HTTP.Status, "/status"}} {
			if *e.url == "" {
				*e.url = base + e.path
			}
		}
	}
	if body.HTTP.Prepare == "" || body.HTTP.Commit == "" || body.HTTP.Rollback == "" {
		return &exitError{exitUsage, fmt.Errorf("name --prepare, --commit and --rollback, or --base for all of them")}
	}
	answer, err := c.client().do(ctx, http.MethodPut, servicePath(c.Name), body)
	if err != nil {
		return err
	}
	return show(&c.clientFlags, std.out, answer, serviceText)
}

type serviceGetCmd struct {
	clientFlags
	Name string `arg:"" help:"Name of the service."`
}

// Run shows the service.
func (c *serviceGetCmd) Run(ctx context.Context, std *streams) error {
	answer, err := c.client().do(ctx, http.MethodGet, servicePath(c.Name), nil)
	if err != nil {
		return err
	}
	return show(&c.clientFlags, std.out, answer, serviceText)
}

type serviceListCmd struct {
	clientFlags
}

// Run lists the services.
func (c *serviceListCmd) Run(ctx context.Context, std *streams) error {
	answer, err := c.client().do(ctx, http.MethodGet, "/v1/services", nil)
	if err != nil {
		return err
	}
	return show(&c.clientFlags, std.out, answer, func(out io.Writer, list *server.ServiceList) {
		if len(list.Services) == 0 {
			fmt.Fprintln(out, "no services; register one with: assent service put NAME --base URL")
			return
		}
		w := table(out, "NAME", "STATE", "OPEN", "CAPABILITIES", "PREPARE")
		for _, s := range list.Services {
			row(w, s.Name, s.State, fmt.Sprint(s.OpenTransactions), strings.Join(s.Capabilities, ","), s.HTTP.Prepare)
		}
		_ = w.Flush() // into memory
	})
}

type serviceDeleteCmd struct {
	clientFlags
	Name string `arg:"" help:"Name of the service."`
}

// Help is shown by --help.
func (*serviceDeleteCmd) Help() string {
	return `The service takes no new transactions and is removed when its last open one has
ended. The command waits for that; when --request-wait is over first it shows the
draining service, which is removed all the same (exit code 3).`
}

// Run drains and removes.
func (c *serviceDeleteCmd) Run(ctx context.Context, std *streams) error {
	answer, err := c.client().do(ctx, http.MethodDelete, servicePath(c.Name), nil)
	if err != nil {
		return err
	}
	s, err := read[server.Service](answer)
	if err != nil {
		return err
	}
	if err := show(&c.clientFlags, std.out, answer, func(out io.Writer, s *server.Service) {
		fmt.Fprintf(out, "%s is %s\n", s.Name, s.State)
	}); err != nil {
		return err
	}
	if s.State != "removed" {
		return &exitError{exitUnknown, fmt.Errorf("%s waits for %d open transactions: assent txn list --service %s", c.Name, s.OpenTransactions, c.Name)}
	}
	return nil
}

func serviceText(out io.Writer, s *server.Service) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row(w, "NAME", s.Name)
	row(w, "STATE", fmt.Sprintf("%s, %d open transactions", s.State, s.OpenTransactions))
	row(w, "GENERATION", fmt.Sprint(s.Generation))
	row(w, "PREPARE", s.HTTP.Prepare)
	row(w, "COMMIT", s.HTTP.Commit)
	row(w, "ROLLBACK", s.HTTP.Rollback)
	optional(w, "STATUS", s.HTTP.Status)
	optional(w, "RESOURCES", strings.Join(s.Resources, ", "))
	row(w, "CAPABILITIES", strings.Join(s.Capabilities, ", "))
	row(w, "ISOLATION", s.Isolation)
	row(w, "REQUIRE KEYS", fmt.Sprint(s.RequireKeys))
	row(w, "LOCK PARTITIONS", fmt.Sprint(s.LockPartitions))
	if s.Limits.MaxInFlight != nil {
		row(w, "LIMITS", fmt.Sprintf("%d calls, prepare %v, finish %v", *s.Limits.MaxInFlight, s.Limits.PrepareTimeout, s.Limits.FinishTimeout))
	}
	_ = w.Flush() // into memory
}
