package participant_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/assent-tx/assent/participant"
)

// executing is a way whose operations are SQL, executed and prepared alike.
func executing(way string) func(*participant.Config) {
	run := func(ctx context.Context, tx *sql.Tx, op json.RawMessage) (json.RawMessage, error) {
		var query string
		if err := json.Unmarshal(op, &query); err != nil {
			return nil, err
		}
		var n sql.NullInt64
		if err := tx.QueryRowContext(ctx, query).Scan(&n); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, err
		}
		return json.Marshal(n.Int64)
	}
	return func(c *participant.Config) {
		e := executor{
			handler: handler{prepare: func(ctx context.Context, tx *sql.Tx, b participant.Branch) (results []json.RawMessage, err error) {
				for _, op := range b.Operations[b.Executed:] {
					r, err := run(ctx, tx, op)
					if err != nil {
						return nil, err
					}
					results = append(results, r)
				}
				return results, nil
			}},
			execute: func(ctx context.Context, tx *sql.Tx, b participant.Branch) (json.RawMessage, error) {
				return run(ctx, tx, b.Operations[b.Executed])
			},
		}
		if c.Dialect, c.Handler = participant.PostgreSQL(), e; way == "prepare" {
			c.Dialect, c.Handler, c.Preparer = participant.PostgreSQLPrepared(), nil, e
		}
	}
}

func text(query string, args ...any) string {
	quoted, err := json.Marshal(fmt.Sprintf(query, args...))
	if err != nil {
		panic(err)
	}
	return string(quoted)
}

const putEntry = `INSERT INTO entry VALUES ('t', 1, '%s', 1) RETURNING 1`

// killBackends ends every session of the database but the one that asks.
func killBackends(t *testing.T, db *sql.DB) {
	t.Helper()
	if n := one(t, db, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); n == 0 {
		t.Fatal("nobody was there")
	}
}

// What was executed in a session that died is gone: the branch says so to the next
// execute and to the prepare, whatever of it is asked again.
func executedSessionDies(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		dsn := s.database(t)
		killer := openPostgres(t, dsn)
		p := start(t, openPostgres(t, dsn), executing(way))
		a, b := text(putEntry, "a"), text(putEntry, "b")
		tx := id(1)
		execute(t, p, executeCall(tx, 0, a), "1")
		killBackends(t, killer)
		if v := vote(t, p, prepareRest(tx, 1, a, b), "no"); !strings.HasPrefix(v.Reason, participant.ReasonExecutionLost) {
			t.Errorf("%+v", v)
		}
		vote(t, p, prepareRest(tx, 1, a, b), "no")
		refuses(t, p, executeCall(tx, 0, a), participant.ReasonExecutionLost, true)
		finish(t, p, tx, participant.PhaseRollback, participant.OutcomeRolledBack)

		tx = id(2)
		execute(t, p, executeCall(tx, 0, a), "1")
		killBackends(t, killer)
		refuses(t, p, executeCall(tx, 1, a, b), participant.ReasonExecutionLost, true)
		vote(t, p, prepareRest(tx, 1, a), "no")

		tx = id(3)
		execute(t, p, executeCall(tx, 0, a), "1")
		execute(t, p, executeCall(tx, 0, a), "1") // remembered, though its session may be dead
		killBackends(t, killer)
		finish(t, p, tx, participant.PhaseRollback, participant.OutcomeRolledBack)
		status(t, p, tx, participant.OutcomeRolledBack)
		if n := one(t, killer, `SELECT count(*) FROM entry`); n != 0 {
			t.Errorf("%d entries", n)
		}
		if n := p.OpenBranches(); n != 0 {
			t.Errorf("%d branches are open", n)
		}
		tx = id(4) // the pool gives another
		execute(t, p, executeCall(tx, 0, a), "1")
		vote(t, p, prepareRest(tx, 1, a, b), "yes")
		finish(t, p, tx, participant.PhaseCommit, participant.OutcomeCommitted)
		if n := one(t, killer, `SELECT count(*) FROM entry`); n != 2 {
			t.Errorf("%d entries", n)
		}
	})
}

// What is executed sees what was committed before it, whatever isolation is configured:
// its key may have been granted after the branch was opened.
func executeSeesCommits(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		db := openPostgres(t, s.database(t))
		p := start(t, db, func(c *participant.Config) {
			executing(way)(c)
			c.Isolation = sql.LevelSerializable
		})
		if _, err := db.Exec(`INSERT INTO account (name, balance) VALUES ('a', 100)`); err != nil {
			t.Fatal(err)
		}
		read, raise := text(`SELECT balance FROM account WHERE name = 'a'`), text(`UPDATE account SET balance = balance + 1 WHERE name = 'a' RETURNING balance`)
		tx := id(1)
		execute(t, p, executeCall(tx, 0, read), "100")
		if _, err := db.Exec(`UPDATE account SET balance = 50 WHERE name = 'a'`); err != nil {
			t.Fatal(err)
		}
		execute(t, p, executeCall(tx, 1, read, read), "50")
		if _, err := db.Exec(`UPDATE account SET balance = 40 WHERE name = 'a'`); err != nil {
			t.Fatal(err)
		}
		vote(t, p, prepareRest(tx, 2, read, read, raise), "yes")
		finish(t, p, tx, participant.PhaseCommit, participant.OutcomeCommitted)
		if n := one(t, db, `SELECT balance FROM account WHERE name = 'a'`); n != 41 {
			t.Errorf("balance %d", n)
		}
	})
}

