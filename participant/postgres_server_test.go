package participant_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assent-tx/assent/participant"
)

// A database that prepares is bound to the first cluster that calls.
func oneCluster(t *testing.T, s *postgres) {
	dsn := s.database(t)
	db := openPostgres(t, dsn)
	p := start(t, db, ways["prepare"])
	if list, err := p.InDoubt(t.Context(), "", 0, 10); err != nil || len(list) != 0 {
		t.Errorf("before the first call: %v, %v", list, err)
	}
	nameless := prepareCall(id(1), debit("a"))
	if v, err := p.Prepare(t.Context(), nameless); !errors.Is(err, participant.ErrCluster) {
		t.Errorf("no cluster: %+v, %v", v, err)
	}
	vote(t, p, prepareCall(id(1), debit("a")), "yes")
	again := start(t, openPostgres(t, dsn), ways["prepare"])
	for _, q := range []*participant.Participant{p, again} {
		foreign := prepareCall(id(1), debit("a"))
		foreign.Cluster, foreign.ForgottenBelow = strings.Repeat("f", 32), floorID(1000)
		if v, err := q.Prepare(t.Context(), foreign); !errors.Is(err, participant.ErrCluster) {
			t.Errorf("another cluster: %+v, %v", v, err)
		}
		for _, phase := range []participant.Phase{participant.PhaseCommit, participant.PhaseRollback} {
			end := finishCall(id(1), phase)
			end.Cluster, end.ForgottenBelow = strings.Repeat("f", 32), floorID(1000)
			if o, err := q.Finish(t.Context(), end); !errors.Is(err, participant.ErrCluster) {
				t.Errorf("%s of another cluster: %s, %v", phase, o, err)
			}
		}
	}
	w := post(t, p.Handler(), "/commit", `{"transaction":"`+id(1)+`","cluster":"`+strings.Repeat("f", 32)+`","branch":1,"service":"ledger","phase":"commit","attempt":1,"term":1,"token":""}`)
	if w.Code != 421 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	// Nor does another cluster say what is forgotten.
	vote(t, p, prepareCall(id(2), debit("b")), "yes")
	if n := one(t, db, `SELECT count(*) FROM entry`); n != 0 {
		t.Errorf("%d entries", n)
	}
}

