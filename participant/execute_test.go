package participant_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assent-tx/assent/participant"
)

// executeCall is an execute of the payloads behind the first ones.
func executeCall(id string, first int, payloads ...string) *participant.Call {
	c := prepareCall(id, payloads...)
	c.Phase, c.First, c.Operations = participant.PhaseExecute, first, c.Operations[first:]
	c.Count = len(c.Operations)
	return c
}

// prepareRest is a prepare of the payloads behind those that were executed.
func prepareRest(id string, executed int, payloads ...string) *participant.Call {
	c := prepareCall(id, payloads...)
	c.Executed, c.Operations = executed, c.Operations[executed:]
	c.Count = len(c.Operations)
	return c
}

func execute(t *testing.T, p *participant.Participant, c *participant.Call, results ...string) participant.Execution {
	t.Helper()
	x, err := p.Execute(t.Context(), of(c))
	if err != nil || !x.Executed || fmt.Sprintf("%s", x.Results) != fmt.Sprint(results) {
		t.Fatalf("executed %+v, %v; want %s", x, err, results)
	}
	return x
}

func refuses(t *testing.T, p *participant.Participant, c *participant.Call, reason string, retryable bool) {
	t.Helper()
	x, err := p.Execute(t.Context(), of(c))
	if err != nil || x.Executed || x.Reason != reason || x.Retryable != retryable {
		t.Fatalf("executed %+v, %v; want it refused with %s, retryable %t", x, err, reason, retryable)
	}
}

// executor is a handler that also executes.
type executor struct {
	handler
	execute func(context.Context, *sql.Tx, participant.Branch) (json.RawMessage, error)
}

func (e executor) Execute(ctx context.Context, tx *sql.Tx, b participant.Branch) (json.RawMessage, error) {
	return e.execute(ctx, tx, b)
}

// entry writes what it is told to, as if it were the work.
func entry(ctx context.Context, tx *sql.Tx, b participant.Branch, account string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO entry VALUES ('`+b.Transaction+`', 1, '`+account+`', 1)`)
	return err
}

// scripted executes and prepares what the payload says.
func scripted(say func(ctx context.Context, tx *sql.Tx, b participant.Branch, word string) (json.RawMessage, error)) executor {
	return executor{
		handler: handler{prepare: func(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
			var results []json.RawMessage
			for _, op := range b.Operations[b.Executed:] {
				result, err := say(ctx, tx, b, strings.Trim(string(op), `"`))
				if err != nil {
					return results, err
				}
				results = append(results, result)
			}
			return results, nil
		}},
		execute: func(ctx context.Context, tx *sql.Tx, b participant.Branch) (json.RawMessage, error) {
			return say(ctx, tx, b, strings.Trim(string(b.Operations[b.Executed]), `"`))
		},
	}
}

// What fails without being a refusal is undone, and may be executed again; what was
// executed before stays.
func TestExecuteAgain(t *testing.T) {
	db := openLedger(t, ledgerFile(t))
	fails := true
	p := start(t, db, with(scripted(func(ctx context.Context, tx *sql.Tx, b participant.Branch, word string) (json.RawMessage, error) {
		if err := entry(ctx, tx, b, word); err != nil {
			return nil, err
		}
		switch {
		case word == "fail" && fails:
			return nil, errDisk
		case word == "rubbish" && fails:
			return json.RawMessage(`{`), nil
		}
		return json.RawMessage(`"` + word + `"`), nil
	})))
	for i, first := range []string{`"fail"`, `"rubbish"`, `"a"`} {
		tx := id(int64(i))
		all := []string{first, `"fail"`, `"rubbish"`, `"last"`}
		for n := range 3 {
			fails = true
			if bad := executeCall(tx, n, all[:n+1]...); all[n] != `"a"` {
				for range 2 {
					if x, err := p.Execute(t.Context(), of(bad)); err == nil {
						t.Fatalf("%+v", x)
					}
				}
			}
			fails = false
			execute(t, p, executeCall(tx, n, all[:n+1]...), all[n])
		}
		if v := vote(t, p, prepareRest(tx, 3, all...), "yes"); fmt.Sprintf("%s", v.Results) != `["last"]` {
			t.Errorf("results %s", v.Results)
		}
		if v := vote(t, p, prepareRest(tx, 3, all...), "yes"); fmt.Sprintf("%s", v.Results) != `["last"]` {
			t.Errorf("repeated results %s", v.Results)
		}
		if n := one(t, db, `SELECT count(*) FROM entry WHERE txn = ?`, tx); n != 4 {
			t.Errorf("%s: %d entries, want 4", first, n)
		}
		// All operations in their order are the branch's, in every phase.
		var got string
		if err := db.QueryRow(`SELECT operations FROM assent_outcome WHERE txn = ?`, tx).Scan(&got); err != nil || got != "["+strings.Join(all, ",")+"]" {
			t.Errorf("operations %s, %v", got, err)
		}
	}
	if n := p.OpenBranches(); n != 0 {
		t.Errorf("%d branches are open", n)
	}
}

