package participant_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/pgtest"
	"github.com/assent-tx/assent/participant"
	"github.com/assent-tx/assent/rm/rmtest"
)

// TestPostgreSQL runs all that needs a server on one. The last ones restart it.
func TestPostgreSQL(t *testing.T) {
	s := &postgres{Cluster: pgtest.Start(t)}
	for _, part := range []struct {
		name string
		run  func(*testing.T, *postgres)
	}{
		{"conforms", conforms},
		{"conforms with two processes", conformsTwice},
		{"duplicates of two processes execute once", duplicates},
		{"the pool is left clean", poolIsClean},
		{"ended by hand", endedByHand},
		{"other work under one identity", otherWork},
		{"a rollback overtakes a running prepare", fence},
		{"the database votes", databaseVotes},
		{"serialization failures are tried again", serializationFailures},
		{"a lock is waited for, not for ever", lockWaits},
		{"a duplicate writes back no older state", olderState},
		{"a forgotten row deleted behind a snapshot", forgottenBehindSnapshot},
		{"a state of a newer version", unknownState},
		{"forgetting", forgetting},
		{"a session dies between execute and prepare", executedSessionDies},
		{"executes race", executeRaces},
		{"executes see commits", executeSeesCommits},
		{"executes conflict", executeConflicts},
		{"executes wait", executeWaits},
		{"an open branch cannot be prepared", openBranchCannotBePrepared},
		{"a branch is open in another process", openInAnotherProcess},
		{"the pool is left clean by open branches", openPoolIsClean},
		{"one cluster", oneCluster},
		{"foreign prepared transactions", foreignPrepared},
		{"the two ways are not mixed", notMixed},
		{"killed between prepare and commit", killed},
		{"unsafe servers are refused", unsafeServers},
		{"no free slot is a no", noFreeSlot},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, s) })
	}
}

func eachWay(t *testing.T, run func(t *testing.T, way string)) {
	for way := range ways {
		t.Run(way, func(t *testing.T) { run(t, way) })
	}
}

func postgresTarget(db func() *sql.DB, way, url string) rmtest.Target {
	target := ledgerTarget(db, url)
	count := func(table string) func(context.Context, string) (int, error) {
		return func(ctx context.Context, marker string) (n int, err error) {
			err = db().QueryRowContext(ctx, `SELECT COUNT(*) FROM `+table+` WHERE account = $1`, marker).Scan(&n)
			return n, err
		}
	}
	target.OneOpen = false
	target.Effects, target.Reserved = count("entry"), count("reservation")
	if way == "prepare" { // what a prepared branch did is seen by nobody
		target.Reserved, target.NoTerms, target.NoTokens, target.VolatileResults = nil, true, true, true
	}
	return target
}

func conforms(t *testing.T, s *postgres) {
	for _, level := range []sql.IsolationLevel{sql.LevelDefault, sql.LevelReadCommitted} {
		eachWay(t, func(t *testing.T, way string) {
			dsn := s.database(t)
			var db *sql.DB
			var p *participant.Participant
			var server *httptest.Server
			open := func() string {
				db = openPostgres(t, dsn)
				p = start(t, db, func(c *participant.Config) {
					ways[way](c)
					c.Isolation = level
				})
				server = httptest.NewServer(p.Handler())
				return server.URL
			}
			stop := func() {
				server.CloseClientConnections()
				server.Close()
				p.Close()
				db.Close()
			}
			url := open()
			t.Cleanup(func() { stop() })
			target := postgresTarget(func() *sql.DB { return db }, way, url)
			target.Restart = func(context.Context) (string, error) {
				stop()
				return open(), nil
			}
			rmtest.Run(t, target)
		})
	}
}

func conformsTwice(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		dsn := s.database(t)
		db := openPostgres(t, dsn)
		handlers := []http.Handler{start(t, db, ways[way]).Handler(), start(t, openPostgres(t, dsn), ways[way]).Handler()}
		var turn atomic.Uint32
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handlers[turn.Add(1)%2].ServeHTTP(w, r)
		}))
		t.Cleanup(server.Close)
		target := postgresTarget(func() *sql.DB { return db }, way, server.URL)
		target.Execute = false // an open branch lives in one process
		if way == "prepare" {
			target.Results = nil // the other process knows none before the commit
		}
		rmtest.Run(t, target)
	})
}

func vote(t *testing.T, p *participant.Participant, c *participant.Call, want string) participant.Vote {
	t.Helper()
	v, err := p.Prepare(t.Context(), of(c))
	if err != nil || v.Vote != want {
		t.Fatalf("voted %+v, %v; want %s", v, err, want)
	}
	return v
}

func finish(t *testing.T, p *participant.Participant, id string, phase participant.Phase, want participant.Outcome) {
	t.Helper()
	if o, err := p.Finish(t.Context(), of(finishCall(id, phase))); err != nil || o != want {
		t.Fatalf("%s: %s, %v; want %s", phase, o, err, want)
	}
}

