package node_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/ledger"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
)

// addLedger registers a real participant, in a directory that may have its data.
func (s *system) addLedger(dir, name string) *ledger.Ledger {
	s.t.Helper()
	l, err := ledger.Open(dir, name, 1, 0, nil)
	if err == nil {
		err = l.Serve("127.0.0.1:0")
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = l.Close() })
	base := l.URL() + "/assent"
	if _, err := s.node.PutService(s.t.Context(), node.ServiceSpec{
		Name: name, PrepareURL: base + "/prepare", CommitURL: base + "/commit", RollbackURL: base + "/rollback", StatusURL: base + "/status", ExecuteURL: base + "/execute",
		Capabilities: []string{"tombstone", "read_only"},
	}); err != nil {
		s.t.Fatal(err)
	}
	return l
}

// list is a list as a transaction of its own reads it.
func (s *system) list(service, key string) string {
	s.t.Helper()
	op := listOp(service, "list", key, 0, node.Shared, false)
	r := s.submit(node.Submission{ID: node.NewID().String(), Operations: []node.Operation{op.Operation}})
	if r.State != "committed" && r.State != "committing" || len(r.Branches[0].Results) != 1 {
		s.t.Fatalf("list %s: %+v", key, r)
	}
	return values(r.Branches[0].Results[0])
}

// values are those of a list's result, or the result itself.
func values(result []byte) string {
	var l ledger.List
	if err := json.Unmarshal(result, &l); err != nil || l.Key == "" {
		return string(result)
	}
	return fmt.Sprint(l.Values)
}

func stepValues(t node.Transaction) string {
	var all []string
	for _, r := range t.StepResults {
		all = append(all, values(r))
	}
	return strings.Join(all, ", ")
}

func listOp(service, op, key string, value int64, mode node.LockMode, now bool) node.StepOperation {
	payload := fmt.Sprintf(`{"op":%q,"key":%q,"value":%d}`, op, key, value)
	return node.StepOperation{Now: now, Operation: node.Operation{Service: service, Payload: []byte(payload), Locks: []node.DeclaredLock{{Key: key, Mode: mode}}}}
}

func (s *system) begin(b node.Beginning) node.Transaction {
	s.t.Helper()
	if b.ID == "" {
		b.ID = node.NewID().String()
	}
	t, err := s.node.Begin(s.t.Context(), b)
	if err != nil || t.State != "active" || !t.Interactive {
		s.t.Fatalf("begin: %+v, %v", t, err)
	}
	return t
}

func (s *system) step(id string, number uint32, ops ...node.StepOperation) node.Transaction {
	s.t.Helper()
	t, err := s.node.Enlist(s.t.Context(), id, node.Step{Number: number, Operations: ops})
	if err != nil {
		s.t.Fatalf("step %d: %v", number, err)
	}
	return t
}