// What others are in the way of is refused as such, and votes no like any refusal.
func TestConflict(t *testing.T) {
	p := start(t, openLedger(t, ledgerFile(t)), with(scripted(func(_ context.Context, _ *sql.Tx, _ participant.Branch, word string) (json.RawMessage, error) {
		if word == "taken" {
			return nil, fmt.Errorf("seat 7: %w", participant.Conflict("taken\x00 by another"))
		}
		return nil, nil
	})))
	for i, now := range [][]string{{`"taken"`}, {`"free"`, `"taken"`}} {
		tx := id(int64(i))
		if i == 1 {
			execute(t, p, executeCall(tx, 0, now[0]), "null")
		}
		for range 2 {
			refuses(t, p, executeCall(tx, len(now)-1, now...), participant.ReasonExecutionConflict, true)
		}
		if v := vote(t, p, prepareRest(tx, len(now), now...), "no"); v.Reason != "EXECUTION_CONFLICT: taken\uFFFD by another" {
			t.Errorf("%+v", v)
		}
	}
	if v := vote(t, p, prepareCall(id(3), `"taken"`), "no"); v.Reason != "taken\uFFFD by another" {
		t.Errorf("%+v", v)
	}
}

// However calls group the operations, each is executed once.
func TestExecuteInOtherGroups(t *testing.T) {
	db := openLedger(t, ledgerFile(t))
	p := start(t, db, with(scripted(func(ctx context.Context, tx *sql.Tx, b participant.Branch, word string) (json.RawMessage, error) {
		return json.RawMessage(`"` + word + `"`), entry(ctx, tx, b, word)
	})))
	tx, all := id(1), []string{`"a"`, `"b"`, `"c"`, `"d"`, `"e"`}
	for _, c := range []struct{ from, to int }{{0, 2}, {2, 3}, {0, 3}, {1, 2}, {1, 4}, {0, 5}, {4, 5}} {
		execute(t, p, executeCall(tx, c.from, all[:c.to]...), all[c.from:c.to]...)
	}
	vote(t, p, prepareRest(tx, 5, all...), "yes")
	if n := one(t, db, `SELECT count(*) FROM entry`); n != 5 {
		t.Errorf("%d entries", n)
	}
	tx = id(2)
	execute(t, p, executeCall(tx, 0, all[:2]...), all[:2]...)
	refuses(t, p, executeCall(tx, 0, `"b"`, `"a"`, `"c"`), participant.ReasonExecutionMismatch, false)
	if n := one(t, db, `SELECT count(*) FROM entry`); n != 5 {
		t.Errorf("%d entries", n)
	}
}

// A panic in the work costs the branch, and nobody else anything.
func TestExecutePanics(t *testing.T) {
	db := openLedger(t, ledgerFile(t))
	p := start(t, db, with(scripted(func(ctx context.Context, tx *sql.Tx, b participant.Branch, word string) (json.RawMessage, error) {
		if err := entry(ctx, tx, b, word); err != nil || word != "panic" {
			return nil, err
		}
		panic("told to")
	})))
	try := func(do func() error) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		t.Error(do())
	}
	for i, steps := range [][]string{{`"panic"`}, {`"a"`, `"panic"`}} {
		tx, n := id(int64(i)), len(steps)
		if n == 2 {
			execute(t, p, executeCall(tx, 0, steps[0]), "null")
		}
		try(func() error {
			_, err := p.Execute(t.Context(), of(executeCall(tx, n-1, steps...)))
			return err
		})
		v := vote(t, p, prepareRest(tx, n, steps...), "no")
		if !strings.HasPrefix(v.Reason, participant.ReasonExecutionLost) {
			t.Errorf("%+v", v)
		}
	}
	tx := id(9)
	execute(t, p, executeCall(tx, 0, `"a"`), "null")
	try(func() error {
		_, err := p.Prepare(t.Context(), of(prepareRest(tx, 1, `"a"`, `"panic"`)))
		return err
	})
	vote(t, p, prepareRest(tx, 1, `"a"`, `"panic"`), "no")
	if n := one(t, db, `SELECT count(*) FROM entry`); n != 0 {
		t.Errorf("%d entries", n)
	}
	if n := p.OpenBranches(); n != 0 {
		t.Errorf("%d branches are open", n)
	}
}

