package rmhttp

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"net/http/httptest"
	"path/filepath"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/assent-tx/assent/internal/rm"
	"github.com/assent-tx/assent/internal/txnid"
	"github.com/assent-tx/assent/participant"
)

// scripted votes as its payload says.
type scripted struct{}

func (scripted) Prepare(_ context.Context, _ *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
	if b.Executed == len(b.Operations) {
		return nil, nil
	}
	switch string(b.Operations[b.Executed]) {
	case `"no"`:
		return nil, participant.No("told to")
	case `"read"`:
		return []json.RawMessage{[]byte(`42`)}, participant.ReadOnly
	}
	return []json.RawMessage{[]byte(`{"got": 1}`)}, nil
}

func (scripted) Execute(_ context.Context, _ *sql.Tx, b participant.Branch) (json.RawMessage, error) {
	if op := string(b.Operations[b.Executed]); op != `"no"` {
		return json.RawMessage(`{"did": ` + op + `}`), nil
	}
	return nil, participant.No("told to")
}

func (scripted) Commit(context.Context, *sql.Tx, participant.Branch) error   { return nil }
func (scripted) Rollback(context.Context, *sql.Tx, participant.Branch) error { return nil }

// Coordinator's side and SDK, which share no code, understand each other.
func TestSpeaksWithTheSDK(t *testing.T) {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "a.db")+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	p, err := participant.New(context.Background(), participant.Config{Service: "ledger", DB: db, Dialect: participant.SQLite(), Handler: scripted{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	server := httptest.NewServer(p.Handler())
	t.Cleanup(server.Close)
	cl := newClient(t, Config{})

	var n byte
	fresh := func(payload string) func(rm.Phase) *rm.Call {
		n++
		id := txnid.New(1764000000000, [10]byte{n, n, 9: n})
		return func(phase rm.Phase) *rm.Call {
			c := call(phase)
			c.Txn, c.Shards, c.Shard = id, 7, id.Shard(7)
			c.Forgotten = txnid.Floor(1763000000000)
			c.Operations = [][]byte{[]byte(payload)}
			c.Digest = sha256.Sum256([]byte(payload))
			return c
		}
	}
	steps := func(of func(rm.Phase) *rm.Call, phasesAndAnswers ...any) {
		t.Helper()
		for i := 0; i < len(phasesAndAnswers); i += 2 {
			phase := phasesAndAnswers[i].(rm.Phase)
			if r := ask(t, cl, of(phase), at(server.URL)); show(r) != phasesAndAnswers[i+1] {
				t.Errorf("step %d, %s: %s (%s), want %s", i/2, phase, show(r), r.Reason, phasesAndAnswers[i+1])
			}
		}
	}
	steps(fresh(`"yes"`), rm.Status, "known unknown", rm.Prepare, `yes {"got":1}`, rm.Status, "known prepared",
		rm.Commit, "done", rm.Commit, "done", rm.Prepare, `yes {"got":1}`, rm.Rollback, "contradicts committed", rm.Status, "known committed")
	steps(fresh(`"yes"`), rm.Prepare, `yes {"got":1}`, rm.Rollback, "done", rm.Prepare, "no the branch was rolled back",
		rm.Commit, "contradicts rolled_back", rm.Status, "known rolled_back")
	steps(fresh(`"no"`), rm.Prepare, "no told to", rm.Rollback, "done", rm.Prepare, "no told to")
	steps(fresh(`"read"`), rm.Prepare, "read_only 42", rm.Prepare, "read_only 42")
	steps(fresh(`"yes"`), rm.Commit, "contradicts unknown", rm.Rollback, "done", rm.Rollback, "done")
	one := fresh(`"yes"`)
	steps(func(phase rm.Phase) *rm.Call {
		c := one(phase)
		c.OnePhase = phase == rm.Prepare
		return c
	}, rm.Prepare, `yes {"got":1}`, rm.Status, "known committed", rm.Prepare, `yes {"got":1}`)

	forged := fresh(`"yes"`)(rm.Prepare)
	forged.Digest[0]++
	if r := ask(t, cl, forged, at(server.URL)); r.Kind != rm.No {
		t.Errorf("wrong digest: %+v", r)
	}
	old := fresh(`"yes"`)
	steps(old, rm.Prepare, `yes {"got":1}`)
	stale := old(rm.Commit)
	stale.Term--
	if r := ask(t, cl, stale, at(server.URL)); r.Kind != rm.Indefinite {
		t.Errorf("older term: %+v", r)
	}

	// Two executes, the second twice, and a prepare with one more operation.
	var digest [32]byte
	next := func(c *rm.Call, payload string) *rm.Call {
		before := digest[:]
		if digest == [32]byte{} {
			before = nil
		}
		digest = sha256.Sum256(append(before[:len(before):len(before)], payload...))
		c.Operations, c.Digest = [][]byte{[]byte(payload)}, digest
		return c
	}
	branch := fresh(`"a"`)
	first := ask(t, cl, next(branch(rm.Execute), `"a"`), at(server.URL))
	if show(first) != `executed {"did":"a"}` || first.Execution == "" {
		t.Fatalf("%+v", first)
	}
	second := next(branch(rm.Execute), `"b"`)
	second.First, second.Execution = 1, first.Execution
	for range 2 {
		if r := ask(t, cl, second, at(server.URL)); show(r) != `executed {"did":"b"}` || r.Execution != first.Execution {
			t.Fatalf("%+v", r)
		}
	}
	last := next(branch(rm.Prepare), `"c"`)
	last.Executed, last.Execution = 2, first.Execution
	if r := ask(t, cl, last, at(server.URL)); show(r) != `yes {"got":1}` {
		t.Fatalf("%+v", r)
	}
	steps(branch, rm.Status, "known prepared", rm.Execute, "refused BRANCH_ENDED: the branch is prepared", rm.Commit, "done")
	digest = [32]byte{}
	branch = fresh("")
	if r := ask(t, cl, next(branch(rm.Execute), `"no"`), at(server.URL)); show(r) != "refused EXECUTION_REFUSED: told to" {
		t.Errorf("%+v", r)
	}
	all := next(branch(rm.Prepare), `"x"`)
	all.Operations, all.Executed = nil, 2
	if r := ask(t, cl, all, at(server.URL)); show(r) != "no EXECUTION_REFUSED: told to" || r.Lost() {
		t.Errorf("%+v", r)
	}
	if r := ask(t, cl, func() *rm.Call { c := fresh(`"x"`)(rm.Prepare); c.Executed = 1; return c }(), at(server.URL)); r.Kind != rm.No || !r.Lost() {
		t.Errorf("%+v", r)
	}
}
