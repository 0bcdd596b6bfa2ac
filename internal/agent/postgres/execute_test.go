package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/assent-tx/assent/participant"
)

// executeCall is an execute of the last payload, behind the others.
func executeCall(id string, payloads ...string) *participant.Call {
	c := prepareCall(id, payloads...)
	c.Phase, c.First = participant.PhaseExecute, len(payloads)-1
	c.Operations, c.Count = c.Operations[c.First:], 1
	return c
}

// prepareRest is a prepare of the payloads behind those that were executed.
func prepareRest(id string, executed int, payloads ...string) *participant.Call {
	c := prepareCall(id, payloads...)
	c.Executed, c.Operations = executed, c.Operations[executed:]
	c.Count = len(c.Operations)
	return c
}

func (r *resource) mustExecute(t *testing.T, c *participant.Call, want string) participant.Execution {
	t.Helper()
	x, err := r.Execute(t.Context(), c)
	if err != nil || !x.Executed || string(x.Results[0]) != want {
		t.Fatalf("%s: %+v (%s), %v; want %s", c.Operations, x, x.Results, err, want)
	}
	return x
}

func (r *resource) mustRefuse(t *testing.T, c *participant.Call, reason, message string) {
	t.Helper()
	x, err := r.Execute(t.Context(), c)
	if err != nil || x.Executed || x.Reason != reason || !strings.Contains(x.Message, message) {
		t.Fatalf("%s: %+v, %v; want it refused with %s: %s", c.Operations, x, err, reason, message)
	}
}

func (a *Agent) resource() *resource { return a.Resource().(*resource) } //nolint:forcetypeassert // it is made so

const (
	read1 = `{"sql":"SELECT balance FROM account WHERE id = 1"}`
	rows1 = `{"statements":[{"row_count":1,"rows":[{"balance":%d}]}]}`
)

// Rows come back before the commit, and what a branch does it sees.
func executes(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, nil), open(t, dsn)
	r := a.resource()
	id := newID()
	ops := []string{op(read1), op(take5), op(read1), op(`{"sql":"INSERT INTO effect (marker) VALUES ('x') RETURNING marker"}`, take5)}
	r.mustExecute(t, executeCall(id, ops[:1]...), fmt.Sprintf(rows1, 100))
	r.mustExecute(t, executeCall(id, ops[:2]...), `{"statements":[{"row_count":1}]}`)
	for range 2 {
		r.mustExecute(t, executeCall(id, ops[:3]...), fmt.Sprintf(rows1, 95))
	}
	if n := ask[int](t, db, `SELECT balance FROM account WHERE id = 1`); n != 100 || prepared(t, db) != 0 {
		t.Errorf("others see %d, %d prepared", n, prepared(t, db))
	}
	if n := a.part.OpenBranches(); n != 1 {
		t.Errorf("%d branches are open", n)
	}
	v := vote(t, a, prepareRest(id, 3, ops...), "yes", "")
	if want := `[{"statements":[{"row_count":1,"rows":[{"marker":"x"}]},{"row_count":1}]}]`; fmt.Sprintf("%s", v.Results) != want {
		t.Errorf("results %s, want %s", v.Results, want)
	}
	if prepared(t, db) != 1 || a.part.OpenBranches() != 0 {
		t.Errorf("%d prepared, %d open", prepared(t, db), a.part.OpenBranches())
	}
	r.mustRefuse(t, executeCall(id, ops[:1]...), participant.ReasonBranchEnded, "prepared")
	finish(t, a, id, participant.PhaseCommit, participant.OutcomeCommitted)
	if n := ask[int](t, db, `SELECT balance FROM account WHERE id = 1`); n != 90 {
		t.Errorf("balance %d, want 90", n)
	}
	for answer, want := range map[string]float64{"executed": 4, participant.ReasonBranchEnded: 1} {
		if n := testutil.ToFloat64(a.metrics.executes.WithLabelValues(answer)); n != want {
			t.Errorf("%v executes answered %s, want %v", n, answer, want)
		}
	}
	// In one phase, and with nothing left to do.
	id = newID()
	r.mustExecute(t, executeCall(id, op(take5)), `{"statements":[{"row_count":1}]}`)
	c := prepareRest(id, 1, op(take5))
	c.OnePhase = true
	vote(t, a, c, "yes", "")
	if n := ask[int](t, db, `SELECT balance FROM account WHERE id = 1`); n != 85 {
		t.Errorf("balance %d, want 85", n)
	}
}