// A branch that nobody calls any more gives back what it holds, and says so later.
func TestOpenBranchExpires(t *testing.T) {
	db := openLedger(t, ledgerFile(t))
	p := start(t, db, func(c *participant.Config) { c.OpenIdle = 30 * time.Millisecond })
	tx := id(1)
	x := execute(t, p, executeCall(tx, 0, debit("a")), `{"free":99}`)
	eventuallyClosed(t, p)
	again := executeCall(tx, 0, debit("a"))
	refuses(t, p, again, participant.ReasonExecutionLost, true)
	again.Execution = x.ID
	refuses(t, p, again, participant.ReasonExecutionLost, true)
	if v := vote(t, p, prepareRest(tx, 1, debit("a")), "no"); !strings.HasPrefix(v.Reason, participant.ReasonExecutionLost) {
		t.Errorf("%+v", v)
	}
	finish(t, p, tx, participant.PhaseRollback, participant.OutcomeRolledBack)
	finish(t, p, tx, participant.PhaseRollback, participant.OutcomeRolledBack)
	tx = id(2) // the write lock is free
	vote(t, p, prepareCall(tx, debit("a")), "yes")
	finish(t, p, tx, participant.PhaseCommit, participant.OutcomeCommitted)
	if n := one(t, db, `SELECT balance FROM account WHERE name = 'a'`); n != 99 {
		t.Errorf("balance %d", n)
	}
}

func eventuallyClosed(t *testing.T, p *participant.Participant) {
	t.Helper()
	for end := time.Now().Add(deadline); p.OpenBranches() > 0; {
		if time.Now().After(end) {
			t.Fatal("branches stay open")
		}
		time.Sleep(time.Millisecond)
	}
}

// Work does not count as idle time.
func TestBusyBranchDoesNotExpire(t *testing.T) {
	const idle = time.Second // between two calls it is less
	db := openLedger(t, ledgerFile(t))
	p := start(t, db, func(c *participant.Config) {
		c.OpenIdle = idle
		c.Handler = scripted(func(ctx context.Context, tx *sql.Tx, b participant.Branch, word string) (json.RawMessage, error) {
			time.Sleep(idle * 3 / 2) // as long as slow statements
			return nil, entry(ctx, tx, b, word)
		})
	})
	tx := id(1)
	execute(t, p, executeCall(tx, 0, `"a"`), "null")
	execute(t, p, executeCall(tx, 1, `"a"`, `"b"`), "null")
	vote(t, p, prepareRest(tx, 2, `"a"`, `"b"`), "yes")
}

// The caller's end is not the branch's: its next try finds the results.
func TestExecuteOutlivesItsCaller(t *testing.T) {
	db := openLedger(t, ledgerFile(t))
	var runs atomic.Int32
	began, goOn := make(chan struct{}, 1), make(chan struct{})
	p := start(t, db, with(scripted(func(ctx context.Context, tx *sql.Tx, b participant.Branch, word string) (json.RawMessage, error) {
		runs.Add(1)
		began <- struct{}{}
		<-goOn
		return json.RawMessage(`"` + word + `"`), entry(ctx, tx, b, word)
	})))
	tx := id(1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := p.Execute(ctx, of(executeCall(tx, 0, `"a"`)))
		ended <- err
	}()
	<-began
	cancel()
	again := make(chan participant.Execution, 1)
	go func() {
		x, err := p.Execute(context.WithoutCancel(t.Context()), of(executeCall(tx, 0, `"a"`)))
		if err != nil {
			t.Error(err)
		}
		again <- x
	}()
	close(goOn)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if x := <-again; !x.Executed || string(x.Results[0]) != `"a"` || runs.Load() != 1 {
		t.Errorf("%+v after %d runs", x, runs.Load())
	}
	vote(t, p, prepareRest(tx, 1, `"a"`), "yes")
}

