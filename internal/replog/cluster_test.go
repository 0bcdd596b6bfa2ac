package replog

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// wires connect the logs of a test's nodes. A cut node reaches nobody, and nobody
// reaches it.
type wires struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener // by member and shard
	cut       map[string]bool
	conns     map[net.Conn][2]string
}

type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

type wiredNode struct {
	*wires
	member string
}

func wireKey(member string, shard uint32) string { return fmt.Sprint(member, "/", shard) }

func (n wiredNode) Listener(shard uint32) net.Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	n.listeners[wireKey(n.member, shard)] = l
	return l
}

func (n wiredNode) Dial(member string, shard uint32, timeout time.Duration) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[wireKey(member, shard)]
	cut := n.cut[member] || n.cut[n.member]
	n.mu.Unlock()
	if l == nil || cut {
		return nil, errors.New("unreachable")
	}
	here, there := net.Pipe()
	select {
	case l.conns <- there:
	case <-l.done:
		return nil, net.ErrClosed
	case <-time.After(timeout):
		return nil, errors.New("timed out")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[here], n.conns[there] = [2]string{member, n.member}, [2]string{member, n.member}
	return here, nil
}

// isolate cuts a member off, or brings it back.
func (w *wires) isolate(member string, off bool) {
	w.mu.Lock()
	w.cut[member] = off
	w.mu.Unlock()
	if off {
		w.hangUp(member)
	}
}

// hangUp closes a member's connections.
func (w *wires) hangUp(member string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c, ends := range w.conns {
		if ends[0] == member || ends[1] == member {
			_ = c.Close()
			delete(w.conns, c)
		}
	}
}

// testNode is a node of a testCluster. Nodes are stopped when the test ends.
type testNode struct {
	id  string
	dir string
	rec *recorder
	log *Log
}

func (n *testNode) group() Group { return n.log.Group(0) }

type testCluster struct {
	t     *testing.T
	wires *wires
	nodes []*testNode
}

// patient has a node wait for a leader longer than a slow machine stops.
func patient(cfg *Config) { cfg.ElectionTimeoutMs = 3000 }

// newTestCluster starts a cluster of founders.
func newTestCluster(t *testing.T, size int, with ...func(*Config)) *testCluster {
	c := &testCluster{t: t, wires: &wires{listeners: map[string]*pipeListener{}, cut: map[string]bool{}, conns: map[net.Conn][2]string{}}}
	var founders []string
	for i := range size {
		founders = append(founders, c.claim(fmt.Sprintf("n%d", i+1)).id)
	}
	for _, n := range c.nodes {
		c.start(n, func(cfg *Config) {
			cfg.Founders, cfg.Replicas = founders, 3
			for _, edit := range with {
				edit(cfg)
			}
		})
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			if n.log != nil {
				c.stop(n)
			}
		}
	})
	return c
}

func (c *testCluster) claim(name string) *testNode {
	n := &testNode{dir: c.t.TempDir()}
	id, err := Claim(n.dir, name)
	if err != nil {
		c.t.Fatal(err)
	}
	if again, err := Claim(n.dir, name); err != nil || again.Member != id.Member {
		c.t.Fatal(again, err)
	}
	n.id = id.Member
	c.nodes = append(c.nodes, n)
	return n
}

const testCluster16 = "00112233445566778899aabbccddeeff"

func (c *testCluster) start(n *testNode, with func(*Config)) {
	c.t.Helper()
	n.rec = newRecorder()
	cfg := Config{
		Dir: n.dir, NodeID: n.id[:2], ClusterID: testCluster16, Machines: []Machine{n.rec}, Peers: wiredNode{c.wires, n.id},
		ElectionTimeoutMs: 300, TrailingEntries: 4, SnapshotAfterEntries: 20,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), OnFatal: func(err error) { c.t.Error(n.id, err) },
	}
	if with != nil {
		with(&cfg)
	}
	var err error
	if n.log, err = Open(cfg); err != nil {
		c.t.Fatal(err)
	}
}

func (c *testCluster) stop(n *testNode) {
	c.t.Helper()
	if err := n.log.Close(); err != nil {
		c.t.Fatal(err)
	}
	n.log = nil
	c.wires.hangUp(n.id)
}

