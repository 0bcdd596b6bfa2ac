package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/placement"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
)

// The leader of shard 0 looks at the whole cluster now and then, and takes the next steps
// that package placement names. Every step is one change that the shard's own log makes
// safe; if this leader dies in the middle, the next one sees where things stand.

// caughtUpEntries is how far behind a replica may be to count as current.
const caughtUpEntries = 256

func (c *Cluster) balance() {
	r := c.running.Load()
	tick := time.NewTicker(c.cfg.BalanceEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-c.ctx.Done():
			return
		}
		if c.closing.Load() || !r.node.Shard(0).Leading {
			continue
		}
		v, behind, ok := c.view(r)
		if !ok {
			continue
		}
		for _, s := range placement.Next(v) {
			if behind[changes(s)] {
				continue
			}
			if err := c.step(s); err != nil {
				c.log.Debug("a step of balancing was not taken", "step", fmt.Sprintf("%+v", s), "error", err)
			}
		}
		c.forgetLeft(r, v)
	}
}

// changes is the shard whose members a step changes, one more than its number; 0: none.
func changes(s placement.Step) uint32 {
	switch s := s.(type) {
	case placement.AddLearner:
		return s.Shard + 1
	case placement.Promote:
		return s.Shard + 1
	case placement.Remove:
		return s.Shard + 1
	}
	return 0
}

// view is the cluster as package placement sees it; not ok while too little was heard.
//
// behind are shards, as changes counts them, in which a voter that is up does not know the
// present members yet. They get no other change: the Raft library gives its vote only to
// who is a voter as far as it knows, so a voter that missed two changes might be the one
// that a later majority needs, and refuse it for ever.
func (c *Cluster) view(r *running) (v placement.View, behind map[uint32]bool, ok bool) {
	behind = map[uint32]bool{}
	members := c.members(r)
	v = placement.View{Replicas: c.cfg.Replicas, Registry: 0}
	statuses := map[string]status{c.self.Member: c.ownStatus(r)}
	for _, m := range members {
		s, up := c.statusOf(m.ID)
		if m.ID == c.self.Member {
			s, up = statuses[m.ID], true
		} else if up {
			statuses[m.ID] = s
		}
		v.Members = append(v.Members, placement.Member{ID: m.ID, Up: up, Draining: m.Draining || s.Closing || s.Low, Gone: m.Leaving})
	}
	known := func(id string) bool {
		return slices.ContainsFunc(v.Members, func(m placement.Member) bool { return m.ID == id })
	}
	for i := range r.node.Shards() {
		leader := c.leader(i)
		s := placement.Shard{ID: i, Leader: leader, Want: r.node.Placement(i)}
		if !known(leader) {
			return v, behind, false
		}
		st := statuses[leader]
		at := slices.IndexFunc(st.Shards, func(o shardStatus) bool { return o.Shard == i && o.Leading })
		if at < 0 {
			return v, behind, false
		}
		for _, m := range st.Shards[at].Members {
			if !known(m.Member) { // it has not told yet where it is; nobody leaves the table while it has a replica
				return v, behind, false
			}
			if m.Voter {
				s.Voters = append(s.Voters, m.Member)
			} else {
				s.Learners = append(s.Learners, m.Member)
			}
			there, up := statuses[m.Member]
			o := slices.IndexFunc(there.Shards, func(o shardStatus) bool { return o.Shard == i })
			if o >= 0 && there.Shards[o].Applied+caughtUpEntries >= st.Shards[at].Last {
				s.CaughtUp = append(s.CaughtUp, m.Member)
			}
			if up && m.Voter && (o < 0 || !slices.Equal(there.Shards[o].Members, st.Shards[at].Members)) {
				behind[i+1] = true
			}
		}
		slices.Sort(s.Voters)
		slices.Sort(s.Learners)
		v.Shards = append(v.Shards, s)
	}
	return v, behind, true
}

func (c *Cluster) step(s placement.Step) error {
	ctx, cancel := context.WithTimeout(c.ctx, 5*time.Second)
	defer cancel()
	var err error
	switch s := s.(type) {
	case placement.Place:
		_, err = at(ctx, c, 0, "place", placing{s.Shard, s.Voters}, c.doPlace)
	case placement.AddLearner:
		err = c.change(ctx, change{s.Shard, "learn", s.Member})
	case placement.Promote:
		err = c.change(ctx, change{s.Shard, "promote", s.Member})
	case placement.Remove:
		err = c.change(ctx, change{s.Shard, "remove", s.Member})
	case placement.Transfer:
		err = c.change(ctx, change{s.Shard, "transfer", s.To})
	}
	if err == nil {
		c.log.Info("balancing", "step", fmt.Sprintf("%T%+v", s, s))
	}
	return err
}

