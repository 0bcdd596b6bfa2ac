package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/assent-tx/assent/internal/cluster"
	"github.com/assent-tx/assent/internal/ledger"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/peer"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/replog"
	rmhttp "github.com/assent-tx/assent/internal/rm/http"
	"github.com/assent-tx/assent/internal/serveproc"
	"github.com/assent-tx/assent/internal/shard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// member is a node of a test's cluster, in this process.
type member struct {
	*cluster.Cluster
	t      *testing.T
	name   string
	dir    string
	peer   string // its address, for ever
	node   *node.Node
	log    *replog.Log
	port   *peer.Port
	caller *rmhttp.Client
	full   atomic.Bool // its disk
}

type world struct {
	t       *testing.T
	base    string
	shards  uint32
	members []*member
	ledgers []*ledger.Ledger
}

func newWorld(t *testing.T, shards uint32) *world {
	w := &world{t: t, shards: shards, base: t.TempDir()} // removed after what is cleaned up below
	t.Cleanup(func() {
		for _, l := range w.ledgers {
			_ = l.Close()
		}
		for _, m := range w.members {
			m.stop()
		}
	})
	return w
}

func (w *world) add(name string) *member {
	w.t.Helper()
	peer, err := serveproc.FreeAddress() // a connection may not take it while the member is down
	if err != nil {
		w.t.Fatal(err)
	}
	m := &member{t: w.t, name: name, dir: filepath.Join(w.base, name), peer: peer}
	w.members = append(w.members, m)
	return m
}

// start starts a member: with founders in a new cluster, with join in one that runs.
func (m *member) start(shards uint32, founders []*member, join string) error {
	id, err := replog.Claim(m.dir, m.name)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", m.peer)
	if err != nil {
		return err
	}
	logger := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", m.name)
	}
	var c *cluster.Cluster
	m.port = peer.New(l, peer.Config{
		Self: id.Member, Cluster: func() string { return c.ClusterID() }, Address: func(member string) (string, bool) { return c.Address(member) },
	})
	c = cluster.New(cluster.Config{
		Self: cluster.Self{Member: id.Member, Name: m.name, Peer: m.peer, HTTP: "http://" + m.name}, Port: m.port,
		LeaderPatience: 2 * time.Second, StatusEvery: 50 * time.Millisecond, DownAfter: 500 * time.Millisecond, BalanceEvery: 50 * time.Millisecond,
		Logger: logger,
	})
	m.Cluster = c
	static := map[string]string{}
	for _, f := range founders {
		static[f.name] = f.peer
	}
	if err := c.OpenBook(m.dir, static); err != nil {
		return err
	}
	m.port.Handle(c.Handlers())
	m.port.Serve()
	f := cluster.Founded(id)
	c.Introduce(f)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	switch want := (cluster.Founding{Shards: shards, Replicas: 3}); {
	case f.Shards > 0:
	case join != "":
		f, err = c.Join(ctx, join)
	case len(founders) > 1:
		f, err = c.Form(ctx, static, want)
	default:
		f = want
	}
	if err != nil {
		m.stop()
		return err
	}
	m.caller = rmhttp.New(rmhttp.Config{})
	m.node = node.New(node.Config{Name: m.name, Shards: f.Shards, Shard: shard.DefaultConfig(), Peers: c, LowSpace: m.full.Load, Logger: logger}, m.caller, nil)
	var machines []replog.Machine
	for i := range f.Shards {
		machines = append(machines, m.node.Machine(i))
	}
	m.log, err = replog.Open(replog.Config{
		Dir: m.dir, NodeID: m.name, ClusterID: f.Cluster, Incarnation: f.Incarnation, Founders: f.Founders, Replicas: f.Replicas, Join: f.Join,
		Machines: machines, Peers: m.port, ElectionTimeoutMs: 150, Logger: logger, OnFatal: func(err error) { m.t.Error(m.name, err) },
	})
	if err != nil {
		m.stop()
		return err
	}
	if err := m.node.Start(m.log); err != nil {
		return err
	}
	c.Start(m.node, m.log)
	return nil
}