// The first call may be run again by itself; later ones cannot, since results of earlier
// ones were told.
func executeConflicts(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		db := openPostgres(t, s.database(t))
		p := start(t, db, func(c *participant.Config) {
			executing(way)(c)
			c.LockTimeout = 10 * time.Second // the server looks for deadlocks after one
		})
		if _, err := db.Exec(`INSERT INTO account (name, balance) VALUES ('a', 100), ('b', 100)`); err != nil {
			t.Fatal(err)
		}
		raise := func(name string) string {
			return text(`UPDATE account SET balance = balance + 1 WHERE name = '%s' RETURNING balance`, name)
		}
		ids := []string{id(1), id(2)}
		execute(t, p, executeCall(ids[0], 0, raise("a")), "101")
		execute(t, p, executeCall(ids[1], 0, raise("b")), "101")
		calls := []*participant.Call{executeCall(ids[0], 1, raise("a"), raise("b")), executeCall(ids[1], 1, raise("b"), raise("a"))}
		var got [2]participant.Execution
		var both sync.WaitGroup
		for i := range calls {
			both.Go(func() {
				var err error
				if got[i], err = p.Execute(t.Context(), of(calls[i])); err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
		victim := 0
		if got[0].Executed {
			victim = 1
		}
		if got[0].Executed == got[1].Executed || got[victim].Reason != participant.ReasonExecutionConflict || !got[victim].Retryable {
			t.Fatalf("of two that wait for each other in the database: %+v", got)
		}
		refuses(t, p, calls[victim], participant.ReasonExecutionConflict, true)
		first := []string{raise("a"), raise("b")}[victim]
		vote(t, p, prepareRest(ids[victim], 1, first), "no")
		finish(t, p, ids[victim], participant.PhaseRollback, participant.OutcomeRolledBack)
		vote(t, p, prepareRest(ids[1-victim], 2, []string{raise("a"), raise("b")}[1-victim], first), "yes")
		finish(t, p, ids[1-victim], participant.PhaseCommit, participant.OutcomeCommitted)
		if n := one(t, db, `SELECT sum(balance) FROM account`); n != 202 {
			t.Errorf("the balances are %d in all", n)
		}
	})
}

// An open branch's locks are waited for, not for ever; where waiting again makes
// sense, what was executed before is not lost by it.
func executeWaits(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		db := openPostgres(t, s.database(t))
		p := start(t, db, func(c *participant.Config) {
			executing(way)(c)
			c.LockTimeout, c.Isolation = 50*time.Millisecond, sql.LevelReadCommitted
		})
		if _, err := db.Exec(`INSERT INTO account (name, balance) VALUES ('a', 100), ('b', 100)`); err != nil {
			t.Fatal(err)
		}
		take := func(name string) string {
			return text(`UPDATE account SET balance = balance - 1 WHERE name = '%s' RETURNING balance`, name)
		}
		holder, waiter := id(1), id(2)
		execute(t, p, executeCall(holder, 0, take("a")), "99")
		execute(t, p, executeCall(waiter, 0, take("b")), "99")
		again := executeCall(waiter, 1, take("b"), take("a"))
		x, err := p.Execute(t.Context(), of(again))
		if way == "prepare" { // there a lock timeout is the database's no
			if err != nil || x.Reason != participant.ReasonExecutionConflict || !x.Retryable {
				t.Fatalf("%+v, %v", x, err)
			}
			vote(t, p, prepareRest(holder, 1, take("a")), "yes")
			finish(t, p, holder, participant.PhaseCommit, participant.OutcomeCommitted)
			return
		}
		if !errors.Is(err, participant.ErrOverloaded) {
			t.Fatalf("%+v, %v", x, err)
		}
		finish(t, p, holder, participant.PhaseRollback, participant.OutcomeRolledBack)
		execute(t, p, again, "99")
		vote(t, p, prepareRest(waiter, 2, take("b"), take("a")), "yes")
		finish(t, p, waiter, participant.PhaseCommit, participant.OutcomeCommitted)
		if n := one(t, db, `SELECT sum(balance)::bigint FROM account`); n != 198 {
			t.Errorf("%d in all", n)
		}
	})
}

