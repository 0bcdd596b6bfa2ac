package replog

import (
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
			leader := &transport{Transport: open(), stuckAfter: c.stuckAfter, pipelines: map[*pipeline]struct{}{}}
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
