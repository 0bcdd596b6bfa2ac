package shard

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// replicas apply one log; the first of them leads.
type replicas struct {
	t        *testing.T
	list     []*Shard
	nowUs    int64
	index    uint64
	proposed [][]byte
	captures [][]Capture // by replica, to be hashed
	verified []int
	diverged []int
	errs     []error
}

func newReplicas(t *testing.T, n int) *replicas {
	r := &replicas{t: t, captures: make([][]Capture, n), verified: make([]int, n), diverged: make([]int, n), errs: make([]error, n)}
	for range n {
		r.list = append(r.list, New(verifying()))
	}
	r.step(0, &Lead{Term: 1})
	r.commit()
	return r
}

func verifying() Config {
	cfg := DefaultConfig()
	cfg.HashCheckIntervalUs, cfg.HashCheckEntries = 1_000, 4
	return cfg
}

func (r *replicas) time() Time { return Time{MonoUs: r.nowUs, WallMs: 1_750_000_000_000} }

func (r *replicas) act(i int) {
	rd := r.list[i].Ready()
	for _, e := range rd.Entries {
		r.proposed = append(r.proposed, append([]byte(nil), e...))
	}
	r.captures[i] = append(r.captures[i], rd.Captures...)
	for _, n := range rd.Notices {
		switch n.Kind {
		case NoticeVerified:
			r.verified[i]++
		case NoticeDiverged:
			r.diverged[i]++
		}
	}
	r.list[i].Advance()
}

func (r *replicas) step(i int, ev Event) {
	r.nowUs++
	r.list[i].Step(r.time(), ev)
	r.act(i)
}

// commit applies what is proposed at every replica but those that miss it: these get
// empty entries instead.
func (r *replicas) commit(misses ...int) {
	for len(r.proposed) > 0 {
		entry := r.proposed[0]
		r.proposed = r.proposed[1:]
		r.index++
		for i := range r.list {
			data := append([]byte(nil), entry...)
			for _, m := range misses {
				if m == i {
					data = data[:txn.HeaderBytes]
				}
			}
			if r.errs[i] == nil {
				r.errs[i] = r.list[i].Apply(r.time(), r.index, 1, data)
				r.act(i)
			}
		}
	}
}

func (r *replicas) hash(i int) {
	for _, c := range r.captures[i] {
		r.step(i, &Hashed{Index: c.Index, Hash: c.State.Hash()})
	}
	r.captures[i] = nil
}

// put registers a service, and rollback records an abort.
func (r *replicas) put(name string, misses ...int) {
	r.step(0, &PutService{Token: 1, Service: &txn.Service{Name: name}})
	r.commit(misses...)
}

func (r *replicas) rollback(n byte, misses ...int) {
	r.step(0, &Rollback{Token: 1, ID: txnid.New(1_750_000_000_000, [10]byte{n})})
	r.commit(misses...)
}

// verify lets the interval pass and applies the VERIFY that is due.
func (r *replicas) verify() {
	r.t.Helper()
	r.nowUs += 2_000
	r.step(0, &Tick{})
	if len(r.proposed) != 1 {
		r.t.Fatalf("%d entries proposed", len(r.proposed))
	}
	if lines, err := txn.Describe(r.proposed[0]); err != nil || len(lines) != 1 || lines[0] != "VERIFY" {
		r.t.Fatalf("proposed %v %v", lines, err)
	}
	r.commit()
}

// Replicas with one log find their states equal: one from the start, one that hashes
// late, and one that was restored from a snapshot in between.
func TestReplicasAgree(t *testing.T) {
	r := newReplicas(t, 4)
	r.put("a")
	r.put("b")
	if err := r.list[2].Restore(snapshotOf(r.list[0])); err != nil {
		t.Fatal(err)
	}
	r.put("c")
	r.rollback(1)
	r.verify()
	if err := r.list[3].Restore(snapshotOf(r.list[0])); err != nil { // behind the point: it has nothing to compare
		t.Fatal(err)
	}
	r.captures[3] = nil
	r.hash(2)
	r.hash(0) // the leader, which logs it
	if len(r.proposed) != 1 {
		t.Fatalf("%d entries proposed", len(r.proposed))
	}
	r.commit()
	r.hash(1)
	r.hash(3)
	for i, want := range []int{1, 1, 1, 0} {
		if r.errs[i] != nil || r.verified[i] != want || r.diverged[i] > 0 {
			t.Errorf("replica %d: verified %d times, %v", i, r.verified[i], r.errs[i])
		}
	}
	r.put("d")
	if err := errors.Join(r.errs...); err != nil {
		t.Error(err)
	}
}

