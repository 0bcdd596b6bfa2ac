package replog

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestStuckPipeline: the library's pipeline takes messages until nobody takes its answers.
// Whoever sends must not wait for ever then.
func TestStuckPipeline(t *testing.T) {
	open := func() *raft.NetworkTransport {
		n, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, peerTimeout, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close() })
		return n
	}
	follower := open()
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case rpc := <-follower.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Term: 2}, nil)
			case <-done:
				return
			}
		}
	}()
	for name, c := range map[string]struct {
		stuckAfter time.Duration
		hangUp     bool
	}{"it is given up": {50 * time.Millisecond, false}, "the group shuts down": {time.Hour, true}} {
		t.Run(name, func(t *testing.T) {
			leader := &transport{Transport: open(), stuckAfter: c.stuckAfter, pipelines: map[*pipeline]struct{}{}, hungUp: make(chan struct{})}
			p, err := leader.AppendEntriesPipeline("follower", follower.LocalAddr())
			if err != nil {
				t.Fatal(err)
			}
			failed := make(chan struct{})
			go func() {
				for {
					if _, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 1}, &raft.AppendEntriesResponse{}); err != nil {
						close(failed)
						return
					}
				}
			}()
			if c.hangUp {
				time.Sleep(20 * time.Millisecond) // whether it is full by then or not
				leader.hangUp()
			}
			select {
			case <-failed:
			case <-time.After(20 * time.Second):
				t.Fatal("the sender is stuck")
			}
			if len(leader.pipelines) != 0 {
				t.Error("the pipeline is not forgotten")
			}
		})
	}
}

// away is a transport to a peer that takes nothing at first.
type away struct {
	raft.Transport
	failures, calls atomic.Int32
}

func (a *away) AppendEntries(raft.ServerID, raft.ServerAddress, *raft.AppendEntriesRequest, *raft.AppendEntriesResponse) error {
	if n := a.calls.Add(1); n <= a.failures.Load() {
		return errors.New("away")
	}
	return nil
}

// TestPeerComesBack: entries are sent again until a peer is back, so that the library counts
// no failures and makes no long pause; heartbeats are not, and a group that shuts down is
// not kept.
func TestPeerComesBack(t *testing.T) {
	open := func(failures int32) (*transport, *away) {
		peer := &away{}
		peer.failures.Store(failures)
		return &transport{Transport: peer, closed: make(chan struct{}), hungUp: make(chan struct{})}, peer
	}
	entries := &raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 7, PrevLogTerm: 1}
	l, peer := open(3)
	if err := l.AppendEntries("b", "b", entries, nil); err != nil || peer.calls.Load() != 4 {
		t.Errorf("%d calls: %v", peer.calls.Load(), err)
	}
	l, peer = open(3)
	if err := l.AppendEntries("b", "b", &raft.AppendEntriesRequest{Term: 1}, nil); err == nil || peer.calls.Load() != 1 {
		t.Errorf("a heartbeat was sent %d times: %v", peer.calls.Load(), err)
	}
	for name, end := range map[string]func(*transport){"it hangs up": (*transport).hangUp, "it is closed": func(l *transport) { close(l.closed) }} {
		l, peer = open(1 << 30)
		done := make(chan error, 1)
		go func() { done <- l.AppendEntries("b", "b", entries, nil) }()
		for deadline := time.Now().Add(20 * time.Second); peer.calls.Load() < 2 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		end(l)
		select {
		case err := <-done:
			if err == nil {
				t.Error(name, "and it was taken")
			}
		case <-time.After(20 * time.Second):
			t.Fatal(name, "and the sender stays")
		}
	}
}
