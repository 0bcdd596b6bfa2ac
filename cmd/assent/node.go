package main

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/assent-tx/assent/internal/config"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/replog"
	rmhttp "github.com/assent-tx/assent/internal/rm/http"
	"github.com/assent-tx/assent/internal/shard"
)

// runningNode is a node with its log. Until open returns it answers that it is
// not ready.
type runningNode struct {
	*node.Node
	cfg      *config.Serve
	metrics  *node.Metrics
	logger   *slog.Logger
	caller   *rmhttp.Client
	machines []replog.Machine
	log      *replog.Log
	once     sync.Once
	closed   error
}

func newNode(c *config.Serve, registry prometheus.Registerer, logger *slog.Logger) (*runningNode, error) {
	sc := shard.DefaultConfig()
	sc.MaxOpenTransactions = c.MaxOpenTransactions
	sc.MaxWaitingRequests = c.MaxWaitingRequests
	sc.MaxKeyWaiters = c.MaxKeyWaiters
	sc.MaxLockWaitUs = c.MaxLockWait.Microseconds()
	sc.RetainedTransactions = c.TransactionsRetained
	sc.RetentionMs = uint64(c.Retention.Milliseconds())
	sc.DefaultTimeoutMs = uint32(c.TransactionTimeout.Milliseconds())
	shards, err := replog.RecordedShards(c.Data)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", c.Data, err)
	}
	switch {
	case shards == 0:
		shards = max(c.Shards, 1)
	case c.Shards != 0 && c.Shards != shards:
		return nil, fmt.Errorf("data directory %s was made with --shards %d, not %d: leave the flag out, or start a new cluster in another directory", c.Data, shards, c.Shards)
	}
	metrics := node.NewMetrics(registry)
	caller := rmhttp.New(rmhttp.Config{AllowedNetworks: c.AllowNetwork})
	n := &runningNode{
		Node: node.New(node.Config{
			Name: c.Node, Shards: shards, Shard: sc,
			DefaultMaxInFlight: c.MaxInFlight, DefaultPrepareTimeout: c.PrepareTimeout, DefaultFinishTimeout: c.FinishTimeout,
			Logger: logger,
		}, caller, metrics),
		cfg: c, metrics: metrics, logger: logger, caller: caller,
	}
	for i := range shards {
		n.machines = append(n.machines, n.Machine(i))
	}
	return n, nil
}

// open reads the log and follows it. onFatal is called when the process must end.
func (n *runningNode) open(onFatal func(error)) error {
	log, err := replog.Open(replog.Config{
		Dir: n.cfg.Data, NodeID: n.cfg.Node, Machines: n.machines,
		Logger: n.logger, OnFatal: onFatal,
		Observer:           replog.Observer{Append: n.metrics.Appended, Snapshot: n.metrics.Snapshotted},
		AppendStallMs:      int(n.cfg.AppendStall.Milliseconds()),
		SnapshotAfterBytes: int64(n.cfg.SnapshotBytes),
	})
	if err != nil {
		return err
	}
	n.log = log
	return n.Start(log)
}

// close closes the log, then the node: the log's last entries still need it.
func (n *runningNode) close() error {
	n.once.Do(func() {
		if n.log != nil {
			n.closed = n.log.Close()
		}
		n.Close()
	})
	return n.closed
}
