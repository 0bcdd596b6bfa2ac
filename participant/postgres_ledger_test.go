package participant_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/assent-tx/assent/internal/pgtest"
	"github.com/assent-tx/assent/participant"
)

// postgres is a server of the test, with a database for whoever asks.
type postgres struct {
	*pgtest.Cluster
	databases atomic.Int64
}

// database makes a database with the ledger's tables and returns its DSN.
func (s *postgres) database(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("ledger%d", s.databases.Add(1))
	if err := s.SQL(t.Context(), "postgres", "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // a server with fewer slots than prepared transactions does not start
		left, err := s.Query(context.Background(), name, `SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts WHERE database = current_database()`)
		if err == nil && left != "" {
			err = s.SQL(context.Background(), name, strings.Split(left, "\n")...)
		}
		if err != nil {
			t.Error(err)
		}
	})
	db := openPostgres(t, s.DSN(name))
	if _, err := db.Exec(`
		CREATE TABLE account (name TEXT PRIMARY KEY, balance BIGINT NOT NULL, reserved BIGINT NOT NULL DEFAULT 0);
		CREATE TABLE reservation (txn TEXT, branch BIGINT, account TEXT, amount BIGINT);
		CREATE INDEX ON reservation (txn, branch);
		CREATE TABLE entry (txn TEXT, branch BIGINT, account TEXT, amount BIGINT);
		CREATE TABLE limited (name TEXT PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)`); err != nil {
		t.Fatal(err)
	}
	return s.DSN(name)
}

// openPostgres is a pool as a process of its own would have.
func openPostgres(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(20)
	db.SetMaxIdleConns(20)
	t.Cleanup(func() { db.Close() })
	return db
}

// reserving is the ledger by reserve, confirm, cancel.
type reserving struct{}

func (r reserving) Prepare(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
	return postAll(b, r.post(ctx, tx, b))
}

func (r reserving) Execute(ctx context.Context, tx *sql.Tx, b participant.Branch) (json.RawMessage, error) {
	return postOne(b, r.post(ctx, tx, b))
}

func (reserving) post(ctx context.Context, tx *sql.Tx, b participant.Branch) func(posting) (free int64, err error) {
	return func(p posting) (free int64, err error) {
		if _, err := tx.ExecContext(ctx, `INSERT INTO account (name, balance) VALUES ($1, 100) ON CONFLICT DO NOTHING`, p.Account); err != nil {
			return 0, err
		}
		if err := tx.QueryRowContext(ctx, `UPDATE account SET reserved = reserved + GREATEST(-$1::bigint, 0) WHERE name = $2 RETURNING balance - reserved`,
			p.Amount, p.Account).Scan(&free); err != nil {
			return 0, err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO reservation VALUES ($1, $2, $3, $4)`, b.Transaction, b.Number, p.Account, p.Amount)
		return free, err
	}
}

// postOne executes the last operation.
func postOne(b participant.Branch, do func(posting) (free int64, err error)) (json.RawMessage, error) {
	b.Operations = b.Operations[b.Executed:]
	b.Executed = 0
	results, err := postAll(b, do)
	if err != nil && !errors.Is(err, participant.ReadOnly) {
		return nil, err
	}
	return results[0], nil
}

// postAll does each operation, and votes.
func postAll(b participant.Branch, do func(posting) (free int64, err error)) ([]json.RawMessage, error) {
	var results []json.RawMessage
	readOnly := b.Executed == 0
	for _, op := range b.Operations[b.Executed:] {
		var p posting
		if err := json.Unmarshal(op, &p); err != nil {
			return nil, participant.No("not a posting: " + err.Error())
		}
		readOnly = readOnly && p.Amount == 0
		free, err := do(p)
		switch {
		case err != nil:
			return nil, err
		case free < 0:
			return nil, participant.No("insufficient funds")
		}
		results = append(results, fmt.Appendf(nil, `{"free":%d}`, free))
	}
	if readOnly {
		return results, participant.ReadOnly
	}
	return results, nil
}

func (reserving) Commit(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	for _, op := range b.Operations {
		var p posting
		if err := json.Unmarshal(op, &p); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + $1::bigint, reserved = reserved - GREATEST(-$1::bigint, 0) WHERE name = $2`,
			p.Amount, p.Account); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO entry SELECT * FROM reservation WHERE txn = $1 AND branch = $2`, b.Transaction, b.Number); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM reservation WHERE txn = $1 AND branch = $2`, b.Transaction, b.Number)
	return err
}

func (reserving) Rollback(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	for _, op := range b.Operations {
		var p posting
		if err := json.Unmarshal(op, &p); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE account SET reserved = reserved - GREATEST(-$1::bigint, 0) WHERE name = $2`, p.Amount, p.Account); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM reservation WHERE txn = $1 AND branch = $2`, b.Transaction, b.Number)
	return err
}

// posted books at once: the database holds it until the decision.
type posted struct{}

func (r posted) Prepare(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
	return postAll(b, r.post(ctx, tx, b))
}

func (r posted) Execute(ctx context.Context, tx *sql.Tx, b participant.Branch) (json.RawMessage, error) {
	return postOne(b, r.post(ctx, tx, b))
}

func (posted) post(ctx context.Context, tx *sql.Tx, b participant.Branch) func(posting) (free int64, err error) {
	return func(p posting) (free int64, err error) {
		if _, err := tx.ExecContext(ctx, `INSERT INTO account (name, balance) VALUES ($1, 100) ON CONFLICT DO NOTHING`, p.Account); err != nil {
			return 0, err
		}
		if err := tx.QueryRowContext(ctx, `UPDATE account SET balance = balance + $1 WHERE name = $2 RETURNING balance`, p.Amount, p.Account).Scan(&free); err != nil {
			return 0, err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO entry VALUES ($1, $2, $3, $4)`, b.Transaction, b.Number, p.Account, p.Amount)
		return free, err
	}
}

// preparer is a participant.Preparer of a function.
type preparer func(context.Context, *sql.Tx, participant.Branch) ([]json.RawMessage, error)

func (f preparer) Prepare(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
	return f(ctx, tx, b)
}

// ways are the two ways to take part with PostgreSQL.
var ways = map[string]func(*participant.Config){
	"reserve": func(c *participant.Config) { c.Dialect, c.Handler = participant.PostgreSQL(), reserving{} },
	"prepare": func(c *participant.Config) {
		c.Dialect, c.Handler, c.Preparer = participant.PostgreSQLPrepared(), nil, posted{}
	},
}

// several is a way for several branches prepared at once: at serializable, those on
// one page of an index are in each other's way.
func several(way string) func(*participant.Config) {
	return func(c *participant.Config) {
		ways[way](c)
		c.Isolation = sql.LevelReadCommitted
	}
}

// doing is a way with other work; what Commit and Rollback do is nothing.
func doing(way string, work preparer) func(*participant.Config) {
	return func(c *participant.Config) {
		if c.Dialect, c.Handler = participant.PostgreSQL(), (handler{prepare: work}); way == "prepare" {
			c.Dialect, c.Handler, c.Preparer = participant.PostgreSQLPrepared(), nil, work
		}
	}
}

const cluster = "0123456789abcdef0123456789abcdef"

// of names the cluster in a call.
func of(c *participant.Call) *participant.Call {
	c.Cluster = cluster
	return c
}
