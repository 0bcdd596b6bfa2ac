// Package cluster makes one coordinator of several nodes. Every node takes every
// request, and hands it to the leader of the shard that it is for; there it is executed
// by the node's own shards.
//
//	server -> Cluster -> leader here?  yes: node.Node
//	                                   no:  call over peer.Port -> that node's Cluster -> node.Node
//
// A request that meets an election waits a little and goes on: all of them may be
// repeated, since each names what it is about (an id, a step, a service). Who leads is
// only a hint until the shard itself has answered: a node that does not lead says so.
//
//	forming.go  how nodes become a cluster, and how one joins
//	status.go   what nodes tell each other: who is up, who leads what
//	relay.go    the way to a node that only another one reaches
//	route.go    to which node a request goes, and for how long it is tried
//	forward.go  the requests
//	member.go   the table of members, in shard 0's state
//	backup.go   the state of every shard, for a file
//	balance.go  where replicas and leaders belong, one step at a time
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/peer"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/replog"
	"github.com/assent-tx/assent/internal/shard"
)

// Config of a Cluster. Zero durations mean the defaults.
type Config struct {
	Self     Self
	Port     *peer.Port // nil: this node is alone
	Replicas int        // voters of a shard; 0: 3

	LeaderPatience time.Duration // how long a request waits for a leader; default 3 s
	StatusEvery    time.Duration // how often nodes tell each other how they are; default 300 ms
	DownAfter      time.Duration // of silence, until a node counts as down; default 2 s
	BalanceEvery   time.Duration // how often replicas and leaders are looked at; default 1 s

	// Forwarded is told of each request handed to another node: answered, refused or
	// unreachable. It may be nil.
	Forwarded func(result string)
	// Relayed is told of each call to a node that only another one reaches. It may be nil.
	Relayed func()

	Logger *slog.Logger
}

// Self is how others reach this node.
type Self struct {
	Member string // id of the node with its directory
	Name   string
	Peer   string // host:port between nodes
	HTTP   string // base URL of the REST API
	GRPC   string // host:port
}

// Cluster is this node's view of the cluster. It answers from New on, and executes from
// Start on.
type Cluster struct {
	node.Lists
	cfg  Config
	self Self
	log  *slog.Logger

	running atomic.Pointer[running]
	closing atomic.Bool
	removed atomic.Bool // the cluster does not know this node any more
	book    book

	table     sync.Mutex  // held while the leader of shard 0 reads the table of members and changes it
	captured  captured    // for backups
	backingUp atomic.Bool // this node collects one

	mu       sync.Mutex
	heard    map[string]*heard // by member
	forwards map[*forward]struct{}
	led      map[uint32]string // who was known last to lead, by shard
	outboxes map[string]chan *shard.Message
	changed  chan struct{} // closed when somebody was heard to lead something else
	founding Founding      // what hello answers

	ctx  context.Context //nolint:containedctx // ends what runs in the background
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// running is what there is from Start on.
type running struct {
	node     *node.Node
	log      *replog.Log
	identity replog.Identity
	caughtUp atomic.Bool // the copy of the registry has been current once
}

// New makes a cluster of a node that has not started.
func New(cfg Config) *Cluster {
	if cfg.Replicas == 0 {
		cfg.Replicas = 3
	}
	for _, d := range []struct {
		field  *time.Duration
		preset time.Duration
	}{
		{&cfg.LeaderPatience, 3 * time.Second},
		{&cfg.StatusEvery, 300 * time.Millisecond},
		{&cfg.DownAfter, 2 * time.Second},
		{&cfg.BalanceEvery, time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.preset
		}
	}
	if cfg.Forwarded == nil {
		cfg.Forwarded = func(string) {}
	}
	if cfg.Relayed == nil {
		cfg.Relayed = func() {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Cluster{
		cfg: cfg, self: cfg.Self, log: cfg.Logger, heard: map[string]*heard{}, forwards: map[*forward]struct{}{}, led: map[uint32]string{},
		outboxes: map[string]chan *shard.Message{}, changed: make(chan struct{}),
	}
	c.Lists = node.Lists{Parts: c}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// Start begins to execute, on a node whose log is open and has been given to it.
func (c *Cluster) Start(n *node.Node, log *replog.Log) {
	id := log.Identity()
	if c.self.Member == "" { // of a node alone, which nobody asks before
		c.self.Member = id.Member
	}
	c.Introduce(Founded(id))
	c.running.Store(&running{node: n, log: log, identity: id})
	if c.cfg.Port != nil {
		c.wg.Go(c.tellStatus)
		c.wg.Go(c.keepMember)
		c.wg.Go(c.balance)
	}
}

// Leave gives up what this node leads, so that nothing waits for an election when it
// ends. It returns when that is done, or ctx ends.
func (c *Cluster) Leave(ctx context.Context) {
	c.closing.Store(true)
	r := c.running.Load()
	if r == nil || c.cfg.Port == nil {
		return
	}
	for {
		left := 0
		for i := range r.node.Shards() {
			g := r.log.Group(i)
			another := func(m replog.Replica) bool { return m.Voter && m.Member != c.self.Member }
			if g.Leader() != c.self.Member || !slices.ContainsFunc(g.Members(), another) {
				continue // nobody could take it
			}
			left++
			if _, err := c.handOver(i, ""); err != nil {
				c.log.Debug("the lead was not taken over", "shard", i, "error", err)
			}
		}
		if left == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Close ends what runs in the background. Node, log and port are the caller's to close.
func (c *Cluster) Close() {
	c.closing.Store(true)
	c.stop()
	c.captured.close()
	c.wg.Wait()
}

// Shards is their number; 0: not known yet.
func (c *Cluster) Shards() uint32 {
	if r := c.running.Load(); r != nil {
		return r.node.Shards()
	}
	return 0
}

// ClusterID is what the port's handshake says.
func (c *Cluster) ClusterID() string {
	if r := c.running.Load(); r != nil {
		return r.identity.Cluster
	}
	return ""
}

func notStarted() *reason.Error { return node.NotStarted() }

// Health tells whether requests are welcome at this node: its copy of the registry was
// current once, and every shard has a leader that it knows.
func (c *Cluster) Health() node.Health {
	r := c.running.Load()
	if r == nil {
		return node.Health{Message: notStarted().Message}
	}
	h := r.node.Health()
	for i := range h.Shards {
		h.Shards[i].Leader = nameOf(c.leader(uint32(i)))
	}
	if c.cfg.Port == nil {
		return h
	}
	if c.closing.Load() {
		h.Ready, h.Message = false, "shutting down"
		return h
	}
	if c.removed.Load() {
		h.Ready, h.Message = false, removedText
		return h
	}
	h.Ready, h.Message = c.isCaughtUp(r), "ready"
	if !h.Ready {
		h.Message = "the copy of the registry is not current yet"
	}
	for i := range h.Shards {
		if h.Shards[i].Leader == "" {
			h.Ready, h.Message = false, "a shard has no leader that this node knows"
		}
	}
	return h
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain values only
	}
	return b
}

var errNotAnswer = errors.New("the answer cannot be read")