// A branch that only read needs no commit, however it read; one that wrote does.
func executesReads(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, nil), open(t, dsn)
	r := a.resource()
	do(t, db, `CREATE FUNCTION spend() RETURNS bigint LANGUAGE sql AS 'UPDATE account SET balance = balance - 7 WHERE id = 1 RETURNING balance'`)
	spend := op(`{"sql":"SELECT spend() AS balance"}`)
	for i, c := range []struct {
		now, later []string
		vote       string
	}{
		{[]string{op(read1)}, nil, "read_only"},
		{[]string{op(read1), op(read1)}, []string{op(read1)}, "read_only"},
		{[]string{op(read1), spend, op(read1)}, nil, "yes"},
		{[]string{op(read1)}, []string{spend}, "yes"},
		{[]string{spend}, []string{op(read1)}, "yes"},
		{[]string{op(read1)}, []string{op(take5)}, "yes"},
		{[]string{op(take5)}, []string{op(read1)}, "yes"},
		{[]string{op(`{"sql":"SELECT balance FROM account WHERE id = 1 FOR UPDATE"}`)}, nil, "yes"}, // its lock is part of the work
	} {
		id := newID()
		for n := range c.now {
			if x, err := r.Execute(t.Context(), executeCall(id, c.now[:n+1]...)); err != nil || !x.Executed {
				t.Fatalf("%d: %+v, %v", i, x, err)
			}
		}
		all := append(append([]string{}, c.now...), c.later...)
		for range 2 {
			vote(t, a, prepareRest(id, len(c.now), all...), c.vote, "")
		}
		if c.vote == "yes" {
			finish(t, a, id, participant.PhaseCommit, participant.OutcomeCommitted)
		}
	}
	if n := ask[int](t, db, `SELECT balance FROM account WHERE id = 1`); n != 100-3*7-2*5 {
		t.Errorf("balance %d", n)
	}
	// A failed attempt to write leaves no trace in what the branch is.
	id := newID()
	r.mustExecute(t, executeCall(id, op(read1)), fmt.Sprintf(rows1, 69))
	vote(t, a, prepareRest(id, 1, op(read1), op(read1)), "read_only", "")
}

