package node_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/replog"
	rmhttp "github.com/assent-tx/assent/internal/rm/http"
	"github.com/assent-tx/assent/internal/shard"
)

// BenchmarkDeadlock is how soon a cycle of waiting is broken: from the request that
// closes it to the answer of the youngest, which dies, and to that of the eldest, which
// asked. Beside it the floor: a step of the same run that asks for a free lock, one append
// and nothing else. With 4 shards, keys and transactions are spread over all.
func BenchmarkDeadlock(b *testing.B) {
	for _, shards := range []uint32{1, 4} {
		for _, members := range []int{2, 4, 8} {
			b.Run(fmt.Sprintf("shards=%d/members=%d", shards, members), func(b *testing.B) { benchDeadlock(b, shards, members) })
		}
	}
}

func benchDeadlock(b *testing.B, shards uint32, members int) {
	n := node.New(node.Config{Name: "n1", Shards: shards, Shard: shard.DefaultConfig()}, rmhttp.New(rmhttp.Config{}), nil)
	machines := make([]replog.Machine, shards)
	for i := range machines {
		machines[i] = n.Machine(uint32(i))
	}
	log, err := replog.Open(replog.Config{Dir: b.TempDir(), NodeID: "n1", Machines: machines})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	defer func() { _ = log.Close() }()
	if err := n.Start(log); err != nil {
		b.Fatal(err)
	}
	if err := n.WaitReady(b.Context()); err != nil {
		b.Fatal(err)
	}
	const url = "http://127.0.0.1:9/" // nobody is called: only locks are taken
	if _, err := n.PutService(b.Context(), node.ServiceSpec{Name: "a", PrepareURL: url, CommitURL: url, RollbackURL: url, LockPartitions: shards}); err != nil {
		b.Fatal(err)
	}
	take := func(id string, step uint32, key int) (node.Transaction, error) {
		return n.Enlist(b.Context(), id, node.Step{Number: step, Locks: []node.ServiceLock{{Service: "a", DeclaredLock: node.DeclaredLock{Key: fmt.Sprint(key)}}}})
	}
	var free, victims, askers []time.Duration
	for range b.N {
		ids := make([]string, members)
		for i := range ids {
			ids[i] = node.NewID().String()
		}
		slices.Sort(ids) // by age
		for _, id := range ids {
			if _, err := n.Begin(b.Context(), node.Beginning{ID: id}); err != nil {
				b.Fatal(err)
			}
		}
		for i, id := range ids {
			sent := time.Now()
			if _, err := take(id, 1, i); err != nil {
				b.Fatal(err)
			}
			free = append(free, time.Since(sent))
		}
		answers := make([]chan time.Time, members)
		for i, id := range ids[1:] { // each waits for the one before it
			answers[i+1] = make(chan time.Time, 1)
			go func() {
				t, err := take(id, 2, i)
				answers[i+1] <- time.Now()
				if i < members-2 {
					return
				}
				if err != nil || t.Abort == nil || t.Abort.Reason != reason.Deadlock && t.Abort.Reason != reason.Wounded {
					b.Errorf("the youngest: %+v, %v", t, err)
				}
			}()
		}
		for waiting := 0; waiting < members-1; {
			page, err := n.Locks(b.Context(), node.LockQuery{Service: "a", Waited: true})
			if err != nil {
				b.Fatal(err)
			}
			waiting = len(page.Locks)
		}
		sent := time.Now()
		if t, err := take(ids[0], 2, members-1); err != nil || t.Abort != nil {
			b.Fatalf("the eldest: %+v, %v", t, err)
		}
		askers = append(askers, time.Since(sent))
		victims = append(victims, (<-answers[members-1]).Sub(sent))
		for i, id := range ids[:members-1] {
			if i > 0 {
				<-answers[i]
			}
			if _, err := n.Commit(b.Context(), id, node.WaitCompleted); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(0, "ns/op") // of no meaning here
	floor := quantile(free, 0.5)
	for _, of := range []struct {
		name string
		took []time.Duration
	}{{"floor", free}, {"victim", victims}, {"asker", askers}} {
		b.ReportMetric(ms(quantile(of.took, 0.5)), of.name+"_p50_ms")
		b.ReportMetric(ms(quantile(of.took, 0.99)), of.name+"_p99_ms")
	}
	b.ReportMetric(float64(quantile(victims, 0.5))/float64(floor), "victim_to_floor")
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func quantile(all []time.Duration, q float64) time.Duration {
	slices.Sort(all)
	return all[min(len(all)-1, int(q*float64(len(all))))]
}
