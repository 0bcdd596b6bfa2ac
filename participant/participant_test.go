package participant_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assent-tx/assent/discovery"
	"github.com/assent-tx/assent/participant"
)

const deadline = 20 * time.Second // for what must happen; never reached by a passing test

// id is a UUIDv7 at a time, with a random tail; floorID the least one.
func id(ms int64) string {
	var r [6]byte
	_, _ = rand.Read(r[:])
	return floorID(ms)[:24] + hex.EncodeToString(r[:])
}

func floorID(ms int64) string {
	x := fmt.Sprintf("%012x", ms)
	return x[:8] + "-" + x[8:] + "-7000-8000-000000000000"
}

func prepareCall(id string, payloads ...string) *participant.Call {
	c := &participant.Call{
		Phase: participant.PhasePrepare, Transaction: id, Branch: 1, Service: "ledger",
		Attempt: 1, Term: 1, Token: "1", Shards: 1, Count: len(payloads),
	}
	for _, p := range payloads {
		c.Operations = append(c.Operations, json.RawMessage(p))
	}
	c.Digest = participant.Digest(c.Operations)
	return c
}

func finishCall(id string, phase participant.Phase) *participant.Call {
	return &participant.Call{Phase: phase, Transaction: id, Branch: 1, Service: "ledger", Attempt: 1, Term: 1, Token: "1", Shards: 1}
}

