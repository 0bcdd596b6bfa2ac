package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/assent-tx/assent/participant"
)

// Config of an agent. Service, DSN and BaseURL are required.
type Config struct {
	Service        string
	DSN            string // never logged, and in no error
	CoordinatorURL string // of one or several nodes, divided by commas; default: what the environment says, as in package discovery
	BaseURL        string // under which the coordinator reaches Handler

	Isolation        string        // of branches that are prepared as a whole: serializable (default), repeatable read, read committed
	MaxConns         int           // to the database. Default 32
	MaxOpenBranches  int           // whose statements are executed before the prepare; each keeps a connection. Default and at most half of MaxConns
	OpenIdle         time.Duration // after which such a branch is rolled back. Default 30s
	LockTimeout      time.Duration // of each wait in the database. Default 1s
	StatementTimeout time.Duration // Default 2s
	RequireKeys      bool
	Limits           participant.RegistrationLimits // MaxInFlight defaults to 64

	SweepInterval time.Duration // between two looks for orphans. Default 30s
	OrphanAfter   time.Duration // age from which the coordinator is asked. Default 1m
	WarnAfter     time.Duration // age from which a prepared branch is warned of. Default 5m

	Logger     *slog.Logger          // default: slog.Default()
	Registerer prometheus.Registerer // nil: no metrics
}

var isolations = map[string]sql.IsolationLevel{
	"": sql.LevelSerializable, "serializable": sql.LevelSerializable,
	"repeatable read": sql.LevelRepeatableRead, "read committed": sql.LevelReadCommitted,
}