// What the server says against a statement refuses the branch, for good.
func executeRefusals(t *testing.T, b *bed) {
	dsn := b.database(t)
	patient, db := start(t, dsn, nil), open(t, dsn)
	hasty := start(t, dsn, func(c *Config) { c.StatementTimeout = time.Second })
	const endless = `{"sql":"SELECT pg_sleep(60)"}`
	for payload, want := range map[string]struct{ reason, message string }{
		`1`: {participant.ReasonExecutionRefused, "the payload is not"},
		op(`{"sql":"UPDATE account SET balance = -1 WHERE id = 1"}`):                    {participant.ReasonExecutionRefused, "23514"},
		op(`{"sql":"UPDATE account SET note = 'x' WHERE id = 99","expect":{"rows":1}}`): {participant.ReasonExecutionRefused, "expected 1 rows, got 0"},
		op(`{"sql":"SELECT 1","expect":{"rows":2}}`):                                    {participant.ReasonExecutionRefused, "expected 2 rows, got 1"},
		op(`{"sql":"COMMIT"}`):                                   {participant.ReasonExecutionRefused, "begins and ends"},
		op(`{"sql":"SELECT 1; COMMIT"}`):                         {participant.ReasonExecutionRefused, "42601"},
		op(`{"sql":"SELECT i FROM generate_series(1, 2000) i"}`): {participant.ReasonExecutionRefused, "returns more than"},
		op(endless): {participant.ReasonExecutionConflict, "57014"},
		op(`{"sql":"SELECT set_config('transaction_read_only', 'off', true)"}`, read1, `{"sql":"SELECT 1/0"}`): {participant.ReasonExecutionRefused, ""},
	} {
		for _, before := range []bool{false, true} {
			a, id, ops := patient, newID(), []string{payload}
			if payload == op(endless) {
				a = hasty
			}
			r := a.resource()
			if before {
				ops = []string{op(take5), payload}
				r.mustExecute(t, executeCall(id, ops[0]), `{"statements":[{"row_count":1}]}`)
			}
			for range 2 {
				r.mustRefuse(t, executeCall(id, ops...), want.reason, want.message)
			}
			vote(t, a, prepareRest(id, 1, op(take5)), "no", want.reason)
			vote(t, start(t, dsn, nil), prepareRest(id, 1, op(take5)), "no", want.reason)
			finish(t, a, id, participant.PhaseRollback, participant.OutcomeRolledBack)
		}
	}
	left := patient.part.OpenBranches() + hasty.part.OpenBranches()
	if n := ask[int](t, db, `SELECT balance FROM account WHERE id = 1`); n != 100 || prepared(t, db) != 0 || left != 0 {
		t.Errorf("balance %d, %d prepared, %d open", n, prepared(t, db), left)
	}
}

// A wait for a row that is too long is refused, and may be tried again in a new
// transaction; what the branch held is free.
func executeLocks(t *testing.T, b *bed) {
	dsn := b.database(t)
	a := start(t, dsn, func(c *Config) { c.LockTimeout, c.Isolation = 50*time.Millisecond, "read committed" })
	r := a.resource()
	holder, waiter := newID(), newID()
	other := op(`{"sql":"UPDATE account SET balance = balance - 5 WHERE id = 2"}`)
	r.mustExecute(t, executeCall(holder, op(take5)), `{"statements":[{"row_count":1}]}`)
	r.mustExecute(t, executeCall(waiter, other), `{"statements":[{"row_count":1}]}`)
	r.mustRefuse(t, executeCall(waiter, other, op(take5)), participant.ReasonExecutionConflict, "55P03")
	third := newID()
	r.mustExecute(t, executeCall(third, other), `{"statements":[{"row_count":1}]}`)
	for _, id := range []string{holder, third} {
		finish(t, a, id, participant.PhaseRollback, participant.OutcomeRolledBack)
	}
}

