package cluster

import (
	"context"
	"slices"
	"time"

	"github.com/assent-tx/assent/internal/peer"
	"github.com/assent-tx/assent/internal/replog"
	"github.com/assent-tx/assent/internal/txn"
)

// status is what a node tells of itself. Nothing in it is relied on for safety: it says
// where to ask.
type status struct {
	Member  string        `json:"member"`
	Level   uint32        `json:"level"`
	Closing bool          `json:"closing,omitempty"`
	Low     bool          `json:"low,omitempty"` // its disk is nearly full: others should lead
	Shards  []shardStatus `json:"shards"`
	Reaches []string      `json:"reaches,omitempty"` // who has answered it lately
	Led     []led         `json:"led,omitempty"`     // by others
}

type shardStatus struct {
	Shard   uint32           `json:"shard"`
	Leading bool             `json:"leading,omitempty"` // LEAD of this term is applied
	Term    uint64           `json:"term"`
	Applied uint64           `json:"applied"`
	Last    uint64           `json:"last"`
	Members []replog.Replica `json:"members,omitempty"` // as the log here has them
}

// heard is what another node has told, and when.
type heard struct {
	status  status
	at      time.Time // when it was heard, whoever asked
	reached time.Time // when it has answered
	asking  bool
}

// kickEvery is how soon others are told of a change of leadership.
const kickEvery = 20 * time.Millisecond

func (c *Cluster) ownStatus(r *running) status {
	s := status{Member: c.self.Member, Level: txn.Level, Closing: c.closing.Load(), Low: r.node.LowSpace()}
	s.Reaches, s.Led = c.second()
	for i := range r.node.Shards() {
		g, h := r.log.Group(i), r.node.Shard(i)
		members := g.Members()
		if len(members) == 0 {
			continue
		}
		stats := g.Stats()
		own := shardStatus{Shard: i, Leading: h.Leading, Term: h.Term, Applied: stats.AppliedIndex, Last: stats.LastIndex, Members: members}
		s.Shards = append(s.Shards, own)
	}
	return s
}

// leads is which shards this node leads, in which terms: what others must hear soon.
func (c *Cluster) leads(r *running) []uint64 {
	terms := make([]uint64, r.node.Shards())
	for i := range terms {
		if h := r.node.Shard(uint32(i)); h.Leading {
			terms[i] = h.Term
		}
	}
	return terms
}

// tellStatus exchanges status with every other member, now and then and when there is
// news.
func (c *Cluster) tellStatus() {
	r := c.running.Load()
	tick := time.NewTicker(kickEvery)
	defer tick.Stop()
	var told []uint64
	var next time.Time
	down := map[string]bool{} // members that the log says are down
	for {
		leads := c.leads(r)
		news := !slices.Equal(leads, told)
		if news {
			told = leads
			c.somethingChanged()
		}
		if now := time.Now(); news || !now.Before(next) {
			next = now.Add(c.cfg.StatusEvery)
			own := encode(c.ownStatus(r))
			for _, m := range c.others(r) {
				c.exchange(m, own)
			}
			c.giveUpForwards()
			c.noteLeaders(r)
			c.agreeOnLevel(r)
			c.sayWhoIsDown(r, down)
		}
		select {
		case <-tick.C:
		case <-c.ctx.Done():
			return
		}
	}
}

// sayWhoIsDown logs changes alone. Who was never heard is starting.
func (c *Cluster) sayWhoIsDown(r *running, down map[string]bool) {
	for _, m := range c.others(r) {
		switch up := c.up(m); {
		case up && down[m]:
			delete(down, m)
			c.log.Info("a node of the cluster is heard again", "member", m)
		case !up && !down[m]:
			if c.everHeard(m) {
				down[m] = true
				c.log.Warn("a node of the cluster is not heard any more", "member", m)
			}
		}
	}
}

func (c *Cluster) everHeard(member string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.heard[member]
	return h != nil && !h.at.IsZero()
}

// others are the other members: those of the registry's log, which everybody follows.
func (c *Cluster) others(r *running) []string {
	var list []string
	for _, m := range r.log.Group(0).Members() {
		if m.Member != c.self.Member {
			list = append(list, m.Member)
		}
	}
	for _, m := range c.book.all() {
		if m.ID != c.self.Member && !slices.Contains(list, m.ID) {
			list = append(list, m.ID)
		}
	}
	return list
}

