package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// postgresWorkload moves money between databases, each behind an agent in the
// coordinator's process or one of its own. Its floor is a loop that does the same by hand: the same statements
// and PREPARE TRANSACTION in one round trip on all databases in parallel, then
// COMMIT PREPARED on all in parallel; with no coordinator, and nothing remembered.
type postgresWorkload struct {
	cfg    Config
	pools  []*pgxpool.Pool
	agents []*exec.Cmd
	base   int // transfers that were there at the last reset
	loops  int // transfers of the floor since then
}

const benchSchema = "assent_bench"

// benchAccounts is the number of rows that transfers choose from.
const benchAccounts = 10_000

const (
	updateAccount  = `UPDATE assent_bench_account SET balance = balance + $1 WHERE id = $2`
	insertTransfer = `INSERT INTO assent_bench_transfer (id) VALUES ($1)`
)

func (w *postgresWorkload) before(ctx context.Context, dir string) ([]string, error) {
	if len(w.cfg.DSNs) != w.cfg.Branches {
		return nil, fmt.Errorf("%d databases for %d participants: give --dsn once for each", len(w.cfg.DSNs), w.cfg.Branches)
	}
	for i, dsn := range w.cfg.DSNs {
		cfg, err := pgxpool.ParseConfig(inSchema(dsn))
		if err != nil {
			return nil, fmt.Errorf("the DSN of database %d is not one", i+1) // pgx's error may hold the password
		}
		cfg.MaxConns = int32(min(w.cfg.Concurrency+2, 80))
		pool, err := pgxpool.NewWithConfig(ctx, cfg)
		if err != nil {
			return nil, err
		}
		w.pools = append(w.pools, pool)
		for _, sql := range []string{
			`DROP SCHEMA IF EXISTS ` + benchSchema + ` CASCADE`,
			`CREATE SCHEMA ` + benchSchema,
			`CREATE TABLE assent_bench_account (id int PRIMARY KEY, balance bigint NOT NULL)`,
			`CREATE TABLE assent_bench_transfer (id text PRIMARY KEY)`,
			fmt.Sprintf(`INSERT INTO assent_bench_account SELECT i, 0 FROM generate_series(1, %d) i`, benchAccounts),
			`ANALYZE assent_bench_account`,
		} {
			if _, err := pool.Exec(ctx, sql); err != nil {
				return nil, fmt.Errorf("database %d: %w", i+1, err)
			}
		}
	}
	if w.apart() {
		return nil, nil
	}
	return w.hosted(dir)
}

// apart: a coordinator that runs already hosts no agents of ours.
func (w *postgresWorkload) apart() bool { return w.cfg.Apart || w.cfg.URL != "" }

func (w *postgresWorkload) connections() string { return strconv.Itoa(min(w.cfg.Concurrency+4, 80)) }

// hosted writes the coordinator's configuration with an agent for each database.
func (w *postgresWorkload) hosted(dir string) ([]string, error) {
	var s strings.Builder
	s.WriteString("agents:\n")
	for i, dsn := range w.cfg.DSNs {
		fmt.Fprintf(&s, "  - postgres:\n      service: %s\n      dsn: %q\n      isolation: read committed\n      max-connections: %s\n",
			service(i), inSchema(dsn), w.connections())
	}
	file := filepath.Join(dir, "agents.yaml")
	return []string{"--config", file}, os.WriteFile(file, []byte(s.String()), 0o600) // it may hold passwords
}