// The session of an open branch dies: the branch says so, and nothing of it stays.
func executeSessionKilled(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, nil), open(t, dsn)
	r := a.resource()
	kill := func() {
		t.Helper()
		eventually(t, func() error { // one that was killed before is gone a moment after it has said so
			if n := ask[int](t, db, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'`); n != 1 {
				return fmt.Errorf("%d sessions are in a transaction", n)
			}
			return nil
		})
		if n := ask[int](t, db, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND state = 'idle in transaction' AND pid <> pg_backend_pid()`); n != 1 {
			t.Fatalf("%d sessions are in a transaction", n)
		}
	}
	for _, deferred := range []bool{false, true} {
		id, ops := newID(), []string{op(take5)}
		r.mustExecute(t, executeCall(id, ops...), `{"statements":[{"row_count":1}]}`)
		kill()
		if deferred {
			ops = append(ops, op(take5))
		}
		for range 2 {
			vote(t, a, prepareRest(id, 1, ops...), "no", participant.ReasonExecutionLost)
		}
		finish(t, a, id, participant.PhaseRollback, participant.OutcomeRolledBack)
	}
	id := newID()
	r.mustExecute(t, executeCall(id, op(take5)), `{"statements":[{"row_count":1}]}`)
	kill()
	r.mustRefuse(t, executeCall(id, op(take5), op(read1)), participant.ReasonExecutionLost, "")
	r.mustRefuse(t, executeCall(id, op(take5)), participant.ReasonExecutionLost, "")
	id = newID()
	r.mustExecute(t, executeCall(id, op(take5)), `{"statements":[{"row_count":1}]}`)
	kill()
	finish(t, a, id, participant.PhaseRollback, participant.OutcomeRolledBack)
	if n := ask[int](t, db, `SELECT balance FROM account WHERE id = 1`); n != 100 || prepared(t, db) != 0 || a.part.OpenBranches() != 0 {
		t.Errorf("balance %d, %d prepared, %d open", n, prepared(t, db), a.part.OpenBranches())
	}
}

// The agent is started anew between execute and prepare.
func executeAgentRestarts(t *testing.T, b *bed) {
	dsn := b.database(t)
	db := open(t, dsn)
	id := newID()
	a := start(t, dsn, nil)
	x := a.resource().mustExecute(t, executeCall(id, op(take5)), `{"statements":[{"row_count":1}]}`)
	a.Close()
	a = start(t, dsn, nil)
	late := executeCall(id, op(take5)) // a duplicate that was on its way begins a new transaction,
	a.resource().mustExecute(t, late, `{"statements":[{"row_count":1}]}`)
	c := prepareRest(id, 1, op(take5)) // but it is not the one whose results the client has seen
	c.Execution = x.ID
	vote(t, a, c, "no", participant.ReasonExecutionLost)
	id = newID()
	a.resource().mustExecute(t, executeCall(id, op(take5)), `{"statements":[{"row_count":1}]}`)
	a.Close()
	a = start(t, dsn, nil)
	vote(t, a, prepareRest(id, 1, op(take5), op(read1)), "no", participant.ReasonExecutionLost)
	if n := ask[int](t, db, `SELECT balance FROM account WHERE id = 1`); n != 100 || prepared(t, db) != 0 {
		t.Errorf("balance %d, %d prepared", n, prepared(t, db))
	}
}

// Open branches leave connections to those that end branches, and are closed by
// themselves.
func executeLimits(t *testing.T, b *bed) {
	dsn := b.database(t)
	const idle = 10 * time.Second // longer than the calls take that find branches open
	a := start(t, dsn, func(c *Config) { c.MaxConns, c.MaxOpenBranches, c.OpenIdle = 4, 100, idle })
	r := a.resource()
	for i := range 2 {
		r.mustExecute(t, executeCall(newID(), op(fmt.Sprintf(`{"sql":"UPDATE account SET note = 'open' WHERE id = %d"}`, i+1))), `{"statements":[{"row_count":1}]}`)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if x, err := r.Execute(ctx, executeCall(newID(), op(read1))); !errors.Is(err, participant.ErrOverloaded) {
		t.Errorf("one more than half of the connections: %+v, %v", x, err)
	}
	id := newID()
	vote(t, a, prepareCall(id, op(`{"sql":"UPDATE account SET note = 'plain' WHERE id = 3"}`)), "yes", "")
	finish(t, a, id, participant.PhaseCommit, participant.OutcomeCommitted)
	eventually(t, func() error {
		if n := a.part.OpenBranches(); n != 0 {
			return fmt.Errorf("%d branches are open", n)
		}
		return nil
	})
	r.mustExecute(t, executeCall(newID(), op(read1)), fmt.Sprintf(rows1, 100))
}

// Over HTTP, as the coordinator calls.
func executeOverHTTP(t *testing.T, b *bed) {
	a := start(t, b.database(t), nil)
	if url := a.registration().HTTP.Execute; url != "http://127.0.0.1:2/assent/execute" {
		t.Errorf("registered with %q", url)
	}
	server := httptest.NewServer(a.Handler())
	t.Cleanup(server.Close)
	c := executeCall(newID(), op(read1))
	body := fmt.Sprintf(`{"transaction":%q,"cluster":%q,"branch":1,"service":"bank","phase":"execute","attempt":1,"term":1,"token":"","shard":0,"shards":1,`+
		`"first":0,"operations":[{"payload":%s}],"count":1,"digest":%q}`, c.Transaction, cluster, c.Operations[0], c.Digest)
	resp, err := server.Client().Post(server.URL+"/execute", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer strings.Builder
	if err := resp.Write(&answer); err != nil || resp.StatusCode != 200 || !strings.Contains(answer.String(), `"executed":true,"execution":"`) || !strings.Contains(answer.String(), `"rows":[{"balance":100}]`) {
		t.Errorf("%s, %v", answer.String(), err)
	}
}

