package postgres

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/assent-tx/assent/internal/pgtest"
	"github.com/assent-tx/assent/participant"
	"github.com/assent-tx/assent/rm/rmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	cluster  = "c0ffee00c0ffee00c0ffee00c0ffee00"
	deadline = 20 * time.Second // for what must happen; never reached by a passing test
)

// bed is one server; tests use databases of their own in it.
type bed struct {
	*pgtest.Cluster
	made atomic.Int32
}

// TestAgent starts one server for all tests that can share it.
func TestAgent(t *testing.T) {
	b := &bed{Cluster: pgtest.Start(t)}
	for name, test := range map[string]func(*testing.T, *bed){
		"conforms": conforms, "statements": statements, "refusals are durable": refusalsAreDurable, "expectations": expectations,
		"results": results, "read only": readOnly, "one trip": oneTrip, "forgotten behind the script": forgottenBehindScript, "duplicates": duplicates, "too few arguments": tooFewArguments, "wrong digest after a restart": wrongDigest,
		"serialization": serialization40001, "locks": locks, "sweep": sweeps, "foreign transactions": foreign, "ended by hand": endedByHand,
		"lost connections": lostConnections, "crashes": crashes, "registration": keepsRegistered, "names": hostileIDs,
		"executes": executes, "executes reads": executesReads, "execute refusals": executeRefusals, "execute locks": executeLocks,
		"execute session killed": executeSessionKilled, "execute agent restarts": executeAgentRestarts, "execute limits": executeLimits, "execute over HTTP": executeOverHTTP,
		"execute connections cut": executeConnectionsCut,
		"writes by functions":     writesByFunctions, "standby": standby, "pooler": behindPooler, "idle session ended": idleSessionEnded,
	} {
		t.Run(name, func(t *testing.T) { test(t, b) })
	}
}

// database is a fresh one with a table to work on, and its DSN.
func (b *bed) database(t *testing.T) string {
	t.Helper()
	name := fmt.Sprint("test", b.made.Add(1))
	if err := b.SQL(t.Context(), "postgres", "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	err := b.SQL(t.Context(), name, "CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0), note text)",
		"INSERT INTO account SELECT i, 100 FROM generate_series(1, 10) i", "CREATE TABLE effect (n bigserial, marker text NOT NULL)")
	if err != nil {
		t.Fatal(err)
	}
	return b.DSN(name)
}