func snapshotOf(s *Shard) (snapshot []byte) {
	_ = s.State().Capture().Write(func(b []byte) error { snapshot = append(snapshot, b...); return nil })
	return snapshot
}

// A replica whose state differs halts at the leader's hash, or, if its own comes later,
// at the next entry; the others go on.
func TestDivergedReplicaHalts(t *testing.T) {
	r := newReplicas(t, 3)
	for n := range byte(3) {
		r.rollback(n)
	}
	r.rollback(9, 1, 2) // which both followers miss
	r.verify()
	mine, theirs := r.captures[0][0].State.Hash(), r.captures[1][0].State.Hash()
	r.hash(0)
	r.hash(1)
	r.commit()
	if err := r.errs[1]; !errors.Is(err, txn.ErrDiverged) || !strings.Contains(err.Error(), fmt.Sprintf("%x", mine)) || !strings.Contains(err.Error(), fmt.Sprintf("%x", theirs)) {
		t.Errorf("at the leader's hash: %v", err)
	}
	if r.hash(2); r.diverged[2] != 1 || r.errs[2] != nil {
		t.Errorf("behind it: %d notices, %v", r.diverged[2], r.errs[2])
	}
	r.rollback(4)
	if !errors.Is(r.errs[2], txn.ErrDiverged) {
		t.Errorf("at the next entry: %v", r.errs[2])
	}
	if r.errs[0] != nil || r.list[0].State().Get(txnid.New(1_750_000_000_000, [10]byte{4})) == nil {
		t.Errorf("the leader: %v", r.errs[0])
	}
}

// A replica that finds that it differs leads no more: whoever waits is told to ask again.
func TestDivergedLeaderStepsDown(t *testing.T) {
	r := newReplicas(t, 1)
	for n := range byte(4) {
		r.rollback(n)
	}
	r.verify()
	r.proposed = append(r.proposed, make([]byte, txn.HeaderBytes))
	r.proposed[0] = txn.AppendHash(r.proposed[0], r.index, [32]byte{1}) // an earlier leader's
	txn.PutHeader(r.proposed[0], 1, 1_750_000_000_000)
	r.commit()
	var told reason.Code
	r.step(0, &Rollback{Token: 7, ID: txnid.New(1_750_000_000_000, [10]byte{8})})
	r.list[0].Step(r.time(), &Hashed{Index: r.captures[0][0].Index, Hash: r.captures[0][0].State.Hash()})
	for _, rep := range r.list[0].Ready().Replies {
		told = rep.Err.Code
	}
	if r.act(0); r.list[0].Leading() || told != reason.OutcomeUnknown {
		t.Errorf("leads %t, told %q", r.list[0].Leading(), told)
	}
	if r.commit(); !errors.Is(r.errs[0], txn.ErrDiverged) {
		t.Errorf("goes on: %v", r.errs[0])
	}
}

// How often states are compared: not within the interval, not without entries in between,
// not below the level, and not at all if it is turned off.
func TestWhenStatesAreCompared(t *testing.T) {
	r := newReplicas(t, 1)
	quiet := func(what string) {
		t.Helper()
		r.nowUs += 2_000
		if r.step(0, &Tick{}); len(r.proposed) > 0 {
			t.Errorf("%s: %d entries proposed", what, len(r.proposed))
		}
	}
	quiet("after one entry")
	for n := range byte(3) {
		r.rollback(n)
	}
	r.verify()
	quiet("after VERIFY")
	r.hash(0)
	r.commit()
	quiet("after HASH")
	if wake := r.list[0].Ready().WakeAtUs; wake <= r.nowUs || wake > r.nowUs+1_000 {
		t.Errorf("Tick due at %d, now %d", wake, r.nowUs)
	}
	for name, change := range map[string]func(){
		"turned off": func() { r.list[0].cfg.HashCheckIntervalUs = 0 },
		"level 1":    func() { r.step(0, &Lead{Term: 1, Level: 1}) },
	} {
		r = &replicas{t: t, list: []*Shard{New(verifying())}, captures: make([][]Capture, 1), verified: make([]int, 1), diverged: make([]int, 1), errs: make([]error, 1)}
		if change(); len(r.proposed) == 0 {
			r.step(0, &Lead{Term: 1})
		}
		r.commit()
		for n := range byte(9) {
			r.rollback(n)
		}
		quiet(name)
	}
}
