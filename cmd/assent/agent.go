package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/assent-tx/assent/internal/agent/postgres"
	"github.com/assent-tx/assent/internal/config"
	rmhttp "github.com/assent-tx/assent/internal/rm/http"
	"github.com/assent-tx/assent/internal/rm/local"
	"github.com/assent-tx/assent/participant"
)

// agentCmd is `assent agent`.
type agentCmd struct {
	Postgres agentPostgresCmd `cmd:"" help:"Dress a PostgreSQL database as a participant."`
}

type agentPostgresCmd struct {
	config.AgentPostgres
	LogFormat string `default:"text" enum:"text,json" help:"How to log: text or json."`
	LogLevel  string `default:"info" enum:"debug,info,warn,error" help:"What to log: debug, info, warn or error."`
}

// Help is shown by --help.
func (*agentPostgresCmd) Help() string {
	return `Makes a PostgreSQL database take part in transactions, with no code of yours: the
statements of an operation run in a local transaction that ends with PREPARE
TRANSACTION, and with COMMIT PREPARED or ROLLBACK PREPARED once it is decided.

  ASSENT_AGENT_DSN=postgres://app@127.0.0.1:5432/bank assent agent postgres --service bank
  assent txn submit --op bank='{"statements":[{"sql":"UPDATE account SET balance = balance - $1 WHERE id = $2",
    "args":[30,1],"expect":{"rows":1}}]}' --lock bank=account/1

The server needs max_prepared_transactions above 0: ALTER SYSTEM SET
max_prepared_transactions = 200, then restart it. The agent makes its tables,
registers itself and keeps its registration. It can be stopped and started at any
time; what is prepared stays prepared. docs/POSTGRESQL.md has the whole story.`
}

// Run serves until it is interrupted.
func (c *agentPostgresCmd) Run(ctx context.Context, std *streams) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	log := newLogger(std.err, c.LogFormat, c.LogLevel)
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	agent, err := startAgent(ctx, &c.AgentPostgres, registry, log)
	if err != nil || agent == nil {
		return err
	}
	fmt.Fprintf(std.out, "agent of %s serves at %s\n", c.Service, agent.url)
	return agent.run(ctx)
}

// runningAgent is an agent with its listener.
type runningAgent struct {
	*postgres.Agent
	url    string
	host   string // of url, with its port
	server *http.Server
	failed chan error
}

// databaseRetry is the pause between two tries to reach a database.
const databaseRetry = time.Second

// startAgent waits for a database that does not answer. The agent is nil if ctx
// ended meanwhile.
func startAgent(ctx context.Context, c *config.AgentPostgres, registry *prometheus.Registry, log *slog.Logger) (*runningAgent, error) {
	dsn, err := c.ReadDSN()
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	// Address first: who cannot listen must not touch the database.
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on --listen %s: %w", c.Listen, err)
	}
	base := c.Advertise
	if base == "" {
		base = "http://" + l.Addr().String()
	}
	reached, err := url.Parse(base)
	if err != nil || reached.Host == "" {
		return nil, &exitError{exitUsage, errors.Join(fmt.Errorf("--advertise %q is not a URL with a host", base), l.Close())}
	}
	cfg := postgres.Config{
		Service: c.Service, DSN: dsn, CoordinatorURL: c.Coordinator, BaseURL: base + "/assent",
		Isolation: c.Isolation, MaxConns: c.MaxConnections, MaxOpenBranches: c.MaxOpenBranches, OpenIdle: c.OpenIdle, LockTimeout: c.LockTimeout, StatementTimeout: c.StatementTimeout,
		RequireKeys: c.RequireKeys, Limits: participant.RegistrationLimits{MaxInFlight: c.MaxInFlight, PrepareTimeout: c.PrepareTimeout.String()},
		SweepInterval: c.SweepInterval, OrphanAfter: c.OrphanAfter, WarnAfter: c.WarnAfter,
		Logger: log, Registerer: prometheus.WrapRegistererWith(prometheus.Labels{"service": c.Service}, registry),
	}
	agent, err := postgres.Open(ctx, cfg)
	for ; err != nil && postgres.Unreachable(err) && ctx.Err() == nil; agent, err = postgres.Open(ctx, cfg) {
		log.Warn("the database does not answer; it is tried again", "service", c.Service, "error", err)
		select {
		case <-time.After(databaseRetry):
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		if agent != nil {
			agent.Close()
		}
		return nil, l.Close() // told to end before it began
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	mux := http.NewServeMux()
	mux.Handle("/assent/", agent.Handler())
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 5 * time.Second}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	a := &runningAgent{
		Agent: agent, url: base, host: reached.Host, failed: make(chan error, 1),
		server: &http.Server{
			Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
			ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		},
	}
	go func() { a.failed <- a.server.Serve(l) }()
	return a, nil
}

// agentPatience is what calls under way get to finish when the agent ends.
const agentPatience = 5 * time.Second

// run registers the agent and sweeps until ctx ends.
func (a *runningAgent) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	var err error
	select {
	case <-ctx.Done():
		err = <-ended
	case err = <-ended: // refused for good, or the database is not ours
	case err = <-a.failed:
		cancel()
		if swept := <-ended; !errors.Is(swept, context.Canceled) {
			err = errors.Join(err, swept)
		}
	}
	patience, stop := context.WithTimeout(context.WithoutCancel(ctx), agentPatience)
	defer stop()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	err = errors.Join(err, a.server.Shutdown(patience))
	a.Close()
	return err
}

// startAgents runs the agents of the configuration in this process until ctx ends
// or the function it returns is called, which waits for them. This process's own
// calls reach them without a connection; other nodes use their listeners. One that
// cannot start or ends early is told of and leaves the coordinator alone.
func (c *serveCmd) startAgents(ctx context.Context, self string, caller *rmhttp.Client, registry *prometheus.Registry, log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	for i := range c.Agents {
		cfg := &c.Agents[i]
		if cfg.Coordinator == "" {
			cfg.Coordinator = self
		}
		running.Go(func() {
			agent, err := startAgent(ctx, cfg, registry, log)
			if err == nil && agent != nil {
				caller.Serve(agent.host, local.New(cfg.Service, agent.Resource(), log))
				err = agent.run(ctx)
				caller.Serve(agent.host, nil)
			}
			if err != nil {
				log.Error("an agent ended", "service", cfg.Service, "error", err)
			}
		})
	}
	return func() {
		cancel()
		running.Wait()
	}
}

// loopback is an address of this process that it can reach itself.
func loopback(a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return a.String()
}
