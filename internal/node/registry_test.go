package node_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
)

// behind is a node with two services, whose copy of the registry is empty.
func behind(t *testing.T) (s *system, arrive func(names ...string)) {
	s = start(t, nil)
	for _, name := range []string{"a", "b"} {
		s.register(newFake(t, name), nil)
	}
	return s, s.node.LoseRegistry()
}

// whileNotReady sends a request again as clients do: a machine that stalls may take longer
// than a node waits for its copy.
func whileNotReady(request func() error) (err error) {
	for range 20 {
		if err = request(); code(err) != reason.NotReady {
			return err
		}
	}
	return err
}

// TestRegistryArrives: services that come to a node one after the other are waited for, by
// transactions that use several of them, too.
func TestRegistryArrives(t *testing.T) {
	for name, order := range map[string][]string{"first of them first": {"a", "b"}, "last of them first": {"b", "a"}} {
		t.Run(name, func(t *testing.T) {
			s, arrive := behind(t)
			wait, stop := context.WithTimeout(t.Context(), 20*time.Second)
			defer stop()
			tx, err := s.node.Begin(wait, node.Beginning{})
			if err != nil {
				t.Fatal(err)
			}
			errs := make(chan error, 2)
			go func() {
				errs <- whileNotReady(func() error {
					_, err := s.node.Submit(wait, node.Submission{Operations: []node.Operation{op("a", "x"), op("b", "x")}})
					return err
				})
			}()
			go func() {
				errs <- whileNotReady(func() error {
					_, err := s.node.Enlist(wait, tx.ID, node.Step{Number: 1, Operations: []node.StepOperation{{Operation: op("a", "y")}, {Operation: op("b", "y")}}})
					return err
				})
			}()
			for _, service := range order {
				time.Sleep(20 * time.Millisecond) // the time a message takes
				arrive(service)
			}
			for range 2 {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestRegistryBehind: a service that is registered, but does not come to this node in time,
// is no unknown one: whoever reads that does not try again.
func TestRegistryBehind(t *testing.T) {
	s, arrive := behind(t)
	arrive("a")
	_, err := s.node.Submit(t.Context(), node.Submission{Operations: []node.Operation{op("a", "x"), op("b", "x")}})
	wantCode(t, err, reason.NotReady)
	_, err = s.node.Submit(t.Context(), node.Submission{Operations: []node.Operation{op("a", "x"), op("never", "x")}})
	wantCode(t, err, reason.UnknownService)
}

// TestRegistryOutdated: a copy that names a service's predecessor is refused by the shard;
// the request is computed anew from the next copy, or is to be sent again.
func TestRegistryOutdated(t *testing.T) {
	s := start(t, nil)
	a := newFake(t, "a")
	s.register(a, nil)
	putBack := s.node.KeepRegistry()
	if _, err := s.node.DeleteService(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	s.register(a, nil)
	arrive := putBack()
	_, err := s.node.Submit(t.Context(), node.Submission{Operations: []node.Operation{op("a", "x")}})
	wantCode(t, err, reason.NotReady)
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(20 * time.Millisecond) // the time a message takes
		arrive()
	}()
	if err := whileNotReady(func() error {
		_, err := s.node.Submit(t.Context(), node.Submission{Operations: []node.Operation{op("a", "x")}})
		return err
	}); err != nil {
		t.Error(err)
	}
	<-done
}

// TestLockByOutdatedRegistry: locks without an operation are computed from the registry,
// too. By the partitions of a service's predecessor they would be asked of other shards than
// the same keys are by everybody else, and be granted twice.
func TestLockByOutdatedRegistry(t *testing.T) {
	s := startShards(t, testShards, nil)
	a := newFake(t, "a")
	s.register(a, func(spec *node.ServiceSpec) { spec.LockPartitions = testShards })
	putBack := s.node.KeepRegistry()
	if _, err := s.node.DeleteService(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	s.register(a, nil)
	key := "k"
	for txn.LockShard("a", key, testShards, testShards) == txn.LockShard("a", key, 1, testShards) {
		key += "k"
	}
	step := node.Step{Number: 1, Locks: []node.ServiceLock{{Service: "a", DeclaredLock: node.DeclaredLock{Key: key}}}}
	holder, late := s.begin(node.Beginning{IdleTimeout: time.Minute}), s.begin(node.Beginning{IdleTimeout: time.Minute})
	if _, err := s.node.Enlist(t.Context(), holder.ID, step); err != nil {
		t.Fatal(err)
	}
	putBack()
	wait, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	tx, err := s.node.Enlist(wait, late.ID, step)
	if err == nil && tx.Abort == nil {
		t.Fatalf("%s is granted twice", key)
	}
	wantCode(t, err, reason.NotReady)
}

// A refusal that is computed from a copy of the registry which is behind is none: who reads
// it does not try again.
func TestRefusedByAnOutdatedCopy(t *testing.T) {
	permanent := map[reason.Code]bool{reason.ServiceDraining: true, reason.CannotExecute: true, reason.KeysRequired: true, reason.InvalidField: true, reason.UnknownService: true}
	for name, c := range map[string]struct {
		before func(*node.ServiceSpec)
		drain  bool
		step   node.Step
	}{
		"draining": {drain: true, step: node.Step{Number: 1, Operations: []node.StepOperation{{Operation: op("f", "k")}}}},
		"without execute": {
			before: func(spec *node.ServiceSpec) { spec.ExecuteURL = "" },
			step:   node.Step{Number: 1, Operations: []node.StepOperation{{Operation: op("f", "k"), Now: true}}},
		},
		"requiring keys": {
			before: func(spec *node.ServiceSpec) { spec.RequireKeys = true },
			step:   node.Step{Number: 1, Operations: []node.StepOperation{{Operation: op("f", "")}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil)
			f := newFake(t, "f")
			f.script(func(phase string) (int, string) {
				if phase == "execute" {
					return 200, `{"executed":true,"results":[null]}`
				}
				return 200, `{"vote":"yes"}`
			})
			now := func(spec *node.ServiceSpec) { spec.ExecuteURL = f.srv.URL + "/execute" }
			s.register(f, func(spec *node.ServiceSpec) {
				now(spec)
				if c.before != nil {
					c.before(spec)
				}
			})
			keep := s.node.KeepRegistry()
			if c.drain { // a transaction keeps it from being removed at once, so that the copy says so
				tx := s.begin(node.Beginning{})
				s.step(tx.ID, 1, node.StepOperation{Operation: op("f", "other")})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var removal sync.WaitGroup
				removal.Go(func() {
					if r, err := s.node.DeleteService(ctx, "f"); err != nil || r.State != "draining" {
						t.Errorf("%+v, %v", r, err)
					}
				})
				s.eventually("it drains", func() bool {
					r, err := s.node.Service(t.Context(), "f")
					return err == nil && r.State == "draining"
				})
				cancel()
				removal.Wait()
				keep = s.node.KeepRegistry()
				if _, err := s.node.Rollback(t.Context(), tx.ID); err != nil {
					t.Fatal(err)
				}
				if _, err := s.node.DeleteService(t.Context(), "f"); err != nil && code(err) != reason.NotFound {
					t.Fatal(err)
				}
			}
			s.register(f, now) // answered: whoever comes from now on sees it
			tx := s.begin(node.Beginning{})
			arrive := keep()
			var message sync.WaitGroup
			message.Go(func() {
				time.Sleep(20 * time.Millisecond) // the time it takes
				arrive()
			})
			_, err := s.node.Enlist(t.Context(), tx.ID, c.step)
			if permanent[code(err)] {
				t.Errorf("refused for good by what is not so any more: %v", err)
			}
			message.Wait()
		})
	}
}