func start(t *testing.T, dsn string, edit func(*Config)) *Agent {
	t.Helper()
	cfg := Config{
		Service: "bank", DSN: dsn, CoordinatorURL: "http://127.0.0.1:1", BaseURL: "http://127.0.0.1:2/assent",
		LockTimeout: 300 * time.Millisecond, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	}
	if edit != nil {
		edit(&cfg)
	}
	a, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func open(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func ask[T any](t *testing.T, db *sql.DB, query string, args ...any) (v T) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

func do(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

var lastID atomic.Uint32

func newID() string { return fmt.Sprintf("01a20000-0000-7000-8000-%012x", lastID.Add(1)) }

func prepareCall(id string, payloads ...string) *participant.Call {
	c := &participant.Call{
		Phase: participant.PhasePrepare, Cluster: cluster, Transaction: id, Branch: 1, Service: "bank", Attempt: 1, Term: 1,
		Token: "1", Shards: 1, Count: len(payloads),
	}
	for _, p := range payloads {
		c.Operations = append(c.Operations, json.RawMessage(p))
	}
	c.Digest = participant.Digest(c.Operations)
	return c
}

func finishCall(id string, phase participant.Phase) *participant.Call {
	return &participant.Call{Phase: phase, Cluster: cluster, Transaction: id, Branch: 1, Service: "bank", Attempt: 1, Term: 1, Token: "1", Shards: 1}
}

func vote(t *testing.T, a *Agent, c *participant.Call, want, reason string) participant.Vote {
	t.Helper()
	v, err := a.Resource().Prepare(t.Context(), c)
	if err != nil || v.Vote != want || !strings.Contains(v.Reason, reason) {
		t.Fatalf("%s: voted %+v, %v; want %s with %q", c.Operations, v, err, want, reason)
	}
	return v
}

func finish(t *testing.T, a *Agent, id string, phase participant.Phase, want participant.Outcome) {
	t.Helper()
	if o, err := a.Resource().Finish(t.Context(), finishCall(id, phase)); err != nil || o != want {
		t.Fatalf("%s: %s, %v; want %s", phase, o, err, want)
	}
}

func op(statements ...string) string { return `{"statements":[` + strings.Join(statements, ",") + `]}` }

const take5 = `{"sql":"UPDATE account SET balance = balance - $1 WHERE id = $2","args":[5,1],"expect":{"rows":1}}`

func prepared(t *testing.T, db *sql.DB) int {
	t.Helper()
	return ask[int](t, db, `SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()`)
}

func conforms(t *testing.T, b *bed) {
	dsn := b.database(t)
	db := open(t, dsn)
	var a *Agent
	var server *httptest.Server
	begin := func() string {
		a = start(t, dsn, nil)
		server = httptest.NewServer(a.Handler())
		return server.URL
	}
	end := func() {
		server.CloseClientConnections()
		server.Close()
		a.Close()
	}
	url := begin()
	t.Cleanup(func() { server.Close() })
	insert := func(marker string) string {
		return fmt.Sprintf(`{"sql":"INSERT INTO effect (marker) VALUES ($1)","args":[%q],"expect":{"rows":1}}`, marker)
	}
	rmtest.Run(t, rmtest.Target{
		Service: "bank", BaseURL: url,
		Succeed: func(m string) json.RawMessage { return json.RawMessage(op(insert(m))) },
		Refuse: func(m string) json.RawMessage {
			return json.RawMessage(op(insert(m), `{"sql":"UPDATE account SET balance = -1 WHERE id = 1"}`))
		},
		ReadOnly: func(string) json.RawMessage { return json.RawMessage(op(`{"sql":"SELECT count(*) FROM account"}`)) },
		Results: func(m string) json.RawMessage {
			return json.RawMessage(op(fmt.Sprintf(`{"sql":"INSERT INTO effect (marker) VALUES ($1) RETURNING n","args":[%q]}`, m)))
		},
		Observe: func(m string) json.RawMessage {
			return json.RawMessage(op(fmt.Sprintf(`{"sql":"SELECT count(*) FROM effect WHERE marker = $1","args":[%q]}`, m)))
		},
		Effects: func(ctx context.Context, m string) (n int, err error) {
			return n, db.QueryRowContext(ctx, `SELECT count(*) FROM effect WHERE marker = $1`, m).Scan(&n)
		},
		Restart:  func(context.Context) (string, error) { end(); return begin(), nil },
		OnePhase: true, Execute: true, VolatileResults: true, NoTerms: true, NoTokens: true,
	})
}

// What a payload may say, and what is told about one that it may not.
func statements(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, nil), open(t, dsn)
	for payload, reason := range map[string]string{
		`1`:                 "the payload is not",
		`{}`:                "0 statements",
		`{"statements":[]}`: "0 statements",
		`{"statements":[{"sql":"SELECT 1"}],"x":1}`: "unknown field",
		op(`{"sql":" "}`):                                                             "is empty",
		op(`{"sql":"SELECT 1","expect":{}}`):                                          "name the rows",
		op(`{"sql":"SELECT 1","expect":{"rows":-1}}`):                                 "name the rows",
		op(`{"sql":"COMMIT"}`):                                                        "begins and ends the transaction",
		op(`{"sql":"/* a /* b */ c */ -- d\n rollback"}`):                             "begins and ends the transaction",
		op(`{"sql":"SET search_path = x"}`):                                           "begins and ends the transaction",
		op(`{"sql":"UPDATE account SET note = 'x'; COMMIT"}`):                         "42601",
		op(`{"sql":"UPDATE nothing SET x = 1"}`):                                      "42P01",
		op(`{"sql":"SELEC 1"}`):                                                       "42601",
		op(`{"sql":"UPDATE account SET balance = $1 WHERE id = 1","args":["many"]}`):  "22P02",
		op(`{"sql":"UPDATE account SET balance = 1 WHERE id = $1","args":[1,2]}`):     "operations[0].statements[0]",
		op(`{"sql":"UPDATE account SET note = $1 WHERE id = 1","args":["a\u0000b"]}`): "NUL",
		op(`{"sql":"CREATE TEMP TABLE x (a int)"}`):                                   "temporary",
		op(`{"sql":"SELECT i FROM generate_series(1, 2000) i"}`):                      "returns more than",
		op(`{"sql":"SELECT repeat('x', 300000)"}`):                                    "returns more than",
		op(take5, `{"sql":"UPDATE account SET balance = balance / 0 WHERE id = 2"}`):  "22012",
	} {
		vote(t, a, prepareCall(newID(), payload), "no", reason)
	}
	if n := ask[int](t, db, `SELECT sum(balance) FROM account`); n != 1000 || prepared(t, db) != 0 {
		t.Errorf("refused statements left %d, %d prepared", n, prepared(t, db))
	}
	// Values of every kind arrive as what they are.
	id := newID()
	vote(t, a, prepareCall(id, op(
		`{"sql":"UPDATE account SET balance = $1, note = $2 WHERE id = $3","args":[9007199254740993,"it's \"ü\" ; --",1]}`,
		`{"sql":"UPDATE account SET note = $1 WHERE id = 2","args":[null]}`,
		`{"sql":"UPDATE account SET note = ($1::jsonb -> 'a')::text || $2::bool::text WHERE id = 3","args":[{"a":[1,{"b":2}]},true]};`[:len(`{"sql":"UPDATE account SET note = ($1::jsonb -> 'a')::text || $2::bool::text WHERE id = 3","args":[{"a":[1,{"b":2}]},true]}`)],
		`{"sql":"UPDATE account SET note = 'semicolon' WHERE id = 4;  ","expect":{"rows":1}}`,
		`{"sql":"UPDATE account SET note = 'comment' WHERE id = 5 -- five","expect":{"rows":1}}`,
		`{"sql":"WITH a AS (SELECT 6 AS id) UPDATE account SET note = 'with' FROM a WHERE account.id = a.id","expect":{"rows":1}}`,
	)), "yes", "")
	finish(t, a, id, participant.PhaseCommit, participant.OutcomeCommitted)
	got := ask[string](t, db, `SELECT string_agg(coalesce(note, 'NULL'), '|' ORDER BY id) FROM account WHERE id < 7`)
	if want := `it's "ü" ; --|NULL|[1, {"b": 2}]true|semicolon|comment|with`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if n := ask[int64](t, db, `SELECT balance FROM account WHERE id = 1`); n != 9007199254740993 {
		t.Errorf("a large number arrived as %d", n)
	}
}

func refusalsAreDurable(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, nil), open(t, dsn)
	for _, onePhase := range []bool{false, true} {
		c := prepareCall(newID(), op(`{"sql":"UPDATE account SET balance = balance - 200 WHERE id = 1"}`))
		c.OnePhase = onePhase
		vote(t, a, c, "no", "23514")
		do(t, db, `UPDATE account SET balance = 1000 WHERE id = 1`) // now it could
		vote(t, a, c, "no", "23514")
		again := start(t, dsn, nil)
		vote(t, again, c, "no", "23514")
		do(t, db, `UPDATE account SET balance = 100 WHERE id = 1`)
	}
}

func expectations(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, nil), open(t, dsn)
	vote(t, a, prepareCall(newID(), op(take5)), "yes", "") // binds the cluster: from here on in one trip
	for i := range 3 {
		none := `{"sql":"UPDATE account SET balance = 0 WHERE id = 77","expect":{"rows":1}}`
		two := `{"sql":"DELETE FROM account WHERE id IN (8, 9)","expect":{"rows":1}}`
		vote(t, a, prepareCall(newID(), op(`{"sql":"INSERT INTO effect (marker) VALUES ('x')"}`, none)), "no", "expected 1 rows, got 0")
		vote(t, a, prepareCall(newID(), op(two)), "no", "operations[0].statements[0]: expected 1 rows, got 2")
		vote(t, a, prepareCall(newID(), op(`{"sql":"SELECT 1 FROM account","expect":{"rows":3}}`)), "no", "expected 3 rows, got 10")
		vote(t, a, prepareCall(newID(), op(`{"sql":"INSERT INTO effect (marker) VALUES ('y') RETURNING n","expect":{"rows":2}}`)), "no", "expected 2 rows, got 1")
		if n := prepared(t, db); n != 1 {
			t.Fatalf("round %d: %d transactions are prepared, want the first alone", i, n)
		}
	}
	if n := ask[int](t, db, `SELECT count(*) FROM effect`); n != 0 {
		t.Errorf("%d effects of refused branches", n)
	}
}