// Wherever the connection of an open branch breaks, the branch ends as its vote says:
// all that was executed and deferred is there, or nothing.
func executeConnectionsCut(t *testing.T, b *bed) {
	dsn := b.database(t)
	db := open(t, dsn)
	proxy := newCutter(t, fmt.Sprintf("127.0.0.1:%d", b.Port))
	through := strings.Replace(dsn, fmt.Sprint(":", b.Port, "/"), fmt.Sprint(":", proxy.Addr().(*net.TCPAddr).Port, "/"), 1)
	a := start(t, through, func(c *Config) { c.MaxConns = 2 })
	r := a.resource()
	vote(t, a, prepareCall(newID(), op(read1)), "read_only", "")
	lost, votes := 0, map[string]int{} // of those whose connection broke
	for cuts, after := 0, int64(1); ; cuts, after = cuts+1, after+41 {
		id := newID()
		put := op(`{"sql":"INSERT INTO effect (marker) VALUES ($1)","args":["` + id + `"],"expect":{"rows":1}}`)
		proxy.after.Store(after)
		felt := false
		until := func(call func() (definite bool, err error)) {
			t.Helper()
			for end := time.Now().Add(deadline); ; {
				definite, err := call()
				if definite {
					return
				}
				if time.Now().After(end) {
					t.Fatalf("cut after %d bytes: %v", after, err)
				}
				felt = true
				proxy.after.Store(1 << 60)
			}
		}
		refused := false
		for n := 1; n <= 2 && !refused; n++ {
			until(func() (bool, error) {
				x, err := r.Execute(t.Context(), executeCall(id, []string{put, put}[:n]...))
				refused = err == nil && !x.Executed
				if refused && x.Reason != participant.ReasonExecutionLost {
					t.Fatalf("cut after %d bytes: %+v", after, x)
				}
				return err == nil, err
			})
		}
		c := prepareRest(id, 2, put, put, put)
		c.OnePhase = cuts%2 == 1
		var v participant.Vote
		until(func() (_ bool, err error) {
			v, err = a.Resource().Prepare(t.Context(), c)
			return err == nil, err
		})
		phase, outcome, want := participant.PhaseRollback, participant.OutcomeRolledBack, 0
		if v.Vote == "yes" {
			phase, outcome, want = participant.PhaseCommit, participant.OutcomeCommitted, 3
		}
		if refused && v.Vote != "no" {
			t.Fatalf("cut after %d bytes: refused, then voted %+v", after, v)
		}
		until(func() (bool, error) {
			o, err := a.Resource().Finish(t.Context(), finishCall(id, phase))
			if err == nil && o != outcome {
				t.Fatalf("cut after %d bytes: %s ended as %s", after, phase, o)
			}
			return err == nil, err
		})
		if n := ask[int](t, db, `SELECT count(*) FROM effect WHERE marker = $1`, id); n != want {
			t.Fatalf("cut after %d bytes: voted %s, %d effects", after, v.Vote, n)
		}
		if left := proxy.after.Load(); left > 0 && left < 1<<59 { // it got through uncut
			break
		}
		if felt || refused || v.Vote == "no" {
			lost++
		}
		votes[v.Vote]++
	}
	if lost < 10 || votes["yes"] == 0 || votes["no"] == 0 || prepared(t, db) != 0 || a.part.OpenBranches() != 0 {
		t.Errorf("%d cuts were felt, votes %v, %d transactions are left prepared, %d open", lost, votes, prepared(t, db), a.part.OpenBranches())
	}
	t.Logf("%d cuts were felt, votes %v", lost, votes)
}
