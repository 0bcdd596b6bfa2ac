package assent_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/assent-tx/assent"
	"github.com/assent-tx/assent/internal/cluster"
	"github.com/assent-tx/assent/internal/ledger"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/peer"
	"github.com/assent-tx/assent/internal/replog"
	rmhttp "github.com/assent-tx/assent/internal/rm/http"
	"github.com/assent-tx/assent/internal/serveproc"
	"github.com/assent-tx/assent/internal/server"
	"github.com/assent-tx/assent/internal/shard"
)

// member is a whole node in this process, with its REST API.
type member struct {
	*cluster.Cluster
	name, dir, peer, http string
	node                  *node.Node
	log                   *replog.Log
	port                  *peer.Port
	api                   *server.Server
	web                   *httptest.Server
}

func freeAddress(t *testing.T) string {
	t.Helper()
	address, err := serveproc.FreeAddress() // a connection may not take it while its member is down
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func newMember(t *testing.T, base, name string) *member {
	m := &member{name: name, dir: filepath.Join(base, name), peer: freeAddress(t), http: freeAddress(t)}
	t.Cleanup(func() {
		if err := m.kill(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func (m *member) url() string { return "http://" + m.http }

// start starts a member as one of founders, or one that joins at an address.
func (m *member) start(founders []*member, join string) error {
	id, err := replog.Claim(m.dir, m.name)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", m.peer)
	if err != nil {
		return err
	}
	w, err := net.Listen("tcp", m.http)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	logger := slog.New(slog.DiscardHandler)
	var c *cluster.Cluster
	m.port = peer.New(l, peer.Config{
		Self: id.Member, Cluster: func() string { return c.ClusterID() }, Address: func(member string) (string, bool) { return c.Address(member) },
	})
	c = cluster.New(cluster.Config{
		Self: cluster.Self{Member: id.Member, Name: m.name, Peer: m.peer, HTTP: m.url()}, Port: m.port,
		LeaderPatience: 2 * time.Second, StatusEvery: 50 * time.Millisecond, DownAfter: 500 * time.Millisecond, BalanceEvery: 50 * time.Millisecond, Logger: logger,
	})
	m.Cluster = c
	reg := prometheus.NewRegistry()
	if m.api, err = server.New(server.Config{Coordinator: c, Registerer: reg, Gatherer: reg, Logger: logger}); err != nil {
		return err
	}
	m.web = &httptest.Server{Listener: w, Config: &http.Server{Handler: m.api.Handler(), ReadHeaderTimeout: time.Second}} //nolint:gosec // a test's
	m.web.Start()
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
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	switch {
	case f.Shards > 0:
	case join != "":
		f, err = c.Join(ctx, join)
	default:
		f, err = c.Form(ctx, static, cluster.Founding{Shards: 2, Replicas: 3})
	}
	if err != nil {
		return err
	}
	m.node = node.New(node.Config{Name: m.name, Shards: f.Shards, Shard: shard.DefaultConfig(), Peers: c, Logger: logger}, rmhttp.New(rmhttp.Config{}), nil)
	var machines []replog.Machine
	for i := range f.Shards {
		machines = append(machines, m.node.Machine(i))
	}
	m.log, err = replog.Open(replog.Config{
		Dir: m.dir, NodeID: m.name, ClusterID: f.Cluster, Incarnation: f.Incarnation, Founders: f.Founders, Replicas: f.Replicas, Join: f.Join,
		Machines: machines, Peers: m.port, ElectionTimeoutMs: 500, Logger: logger, OnFatal: func(err error) { panic(err) },
	})
	if err != nil {
		return err
	}
	if err := m.node.Start(m.log); err != nil {
		return err
	}
	c.Start(m.node, m.log)
	return nil
}

// kill ends a member without a word to anybody.
func (m *member) kill() (err error) {
	if m.Cluster == nil {
		return nil
	}
	m.port.Close()
	if m.web != nil {
		m.web.Listener.Close()
		m.web.CloseClientConnections()
	}
	m.Cluster.Close()
	if m.log != nil {
		err = m.log.Close()
	}
	if m.node != nil {
		m.node.Close()
	}
	if m.web != nil {
		m.web.Close()
	}
	if m.api != nil {
		m.api.Close()
	}
	m.Cluster, m.log, m.node, m.web, m.api = nil, nil, nil, nil, nil
	return err
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("not reached: ", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// leads reports whether a running member leads a shard.
func (m *member) leads(shard uint32) bool { return m.node != nil && m.node.Shard(shard).Leading }

// TestLeadersKilled: clients that were told of one node go on while leaders are killed, and
// while that node is replaced by another one. No error reaches their caller.
func TestLeadersKilled(t *testing.T) {
	base := t.TempDir()
	var members []*member
	for i := range 3 {
		members = append(members, newMember(t, base, fmt.Sprint("n", i+1)))
	}
	var all sync.WaitGroup
	for _, m := range members {
		all.Go(func() {
			if err := m.start(members, ""); err != nil {
				t.Error(m.name, err)
			}
		})
	}
	all.Wait()
	ready := func(want int) func() bool {
		return func() bool {
			for _, m := range members {
				if m.Cluster == nil {
					continue
				}
				v, err := m.Cluster.Cluster(t.Context())
				unknown := func(m node.Member) bool { return m.HTTP == "" } // to clients
				if err != nil || len(v.Members) != want || slices.ContainsFunc(v.Members, unknown) || !m.Health().Ready {
					return false
				}
			}
			return true
		}
	}
	await(t, "a cluster of three", ready(3))
	const somebodys = "0197b0c4-8000-7000-8000-000000000001" // at home in shard 0
	await(t, "answers say where they are from", func() bool {
		leader := ""
		for _, m := range members {
			if m.leads(0) {
				leader = m.name
			}
		}
		for _, m := range members { // leads may move meanwhile
			resp, err := http.Get(m.url() + "/v1/transactions/" + somebodys)
			if err != nil {
				return false
			}
			_ = resp.Body.Close()
			if from := resp.Header.Get(server.ForwardedHeader); m.name != leader && from != leader || m.name == leader && from != "" {
				return false
			}
		}
		return leader != ""
	})
	for _, name := range []string{"bank-a", "bank-b"} {
		l, err := ledger.Open(base, name, 10, 1_000_000, nil)
		if err == nil {
			err = l.Serve("127.0.0.1:0")
		}
		if err == nil {
			err = l.Register(t.Context(), "http://127.0.0.1:1,"+members[1].url())
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}

	c, err := assent.New(assent.Config{Endpoints: []string{members[0].url()}, Logger: debugLog()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const clients = 4
	var commits, worst atomic.Int64
	var stop atomic.Bool
	var done [clients]int
	for i := range clients {
		all.Go(func() {
			for !stop.Load() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				begin := time.Now()
				err := c.Run(ctx, func(ctx context.Context, tx *assent.Tx) error {
					return transfer(ctx, tx, fmt.Sprintf("k%d/%d", i, done[i]), 1+i, 1+i, 1)
				})
				cancel()
				if err != nil {
					t.Errorf("client %d, transaction %d: %v", i, done[i], err)
					return
				}
				done[i]++
				commits.Add(1)
				for took := int64(time.Since(begin)); ; {
					if w := worst.Load(); took <= w || worst.CompareAndSwap(w, took) {
						break
					}
				}
			}
		})
	}
	goOn := func() {
		t.Helper()
		was := commits.Load()
		await(t, "transactions go on", func() bool { return commits.Load() >= was+20 || t.Failed() })
	}
	goOn()
	for i := range uint32(3) {
		var dead *member
		await(t, "a leader", func() bool {
			for _, m := range members {
				if m.leads(i % 2) {
					dead = m
				}
			}
			return dead != nil
		})
		if err := dead.kill(); err != nil {
			t.Error(err)
		}
		goOn()
		if err := dead.start(members, ""); err != nil {
			t.Fatal(err)
		}
		await(t, "it is back", ready(3))
	}
	// The only node that was configured is replaced.
	fourth := newMember(t, base, "n4")
	if err := fourth.start(nil, members[1].peer); err != nil {
		t.Fatal(err)
	}
	if _, err := members[1].RemoveMember(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	gone := members[0]
	members = append(members[1:], fourth)
	await(t, "it is out", ready(3))
	if err := gone.kill(); err != nil {
		t.Error(err)
	}
	goOn()
	stop.Store(true)
	all.Wait()
	if t.Failed() {
		return
	}
	for i := range clients {
		a, b := balance(t, c, "bank-a", 1+i), balance(t, c, "bank-b", 1+i)
		if a != 1_000_000-done[i] || b != 1_000_000+done[i] {
			t.Errorf("client %d: %d commits, balances %d and %d", i, done[i], a, b)
		}
	}
	t.Logf("%d transactions, the longest took %v", commits.Load(), time.Duration(worst.Load()).Round(time.Millisecond))
}

// debugLog tells in verbose runs what the client meets.
func debugLog() *slog.Logger {
	if !testing.Verbose() || !strings.Contains(os.Getenv("ASSENT_TEST_LOG"), "debug") {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