func (c *Cluster) change(ctx context.Context, q change) error {
	_, err := at(ctx, c, q.Shard, "change", q, c.doChange)
	return err
}

// forgetLeft forgets members that were removed and hold nothing any more.
func (c *Cluster) forgetLeft(r *running, v placement.View) {
	members, _ := r.node.Members()
	for _, m := range members {
		if !m.Leaving || slices.ContainsFunc(v.Shards, func(s placement.Shard) bool {
			return slices.Contains(s.Voters, m.ID) || slices.Contains(s.Learners, m.ID) || slices.Contains(s.Want, m.ID)
		}) {
			continue
		}
		ctx, cancel := context.WithTimeout(c.ctx, 2*time.Second)
		if _, err := at(ctx, c, 0, "drop-member", m.ID, c.doDropMember); err != nil {
			c.log.Debug("a member was not forgotten", "member", m.ID, "error", err)
		} else {
			c.log.Info("removed from the cluster", "member", m.ID)
		}
		cancel()
	}
}

// find returns the member of a name or id.
func (c *Cluster) find(name string) (*txn.Member, error) {
	r := c.running.Load()
	if r == nil {
		return nil, notStarted()
	}
	for _, m := range c.members(r) {
		if m.ID == name || m.Name == name {
			found := *m
			return &found, nil
		}
	}
	return nil, reason.New(reason.UnknownMember, "see assent cluster status", "the cluster has no node %q", name)
}

// treat changes how a member is treated.
func (c *Cluster) treat(ctx context.Context, name string, q treatment) (node.Cluster, error) {
	m, err := c.find(name)
	if err != nil {
		return node.Cluster{}, err
	}
	q.Member = m.ID
	if _, err := at(ctx, c, 0, "treat-member", q, c.doTreat); err != nil {
		return node.Cluster{}, err
	}
	return c.Cluster(ctx)
}

// DrainMember moves leaders off a member and places nothing new there, or takes that back,
// and a removal that has not ended.
func (c *Cluster) DrainMember(ctx context.Context, name string, draining bool) (node.Cluster, error) {
	if draining {
		return c.treat(ctx, name, treatment{Draining: new(true)})
	}
	return c.treat(ctx, name, treatment{Draining: new(false), Leaving: new(false)})
}

// RemoveMember has a member's replicas moved to others; then it is forgotten.
func (c *Cluster) RemoveMember(ctx context.Context, name string) (node.Cluster, error) {
	return c.treat(ctx, name, treatment{Leaving: new(true)})
}

// TransferShard asks a voter to lead a shard; empty: any other than the one that leads. It
// returns once that is heard of, or after a while.
func (c *Cluster) TransferShard(ctx context.Context, shard uint32, to string) (node.Cluster, error) {
	r := c.running.Load()
	if r == nil {
		return node.Cluster{}, notStarted()
	}
	if shard >= r.node.Shards() {
		return node.Cluster{}, reason.New(reason.InvalidField, "", "there is no shard %d", shard)
	}
	if to != "" {
		m, err := c.find(to)
		if err != nil {
			return node.Cluster{}, err
		}
		to = m.ID
	}
	before := c.leader(shard)
	if to != "" && before == to {
		return c.Cluster(ctx)
	}
	if err := c.change(ctx, change{shard, "transfer", to}); err != nil {
		var refused *reason.Error
		if errors.As(err, &refused) && refused.Code != reason.Internal {
			return node.Cluster{}, refused
		}
		return node.Cluster{}, reason.New(reason.NotReady, "see assent cluster status: it must be a voter of the shard that is up", "shard %d was not taken over: %v", shard, err)
	}
	told := time.NewTimer(transferTold)
	defer told.Stop()
	for {
		changed := c.changes()
		now := c.heardLeader(shard)
		if r.node.Shard(shard).Leading {
			now = c.self.Member
		}
		if now != "" && now != before && (to == "" || now == to) {
			return c.Cluster(ctx)
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond): // this node itself may lead now
		case <-told.C:
			return c.Cluster(ctx)
		case <-ctx.Done():
			return c.Cluster(ctx)
		}
	}
}

// transferTold bounds the wait for the word of a new leader.
const transferTold = 2 * time.Second