func (c *testCluster) await(what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			c.t.Fatal("not reached: ", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// leader waits for a leader among the nodes that run and are not cut off.
func (c *testCluster) leader() *testNode {
	c.t.Helper()
	var found *testNode
	c.await("a leader", func() bool {
		for _, n := range c.nodes {
			if n.log != nil && !c.isCut(n) && n.group().Leader() == n.id && n.log.groups[0].leads().Leading {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

func (c *testCluster) isCut(n *testNode) bool {
	c.wires.mu.Lock()
	defer c.wires.mu.Unlock()
	return c.wires.cut[n.id]
}

// append proposes until it is certain, wherever the leader is.
func (c *testCluster) append(data string) {
	c.t.Helper()
	c.await("append "+data, func() bool {
		done := make(chan error, 1)
		c.leader().group().Propose([]byte(data), func(err error) { done <- err })
		return <-done == nil
	})
}

// settled: every node that is a member has the whole stream. What was proposed again, since
// nobody knew whether it was appended, may be there twice.
func (c *testCluster) settled(want []string, nodes ...*testNode) {
	c.t.Helper()
	for _, n := range nodes {
		c.await(fmt.Sprintf("%s has the stream of %d", n.id, len(want)), func() bool { return slices.Equal(slices.Compact(slices.Clone(n.rec.stream())), want) })
	}
}

func TestThreeNodes(t *testing.T) {
	c := newTestCluster(t, 3)
	var want []string
	add := func(n int) {
		for range n {
			want = append(want, fmt.Sprint("entry ", len(want)))
			c.append(want[len(want)-1])
		}
	}
	add(5)
	c.settled(want, c.nodes...)

	// The leader is lost: the others go on, and it catches up by a snapshot.
	old := c.leader()
	c.wires.isolate(old.id, true)
	add(60)
	if c.leader() == old {
		t.Fatal("the same leader")
	}
	c.wires.isolate(old.id, false)
	c.settled(want, c.nodes...)
	c.await("a snapshot of it", func() bool { return old.group().Stats().SnapshotIndex > 0 })
	if id := old.log.Identity().Member; id != old.id {
		t.Error(id)
	}

	// Each of them restarts, with what it has.
	for _, n := range c.nodes {
		c.stop(n)
		add(3)
		c.start(n, nil)
		c.settled(want, n)
	}
	lead := c.leader()
	to := c.nodes[(slices.Index(c.nodes, lead)+1)%3]
	c.await("the transfer", func() bool { // refused, perhaps, by one that has just lost its lead
		if now := c.leader(); now != to {
			_ = now.group().Transfer(to.id)
			return false
		}
		return true
	})
	if err := lead.group().Promote("x@1"); !errors.Is(err, ErrNotAppended) {
		t.Error(err)
	}
	add(1)
	c.settled(want, c.nodes...)
}

// TestTransferInVain: a dead voter that is asked to lead, again and again, does not stop the
// group.
func TestTransferInVain(t *testing.T) {
	c := newTestCluster(t, 3, patient)
	c.append("a")
	lead := c.leader()
	dead := c.nodes[(slices.Index(c.nodes, lead)+1)%3]
	c.stop(dead)
	for try := range 3 {
		err := lead.group().Transfer(dead.id)
		if !errors.Is(err, ErrNotTaken) || try > 0 != strings.Contains(err.Error(), "a moment ago") {
			t.Error(try, err)
		}
	}
	c.append("b")
	if c.leader() != lead {
		t.Error("another leads")
	}
}

// TestGrow: one node becomes three, and keeps its data; one is replaced.
func TestGrow(t *testing.T) {
	c := newTestCluster(t, 1)
	var want []string
	add := func(n int) {
		for range n {
			want = append(want, fmt.Sprint("entry ", len(want)))
			c.append(want[len(want)-1])
		}
	}
	add(50)
	for _, name := range []string{"n2", "n3", "n4"} {
		n := c.claim(name)
		c.start(n, func(cfg *Config) {
			cfg.Join = true
			patient(cfg)
		})
		if m := n.group().Members(); m != nil {
			t.Fatal(m)
		}
		c.await(name+" learns", func() bool { return c.leader().group().AddLearner(n.id) == nil })
		c.settled(want, n)
		c.await(name+" votes", func() bool { return c.leader().group().Promote(n.id) == nil })
		add(3)
	}
	first := c.nodes[0]
	c.await("the first is removed", func() bool {
		lead := c.leader()
		if lead == first {
			_ = lead.group().Transfer(c.nodes[1].id) // tried again if it is refused
			return false
		}
		return lead.group().Remove(first.id) == nil
	})
	c.await("three voters", func() bool { return len(c.leader().group().Members()) == 3 })
	c.stop(first)
	add(5)
	c.settled(want, c.nodes[1:]...)
	// It may start, and disturbs nobody, though it stands long before another would.
	c.start(first, nil)
	lead, term := c.leader(), c.leader().log.groups[0].raft.CurrentTerm()
	for begin := time.Now(); time.Since(begin) < time.Second; {
		add(10)
	}
	if now := c.leader(); now != lead || now.log.groups[0].raft.CurrentTerm() != term {
		t.Error("a removed node disturbs the cluster")
	}
}

// TestLostDirectory: a node that lost its directory is another member, and has no vote.
func TestLostDirectory(t *testing.T) {
	c := newTestCluster(t, 3)
	c.append("x")
	lost := c.nodes[0]
	c.stop(lost)
	n := c.claim("n1")
	if n.id == lost.id {
		t.Fatal("the same member")
	}
	c.start(n, func(cfg *Config) { cfg.Join = true })
	c.stop(c.nodes[1])
	// One voter of three is left: with the newcomer there is no majority.
	done := make(chan error, 1)
	c.nodes[2].group().Propose([]byte("y"), func(err error) { done <- err })
	select {
	case err := <-done:
		if err == nil {
			t.Fatal("a majority with a member that nobody took in")
		}
	case <-time.After(time.Second):
	}
}
