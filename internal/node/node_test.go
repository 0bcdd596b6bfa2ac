package node_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/replog"
	rmhttp "github.com/assent-tx/assent/internal/rm/http"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// system is a node on a real log with the real HTTP protocol.
type system struct {
	t      *testing.T
	dir    string
	node   *node.Node
	log    *replog.Log
	tune   func(*shard.Config)
	shards uint32

	logger  *slog.Logger
	metrics *node.Metrics
}

func start(t *testing.T, tune func(*shard.Config)) *system {
	t.Helper()
	return startShards(t, 1, tune)
}

func startShards(t *testing.T, shards uint32, tune func(*shard.Config)) *system {
	t.Helper()
	s := &system{t: t, dir: t.TempDir(), tune: tune, shards: shards}
	s.open()
	t.Cleanup(s.close)
	return s
}

func (s *system) open() {
	s.t.Helper()
	cfg := shard.DefaultConfig()
	cfg.FinishBackoffUs, cfg.MaxFinishBackoffUs = 5_000, 100_000
	if s.tune != nil {
		s.tune(&cfg)
	}
	s.node = node.New(node.Config{
		Name: "n1", Shards: s.shards, Shard: cfg, Logger: s.logger,
		DefaultPrepareTimeout: time.Minute, DefaultFinishTimeout: time.Minute, // no try is repeated because it took long
	}, rmhttp.New(rmhttp.Config{}), s.metrics)
	var machines []replog.Machine
	for i := range s.shards {
		machines = append(machines, s.node.Machine(i))
	}
	log, err := replog.Open(replog.Config{
		Dir: s.dir, NodeID: "n1", Machines: machines,
		OnFatal: func(err error) { panic(err) },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.log = log
	if err := s.node.Start(log); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	if err := s.node.WaitReady(ctx); err != nil {
		s.t.Fatal(err)
	}
}

func (s *system) close() {
	if s.node == nil {
		return
	}
	if err := s.log.Close(); err != nil {
		s.t.Error(err)
	}
	s.node.Close()
	s.node = nil
}

func (s *system) restart() {
	s.t.Helper()
	s.close()
	s.open()
}

// fake is an HTTP participant whose answers a test scripts.
type fake struct {
	name string
	srv  *httptest.Server
	mu   sync.Mutex
	got  []string // "phase txn"
	// answer returns status and body; nil: yes and done.
	answer func(phase string) (int, string)
}

func newFake(t *testing.T, name string) *fake {
	f := &fake{name: name}
	f.srv = httptest.NewServer(f)
	t.Cleanup(f.srv.Close)
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var req struct{ Transaction, Phase string }
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	f.got = append(f.got, req.Phase+" "+req.Transaction)
	answer := f.answer
	f.mu.Unlock()
	status, body := http.StatusOK, `{"vote":"yes","results":[{"n":9007199254740993}]}`
	if answer != nil {
		status, body = answer(req.Phase)
	}
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}

func (f *fake) script(answer func(phase string) (int, string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

func (f *fake) count(prefix string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, g := range f.got {
		if strings.HasPrefix(g, prefix) {
			n++
		}
	}
	return n
}

func (s *system) register(f *fake, edit func(*node.ServiceSpec)) {
	s.t.Helper()
	spec := node.ServiceSpec{Name: f.name, PrepareURL: f.srv.URL + "/prepare", CommitURL: f.srv.URL + "/commit", RollbackURL: f.srv.URL + "/rollback"}
	if edit != nil {
		edit(&spec)
	}
	if _, err := s.node.PutService(s.t.Context(), spec); err != nil {
		s.t.Fatal(err)
	}
}

func op(service, key string) node.Operation {
	o := node.Operation{Service: service, Payload: []byte(`{"amount":1}`)}
	if key != "" {
		o.Locks = []node.DeclaredLock{{Key: key}}
	}
	return o
}

func (s *system) submit(sub node.Submission) node.Transaction {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	t, err := s.node.Submit(ctx, sub)
	if err != nil {
		s.t.Fatal(err)
	}
	return t
}

func (s *system) eventually(what string, ok func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			s.t.Fatalf("never happened: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// tick waits for the next millisecond: what begins then is younger than all before, whatever
// its id.
func (s *system) tick() {
	s.t.Helper()
	now := time.Now().UnixMilli()
	s.eventually("the clock goes on", func() bool { return time.Now().UnixMilli() > now })
}

func wantCode(t *testing.T, err error, code reason.Code) {
	t.Helper()
	if !errors.Is(err, &reason.Error{Code: code}) {
		t.Fatalf("got error %v, want %s", err, code)
	}
}

func TestCommitAcrossTwoServices(t *testing.T) {
	s := start(t, nil)
	a, b := newFake(t, "a"), newFake(t, "b")
	s.register(a, nil)
	s.register(b, nil)
	sub := node.Submission{ID: node.NewID().String(), Operations: []node.Operation{op("a", "k/1"), op("b", "k/2"), op("a", "k/3")}, Wait: node.WaitCompleted}
	got := s.submit(sub)
	if got.State != "committed" || len(got.Branches) != 2 || got.Branches[0].Operations != 2 {
		t.Fatalf("%+v", got)
	}
	if r := string(got.Branches[1].Results[0]); r != `{"n":9007199254740993}` {
		t.Fatalf("result %s", r)
	}
	again := s.submit(sub)
	if !again.Replayed || again.State != "committed" || a.count("prepare") != 1 || a.count("commit") != 1 {
		t.Fatalf("repeated submission: %+v; %v", again, a.got)
	}
	other := sub
	other.Operations = sub.Operations[:2]
	_, err := s.node.Submit(t.Context(), other)
	wantCode(t, err, reason.IDConflict)
}

func TestNoVoteAbortsEverywhere(t *testing.T) {
	s := start(t, nil)
	a, b := newFake(t, "a"), newFake(t, "b")
	s.register(a, nil)
	s.register(b, nil)
	b.script(func(phase string) (int, string) {
		if phase == "prepare" {
			return 409, `{"vote":"no","reason":"insufficient funds"}`
		}
		return 200, ""
	})
	got := s.submit(node.Submission{Operations: []node.Operation{op("a", "x"), op("b", "y")}, Wait: node.WaitCompleted})
	if got.State != "aborted" || got.Abort.Reason != reason.VotedNo || got.Abort.Service != "b" || got.Abort.Message != "insufficient funds" {
		t.Fatalf("%+v %+v", got, got.Abort)
	}
	if a.count("rollback") != 1 || a.count("commit") != 0 {
		t.Fatalf("a got %v", a.got)
	}
}

func TestOnePhaseAsksOnce(t *testing.T) {
	s := start(t, nil)
	a := newFake(t, "a")
	s.register(a, func(spec *node.ServiceSpec) { spec.Capabilities = []string{"one_phase", "tombstone"} })
	got := s.submit(node.Submission{Operations: []node.Operation{op("a", "x")}, Wait: node.WaitCompleted})
	if got.State != "committed" || !got.OnePhase || a.count("") != 1 {
		t.Fatalf("%+v after %v", got, a.got)
	}
}

func TestDecidedTransactionSurvivesRestart(t *testing.T) {
	s := start(t, nil)
	a, b := newFake(t, "a"), newFake(t, "b")
	s.register(a, nil)
	s.register(b, nil)
	b.script(func(phase string) (int, string) {
		if phase == "commit" {
			return 503, "later"
		}
		return 200, `{"vote":"yes"}`
	})
	got := s.submit(node.Submission{Operations: []node.Operation{op("a", "x"), op("b", "y")}})
	if got.State != "committing" {
		t.Fatalf("%+v", got)
	}
	s.restart()
	if now, err := s.node.Transaction(t.Context(), got.ID); err != nil || now.State != "committing" {
		t.Fatalf("after restart: %+v, %v", now, err)
	}
	b.script(nil)
	s.eventually("the branch at b is committed", func() bool {
		now, err := s.node.Transaction(t.Context(), got.ID)
		return err == nil && now.State == "committed"
	})
	if a.count("rollback")+b.count("rollback") > 0 {
		t.Fatal("a committed transaction was rolled back somewhere")
	}
}

func TestPreparingTransactionContinuesAfterRestart(t *testing.T) {
	s := start(t, nil)
	a := newFake(t, "a")
	s.register(a, nil)
	a.script(func(phase string) (int, string) { return 500, "" })
	id := node.NewID().String()
	if got := s.submit(node.Submission{ID: id, Operations: []node.Operation{op("a", "x")}, Wait: node.WaitNone, Timeout: time.Minute}); got.State != "preparing" {
		t.Fatalf("%+v", got)
	}
	s.restart()
	a.script(nil)
	got := s.submit(node.Submission{ID: id, Operations: []node.Operation{op("a", "x")}, Wait: node.WaitCompleted, Timeout: time.Minute})
	if got.State != "committed" || !got.Replayed {
		t.Fatalf("%+v", got)
	}
}

func TestDeadParticipantTimesOutAndDelaysNobodyElse(t *testing.T) {
	s := start(t, nil)
	a, dead := newFake(t, "a"), newFake(t, "dead")
	s.register(a, nil)
	s.register(dead, nil)
	dead.srv.Close()
	// The first without a vote is named: the dead one, however slow the other is.
	got := s.submit(node.Submission{Operations: []node.Operation{op("dead", "y"), op("a", "x")}, Timeout: 150 * time.Millisecond})
	if got.Abort == nil || got.Abort.Reason != reason.Timeout || got.Abort.Service != "dead" {
		t.Fatalf("%+v %+v", got, got.Abort)
	}
	// The keys at a are free again although the transaction cannot end.
	if next := s.submit(node.Submission{Operations: []node.Operation{op("a", "x")}}); next.Abort != nil {
		t.Fatalf("%+v", next.Abort)
	}
}

func TestConflictingTransactionsTakeTurns(t *testing.T) {
	s := start(t, nil)
	a := newFake(t, "a")
	s.register(a, nil)
	var inside, most int
	var mu sync.Mutex
	a.script(func(phase string) (int, string) {
		mu.Lock()
		defer mu.Unlock()
		if phase == "prepare" {
			inside++
			most = max(most, inside)
		} else {
			inside--
		}
		return 200, `{"vote":"yes"}`
	})
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if got, err := s.node.Submit(t.Context(), node.Submission{Operations: []node.Operation{op("a", "hot")}, Timeout: 30 * time.Second}); err != nil || got.Abort != nil {
				t.Errorf("%+v %v", got.Abort, err)
			}
		})
	}
	wg.Wait()
	if most != 1 {
		t.Fatalf("%d transactions held the key at once", most)
	}
}

func TestRollback(t *testing.T) {
	s := start(t, nil)
	a := newFake(t, "a")
	s.register(a, nil)
	unknown := node.NewID().String()
	if got, err := s.node.Rollback(t.Context(), unknown); err != nil || got.State != "aborted" {
		t.Fatalf("unknown id: %+v, %v", got, err)
	}
	if got := s.submit(node.Submission{ID: unknown, Operations: []node.Operation{op("a", "x")}}); got.State != "aborted" || got.Abort.Reason != reason.ClientRollback {
		t.Fatalf("begin after ABORT(id): %+v", got)
	}
	if a.count("") != 0 {
		t.Fatalf("a was asked: %v", a.got)
	}
	done := s.submit(node.Submission{Operations: []node.Operation{op("a", "x")}})
	got, err := s.node.Rollback(t.Context(), done.ID)
	wantCode(t, err, reason.AlreadyCommitted)
	if got.ID != done.ID {
		t.Fatalf("the refusal carries %+v", got)
	}
	_, err = s.node.Transaction(t.Context(), node.NewID().String())
	wantCode(t, err, reason.NotFound)
}

func TestRegistry(t *testing.T) {
	s := start(t, nil)
	a := newFake(t, "a")
	_, err := s.node.Submit(t.Context(), node.Submission{Operations: []node.Operation{op("a", "x")}})
	wantCode(t, err, reason.UnknownService)
	s.register(a, func(spec *node.ServiceSpec) { spec.RequireKeys = true })
	_, err = s.node.Submit(t.Context(), node.Submission{Operations: []node.Operation{op("a", "")}})
	wantCode(t, err, reason.KeysRequired)
	_, err = s.node.Submit(t.Context(), node.Submission{Operations: []node.Operation{op("a", "x//y")}})
	wantCode(t, err, reason.InvalidKey)
	s.submit(node.Submission{Operations: []node.Operation{op("a", "x")}})
	s.restart()
	list, err := s.node.Services(t.Context())
	if err != nil || len(list) != 1 || !list[0].RequireKeys {
		t.Fatalf("%+v %v", list, err)
	}
	gone, err := s.node.DeleteService(t.Context(), "a")
	if err != nil || gone.State != "removed" {
		t.Fatalf("%+v %v", gone, err)
	}
	_, err = s.node.Service(t.Context(), "a")
	wantCode(t, err, reason.NotFound)
}

func TestHazardIsStickyUntilResolved(t *testing.T) {
	s := start(t, nil)
	a := newFake(t, "a")
	s.register(a, nil)
	a.script(func(phase string) (int, string) {
		if phase == "commit" {
			return 404, `{"outcome":"unknown"}`
		}
		return 200, `{"vote":"yes"}`
	})
	got := s.submit(node.Submission{Operations: []node.Operation{op("a", "x")}, Wait: node.WaitCompleted})
	if !got.Hazard || got.Branches[0].Hazard != "unknown" {
		t.Fatalf("%+v", got)
	}
	s.restart()
	open, err := s.node.Transactions(t.Context(), node.ListQuery{State: "hazard"})
	if err != nil || len(open.Transactions) != 1 {
		t.Fatalf("%+v %v", open, err)
	}
	closed, err := s.node.Resolve(t.Context(), got.ID, "booked by hand")
	if err != nil || closed.Hazard || closed.Branches[0].Resolution != "booked by hand" {
		t.Fatalf("%+v %v", closed, err)
	}
	_, err = s.node.Resolve(t.Context(), got.ID, "again")
	wantCode(t, err, reason.NotAHazard)
}

func TestRetentionForgetsAndExpires(t *testing.T) {
	s := start(t, func(c *shard.Config) { c.RetainedTransactions, c.ForgetBatch, c.ForgetCheckIntervalUs = 1, 1, 1000 })
	a := newFake(t, "a")
	s.register(a, nil)
	// Ids of 20 s ago: records younger than the watermark's lag are kept in any case.
	var ids []string
	for i := range 3 {
		id := node.NewIDAt(time.Now().Add(-time.Duration(20-i) * time.Second)).String()
		ids = append(ids, id)
		s.submit(node.Submission{ID: id, Operations: []node.Operation{op("a", fmt.Sprint(i))}, Wait: node.WaitCompleted})
	}
	s.eventually("the first is forgotten", func() bool {
		_, err := s.node.Transaction(t.Context(), ids[0])
		return errors.Is(err, &reason.Error{Code: reason.IDExpired})
	})
	before := a.count("prepare")
	_, err := s.node.Submit(t.Context(), node.Submission{ID: ids[0], Operations: []node.Operation{op("a", "0")}})
	wantCode(t, err, reason.IDExpired)
	if a.count("prepare") != before {
		t.Fatal("an expired id was executed again")
	}
}

func TestWaitEndsWithTheRequest(t *testing.T) {
	s := start(t, nil)
	a := newFake(t, "a")
	s.register(a, nil)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a.script(func(phase string) (int, string) {
		if phase == "prepare" {
			cancel() // not before: what is told is what is known by then
			<-release
		}
		return 200, `{"vote":"yes"}`
	})
	got, err := s.node.Submit(ctx, node.Submission{Operations: []node.Operation{op("a", "x")}, Timeout: time.Minute})
	if err != nil || got.State != "preparing" {
		t.Fatalf("%+v %v", got, err)
	}
	rolled, err := s.node.Rollback(t.Context(), got.ID)
	if err != nil || rolled.Abort == nil || rolled.Abort.Reason != reason.ClientRollback {
		t.Fatalf("%+v %v", rolled, err)
	}
}

// A repeated submission gets its outcome whatever has changed since.
func TestRepeatedSubmissionOutlivesChanges(t *testing.T) {
	s := start(t, nil)
	a := newFake(t, "a")
	s.register(a, nil)
	sub := node.Submission{ID: node.NewID().String(), Operations: []node.Operation{op("a", "")}, Wait: node.WaitCompleted}
	first := s.submit(sub)
	other := sub
	other.Operations = []node.Operation{op("a", "x")}
	limited := sub
	limited.Refusal = reason.New(reason.TooManyOperations, "", "over a limit that was lowered")

	repeat := func(what string, sub node.Submission) {
		t.Helper()
		again := s.submit(sub)
		if !again.Replayed || again.ID != first.ID || again.State != "committed" {
			t.Errorf("%s: %+v", what, again)
		}
		_, err := s.node.Submit(t.Context(), other)
		wantCode(t, err, reason.IDConflict)
	}
	repeat("a lower limit", limited)
	s.register(a, func(spec *node.ServiceSpec) { spec.RequireKeys = true })
	repeat("keys required", sub)
	s.tune = func(c *shard.Config) { c.DefaultTimeoutMs = 77_000 }
	s.restart()
	repeat("another default timeout", sub)
	if _, err := s.node.DeleteService(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	repeat("the service removed", sub)
	if n := a.count("prepare"); n != 1 {
		t.Errorf("prepared %d times", n)
	}
	limited.ID = node.NewID().String()
	_, err := s.node.Submit(t.Context(), limited)
	wantCode(t, err, reason.TooManyOperations)
}

// A service that drains can move, so that what is open there ends.
func TestDrainingServiceMayMove(t *testing.T) {
	s := start(t, nil)
	a, moved := newFake(t, "a"), newFake(t, "a")
	s.register(a, nil)
	a.script(func(phase string) (int, string) {
		if phase == "prepare" {
			return http.StatusOK, `{"vote":"yes"}`
		}
		return http.StatusInternalServerError, ``
	})
	tx := s.submit(node.Submission{Operations: []node.Operation{op("a", "k")}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var removal sync.WaitGroup
	removal.Go(func() {
		if v, err := s.node.DeleteService(ctx, "a"); err != nil || v.State != "draining" {
			t.Errorf("%+v %v", v, err)
		}
	})
	s.eventually("it drains", func() bool {
		v, err := s.node.Service(t.Context(), "a")
		return err == nil && v.State == "draining"
	})
	cancel()
	removal.Wait()
	s.register(moved, nil)
	s.eventually("the commit at the new address, and the removal", func() bool {
		_, err := s.node.Service(t.Context(), "a")
		return errors.Is(err, &reason.Error{Code: reason.NotFound})
	})
	if got, err := s.node.Transaction(t.Context(), tx.ID); err != nil || got.State != "committed" || moved.count("commit") == 0 {
		t.Errorf("%+v %v", got, err)
	}
}

// Until the log was read to its end, nothing is told from what has been read.
func TestFollowerTellsNothing(t *testing.T) {
	s := start(t, nil)
	s.register(newFake(t, "a"), nil)
	s.submit(node.Submission{Operations: []node.Operation{op("a", "k")}})
	fresh := node.New(node.Config{Name: "n1", Shard: shard.DefaultConfig()}, rmhttp.New(rmhttp.Config{}), nil) // has no log yet
	defer fresh.Close()
	_, err := fresh.Transactions(t.Context(), node.ListQuery{})
	wantCode(t, err, reason.NotLeader)
	_, err = fresh.Services(t.Context())
	wantCode(t, err, reason.NotLeader)
	_, err = fresh.Service(t.Context(), "a")
	wantCode(t, err, reason.NotLeader)
	_, err = fresh.Transaction(t.Context(), node.NewID().String())
	wantCode(t, err, reason.NotLeader)
}

// TestMostKeys: a lock set that no record can carry is refused. As a record it would halt
// every replica, at every start.
func TestMostKeys(t *testing.T) {
	s := start(t, nil)
	s.register(newFake(t, "a"), nil)
	o := op("a", "")
	deep := strings.Repeat("/a", lock.MaxKeySegments-1)
	for i := range txn.MaxNeeds/lock.MaxKeySegments + 1 {
		o.Locks = append(o.Locks, node.DeclaredLock{Key: fmt.Sprintf("%04d%s", i, deep)})
	}
	_, err := s.node.Submit(t.Context(), node.Submission{Operations: []node.Operation{o}})
	wantCode(t, err, reason.TooManyKeys)
	tx, err := s.node.Begin(t.Context(), node.Beginning{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.node.Enlist(t.Context(), tx.ID, node.Step{Number: 1, Operations: []node.StepOperation{{Operation: o}}})
	wantCode(t, err, reason.TooManyKeys)
	o.Locks = o.Locks[:txn.MaxNeeds/lock.MaxKeySegments-1]
	if r := s.submit(node.Submission{Operations: []node.Operation{o}}); r.Abort != nil {
		t.Errorf("one that fits: %+v", r.Abort)
	}
}