func (w *postgresWorkload) start(ctx context.Context, b *run) error {
	for i, dsn := range w.cfg.DSNs {
		if !w.apart() {
			break
		}
		agent := exec.Command(w.cfg.Binary, "agent", "postgres", "--service", service(i), "--listen", "127.0.0.1:0",
			"--coordinator", b.coord.urls[0], "--isolation", "read committed", "--max-connections", w.connections(), "--log-level", "warn")
		agent.Env = append(os.Environ(), "ASSENT_AGENT_DSN="+inSchema(dsn))
		agent.Stderr = os.Stderr
		if err := agent.Start(); err != nil {
			return err
		}
		w.agents = append(w.agents, agent)
	}
	for i := range w.cfg.Branches {
		err := eventually(ctx, func() error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.coord.urls[0]+"/v1/services/"+service(i), nil)
			if err != nil {
				return err
			}
			status, answer, err := b.do(req, nil)
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("the agent of database %d does not register: status %d: %s", i+1, status, answer)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return w.reset(ctx)
}

// inSchema makes a schema of the benchmark's own the one that its sessions and the
// agent's use, so that nothing else in the database is touched.
func inSchema(dsn string) string {
	switch {
	case !strings.Contains(dsn, "://"):
		return dsn + " search_path=" + benchSchema
	case strings.Contains(dsn, "?"):
		return dsn + "&search_path=" + benchSchema
	}
	return dsn + "?search_path=" + benchSchema
}

func (w *postgresWorkload) stop() {
	for _, a := range w.agents {
		_ = a.Process.Signal(syscall.SIGTERM)
		killer := time.AfterFunc(5*time.Second, func() { _ = a.Process.Kill() })
		_ = a.Wait()
		killer.Stop()
	}
	for _, p := range w.pools {
		p.Close()
	}
}

func (w *postgresWorkload) cpuUs() (float64, error) {
	var sum float64
	for _, a := range w.agents {
		us, err := cpuUs(a.Process.Pid)
		if err != nil {
			return 0, err
		}
		sum += us
	}
	return sum, nil
}

func amount(branch int) int { return 1 - 2*(branch%2) } // money leaves one and reaches the other

func (w *postgresWorkload) operation(dst *strings.Builder, branch int, id string) string {
	account := 1 + rand.IntN(benchAccounts)
	fmt.Fprintf(dst, `{"statements":[{"sql":%q,"args":[%d,%d],"expect":{"rows":1}},{"sql":%q,"args":[%q]}]}`,
		updateAccount, amount(branch), account, insertTransfer, id)
	return "accounts/" + strconv.Itoa(account)
}

func (w *postgresWorkload) floor(ctx context.Context, b *run, _ use, duration time.Duration) (floor, error) {
	loop, err := b.inParallel(ctx, duration, func(c *client) error { return w.byHand(ctx, "hand-"+c.next()) })
	if err != nil {
		return floor{}, fmt.Errorf("the loop by hand: %w", err)
	}
	w.loops += len(loop.took)
	return floor{txnRate: loop.rate(), callTook: loop.took}, nil
}

// byHand is one transfer without a coordinator.
func (w *postgresWorkload) byHand(ctx context.Context, id string) error {
	return errors.Join(w.onAll(ctx, func(c *pgconn.PgConn, branch int) error {
		p := c.StartPipeline(ctx)
		p.SendQueryParams(`BEGIN`, nil, nil, nil, nil)
		p.SendQueryParams(updateAccount, [][]byte{[]byte(strconv.Itoa(amount(branch))), []byte(strconv.Itoa(1 + rand.IntN(benchAccounts)))}, nil, nil, nil)
		p.SendQueryParams(insertTransfer, [][]byte{[]byte(id)}, nil, nil, nil)
		p.SendQueryParams(`PREPARE TRANSACTION '`+id+`'`, nil, nil, nil, nil)
		if err := p.Sync(); err != nil {
			return errors.Join(err, p.Close())
		}
		return finish(p)
	}), w.onAll(ctx, func(c *pgconn.PgConn, _ int) error {
		return c.Exec(ctx, `COMMIT PREPARED '`+id+`'`).Close()
	}))
}

func finish(p *pgconn.Pipeline) error {
	for {
		r, err := p.GetResults()
		if err != nil || r == nil {
			return errors.Join(err, p.Close())
		}
		if reader, ok := r.(*pgconn.ResultReader); ok {
			if _, err := reader.Close(); err != nil {
				return errors.Join(err, p.Close())
			}
		}
		if _, ok := r.(*pgconn.PipelineSync); ok {
			return p.Close()
		}
	}
}

// onAll runs work on all databases at once.
func (w *postgresWorkload) onAll(ctx context.Context, work func(c *pgconn.PgConn, branch int) error) error {
	errs := make([]error, len(w.pools))
	var wg sync.WaitGroup
	for i, pool := range w.pools {
		wg.Go(func() {
			errs[i] = pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return work(c.Conn().PgConn(), i) })
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// reset counts what is there; nothing is deleted, so that tables grow alike.
func (w *postgresWorkload) reset(ctx context.Context) error {
	n, err := w.count(ctx, 0)
	w.base, w.loops = n, 0
	return err
}

func (w *postgresWorkload) count(ctx context.Context, branch int) (n int, err error) {
	return n, w.pools[branch].QueryRow(ctx, `SELECT count(*) FROM assent_bench_transfer`).Scan(&n)
}

// audit: every transfer is in every database once - its id is a primary key -, no
// other one is, the balances say the same, and nothing is left prepared.
func (w *postgresWorkload) audit(ctx context.Context, transactions int) error {
	return audited(ctx, func() error {
		for i, pool := range w.pools {
			n, err := w.count(ctx, i)
			if err != nil {
				return err
			}
			if want := w.base + w.loops + transactions; n != want {
				return fmt.Errorf("database %d has %d transfers, want %d", i+1, n, want)
			}
			var sum, prepared int
			if err := pool.QueryRow(ctx, `SELECT sum(balance) FROM assent_bench_account`).Scan(&sum); err != nil {
				return err
			}
			if sum != amount(i)*n {
				return fmt.Errorf("the balances of database %d sum up to %d after %d transfers", i+1, sum, n)
			}
			err = pool.QueryRow(ctx, `SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()`).Scan(&prepared)
			if err != nil {
				return err
			}
			if prepared != 0 {
				return fmt.Errorf("database %d has %d prepared transactions", i+1, prepared)
			}
		}
		return w.sameTransfers(ctx)
	})
}

// sameTransfers compares the databases' transfers by a digest of their ids.
func (w *postgresWorkload) sameTransfers(ctx context.Context) error {
	var first string
	for i, pool := range w.pools {
		var digest string
		err := pool.QueryRow(ctx, `SELECT coalesce(md5(string_agg(id, ',' ORDER BY id COLLATE "C")), '') FROM assent_bench_transfer`).Scan(&digest)
		switch {
		case errors.Is(err, pgx.ErrNoRows) || err != nil:
			return err
		case i == 0:
			first = digest
		case digest != first:
			return fmt.Errorf("databases 1 and %d hold different transfers", i+1)
		}
	}
	return nil
}
