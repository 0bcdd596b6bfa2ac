// Package peer is the one TCP port between the nodes of a cluster. A connection
// begins with a handshake that says who speaks to whom, in which cluster, and what for:
// the Raft messages of a shard, or calls.
//
//	dial -> TLS, if configured -> hello {cluster, from, to, kind, shard} -> answer -> raw bytes
//	                                kind raft: handed to the shard's listener
//	                                kind call: gRPC, one connection for all calls to a member
//
// Members are named by their ids, and dialled at the address that the Directory has for
// them, so a member that moves stays the same. Connections of another cluster, or for
// another member, are refused.
package peer

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// What a handshake came to.
var (
	// ErrRefused: the other side answered, and will not have this connection.
	ErrRefused = errors.New("refused by the other node")
	// ErrUnknownMember: no address is known.
	ErrUnknownMember = errors.New("no address is known for the member")
	// ErrClosed: this port was closed.
	ErrClosed = errors.New("port closed")
)

const (
	magic            = "assent-peer-1\n"
	maxHelloBytes    = 4 << 10
	handshakeTimeout = 3 * time.Second
	maxConnections   = 4096 // accepted at one time
	acceptQueue      = 16   // of a shard, and of calls
)

// Config of a Port.
type Config struct {
	// Self is this member's id, Cluster the cluster's; both are asked at each handshake,
	// since a node that is new learns its cluster later ("": none yet).
	Self    string
	Cluster func() string
	// Address is where a member can be dialled.
	Address func(member string) (string, bool)
	// TLS of both directions; nil: plain TCP, for loopback and trusted networks.
	TLS    *tls.Config
	Logger *slog.Logger
}

// Port is the listener and what dials others.
type Port struct {
	cfg      Config
	listener net.Listener
	calls    *queue
	server   *grpc.Server

	mu      sync.Mutex
	shards  map[uint32]*queue
	clients map[string]*grpc.ClientConn
	conns   map[net.Conn]struct{} // accepted or dialled
	closed  bool

	ctx  context.Context //nolint:containedctx // ends what is under way at Close
	stop context.CancelFunc
	wg   sync.WaitGroup
}

type hello struct {
	Cluster string `json:"cluster"` // "": not part of one yet
	From    string `json:"from"`
	To      string `json:"to"`   // "": whoever listens there
	Kind    string `json:"kind"` // raft, call
	Shard   uint32 `json:"shard,omitempty"`
}

type answer struct {
	Error   string `json:"error,omitempty"`
	Cluster string `json:"cluster"`
	Member  string `json:"member"`
}

const (
	kindRaft = "raft"
	kindCall = "call"
)

