package node_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/replog"
	rmhttp "github.com/assent-tx/assent/internal/rm/http"
	"github.com/assent-tx/assent/internal/shard"
)

// slowLog is a log of which one shard's appends are held up while gate is locked.
type slowLog struct {
	*replog.Log
	shard uint32
	gate  sync.Mutex
}

type slowGroup struct {
	replog.Group
	gate *sync.Mutex
}

func (l *slowLog) Group(at uint32) replog.Group {
	if at != l.shard {
		return l.Log.Group(at)
	}
	return slowGroup{l.Log.Group(at), &l.gate}
}

func (g slowGroup) Propose(data []byte, done func(error)) {
	g.gate.Lock()
	defer g.gate.Unlock()
	g.Group.Propose(data, done)
}

func startSlow(t *testing.T, shards, slow uint32) (*system, *slowLog) {
	t.Helper()
	s := &system{t: t, dir: t.TempDir(), shards: shards}
	s.node = node.New(node.Config{Name: "n1", Shards: shards, Shard: shard.DefaultConfig()}, rmhttp.New(rmhttp.Config{}), nil)
	var machines []replog.Machine
	for i := range shards {
		machines = append(machines, s.node.Machine(i))
	}
	log, err := replog.Open(replog.Config{Dir: s.dir, NodeID: "n1", Machines: machines, OnFatal: func(err error) { panic(err) }})
	if err != nil {
		t.Fatal(err)
	}
	s.log = log
	l := &slowLog{Log: log, shard: slow}
	if err := s.node.Start(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	if err := s.node.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, l
}

// short is a context of so many milliseconds.
func short(t *testing.T, ms int) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(ms)*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// A submission is repeated while the record of its first try is on its way into the log,
// and its service is being removed by then: a refusal says that nothing was changed.
func TestRefusedWhileItsRecordIsOnItsWay(t *testing.T) {
	s, log := startSlow(t, 2, 1)
	f := newFake(t, "f")
	s.register(f, nil)
	sub := node.Submission{ID: node.NewID().At(1, 2).String(), Operations: []node.Operation{op("f", "k")}}
	log.gate.Lock()
	_, first := s.node.Submit(short(t, 50), sub)
	wantCode(t, first, reason.OutcomeUnknown)
	_, _ = s.node.DeleteService(short(t, 50), "f")
	_, again := s.node.Submit(short(t, 500), sub)
	log.gate.Unlock()
	s.eventually("it is over", func() bool {
		r, err := s.node.Transaction(t.Context(), sub.ID)
		return err == nil && (r.State == "committed" || r.State == "aborted")
	})
	wantCode(t, again, reason.OutcomeUnknown)
}

// The same with a step.
func TestStepRefusedWhileItsRecordIsOnItsWay(t *testing.T) {
	s, log := startSlow(t, 2, 1)
	f := newFake(t, "f")
	s.register(f, nil)
	tx := s.begin(node.Beginning{ID: node.NewID().At(1, 2).String()})
	step := node.Step{Number: 1, Operations: []node.StepOperation{{Operation: op("f", "k")}}}
	log.gate.Lock()
	_, first := s.node.Enlist(short(t, 50), tx.ID, step)
	wantCode(t, first, reason.OutcomeUnknown)
	_, _ = s.node.DeleteService(short(t, 50), "f")
	_, again := s.node.Enlist(short(t, 500), tx.ID, step)
	log.gate.Unlock()
	wantCode(t, again, reason.OutcomeUnknown)
	s.eventually("the step is taken", func() bool {
		r, err := s.node.Commit(t.Context(), tx.ID, node.WaitCompleted)
		return err == nil && r.State == "committed" && f.count("commit") == 1
	})
}