func results(t *testing.T, b *bed) {
	dsn := b.database(t)
	a := start(t, dsn, nil)
	id := newID()
	v := vote(t, a, prepareCall(id,
		op(`{"sql":"UPDATE account SET balance = balance - 1 WHERE id = 1 RETURNING id, balance, note"}`, take5),
		op(`{"sql":"SELECT 1.50::numeric AS n, true AS b, '{\"k\":[1]}'::jsonb AS j, 'te\"xt' AS t, 'NaN'::float8 AS nan, DATE '2026-01-02' AS d, '\\x00ff'::bytea AS raw"}`)), "yes", "")
	want := []string{
		`{"statements":[{"row_count":1,"rows":[{"id":1,"balance":99,"note":null}]},{"row_count":1}]}`,
		`{"statements":[{"row_count":1,"rows":[{"n":1.50,"b":true,"j":{"k":[1]},"t":"te\"xt","nan":"NaN","d":"2026-01-02T00:00:00Z","raw":"\\x00ff"}]}]}`,
	}
	for i := range want {
		if i >= len(v.Results) || string(v.Results[i]) != want[i] {
			t.Errorf("result %d:\ngot  %s\nwant %s", i, v.Results, want[i])
		}
	}
	if again := vote(t, a, prepareCall(id,
		op(`{"sql":"UPDATE account SET balance = balance - 1 WHERE id = 1 RETURNING id, balance, note"}`, take5),
		op(`{"sql":"SELECT 1.50::numeric AS n, true AS b, '{\"k\":[1]}'::jsonb AS j, 'te\"xt' AS t, 'NaN'::float8 AS nan, DATE '2026-01-02' AS d, '\\x00ff'::bytea AS raw"}`)), "yes", ""); len(again.Results) != 2 {
		t.Errorf("a duplicate got %s", again.Results)
	}
	finish(t, a, id, participant.PhaseRollback, participant.OutcomeRolledBack)
}

