package node_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

const testShards = 3

// idAt makes an id with its home at a shard.
func idAt(shard uint32) string { return node.NewID().At(shard, testShards).String() }

// idle waits until nothing is open or locked at any shard.
func (s *system) idle() {
	s.t.Helper()
	s.eventually("nothing is open or locked", func() bool {
		page, err := s.node.Locks(s.t.Context(), node.LockQuery{})
		open := 0
		for _, shard := range s.node.Health().Shards {
			open += shard.Open
		}
		return err == nil && len(page.Locks) == 0 && open == 0
	})
}

// TestShards: transactions of every home take locks of every shard, survive a restart in
// the middle, and a service is removed once no shard has it open.
func TestShards(t *testing.T) {
	s := startShards(t, testShards, nil)
	dir := t.TempDir()
	names := []string{"a", "b", "c"}
	for _, name := range names {
		s.addLedger(dir, name)
	}
	var all sync.WaitGroup
	for home := range uint32(testShards) {
		all.Go(func() {
			for i := range 10 {
				var ops []node.Operation
				for _, name := range names {
					ops = append(ops, listOp(name, "append", "k", int64(1000*int(home)+i), node.Exclusive, false).Operation)
				}
				if r := s.submit(node.Submission{ID: idAt(home), Operations: ops, Wait: node.WaitCompleted, Timeout: time.Minute}); r.State != "committed" {
					t.Errorf("home %d: %+v", home, r)
				}
			}
		})
	}
	all.Wait()
	// One order for all of them: the lists are equal.
	if a, b, c := s.list("a", "k"), s.list("b", "k"), s.list("c", "k"); a != b || b != c || strings.Count(a, " ") != 10*testShards-1 {
		t.Errorf("the lists differ, or are not whole:\n%s\n%s\n%s", a, b, c)
	}
	s.idle()

	// Locks of a transaction that is open over a restart are there afterwards.
	open := s.begin(node.Beginning{ID: idAt(0), IdleTimeout: time.Minute})
	locks := []node.ServiceLock{}
	for _, name := range names {
		locks = append(locks, node.ServiceLock{Service: name, DeclaredLock: node.DeclaredLock{Key: "k"}})
	}
	if r, err := s.node.Enlist(t.Context(), open.ID, node.Step{Number: 1, Locks: locks}); err != nil || r.State != "active" {
		t.Fatalf("%+v, %v", r, err)
	}
	s.restart()
	page, err := s.node.Locks(t.Context(), node.LockQuery{})
	if err != nil || len(page.Locks) != 2*len(names) {
		t.Errorf("locks after a restart: %+v, %v", page.Locks, err)
	}
	at := map[uint32]bool{}
	for _, l := range page.Locks {
		at[l.Shard] = true
		if want := txn.LockShard(l.Service, l.Key, 1, testShards); l.Shard != want || len(l.Holders) != 1 || l.Holders[0].Transaction != open.ID {
			t.Errorf("lock %+v, want it at shard %d", l, want)
		}
	}
	if len(at) < 2 {
		t.Errorf("all locks are at %v: nothing was shown", at)
	}

	// Somebody younger waits at another shard, and is told for what.
	waits := s.begin(node.Beginning{ID: idAt(1), IdleTimeout: time.Minute})
	ctx, cancel := context.WithCancel(t.Context())
	all.Go(func() {
		_, _ = s.node.Enlist(ctx, waits.ID, node.Step{Number: 1, Locks: locks[1:2]}) // given up below
	})
	s.eventually("it waits", func() bool {
		r, err := s.node.Transaction(t.Context(), waits.ID)
		return err == nil && r.WaitsFor != nil && r.WaitsFor.Key == "b/k" && r.WaitsFor.Mode == "X" && len(r.WaitsFor.For) == 1 && r.WaitsFor.For[0] == open.ID
	})
	cancel()
	all.Wait()
	for _, id := range []string{open.ID, waits.ID} {
		if _, err := s.node.Rollback(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	s.idle()
	for _, name := range names {
		if v, err := s.node.DeleteService(t.Context(), name); err != nil || v.State != "removed" {
			t.Errorf("removal of %s: %+v, %v", name, v, err)
		}
	}
}

// TestShardsWound: at another shard, too, an older transaction makes a younger one give
// way, one that was submitted as a whole without its client seeing it.
func TestShardsWound(t *testing.T) {
	s := startShards(t, testShards, nil)
	s.addLedger(t.TempDir(), "a")
	away := (txn.LockShard("a", "x", 1, testShards) + 1) % testShards
	elder := s.begin(node.Beginning{ID: idAt(away)})
	younger := s.begin(node.Beginning{ID: idAt(away)})
	if elder.Age.Equal(younger.Age) && younger.ID < elder.ID {
		elder, younger = younger, elder
	}
	s.step(younger.ID, 1, listOp("a", "append", "x", 1, node.Exclusive, true))
	if r := s.step(elder.ID, 1, listOp("a", "append", "x", 2, node.Exclusive, true)); r.State != "active" {
		t.Fatalf("the elder: %+v", r)
	}
	r, err := s.node.Transaction(t.Context(), younger.ID)
	if err != nil || r.Abort == nil || r.Abort.Reason != reason.Wounded || r.Abort.Service != "a" || !strings.Contains(r.Abort.Message, elder.ID) {
		t.Errorf("the younger: %+v, %v", r.Abort, err)
	}
	retry, err := s.node.Begin(t.Context(), node.Beginning{RetryOf: younger.ID}) // its id is made to find the first try's record
	if err != nil || !retry.Age.Equal(younger.Age) {
		t.Errorf("the retry is of %v, its first try was of %v: %v", retry.Age, younger.Age, err)
	}
	for _, id := range []string{elder.ID, retry.ID} {
		if r, err := s.node.Commit(t.Context(), id, node.WaitCompleted); err != nil || r.State != "committed" {
			t.Errorf("%+v, %v", r, err)
		}
	}
	s.idle()
}

// TestShardsPartitions: keys of a service with partitions have their own lock shards, and
// a lock on the whole service excludes all of them.
func TestShardsPartitions(t *testing.T) {
	s := startShards(t, testShards, nil)
	l := s.addLedger(t.TempDir(), "plain")
	base := l.URL() + "/assent"
	spec := node.ServiceSpec{
		Name: "wide", PrepareURL: base + "/prepare", CommitURL: base + "/commit", RollbackURL: base + "/rollback", ExecuteURL: base + "/execute", LockPartitions: 64,
	}
	if v, err := s.node.PutService(t.Context(), spec); err != nil || v.LockPartitions != 64 {
		t.Fatalf("%+v, %v", v, err)
	}
	holder := s.begin(node.Beginning{})
	var locks []node.ServiceLock
	for i := range 12 {
		locks = append(locks, node.ServiceLock{Service: "wide", DeclaredLock: node.DeclaredLock{Key: fmt.Sprintf("k%d/deep", i)}})
	}
	if _, err := s.node.Enlist(t.Context(), holder.ID, node.Step{Number: 1, Locks: locks}); err != nil {
		t.Fatal(err)
	}
	page, err := s.node.Locks(t.Context(), node.LockQuery{Service: "wide"})
	at := map[uint32]bool{}
	for _, l := range page.Locks {
		at[l.Shard] = true
	}
	if err != nil || len(at) != testShards {
		t.Errorf("12 keys at shards %v, %v", at, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	whole := s.begin(node.Beginning{})
	s.tick()
	if r, err := s.node.Submit(ctx, node.Submission{ID: idAt(0), Timeout: 200 * time.Millisecond, Operations: []node.Operation{{Service: "wide", Payload: []byte("1")}}}); err != nil || r.Abort == nil || r.Abort.Reason != reason.LockTimeout {
		t.Errorf("a lock on the whole service beside its keys: %+v, %v", r, err)
	}
	for _, id := range []string{holder.ID, whole.ID} {
		if _, err := s.node.Rollback(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	spec.LockPartitions = 2
	if _, err := s.node.PutService(t.Context(), spec); !errors.Is(err, &reason.Error{Code: reason.InvalidService}) {
		t.Errorf("other partitions while it is registered: %v", err)
	}
	s.idle()
}

// TestRemovalWaitsForLocks: a service is not removed while a transaction holds a lock of it
// and has no operation there. Registered anew with other partitions, it would have the same
// key granted twice.
func TestRemovalWaitsForLocks(t *testing.T) {
	for _, shards := range []uint32{1, testShards} {
		for home := range shards {
			t.Run(fmt.Sprintf("%d of %d", home, shards), func(t *testing.T) {
				s := startShards(t, shards, nil)
				s.addLedger(t.TempDir(), "wide")
				id := txnid.New(uint64(time.Now().UnixMilli()), [10]byte{1, 2, 3}).At(home, shards).String()
				holder := s.begin(node.Beginning{ID: id, IdleTimeout: time.Minute})
				lock := []node.ServiceLock{{Service: "wide", DeclaredLock: node.DeclaredLock{Key: "k"}}}
				if _, err := s.node.Enlist(t.Context(), holder.ID, node.Step{Number: 1, Locks: lock}); err != nil {
					t.Fatal(err)
				}
				short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
				defer cancel()
				if v, err := s.node.DeleteService(short, "wide"); err == nil && v.State == "removed" {
					t.Fatal("it is removed, and its lock is held")
				}
				if r, err := s.node.Rollback(t.Context(), holder.ID); err != nil || r.Abort == nil {
					t.Fatalf("%+v, %v", r, err)
				}
				if v, err := s.node.DeleteService(t.Context(), "wide"); code(err) != reason.NotFound && (err != nil || v.State != "removed") {
					t.Errorf("when the lock was given back: %+v, %v", v, err)
				}
			})
		}
	}
}

// TestLockPages: a page of locks goes on behind its last row, though a key of a service
// with partitions has a row for each shard.
func TestLockPages(t *testing.T) {
	s := startShards(t, testShards, nil)
	base := s.addLedger(t.TempDir(), "plain").URL() + "/assent"
	spec := node.ServiceSpec{Name: "wide", PrepareURL: base + "/prepare", CommitURL: base + "/commit", RollbackURL: base + "/rollback", LockPartitions: testShards}
	if _, err := s.node.PutService(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	tx := s.begin(node.Beginning{IdleTimeout: time.Minute})
	shared := func(service, key string) node.ServiceLock {
		return node.ServiceLock{Service: service, DeclaredLock: node.DeclaredLock{Key: key, Mode: node.Shared}}
	}
	if _, err := s.node.Enlist(t.Context(), tx.ID, node.Step{Number: 1, Locks: []node.ServiceLock{shared("wide", node.WholeService), shared("wide", "a b/c"), shared("plain", "k")}}); err != nil {
		t.Fatal(err)
	}
	whole, err := s.node.Locks(t.Context(), node.LockQuery{})
	if err != nil || len(whole.Locks) != testShards+2 || whole.NextPageToken != "" { // the whole service covers its key; "plain", "plain/k"
		t.Fatalf("%+v, %v", whole, err)
	}
	for size := 1; size <= len(whole.Locks); size++ {
		var got []node.Lock
		for token := ""; ; {
			page, err := s.node.Locks(t.Context(), node.LockQuery{PageSize: size, PageToken: token})
			if err != nil || len(page.Locks) == 0 || len(page.Locks) > size {
				t.Fatalf("pages of %d: %+v, %v", size, page, err)
			}
			got = append(got, page.Locks...)
			if token = page.NextPageToken; token == "" {
				break
			}
		}
		if !reflect.DeepEqual(got, whole.Locks) {
			t.Errorf("pages of %d: %+v\nin one: %+v", size, got, whole.Locks)
		}
	}
	for _, token := range []string{"wide", "wide/x", " 1", "wide x"} {
		_, err := s.node.Locks(t.Context(), node.LockQuery{PageToken: token})
		wantCode(t, err, reason.InvalidField)
	}
}

// TestLocksInTheWay: who asks about a key is told of what is locked above it, too, and
// since when others wait for it.
func TestLocksInTheWay(t *testing.T) {
	for _, shards := range []uint32{1, testShards} {
		s := startShards(t, shards, nil)
		s.addLedger(t.TempDir(), "a")
		steps := func(key string) node.Step {
			return node.Step{Number: 1, Locks: []node.ServiceLock{{Service: "a", DeclaredLock: node.DeclaredLock{Key: key}}}}
		}
		holder, other := s.begin(node.Beginning{IdleTimeout: time.Minute}), s.begin(node.Beginning{IdleTimeout: time.Minute})
		for id, key := range map[string]string{holder.ID: "d", other.ID: "e/1"} {
			if _, err := s.node.Enlist(t.Context(), id, steps(key)); err != nil {
				t.Fatal(err)
			}
		}
		for query, want := range map[string]string{"d/1/2": "d", "e/2": "", "e/1": "e/1", "e/1/3": "e/1", "e": "e e/1", "/": "*"} {
			page, err := s.node.Locks(t.Context(), node.LockQuery{Service: "a", Key: query})
			var keys []string
			for _, l := range page.Locks {
				keys = append(keys, cmp.Or(l.Key, "*"))
			}
			if got := strings.Join(keys, " "); err != nil || got != want {
				t.Errorf("asked about %s: %q, want %q; %v", query, got, want, err)
			}
		}
		s.tick()
		before := time.Now().Truncate(time.Millisecond)
		waiter := s.begin(node.Beginning{IdleTimeout: time.Minute})
		var done sync.WaitGroup
		done.Go(func() { _, _ = s.node.Enlist(t.Context(), waiter.ID, steps("d/1")) })
		s.eventually("it waits, and it is told since when", func() bool {
			page, err := s.node.Locks(t.Context(), node.LockQuery{Service: "a", Key: "d", Waited: true})
			return err == nil && len(page.Locks) == 1 && page.Locks[0].Key == "d" && len(page.Locks[0].Waiters) == 1 && !page.Locks[0].Waiters[0].Since.Before(before)
		})
		if _, err := s.node.Rollback(t.Context(), holder.ID); err != nil {
			t.Error(err)
		}
		done.Wait()
	}
}
