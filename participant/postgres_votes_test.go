package participant_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/assent-tx/assent/participant"
)

// What the database itself refuses, at which step and in which way it is a no.
func databaseVotes(t *testing.T, s *postgres) {
	twice := func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO limited VALUES ('x'), ('x')`)
		return err
	}
	constraint := func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO account VALUES ('taken', 1)`)
		return err
	}
	swallow := func(ctx context.Context, tx *sql.Tx) error {
		_ = constraint(ctx, tx)
		return nil
	}
	for _, c := range []struct {
		name     string
		work     func(context.Context, *sql.Tx) error
		way      string
		onePhase bool
		reason   string // empty: not a vote
	}{
		{"deferred constraint", twice, "prepare", false, "limited_pkey"},
		{"deferred constraint", twice, "prepare", true, "limited_pkey"},
		{"deferred constraint", twice, "reserve", false, "limited_pkey"},
		{"deferred constraint", twice, "reserve", true, "limited_pkey"},
		{"constraint", constraint, "prepare", false, "account_pkey"},
		{"constraint", constraint, "reserve", false, ""},
		{"error that the service swallowed", swallow, "prepare", false, "did not return"},
		{"error that the service swallowed", swallow, "prepare", true, "did not return"},
		{"error that the service swallowed", swallow, "reserve", true, "did not return"},
		{"error that the service swallowed", swallow, "reserve", false, ""},
		{"notification", func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `NOTIFY x`)
			return err
		}, "prepare", false, "NOTIFY"},
		{"temporary table", func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `CREATE TEMP TABLE x (y int) ON COMMIT DROP`)
			return err
		}, "prepare", false, "temporary"},
		{"a rollback of its own", func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `ROLLBACK`)
			return err
		}, "prepare", false, "division by zero"},
	} {
		t.Run(fmt.Sprintf("%s, %s, one_phase=%t", c.name, c.way, c.onePhase), func(t *testing.T) {
			db := openPostgres(t, s.database(t))
			if _, err := db.Exec(`INSERT INTO account VALUES ('taken', 1)`); err != nil {
				t.Fatal(err)
			}
			work := c.work
			p := start(t, db, doing(c.way, func(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
				if _, err := tx.ExecContext(ctx, `INSERT INTO entry VALUES ($1, 1, 'x', 1)`, b.Transaction); err != nil {
					return nil, err
				}
				if err := work(ctx, tx); err != nil {
					return nil, fmt.Errorf("secret=hunter2: %w", err)
				}
				return nil, nil
			}))
			call := prepareCall(id(1), `1`)
			call.OnePhase = c.onePhase
			v, err := p.Prepare(t.Context(), of(call))
			if c.reason == "" {
				if err == nil {
					t.Fatalf("%+v", v)
				}
				status(t, p, call.Transaction, participant.OutcomeUnknown)
				return
			}
			if err != nil || v.Vote != "no" || !strings.Contains(v.Reason, c.reason) || strings.Contains(v.Reason, "hunter2") {
				t.Fatalf("%+v, %v; want a no for %q", v, err, c.reason)
			}
			work = func(context.Context, *sql.Tx) error { return nil } // the no is durable all the same
			vote(t, p, call, "no")
			status(t, p, call.Transaction, participant.OutcomeRolledBack)
			if n := one(t, db, `SELECT (SELECT count(*) FROM entry) + (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database())`); n != 0 {
				t.Errorf("%d things are left", n)
			}
		})
	}
}