func readOnly(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, nil), open(t, dsn)
	v := vote(t, a, prepareCall(newID(), op(`{"sql":"SELECT balance FROM account WHERE id = $1","args":[1]}`)), "read_only", "")
	if len(v.Results) != 1 || !strings.Contains(string(v.Results[0]), `"balance":100`) || prepared(t, db) != 0 {
		t.Errorf("%s, %d prepared", v.Results, prepared(t, db))
	}
	// What looks like a query and writes is no read-only branch.
	do(t, db, `CREATE FUNCTION spend() RETURNS bigint LANGUAGE sql AS 'UPDATE account SET balance = balance - 7 WHERE id = 2 RETURNING balance'`)
	for _, text := range []string{"SELECT spend()", "SELECT balance FROM account WHERE id = 2 FOR UPDATE"} {
		id := newID()
		vote(t, a, prepareCall(id, op(`{"sql":"`+text+`"}`)), "yes", "")
		finish(t, a, id, participant.PhaseCommit, participant.OutcomeCommitted)
	}
	if n := ask[int](t, db, `SELECT balance FROM account WHERE id = 2`); n != 93 {
		t.Errorf("balance %d, want 93", n)
	}
}

// The fast road is taken, leaves its session clean, and agrees with the slow one.
func oneTrip(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, func(c *Config) { c.MaxConns = 1 }), open(t, dsn)
	vote(t, a, prepareCall(newID(), op(take5)), "yes", "") // the first binds the cluster
	do(t, db, `UPDATE account SET balance = 1000 WHERE id > 1`)
	for i := range 30 {
		id, account := newID(), 2+i%9
		good := op(fmt.Sprintf(`{"sql":"UPDATE account SET balance = balance - 1 WHERE id = $1","args":[%d],"expect":{"rows":1}}`, account))
		bad := op(fmt.Sprintf(`{"sql":"UPDATE account SET balance = balance - 5000 WHERE id = %d /* %d */"}`, account, i))
		vote(t, a, prepareCall(id, good), "yes", "")
		vote(t, a, prepareCall(newID(), bad), "no", "23514") // on the same session
		phase, want := participant.PhaseCommit, participant.OutcomeCommitted
		if i%3 == 0 {
			phase, want = participant.PhaseRollback, participant.OutcomeRolledBack
		}
		finish(t, a, id, phase, want)
	}
	if n := ask[int](t, db, `SELECT sum(balance) FROM account WHERE id > 1`); n != 9000-20 {
		t.Errorf("sum %d, want %d", n, 9000-20)
	}
	if fast, slow := testutil.ToFloat64(a.metrics.fast), testutil.ToFloat64(a.metrics.slow); fast != 30 || slow != 30 {
		t.Errorf("%v branches in one trip and %v not, want 30 and 30", fast, slow)
	}
	// More texts than a session keeps.
	for i := range maxSessionStatements + 20 {
		id := newID()
		vote(t, a, prepareCall(id, op(fmt.Sprintf(`{"sql":"UPDATE account SET balance = balance + 0 WHERE id = 3 /* %d */"}`, i))), "yes", "")
		finish(t, a, id, participant.PhaseRollback, participant.OutcomeRolledBack)
	}
	if n := ask[int](t, db, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'`); n != 0 {
		t.Errorf("%d sessions are left in a transaction", n)
	}
}

