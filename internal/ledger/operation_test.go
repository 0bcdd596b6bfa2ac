package ledger

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/assent-tx/assent/internal/pgtest"
	"github.com/assent-tx/assent/participant"
)

func TestOperations(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) {
		l, err := Open(t.TempDir(), "bank", 3, 100, nil)
		operations(t, l, err)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		l, err := OpenPostgreSQL(pgtest.Start(t).DSN("postgres"), "bank", 3, 100, nil)
		operations(t, l, err)
	})
}

// call is a call of a transaction that executes its first operations and carries the
// others.
func call(phase participant.Phase, tx string, executed int, ops ...string) *participant.Call {
	c := &participant.Call{Phase: phase, Transaction: tx, Branch: 1, Service: "bank", Term: 1}
	for _, op := range ops {
		c.Operations = append(c.Operations, json.RawMessage(op))
	}
	c.Digest = participant.Digest(c.Operations)
	c.Operations = c.Operations[executed:]
	c.Count = len(c.Operations)
	return c
}

func operations(t *testing.T, l *Ledger, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	ids := 0
	// run executes now operations, prepares the others and ends the branch, and
	// returns all results in one line, with the vote before those of the prepare.
	run := func(end participant.Phase, now int, ops ...string) string {
		t.Helper()
		tx := newID().String()
		ids++
		var out []string
		for i := range now {
			c := call(participant.PhaseExecute, tx, i, ops[:i+1]...)
			c.First = i
			x, err := l.part.Execute(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			if !x.Executed {
				return strings.Join(append(out, x.Reason+": "+x.Message), " ")
			}
			out = append(out, fmt.Sprintf("%s", x.Results))
		}
		c := call(participant.PhasePrepare, tx, now, ops...)
		c.Executed = now
		v, err := l.part.Prepare(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, v.Vote, fmt.Sprintf("%s", v.Results)+v.Reason)
		if _, err := l.part.Finish(t.Context(), call(end, tx, 0)); v.Vote != "read_only" && err != nil {
			t.Fatal(err)
		}
		return strings.Join(out, " ")
	}
	const commit, rollback = participant.PhaseCommit, participant.PhaseRollback
	post := func(account, amount int) string {
		return fmt.Sprintf(`{"transfer":"t%d-%d-%d","account":%d,"amount":%d}`, ids, account, amount, account, amount)
	}
	read, list := `{"op":"read","account":1}`, `{"op":"list","key":"k"}`
	add := func(v int) string { return fmt.Sprintf(`{"op":"append","key":"k","value":%d}`, v) }
	for i, c := range []struct{ got, want string }{
		{run(commit, 0, read, list), `read_only [{"account":1,"balance":100} {"key":"k","values":[]}]`},
		{run(commit, 2, read, list), `[{"account":1,"balance":100}] [{"key":"k","values":[]}] read_only []`},
		// What a branch did it sees, in the order in which it did it.
		{run(rollback, 4, post(1, -30), post(1, 50), read, list, add(1), list), `[{"account":1,"balance":70}] [{"account":1,"balance":120}] ` +
			`[{"account":1,"balance":120}] [{"key":"k","values":[]}] yes [null {"key":"k","values":[1]}]`},
		{run(commit, 0, read, list), `read_only [{"account":1,"balance":100} {"key":"k","values":[]}]`},
		{run(commit, 1, add(2), add(1)), `[null] yes [null]`},
		{run(commit, 2, add(3), list, add(4), list, post(1, 5)), `[null] [{"key":"k","values":[2,1,3]}] yes [null {"key":"k","values":[2,1,3,4]} {"account":1,"balance":105}]`},
		{run(rollback, 1, add(9), list), `[null] yes [{"key":"k","values":[2,1,3,4,9]}]`},
		{run(commit, 1, list, read), `[{"key":"k","values":[2,1,3,4]}] read_only [{"account":1,"balance":105}]`},
		{run(commit, 1, `{"op":"list","key":"other"}`), `[{"key":"other","values":[]}] read_only []`},
		{run(commit, 1, `{"op":"read","account":9}`), `EXECUTION_REFUSED: account 9 does not exist`},
		{run(commit, 1, post(1, -1000)), `EXECUTION_REFUSED: account 1 does not exist or does not hold 1000`},
		{run(rollback, 0, `{"op":"append","value":1}`), `no []append needs a key`},
		{run(rollback, 0, `{"op":"sell"}`), `no []unknown op "sell"`},
		{run(rollback, 1, add(5), `{"op":"list"}`), `[null] no []list needs a key`},
		{run(commit, 0, list), `read_only [{"key":"k","values":[2,1,3,4]}]`},
	} {
		if c.got != c.want {
			t.Errorf("%d: %s\nwant %s", i, c.got, c.want)
		}
	}
	for _, table := range []string{"hold", "pending"} {
		var n int
		if err := l.db.QueryRow(`SELECT COUNT(*) FROM ` + table).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d rows in %s, %v", n, table, err)
		}
	}
}