func (c *Cluster) exchange(member string, own []byte) {
	c.mu.Lock()
	h := c.heard[member]
	if h == nil {
		h = &heard{}
		c.heard[member] = h
	}
	if h.asking {
		c.mu.Unlock()
		return
	}
	h.asking = true
	c.mu.Unlock()
	c.wg.Go(func() {
		ctx, cancel := context.WithTimeout(c.ctx, c.cfg.DownAfter)
		defer cancel()
		body, err := c.cfg.Port.Call(ctx, member, "status", own)
		var s status
		if err == nil {
			err = decode(body, &s)
		}
		known := err == nil && s.Member == member
		if known {
			c.hear(s)
		}
		c.mu.Lock()
		h.asking = false
		if known {
			h.reached = time.Now()
		}
		c.mu.Unlock()
	})
}

// takeStatus answers with this node's own.
func (c *Cluster) takeStatus(_ context.Context, from peer.Caller, body []byte) ([]byte, error) {
	r := c.running.Load()
	if r == nil || from.Stranger {
		return nil, errNotStarted
	}
	var s status
	if err := decode(body, &s); err != nil {
		return nil, err
	}
	if s.Member == from.Member {
		c.hear(s)
	}
	return encode(c.ownStatus(r)), nil
}

func (c *Cluster) hear(s status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.heard[s.Member]
	if h == nil {
		h = &heard{}
		c.heard[s.Member] = h
	}
	news := !slices.EqualFunc(h.status.Shards, s.Shards, func(a, b shardStatus) bool { return a.Shard == b.Shard && a.Leading == b.Leading && a.Term == b.Term })
	h.status, h.at = s, time.Now()
	if news {
		c.changedLocked()
	}
}

func (c *Cluster) changedLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Cluster) somethingChanged() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changedLocked()
}

// changes is closed when leadership has changed somewhere, as far as is heard.
func (c *Cluster) changes() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// up reports whether a member was heard lately.
func (c *Cluster) up(member string) bool {
	if member == c.self.Member {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.heard[member]
	return h != nil && time.Since(h.at) < c.cfg.DownAfter
}

// CountMembers tells how many members are up, this one among them, and how many are not.
func (c *Cluster) CountMembers() (up, down int) {
	r := c.running.Load()
	if r == nil {
		return 0, 0
	}
	up = 1
	for _, m := range c.others(r) {
		if c.up(m) {
			up++
		} else {
			down++
		}
	}
	return up, down
}

// heardLeader is who said last that it leads a shard, to this node or to one that tells it.
func (c *Cluster) heardLeader(shard uint32) string {
	leader, _ := c.heardLead(shard)
	return leader
}

// heardLead is heardLeader with its term.
func (c *Cluster) heardLead(shard uint32) (leader string, term uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for member, h := range c.heard { // order does not matter: terms have one leader
		if time.Since(h.at) >= c.cfg.DownAfter {
			continue
		}
		for i := range h.status.Shards {
			if s := &h.status.Shards[i]; s.Shard == shard && s.Leading && s.Term > term {
				leader, term = member, s.Term
			}
		}
		for i := range h.status.Led {
			if l := &h.status.Led[i]; l.Shard == shard && l.Term > term && l.Leader != c.self.Member {
				leader, term = l.Leader, l.Term
			}
		}
	}
	return leader, term
}

// statusOf is what a member told last, and whether that was lately.
func (c *Cluster) statusOf(member string) (status, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.heard[member]
	if h == nil {
		return status{}, false
	}
	return h.status, time.Since(h.at) < c.cfg.DownAfter
}

// isCaughtUp: once this node has applied what the registry's leader had applied, its copy
// is no older than its start.
func (c *Cluster) isCaughtUp(r *running) bool {
	if r.caughtUp.Load() {
		return true
	}
	if r.node.Shard(0).Leading {
		r.caughtUp.Store(true)
		return true
	}
	leader := c.heardLeader(0)
	if leader == "" {
		return false
	}
	s, _ := c.statusOf(leader)
	applied := r.log.Group(0).Stats().AppliedIndex
	for i := range s.Shards {
		if o := &s.Shards[i]; o.Shard == 0 && o.Leading && applied >= o.Applied {
			r.caughtUp.Store(true)
			return true
		}
	}
	return false
}

// agreeOnLevel tells the shards which records every member knows.
func (c *Cluster) agreeOnLevel(r *running) {
	level := uint32(txn.Level)
	for _, m := range r.log.Group(0).Members() {
		if m.Member == c.self.Member {
			continue
		}
		s, _ := c.statusOf(m.Member)
		level = min(level, s.Level) // 0: not heard yet
	}
	if level > 0 {
		r.node.AllKnow(level)
	}
}
