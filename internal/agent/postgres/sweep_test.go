package postgres

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/assent-tx/assent/participant"
)

// fakeCoordinator answers for transactions what a test tells it to.
type fakeCoordinator struct {
	mu     sync.Mutex
	states map[string]string // "": unknown
	asked  []string
	puts   int
	gone   bool
}

func (f *fakeCoordinator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	refuse := func(status int, reason string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"code":5,"message":"no","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":%q}]}`, reason)
	}
	if strings.HasPrefix(r.URL.Path, "/v1/services/") {
		if r.Method == http.MethodPut {
			f.puts++
			f.gone = false
			fmt.Fprint(w, `{}`)
		} else if f.gone {
			refuse(404, "NOT_FOUND")
		} else {
			fmt.Fprint(w, `{"state":"active","http":{"prepare":"elsewhere"}}`)
		}
		return
	}
	id, rollback := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/v1/transactions/"), "/rollback")
	f.asked = append(f.asked, r.Method+" "+id)
	state := f.states[id]
	switch {
	case state == "" && rollback:
		f.states[id] = "aborted"
		fmt.Fprint(w, `{"state":"aborted"}`)
	case state == "":
		refuse(404, "NOT_FOUND")
	case state == "expired":
		refuse(410, "ID_EXPIRED")
	case state == "failing":
		refuse(503, "NOT_READY")
	default:
		fmt.Fprintf(w, `{"state":%q}`, state)
	}
}

// The sweep ends what the coordinator says has aborted, and only after it has said
// so in two looks.
func sweeps(t *testing.T, b *bed) {
	dsn := b.database(t)
	f := &fakeCoordinator{states: map[string]string{}}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	a := start(t, dsn, func(c *Config) {
		c.CoordinatorURL, c.OrphanAfter, c.WarnAfter = "http://127.0.0.1:1,"+srv.URL, time.Nanosecond, time.Nanosecond
	})
	db := open(t, dsn)
	ids := map[string]string{}
	account := 0
	for _, state := range []string{"", "active", "preparing", "committing", "aborting", "aborted", "committed", "expired", "failing"} {
		id := newID()
		ids[state] = id
		f.states[id] = state
		account++
		vote(t, a, prepareCall(id, op(fmt.Sprintf(`{"sql":"UPDATE account SET balance = 0 WHERE id = %d"}`, account))), "yes", "")
	}
	if err := a.sweep(t.Context()); err != nil || len(f.asked) != 0 {
		t.Fatalf("the first look asked %v, %v", f.asked, err)
	}
	if err := a.sweep(t.Context()); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a coordinator that is not ready: %v", err)
	}
	left := map[string]bool{}
	for _, doubt := range must(a.part.InDoubt(t.Context(), "", 0, 100)) {
		left[doubt.Transaction] = true
	}
	for state, id := range ids {
		if gone := state == "" || state == "aborted"; left[id] == gone {
			t.Errorf("%q: still prepared: %v", state, left[id])
		}
	}
	// An orphan cannot come back: its late prepare is refused.
	vote(t, a, prepareCall(ids[""], op(`{"sql":"UPDATE account SET balance = 0 WHERE id = 1"}`)), "no", "")
	if n := ask[int](t, db, `SELECT balance FROM account WHERE id = 1`); n != 100 {
		t.Errorf("the orphan had an effect: %d", n)
	}
	m := a.metrics
	if o, h, p := testutil.ToFloat64(m.orphans), testutil.ToFloat64(m.hazards), testutil.ToFloat64(m.prepared); o != 2 || h != 2 || p != 9 {
		t.Errorf("%v orphans, %v hazards, %v prepared; want 2, 2, 9", o, h, p)
	}
	for state, id := range ids {
		if left[id] {
			finish(t, a, id, participant.PhaseRollback, participant.OutcomeRolledBack)
		}
		_ = state
	}
}

// Prepared transactions of others are neither listed nor touched.
func foreign(t *testing.T, b *bed) {
	dsn := b.database(t)
	f := &fakeCoordinator{states: map[string]string{}}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	a := start(t, dsn, func(c *Config) { c.CoordinatorURL, c.OrphanAfter = srv.URL, time.Nanosecond })
	db := open(t, dsn)
	vote(t, a, prepareCall(newID(), op(take5)), "yes", "")
	gids := []string{
		"app-1", "", "assent:", "assent:" + strings.Repeat("0", 32) + ":" + newID() + ":1:0123456789abcdef", // another cluster's
		"assent:" + cluster + ":" + newID() + ":1:XYZ", "assent:" + cluster + ":not-an-id:1:0123456789abcdef",
	}
	for i, gid := range gids {
		do(t, db, fmt.Sprintf(`BEGIN; UPDATE account SET note = 'theirs' WHERE id = %d; PREPARE TRANSACTION '%s'`, 2+i, gid))
	}
	for range 3 {
		if err := a.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := prepared(t, db); n != len(gids) { // our own orphan is gone
		t.Errorf("%d are prepared, want the %d foreign ones", n, len(gids))
	}
	for _, gid := range gids {
		do(t, db, fmt.Sprintf(`ROLLBACK PREPARED '%s'`, gid))
	}
}

// A person ended the branch: the coordinator hears it, and it is no success.
func endedByHand(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, nil), open(t, dsn)
	for _, c := range []struct {
		byHand string
		phase  participant.Phase
		want   participant.Outcome
	}{
		{"ROLLBACK", participant.PhaseCommit, participant.OutcomeUnknown},
		{"COMMIT", participant.PhaseRollback, participant.OutcomeCommitted},
		{"COMMIT", participant.PhaseCommit, participant.OutcomeCommitted},
		{"ROLLBACK", participant.PhaseRollback, participant.OutcomeRolledBack},
	} {
		id := newID()
		vote(t, a, prepareCall(id, op(take5)), "yes", "")
		do(t, db, c.byHand+` PREPARED '`+ask[string](t, db, `SELECT gid FROM pg_prepared_xacts WHERE gid LIKE '%'||$1||'%'`, id)+`'`)
		finish(t, a, id, c.phase, c.want)
	}
}

func keepsRegistered(t *testing.T, b *bed) {
	f := &fakeCoordinator{states: map[string]string{}, gone: true}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	minority := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	t.Cleanup(minority.Close)
	a := start(t, b.database(t), func(c *Config) { c.CoordinatorURL = "http://127.0.0.1:1," + minority.URL + "," + srv.URL })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	eventually(t, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.puts == 0 {
			return errors.New("never registered")
		}
		return nil
	})
	if participant.IsRegistered(t.Context(), a.coord.nodes, a.cfg.Service, a.registration()) { // the fake tells of other endpoints
		t.Error("a registration with other endpoints is taken for ours")
	}
	f.mu.Lock()
	f.gone = true
	f.mu.Unlock()
	if participant.IsRegistered(t.Context(), a.coord.nodes, a.cfg.Service, a.registration()) {
		t.Error("a missing registration is taken for ours")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	srv.Close()
	if !participant.IsRegistered(t.Context(), a.coord.nodes, a.cfg.Service, a.registration()) {
		t.Error("a coordinator that is away makes the agent register again and again")
	}
}
