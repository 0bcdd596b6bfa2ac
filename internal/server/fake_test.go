package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a Coordinator that records what it is asked and answers what it is told
// to. Its zero functions answer plausible values.
type fake struct {
	mu          sync.Mutex
	submits     []node.Submission
	puts        []node.ServiceSpec
	queries     []node.ListQuery
	notes       []string
	begins      []node.Beginning
	steps       []node.Step
	commits     []node.WaitMode
	lockQueries []node.LockQuery
	moves       []string // of a cluster's administration
	noLeader    bool
	brokenPart  bool
	submit      func(context.Context, node.Submission) (node.Transaction, error)
	rollback    func(context.Context, string) (node.Transaction, error)
	service     func(context.Context, string) (node.Service, error)
	ready       bool
}

const (
	someID  = "019aa1b2-c3d4-7e5f-8a6b-0123456789ab"
	otherID = "019aa1b2-c3d5-7000-8000-000000000001"
)

var someTime = time.Date(2026, 11, 23, 14, 47, 5, 120_000_000, time.UTC)

// fullTransaction has every field set.
func fullTransaction() node.Transaction {
	return node.Transaction{
		ID: someID, State: "aborted", OnePhase: true, Hazard: true, Replayed: true, Timeout: 250 * time.Millisecond,
		Abort:       &node.Abort{Reason: reason.VotedNo, Message: "no funds", Service: "ledger-a"},
		WaitsFor:    &node.LockWait{Key: "ledger-a/accounts/42", Mode: "X", For: []string{otherID}},
		Interactive: true, IdleTimeout: time.Second, Age: someTime.Add(-time.Hour),
		Began: someTime, Granted: someTime.Add(time.Millisecond), Decided: someTime.Add(2 * time.Second), Ended: someTime.Add(time.Minute),
		Branches: []node.Branch{
			{
				ID: "1", Service: "ledger-a", State: "refused", Vote: "no", Operations: 2, Attempts: 3, LastError: "connection refused",
				Hazard: "committed", Resolution: "booked back by hand",
				Results: [][]byte{[]byte(`{"balance":9007199254740993}`), []byte(`null`)},
			},
			{ID: "2", Service: "ledger-b", State: "not_contacted", Operations: 1},
		},
	}
}

func fullService() node.Service {
	return node.Service{
		ServiceSpec: node.ServiceSpec{
			Name: "ledger-a", PrepareURL: "http://127.0.0.1:9001/prepare", CommitURL: "http://127.0.0.1:9001/commit",
			RollbackURL: "http://127.0.0.1:9001/rollback", StatusURL: "http://127.0.0.1:9001/status", ExecuteURL: "http://127.0.0.1:9001/execute",
			Resources: []string{"accounts"}, Capabilities: []string{"one_phase", "read_only", "list_in_doubt", "tombstone"},
			Isolation: "participant", RequireKeys: true, MaxInFlight: 7, PrepareTimeout: 3 * time.Second, FinishTimeout: 10 * time.Second,
		},
		Generation: 1<<63 + 1, State: "draining", OpenTransactions: 5, Registered: someTime, Updated: someTime.Add(time.Hour),
	}
}

func (f *fake) Submit(ctx context.Context, s node.Submission) (node.Transaction, error) {
	if s.Refusal != nil { // as the real one does, unless the id is known
		return node.Transaction{}, s.Refusal
	}
	f.mu.Lock()
	f.submits = append(f.submits, s)
	f.mu.Unlock()
	if f.submit != nil {
		return f.submit(ctx, s)
	}
	id := s.ID
	if id == "" {
		id = otherID
	}
	return node.Transaction{ID: id, State: "committed", Began: someTime, Branches: []node.Branch{{ID: "1", Service: s.Operations[0].Service, State: "committed", Vote: "yes"}}}, nil
}

func (f *fake) Transaction(_ context.Context, id string) (node.Transaction, error) {
	if id == someID {
		return fullTransaction(), nil
	}
	return node.Transaction{}, reason.New(reason.NotFound, "it may have been forgotten", "no transaction %s", id)
}

func (f *fake) Transactions(_ context.Context, q node.ListQuery) (node.TransactionPage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queries = append(f.queries, q)
	return node.TransactionPage{Transactions: []node.Transaction{fullTransaction()}, NextPageToken: someID}, nil
}

