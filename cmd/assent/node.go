package main

import (
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
	cfg     *config.Serve
	metrics *node.Metrics
	logger  *slog.Logger
	caller  *rmhttp.Client
	log     *replog.Log
	once    sync.Once
	closed  error
}

func newNode(c *config.Serve, registry prometheus.Registerer, logger *slog.Logger) *runningNode {
	sc := shard.DefaultConfig()
	sc.MaxOpenTransactions = c.MaxOpenTransactions
	sc.MaxWaitingRequests = c.MaxWaitingRequests
	sc.RetainedTransactions = c.TransactionsRetained
	sc.RetentionMs = uint64(c.Retention.Milliseconds())
	sc.DefaultTimeoutMs = uint32(c.TransactionTimeout.Milliseconds())
	metrics := node.NewMetrics(registry)
	caller := rmhttp.New(rmhttp.Config{AllowedNetworks: c.AllowNetwork})
	return &runningNode{
		Node: node.New(node.Config{
			Name: c.Node, Shards: 1, Shard: sc,
			DefaultMaxInFlight: c.MaxInFlight, DefaultPrepareTimeout: c.PrepareTimeout, DefaultFinishTimeout: c.FinishTimeout,
			Logger: logger,
		}, caller, metrics),
		cfg: c, metrics: metrics, logger: logger, caller: caller,
	}
}

// open reads the log and follows it. onFatal is called when the process must end.
func (n *runningNode) open(onFatal func(error)) error {
	log, err := replog.Open(replog.Config{
		Dir: n.cfg.Data, NodeID: n.cfg.Node, Machines: []replog.Machine{n.Machine(0)},
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