// stop ends a member without a word to the others.
func (m *member) stop() {
	if m.Cluster == nil {
		return
	}
	m.port.Close() // first: it is gone for the others, as with a kill
	m.Cluster.Close()
	if m.log != nil {
		if err := m.log.Close(); err != nil {
			m.t.Error(m.name, err)
		}
	}
	if m.node != nil {
		m.node.Close()
	}
	m.Cluster, m.node, m.log, m.port = nil, nil, nil, nil
}

// found starts founders together.
func (w *world) found(names ...string) {
	w.t.Helper()
	for _, name := range names {
		w.add(name)
	}
	var all sync.WaitGroup
	for _, m := range w.members {
		all.Go(func() {
			if err := m.start(w.shards, w.members, ""); err != nil {
				w.t.Error(m.name, err)
			}
		})
	}
	all.Wait()
	w.await("all are ready", func() bool {
		for _, m := range w.members {
			if v, err := m.Cluster.Cluster(w.t.Context()); err != nil || len(v.Members) != len(w.members) || !m.Health().Ready {
				return false
			}
		}
		return true
	})
}

func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			for _, m := range w.members {
				if m.Cluster != nil {
					v, err := m.Cluster.Cluster(context.Background())
					w.t.Logf("%s: %+v, %+v, %v", m.name, m.Health(), v, err)
				}
			}
			w.t.Fatal("not reached: ", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// leader is who leads a shard, as a running member that is asked says.
func (w *world) leader(shard uint32) *member {
	w.t.Helper()
	var found *member
	w.await(fmt.Sprintf("a leader of shard %d", shard), func() bool {
		for _, m := range w.members {
			if m.node != nil && m.node.Shard(shard).Leading {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

func (w *world) other(than *member) *member {
	for _, m := range w.members {
		if m != than && m.node != nil {
			return m
		}
	}
	w.t.Fatal("there is no other")
	return nil
}

// serve runs ledgers and registers them at any node.
func (w *world) serve(at *member, names ...string) {
	w.t.Helper()
	for _, name := range names {
		l, err := ledger.Open(w.base, name, 20, 100, nil)
		if err == nil {
			err = l.Serve("127.0.0.1:0")
		}
		if err != nil {
			w.t.Fatal(err)
		}
		w.ledgers = append(w.ledgers, l)
		base := l.URL() + "/assent"
		if _, err := at.PutService(w.t.Context(), node.ServiceSpec{
			Name: name, PrepareURL: base + "/prepare", CommitURL: base + "/commit", RollbackURL: base + "/rollback", StatusURL: base + "/status", ExecuteURL: base + "/execute", Capabilities: []string{"one_phase", "read_only", "list_in_doubt", "tombstone"},
		}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func transfer(id string, from, to int, amount int) node.Submission {
	op := func(service string, account, amount int) node.Operation {
		return node.Operation{
			Service: service, Payload: fmt.Appendf(nil, `{"transfer":%q,"account":%d,"amount":%d}`, id, account, amount),
			Locks: []node.DeclaredLock{{Key: fmt.Sprintf("accounts/%d", account)}},
		}
	}
	return node.Submission{ID: id, Operations: []node.Operation{op("bank-a", from, -amount), op("bank-b", to, amount)}, Wait: node.WaitCompleted}
}

func (w *world) submit(at *member, s node.Submission) {
	w.t.Helper()
	got, err := repeated(w.t, func(ctx context.Context) (node.Transaction, error) { return at.Submit(ctx, s) })
	if err != nil || got.State != "committed" {
		w.t.Fatalf("at %s: %+v, %v", at.name, got, err)
	}
}

// repeated makes a request as a client does: again, where a node found no leader in its
// patience, or its leader went away. An election may take its time on a busy machine.
func repeated[A any](t *testing.T, request func(context.Context) (A, error)) (A, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		answer, err := request(ctx)
		if c := code(err); c != reason.NotReady && c != reason.OutcomeUnknown || ctx.Err() != nil {
			return answer, err
		}
	}
}

func code(err error) reason.Code {
	var refused *reason.Error
	if errors.As(err, &refused) {
		return refused.Code
	}
	return ""
}

func TestThreeNodes(t *testing.T) {
	w := newWorld(t, 2)
	w.found("n1", "n2", "n3")
	w.serve(w.members[1], "bank-a", "bank-b")
	for i, m := range w.members {
		for range 4 { // at either shard
			w.submit(m, transfer(node.NewID().String(), 1+i, 2+i, 1))
		}
		list, err := m.Transactions(t.Context(), node.ListQuery{})
		if err != nil || len(list.Transactions) != 4*(i+1) {
			t.Errorf("%s lists %d, %v", m.name, len(list.Transactions), err)
		}
		services, err := m.Services(t.Context())
		if err != nil || len(services) != 2 {
			t.Errorf("%s: %v, %v", m.name, services, err)
		}
		if _, err := m.Service(t.Context(), "none"); code(err) != reason.NotFound {
			t.Error(err)
		}
		if _, err := m.Submit(t.Context(), node.Submission{Operations: []node.Operation{{Service: "none", Payload: []byte("1")}}}); code(err) != reason.UnknownService {
			t.Error(err)
		}
		if _, err := m.Transaction(t.Context(), node.NewID().String()); code(err) != reason.NotFound {
			t.Error(err)
		}
		if _, err := m.Locks(t.Context(), node.LockQuery{}); err != nil {
			t.Error(err)
		}
		if _, err := m.Deadlocks(t.Context()); err != nil {
			t.Error(err)
		}
	}
	w.await("everybody is in the table, and knows it", func() bool {
		for _, m := range w.members {
			v, err := m.Cluster.Cluster(t.Context())
			if err != nil || len(v.Members) != 3 || len(v.Shards) != 2 || v.Shards[0].Leader == "" || len(v.Shards[1].Voters) != 3 {
				return false
			}
			for _, o := range v.Members {
				if o.State != "up" || o.Peer == "" {
					return false
				}
			}
		}
		return true
	})
}

// TestLeaderDies: what is under way at a leader that dies goes on at the next, whoever
// waits for it is answered, and nothing is aborted.
func TestLeaderDies(t *testing.T) {
	w := newWorld(t, 1)
	w.found("n1", "n2", "n3")
	w.serve(w.members[0], "bank-a", "bank-b")
	for range 3 {
		dead := w.leader(0)
		at := w.other(dead)
		held, err := at.Begin(t.Context(), node.Beginning{Timeout: time.Minute, IdleTimeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		read := node.Step{Number: 1, Operations: []node.StepOperation{{Operation: node.Operation{Service: "bank-a", Payload: []byte(`{"op":"read","account":1}`), Locks: []node.DeclaredLock{{Key: "accounts/1"}}}, Now: true}}}
		if _, err := at.Enlist(t.Context(), held.ID, read); err != nil {
			t.Fatal(err)
		}
		// Younger, at another node than the one that will lead: it waits for the lock.
		waiter := make(chan error, 1)
		s := transfer(node.NewID().String(), 1, 2, 1)
		s.Timeout = time.Minute
		go func() {
			got, err := repeated(t, func(ctx context.Context) (node.Transaction, error) { return at.Submit(ctx, s) })
			if err == nil && got.State != "committed" {
				err = fmt.Errorf("%+v", got)
			}
			waiter <- err
		}()
		w.await("it waits", func() bool {
			got, err := at.Transaction(t.Context(), s.ID)
			return err == nil && got.WaitsFor != nil
		})
		dead.stop()
		// The step is known to the next leader, and so is the lock.
		again, err := repeated(t, func(ctx context.Context) (node.Transaction, error) { return at.Enlist(ctx, held.ID, read) })
		if err != nil || again.Abort != nil || len(again.StepResults) != 1 {
			t.Fatalf("%+v, %v", again, err)
		}
		select {
		case err := <-waiter:
			t.Fatal("it did not wait: ", err)
		default:
		}
		commit := func(ctx context.Context) (node.Transaction, error) { return at.Commit(ctx, held.ID, node.WaitDecided) }
		if done, err := repeated(t, commit); err != nil || done.Abort != nil {
			t.Fatalf("%+v, %+v, %v", done, done.Abort, err)
		}
		if err := <-waiter; err != nil {
			t.Fatal(err)
		}
		if err := dead.start(w.shards, nil, ""); err != nil {
			t.Fatal(err)
		}
		w.await("it is back", func() bool { return dead.Health().Ready })
	}
}

// TestMinority: who reaches no majority refuses, and says whom it took for the leader.
func TestMinority(t *testing.T) {
	w := newWorld(t, 1)
	w.found("n1", "n2", "n3")
	w.serve(w.members[0], "bank-a", "bank-b")
	left := w.leader(0)
	for _, m := range w.members {
		if m != left {
			m.stop()
		}
	}
	const patience = 20 * time.Second // of each request: what is awaited in between takes its own time
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s := transfer(node.NewID().String(), 1, 2, 1)
	_, err := left.Submit(ctx, s)
	if c := code(err); c != reason.NotReady && c != reason.OutcomeUnknown {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Error("the submission waited for ever")
	}
	w.await("it is not ready", func() bool { return !left.Health().Ready })
	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := left.Transaction(ctx, node.NewID().String()); code(err) != reason.NotReady {
		t.Error(err)
	}
	if ctx.Err() != nil {
		t.Error("the question waited for ever")
	}
	for _, m := range w.members {
		if m != left {
			if err := m.start(w.shards, w.members, ""); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	w.submit(left, s) // once, whatever became of the first try
}

// TestGrow: one node with data becomes three; the first is removed.
func TestGrow(t *testing.T) {
	w := newWorld(t, 2)
	w.found("n1")
	first := w.members[0]
	w.serve(first, "bank-a", "bank-b")
	w.submit(first, transfer(node.NewID().String(), 1, 2, 5))
	for _, name := range []string{"n2", "n3"} {
		if err := w.add(name).start(0, nil, first.peer); err != nil {
			t.Fatal(err)
		}
	}
	voters := func(at *member) (n []int) {
		v, err := at.Cluster.Cluster(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range v.Shards {
			n = append(n, len(s.Voters))
		}
		return n
	}
	last := w.members[2]
	w.await("three voters of each shard", func() bool { return fmt.Sprint(voters(last)) == "[3 3]" && last.Health().Ready })
	w.submit(last, transfer(node.NewID().String(), 3, 4, 5))
	list, err := last.Transactions(t.Context(), node.ListQuery{})
	if err != nil || len(list.Transactions) != 2 {
		t.Fatal(list, err)
	}
	// A fourth, and the first may go.
	fourth := w.add("n4")
	if err := fourth.start(0, nil, last.peer); err != nil {
		t.Fatal(err)
	}
	if _, err := last.RemoveMember(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	w.await("it is removed", func() bool {
		v, err := last.Cluster.Cluster(t.Context())
		return err == nil && len(v.Members) == 3 && fmt.Sprint(voters(last)) == "[3 3]"
	})
	first.stop()
	w.submit(fourth, transfer(node.NewID().String(), 5, 6, 5))
	if _, err := last.RemoveMember(t.Context(), "n1"); code(err) != reason.UnknownMember {
		t.Error(err)
	}
}

// TestLeave: a node that ends gives up what it leads.
func TestLeave(t *testing.T) {
	w := newWorld(t, 2)
	w.found("n1", "n2", "n3")
	w.serve(w.members[0], "bank-a", "bank-b")
	leaving := w.leader(0)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	leaving.Leave(ctx)
	if ctx.Err() != nil || leaving.node.Shard(0).Leading && leaving.log.Group(0).Leader() != "" && strings.HasPrefix(leaving.log.Group(0).Leader(), leaving.name) {
		t.Error("it still leads")
	}
	w.submit(leaving, transfer(node.NewID().String(), 1, 2, 1)) // what still comes is handed on
}

// TestNoRoom: a leader whose disk is nearly full lets another lead, and new transactions
// go on there.
func TestNoRoom(t *testing.T) {
	w := newWorld(t, 1)
	w.found("n1", "n2", "n3")
	w.serve(w.members[0], "bank-a", "bank-b")
	full := w.leader(0)
	full.full.Store(true)
	w.await("another leads", func() bool {
		for _, m := range w.members {
			if m != full && m.node.Shard(0).Leading {
				return true
			}
		}
		return false
	})
	w.submit(full, transfer(node.NewID().String(), 1, 2, 1))
}

// TestNotStarted: what a node does not know before its log is open, it does not answer.
func TestNotStarted(t *testing.T) {
	c := cluster.New(cluster.Config{})
	defer c.Close()
	ctx := t.Context()
	for name, ask := range map[string]func() error{
		"transactions": func() error { _, err := c.Transactions(ctx, node.ListQuery{}); return err },
		"transaction":  func() error { _, err := c.Transaction(ctx, node.NewID().String()); return err },
		"locks":        func() error { _, err := c.Locks(ctx, node.LockQuery{}); return err },
		"deadlocks":    func() error { _, err := c.Deadlocks(ctx); return err },
		"services":     func() error { _, err := c.Services(ctx); return err },
		"service":      func() error { _, err := c.Service(ctx, "a"); return err },
		"cluster":      func() error { _, err := c.Cluster(ctx); return err },
		"remove":       func() error { _, err := c.RemoveMember(ctx, "n1"); return err },
		"drain":        func() error { _, err := c.DrainMember(ctx, "n1", true); return err },
		"transfer":     func() error { _, err := c.TransferShard(ctx, 0, ""); return err },
		"submit":       func() error { _, err := c.Submit(ctx, node.Submission{}); return err },
	} {
		if err := ask(); code(err) != reason.NotReady {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTransferIsTold: a transfer answers once the asked node has heard of the new leader.
func TestTransferIsTold(t *testing.T) {
	w := newWorld(t, 1)
	w.found("n1", "n2", "n3")
	for _, asked := range w.members {
		var to *member
		v, err := repeated(t, func(ctx context.Context) (node.Cluster, error) { // refused while it is not heard, say
			to = w.other(w.leader(0))
			return asked.TransferShard(ctx, 0, to.name)
		})
		if err != nil {
			t.Fatal(err)
		}
		if s := v.Shards[0]; !strings.HasPrefix(s.Leader, to.name+"@") || s.Term == 0 {
			t.Errorf("asked at %s for %s: %+v", asked.name, to.name, s)
		}
		w.await("it leads", func() bool { return to.node.Shard(0).Leading })
	}
}

// TestTransferToDead: a lead is not offered to a node that is down, and the shard goes on.
func TestTransferToDead(t *testing.T) {
	w := newWorld(t, 1)
	w.found("n1", "n2", "n3")
	leader := w.leader(0)
	i := slices.IndexFunc(w.members, func(m *member) bool { return m != leader })
	dead := w.members[i]
	dead.stop()
	w.members = slices.Delete(w.members, i, i+1)
	w.await("it is not heard", func() bool {
		v, err := leader.Cluster.Cluster(t.Context())
		return err == nil && slices.ContainsFunc(v.Members, func(m node.Member) bool { return m.Name == dead.name && m.State == "down" })
	})
	for range 3 {
		if _, err := leader.TransferShard(t.Context(), 0, dead.name); code(err) != reason.NotReady {
			t.Errorf("%v", err)
		}
	}
	w.serve(leader, "bank-a", "bank-b")
	w.submit(leader, transfer(node.NewID().String(), 1, 2, 1))
}

// TestLeaderHint: a node without a majority names the leader that it knew last.
func TestLeaderHint(t *testing.T) {
	w := newWorld(t, 1)
	w.found("n1", "n2", "n3")
	for _, m := range w.members {
		w.await("it knows where the others are", func() bool {
			v, err := m.Cluster.Cluster(t.Context())
			unknown := func(m node.Member) bool { return m.HTTP == "" }
			return err == nil && !slices.ContainsFunc(v.Members, unknown)
		})
	}
	// The leader last: until then there is a majority.
	w.other(w.leader(0)).stop()
	var leader, left *member
	w.await("it knows the leader", func() bool { // another one, perhaps, than before
		leader = w.leader(0)
		left = w.other(leader)
		h := left.Health()
		return h.Ready && h.Shards[0].Leader == leader.name
	})
	leader.stop()
	w.await("the hint", func() bool {
		_, err := left.Transaction(t.Context(), node.NewID().String())
		var refused *reason.Error
		return errors.As(err, &refused) && refused.Code == reason.NotReady && refused.RetryAfterMs > 0 && refused.Details["leader"] == leader.name &&
			refused.Details["leader_http"] == "http://"+leader.name
	})
}

// TestRemovedNode: a node that was removed while it ran, or was down, says so.
func TestRemovedNode(t *testing.T) {
	w := newWorld(t, 1)
	w.found("n1", "n2", "n3")
	gone, at := w.members[2], w.members[0]
	if _, err := at.RemoveMember(t.Context(), "n3"); err != nil {
		t.Fatal(err)
	}
	said := func() bool { h := gone.Health(); return !h.Ready && strings.Contains(h.Message, "removed") }
	w.await("it says that it was removed", said)
	gone.stop()
	if err := gone.start(1, nil, ""); err != nil {
		t.Fatal(err)
	}
	w.await("it says so again", said)
}

// TestTreatment: what is asked at different nodes at once is decided in one order, not all
// are removed, and a removal is taken back.
func TestTreatment(t *testing.T) {
	w := newWorld(t, 1)
	w.found("n1", "n2", "n3")
	var all sync.WaitGroup
	var refused atomic.Int32
	var stays atomic.Pointer[member]
	for _, m := range w.members {
		all.Go(func() {
			unknown := false
			_, err := repeated(t, func(ctx context.Context) (node.Cluster, error) {
				v, err := m.RemoveMember(ctx, m.name)
				if unknown && code(err) == reason.UnknownMember { // an earlier try has removed it
					return v, nil
				}
				unknown = unknown || code(err) == reason.OutcomeUnknown
				return v, err
			})
			if code(err) == reason.MemberInUse {
				refused.Add(1)
				stays.Store(m)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if refused.Load() != 1 {
		t.Fatalf("%d removals of three were refused", refused.Load())
	}
	leaving := func(at *member) (list []string) {
		v, err := at.Cluster.Cluster(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range v.Members {
			if m.State == "leaving" {
				list = append(list, m.Name)
			}
		}
		return list
	}
	at := stays.Load()
	for _, name := range leaving(at) { // one that has left by now is not known any more
		takeBack := func(ctx context.Context) (node.Cluster, error) { return at.DrainMember(ctx, name, false) }
		if _, err := repeated(t, takeBack); err != nil && code(err) != reason.UnknownMember {
			t.Error(err)
		}
	}
	w.await("nobody leaves", func() bool { return len(leaving(at)) == 0 })
}

func TestForming(t *testing.T) {
	w := newWorld(t, 1)
	w.found("n1", "n2", "n3")
	// A founder that has lost its directory is not taken for itself.
	lost := w.members[0]
	lost.stop()
	lost.dir = filepath.Join(w.base, "new")
	if err := lost.start(1, w.members, ""); !errors.Is(err, cluster.ErrNotCountedIn) {
		t.Error(err)
	}
	if err := lost.start(1, nil, w.members[1].peer); code(err) != reason.MemberInUse {
		t.Error(err)
	}
	at := w.members[1]
	if _, err := at.RemoveMember(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	w.await("the lost one is forgotten", func() bool {
		v, err := at.Cluster.Cluster(t.Context())
		return err == nil && len(v.Members) == 2
	})
	if err := lost.start(1, nil, at.peer); err != nil {
		t.Fatal(err)
	}
	w.await("it is back", func() bool { return lost.Health().Ready })
	// Another name at an address, and a cluster that is not there.
	other := w.add("n9")
	if err := other.start(1, []*member{other, {name: "x", peer: at.peer}}, ""); err == nil || !strings.Contains(err.Error(), `is node "n2", not "x"`) {
		t.Error(err)
	}
}