func (f *fake) Rollback(ctx context.Context, id string) (node.Transaction, error) {
	if f.rollback != nil {
		return f.rollback(ctx, id)
	}
	return node.Transaction{ID: id, State: "aborted", Abort: &node.Abort{Reason: reason.ClientRollback, Message: "asked by the client"}, Branches: []node.Branch{}}, nil
}

func (f *fake) Resolve(_ context.Context, id, note string) (node.Transaction, error) {
	f.mu.Lock()
	f.notes = append(f.notes, note)
	f.mu.Unlock()
	if id != someID {
		return node.Transaction{}, reason.New(reason.NotAHazard, "nothing is to be done", "transaction %s has no open hazard", id)
	}
	return fullTransaction(), nil
}

func (f *fake) PutService(_ context.Context, s node.ServiceSpec) (node.Service, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.puts = append(f.puts, s)
	return node.Service{ServiceSpec: s, Generation: 1, State: "active"}, nil
}

func (f *fake) Service(ctx context.Context, name string) (node.Service, error) {
	if f.service != nil {
		return f.service(ctx, name)
	}
	if name == "ledger-a" {
		return fullService(), nil
	}
	return node.Service{}, reason.New(reason.NotFound, "register it with PUT /v1/services/"+name, "no service %q", name)
}

func (f *fake) Services(context.Context) ([]node.Service, error) {
	return []node.Service{fullService()}, nil
}

func (f *fake) DeleteService(_ context.Context, name string) (node.Service, error) {
	if name != "ledger-a" {
		return node.Service{}, reason.New(reason.NotFound, "", "no service %q", name)
	}
	return fullService(), nil
}

func (f *fake) Begin(_ context.Context, b node.Beginning) (node.Transaction, error) {
	f.mu.Lock()
	f.begins = append(f.begins, b)
	f.mu.Unlock()
	t := node.Transaction{ID: b.ID, State: "active", Began: someTime, Age: someTime, Interactive: true, Timeout: b.Timeout, IdleTimeout: b.IdleTimeout, Branches: []node.Branch{}}
	if t.ID == "" {
		t.ID = otherID
	}
	if b.RetryOf != "" {
		t.Age = someTime.Add(-time.Minute)
	}
	return t, nil
}

func (f *fake) Enlist(_ context.Context, id string, s node.Step) (node.Transaction, error) {
	if s.Refusal != nil {
		return node.Transaction{}, s.Refusal
	}
	f.mu.Lock()
	f.steps = append(f.steps, s)
	f.mu.Unlock()
	if id != someID {
		return node.Transaction{}, reason.New(reason.NotFound, "begin it", "no transaction %s", id)
	}
	t := node.Transaction{ID: id, State: "active", Began: someTime, Age: someTime, Interactive: true, Branches: []node.Branch{}}
	for i := range s.Operations {
		result := []byte(nil)
		if s.Operations[i].Now {
			result = []byte(`{"balance":7}`)
		}
		t.StepResults = append(t.StepResults, result)
	}
	return t, nil
}

func (f *fake) Commit(_ context.Context, id string, wait node.WaitMode) (node.Transaction, error) {
	f.mu.Lock()
	f.commits = append(f.commits, wait)
	f.mu.Unlock()
	if id != someID {
		return node.Transaction{}, reason.New(reason.StepPending, "wait", "a step is under way")
	}
	return node.Transaction{ID: id, State: "committed", Began: someTime, Age: someTime, Interactive: true, Branches: []node.Branch{}}, nil
}

func (f *fake) Heartbeat(ctx context.Context, id string) (node.Transaction, error) {
	return f.Transaction(ctx, id)
}

func (f *fake) Locks(_ context.Context, q node.LockQuery) (node.LockPage, error) {
	f.mu.Lock()
	f.lockQueries = append(f.lockQueries, q)
	f.mu.Unlock()
	return node.LockPage{NextPageToken: "ledger-a/k 0", Locks: []node.Lock{{
		Service: "ledger-a", Key: "k", Shard: 1,
		Holders: []node.LockHolder{{Transaction: someID, Mode: "X", Age: someTime, Since: someTime.Add(time.Second)}},
		Waiters: []node.LockHolder{{Transaction: otherID, Mode: "S", Age: someTime}},
	}}}, nil
}