func status(t *testing.T, p *participant.Participant, id string, want participant.Outcome) {
	t.Helper()
	if o, err := p.Status(t.Context(), of(finishCall(id, participant.PhaseStatus))); err != nil || o != want {
		t.Fatalf("status: %s, %v; want %s", o, err, want)
	}
}

func one(t *testing.T, db *sql.DB, query string, args ...any) (n int) {
	t.Helper()
	if err := db.QueryRow(query, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func debit(account string) string { return fmt.Sprintf(`{"account":%q,"amount":-1}`, account) }

func duplicates(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		dsn := s.database(t)
		processes := []*participant.Participant{start(t, openPostgres(t, dsn), ways[way]), start(t, openPostgres(t, dsn), ways[way])}
		db := openPostgres(t, dsn)
		for round := range 5 {
			tx, account := id(int64(round)), fmt.Sprint("a", round)
			all := func(do func(p *participant.Participant) error) {
				var wg sync.WaitGroup
				for i := range 16 {
					wg.Go(func() {
						for end := time.Now().Add(deadline); ; {
							err := do(processes[i%2])
							if err == nil {
								return
							}
							if !errors.Is(err, participant.ErrOverloaded) || time.Now().After(end) {
								t.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			}
			all(func(p *participant.Participant) error {
				v, err := p.Prepare(t.Context(), of(prepareCall(tx, debit(account))))
				if err == nil && v.Vote != "yes" {
					t.Errorf("%+v", v)
				}
				return err
			})
			all(func(p *participant.Participant) error {
				o, err := p.Finish(t.Context(), of(finishCall(tx, participant.PhaseCommit)))
				if err == nil && o != participant.OutcomeCommitted {
					t.Errorf("%s", o)
				}
				return err
			})
			if n := one(t, db, `SELECT count(*) FROM entry WHERE account = $1`, account); n != 1 {
				t.Errorf("%d entries", n)
			}
			if n := one(t, db, `SELECT balance FROM account WHERE name = $1`, account); n != 99 {
				t.Errorf("balance %d", n)
			}
		}
	})
}

// After every kind of vote the only connection of the pool has no transaction, no
// setting of the last one, and works.
func poolIsClean(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		db := openPostgres(t, s.database(t))
		db.SetMaxOpenConns(1)
		var work func(*sql.Tx) error
		p := start(t, db, doing(way, func(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
			if _, err := tx.ExecContext(ctx, `INSERT INTO entry VALUES ($1, 1, 'x', 1)`, b.Transaction); err != nil {
				return nil, err
			}
			return nil, work(tx)
		}))
		backend := one(t, db, `SELECT pg_backend_pid()`)
		for i, c := range []struct {
			vote string
			work func(*sql.Tx) error
		}{
			{"yes", func(*sql.Tx) error { return nil }},
			{"no", func(*sql.Tx) error { return participant.No("poor") }},
			{"read_only", func(*sql.Tx) error { return participant.ReadOnly }},
			{"", func(*sql.Tx) error { return errDisk }},
			{"", func(tx *sql.Tx) error {
				_, err := tx.Exec(`SELECT 1/0`)
				return err
			}},
		} {
			tx := id(int64(i))
			work = c.work
			if v, err := p.Prepare(t.Context(), of(prepareCall(tx, `1`))); v.Vote != c.vote || (err == nil) != (c.vote != "") {
				t.Errorf("%d: %+v, %v", i, v, err)
			}
			if !s.idle(t, backend) {
				t.Errorf("%d: the connection went back with a transaction", i)
			}
			var timeout string
			if err := db.QueryRow(`SHOW lock_timeout`).Scan(&timeout); err != nil || timeout != "0" {
				t.Errorf("%d: lock_timeout %s, %v", i, timeout, err)
			}
			if c.vote == "yes" {
				finish(t, p, tx, participant.PhaseCommit, participant.OutcomeCommitted)
			}
		}
		if now := one(t, db, `SELECT pg_backend_pid()`); now != backend {
			t.Error("the connection was given up")
		}
		if n := one(t, db, `SELECT count(*) FROM entry`); n != 1 {
			t.Errorf("%d entries", n)
		}
	})
}

func (s *postgres) idle(t *testing.T, backend int) bool {
	t.Helper()
	state, err := s.Query(t.Context(), "postgres", fmt.Sprintf("SELECT state FROM pg_stat_activity WHERE pid = %d", backend))
	if err != nil {
		t.Fatal(err)
	}
	return state == "idle"
}

// gid of a branch's prepared transaction.
func gid(t *testing.T, db *sql.DB, id string) (gid string) {
	t.Helper()
	if err := db.QueryRow(`SELECT gid FROM pg_prepared_xacts WHERE starts_with(gid, 'assent:' || $1 || ':' || $2 || ':1:')`, cluster, id).Scan(&gid); err != nil {
		t.Fatal(err)
	}
	return gid
}

// What somebody ended by hand is told as it is, and never confirmed.
func endedByHand(t *testing.T, s *postgres) {
	db := openPostgres(t, s.database(t))
	p := start(t, db, ways["prepare"])
	tx := id(1)
	vote(t, p, prepareCall(tx, debit("a")), "yes")
	if want := "assent:" + cluster + ":" + tx + ":1:" + prepareCall(tx, debit("a")).Digest[:16]; gid(t, db, tx) != want {
		t.Errorf("gid %s, want %s", gid(t, db, tx), want)
	}
	if _, err := db.Exec(`ROLLBACK PREPARED '` + gid(t, db, tx) + `'`); err != nil {
		t.Fatal(err)
	}
	status(t, p, tx, participant.OutcomeUnknown)
	finish(t, p, tx, participant.PhaseCommit, participant.OutcomeUnknown)
	finish(t, p, tx, participant.PhaseCommit, participant.OutcomeUnknown)
	finish(t, p, tx, participant.PhaseRollback, participant.OutcomeRolledBack)
	finish(t, p, tx, participant.PhaseCommit, participant.OutcomeRolledBack) // contradicts: there is a tombstone
	vote(t, p, prepareCall(tx, debit("a")), "no")

	tx = id(2)
	vote(t, p, prepareCall(tx, debit("a")), "yes")
	if _, err := db.Exec(`COMMIT PREPARED '` + gid(t, db, tx) + `'`); err != nil {
		t.Fatal(err)
	}
	finish(t, p, tx, participant.PhaseRollback, participant.OutcomeCommitted)
	finish(t, p, tx, participant.PhaseCommit, participant.OutcomeCommitted)
	if n := one(t, db, `SELECT count(*) FROM entry`); n != 1 {
		t.Errorf("%d entries", n)
	}
}

func otherWork(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		dsn := s.database(t)
		db := openPostgres(t, dsn)
		p, stranger := start(t, db, ways[way]), start(t, openPostgres(t, dsn), ways[way])
		tx := id(1)
		vote(t, p, prepareCall(tx, debit("a")), "yes")
		for _, q := range []*participant.Participant{p, stranger} {
			vote(t, q, prepareCall(tx, debit("b")), "no")
			vote(t, q, prepareCall(tx, debit("a"), debit("a")), "no")
			lying := prepareCall(tx, debit("b"))
			lying.Digest = prepareCall(tx, debit("a")).Digest
			vote(t, q, lying, "no")
			vote(t, q, prepareCall(tx, debit("a")), "yes")
			onePhase := prepareCall(tx, debit("a"))
			onePhase.OnePhase = true
			if v, err := q.Prepare(t.Context(), of(onePhase)); !errors.Is(err, participant.ErrStale) {
				t.Errorf("one-phase after two-phase: %+v, %v", v, err)
			}
		}
		finish(t, stranger, tx, participant.PhaseCommit, participant.OutcomeCommitted)
		vote(t, p, prepareCall(tx, debit("a")), "yes")
		vote(t, p, prepareCall(tx, debit("b")), "no")
		if n := one(t, db, `SELECT count(*) FROM entry`); n != 1 {
			t.Errorf("%d entries", n)
		}
	})
}

// A rollback that comes while the prepare is at work does not answer before the
// prepare can no longer come through.
func fence(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		dsn := s.database(t)
		db := openPostgres(t, dsn)
		inside, leave := make(chan struct{}), make(chan struct{})
		p := start(t, db, doing(way, func(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
			if _, err := tx.ExecContext(ctx, `INSERT INTO entry VALUES ($1, 1, 'x', 1)`, b.Transaction); err != nil {
				return nil, err
			}
			inside <- struct{}{}
			<-leave
			return nil, nil
		}))
		other := start(t, openPostgres(t, dsn), doing(way, nil))
		tx := id(1)
		voted := make(chan error, 1)
		go func() {
			v, err := p.Prepare(context.WithoutCancel(t.Context()), of(prepareCall(tx, `1`)))
			if err == nil && v.Vote != "yes" {
				err = fmt.Errorf("%+v", v)
			}
			voted <- err
		}()
		<-inside
		short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if o, err := other.Finish(short, of(finishCall(tx, participant.PhaseRollback))); err == nil {
			t.Errorf("a rollback beside a running prepare was answered %s", o)
		}
		status(t, other, tx, participant.OutcomeUnknown)
		ended := make(chan error, 1)
		go func() {
			for end := time.Now().Add(deadline); ; {
				o, err := other.Finish(context.WithoutCancel(t.Context()), of(finishCall(tx, participant.PhaseRollback)))
				if err == nil && o != participant.OutcomeRolledBack {
					err = fmt.Errorf("rollback: %s", o)
				} else if err != nil && time.Now().Before(end) {
					continue
				}
				ended <- err
				return
			}
		}()
		leave <- struct{}{}
		if err := <-voted; err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		status(t, other, tx, participant.OutcomeRolledBack)
		vote(t, other, prepareCall(tx, `1`), "no")
		if n := one(t, db, `SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()`); n != 0 {
			t.Errorf("%d transactions are prepared", n)
		}
	})
}