func post(t *testing.T, h http.Handler, path string, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// handler is a participant.Handler of functions; nil ones succeed.
type handler struct {
	prepare          func(context.Context, *sql.Tx, participant.Branch) ([]json.RawMessage, error)
	commit, rollback func(context.Context, *sql.Tx, participant.Branch) error
}

func (h handler) Prepare(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
	if h.prepare == nil {
		return nil, nil
	}
	return h.prepare(ctx, tx, b)
}

func (h handler) Commit(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	if h.commit == nil {
		return nil
	}
	return h.commit(ctx, tx, b)
}

func (h handler) Rollback(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	if h.rollback == nil {
		return nil
	}
	return h.rollback(ctx, tx, b)
}

func with(h participant.Handler) func(*participant.Config) {
	return func(c *participant.Config) { c.Handler = h }
}

var errDisk = errors.New("disk on fire, secret=hunter2")

// An error that is no vote leaves nothing behind and is asked again.
func TestErrorsAreNotVotes(t *testing.T) {
	ctx := context.Background()
	db := openLedger(t, ledgerFile(t))
	fails := true
	may := func() error {
		if fails {
			return errDisk
		}
		return nil
	}
	p := start(t, db, with(handler{
		prepare: func(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
			_, err := tx.ExecContext(ctx, `INSERT INTO entry VALUES (?, 1, 'x', 1)`, b.Transaction)
			return nil, errors.Join(err, may())
		},
		commit:   func(context.Context, *sql.Tx, participant.Branch) error { return may() },
		rollback: func(context.Context, *sql.Tx, participant.Branch) error { return may() },
	}))
	entries := func() (n int) {
		if err := db.QueryRow(`SELECT COUNT(*) FROM entry`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i, phase := range []participant.Phase{participant.PhaseCommit, participant.PhaseRollback} {
		tx := id(int64(1000 + i))
		fails = true
		if v, err := p.Prepare(ctx, prepareCall(tx, `1`)); !errors.Is(err, errDisk) {
			t.Fatalf("%+v, %v", v, err)
		}
		if o, err := p.Status(ctx, finishCall(tx, participant.PhaseStatus)); o != participant.OutcomeUnknown || err != nil {
			t.Errorf("after a failed prepare: %s, %v", o, err)
		}
		if n := entries(); n != i {
			t.Errorf("a failed prepare left %d entries", n-i)
		}
		fails = false
		if v, err := p.Prepare(ctx, prepareCall(tx, `1`)); v.Vote != "yes" || err != nil {
			t.Fatalf("%+v, %v", v, err)
		}
		fails = true
		if _, err := p.Finish(ctx, finishCall(tx, phase)); !errors.Is(err, errDisk) {
			t.Errorf("%s: %v", phase, err)
		}
		if o, _ := p.Status(ctx, finishCall(tx, participant.PhaseStatus)); o != participant.OutcomePrepared {
			t.Errorf("after a failed %s: %s", phase, o)
		}
		fails = false
		if _, err := p.Finish(ctx, finishCall(tx, phase)); err != nil {
			t.Errorf("%s: %v", phase, err)
		}
	}
}

func TestNoAndReadOnlyKeepNothingTheHandlerWrote(t *testing.T) {
	ctx := context.Background()
	db := openLedger(t, ledgerFile(t))
	for i, verdict := range []error{participant.No("poor"), fmt.Errorf("wrapped: %w", participant.No("poor")), participant.ReadOnly} {
		p := start(t, db, with(handler{prepare: func(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
			if _, err := tx.ExecContext(ctx, `INSERT INTO entry VALUES (?, 1, 'x', 1)`, b.Transaction); err != nil {
				return nil, err
			}
			return []json.RawMessage{[]byte(`1`)}, verdict
		}}))
		want := "no"
		if errors.Is(verdict, participant.ReadOnly) {
			want = "read_only"
		}
		v, err := p.Prepare(ctx, prepareCall(id(int64(i)), `1`))
		if err != nil || v.Vote != want || want == "no" && v.Reason != "poor" || want == "read_only" && len(v.Results) != 1 {
			t.Errorf("%v: %+v, %v", verdict, v, err)
		}
	}
	var n int
	if err := db.QueryRow(`SELECT COUNT(*) FROM entry`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d entries, %v", n, err)
	}
}

// A handler that panics, or returns what cannot be answered, holds no lock and no row.
func TestBadHandlers(t *testing.T) {
	ctx := context.Background()
	db := openLedger(t, ledgerFile(t))
	bad := map[string]func() ([]json.RawMessage, error){
		"panic":        func() ([]json.RawMessage, error) { panic("oops") },
		"not JSON":     func() ([]json.RawMessage, error) { return []json.RawMessage{[]byte(`{`)}, nil },
		"no value":     func() ([]json.RawMessage, error) { return []json.RawMessage{nil}, nil },
		"many results": func() ([]json.RawMessage, error) { return make([]json.RawMessage, 1000), nil },
	}
	for name, f := range bad {
		p := start(t, db, with(handler{prepare: func(context.Context, *sql.Tx, participant.Branch) ([]json.RawMessage, error) { return f() }}))
		tx := id(1)
		func() {
			defer func() {
				if r := recover(); (r != nil) != (name == "panic") {
					t.Errorf("%s: recovered %v", name, r)
				}
			}()
			if v, err := p.Prepare(ctx, prepareCall(tx, `1`)); err == nil {
				t.Errorf("%s: %+v", name, v)
			}
		}()
		good := start(t, db, with(handler{}))
		if v, err := good.Prepare(ctx, prepareCall(tx, `1`)); err != nil || v.Vote != "yes" {
			t.Errorf("%s, then: %+v, %v", name, v, err)
		}
	}
}

// Payload bytes reach the handler as they came, in every phase, and the digest is over them.
func TestOperationsAreTheSameInEveryPhase(t *testing.T) {
	odd := `{"b" : 1.50, "a":"<\u00e9>&"}`
	var seen []string
	note := func(b participant.Branch) { seen = append(seen, string(b.Operations[0])) }
	db := openLedger(t, ledgerFile(t))
	p := start(t, db, with(handler{
		prepare: func(_ context.Context, _ *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
			note(b)
			return []json.RawMessage{[]byte(`"<&>"`)}, nil
		},
		commit: func(_ context.Context, _ *sql.Tx, b participant.Branch) error { note(b); return nil },
	}))
	tx := id(5)
	digest := participant.Digest([]json.RawMessage{[]byte(odd)})
	h := p.Handler()
	w := post(t, h, "/any/where/prepare", `{"transaction":"`+tx+`","branch":1,"service":"ledger","phase":"prepare","attempt":1,"term":1,"token":"",
		"operations":[ {"payload": `+odd+` } ],"count":1,"digest":"`+digest+`"}`)
	if w.Code != 200 || w.Body.String() != `{"vote":"yes","results":["<&>"]}` { // escaped, they could outgrow what a coordinator reads
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	w = post(t, h, "/commit", `{"transaction":"`+tx+`","branch":1,"service":"ledger","phase":"commit","attempt":1,"term":1,"token":""}`)
	if w.Code != 200 || len(seen) != 2 || seen[0] != odd || seen[1] != odd {
		t.Errorf("%d, %q", w.Code, seen)
	}
}

func TestForgottenRowsAreDeletedAndInDoubtOnesStay(t *testing.T) {
	ctx := context.Background()
	db := openLedger(t, ledgerFile(t))
	p := start(t, db, func(c *participant.Config) { c.Handler, c.ForgetInterval = handler{}, time.Millisecond })
	const n = 1200 // more than two batches
	for i := range n {
		c := prepareCall(id(int64(i)), `1`)
		if v, err := p.Prepare(ctx, c); err != nil || v.Vote != "yes" {
			t.Fatalf("%+v, %v", v, err)
		}
		if i%100 != 0 {
			if _, err := p.Finish(ctx, finishCall(c.Transaction, participant.PhaseCommit)); err != nil {
				t.Fatal(err)
			}
		}
	}
	other := prepareCall(floorID(3)[:15]+"001"+floorID(3)[18:], `1`) // home 1 of 2
	other.Shard, other.Shards = 1, 2
	if _, err := p.Prepare(ctx, other); err != nil {
		t.Fatal(err)
	}
	end := finishCall(other.Transaction, participant.PhaseRollback)
	end.Shard, end.Shards = 1, 2
	if _, err := p.Finish(ctx, end); err != nil {
		t.Fatal(err)
	}
	herald := prepareCall(id(n+5), `1`)
	herald.Shards, herald.ForgottenBelow = 2, floorID(n-10)
	if _, err := p.Prepare(ctx, herald); err != nil {
		t.Fatal(err)
	}
	// Left: the 12 prepared ones, the 10 at and above the watermark, the herald, and
	// the one of the other shard.
	const want = 12 + 10 + 1 + 1
	var left int
	for end := time.Now().Add(deadline); left != want; time.Sleep(time.Millisecond) {
		if err := db.QueryRow(`SELECT COUNT(*) FROM assent_outcome`).Scan(&left); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatalf("%d rows left, want %d", left, want)
		}
	}
	if list, err := p.InDoubt(ctx, "", 0, 1000); err != nil || len(list) != 13 {
		t.Errorf("%d in doubt, %v", len(list), err)
	}
	// Another process has heard nothing, yet must not take a deleted row for a new branch.
	q := start(t, db, with(handler{}))
	late := prepareCall(id(1), `1`)
	late.Shards = 2
	if v, err := q.Prepare(ctx, late); err != nil || v.Vote != "no" || !strings.Contains(v.Reason, "forgotten") {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := q.Finish(ctx, withShards(finishCall(late.Transaction, participant.PhaseRollback), 2)); err != nil {
		t.Error(err)
	}
	if o, err := q.Status(ctx, finishCall(late.Transaction, participant.PhaseStatus)); err != nil || o != participant.OutcomeUnknown {
		t.Errorf("a rollback below the watermark left a row: %s, %v", o, err)
	}
}

func withShards(c *participant.Call, n uint32) *participant.Call {
	c.Shards = n
	return c
}

func TestInDoubtPages(t *testing.T) {
	ctx := context.Background()
	p := start(t, openLedger(t, ledgerFile(t)), with(handler{}))
	var want []string
	for i := range 25 {
		c := prepareCall(id(int64(i/2)), `1`)
		if _, err := p.Prepare(ctx, c); err != nil {
			t.Fatal(err)
		}
		want = append(want, c.Transaction)
	}
	server := httptest.NewServer(p.Handler())
	t.Cleanup(server.Close)
	var got []string
	for after := ""; ; {
		resp, err := server.Client().Get(server.URL + "/in-doubt?limit=10&after=" + after)
		if err != nil {
			t.Fatal(err)
		}
		var page struct {
			Branches []participant.InDoubt
			Next     string
		}
		err = json.NewDecoder(resp.Body).Decode(&page)
		resp.Body.Close()
		if err != nil || len(page.Branches) > 10 {
			t.Fatalf("%d branches, %v", len(page.Branches), err)
		}
		for _, b := range page.Branches {
			got = append(got, b.Transaction)
		}
		if after = page.Next; after == "" {
			break
		}
	}
	seen := make(map[string]bool)
	for i, tx := range got {
		seen[tx] = true
		if i > 0 && got[i-1] >= tx {
			t.Errorf("%s before %s", got[i-1], tx)
		}
	}
	for _, tx := range want {
		if !seen[tx] {
			t.Errorf("%s is missing", tx)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d listed, want %d", len(got), len(want))
	}
	for _, query := range []string{"limit=0", "limit=x", "after=x", "after=" + want[0], "after=" + want[0] + "/-1"} {
		w := httptest.NewRecorder()
		p.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/in-doubt?"+query, nil))
		if w.Code != 400 {
			t.Errorf("%s: %d", query, w.Code)
		}
	}
}

func TestHTTPRefusals(t *testing.T) {
	db := openLedger(t, ledgerFile(t))
	p := start(t, db, func(c *participant.Config) {
		c.Handler = handler{prepare: func(context.Context, *sql.Tx, participant.Branch) ([]json.RawMessage, error) { return nil, errDisk }}
		c.Limits = participant.Limits{MaxBodyBytes: 2000, MaxOperations: 2}
	})
	h := p.Handler()
	tx := id(9)
	body := func(phase, service, rest string) string {
		return `{"transaction":"` + tx + `","branch":1,"service":"` + service + `","phase":"` + phase + `","attempt":1,"term":1,"token":"1"` + rest + `}`
	}
	operations := `,"operations":[{"payload":1}],"count":1,"digest":"` + participant.Digest([]json.RawMessage{[]byte(`1`)}) + `"`
	for _, c := range []struct {
		name, path, body string
		code             int
		says             string
	}{
		{"unknown path", "/x", `{}`, 404, "no such path"},
		{"other phase", "/commit", body("rollback", "ledger", ""), 400, "phase"},
		{"other service", "/commit", body("commit", "bank", ""), 421, "service"},
		{"too large", "/commit", strings.Repeat(" ", 3000), 413, "2000 bytes"},
		{"too many operations", "/prepare", body("prepare", "ledger", `,"operations":[{"payload":1},{"payload":1},{"payload":1}],"count":3,"digest":""`), 400, "limit of 2"},
		{"no digest", "/prepare", body("prepare", "ledger", `,"operations":[{"payload":1}],"count":1`), 400, "digest"},
		{"no count", "/prepare", body("prepare", "ledger", `,"operations":[{"payload":1}],"digest":"x"`), 400, "count"},
		{"foreign shard", "/commit", body("commit", "ledger", `,"shard":1,"shards":1`), 400, "shard"},
		{"half a shard", "/commit", body("commit", "ledger", `,"shard":1`), 400, "shard"},
		{"bad watermark", "/commit", body("commit", "ledger", `,"forgotten_below":"soon","shard":0,"shards":1`), 400, "forgotten_below"},
		{"long token", "/commit", strings.Replace(body("commit", "ledger", ""), `"token":"1"`, `"token":"`+strings.Repeat("1", 600)+`"`, 1), 400, "token"},
		{"failing work", "/prepare", body("prepare", "ledger", operations), 500, "internal"},
		{"unknown branch", "/commit", body("commit", "ledger", ""), 404, `{"outcome":"unknown"}`},
	} {
		w := post(t, h, c.path, c.body)
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.says) || !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s: %d %s, want %d with %q", c.name, w.Code, w.Body, c.code, c.says)
		}
		if strings.Contains(w.Body.String(), "hunter2") {
			t.Errorf("%s: the cause left the process: %s", c.name, w.Body)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/prepare", nil))
	if w.Code != 405 || w.Header().Get("Allow") != "POST" {
		t.Errorf("GET: %d %v", w.Code, w.Header())
	}
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/prepare", strings.NewReader(`{}`)))
	if w.Code != 415 {
		t.Errorf("no Content-Type: %d", w.Code)
	}
}

// Prepares beyond the limit are refused at once, and do not shut out a commit.
func TestInFlightLimit(t *testing.T) {
	ctx := context.Background()
	db := openLedger(t, ledgerFile(t))
	quick := start(t, db, with(handler{}))
	ready := prepareCall(id(1), `1`)
	if _, err := quick.Prepare(ctx, ready); err != nil {
		t.Fatal(err)
	}
	inside, leave := make(chan struct{}, 10), make(chan struct{})
	h := participant.NewHandler("ledger", slow{quick, inside, leave}, participant.Limits{MaxInFlight: 2}, nil)
	body := func(tx, phase, rest string) string {
		return `{"transaction":"` + tx + `","branch":1,"service":"ledger","phase":"` + phase + `","attempt":1,"term":1,"token":"1"` + rest + `}`
	}
	operations := `,"operations":[{"payload":1}],"count":1,"digest":"` + ready.Digest + `"`
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			if w := post(t, h, "/prepare", body(id(int64(i)), "prepare", operations)); w.Code != 200 {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
	<-inside
	<-inside
	if w := post(t, h, "/prepare", body(id(7), "prepare", operations)); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("over the limit: %d %s", w.Code, w.Body)
	}
	if w := post(t, h, "/commit", body(ready.Transaction, "commit", "")); w.Code != 200 {
		t.Errorf("commit beside full prepares: %d %s", w.Code, w.Body)
	}
	close(leave)
	wg.Wait()
}

// slow holds every prepare until it may leave.
type slow struct {
	participant.Resource
	inside chan<- struct{}
	leave  <-chan struct{}
}

func (s slow) Prepare(ctx context.Context, c *participant.Call) (participant.Vote, error) {
	s.inside <- struct{}{}
	<-s.leave
	return s.Resource.Prepare(ctx, c)
}

// A database locked by somebody else, without a busy timeout of its own, delays a
// call instead of failing it; a deadline ends the wait.
func TestBusyDatabaseIsWaitedFor(t *testing.T) {
	ctx := context.Background()
	file := ledgerFile(t)
	holder := openLedger(t, file)
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(0)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	var ran atomic.Int32
	p := start(t, db, with(handler{prepare: func(context.Context, *sql.Tx, participant.Branch) ([]json.RawMessage, error) {
		ran.Add(1)
		return nil, nil
	}}))
	lock, err := holder.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Exec(`INSERT INTO entry VALUES ('x', 1, 'x', 1)`); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
	defer cancel()
	if v, err := p.Prepare(short, prepareCall(id(1), `1`)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%+v, %v", v, err)
	}
	answered := make(chan error, 1)
	go func() {
		v, err := p.Prepare(ctx, prepareCall(id(2), `1`))
		if err == nil && v.Vote != "yes" {
			err = fmt.Errorf("%+v", v)
		}
		answered <- err
	}()
	if err := lock.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil || ran.Load() != 1 {
		t.Errorf("%v after %d executions", err, ran.Load())
	}
}

func TestUnsafeDatabasesAreRefused(t *testing.T) {
	for name, dsn := range map[string]string{
		"memory":          ":memory:",
		"rollback mode":   "file:" + filepath.Join(t.TempDir(), "a.db"),
		"no full sync":    "file:" + filepath.Join(t.TempDir(), "b.db") + "?_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)",
		"no sync, no WAL": "file:" + filepath.Join(t.TempDir(), "c.db") + "?_pragma=synchronous(OFF)",
	} {
		db, err := sql.Open("sqlite", dsn)
		if err != nil {
			t.Fatal(err)
		}
		_, err = participant.New(context.Background(), participant.Config{Service: "x", DB: db, Dialect: participant.SQLite(), Handler: handler{}})
		if err == nil || !strings.Contains(err.Error(), "synchronous=FULL") {
			t.Errorf("%s: %v", name, err)
		}
		db.Close()
	}
	for _, c := range []participant.Config{{}, {Service: "x"}, {Service: "x", DB: new(sql.DB)}, {Service: "x", DB: new(sql.DB), Dialect: participant.SQLite()}} {
		if _, err := participant.New(context.Background(), c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

func TestRegister(t *testing.T) {
	p := start(t, openLedger(t, ledgerFile(t)), with(handler{}))
	answers := []int{503, 429, 500, 200}
	var bodies [][]byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" { // asked when an answer takes long
			return
		}
		var b bytes.Buffer
		_, _ = b.ReadFrom(r.Body)
		if r.Method != http.MethodPut || r.URL.EscapedPath() != "/v1/services/ledger" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		code := answers[len(bodies)]
		bodies = append(bodies, b.Bytes())
		w.WriteHeader(code)
	}))
	t.Cleanup(server.Close)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := p.Register(ctx, server.URL+"/", "http://10.0.0.1:80/assent/"); err != nil {
		t.Fatal(err)
	}
	const want = `{"http":{"prepare":"http://10.0.0.1:80/assent/prepare","commit":"http://10.0.0.1:80/assent/commit",` +
		`"rollback":"http://10.0.0.1:80/assent/rollback","status":"http://10.0.0.1:80/assent/status"},` +
		`"capabilities":["one_phase","read_only","list_in_doubt","tombstone"],"limits":{"max_in_flight":64}}`
	if len(bodies) != 4 || string(bodies[3]) != want {
		t.Errorf("%d tries, last %s", len(bodies), bodies[len(bodies)-1])
	}
	answers, bodies = []int{400}, nil
	if err := p.Register(ctx, server.URL, "x"); err == nil || !strings.Contains(err.Error(), "400") || len(bodies) != 1 {
		t.Errorf("a definite refusal: %v after %d tries", err, len(bodies))
	}
	server.Close()
	short, cancelShort := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancelShort()
	if err := p.Register(short, server.URL, "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody there: %v", err)
	}
}

// TestKeepRegistered: a registration that has gone or changed is made again, and one that is
// there, that is being removed, or that nobody can be asked about is left alone.
func TestKeepRegistered(t *testing.T) {
	var mu sync.Mutex
	var puts, gets int
	status, answer := http.StatusNotFound, `{"details":[{"reason":"NOT_FOUND"}]}`
	set := func(s int, a string) {
		mu.Lock()
		defer mu.Unlock()
		status, answer = s, a
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/readyz" { // asked when an answer takes long
			return
		}
		if r.Method == http.MethodPut {
			puts++
			return
		}
		gets++
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(server.Close)
	nodes, err := discovery.New(discovery.Config{Endpoints: []string{server.URL}, Static: true})
	if err != nil {
		t.Fatal(err)
	}
	defer nodes.Close()
	r := participant.Registration{HTTP: participant.Endpoints{Prepare: "http://10.0.0.1/p"}, Capabilities: []string{"read_only", "one_phase"}}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	told := make(chan struct{}, 100)
	done := make(chan error, 1)
	running, stop := context.WithCancel(ctx)
	go func() {
		done <- participant.KeepRegistered(running, nodes, "x", r, time.Millisecond, func() { told <- struct{}{} })
	}()
	for range 3 { // it stays unknown
		select {
		case <-told:
		case <-ctx.Done():
			t.Fatal("it was not registered again")
		}
	}
	set(http.StatusOK, `{"http":{"prepare":"http://10.0.0.1/p"},"capabilities":["one_phase","read_only"]}`)
	if !participant.IsRegistered(ctx, nodes, "x", r) {
		t.Error("it is not known to be registered")
	}
	mu.Lock()
	was, asked := puts, gets
	mu.Unlock()
	for seen := 0; seen < 3 && ctx.Err() == nil; time.Sleep(time.Millisecond) {
		mu.Lock()
		seen = gets - asked
		mu.Unlock()
	}
	mu.Lock()
	if puts > was+1 { // one may have been under way
		t.Errorf("registered %d times again although nothing was wrong", puts-was)
	}
	mu.Unlock()
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for _, c := range []struct {
		status int
		answer string
		want   bool
	}{
		{200, `{"http":{"prepare":"http://10.0.0.2/p"},"capabilities":["one_phase","read_only"]}`, false},
		{200, `{"http":{"prepare":"http://10.0.0.1/p"},"capabilities":["one_phase"]}`, false},
		{200, `{"state":"draining"}`, true},
		{404, `{"details":[{"reason":"NOT_FOUND"}]}`, false},
		{404, `{}`, true},
		{404, `not found`, true},
		{500, `{}`, true},
		{429, `{}`, true},
	} {
		set(c.status, c.answer)
		if got := participant.IsRegistered(ctx, nodes, "x", r); got != c.want {
			t.Errorf("%d %s: %v", c.status, c.answer, got)
		}
	}
	server.Close()
	if !participant.IsRegistered(ctx, nodes, "x", r) {
		t.Error("a coordinator that is away makes it register again and again")
	}
}

// TestRegisterAnywhere: any node of several will do, and the environment may name them.
func TestRegisterAnywhere(t *testing.T) {
	var puts, refused atomic.Int32
	well := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			puts.Add(1)
		}
	}))
	t.Cleanup(well.Close)
	minority := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			refused.Add(1)
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(minority.Close)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if err := participant.Register(ctx, nil, "http://127.0.0.1:1, "+minority.URL+","+well.URL, "x", participant.Registration{}); err != nil || puts.Load() != 1 || refused.Load() != 1 {
		t.Errorf("%v; %d puts, %d refusals", err, puts.Load(), refused.Load())
	}
	t.Setenv(discovery.EnvEndpoints, "http://127.0.0.1:1,"+well.URL)
	if err := participant.Register(ctx, nil, "", "x", participant.Registration{}); err != nil || puts.Load() != 2 {
		t.Errorf("%v; %d puts", err, puts.Load())
	}
	if err := participant.Register(ctx, nil, "nowhere", "x", participant.Registration{}); err == nil {
		t.Error("a coordinator that is no URL was taken")
	}
	nodes, err := discovery.New(discovery.Config{Endpoints: []string{well.URL}})
	if err != nil {
		t.Fatal(err)
	}
	nodes.Close()
	if err := participant.RegisterAt(ctx, nodes, "x", participant.Registration{}); !errors.Is(err, discovery.ErrClosed) {
		t.Error(err)
	}
}

// TestResultsTooLarge: results that no answer can carry are left out. They are best effort;
// the vote is not.
func TestResultsTooLarge(t *testing.T) {
	db := openLedger(t, ledgerFile(t))
	large := json.RawMessage(`"` + strings.Repeat("x", 600_000) + `"`)
	p := start(t, db, func(c *participant.Config) {
		c.Handler = handler{prepare: func(context.Context, *sql.Tx, participant.Branch) ([]json.RawMessage, error) {
			return []json.RawMessage{large}, nil
		}}
	})
	body := `{"transaction":"` + id(8) + `","branch":1,"service":"ledger","phase":"prepare","attempt":1,"term":1,"token":"1"` +
		`,"operations":[{"payload":1}],"count":1,"digest":"` + participant.Digest([]json.RawMessage{[]byte(`1`)}) + `"}`
	if w := post(t, p.Handler(), "/prepare", body); w.Code != 200 || strings.TrimSpace(w.Body.String()) != `{"vote":"yes"}` {
		t.Errorf("%d %.100s", w.Code, w.Body)
	}
}