func (f *fake) Deadlocks(context.Context) ([]node.Deadlock, error) {
	return []node.Deadlock{{At: someTime, Shard: 1, Victim: otherID, Restarted: true, Cycle: []node.CycleWait{
		{Transaction: someID, Service: "ledger-a", Key: "k", Mode: "X", WaitsFor: otherID},
		{Transaction: otherID, Service: "ledger-b", Mode: "IX", WaitsFor: someID},
	}}}, nil
}

// theCluster has every field set, and every state.
func theCluster() node.Cluster {
	a, b, c := "n1@0f3a0001", "n2@0f3a0002", "n3@0f3a0003"
	return node.Cluster{
		ID: "00112233445566778899aabbccddeeff", Incarnation: 2, Node: "n1",
		Members: []node.Member{
			{ID: a, Name: "n1", Peer: "127.0.0.1:7102", HTTP: "http://127.0.0.1:7070", GRPC: "127.0.0.1:7071", State: "up", Level: 2},
			{ID: b, Name: "n2", Peer: "127.0.0.1:7202", HTTP: "http://127.0.0.1:7270", State: "down", Draining: true, Level: 2},
			{ID: c, Name: "n3", State: "leaving", Level: 1},
		},
		Shards: []node.ShardReplicas{
			{Shard: 0, Leader: a, Term: 1<<32 + 5, Voters: []string{a, b}, Learners: []string{c}},
			{Shard: 1, Voters: []string{b}},
		},
	}
}

func (f *fake) move(format string, args ...any) (node.Cluster, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.noLeader {
		e := reason.New(reason.NotReady, "try again", "shard 0 has no leader that this node reaches")
		e.Details = map[string]string{"leader": "n2", "leader_http": "http://127.0.0.1:7270"}
		return node.Cluster{}, e
	}
	f.moves = append(f.moves, fmt.Sprintf(format, args...))
	return theCluster(), nil
}

func (f *fake) Cluster(context.Context) (node.Cluster, error) { return theCluster(), nil }

func (f *fake) DrainMember(_ context.Context, name string, draining bool) (node.Cluster, error) {
	if name == "n9" {
		return node.Cluster{}, reason.New(reason.UnknownMember, "see assent cluster status", "the cluster has no node %q", name)
	}
	return f.move("drain %s %v", name, draining)
}

func (f *fake) RemoveMember(_ context.Context, name string) (node.Cluster, error) {
	if name == "n1" {
		return node.Cluster{}, reason.New(reason.MemberInUse, "let another node join first", "node %q is the last one", name)
	}
	return f.move("remove %s", name)
}

func (f *fake) TransferShard(_ context.Context, shard uint32, to string) (node.Cluster, error) {
	return f.move("transfer %d %s", shard, to)
}

func (f *fake) Backup(context.Context) (*node.Backup, error) {
	if f.noLeader {
		return nil, reason.New(reason.NotReady, "try again", "shard 0 has no leader that this node reaches")
	}
	parts := [][]byte{[]byte("first"), bytes.Repeat([]byte("x"), 3<<20)}
	return &node.Backup{
		Cluster: theCluster().ID, Incarnation: 2, Sizes: []int64{5, 3 << 20}, Release: func() {},
		Part: func(_ context.Context, shard uint32, put func([]byte) error) error {
			if shard == 1 && f.brokenPart {
				return errors.New("the leader is gone")
			}
			for piece := range slices.Chunk(parts[shard], 1<<20) {
				if err := put(piece); err != nil {
					return err
				}
			}
			return nil
		},
	}, nil
}

func (f *fake) Health() node.Health {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ready {
		return node.Health{Message: "shard 0 has no leader here yet"}
	}
	return node.Health{Ready: true, Message: "ready", Shards: []node.ShardHealth{{Shard: 0, Leading: true, Leader: "n1", Term: 3, Applied: 17}}}
}

func newServer(t testing.TB, f *fake, limits Limits) *Server {
	t.Helper()
	reg := prometheus.NewRegistry()
	s, err := New(Config{Coordinator: f, Limits: limits, Registerer: reg, Gatherer: reg})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// committed refuses a rollback as the coordinator does.
func committed(id string) (node.Transaction, error) {
	t := node.Transaction{ID: id, State: "committed", Decided: someTime, Branches: []node.Branch{{ID: "1", Service: "a", State: "committed", Vote: "yes", Operations: 1}}}
	return t, reason.New(reason.AlreadyCommitted, "undo it with a transaction of its own", "transaction %s is committed", id)
}