// A late prepare waits for the row of a tombstone, which goes meanwhile because its
// transaction is forgotten. The guard behind it must see that, at every level.
func forgottenBehindScript(t *testing.T, b *bed) {
	for level := range isolations {
		dsn := b.database(t)
		db := open(t, dsn)
		a := start(t, dsn, func(c *Config) { c.Isolation, c.LockTimeout = level, 20*time.Second })
		vote(t, a, prepareCall(newID(), op(`{"sql":"UPDATE account SET note = 'bound' WHERE id = 10"}`)), "yes", "")
		id := newID()
		lock, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lock.Exec(`INSERT INTO assent_outcome (txn, branch, state, digest, op_count, one_phase, token, term, home, updated_ms)
			VALUES ($1, 1, 'rolled_back', '', 1, false, '', 1, 0, 0)`, id); err != nil {
			t.Fatal(err)
		}
		script, ok := a.part.Script(prepareCall(id, op(take5)))
		if !ok {
			t.Fatal("no script")
		}
		work, ok := a.resource().plainWork(prepareCall(id, op(take5)), &script)
		if !ok {
			t.Fatal("not plain")
		}
		done := make(chan bool, 1)
		go func() {
			done <- a.resource().inOneTrip(context.WithoutCancel(t.Context()), &script, work)
		}()
		eventually(t, func() error {
			if ask[int](t, db, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) != 1 {
				return errors.New("nobody waits for the row")
			}
			return nil
		})
		do(t, db, `INSERT INTO assent_watermark (shards, shard, forgotten) VALUES (1, 0, 'ff'), (0, 0, '')
			ON CONFLICT (shards, shard) DO UPDATE SET forgotten = excluded.forgotten`)
		if err := lock.Rollback(); err != nil {
			t.Fatal(err)
		}
		if <-done || ask[int](t, db, `SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database() AND gid LIKE '%' || $1 || '%'`, id) != 0 {
			t.Errorf("%q: a forgotten transaction was prepared", level)
		}
		vote(t, a, prepareCall(id, op(take5)), "no", "ended")
	}
}

