package node_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// observed is a system whose log and meters are read by the test.
type observed struct {
	*system
	reg *prometheus.Registry
	log *lines
}

type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// with are the lines that hold a text.
func (l *lines) with(text string) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		if strings.Contains(line, text) {
			out = append(out, line)
		}
	}
	return out
}

func startObserved(t *testing.T, shards uint32) *observed {
	t.Helper()
	o := &observed{reg: prometheus.NewRegistry(), log: &lines{}}
	o.system = &system{t: t, dir: t.TempDir(), shards: shards, logger: slog.New(slog.NewTextHandler(o.log, nil)), metrics: node.NewMetrics(o.reg)}
	o.open()
	t.Cleanup(o.close)
	return o
}

// meter is the value of a counter or gauge, of all its labels together.
func (o *observed) meter(name string) (sum float64) {
	o.t.Helper()
	families, err := o.reg.Gather()
	if err != nil {
		o.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "assent_"+name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
			return sum
		}
	}
	o.t.Errorf("no meter %s", name)
	return 0
}

func (o *observed) meters(when string, want map[string]float64) {
	o.t.Helper()
	for name, v := range want {
		o.eventually(fmt.Sprintf("%s: %s is %v (it is %v)", when, name, v, o.meter(name)), func() bool { return o.meter(name) == v })
	}
}

// TestUndeclaredKeys: an operation without keys is counted, and named in a hint, once for
// a service until some time has passed.
func TestUndeclaredKeys(t *testing.T) {
	o := startObserved(t, 1)
	o.addLedger(t.TempDir(), "a")
	o.addLedger(t.TempDir(), "b")
	id := node.NewID().String()
	declared := listOp("a", "append", "x", 1, node.Exclusive, false)
	bare := listOp("a", "append", "x", 2, node.Exclusive, false)
	bare.Locks = nil
	o.submit(node.Submission{ID: id, Operations: []node.Operation{declared.Operation, bare.Operation}})
	tx := o.begin(node.Beginning{})
	o.step(tx.ID, 7, bare)
	o.meters("after two operations", map[string]float64{"undeclared_key_operations_total": 2})
	if hints := o.log.with("locks its whole service"); len(hints) != 1 || !strings.Contains(hints[0], "service=a") || !strings.Contains(hints[0], id) || !strings.Contains(hints[0], "operations[1]") {
		t.Errorf("hints: %q", hints)
	}
	bare.Service = "b"
	o.step(tx.ID, 8, declared, bare)
	if hints := o.log.with("service=b"); len(hints) < 1 || !strings.Contains(hints[len(hints)-1], tx.ID) || !strings.Contains(hints[len(hints)-1], "step=8") {
		t.Errorf("hints of another service: %q", hints)
	}
}

// TestKeysRequired: the refusal says which operation it is about.
func TestKeysRequired(t *testing.T) {
	s := start(t, nil)
	f := newFake(t, "f")
	s.register(f, func(spec *node.ServiceSpec) { spec.RequireKeys = true })
	_, err := s.node.Submit(t.Context(), node.Submission{Operations: []node.Operation{op("f", "x"), op("f", "")}})
	if code(err) != reason.KeysRequired || !strings.Contains(err.Error(), "operations[1]") {
		t.Errorf("%v", err)
	}
}

