package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/assent-tx/assent/internal/cluster"
	"github.com/assent-tx/assent/internal/config"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/peer"
	"github.com/assent-tx/assent/internal/replog"
	rmhttp "github.com/assent-tx/assent/internal/rm/http"
	"github.com/assent-tx/assent/internal/shard"
)

// coordinator is embedded by a name that is none of its methods.
type coordinator = cluster.Cluster

// runningNode is a node of a cluster, maybe of itself alone, with its log. Until open
// returns it answers that it is not ready.
type runningNode struct {
	*coordinator
	cfg      *config.Serve
	identity replog.Identity
	metrics  *node.Metrics
	logger   *slog.Logger
	caller   *rmhttp.Client
	port     *peer.Port // nil: alone
	node     *node.Node // nil: not open
	log      *replog.Log
	once     sync.Once
	closed   error
}

func newNode(c *config.Serve, s *sockets, registry prometheus.Registerer, logger *slog.Logger) (*runningNode, error) {
	identity, err := replog.Claim(c.Data, c.Node)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", c.Data, err)
	}
	if identity.Shards != 0 && c.Shards != 0 && c.Shards != identity.Shards {
		return nil, fmt.Errorf("data directory %s was made with --shards %d, not %d: leave the flag out, or start a new cluster in another directory", c.Data, identity.Shards, c.Shards)
	}
	if c.Join != "" && identity.Shards != 0 && !identity.Joined {
		return nil, fmt.Errorf("data directory %s holds a cluster of its own: leave --join out to go on with it, or join with an empty directory", c.Data)
	}
	founders, err := c.Founders()
	if err != nil {
		return nil, err
	}
	n := &runningNode{cfg: c, identity: identity, metrics: node.NewMetrics(registry), logger: logger, caller: rmhttp.New(rmhttp.Config{AllowedNetworks: c.AllowNetwork})}
	cc := cluster.Config{
		Self: cluster.Self{
			Member: identity.Member, Name: c.Node, Peer: advertised(c.AdvertisePeer, founders[c.Node], s.peer), GRPC: advertised(c.AdvertiseGRPC, "", s.grpc),
			HTTP: c.AdvertiseHTTP,
		},
		Replicas: c.Replicas, Forwarded: n.metrics.Forwarded, Relayed: n.metrics.Relayed, Logger: logger,
	}
	if cc.Self.HTTP == "" {
		cc.Self.HTTP = "http://" + advertised("", "", s.http)
	}
	if s.peer != nil {
		security, err := peerTLS(c)
		if err != nil {
			return nil, err
		}
		n.port = peer.New(s.peer, peer.Config{
			Self: identity.Member, Cluster: func() string { return n.ClusterID() }, Address: func(m string) (string, bool) { return n.Address(m) },
			TLS: security, Logger: logger,
		})
		cc.Port = n.port
	}
	n.coordinator = cluster.New(cc)
	if n.port != nil {
		n.metrics.CountMembers(n.CountMembers)
		if err := n.OpenBook(c.Data, founders); err != nil {
			return nil, err
		}
		n.port.Handle(n.Handlers())
	}
	return n, nil
}

// advertised is the first of these that is known; of a listener that has every address,
// the name of this machine.
func advertised(flag, known string, l net.Listener) string {
	switch {
	case flag != "":
		return flag
	case known != "":
		return known
	case l == nil:
		return ""
	}
	host, port, err := net.SplitHostPort(l.Addr().String())
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		if name, err := os.Hostname(); err == nil {
			return net.JoinHostPort(name, port)
		}
	}
	return l.Addr().String()
}

func peerTLS(c *config.Serve) (*tls.Config, error) {
	if c.PeerCert == "" {
		return nil, nil //nolint:nilnil // plain connections
	}
	// Read at each handshake, so that a renewed certificate needs no restart.
	load := func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(c.PeerCert, c.PeerKey)
		return &cert, err
	}
	if _, err := load(); err != nil {
		return nil, fmt.Errorf("--peer-cert, --peer-key: %w", err)
	}
	pem, err := os.ReadFile(c.PeerCA)
	if err != nil {
		return nil, fmt.Errorf("--peer-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--peer-ca: %s holds no certificate", c.PeerCA)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return load() },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() },
	}, nil
}

