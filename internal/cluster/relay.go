package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/assent-tx/assent/internal/peer"
	"github.com/assent-tx/assent/internal/replog"
)

// Two nodes that do not reach each other may both be needed: each leads its shards, with
// the majority that a third node makes with either. What one has to say to the other goes
// over that third one. It hands on once, to a node that it reaches itself.
//
//	n1 --- "messages" -x- n2
//	n1 --- "relay" {n2, "messages"} --> n3 --- "messages" --> n2

// led is who leads a shard, as the node says that tells it, which heard it from the leader
// itself.
type led struct {
	Shard  uint32 `json:"shard"`
	Leader string `json:"leader"`
	Term   uint64 `json:"term"`
}

// relayed is a call that is to be handed on.
type relayed struct {
	To   string          `json:"to"`
	Name string          `json:"name"`
	Body json.RawMessage `json:"body"`
}

var errRelayedTwice = errors.New("a call is handed on once")

// second is what this node knows of others, for those that do not hear them.
func (c *Cluster) second() (reaches []string, leads []led) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for member, h := range c.heard {
		if time.Since(h.reached) < c.cfg.DownAfter {
			reaches = append(reaches, member)
		}
		if time.Since(h.at) >= c.cfg.DownAfter {
			continue
		}
		for i := range h.status.Shards {
			if s := &h.status.Shards[i]; s.Leading {
				leads = append(leads, led{s.Shard, member, s.Term})
			}
		}
	}
	slices.Sort(reaches)
	return reaches, leads
}

// via is the member that hands on calls to another; empty: they go there directly, or
// cannot go there at all.
func (c *Cluster) via(to string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.heard[to]; h == nil || time.Since(h.reached) < c.cfg.DownAfter {
		return ""
	}
	found := ""
	for member, h := range c.heard { // the first by name
		if member != to && time.Since(h.reached) < c.cfg.DownAfter && slices.Contains(h.status.Reaches, to) && (found == "" || member < found) {
			found = member
		}
	}
	return found
}

// reachable reports whether there is a way to a member, as far as is known.
func (c *Cluster) reachable(member string) bool { return c.up(member) || c.via(member) != "" }

// send makes a call, over another node where there is no other way.
func (c *Cluster) send(ctx context.Context, to, name string, body []byte) ([]byte, error) {
	if via := c.via(to); via != "" {
		c.cfg.Relayed()
		return c.cfg.Port.Call(ctx, via, "relay", encode(relayed{to, name, body}))
	}
	return c.cfg.Port.Call(ctx, to, name, body)
}

// takeRelay hands a call on.
func (c *Cluster) takeRelay(ctx context.Context, from peer.Caller, body []byte) ([]byte, error) {
	r := c.running.Load()
	if r == nil || from.Stranger {
		return nil, errNotStarted
	}
	var q relayed
	if err := decode(body, &q); err != nil {
		return nil, err
	}
	if q.Name == "relay" {
		return nil, errRelayedTwice
	}
	if !slices.ContainsFunc(r.log.Group(0).Members(), func(m replog.Replica) bool { return m.Member == q.To }) {
		return nil, fmt.Errorf("handing on: %w: %s", peer.ErrUnknownMember, q.To)
	}
	return c.cfg.Port.Call(ctx, q.To, q.Name, q.Body)
}