func (c *Config) complete() error {
	if c.Service == "" || c.BaseURL == "" {
		return errors.New("service and base URL are required")
	}
	if _, ok := isolations[c.Isolation]; !ok {
		return fmt.Errorf("isolation %q is none of serializable, repeatable read, read committed", c.Isolation)
	}
	fill := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	fill(&c.LockTimeout, time.Second)
	fill(&c.StatementTimeout, 2*time.Second)
	fill(&c.SweepInterval, 30*time.Second)
	fill(&c.OrphanAfter, time.Minute)
	fill(&c.WarnAfter, 5*time.Minute)
	if c.MaxConns <= 0 {
		c.MaxConns = 32
	}
	if half := max(c.MaxConns/2, 1); c.MaxOpenBranches <= 0 || c.MaxOpenBranches > half {
		c.MaxOpenBranches = half
	}
	if c.Limits.MaxInFlight <= 0 {
		c.Limits.MaxInFlight = 64
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return nil
}

// Agent is a database as a participant.
type Agent struct {
	cfg     Config
	db      *sql.DB // over the pool
	pool    *pgxpool.Pool
	part    *participant.Participant
	coord   *coordinator
	metrics *metrics
	texts   texts
	log     *slog.Logger
	suspect map[string]bool // branches that the sweep before saw
	warned  map[string]bool // branches that were warned of
}

// Open connects to the database, checks its settings, and makes the agent's tables
// if they are missing. Its errors say what to do about them.
func Open(ctx context.Context, cfg Config) (*Agent, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	conf, err := pgxpool.ParseConfig(cfg.DSN)
	var file *fs.PathError
	switch {
	case errors.As(err, &file):
		return nil, fmt.Errorf("agent: a file that the DSN names: %w", file)
	case err != nil: // which may hold the DSN, and a password in it
		return nil, errors.New("agent: the DSN cannot be parsed: write postgres://user:password@host:port/database?sslmode=verify-full, or words such as host=… user=… dbname=…")
	}
	// Settings of the session: they cost nothing per branch.
	conn := conf.ConnConfig
	if _, set := conn.RuntimeParams["application_name"]; !set {
		conn.RuntimeParams["application_name"] = "assent agent " + cfg.Service
	}
	conn.RuntimeParams["statement_timeout"] = strconv.FormatInt(cfg.StatementTimeout.Milliseconds(), 10)
	conn.RuntimeParams["lock_timeout"] = strconv.FormatInt(cfg.LockTimeout.Milliseconds(), 10)
	conf.MaxConns = int32(min(cfg.MaxConns, 10_000))
	conf.MaxConnIdleTime = 5 * time.Minute
	coord, err := newCoordinator(cfg.CoordinatorURL, cfg.Logger)
	if err != nil {
		return nil, fmt.Errorf("agent of %s: coordinator: %w", cfg.Service, err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, conf)
	if err != nil {
		coord.close()
		return nil, fmt.Errorf("agent of %s: %w", cfg.Service, err)
	}
	db := stdlib.OpenDBFromPool(pool)
	a := &Agent{
		cfg: cfg, db: db, pool: pool, coord: coord, log: cfg.Logger.With("service", cfg.Service),
		suspect: map[string]bool{}, warned: map[string]bool{},
	}
	a.metrics = newMetrics()
	a.part, err = participant.New(ctx, participant.Config{
		Service: cfg.Service, DB: db, Dialect: participant.PostgreSQLPrepared(), Preparer: &worker{a.metrics},
		Isolation: isolations[cfg.Isolation], LockTimeout: cfg.LockTimeout, MaxOpenBranches: cfg.MaxOpenBranches, OpenIdle: cfg.OpenIdle,
		Limits: participant.Limits{MaxInFlight: cfg.Limits.MaxInFlight}, Logger: cfg.Logger,
	})
	if err == nil {
		err = a.warnOfSlots(ctx)
	}
	if err == nil {
		err = a.metrics.register(cfg.Registerer, pool, a.part.OpenBranches)
	}
	if err != nil {
		a.Close()
		return nil, fmt.Errorf("agent of %s: %w", cfg.Service, err)
	}
	return a, nil
}

// Unreachable reports whether Open failed because the database does not answer now,
// so that it may be tried again.
func Unreachable(err error) bool {
	var server *pgconn.PgError
	if errors.As(err, &server) {
		return strings.HasPrefix(server.Code, "57P") || server.Code == "53300" // it starts, stops, or is full
	}
	var connect *pgconn.ConnectError
	return errors.As(err, &connect)
}

// warnOfSlots: every branch in doubt needs one.
func (a *Agent) warnOfSlots(ctx context.Context) error {
	var slots int
	if err := a.db.QueryRowContext(ctx, `SELECT current_setting('max_prepared_transactions')::int`).Scan(&slots); err != nil {
		return fmt.Errorf("ask the server for max_prepared_transactions: %w", err)
	}
	if slots < a.cfg.Limits.MaxInFlight {
		a.log.Warn("max_prepared_transactions is below the calls that may be under way: branches beyond it vote no",
			"max_prepared_transactions", slots, "max_in_flight", a.cfg.Limits.MaxInFlight)
	}
	return nil
}

// Resource takes the coordinator's calls, wherever they come from.
func (a *Agent) Resource() participant.Resource {
	return &resource{a.part, a.pool, a.metrics, &a.texts}
}

// Handler serves the coordinator's calls below BaseURL's path.
func (a *Agent) Handler() http.Handler {
	return participant.NewHandler(a.cfg.Service, a.Resource(), participant.Limits{MaxInFlight: a.cfg.Limits.MaxInFlight}, a.cfg.Logger)
}

// Run registers the agent, keeps its registration and sweeps, until ctx ends. It
// returns early if the coordinator refuses the registration for good.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var swept sync.WaitGroup
	swept.Go(func() { a.sweepForever(ctx) })
	defer swept.Wait()
	defer cancel()
	return a.keepRegistered(ctx)
}

// Close ends the agent; Run must have returned. What is prepared stays prepared.
func (a *Agent) Close() {
	if a.part != nil {
		a.part.Close()
	}
	a.coord.close()
	if err := a.db.Close(); err != nil {
		a.log.Warn("close the connections", "error", err)
	}
	a.pool.Close()
}
