// Package node is the real driver of the shards: goroutines, the real clock,
// timers, leadership and routing. All decisions are made in internal/shard.
//
//	client goroutine: validate, route, encode BEGIN --+
//	participant answers ------------------------------+--> runner loop (one per shard)
//	applied entries, leadership, timer ---------------+      Step / Apply, then Ready:
//	                                                          Entries -> proposer goroutine -> log
//	                                                          Calls   -> rm.Caller
//	                                                          Replies -> waiting client goroutines
//
// One goroutine owns each shard; it never waits for the log, a participant or a
// client.
package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/assent-tx/assent/internal/failpoint"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/replog"
	"github.com/assent-tx/assent/internal/rm"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txnid"
)

// Config of a node. Zero durations and counts mean the defaults.
type Config struct {
	Name   string
	Shards uint32
	Shard  shard.Config // per shard; Shard, Shards, Node, Cluster and Incarnation are filled in

	DefaultMaxInFlight    int           // of a service that names none
	DefaultPrepareTimeout time.Duration // of one try
	DefaultFinishTimeout  time.Duration // of one try of commit or rollback
	InteractiveTimeout    time.Duration // of an interactive transaction that names none
	IdleTimeout           time.Duration // of its client's silence
	InboxLimit            int           // events that wait for a shard; senders then wait

	// LowSpace reports whether the disk of the log is nearly full: then new transactions
	// are refused where this node leads. It is asked once a second; nil: it never is.
	LowSpace func() bool

	// Peers are the other nodes of the cluster; nil: there are none.
	Peers Peers

	Logger *slog.Logger
}

// Peers are what a node asks of the other nodes of its cluster.
type Peers interface {
	// Send hands a message over to the leader of the shard that it is for. It may get
	// lost: it is sent again as long as it is needed. Send does not wait.
	Send(m *shard.Message)
	// Registrations asks the leader of shard 0.
	Registrations(ctx context.Context, services []string) ([]string, error)
}