func code(err error) reason.Code {
	var e *reason.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func TestInteractive(t *testing.T) {
	s := start(t, nil)
	s.addLedger(t.TempDir(), "a")
	s.addLedger(t.TempDir(), "b")
	tx := s.begin(node.Beginning{})
	// The same beginning again is the same transaction.
	if again, err := s.node.Begin(t.Context(), node.Beginning{ID: tx.ID}); err != nil || !again.Replayed {
		t.Errorf("begun again: %+v, %v", again, err)
	}
	if _, err := s.node.Begin(t.Context(), node.Beginning{ID: tx.ID, Timeout: time.Minute}); code(err) != reason.IDConflict {
		t.Errorf("begun otherwise: %v", err)
	}
	r := s.step(tx.ID, 1, listOp("a", "append", "x", 7, node.Exclusive, true), listOp("a", "list", "x", 0, node.Shared, true), listOp("b", "append", "y", 8, node.Exclusive, false))
	if got := stepValues(r); got != "null, [7], " || r.StepResults[2] != nil {
		t.Errorf("results %s", got)
	}
	again := s.step(tx.ID, 1, listOp("a", "append", "x", 7, node.Exclusive, true), listOp("a", "list", "x", 0, node.Shared, true), listOp("b", "append", "y", 8, node.Exclusive, false))
	if !again.Replayed || stepValues(again) != stepValues(r) {
		t.Errorf("repeated: %+v", again)
	}
	if _, err := s.node.Enlist(t.Context(), tx.ID, node.Step{Number: 1, Operations: []node.StepOperation{listOp("a", "list", "x", 0, node.Shared, true)}}); code(err) != reason.StepConflict {
		t.Errorf("another step 1: %v", err)
	}
	done, err := s.node.Commit(t.Context(), tx.ID, node.WaitCompleted)
	if err != nil || done.State != "committed" {
		t.Fatalf("commit: %+v, %v", done, err)
	}
	if done, err = s.node.Commit(t.Context(), tx.ID, node.WaitCompleted); err != nil || done.State != "committed" || !done.Replayed {
		t.Errorf("commit again: %+v, %v", done, err)
	}
	if x, y := s.list("a", "x"), s.list("b", "y"); x != "[7]" || y != "[8]" {
		t.Errorf("x %s, y %s", x, y)
	}
	// A step after the commit is refused, and the refusal tells what became of it.
	late := node.Step{Number: 9, Locks: []node.ServiceLock{{Service: "a", DeclaredLock: node.DeclaredLock{Key: "x"}}}}
	if r, err := s.node.Enlist(t.Context(), tx.ID, late); code(err) != reason.AlreadyDecided || r.State != "committed" {
		t.Errorf("a late step: %+v, %v", r, err)
	}
}

// Steps with keys meet neither the client's numbers nor each other, also where two keys
// have one hash, and each is done once.
func TestKeyedSteps(t *testing.T) {
	s := start(t, nil)
	s.addLedger(t.TempDir(), "a")
	tx := s.begin(node.Beginning{})
	step := func(key string, value int64) (node.Transaction, error) {
		return s.node.Enlist(t.Context(), tx.ID, node.Step{Key: key, Operations: []node.StepOperation{
			listOp("a", "append", "x", value, node.Exclusive, true), listOp("a", "list", "x", 0, node.Shared, true),
		}})
	}
	seen := map[uint32]string{}
	var one, other string
	for i := 0; other == ""; i++ {
		key := fmt.Sprintf("key-%d", i)
		n := node.KeyedStep(sha256.Sum256([]byte(key)), 0)
		if n < 1<<31 {
			t.Fatalf("%s: step %d may be a client's", key, n)
		}
		if one = seen[n]; one != "" {
			other = key
		}
		seen[n] = key
	}
	for i, c := range []struct {
		key      string
		value    int64
		want     string
		replayed bool
	}{
		{one, 1, "null, [1]", false},
		{other, 1, "null, [1 1]", false}, // the same body: only the key tells it apart
		{"third", 2, "null, [1 1 2]", false},
		{one, 1, "null, [1]", true},
		{other, 1, "null, [1 1]", true},
	} {
		r, err := step(c.key, c.value)
		if err != nil || stepValues(r) != c.want || r.Replayed != c.replayed {
			t.Errorf("%d: %s, replayed %t, %v; want %s", i, stepValues(r), r.Replayed, err, c.want)
		}
	}
	for _, key := range []string{one, other} {
		if r, err := step(key, 9); code(err) != reason.StepConflict || !strings.Contains(err.Error(), key) {
			t.Errorf("%s with another body: %+v, %v", key, r, err)
		}
	}
	if r := s.step(tx.ID, 1, listOp("a", "list", "x", 0, node.Shared, true)); stepValues(r) != "[1 1 2]" {
		t.Errorf("the client's own: %s", stepValues(r))
	}
	if done, err := s.node.Commit(t.Context(), tx.ID, node.WaitCompleted); err != nil || done.State != "committed" {
		t.Fatalf("%+v, %v", done, err)
	}
	if r, err := step(other, 1); code(err) != reason.AlreadyDecided || r.State != "committed" || r.StepResults != nil {
		t.Errorf("after the end: %+v, %v", r, err)
	}
	if x := s.list("a", "x"); x != "[1 1 2]" {
		t.Errorf("x %s", x)
	}
}

func TestInteractiveRefusals(t *testing.T) {
	s := start(t, nil)
	s.addLedger(t.TempDir(), "a")
	f := newFake(t, "f")
	s.register(f, nil)
	tx := s.begin(node.Beginning{})
	read := listOp("a", "list", "x", 0, node.Shared, true)
	for name, c := range map[string]struct {
		id   string
		step node.Step
		want reason.Code
	}{
		"unknown transaction": {node.NewID().String(), node.Step{Number: 1, Operations: []node.StepOperation{read}}, reason.NotFound},
		"unknown service":     {tx.ID, node.Step{Number: 1, Operations: []node.StepOperation{listOp("nobody", "list", "x", 0, node.Shared, true)}}, reason.UnknownService},
		"lock of an unknown service": {
			tx.ID, node.Step{Number: 1, Locks: []node.ServiceLock{{Service: "nobody", DeclaredLock: node.DeclaredLock{Key: "x"}}}}, reason.UnknownService,
		},
		"no number":         {tx.ID, node.Step{Operations: []node.StepOperation{read}}, reason.InvalidField},
		"nothing to do":     {tx.ID, node.Step{Number: 1}, reason.EmptyOperations},
		"cannot execute":    {tx.ID, node.Step{Number: 1, Operations: []node.StepOperation{listOp("f", "list", "x", 0, node.Shared, true)}}, reason.CannotExecute},
		"a malformed key":   {tx.ID, node.Step{Number: 1, Operations: []node.StepOperation{listOp("a", "read", "x/", 0, node.Shared, true)}}, reason.InvalidKey},
		"a range":           {tx.ID, node.Step{Number: 1, Operations: []node.StepOperation{listOp("a", "read", "x/[1,2)", 0, node.Shared, true)}}, reason.InvalidKey},
		"beyond the limits": {tx.ID, node.Step{Number: 1, Operations: []node.StepOperation{read}, Refusal: reason.New(reason.TooManyKeys, "", "too many")}, reason.TooManyKeys},
	} {
		if r, err := s.node.Enlist(t.Context(), c.id, c.step); code(err) != c.want {
			t.Errorf("%s: %+v, %v; want %s", name, r, err, c.want)
		}
	}
	if state, err := s.node.Transaction(t.Context(), tx.ID); err != nil || state.State != "active" || len(state.Branches) != 0 {
		t.Errorf("after refusals: %+v, %v", state, err)
	}
	one, err := s.node.Submit(t.Context(), node.Submission{ID: node.NewID().String(), Operations: []node.Operation{{Service: "f", Payload: []byte(`1`)}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.node.Enlist(t.Context(), one.ID, node.Step{Number: 1, Operations: []node.StepOperation{read}}); code(err) != reason.NotInteractive {
		t.Errorf("a step of a one-shot transaction: %v", err)
	}
	if _, err := s.node.Commit(t.Context(), one.ID, node.WaitDefault); code(err) != reason.NotInteractive {
		t.Errorf("commit of a one-shot transaction: %v", err)
	}
	if _, err := s.node.Commit(t.Context(), node.NewID().String(), node.WaitDefault); code(err) != reason.NotFound {
		t.Errorf("commit of nothing: %v", err)
	}
	// What a participant refuses ends the transaction.
	r := s.step(tx.ID, 1, listOp("a", "multiply", "x", 0, node.Shared, true))
	if r.State != "aborted" && r.State != "aborting" || r.Abort.Reason != reason.ExecuteRefused || r.Abort.Service != "a" || !strings.Contains(r.Abort.Message, "multiply") {
		t.Errorf("refused by the participant: %+v", r)
	}
	if r, err := s.node.Commit(t.Context(), tx.ID, node.WaitCompleted); err != nil || r.State != "aborted" {
		t.Errorf("commit of an aborted one: %+v, %v", r, err)
	}
	// Without anything done, commit has nothing to ask for.
	empty := s.begin(node.Beginning{})
	if r, err := s.node.Commit(t.Context(), empty.ID, node.WaitCompleted); err != nil || r.State != "committed" {
		t.Errorf("commit of nothing done: %+v, %v", r, err)
	}
}

// TestInteractiveIdle: a client that dies holds its locks no longer than the limit.
func TestInteractiveIdle(t *testing.T) {
	s := start(t, nil)
	s.addLedger(t.TempDir(), "a")
	const idle, beat = 3 * time.Second, 100 * time.Millisecond
	dead := s.begin(node.Beginning{IdleTimeout: idle * 7 / 6})
	s.step(dead.ID, 1, listOp("a", "append", "x", 1, node.Exclusive, true))
	s.tick()
	next := s.begin(node.Beginning{IdleTimeout: idle}) // waits longer than it may be silent
	if r := s.step(next.ID, 1, listOp("a", "append", "x", 2, node.Exclusive, true)); r.State != "active" {
		t.Fatalf("the next: %+v", r)
	}
	if r, err := s.node.Transaction(t.Context(), dead.ID); err != nil || r.Abort == nil || r.Abort.Reason != reason.IdleTimeout {
		t.Errorf("the dead client's: %+v, %v", r, err)
	}
	for granted := time.Now(); time.Since(granted) < idle*7/6; {
		time.Sleep(beat) // the client's, not the test's: it works between its heartbeats
		if _, err := s.node.Heartbeat(t.Context(), next.ID); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := s.node.Commit(t.Context(), next.ID, node.WaitCompleted); err != nil || r.State != "committed" {
		t.Errorf("the living client's: %+v, %v", r, err)
	}
}

// beginTwo begins two; within one millisecond the lesser id is the elder.
func (s *system) beginTwo() (elder, younger node.Transaction) {
	ids := []string{node.NewID().String(), node.NewID().String()}
	slices.Sort(ids)
	return s.begin(node.Beginning{ID: ids[0]}), s.begin(node.Beginning{ID: ids[1]})
}

// TestInteractiveDeadlock: two transactions cross; the younger dies, and its retry
// keeps its age.
func TestInteractiveDeadlock(t *testing.T) {
	s := start(t, nil)
	s.addLedger(t.TempDir(), "a")
	elder, younger := s.beginTwo()
	s.step(elder.ID, 1, listOp("a", "append", "x", 1, node.Exclusive, false))
	s.step(younger.ID, 1, listOp("a", "append", "y", 2, node.Exclusive, false))
	var waits sync.WaitGroup
	var r node.Transaction
	waits.Go(func() { r = s.step(younger.ID, 2, listOp("a", "append", "x", 4, node.Exclusive, false)) })
	s.eventually("the younger waits", func() bool {
		page, err := s.node.Locks(t.Context(), node.LockQuery{Service: "a", Waited: true})
		return err == nil && len(page.Locks) == 1 && page.Locks[0].Key == "x" && len(page.Locks[0].Waiters) == 1 && page.Locks[0].Holders[0].Transaction == elder.ID
	})
	if r := s.step(elder.ID, 2, listOp("a", "append", "y", 3, node.Exclusive, false)); r.State != "active" {
		t.Errorf("the elder: %+v", r)
	}
	waits.Wait()
	if r.Abort == nil || r.Abort.Reason != reason.Deadlock || !strings.Contains(r.Abort.Message, elder.ID) {
		t.Fatalf("the younger: %+v", r)
	}
	found, err := s.node.Deadlocks(t.Context())
	if err != nil || len(found) != 1 || found[0].Victim != younger.ID || len(found[0].Cycle) != 2 || found[0].Restarted {
		t.Errorf("deadlocks: %+v, %v", found, err)
	}
	retry := s.begin(node.Beginning{RetryOf: younger.ID})
	if !retry.Age.Equal(r.Age) {
		t.Errorf("the retry is of %v, the victim was of %v", retry.Age, r.Age)
	}
	if r, err := s.node.Commit(t.Context(), elder.ID, node.WaitCompleted); err != nil || r.State != "committed" {
		t.Errorf("the elder: %+v, %v", r, err)
	}
}

// TestInteractiveWound: an elder does not wait for a younger one that can still give way,
// and waits for one whose commit was asked for.
func TestInteractiveWound(t *testing.T) {
	s := start(t, nil)
	s.addLedger(t.TempDir(), "a")
	elder, younger := s.beginTwo()
	s.step(younger.ID, 1, listOp("a", "append", "x", 1, node.Exclusive, true))
	if r := s.step(elder.ID, 1, listOp("a", "append", "x", 2, node.Exclusive, true)); r.State != "active" {
		t.Fatalf("the elder: %+v", r)
	}
	r, err := s.node.Transaction(t.Context(), younger.ID)
	if err != nil || r.Abort == nil || r.Abort.Reason != reason.Wounded || r.Abort.Service != "a" ||
		!strings.Contains(r.Abort.Message, elder.ID) || !strings.Contains(r.Abort.Message, "a/x (X)") {
		t.Errorf("the younger: %+v, %v", r.Abort, err)
	}
	if r, err := s.node.Commit(t.Context(), elder.ID, node.WaitCompleted); err != nil || r.State != "committed" {
		t.Errorf("the elder: %+v, %v", r, err)
	}
}

// TestMaxLockWait: a step, and a transaction in one request, wait no longer than the
// limit, each for itself; the time between steps does not count.
func TestMaxLockWait(t *testing.T) {
	s := start(t, func(c *shard.Config) { c.MaxLockWaitUs = 100_000 })
	s.addLedger(t.TempDir(), "a")
	elder, younger := s.beginTwo()
	s.step(elder.ID, 1, listOp("a", "append", "x", 1, node.Exclusive, false))
	s.step(younger.ID, 1, listOp("a", "append", "y", 1, node.Exclusive, false))
	for {
		_, err := s.node.Heartbeat(t.Context(), younger.ID)
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.node.Transaction(t.Context(), younger.ID)
		if err != nil || r.Abort != nil {
			t.Fatalf("it waits for nothing: %+v, %v", r, err)
		}
		if time.Since(r.Began) > 200*time.Millisecond {
			break
		}
	}
	waited := "waited for 100 ms, the limit of a wait, for a/x (X) behind transaction " + elder.ID
	r := s.step(younger.ID, 2, listOp("a", "append", "x", 2, node.Exclusive, false))
	if r.Abort == nil || r.Abort.Reason != reason.LockTimeout || r.Abort.Message != waited || r.Abort.Service != "a" {
		t.Errorf("a step: %+v", r)
	}
	op := listOp("a", "append", "x", 3, node.Exclusive, false)
	r = s.submit(node.Submission{ID: node.NewID().String(), Operations: []node.Operation{op.Operation}})
	if r.Abort == nil || r.Abort.Reason != reason.LockTimeout || r.Abort.Message != waited {
		t.Errorf("in one request: %+v", r)
	}
	if r, err := s.node.Commit(t.Context(), elder.ID, node.WaitCompleted); err != nil || r.State != "committed" {
		t.Errorf("the elder: %+v, %v", r, err)
	}
}

// TestInteractiveUpgrade: of two readers that both want to write, the younger dies; with
// update locks it waits.
func TestInteractiveUpgrade(t *testing.T) {
	s := start(t, nil)
	s.addLedger(t.TempDir(), "a")
	for _, mode := range []node.LockMode{node.Shared, node.Update} {
		elder, younger := s.beginTwo()
		lock := func(tx node.Transaction) {
			l := node.ServiceLock{Service: "a", DeclaredLock: node.DeclaredLock{Key: "x", Mode: mode}}
			if _, err := s.node.Enlist(t.Context(), tx.ID, node.Step{Number: 1, Locks: []node.ServiceLock{l}}); err != nil {
				t.Error(err)
			}
		}
		write := func(tx node.Transaction) node.Transaction {
			r := s.step(tx.ID, 2, listOp("a", "append", "x", int64(rand.Uint32()), node.Exclusive, false))
			if r.Abort != nil {
				return r
			}
			r, err := s.node.Commit(t.Context(), tx.ID, node.WaitCompleted)
			if err != nil {
				t.Error(err)
			}
			return r
		}
		var waits sync.WaitGroup
		var r node.Transaction
		lock(elder)
		waits.Go(func() {
			lock(younger)
			r = write(younger)
		})
		if mode == node.Shared { // both read; the younger waits to write
			s.eventually("the younger waits", func() bool {
				page, err := s.node.Locks(t.Context(), node.LockQuery{Service: "a", Waited: true})
				return err == nil && len(page.Locks) == 1 && len(page.Locks[0].Holders) == 2
			})
		}
		if r := write(elder); r.State != "committed" {
			t.Errorf("mode %d: the elder: %+v", mode, r)
		}
		waits.Wait()
		if mode == node.Shared && (r.Abort == nil || r.Abort.Reason != reason.Deadlock) || mode == node.Update && r.State != "committed" {
			t.Errorf("mode %d: the younger: %+v", mode, r)
		}
	}
}

// TestInteractiveRestart: transactions go on where they were, and so do operations that
// have begun: the participant repeats its results.
func TestInteractiveRestart(t *testing.T) {
	s := start(t, nil)
	s.addLedger(t.TempDir(), "a")
	tx := s.begin(node.Beginning{})
	op := listOp("a", "append", "x", 5, node.Exclusive, true)
	read := listOp("a", "list", "x", 0, node.Exclusive, true)
	s.step(tx.ID, 1, op, read)
	s.restart()
	if r := s.step(tx.ID, 1, op, read); stepValues(r) != "null, [5]" || !r.Replayed {
		t.Errorf("after a restart: %+v", r)
	}
	if r := s.step(tx.ID, 2, read); stepValues(r) != "[5]" {
		t.Errorf("the next step: %s", r.StepResults)
	}
	if r, err := s.node.Commit(t.Context(), tx.ID, node.WaitCompleted); err != nil || r.State != "committed" {
		t.Errorf("commit: %+v, %v", r, err)
	}
	if x := s.list("a", "x"); x != "[5]" {
		t.Errorf("x %s", x)
	}
}

// TestInteractiveParticipantLosesWork: what it executed is gone with its process, and
// the transaction with it.
func TestInteractiveParticipantLosesWork(t *testing.T) {
	s := start(t, func(c *shard.Config) { c.PrepareBackoffUs = 1_000 })
	dir := t.TempDir()
	l := s.addLedger(dir, "a")
	one, two := s.begin(node.Beginning{}), s.begin(node.Beginning{})
	s.step(one.ID, 1, listOp("a", "append", "x", 1, node.Exclusive, true))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = s.addLedger(dir, "a")
	if r := s.step(one.ID, 2, listOp("a", "append", "x", 2, node.Exclusive, true)); r.Abort == nil || r.Abort.Reason != reason.ExecutionLost {
		t.Errorf("a further step: %+v", r)
	}
	s.step(two.ID, 1, listOp("a", "append", "x", 3, node.Exclusive, true))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.addLedger(dir, "a")
	if r, err := s.node.Commit(t.Context(), two.ID, node.WaitCompleted); err != nil || r.Abort == nil || r.Abort.Reason != reason.ExecutionLost {
		t.Errorf("commit: %+v, %v", r, err)
	}
	if x := s.list("a", "x"); x != "[]" {
		t.Errorf("x %s", x)
	}
}

// TestInteractiveRolledBackFirst: a rollback that comes before the beginning keeps it
// from beginning, and every later step is told so.
func TestInteractiveRolledBackFirst(t *testing.T) {
	s := start(t, nil)
	s.addLedger(t.TempDir(), "a")
	id := node.NewID().String()
	if r, err := s.node.Rollback(t.Context(), id); err != nil || r.State != "aborted" {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err := s.node.Begin(t.Context(), node.Beginning{ID: id}); err != nil || r.State != "aborted" {
		t.Errorf("begin: %+v, %v", r, err)
	}
	if r := s.step(id, 1, listOp("a", "append", "x", 1, node.Exclusive, true)); r.State != "aborted" || r.Abort.Reason != reason.ClientRollback {
		t.Errorf("a step: %+v", r)
	}
	if r, err := s.node.Commit(t.Context(), id, node.WaitDefault); err != nil || r.State != "aborted" {
		t.Errorf("commit: %+v, %v", r, err)
	}
}

// TestInteractiveCommitWithoutWaiting: the answer comes when the request is durable.
func TestInteractiveCommitWithoutWaiting(t *testing.T) {
	s := start(t, nil)
	f := newFake(t, "f")
	release := make(chan struct{})
	f.answer = func(phase string) (int, string) {
		if phase == "prepare" {
			<-release
		}
		return 200, `{"vote":"yes"}`
	}
	s.register(f, nil)
	tx := s.begin(node.Beginning{})
	s.step(tx.ID, 1, node.StepOperation{Operation: node.Operation{Service: "f", Payload: []byte(`1`)}})
	if r, err := s.node.Commit(t.Context(), tx.ID, node.WaitNone); err != nil || r.State != "preparing" {
		t.Errorf("%+v, %v", r, err)
	}
	close(release)
	if r, err := s.node.Commit(t.Context(), tx.ID, node.WaitCompleted); err != nil || r.State != "committed" {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestModes: keys are locked as they were declared, and a service without declared keys as
// a whole, exclusively.
func TestModes(t *testing.T) {
	s := start(t, nil)
	s.addLedger(t.TempDir(), "a")
	for _, c := range []struct {
		locks []node.DeclaredLock
		want  string
	}{
		{nil, "a:X"},
		{[]node.DeclaredLock{{Key: "k"}}, "a:IX a/k:X"},
		{[]node.DeclaredLock{{Key: "k", Mode: node.Update}}, "a:IX a/k:U"},
		{[]node.DeclaredLock{{Key: "k", Mode: node.Shared}}, "a:IS a/k:S"},
		{[]node.DeclaredLock{{Key: node.WholeService, Mode: node.Shared}}, "a:S"},
		{[]node.DeclaredLock{{Key: node.WholeService, Mode: node.Update}, {Key: "k"}}, "a:SIX a/k:X"},
	} {
		tx := s.begin(node.Beginning{})
		op := listOp("a", "append", "k", 1, node.Exclusive, false)
		op.Locks = c.locks
		if _, err := s.node.Enlist(t.Context(), tx.ID, node.Step{Number: 1, Operations: []node.StepOperation{op}}); err != nil {
			t.Fatal(err)
		}
		page, err := s.node.Locks(t.Context(), node.LockQuery{Service: "a"})
		if err != nil {
			t.Fatal(err)
		}
		var held []string
		for _, l := range page.Locks {
			held = append(held, strings.TrimSuffix(l.Service+"/"+l.Key, "/")+":"+l.Holders[0].Mode)
		}
		if got := strings.Join(held, " "); got != c.want {
			t.Errorf("%+v: held %s, want %s", c.locks, got, c.want)
		}
		if _, err := s.node.Rollback(t.Context(), tx.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInteractiveRetryOf: what is committed is not tried again, nor what has no age to
// keep, nor where nobody can know it.
func TestInteractiveRetryOf(t *testing.T) {
	s := startShards(t, testShards, nil)
	f := newFake(t, "f")
	s.register(f, nil)
	work := node.Operation{Service: "f", Payload: []byte(`1`)}
	at := func(home uint32) string { return idAt(home) }
	done := s.begin(node.Beginning{ID: at(1)})
	s.step(done.ID, 1, node.StepOperation{Operation: work})
	if r, err := s.node.Commit(t.Context(), done.ID, node.WaitCompleted); err != nil || r.State != "committed" {
		t.Fatalf("%+v, %v", r, err)
	}
	whole, err := s.node.Submit(t.Context(), node.Submission{ID: at(1), Operations: []node.Operation{work}})
	if err != nil {
		t.Fatal(err)
	}
	open := s.begin(node.Beginning{ID: at(1)})
	if _, err := s.node.Rollback(t.Context(), open.ID); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		b    node.Beginning
		want reason.Code
	}{
		"a committed one":     {node.Beginning{ID: at(1), RetryOf: done.ID}, reason.AlreadyCommitted},
		"a submission":        {node.Beginning{ID: at(1), RetryOf: whole.ID}, reason.NotInteractive},
		"one of another home": {node.Beginning{ID: at(2), RetryOf: open.ID}, reason.InvalidField},
	} {
		if r, err := s.node.Begin(t.Context(), c.b); code(err) != c.want {
			t.Errorf("retry of %s: %+v, %v; want %s", name, r, err, c.want)
		}
		if r, err := s.node.Rollback(t.Context(), c.b.ID); err != nil || r.Age != (time.Time{}) {
			t.Errorf("retry of %s has begun: %+v, %v", name, r, err)
		}
	}
	retry := node.Beginning{ID: at(1), RetryOf: open.ID}
	first := s.begin(retry)
	if !first.Age.Equal(open.Age) {
		t.Errorf("the retry is of %v, the first try was of %v", first.Age, open.Age)
	}
	if again := s.begin(retry); !again.Replayed {
		t.Errorf("the same begin again: %+v", again)
	}
}

// TestInteractiveCommitOfWhatRuns: a commit waits for what is to run at once, whoever
// listens for it, and a timeout meanwhile says who was waited for.
func TestInteractiveCommitOfWhatRuns(t *testing.T) {
	s := start(t, nil)
	f := newFake(t, "f")
	f.answer = func(phase string) (int, string) {
		if phase == "execute" {
			return 500, "the disk is full"
		}
		return 200, `{"vote":"yes"}`
	}
	s.register(f, func(spec *node.ServiceSpec) { spec.ExecuteURL = f.srv.URL + "/execute" })
	step := node.Step{Number: 1, Operations: []node.StepOperation{{Operation: node.Operation{Service: "f", Payload: []byte(`1`)}, Now: true}}}
	tx := s.begin(node.Beginning{Timeout: time.Minute})
	ctx, cancel := context.WithCancel(t.Context())
	var asks sync.WaitGroup
	asks.Go(func() { _, _ = s.node.Enlist(ctx, tx.ID, step) })
	s.eventually("it was asked to execute", func() bool { return f.count("execute") > 0 })
	cancel()
	asks.Wait()
	if r, err := s.node.Commit(t.Context(), tx.ID, node.WaitDefault); code(err) != reason.StepPending {
		t.Errorf("commit while it executes: %+v, %v", r, err)
	}
	if r, err := s.node.Rollback(t.Context(), tx.ID); err != nil || r.Abort == nil {
		t.Errorf("rollback while it executes: %+v, %v", r, err)
	}
	for timeout := 300 * time.Millisecond; ; timeout *= 2 {
		tx := s.begin(node.Beginning{Timeout: timeout})
		_, _ = s.node.Enlist(t.Context(), tx.ID, step)
		r, err := s.node.Transaction(t.Context(), tx.ID)
		if f.count("execute "+tx.ID) < 2 && timeout < time.Minute {
			continue // f has answered for sure once it is asked again
		}
		if err != nil || r.Abort == nil || r.Abort.Reason != reason.Timeout || r.Abort.Service != "f" || !strings.Contains(r.Abort.Message, "no result from f") || !strings.Contains(r.Abort.Message, "500") {
			t.Errorf("%+v, %v", r.Abort, err)
		}
		break
	}
	if n := f.count("prepare"); n > 0 {
		t.Errorf("%d prepares", n)
	}
}

// TestTooManyWaiters: a key takes so many who wait and no more: one more is refused where
// its home has the key, and aborted where the key is elsewhere.
func TestTooManyWaiters(t *testing.T) {
	const limit = 2
	for _, shards := range []uint32{1, testShards} {
		t.Run(fmt.Sprintf("%d shards", shards), func(t *testing.T) {
			s := startShards(t, shards, func(c *shard.Config) { c.MaxKeyWaiters = limit })
			s.addLedger(t.TempDir(), "a")
			there := txn.LockShard("a", "k", 1, shards)
			begin := func(home uint32) string {
				return s.begin(node.Beginning{ID: node.NewID().At(home, shards).String(), IdleTimeout: time.Minute}).ID
			}
			lock := node.Step{Number: 1, Locks: []node.ServiceLock{{Service: "a", DeclaredLock: node.DeclaredLock{Key: "k"}}}}
			holder := begin(there)
			if _, err := s.node.Enlist(t.Context(), holder, lock); err != nil {
				t.Fatal(err)
			}
			s.tick()
			var waiters sync.WaitGroup
			for range limit {
				id := begin(there)
				waiters.Go(func() {
					if r, err := s.node.Enlist(t.Context(), id, lock); err != nil || r.Abort == nil {
						t.Errorf("%+v, %v", r, err)
					}
				})
				s.eventually("it waits", func() bool {
					r, err := s.node.Transaction(t.Context(), id)
					return err == nil && r.WaitsFor != nil
				})
				defer func() {
					if _, err := s.node.Rollback(t.Context(), id); err != nil {
						t.Error(err)
					}
				}()
			}
			s.tick() // older ones are taken in
			near := begin(there)
			_, err := s.node.Enlist(t.Context(), near, lock)
			wantCode(t, err, reason.TooManyWaiters)
			if r, err := s.node.Transaction(t.Context(), near); err != nil || r.State != "active" {
				t.Errorf("who was refused: %+v, %v", r, err)
			}
			if shards > 1 {
				far := begin((there + 1) % shards)
				r, err := s.node.Enlist(t.Context(), far, lock)
				if err != nil || r.Abort == nil || r.Abort.Reason != reason.TooManyWaiters || r.Abort.Service != "a" || !strings.Contains(r.Abort.Message, "a/k") {
					t.Errorf("one more from another shard: %+v, %v", r.Abort, err)
				}
			}
			t.Cleanup(waiters.Wait)
		})
	}
}