// New makes a port that listens; Serve answers. Handlers are added between the two.
func New(listener net.Listener, cfg Config) *Port {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Port{cfg: cfg, listener: listener, shards: map[uint32]*queue{}, clients: map[string]*grpc.ClientConn{}, conns: map[net.Conn]struct{}{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.calls = p.newQueue()
	p.server = newServer()
	return p
}

// Addr is where it listens.
func (p *Port) Addr() net.Addr { return p.listener.Addr() }

// Serve starts to answer.
func (p *Port) Serve() {
	p.wg.Go(func() { _ = p.server.Serve(p.calls) }) // it ends with the queue
	p.wg.Go(p.accept)
}

// Close ends every connection and returns when nothing runs any more.
func (p *Port) Close() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	clients, conns := p.clients, p.conns
	p.clients, p.conns = nil, nil
	p.mu.Unlock()
	p.stop()
	_ = p.listener.Close()
	for _, c := range clients {
		_ = c.Close()
	}
	for c := range conns {
		_ = c.Close()
	}
	p.server.Stop()
	p.wg.Wait()
}

func (p *Port) accept() {
	places := make(chan struct{}, maxConnections)
	for {
		c, err := p.listener.Accept()
		if err != nil {
			select {
			case <-p.ctx.Done():
				return
			case <-time.After(50 * time.Millisecond): // out of file descriptors, say
				continue
			}
		}
		select {
		case places <- struct{}{}:
		default:
			_ = c.Close()
			continue
		}
		p.wg.Go(func() {
			if err := p.welcome(c, func() { <-places }); err != nil {
				p.cfg.Logger.Debug("a connection between nodes was refused", "from", c.RemoteAddr().String(), "error", err)
			}
		})
	}
}

// welcome takes the hello of a connection and hands it on; left runs when it is closed.
func (p *Port) welcome(raw net.Conn, left func()) (err error) {
	c := raw
	if p.cfg.TLS != nil {
		c = tls.Server(raw, p.cfg.TLS)
	}
	t := &conn{Conn: c, port: p, left: left}
	defer func() {
		if err != nil {
			_ = t.Close()
		}
	}()
	if !p.track(t) {
		return ErrClosed
	}
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	var h hello
	if err := readFrame(c, &h); err != nil {
		return err
	}
	t.member, t.cluster = h.From, h.Cluster
	to, refusal := p.route(&h)
	if err := writeFrame(c, answer{Error: refusal, Cluster: p.cfg.Cluster(), Member: p.cfg.Self}); err != nil {
		return err
	}
	if refusal != "" {
		return fmt.Errorf("%w: %s", ErrRefused, refusal)
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	select {
	case to.conns <- t:
		return nil
	case <-p.ctx.Done():
		return ErrClosed
	}
}

func (p *Port) route(h *hello) (*queue, string) {
	stranger := p.stranger(h.Cluster)
	switch {
	case h.To != "" && h.To != p.cfg.Self:
		return nil, fmt.Sprintf("this is member %s, not %s", p.cfg.Self, h.To)
	case h.Cluster != "" && stranger && p.cfg.Cluster() != "":
		return nil, fmt.Sprintf("this is a node of cluster %s, not of %s", p.cfg.Cluster(), h.Cluster)
	case h.Kind == kindCall:
		return p.calls, ""
	case h.Kind != kindRaft:
		return nil, fmt.Sprintf("connections of kind %.20q are not known here", h.Kind)
	case stranger:
		return nil, "a node that is not part of the cluster has no log to talk about"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.shards[h.Shard]
	if q == nil {
		return nil, fmt.Sprintf("there is no shard %d here", h.Shard)
	}
	return q, ""
}

// stranger reports whether who names this cluster is not of this node's.
func (p *Port) stranger(cluster string) bool { return cluster == "" || cluster != p.cfg.Cluster() }

// connect dials a member, or an address if member is empty, and says hello.
func (p *Port) connect(ctx context.Context, address string, h hello) (net.Conn, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := raw
	if p.cfg.TLS != nil {
		host, _, _ := net.SplitHostPort(address)
		config := p.cfg.TLS.Clone()
		if config.ServerName == "" {
			config.ServerName = host
		}
		c = tls.Client(raw, config)
	}
	t := &conn{Conn: c, port: p, left: func() {}}
	if !p.track(t) {
		return nil, ErrClosed
	}
	deadline, ok := ctx.Deadline()
	if limit := time.Now().Add(handshakeTimeout); !ok || limit.Before(deadline) {
		deadline = limit
	}
	var a answer
	err = c.SetDeadline(deadline)
	if err == nil {
		err = writeFrame(c, h)
	}
	if err == nil {
		err = readFrame(c, &a)
	}
	if err == nil && a.Error != "" {
		err = fmt.Errorf("%w: %s", ErrRefused, a.Error)
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = t.Close()
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	return t, nil
}

func (p *Port) track(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = c.Conn.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

// Listener accepts what members dial for a shard's log.
func (p *Port) Listener(shard uint32) net.Listener {
	q := p.newQueue()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shards[shard] = q
	return q
}

// Dial connects to a member's shard.
func (p *Port) Dial(member string, shard uint32, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, timeout)
	defer cancel()
	address, ok := p.cfg.Address(member)
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrUnknownMember, member)
	}
	return p.connect(ctx, address, hello{Cluster: p.cfg.Cluster(), From: p.cfg.Self, To: member, Kind: kindRaft, Shard: shard})
}

// Caller is who made a call.
type Caller struct {
	Member   string
	Stranger bool // not of this cluster, or this node has none yet
}

// conn is a connection after its handshake, or in it.
type conn struct {
	net.Conn
	port *Port
	left func()
	once sync.Once

	member, cluster string // of an accepted one: who speaks, as he says
}

func (c *conn) Close() error {
	c.once.Do(func() {
		c.port.mu.Lock()
		delete(c.port.conns, c)
		c.port.mu.Unlock()
		c.left()
	})
	return c.Conn.Close()
}

// callerAddr tells a handler who called.
type callerAddr struct {
	net.Addr
	conn *conn
}

// caller is asked at each call: a node may become part of the cluster meanwhile.
func (a callerAddr) caller() Caller {
	return Caller{Member: a.conn.member, Stranger: a.conn.port.stranger(a.conn.cluster)}
}

func (c *conn) RemoteAddr() net.Addr { return callerAddr{c.Conn.RemoteAddr(), c} }

// queue is a listener that is handed its connections.
type queue struct {
	port  *Port
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *Port) newQueue() *queue {
	return &queue{port: p, conns: make(chan net.Conn, acceptQueue), done: make(chan struct{})}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
	case <-q.port.ctx.Done():
	}
	return nil, net.ErrClosed
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return q.port.listener.Addr() }

func writeFrame(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b := append([]byte(magic), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[len(magic):], uint32(len(body)))
	_, err = w.Write(append(b, body...))
	return err
}

func readFrame(r io.Reader, v any) error {
	var head [len(magic) + 4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read the greeting: %w", err)
	}
	n := binary.BigEndian.Uint32(head[len(magic):])
	if string(head[:len(magic)]) != magic || n > maxHelloBytes {
		return errors.New("what came is no greeting of a node")
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return fmt.Errorf("read the greeting: %w", err)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("read the greeting: %w", err)
	}
	return nil
}
