package replog

import (
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// peerTimeout bounds one exchange with a peer, and its dial. Snapshots get more by
// their size.
const peerTimeout = 2 * time.Second

// pipelineTimeout bounds how long a pipeline that is full takes no further message: the
// two under way have peerTimeout each.
const pipelineTimeout = 2*peerTimeout + time.Second

// Entries that did not reach a peer are sent again this often, for so long.
const (
	resendEvery = 100 * time.Millisecond
	resendFor   = 10 * time.Second
)

// transport carries a group's Raft messages: over Config.Peers, or to nobody. It puts
// its own messages among those that come in.
type transport struct {
	raft.Transport
	rpcs   chan raft.RPC
	closed chan struct{}
	once   sync.Once
	wg     sync.WaitGroup

	stuckAfter time.Duration // of a pipeline
	mu         sync.Mutex
	pipelines  map[*pipeline]struct{}
	hungUp     chan struct{} // closed for a group that shuts down
}

func (l *Log) newTransport(shard uint32) *transport {
	t := &transport{rpcs: make(chan raft.RPC), closed: make(chan struct{}), stuckAfter: pipelineTimeout, pipelines: map[*pipeline]struct{}{}, hungUp: make(chan struct{})}
	self := raft.ServerAddress(l.id.member())
	if l.cfg.Peers == nil {
		_, t.Transport = raft.NewInmemTransport(self)
	} else {
		t.Transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: streams{l.cfg.Peers.Listener(shard), l.cfg.Peers, shard}, MaxPool: 3, Timeout: peerTimeout,
			Logger: raftLogger(l.cfg.Logger.With("shard", shard), true),
		})
	}
	t.wg.Go(t.receive)
	return t
}

func (t *transport) receive() {
	for {
		select {
		case rpc := <-t.Transport.Consumer():
			if !t.deliver(rpc) {
				return
			}
		case <-t.closed:
			return
		}
	}
}

func (t *transport) deliver(rpc raft.RPC) bool {
	select {
	case t.rpcs <- rpc:
		return true
	case <-t.closed:
		return false
	}
}

// Consumer implements raft.Transport.
func (t *transport) Consumer() <-chan raft.RPC { return t.rpcs }

// RequestPreVote implements raft.WithPreVote.
func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	p, ok := t.Transport.(raft.WithPreVote)
	if !ok {
		return fmt.Errorf("%T knows no pre-vote", t.Transport)
	}
	return p.RequestPreVote(id, target, args, resp)
}

// Close implements raft.WithClose.
func (t *transport) Close() error {
	var err error
	t.once.Do(func() {
		close(t.closed)
		if c, ok := t.Transport.(raft.WithClose); ok {
			err = c.Close()
		}
		t.wg.Wait()
	})
	return err
}

// pipeline is the library's, which can be stuck: its sender waits for room without limit,
// also when who takes the answers has ended, because one of them told a later term. The
// sender would stay for ever, with its heartbeats, and the group's shutdown waits for it.
type pipeline struct {
	raft.AppendPipeline
	transport *transport
}

// AppendEntriesPipeline implements raft.Transport.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.Transport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	guarded := &pipeline{p, t}
	t.mu.Lock()
	t.pipelines[guarded] = struct{}{}
	t.mu.Unlock()
	select {
	case <-t.hungUp:
		_ = guarded.Close()
	default:
	}
	return guarded, nil
}

// AppendEntries implements raft.AppendPipeline.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	stuck := time.AfterFunc(p.transport.stuckAfter, func() { _ = p.Close() })
	defer stuck.Stop()
	return p.AppendPipeline.AppendEntries(args, resp)
}

// Close implements raft.AppendPipeline. It may be called twice.
func (p *pipeline) Close() error {
	p.transport.mu.Lock()
	delete(p.transport.pipelines, p)
	p.transport.mu.Unlock()
	return p.AppendPipeline.Close()
}

// hangUp ends all pipelines, and the patience with peers that are away, for a group that shuts down.
func (t *transport) hangUp() {
	t.mu.Lock()
	select {
	case <-t.hungUp:
	default:
		close(t.hungUp)
	}
	var open []*pipeline
	for p := range t.pipelines {
		open = append(open, p)
	}
	t.mu.Unlock()
	for _, p := range open {
		_ = p.Close()
	}
}

// AppendEntries implements raft.Transport. What does not arrive is sent again from here: the
// library doubles its pause with each failure, to 10 s, and once more when the peer is back
// and says where its log ends. A node that was away for some seconds followed after a
// quarter of a minute, and meanwhile the death of another one stopped the group. The time is
// bounded, since the library waits for its senders: one that was removed, or is asked to
// hand over the lead, is not noticed here.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	err := t.Transport.AppendEntries(id, target, args, resp)
	if err == nil || isHeartbeat(args) {
		return err
	}
	again := time.NewTicker(resendEvery)
	defer again.Stop()
	for end := time.Now().Add(resendFor); err != nil && time.Now().Before(end); {
		select {
		case <-again.C:
			err = t.Transport.AppendEntries(id, target, args, resp)
		case <-t.hungUp:
			return err
		case <-t.closed:
			return err
		}
	}
	return err
}

// isHeartbeat: the library has a sender of its own for them.
func isHeartbeat(a *raft.AppendEntriesRequest) bool {
	return a.PrevLogEntry == 0 && a.PrevLogTerm == 0 && len(a.Entries) == 0 && a.LeaderCommitIndex == 0
}

// stand has this group's voter stand for election now, unless it leads by then: a leader
// that is told so steps down first, and what it was appending has no known outcome.
func (t *transport) stand(leads func() bool) {
	now := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}
	t.wg.Go(func() {
		if !leads() {
			t.deliver(raft.RPC{Command: now, RespChan: make(chan raft.RPCResponse, 1)})
		}
	})
}

// streams is a group's raft.StreamLayer. Addresses are member ids.
type streams struct {
	net.Listener
	peers Network
	shard uint32
}

// Dial implements raft.StreamLayer.
func (s streams) Dial(member raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.peers.Dial(string(member), s.shard, timeout)
}
