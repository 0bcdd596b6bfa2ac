package cluster

import (
	"context"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/peer"
	"github.com/assent-tx/assent/internal/shard"
)

// Messages between shards are handed over in batches, of whatever is there. One that asks
// for as many long keys as it may is some megabytes, and a call has its limit.
const (
	maxBatch        = 128
	maxBatchBytes   = 1 << 20 // before the last message
	outboxMessages  = 8192
	messagesTimeout = 2 * time.Second
)

// Send implements node.Peers.
func (c *Cluster) Send(m *shard.Message) {
	to := c.leader(m.To)
	if to == "" || to == c.self.Member || c.cfg.Port == nil {
		return // it is sent again
	}
	c.mu.Lock()
	box := c.outboxes[to]
	if box == nil && c.ctx.Err() == nil {
		box = make(chan *shard.Message, outboxMessages)
		c.outboxes[to] = box
		c.wg.Go(func() { c.post(to, box) })
	}
	c.mu.Unlock()
	copied := *m
	select {
	case box <- &copied:
	default: // it is sent again
	}
}

func (c *Cluster) post(to string, box <-chan *shard.Message) {
	for {
		select {
		case first := <-box:
			body, n := gather(first, box)
			ctx, cancel := context.WithTimeout(c.ctx, messagesTimeout)
			if _, err := c.send(ctx, to, "messages", body); err != nil {
				c.log.Debug("messages between shards were lost", "to", to, "messages", n, "error", err)
			}
			cancel()
		case <-c.ctx.Done():
			return
		}
	}
}

// gather makes a batch of a message and those behind it.
func gather(first *shard.Message, box <-chan *shard.Message) (body []byte, n int) {
	body = append([]byte{'['}, encode(first)...)
	for n = 1; n < maxBatch && len(body) < maxBatchBytes && len(box) > 0; n++ {
		body = append(append(body, ','), encode(<-box)...)
	}
	return append(body, ']'), n
}

func (c *Cluster) takeMessages(_ context.Context, from peer.Caller, body []byte) ([]byte, error) {
	r := c.running.Load()
	if r == nil || from.Stranger {
		return nil, errNotStarted
	}
	var batch []*shard.Message
	if err := decode(body, &batch); err != nil {
		return nil, err
	}
	for _, m := range batch {
		if m != nil {
			r.node.Post(m)
		}
	}
	return nil, nil
}

var _ node.Peers = (*Cluster)(nil)