// open makes this node part of a cluster, if it is not yet, reads the log and follows it.
// onFatal is called when the process must end.
func (n *runningNode) open(ctx context.Context, onFatal func(error)) error {
	n.Introduce(cluster.Founded(n.identity))
	if n.port != nil {
		n.port.Serve()
	}
	f := cluster.Founded(n.identity)
	if f.Shards == 0 {
		var err error
		if f, err = n.found(ctx); err != nil {
			return err
		}
	}
	n.node = node.New(n.config(f.Shards), n.caller, n.metrics)
	var machines []replog.Machine
	for i := range f.Shards {
		machines = append(machines, n.node.Machine(i))
	}
	rc := replog.Config{
		Dir: n.cfg.Data, NodeID: n.cfg.Node, ClusterID: f.Cluster, Incarnation: f.Incarnation, Founders: f.Founders, Replicas: f.Replicas, Join: f.Join,
		Machines: machines, Logger: n.logger, OnFatal: onFatal,
		Observer:           replog.Observer{Append: n.metrics.Appended, Snapshot: n.metrics.Snapshotted},
		ElectionTimeoutMs:  int(n.cfg.ElectionTimeout.Milliseconds()),
		AppendStallMs:      n.cfg.AppendStallMs(),
		SnapshotAfterBytes: int64(n.cfg.SnapshotBytes),
	}
	if n.port != nil {
		rc.Peers = n.port
	}
	log, err := replog.Open(rc)
	if err != nil {
		return err
	}
	n.log = log
	if n.port == nil && len(log.Group(0).Members()) > 1 {
		return errors.New("this node is one of several: start it with the --peer address that the others know")
	}
	if err := n.node.Start(log); err != nil {
		return err
	}
	n.Start(n.node, log)
	return nil
}

// found makes a new directory part of a new cluster, or of one that runs.
func (n *runningNode) found(ctx context.Context) (cluster.Founding, error) {
	want := cluster.Founding{Shards: max(n.cfg.Shards, 1), Replicas: n.cfg.Replicas}
	founders, err := n.cfg.Founders()
	if err != nil {
		return want, err
	}
	switch {
	case n.cfg.Join != "":
		n.logger.Info("joining a cluster", "asking", n.cfg.Join)
		want, err = n.Join(ctx, n.cfg.Join)
	case len(founders) > 1:
		n.logger.Info("forming a cluster", "nodes", len(founders))
		want, err = n.Form(ctx, founders, want)
	case n.port != nil && len(founders) == 0:
		return want, errors.New("the directory is new, and so is not part of the cluster that this node may have been in: give --join HOST:PORT to become part of one, " +
			"after 'assent cluster remove' of a lost one, or --cluster to begin a new one, with this node alone or with others")
	default:
		return want, nil
	}
	if err == nil && n.cfg.Shards != 0 && n.cfg.Shards != want.Shards {
		err = fmt.Errorf("the cluster has %d shards, not --shards %d: leave the flag out, or give every node the same", want.Shards, n.cfg.Shards)
	}
	return want, err
}

func (n *runningNode) config(shards uint32) node.Config {
	c, sc := n.cfg, shard.DefaultConfig()
	sc.MaxOpenTransactions = c.MaxOpenTransactions
	sc.MaxWaitingRequests = c.MaxWaitingRequests
	sc.MaxKeyWaiters = c.MaxKeyWaiters
	sc.MaxLockWaitUs = c.MaxLockWait.Microseconds()
	sc.RetainedTransactions = c.TransactionsRetained
	sc.RetentionMs = uint64(c.Retention.Milliseconds())
	sc.DefaultTimeoutMs = uint32(c.TransactionTimeout.Milliseconds())
	nc := node.Config{
		Name: c.Node, Shards: shards, Shard: sc,
		DefaultMaxInFlight: c.MaxInFlight, DefaultPrepareTimeout: c.PrepareTimeout, DefaultFinishTimeout: c.FinishTimeout,
		LowSpace: func() bool {
			var st unix.Statfs_t
			err := unix.Statfs(c.Data, &st)
			return err == nil && st.Bavail*uint64(st.Bsize) < uint64(c.MinFreeSpace)
		},
		Logger: n.logger,
	}
	if n.port != nil {
		nc.Peers = n.coordinator
	}
	return nc
}

// leaveTime is what other nodes get to take over what this one leads.
const leaveTime = 3 * time.Second

// leave gives up what this node leads.
func (n *runningNode) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	n.Leave(ctx)
}

// close closes the log, then the node: the log's last entries still need it.
func (n *runningNode) close() error {
	n.once.Do(func() {
		n.coordinator.Close()
		if n.log != nil {
			n.closed = n.log.Close()
		}
		if n.port != nil {
			n.port.Close()
		}
		if n.node != nil {
			n.node.Close()
		} else {
			n.caller.Close()
		}
	})
	return n.closed
}