// What others prepared is neither listed nor touched; ours is listed in pages.
func foreignPrepared(t *testing.T, s *postgres) {
	db := openPostgres(t, s.database(t))
	p := start(t, db, several("prepare"))
	var want []string
	for i := range 5 {
		tx := id(int64(10 + i))
		want = append(want, tx)
		vote(t, p, prepareCall(tx, debit(fmt.Sprint("a", i))), "yes")
	}
	foreign := []string{
		"assent:" + strings.Repeat("f", 32) + ":" + want[0] + ":1:0123456789abcdef", // another cluster's
		"assent:" + cluster + ":" + id(11) + ":x:0123456789abcdef",                  // nobody's
		"assent:" + cluster + ":" + want[0] + ":1:quote''quote",
		"other " + want[0],
	}
	for i, gid := range foreign {
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(fmt.Sprintf(`INSERT INTO entry VALUES ('foreign', %d, 'x', 1); PREPARE TRANSACTION '%s'; BEGIN`, i, gid)); err != nil {
			t.Fatal(err)
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	var last participant.InDoubt
	for {
		page := must(p.InDoubt(t.Context(), last.Transaction, last.Branch, 2))(t)
		if len(page) == 0 {
			break
		}
		for _, b := range page {
			if age := time.Since(time.UnixMilli(b.SinceMs)); age < -time.Minute || age > time.Hour || b.Branch != 1 {
				t.Errorf("%+v", b)
			}
			got = append(got, b.Transaction)
		}
		last = page[len(page)-1]
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("in doubt %v, want %v", got, want)
	}
	for i, tx := range want {
		if i%2 == 0 {
			finish(t, p, tx, participant.PhaseCommit, participant.OutcomeCommitted)
		} else {
			finish(t, p, tx, participant.PhaseRollback, participant.OutcomeRolledBack)
		}
	}
	if n := one(t, db, `SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()`); n != len(foreign) {
		t.Errorf("%d are prepared, want the %d foreign ones", n, len(foreign))
	}
	for _, gid := range foreign {
		if _, err := db.Exec(`ROLLBACK PREPARED '` + gid + `'`); err != nil {
			t.Error(err)
		}
	}
}

// Branches held in one way would be unknown to a service that uses the other.
func notMixed(t *testing.T, s *postgres) {
	other := map[string]string{"reserve": "prepare", "prepare": "reserve"}
	eachWay(t, func(t *testing.T, way string) {
		db := openPostgres(t, s.database(t))
		p := start(t, db, ways[way])
		vote(t, p, prepareCall(id(1), debit("a")), "yes")
		if err := refusal(t, db, ways[other[way]]); !strings.Contains(err, "until they have ended") {
			t.Errorf("%s beside %s: %s", other[way], way, err)
		}
		for _, b := range must(p.InDoubt(t.Context(), "", 0, 10))(t) {
			finish(t, p, b.Transaction, participant.PhaseCommit, participant.OutcomeCommitted)
		}
		q := start(t, db, ways[other[way]])
		vote(t, q, prepareCall(id(2), debit("a")), "yes")
		for _, b := range must(q.InDoubt(t.Context(), "", 0, 10))(t) {
			finish(t, q, b.Transaction, participant.PhaseCommit, participant.OutcomeCommitted)
		}
		if n := one(t, db, `SELECT count(*) FROM entry`); n != 2 {
			t.Errorf("%d entries", n)
		}
	})
}

// refusal is why New refuses, empty if it does not.
func refusal(t *testing.T, db *sql.DB, change func(*participant.Config)) string {
	t.Helper()
	cfg := participant.Config{Service: "ledger", DB: db}
	change(&cfg)
	p, err := participant.New(t.Context(), cfg)
	if err != nil {
		return err.Error()
	}
	p.Close()
	return ""
}

// The server dies between prepare and commit; the same participant, with its pool
// of dead connections, and one of a new process go on.
func killed(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		for how, end := range map[string]func(){"kill -9": s.Kill, "immediate stop": s.Stop, "fast stop": s.Shutdown} {
			t.Run(how, func(t *testing.T) {
				dsn := s.database(t)
				db := openPostgres(t, dsn)
				p := start(t, db, several(way))
				var commit, roll []string
				for i := range 4 {
					commit, roll = append(commit, id(int64(i))), append(roll, id(int64(100+i)))
					vote(t, p, prepareCall(commit[i], debit(commit[i])), "yes")
					vote(t, p, prepareCall(roll[i], debit(roll[i])), "yes")
				}
				finish(t, p, commit[0], participant.PhaseCommit, participant.OutcomeCommitted)
				finish(t, p, roll[0], participant.PhaseRollback, participant.OutcomeRolledBack)
				end()
				// Sessions outlive a killed postmaster by a moment: an answer is no error, if it
				// holds afterwards.
				if o, err := p.Finish(t.Context(), of(finishCall(commit[1], participant.PhaseCommit))); err == nil && o != participant.OutcomeCommitted {
					t.Errorf("as the server dies: %s", o)
				}
				late := prepareCall(id(500), debit("late"))
				v, err := p.Prepare(t.Context(), of(late))
				promised := err == nil && v.Vote == "yes"
				if err := s.Restart(); err != nil {
					t.Fatal(err)
				}
				fresh := start(t, openPostgres(t, dsn), several(way))
				if promised {
					status(t, fresh, late.Transaction, participant.OutcomePrepared)
				}
				finish(t, fresh, late.Transaction, participant.PhaseRollback, participant.OutcomeRolledBack)
				for i, q := range []*participant.Participant{p, p, fresh, fresh} {
					retry := func(f func() error) {
						t.Helper()
						for end := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
							err := f()
							if err == nil {
								return
							}
							if time.Now().After(end) {
								t.Fatal(err)
							}
						}
					}
					if i > 0 {
						retry(func() error { // dead connections of the pool fail once each
							v, err := q.Prepare(t.Context(), of(prepareCall(commit[i], debit(commit[i]))))
							if err == nil && v.Vote != "yes" {
								t.Errorf("%+v", v)
							}
							return err
						})
					}
					retry(func() error {
						o, err := q.Finish(t.Context(), of(finishCall(commit[i], participant.PhaseCommit)))
						if err == nil && o != participant.OutcomeCommitted {
							t.Errorf("commit: %s", o)
						}
						return err
					})
					retry(func() error {
						o, err := q.Finish(t.Context(), of(finishCall(roll[i], participant.PhaseRollback)))
						if err == nil && o != participant.OutcomeRolledBack {
							t.Errorf("rollback: %s", o)
						}
						return err
					})
				}
				if n := one(t, db, `SELECT count(*) FROM entry`); n != len(commit) {
					t.Errorf("%d entries, want %d", n, len(commit))
				}
				if n := one(t, db, `SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()`); n != 0 {
					t.Errorf("%d are prepared", n)
				}
			})
		}
	})
}

// set changes a server setting and restarts the server for it.
func (s *postgres) set(t *testing.T, name, value string) {
	t.Helper()
	statement := "ALTER SYSTEM SET " + name + " = " + value
	if value == "" {
		statement = "ALTER SYSTEM RESET " + name
	}
	if err := s.SQL(t.Context(), "postgres", statement); err != nil {
		t.Fatal(err)
	}
	s.again(t)
}