func (c *Config) fill() {
	if c.Shards == 0 {
		c.Shards = 1
	}
	if c.DefaultMaxInFlight == 0 {
		c.DefaultMaxInFlight = 128
	}
	if c.DefaultPrepareTimeout == 0 {
		c.DefaultPrepareTimeout = 3 * time.Second
	}
	if c.DefaultFinishTimeout == 0 {
		c.DefaultFinishTimeout = 10 * time.Second
	}
	if c.InteractiveTimeout == 0 {
		c.InteractiveTimeout = time.Minute
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = 10 * time.Second
	}
	if c.InboxLimit == 0 {
		c.InboxLimit = 8192
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Node runs the shards of one process.
type Node struct {
	Lists
	cfg      Config
	caller   rm.Caller
	log      *slog.Logger
	started  time.Time
	runners  []*runner
	registry atomic.Pointer[registry] // local copy of shard 0's
	members  atomic.Pointer[members]  // the same of its members
	tokens   atomic.Uint64
	lowSpace atomic.Bool   // as shards were told
	allKnow  atomic.Uint32 // the level that every member knows; with peers
	cluster  string        // set by Start, before anything is called
	listing  chan struct{} // one scan of a shard's transactions at a time
	metrics  *Metrics
	hints    hints
	stop     chan struct{}
	stopOnce sync.Once
	loops    sync.WaitGroup
}

// New starts the shards' loops. They follow until Start gives them a log.
func New(cfg Config, caller rm.Caller, metrics *Metrics) *Node {
	cfg.fill()
	n := &Node{cfg: cfg, caller: caller, log: cfg.Logger, started: time.Now(), listing: make(chan struct{}, 1), metrics: metrics, stop: make(chan struct{})}
	n.Lists = Lists{n}
	if cfg.Peers != nil {
		n.allKnow.Store(1) // until all were heard
	}
	n.registry.Store(&registry{})
	n.members.Store(&members{})
	for i := range cfg.Shards {
		sc := cfg.Shard
		sc.Shard, sc.Shards, sc.Node = i, cfg.Shards, cfg.Name
		if every := failpoint.HashCheckEveryUs(); every > 0 {
			sc.HashCheckIntervalUs = every
		}
		n.runners = append(n.runners, newRunner(n, sc))
	}
	for _, r := range n.runners {
		n.loops.Go(r.loop)
	}
	if metrics != nil {
		metrics.node.Store(n)
	}
	return n
}

// Machine is what the log of a shard applies to.
func (n *Node) Machine(shard uint32) replog.Machine { return n.runners[shard] }

// Log is what Start needs of a node's log; *replog.Log implements it.
type Log interface {
	Group(shard uint32) replog.Group
	ClusterID() string   // 32 hexadecimal digits
	Incarnation() uint64 // rises when a cluster is restored from a backup
}

// Start connects the shards to their logs.
func (n *Node) Start(log Log) error {
	var cluster [16]byte
	if _, err := hex.Decode(cluster[:], []byte(log.ClusterID())); err != nil {
		return fmt.Errorf("cluster id %q: %w", log.ClusterID(), err)
	}
	n.cluster = log.ClusterID()
	for _, r := range n.runners {
		err := r.run(context.Background(), func(sh *shard.Shard) { sh.Identify(cluster, uint32(log.Incarnation())) })
		if err != nil {
			return err
		}
	}
	if n.cfg.LowSpace != nil {
		n.loops.Go(n.watchSpace)
	}
	for i, r := range n.runners {
		g := log.Group(uint32(i))
		r.group.Store(&g)
		n.loops.Go(func() { r.propose(g) })
		n.loops.Go(func() { r.watch(g) })
	}
	return nil
}

const spaceEvery = time.Second

// LowSpace reports whether new transactions are refused here for want of room on the disk.
func (n *Node) LowSpace() bool { return n.lowSpace.Load() }

func (n *Node) watchSpace() {
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	for was := false; ; {
		if low := n.cfg.LowSpace(); low != was {
			was = low
			n.lowSpace.Store(low)
			if low {
				n.log.Error("the disk is nearly full: new transactions are refused until there is room")
			} else {
				n.log.Info("there is room on the disk again")
			}
			for _, r := range n.runners {
				_ = r.run(context.Background(), func(sh *shard.Shard) { sh.Step(n.now(), &shard.Space{Low: low}) }) // fails when this ends
			}
		}
		select {
		case <-tick.C:
		case <-n.stop:
			return
		}
	}
}

// Close ends the calls to participants and the loops. The log must be closed
// before: its last entries still need the loops.
func (n *Node) Close() {
	n.stopOnce.Do(func() { close(n.stop) })
	n.caller.Close()
	n.loops.Wait()
}

// now is the driver's clock.
func (n *Node) now() shard.Time {
	t := time.Now()
	return shard.Time{MonoUs: 1 + t.Sub(n.started).Microseconds(), WallMs: uint64(t.UnixMilli())}
}

// NewID makes a UUIDv7 of this moment.
func NewID() txnid.ID { return NewIDAt(time.Now()) }

// NewIDAt makes a UUIDv7 with the timestamp of t.
func NewIDAt(t time.Time) txnid.ID {
	var random [10]byte
	_, _ = rand.Read(random[:]) // never fails: it ends the process instead
	return txnid.New(uint64(t.UnixMilli()), random)
}

// Post takes a message that another node's shard sent to one of this node's. It may get
// lost.
func (n *Node) Post(m *shard.Message) {
	if m.To < n.cfg.Shards {
		n.runners[m.To].post(m)
	}
}

// send hands over a message between shards.
func (n *Node) send(m *shard.Message) {
	if r := n.runners[m.To]; n.cfg.Peers == nil || r.health().Leading {
		r.post(m)
		return
	}
	n.cfg.Peers.Send(m)
}

// Stopping reports whether Close was called.
func (n *Node) Stopping() bool {
	select {
	case <-n.stop:
		return true
	default:
		return false
	}
}

// AllKnow tells the shards that every member of the cluster knows records of a level.
func (n *Node) AllKnow(level uint32) {
	if n.allKnow.Swap(level) == level {
		return
	}
	for _, r := range n.runners {
		r.post(&shard.RaiseLevel{Level: level})
	}
}

// Shards is their number.
func (n *Node) Shards() uint32 { return n.cfg.Shards }

// Shard tells how a shard of this node stands.
func (n *Node) Shard(shard uint32) ShardHealth { return n.runners[shard].health() }

func (n *Node) home(id txnid.ID) *runner { return n.runners[id.Shard(n.cfg.Shards)] }

// errStopping is the answer of a node that is being closed.
func errStopping() *reason.Error {
	err := reason.New(reason.NotReady, "try again; with the same id the request is executed once", "the coordinator is shutting down")
	err.RetryAfterMs = 500
	return err
}

// Health tells what /healthz and /readyz need.
func (n *Node) Health() Health {
	h := Health{Ready: true, Message: "ready"}
	for i, r := range n.runners {
		s := r.health()
		h.Shards = append(h.Shards, s)
		if !s.Leading {
			h.Ready = false
			h.Message = fmt.Sprintf("shard %d has no leader here yet", i)
		}
	}
	select {
	case <-n.stop:
		h.Ready, h.Message = false, "shutting down"
	default:
	}
	return h
}