// A statement that names more parameters than it has arguments must not find those
// of the guard.
func tooFewArguments(t *testing.T, b *bed) {
	a := start(t, b.database(t), nil)
	vote(t, a, prepareCall(newID(), op(take5)), "yes", "")
	for _, sql := range []string{`{"sql":"UPDATE account SET note = $2 WHERE id = $1","args":[7]}`, `{"sql":"UPDATE account SET note = $3::text WHERE id = 8","expect":{"rows":1}}`} {
		vote(t, a, prepareCall(newID(), op(sql)), "no", "")
	}
}

// Duplicates at the same time, in two processes, execute once.
func duplicates(t *testing.T, b *bed) {
	dsn := b.database(t)
	agents := []*Agent{start(t, dsn, nil), start(t, dsn, nil)}
	db := open(t, dsn)
	vote(t, agents[0], prepareCall(newID(), op(`{"sql":"UPDATE account SET note = 'bound' WHERE id = 10"}`)), "yes", "")
	for range 20 {
		id := newID()
		c := prepareCall(id, op(`{"sql":"INSERT INTO effect (marker) VALUES ($1)","args":["`+id+`"]}`))
		var wg sync.WaitGroup
		var yes atomic.Int32
		for i := range 6 {
			wg.Go(func() {
				v, err := agents[i%2].Resource().Prepare(context.Background(), c)
				if err == nil && v.Vote != "yes" {
					t.Errorf("voted %+v", v)
				}
				if err == nil {
					yes.Add(1)
				}
			})
		}
		wg.Wait()
		if yes.Load() == 0 {
			t.Error("nobody got an answer")
		}
		finish(t, agents[1], id, participant.PhaseCommit, participant.OutcomeCommitted)
		finish(t, agents[0], id, participant.PhaseCommit, participant.OutcomeCommitted)
		if n := ask[int](t, db, `SELECT count(*) FROM effect WHERE marker = $1`, id); n != 1 {
			t.Fatalf("%d effects, want 1", n)
		}
	}
}

func wrongDigest(t *testing.T, b *bed) {
	dsn := b.database(t)
	a := start(t, dsn, nil)
	vote(t, a, prepareCall(newID(), op(`{"sql":"UPDATE account SET note = 'bound' WHERE id = 10"}`)), "yes", "")
	id := newID()
	vote(t, a, prepareCall(id, op(take5)), "yes", "")
	a.Close()
	again := start(t, dsn, nil)
	vote(t, again, prepareCall(id, op(`{"sql":"UPDATE account SET balance = 0 WHERE id = 1"}`)), "no", "")
	vote(t, again, prepareCall(id, op(take5)), "yes", "")
	finish(t, again, id, participant.PhaseCommit, participant.OutcomeCommitted)
}

// A transaction that the database cannot serialize votes no, and says that it may
// be tried again.
func serialization40001(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, nil), open(t, dsn)
	vote(t, a, prepareCall(newID(), op(`{"sql":"UPDATE account SET note = 'bound' WHERE id = 10"}`)), "yes", "")
	// Write skew: each reads what the other writes. The one that is prepared cannot
	// be the victim.
	skew := func(read, write int) string {
		return op(fmt.Sprintf(`{"sql":"UPDATE account SET balance = balance - (SELECT sum(balance) FROM account WHERE id = %d)/10 WHERE id = %d"}`, read, write))
	}
	first, second := newID(), newID()
	vote(t, a, prepareCall(first, skew(1, 2)), "yes", "")
	vote(t, a, prepareCall(second, skew(2, 1)), "no", "40001")
	finish(t, a, first, participant.PhaseCommit, participant.OutcomeCommitted)
	if n := ask[int](t, db, `SELECT balance FROM account WHERE id = 1`); n != 100 {
		t.Errorf("the victim's effect is there: %d", n)
	}
}