// A rollback does not wait for what runs, unless it comes from a deposed leader.
func TestRollbackEndsWhatRuns(t *testing.T) {
	db := openLedger(t, ledgerFile(t))
	began := make(chan struct{})
	p := start(t, db, with(scripted(func(ctx context.Context, tx *sql.Tx, b participant.Branch, word string) (json.RawMessage, error) {
		if err := entry(ctx, tx, b, word); err != nil || word != "hang" {
			return nil, err
		}
		close(began)
		<-ctx.Done()
		return nil, ctx.Err()
	})))
	tx := id(1)
	execute(t, p, executeCall(tx, 0, `"a"`), "null")
	ended := make(chan error, 1)
	go func() {
		_, err := p.Execute(context.WithoutCancel(t.Context()), of(executeCall(tx, 1, `"a"`, `"hang"`)))
		ended <- err
	}()
	<-began
	stale := of(finishCall(tx, participant.PhaseRollback))
	stale.Term = 0
	patience, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if o, err := p.Finish(patience, stale); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stale rollback: %s, %v", o, err)
	}
	if n := p.OpenBranches(); n != 1 {
		t.Fatalf("%d branches are open", n)
	}
	finish(t, p, tx, participant.PhaseRollback, participant.OutcomeRolledBack)
	if err := <-ended; !errors.Is(err, participant.ErrOverloaded) {
		t.Errorf("executed: %v", err)
	}
	refuses(t, p, executeCall(tx, 1, `"a"`, `"hang"`), participant.ReasonBranchEnded, false)
	finish(t, p, tx, participant.PhaseCommit, participant.OutcomeRolledBack)
	if n := one(t, db, `SELECT count(*) FROM entry`); n != 0 {
		t.Errorf("%d entries", n)
	}
}

func TestExecuteLimits(t *testing.T) {
	db := openLedger(t, ledgerFile(t))
	big := json.RawMessage(`"` + strings.Repeat("x", 200_000) + `"`)
	p := start(t, db, func(c *participant.Config) {
		c.MaxOpenBranches = 1
		c.Handler = scripted(func(_ context.Context, _ *sql.Tx, _ participant.Branch, word string) (json.RawMessage, error) {
			if word == "big" {
				return big, nil
			}
			return nil, nil
		})
	})
	first, second := id(1), id(2)
	execute(t, p, executeCall(first, 0, `"a"`), "null")
	if x, err := p.Execute(t.Context(), of(executeCall(second, 0, `"a"`))); !errors.Is(err, participant.ErrOverloaded) {
		t.Errorf("one more than the limit: %+v, %v", x, err)
	}
	vote(t, p, prepareRest(first, 1, `"a"`), "yes")
	execute(t, p, executeCall(second, 0, `"a"`), "null") // it was no refusal
	refuses(t, p, executeCall(second, 1, `"a"`, `"big"`, `"big"`, `"big"`), participant.ReasonExecutionLimit, false)
	vote(t, p, prepareRest(second, 1, `"a"`), "no")

	tx, all := id(3), []string{`"big"`}
	for n := 0; n < 20; n, all = n+1, append(all, `"big"`) {
		execute(t, p, executeCall(tx, n, all...), string(big))
	}
	refuses(t, p, executeCall(tx, 20, all...), participant.ReasonExecutionLimit, false)
	if n := p.OpenBranches(); n != 0 {
		t.Errorf("%d branches are open", n)
	}
}

// Commit before any yes is no success, and does not end the branch.
func TestCommitOfAnOpenBranchIsUnknown(t *testing.T) {
	p := start(t, openLedger(t, ledgerFile(t)), nil)
	tx := id(1)
	execute(t, p, executeCall(tx, 0, debit("a")), `{"free":99}`)
	finish(t, p, tx, participant.PhaseCommit, participant.OutcomeUnknown)
	vote(t, p, prepareRest(tx, 1, debit("a")), "yes")
	finish(t, p, tx, participant.PhaseCommit, participant.OutcomeCommitted)
}