// A serialization failure runs the work again in a fresh transaction; where it
// does not go away the prepared way votes no, since what it runs into may itself
// be prepared and wait.
func serializationFailures(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		db := openPostgres(t, s.database(t))
		if _, err := db.Exec(`INSERT INTO account VALUES ('x', 0)`); err != nil {
			t.Fatal(err)
		}
		rival := openPostgres(t, s.DSN(databaseOf(t, db)))
		tries, disturbed := 0, 1
		p := start(t, db, doing(way, func(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
			tries++
			if tries <= disturbed { // after this transaction's snapshot
				if _, err := rival.ExecContext(ctx, `UPDATE account SET balance = balance + 1`); err != nil {
					t.Error(err)
				}
			}
			_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 100`)
			return nil, err
		}))
		vote(t, p, prepareCall(id(1), `1`), "yes")
		if tries != 2 {
			t.Errorf("%d tries", tries)
		}
		if way != "prepare" {
			return
		}
		for _, b := range must(p.InDoubt(t.Context(), "", 0, 10))(t) {
			finish(t, p, b.Transaction, participant.PhaseCommit, participant.OutcomeCommitted)
		}
		tries, disturbed = 0, 1000
		v := vote(t, p, prepareCall(id(2), `1`), "no")
		if !strings.Contains(v.Reason, "serialize") || tries != 5 {
			t.Errorf("%+v after %d tries", v, tries)
		}
		if n := one(t, db, `SELECT balance FROM account`); n != 1+100+5 {
			t.Errorf("balance %d", n)
		}
	})
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func databaseOf(t *testing.T, db *sql.DB) (name string) {
	t.Helper()
	if err := db.QueryRow(`SELECT current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	return name
}

// A lock in the work that is not granted in time, and a duplicate that waits for
// the first one too long.
func lockWaits(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		dsn := s.database(t)
		db := openPostgres(t, dsn)
		if _, err := db.Exec(`INSERT INTO account VALUES ('x', 0)`); err != nil {
			t.Fatal(err)
		}
		p := start(t, db, func(c *participant.Config) {
			doing(way, func(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
				_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1`)
				return nil, err
			})(c)
			c.LockTimeout = 150 * time.Millisecond
		})
		holder := openPostgres(t, dsn)
		lock, err := holder.Begin()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = lock.Rollback() }()
		if _, err := lock.Exec(`SELECT * FROM account FOR UPDATE`); err != nil {
			t.Fatal(err)
		}
		v, err := p.Prepare(t.Context(), of(prepareCall(id(1), `1`)))
		if way == "prepare" && (err != nil || v.Vote != "no" || !strings.Contains(v.Reason, "lock timeout")) ||
			way == "reserve" && (!errors.Is(err, participant.ErrOverloaded) || v.Vote != "") {
			t.Errorf("a lock in the work: %+v, %v", v, err)
		}
		// The row of a branch that another process works on.
		tx := id(2)
		if _, err := lock.Exec(`INSERT INTO assent_outcome (txn, branch, state, digest, op_count, one_phase, token, term, home, updated_ms)
			VALUES ($1, 1, 'prepared', '', 1, false, '', 1, 0, 0)`, tx); err != nil {
			t.Fatal(err)
		}
		if v, err := p.Prepare(t.Context(), of(prepareCall(tx, `1`))); !errors.Is(err, participant.ErrOverloaded) || v.Vote != "" {
			t.Errorf("a duplicate: %+v, %v", v, err)
		}
		if o, err := p.Finish(t.Context(), of(finishCall(tx, participant.PhaseRollback))); !errors.Is(err, participant.ErrOverloaded) {
			t.Errorf("a rollback: %s, %v", o, err)
		}
	})
}

// A duplicate with a newer term writes to a row that it has read. Between the two
// no commit comes through, or else the duplicate would take the row back.
func olderState(t *testing.T, s *postgres) {
	for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelSerializable} {
		t.Run(level.String(), func(t *testing.T) {
			dsn := s.database(t)
			db := openPostgres(t, dsn)
			p := start(t, db, func(c *participant.Config) {
				ways["reserve"](c)
				c.Isolation, c.LockTimeout = level, deadline
			})
			call := prepareCall(id(1), debit("a"))
			vote(t, p, call, "yes")
			// Updates stop before they look at any row, while somebody holds the lock.
			if _, err := db.Exec(`CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$;
				CREATE TRIGGER stop BEFORE UPDATE ON assent_outcome FOR EACH STATEMENT EXECUTE FUNCTION stop()`); err != nil {
				t.Fatal(err)
			}
			commit, err := openPostgres(t, dsn).Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = commit.Rollback() }()
			if _, err := commit.Exec(`SELECT pg_advisory_xact_lock(1)`); err != nil {
				t.Fatal(err)
			}
			answers := make(chan string, 1)
			go func() {
				newer := *call
				newer.Term++
				v, err := p.Prepare(context.WithoutCancel(t.Context()), &newer)
				answers <- fmt.Sprint(v.Vote, err)
			}()
			s.someoneWaits(t, db)
			want := participant.OutcomePrepared // the commit has to wait, and gives up
			if _, err := commit.Exec(`SET LOCAL lock_timeout = '50ms'; UPDATE assent_outcome SET state = 'committed'`); err == nil {
				want = participant.OutcomeCommitted
				err = commit.Commit()
				if err != nil {
					t.Fatal(err)
				}
			} else if err := commit.Rollback(); err != nil {
				t.Fatal(err)
			}
			if got := <-answers; got != "yes<nil>" {
				t.Errorf("voted %s", got)
			}
			status(t, p, call.Transaction, want)
		})
	}
}

func (s *postgres) someoneWaits(t *testing.T, db *sql.DB) {
	t.Helper()
	for end := time.Now().Add(deadline); one(t, db, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 0; {
		if time.Now().After(end) {
			t.Fatal("nobody waits for a lock")
		}
		time.Sleep(time.Millisecond)
	}
}

// A tombstone is deleted between the snapshot of a late prepare and its look for
// the row. It must still see that the transaction is forgotten, at every level.
func forgottenBehindSnapshot(t *testing.T, s *postgres) {
	for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
		t.Run(level.String(), func(t *testing.T) {
			dsn := s.database(t)
			db := openPostgres(t, dsn)
			p := start(t, db, func(c *participant.Config) {
				doing("reserve", nil)(c)
				c.Isolation, c.LockTimeout = level, deadline
			})
			tx := id(1000)
			holder := openPostgres(t, dsn)
			lock, err := holder.Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = lock.Rollback() }()
			if _, err := lock.Exec(`INSERT INTO assent_outcome (txn, branch, state, digest, op_count, one_phase, token, term, home, updated_ms)
				VALUES ($1, 1, 'rolled_back', '', 1, false, '', 1, 0, 0)`, tx); err != nil {
				t.Fatal(err)
			}
			answers := make(chan string, 1)
			go func() {
				v, err := p.Prepare(context.WithoutCancel(t.Context()), of(prepareCall(tx, `1`)))
				answers <- fmt.Sprint(v.Vote, " ", v.Reason, err)
			}()
			s.someoneWaits(t, db)
			// Another process hears the watermark, and works it off.
			heard := start(t, openPostgres(t, dsn), func(c *participant.Config) {
				doing("reserve", nil)(c)
				c.ForgetInterval = time.Millisecond
			})
			herald := prepareCall(id(5000), `1`)
			herald.ForgottenBelow = floorID(4000)
			vote(t, heard, herald, "yes")
			for end := time.Now().Add(deadline); one(t, db, `SELECT count(*) FROM assent_watermark WHERE forgotten = $1 AND shards = 1`, floorID(4000)) == 0; {
				if time.Now().After(end) {
					t.Fatal("the watermark does not rise")
				}
				time.Sleep(time.Millisecond)
			}
			if err := lock.Rollback(); err != nil {
				t.Fatal(err)
			}
			if got := <-answers; !strings.HasPrefix(got, "no the transaction has ended") {
				t.Errorf("voted %s", got)
			}
		})
	}
}

func forgetting(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		db := openPostgres(t, s.database(t))
		p := start(t, db, func(c *participant.Config) {
			doing(way, func(context.Context, *sql.Tx, participant.Branch) ([]json.RawMessage, error) { return nil, nil })(c)
			c.ForgetInterval = time.Millisecond
		})
		const n = 40
		held := 0
		for i := range n {
			tx := id(int64(i))
			vote(t, p, prepareCall(tx, `1`), "yes")
			switch i % 4 {
			case 0:
				held++
			case 1:
				finish(t, p, tx, participant.PhaseRollback, participant.OutcomeRolledBack)
			default:
				finish(t, p, tx, participant.PhaseCommit, participant.OutcomeCommitted)
			}
		}
		// Many ended rows, so that they go in several batches.
		if _, err := db.Exec(`INSERT INTO assent_outcome (txn, branch, state, digest, op_count, one_phase, token, term, home, updated_ms)
			SELECT $1, n, 'committed', '', 1, false, '', 1, 0, 0 FROM generate_series(1, 1200) n`, id(n)); err != nil {
			t.Fatal(err)
		}
		herald := prepareCall(id(2*n), `1`)
		herald.ForgottenBelow = floorID(2 * n)
		herald.OnePhase = true
		vote(t, p, herald, "yes")
		want := 1 // the herald's
		if way == "reserve" {
			want += held
		}
		for end := time.Now().Add(deadline); one(t, db, `SELECT count(*) FROM assent_outcome`) != want; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d rows, want %d", one(t, db, `SELECT count(*) FROM assent_outcome`), want)
			}
		}
		list, err := p.InDoubt(t.Context(), "", 0, n)
		if err != nil || len(list) != held {
			t.Fatalf("%d in doubt, %v; want %d", len(list), err, held)
		}
		for _, b := range list {
			finish(t, p, b.Transaction, participant.PhaseCommit, participant.OutcomeCommitted)
		}
	})
}

// A row in a state that this version does not know says nothing, and stays.
func unknownState(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		db := openPostgres(t, s.database(t))
		p := start(t, db, doing(way, func(context.Context, *sql.Tx, participant.Branch) ([]json.RawMessage, error) { return nil, nil }))
		vote(t, p, prepareCall(id(1), `1`), "yes") // binds the cluster
		tx := id(2)
		if _, err := db.Exec(`INSERT INTO assent_outcome (txn, branch, state, digest, op_count, one_phase, token, term, home, updated_ms)
			VALUES ($1, 1, 'frozen', '', 1, false, '', 1, 0, 0)`, tx); err != nil {
			t.Fatal(err)
		}
		if v, err := p.Prepare(t.Context(), of(prepareCall(tx, `1`))); err == nil {
			t.Errorf("prepare: %+v", v)
		}
		for _, phase := range []participant.Phase{participant.PhaseCommit, participant.PhaseRollback} {
			if o, err := p.Finish(t.Context(), of(finishCall(tx, phase))); err == nil {
				t.Errorf("%s: %s", phase, o)
			}
		}
		if o, err := p.Status(t.Context(), of(finishCall(tx, participant.PhaseStatus))); err == nil {
			t.Errorf("status: %s", o)
		}
		if state := one(t, db, `SELECT count(*) FROM assent_outcome WHERE txn = $1 AND state = 'frozen'`, tx); state != 1 {
			t.Error("the row was changed")
		}
	})
}