func (s *postgres) again(t *testing.T) {
	t.Helper()
	s.Shutdown()
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
}

func unsafeServers(t *testing.T, s *postgres) {
	dsn := s.database(t)
	refuses := func(way, dsn, says string) {
		t.Helper()
		if got := refusal(t, openPostgres(t, dsn), ways[way]); !strings.Contains(got, says) || says == "" && got != "" {
			t.Errorf("%s, %s: refused for %q, want %q", way, dsn, got, says)
		}
	}
	for way := range ways {
		refuses(way, dsn, "")
		refuses(way, dsn+"&options=-csynchronous_commit%3Doff", "synchronous_commit=off")
		refuses(way, dsn+"&options=-cdefault_transaction_read_only%3Don", "default_transaction_read_only=on")
		refuses(way, s.DSN("nowhere"), "nowhere")
	}

	s.set(t, "fsync", "off")
	refuses("reserve", dsn, "fsync=off")
	refuses("prepare", dsn, "fsync=off")
	s.set(t, "fsync", "")
	s.set(t, "max_prepared_transactions", "0")
	refuses("reserve", dsn, "")
	refuses("prepare", dsn, "ALTER SYSTEM SET max_prepared_transactions")
	s.set(t, "max_prepared_transactions", "")

	data, err := s.Query(t.Context(), "postgres", "SHOW data_directory")
	if err != nil {
		t.Fatal(err)
	}
	standby := filepath.Join(data, "standby.signal")
	if err := os.WriteFile(standby, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s.again(t)
	refuses("reserve", dsn, "standby")
	refuses("prepare", dsn, "standby")
	if err := os.Remove(standby); err != nil {
		t.Fatal(err)
	}
	s.again(t)

	db := openPostgres(t, dsn)
	for name, c := range map[string]struct {
		change func(*participant.Config)
		says   string
	}{
		"a Handler that would not be called": {func(c *participant.Config) { c.Dialect, c.Handler = participant.PostgreSQLPrepared(), reserving{} }, "Config.Preparer"},
		"no Preparer":                        {func(c *participant.Config) { c.Dialect = participant.PostgreSQLPrepared() }, "Config.Preparer is nil"},
		"a Preparer without Commit":          {func(c *participant.Config) { c.Dialect, c.Preparer = participant.PostgreSQL(), posted{} }, "Config.Handler"},
		"a level that is none": {func(c *participant.Config) {
			ways["reserve"](c)
			c.Isolation = sql.LevelLinearizable
		}, "Linearizable"},
		"another level of SQLite": {func(c *participant.Config) {
			c.Dialect, c.Handler, c.Isolation = participant.SQLite(), reserving{}, sql.LevelReadCommitted
		}, "Read Committed"},
	} {
		if got := refusal(t, db, c.change); !strings.Contains(got, c.says) {
			t.Errorf("%s: %q", name, got)
		}
	}

	// A role that may not create tables, on tables that are there, whatever comes first.
	if _, err := db.Exec(`CREATE ROLE poor LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC;
		GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO poor`); err != nil {
		t.Fatal(err)
	}
	poor := strings.Replace(dsn, "postgres@", "poor@", 1)
	for way := range ways {
		p := start(t, openPostgres(t, poor), ways[way])
		tx := id(int64(len(way)))
		call := prepareCall(tx, debit(way))
		vote(t, p, call, "yes")
		finish(t, p, call.Transaction, participant.PhaseCommit, participant.OutcomeCommitted)
	}
}

func noFreeSlot(t *testing.T, s *postgres) {
	s.set(t, "max_prepared_transactions", "1")
	db := openPostgres(t, s.database(t))
	p := start(t, db, doing("prepare", func(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
		_, err := tx.ExecContext(ctx, `INSERT INTO entry VALUES ($1, 1, 'x', 1)`, b.Transaction)
		return nil, err
	}))
	first, second := prepareCall(id(1), `1`), prepareCall(id(2), `1`)
	vote(t, p, first, "yes")
	if v := vote(t, p, second, "no"); !strings.Contains(v.Reason, "max_prepared_transactions") {
		t.Errorf("%+v", v)
	}
	finish(t, p, first.Transaction, participant.PhaseCommit, participant.OutcomeCommitted)
	vote(t, p, second, "no")
	finish(t, p, second.Transaction, participant.PhaseRollback, participant.OutcomeRolledBack)
	third := prepareCall(id(3), `1`)
	vote(t, p, third, "yes")
	finish(t, p, third.Transaction, participant.PhaseRollback, participant.OutcomeRolledBack)
	if n := one(t, db, `SELECT count(*) FROM entry`); n != 1 {
		t.Errorf("%d entries", n)
	}
	s.set(t, "max_prepared_transactions", "")
}