// Without an Executor nothing is executed, whoever asks.
func TestExecuteUnsupported(t *testing.T) {
	p := start(t, openLedger(t, ledgerFile(t)), with(handler{}))
	if url := p.Registration("http://h").HTTP.Execute; url != "" {
		t.Errorf("registered with %q", url)
	}
	if url := start(t, openLedger(t, ledgerFile(t)), nil).Registration("http://h/").HTTP.Execute; url != "http://h/execute" {
		t.Errorf("registered with %q", url)
	}
	tx := id(1)
	refuses(t, p, executeCall(tx, 0, `1`), participant.ReasonExecuteUnsupported, false)
	if v := vote(t, p, prepareRest(tx, 1, `1`, `2`), "no"); !strings.HasPrefix(v.Reason, participant.ReasonExecutionLost) {
		t.Errorf("%+v", v)
	}
	finish(t, p, tx, participant.PhaseRollback, participant.OutcomeRolledBack)
	plain := struct{ participant.Resource }{p}
	body := fmt.Sprintf(`{"transaction":%q,"branch":1,"service":"ledger","phase":"execute","attempt":1,"term":1,"token":"","first":0,"operations":[{"payload":1}],"digest":%q}`,
		id(2), participant.Digest([]json.RawMessage{[]byte(`1`)}))
	for _, h := range []http.Handler{p.Handler(), participant.NewHandler("ledger", plain, participant.Limits{}, nil)} {
		if w := post(t, h, "/execute", body); w.Code != 200 || !strings.Contains(w.Body.String(), `"executed":false,"reason":"EXECUTE_UNSUPPORTED"`) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
}

// A caller that does not know what was executed and told before does not begin anew
// what is lost.
func TestOpenedBranchIsNotBegunAgain(t *testing.T) {
	file := ledgerFile(t)
	p := start(t, openLedger(t, file), nil)
	again := func(tx string) *participant.Call {
		c := executeCall(tx, 0, debit("a"))
		c.Opened, c.Term = true, 2
		return c
	}
	tx := id(1)
	execute(t, p, executeCall(tx, 0, debit("a")), `{"free":99}`)
	execute(t, p, again(tx), `{"free":99}`)
	p.Close()
	next := start(t, openLedger(t, file), nil)
	for range 2 {
		refuses(t, next, again(tx), participant.ReasonExecutionLost, true)
	}
	c := prepareRest(tx, 1, debit("a"))
	c.Term = 2
	vote(t, next, c, "no")
}

// Close rolls back what is open; nothing of it is found by the next process.
func TestCloseEndsOpenBranches(t *testing.T) {
	file := ledgerFile(t)
	db := openLedger(t, file)
	p := start(t, db, nil)
	tx := id(1)
	execute(t, p, executeCall(tx, 0, debit("a")), `{"free":99}`)
	p.Close()
	if x, err := p.Execute(t.Context(), of(executeCall(tx, 1, debit("a"), debit("a")))); !errors.Is(err, participant.ErrOverloaded) {
		t.Errorf("after Close: %+v, %v", x, err)
	}
	if n := p.OpenBranches(); n != 0 {
		t.Errorf("%d branches are open", n)
	}
	next := start(t, openLedger(t, file), nil)
	refuses(t, next, executeCall(tx, 1, debit("a"), debit("a")), participant.ReasonExecutionLost, true)
	vote(t, next, prepareRest(tx, 1, debit("a"), debit("a")), "no")
	if n := one(t, db, `SELECT count(*) FROM reservation`); n != 0 {
		t.Errorf("%d reservations", n)
	}
}

// A branch that only read may say so when it is prepared.
func TestReadOnlyAfterExecute(t *testing.T) {
	db := openLedger(t, ledgerFile(t))
	p := start(t, db, with(scripted(func(_ context.Context, _ *sql.Tx, _ participant.Branch, word string) (json.RawMessage, error) {
		if word == "end" {
			return json.RawMessage(`2`), participant.ReadOnly
		}
		return json.RawMessage(`1`), nil
	})))
	tx := id(1)
	execute(t, p, executeCall(tx, 0, `"read"`), "1")
	for range 2 {
		vote(t, p, prepareRest(tx, 1, `"read"`, `"end"`), "read_only")
	}
	finish(t, p, tx, participant.PhaseRollback, participant.OutcomeRolledBack)
}