func locks(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, nil), open(t, dsn)
	held := newID()
	vote(t, a, prepareCall(held, op(take5)), "yes", "")
	vote(t, a, prepareCall(newID(), op(take5)), "no", "retryable")
	vote(t, a, prepareCall(newID(), op(`{"sql":"SELECT pg_sleep(9)"}`)), "no", "57014")
	finish(t, a, held, participant.PhaseRollback, participant.OutcomeRolledBack)
	id := newID()
	vote(t, a, prepareCall(id, op(take5)), "yes", "")
	finish(t, a, id, participant.PhaseCommit, participant.OutcomeCommitted)
	if n := ask[int](t, db, `SELECT balance FROM account WHERE id = 1`); n != 95 {
		t.Errorf("balance %d, want 95", n)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	for end := time.Now().Add(deadline); ; time.Sleep(5 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// Nothing but an id reaches the name of a prepared transaction.
func hostileIDs(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, nil), open(t, dsn)
	vote(t, a, prepareCall(newID(), op(take5)), "yes", "")
	for _, edit := range []func(*participant.Call){
		func(c *participant.Call) { c.Transaction = "x'; DROP TABLE account; --" },
		func(c *participant.Call) { c.Cluster = "'; DROP TABLE account; --" },
		func(c *participant.Call) { c.Cluster = strings.Repeat("1", 32) },
		func(c *participant.Call) { c.Digest = "'; DROP TABLE account; --" },
	} {
		c := prepareCall(newID(), op(`{"sql":"UPDATE account SET note = 'bad' WHERE id = 2"}`))
		edit(c)
		if v, err := a.Resource().Prepare(t.Context(), c); err == nil && v.Vote != "no" {
			t.Errorf("%+v: %+v", c, v)
		}
	}
	if prepared(t, db) != 1 {
		t.Error("something was prepared")
	}
	_ = ask[int](t, db, `SELECT count(*) FROM account`)
}

// What Open refuses, it refuses with what to do, and without the password.
func TestOpenRefuses(t *testing.T) {
	c := pgtest.Start(t, "max_prepared_transactions = 0")
	secret := strings.Replace(c.DSN("postgres"), "postgres@", "postgres:s3cret@", 1)
	for dsn, want := range map[string]string{
		secret:                        "max_prepared_transactions",
		"postgres://u:s3cret@[::1/db": "cannot be parsed",
		strings.Replace(secret, "/postgres?", "/absent?", 1):      "absent",
		strings.Replace(secret, fmt.Sprint(":", c.Port), ":1", 1): "",
		secret + "&options=-c%20synchronous_commit%3Doff":         "synchronous_commit",
	} {
		_, err := Open(t.Context(), Config{Service: "a", DSN: dsn, CoordinatorURL: "http://127.0.0.1:1", BaseURL: "http://127.0.0.1:2", Logger: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("want %q: %v", want, err)
		}
	}
	if _, err := Open(t.Context(), Config{Service: "a", DSN: secret, CoordinatorURL: "x", BaseURL: "y", Isolation: "chaos"}); err == nil {
		t.Error("an unknown isolation was taken")
	}
}

// More branches than the server has room for vote no.
func TestSlotsExhausted(t *testing.T) {
	c := pgtest.Start(t, "max_prepared_transactions = 2")
	if err := c.SQL(t.Context(), "postgres", "CREATE TABLE account (id int PRIMARY KEY)"); err != nil {
		t.Fatal(err)
	}
	a := start(t, c.DSN("postgres"), nil)
	ids := []string{newID(), newID()}
	for i, id := range ids {
		vote(t, a, prepareCall(id, op(fmt.Sprintf(`{"sql":"INSERT INTO account VALUES (%d)"}`, i))), "yes", "")
	}
	vote(t, a, prepareCall(newID(), op(`{"sql":"INSERT INTO account VALUES (9)"}`)), "no", "max_prepared_transactions")
	finish(t, a, ids[0], participant.PhaseCommit, participant.OutcomeCommitted)
	vote(t, a, prepareCall(newID(), op(`{"sql":"INSERT INTO account VALUES (10)"}`)), "yes", "")
}