// TestShardsDeadlock: a cycle in one lock table is told as one, also where those who wait
// have their homes at other shards, and is counted.
func TestShardsDeadlock(t *testing.T) {
	o := startObserved(t, testShards)
	o.addLedger(t.TempDir(), "a")
	away := (txn.LockShard("a", "x", 1, testShards) + 1) % testShards
	elder := o.begin(node.Beginning{ID: idAt(away)})
	younger := o.begin(node.Beginning{ID: idAt((away + 1) % testShards)})
	for !elder.Age.Before(younger.Age) {
		time.Sleep(time.Millisecond)
		younger = o.begin(node.Beginning{ID: idAt((away + 1) % testShards)})
	}
	o.step(elder.ID, 1, listOp("a", "append", "x", 1, node.Exclusive, false))
	o.step(younger.ID, 1, listOp("a", "append", "y", 2, node.Exclusive, false))
	var waits sync.WaitGroup
	var r node.Transaction
	waits.Go(func() { r = o.step(younger.ID, 2, listOp("a", "append", "x", 4, node.Exclusive, false)) })
	o.meters("one waits", map[string]float64{"lock_waiters": 1, "lock_longest_queue": 1, "lock_waits_total": 1, "lock_grants_total": 2})
	if r := o.step(elder.ID, 2, listOp("a", "append", "y", 3, node.Exclusive, false)); r.State != "active" {
		t.Errorf("the elder: %+v", r)
	}
	waits.Wait()
	if r.Abort == nil || r.Abort.Reason != reason.Deadlock || !strings.Contains(r.Abort.Message, elder.ID+" waits for a/y (X) behind "+younger.ID) ||
		!strings.Contains(r.Abort.Message, younger.ID+" waits for a/x (X) behind "+elder.ID) {
		t.Errorf("the younger: %+v", r.Abort)
	}
	found, err := o.node.Deadlocks(t.Context())
	if err != nil || len(found) != 1 || found[0].Victim != younger.ID || len(found[0].Cycle) != 2 || found[0].Restarted {
		t.Errorf("deadlocks: %+v, %v", found, err)
	}
	o.meters("after the cycle", map[string]float64{"deadlocks_total": 1, "wounds_total": 0, "needless_victims_total": 0, "lock_waiters": 0, "lock_longest_queue": 0})
	if r, err := o.node.Commit(t.Context(), elder.ID, node.WaitCompleted); err != nil || r.State != "committed" {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestVictimsCounted: who gave way to an elder is counted wherever the lock is, and as
// needless if it waited for nobody.
func TestVictimsCounted(t *testing.T) {
	for home := range uint32(testShards) {
		t.Run(fmt.Sprint(home), func(t *testing.T) {
			o := startObserved(t, testShards)
			o.addLedger(t.TempDir(), "a")
			elder := o.begin(node.Beginning{ID: idAt(home)})
			younger := o.begin(node.Beginning{ID: idAt(home)})
			if elder.Age.Equal(younger.Age) && younger.ID < elder.ID {
				elder, younger = younger, elder
			}
			o.step(younger.ID, 1, listOp("a", "append", "x", 1, node.Exclusive, true))
			o.step(elder.ID, 1, listOp("a", "append", "x", 2, node.Exclusive, true))
			o.meters("the younger gave way", map[string]float64{"wounds_total": 1, "needless_victims_total": 1, "deadlocks_total": 0})
			if _, err := o.node.Rollback(t.Context(), elder.ID); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDeadlockOfTwoTables: a cycle of two transactions over the tables of two shards is
// told as one, wherever their homes are.
func TestDeadlockOfTwoTables(t *testing.T) {
	o := startObserved(t, testShards)
	names := o.twoTables()
	cycles := 0.0
	for elders := range uint32(testShards) {
		for youngers := range uint32(testShards) {
			elder := o.begin(node.Beginning{ID: idAt(elders)})
			younger := o.begin(node.Beginning{ID: idAt(youngers)})
			for !elder.Age.Before(younger.Age) {
				time.Sleep(time.Millisecond)
				younger = o.begin(node.Beginning{ID: idAt(youngers)})
			}
			op := func(service string) node.StepOperation {
				return listOp(service, "append", "k", 1, node.Exclusive, false)
			}
			o.step(elder.ID, 1, op(names[0]))
			o.step(younger.ID, 1, op(names[1]))
			var waits sync.WaitGroup
			var r node.Transaction
			waits.Go(func() { r = o.step(younger.ID, 2, op(names[0])) })
			o.eventually("its home knows that the younger waits", func() bool {
				r, err := o.node.Transaction(t.Context(), younger.ID)
				return err == nil && r.WaitsFor != nil && slices.Equal(r.WaitsFor.For, []string{elder.ID})
			})
			closed := time.Now().Truncate(time.Millisecond)
			if r := o.step(elder.ID, 2, op(names[1])); r.State != "active" {
				t.Errorf("homes %d, %d: the elder: %+v", elders, youngers, r)
			}
			waits.Wait()
			// The shard where the elder waits may be the younger's home: there the record that
			// makes it give way knows of that one wait alone.
			want := reason.Deadlock
			if txn.LockShard(names[1], "k", 1, testShards) == youngers {
				want = reason.Wounded
			}
			if r.Abort == nil || r.Abort.Reason != want || !strings.Contains(r.Abort.Message, elder.ID) {
				t.Errorf("homes %d, %d: the younger: %+v, want %s", elders, youngers, r.Abort, want)
			}
			found, err := o.node.Deadlocks(t.Context())
			if err != nil || len(found) == 0 || found[0].Victim != younger.ID || found[0].Restarted || found[0].At.Before(closed) || len(found[0].Cycle) != 2 ||
				found[0].Cycle[0] != (node.CycleWait{Transaction: elder.ID, Service: names[1], Key: "k", Mode: "X", WaitsFor: younger.ID}) ||
				found[0].Cycle[1] != (node.CycleWait{Transaction: younger.ID, Service: names[0], Key: "k", Mode: "X", WaitsFor: elder.ID}) {
				t.Errorf("homes %d, %d: deadlocks: %+v, %v", elders, youngers, found, err)
			}
			cycles++
			o.meters("after the cycle", map[string]float64{"deadlocks_total": cycles, "wounds_total": 0, "needless_victims_total": 0})
			if _, err := o.node.Rollback(t.Context(), elder.ID); err != nil {
				t.Error(err)
			}
		}
	}
}

// twoTables makes two services with different lock shards.
func (o *observed) twoTables() []string {
	names := []string{"a"}
	for i := 0; len(names) < 2; i++ {
		if name := fmt.Sprintf("b%d", i); txn.LockShard(name, "k", 1, testShards) != txn.LockShard("a", "k", 1, testShards) {
			names = append(names, name)
		}
	}
	for _, name := range names {
		o.addLedger(o.t.TempDir(), name)
	}
	return names
}

// TestRestartOfTwoTables: the same of a younger one that was submitted as a whole, which
// queues again where it has given way. That is no wait of the cycle.
func TestRestartOfTwoTables(t *testing.T) {
	o := startObserved(t, testShards)
	names := o.twoTables()
	for home := range uint32(testShards) {
		elder := o.begin(node.Beginning{})
		book := func(service string) node.StepOperation {
			return listOp(service, "append", "k", 1, node.Exclusive, false)
		}
		o.step(elder.ID, 1, book(names[0]))
		id := idAt(home)
		for younger, _ := txnid.Parse(id); younger.UnixMs() <= uint64(elder.Age.UnixMilli()); younger, _ = txnid.Parse(id) {
			time.Sleep(time.Millisecond)
			id = idAt(home)
		}
		var done sync.WaitGroup
		done.Go(func() {
			ops := []node.Operation{book(names[0]).Operation, book(names[1]).Operation}
			if r := o.submit(node.Submission{ID: id, Operations: ops}); r.Abort != nil {
				t.Errorf("home %d: %+v", home, r.Abort)
			}
		})
		o.eventually("it has one of its locks and waits for the other", func() bool {
			page, err := o.node.Locks(t.Context(), node.LockQuery{Service: names[1], Key: "k"})
			r, errT := o.node.Transaction(t.Context(), id)
			// Those of the round before may not have given back theirs.
			return err == nil && errT == nil && len(page.Locks) == 1 && len(page.Locks[0].Holders) == 1 && page.Locks[0].Holders[0].Transaction == id &&
				r.WaitsFor != nil && slices.Equal(r.WaitsFor.For, []string{elder.ID})
		})
		closed := time.Now().Truncate(time.Millisecond)
		if r := o.step(elder.ID, 2, book(names[1])); r.State != "active" {
			t.Errorf("home %d: the elder: %+v", home, r)
		}
		found, err := o.node.Deadlocks(t.Context())
		if err != nil || len(found) == 0 || found[0].Victim != id || !found[0].Restarted || found[0].At.Before(closed) || len(found[0].Cycle) != 2 ||
			found[0].Cycle[0] != (node.CycleWait{Transaction: elder.ID, Service: names[1], Key: "k", Mode: "X", WaitsFor: id}) ||
			found[0].Cycle[1] != (node.CycleWait{Transaction: id, Service: names[0], Key: "k", Mode: "X", WaitsFor: elder.ID}) {
			t.Errorf("home %d: deadlocks: %+v, %v", home, found, err)
		}
		if _, err := o.node.Rollback(t.Context(), elder.ID); err != nil {
			t.Error(err)
		}
		done.Wait()
	}
}