// What the server refuses at the end is a no, and a durable one.
func openBranchCannotBePrepared(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		db := openPostgres(t, s.database(t))
		p := start(t, db, executing(way))
		if _, err := db.Exec(`INSERT INTO limited VALUES ('x')`); err != nil {
			t.Fatal(err)
		}
		twice := text(`INSERT INTO limited VALUES ('x') RETURNING 1`) // deferred
		tx := id(1)
		execute(t, p, executeCall(tx, 0, twice), "1")
		for range 2 {
			if v := vote(t, p, prepareRest(tx, 1, twice), "no"); !strings.Contains(v.Reason, "limited_pkey") {
				t.Errorf("%+v", v)
			}
		}
		status(t, p, tx, participant.OutcomeRolledBack)
		// A service that swallows an error has a transaction that can only be rolled back.
		swallow := start(t, db, doingAlso(way, func(ctx context.Context, tx *sql.Tx) {
			_, _ = tx.ExecContext(ctx, `SELECT 1/0`)
		}))
		for i, rest := range [][]string{{`1`}, {`1`, `1`}} {
			tx = id(int64(2 + i))
			execute(t, swallow, executeCall(tx, 0, `1`), "null")
			vote(t, swallow, prepareRest(tx, 1, rest...), "no")
			status(t, swallow, tx, participant.OutcomeRolledBack)
		}
	})
}

// doingAlso is a way that executes by a function without a result.
func doingAlso(way string, do func(context.Context, *sql.Tx)) func(*participant.Config) {
	return func(c *participant.Config) {
		e := executor{execute: func(ctx context.Context, tx *sql.Tx, _ participant.Branch) (json.RawMessage, error) {
			do(ctx, tx)
			return nil, nil
		}}
		if c.Dialect, c.Handler = participant.PostgreSQL(), e; way == "prepare" {
			c.Dialect, c.Handler, c.Preparer = participant.PostgreSQLPrepared(), nil, e
		}
	}
}

// An open branch in one process keeps every other out, and what the process leaves
// behind when it dies is soon free.
func openInAnotherProcess(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		dsn := s.database(t)
		quick := func(c *participant.Config) {
			executing(way)(c)
			c.LockTimeout = 50 * time.Millisecond
		}
		p, other := start(t, openPostgres(t, dsn), quick), start(t, openPostgres(t, dsn), quick)
		a := text(putEntry, "a")
		tx := id(1)
		execute(t, p, executeCall(tx, 0, a), "1")
		for what, do := range map[string]func() error{
			"execute":       func() error { _, err := other.Execute(t.Context(), of(executeCall(tx, 0, a))); return err },
			"later execute": func() error { _, err := other.Execute(t.Context(), of(executeCall(tx, 1, a, a))); return err },
			"prepare":       func() error { _, err := other.Prepare(t.Context(), of(prepareRest(tx, 1, a))); return err },
			"rollback": func() error {
				_, err := other.Finish(t.Context(), of(finishCall(tx, participant.PhaseRollback)))
				return err
			},
		} {
			if err := do(); !errors.Is(err, participant.ErrOverloaded) { // asked again, and so in time where it is open
				t.Errorf("%s: %v", what, err)
			}
		}
		p.Close()
		finish(t, other, tx, participant.PhaseRollback, participant.OutcomeRolledBack)
		refuses(t, other, executeCall(tx, 0, a), participant.ReasonBranchEnded, false)
	})
}

// The pool's connections come back clean from branches however they ended.
func openPoolIsClean(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		db := openPostgres(t, s.database(t))
		db.SetMaxOpenConns(1)
		p := start(t, db, executing(way))
		backend := one(t, db, `SELECT pg_backend_pid()`)
		a, fails := text(putEntry, "a"), text(`SELECT 1/0`)
		for i, end := range []func(tx string){
			func(tx string) {
				vote(t, p, prepareRest(tx, 1, a), "yes")
				finish(t, p, tx, participant.PhaseCommit, participant.OutcomeCommitted)
			},
			func(tx string) { finish(t, p, tx, participant.PhaseRollback, participant.OutcomeRolledBack) },
			func(tx string) { vote(t, p, prepareRest(tx, 1, a, fails), "no") },
			func(tx string) { refuses(t, p, executeCall(tx, 2, a, a, a), participant.ReasonExecutionLost, true) },
		} {
			tx := id(int64(i))
			execute(t, p, executeCall(tx, 0, a), "1")
			end(tx)
			if !s.idle(t, backend) {
				t.Errorf("%d: the connection went back with a transaction", i)
			}
			var timeout string
			if err := db.QueryRow(`SHOW lock_timeout`).Scan(&timeout); err != nil || timeout != "0" {
				t.Errorf("%d: lock_timeout %s, %v", i, timeout, err)
			}
		}
		if n := one(t, db, `SELECT count(*) FROM entry`); n != 1 {
			t.Errorf("%d entries", n)
		}
	})
}
