package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/replog"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
)

var errNotStarted = errors.New("the node is starting")

// nameOf is the name in a member id.
func nameOf(member string) string {
	name, _, _ := strings.Cut(member, "@")
	return name
}

// book is where members are found: the replicated table as this node has it, kept in a
// file for the next start, before which stand the addresses that it was started with.
type book struct {
	mu     sync.Mutex
	file   string
	table  map[string]*txn.Member
	static map[string]string // by name
}

// MembersFile is the name of the file in the data directory. It is a hint: without it a
// node needs the addresses of others at its start.
const MembersFile = "members.json"

// OpenBook reads the file of an earlier run. static are addresses by node name.
func (c *Cluster) OpenBook(dir string, static map[string]string) error {
	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	c.book.file, c.book.static = filepath.Join(dir, MembersFile), static
	content, err := os.ReadFile(c.book.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the members: %w", err)
	}
	var list []*txn.Member
	if err := json.Unmarshal(content, &list); err != nil {
		c.log.Warn("the file of members cannot be read and is made anew", "file", c.book.file, "error", err)
		return nil
	}
	c.book.put(list)
	return nil
}

func (b *book) put(list []*txn.Member) {
	b.table = map[string]*txn.Member{}
	for _, m := range list {
		if m != nil {
			b.table[m.ID] = m
		}
	}
}

// learn takes over the table, and writes the file if there is one.
func (b *book) learn(list []*txn.Member) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.put(list)
	if b.file == "" {
		return nil
	}
	content, err := json.MarshalIndent(list, "", " ")
	if err != nil {
		return err
	}
	tmp := b.file + ".tmp"
	if err := os.WriteFile(tmp, content, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, b.file)
}

func (b *book) get(member string) *txn.Member {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.table[member]
}

func (b *book) all() []*txn.Member {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]*txn.Member, 0, len(b.table))
	for _, m := range b.table {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b *txn.Member) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// Address is where a member is dialled.
func (c *Cluster) Address(member string) (string, bool) {
	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	if m := c.book.table[member]; m != nil && m.Peer != "" {
		return m.Peer, true
	}
	a, ok := c.book.static[nameOf(member)]
	return a, ok
}

// memberEvery is how often a node looks whether the table is right about it.
const memberEvery = 200 * time.Millisecond

// keepMember takes over the replicated table when it has changed, and keeps this node's
// part of it right.
func (c *Cluster) keepMember() {
	r := c.running.Load()
	tick := time.NewTicker(memberEvery)
	defer tick.Stop()
	version := uint64(0)
	for {
		list, now := r.node.Members()
		if now != version {
			version = now
			if len(list) > 0 {
				if err := c.book.learn(list); err != nil {
					c.log.Warn("the file of members was not written", "error", err)
				}
			}
		}
		out, known := c.isLeftOut()
		if known && !out {
			c.removed.Store(false)
		}
		if c.isCaughtUp(r) && !c.isRight(list) || out && !c.removed.Load() {
			ctx, cancel := context.WithTimeout(c.ctx, 2*time.Second)
			_, err := at(ctx, c, 0, "put-member", c.own(list), c.doPutMember)
			var refused *reason.Error
			switch {
			case err == nil || c.ctx.Err() != nil:
			case errors.As(err, &refused) && refused.Code == reason.UnknownMember:
				if !c.removed.Swap(true) {
					c.log.Warn(removedText)
				}
			default:
				c.log.Debug("this node could not tell where it is", "error", err)
			}
			cancel()
		}
		select {
		case <-tick.C:
		case <-c.ctx.Done():
			return
		}
	}
}

const removedText = "this node was removed from the cluster: stop it; to take part again it starts with an empty data directory and --join"

// isLeftOut reports whether the leader of shard 0 tells of members of whom this node is none,
// if it tells anything. That leader may be a former one: it is asked for what is true.
func (c *Cluster) isLeftOut() (out, known bool) {
	s, _ := c.statusOf(c.heardLeader(0))
	for i := range s.Shards {
		if o := &s.Shards[i]; o.Shard == 0 && o.Leading && len(o.Members) > 0 {
			return !slices.ContainsFunc(o.Members, func(m replog.Replica) bool { return m.Member == c.self.Member }), true
		}
	}
	return false, false
}

func (c *Cluster) own(list []*txn.Member) txn.Member {
	own := txn.Member{ID: c.self.Member}
	if i := slices.IndexFunc(list, func(m *txn.Member) bool { return m.ID == c.self.Member }); i >= 0 {
		own = *list[i]
	}
	own.Name, own.Peer, own.HTTP, own.GRPC, own.Level = c.self.Name, c.self.Peer, c.self.HTTP, c.self.GRPC, txn.Level
	return own
}

func (c *Cluster) isRight(list []*txn.Member) bool {
	return slices.ContainsFunc(list, func(m *txn.Member) bool { return m.ID == c.self.Member && *m == c.own(list) })
}

// doPutMember records where a member is, as it says itself. How it is treated is not for it
// to say: it may know an older table. One that is in no log any more was removed.
func (c *Cluster) doPutMember(ctx context.Context, n *node.Node, m txn.Member) (bool, error) {
	c.table.Lock()
	defer c.table.Unlock()
	list, _ := n.Members()
	if i := slices.IndexFunc(list, func(o *txn.Member) bool { return o.ID == m.ID }); i >= 0 {
		m.Draining, m.Leaving = list[i].Draining, list[i].Leaving
	}
	return c.putMember(ctx, n, m)
}

// treatment is a change of how a member is treated; nil leaves it as it is.
type treatment struct {
	Member   string `json:"member"`
	Draining *bool  `json:"draining,omitempty"`
	Leaving  *bool  `json:"leaving,omitempty"`
}

// doTreat changes the table as the leader of shard 0 has it, one change after the other.
func (c *Cluster) doTreat(ctx context.Context, n *node.Node, q treatment) (bool, error) {
	c.table.Lock()
	defer c.table.Unlock()
	var m *txn.Member
	staying := 0
	for _, o := range c.members(c.running.Load()) {
		switch {
		case o.ID == q.Member:
			m = new(*o)
		case !o.Leaving:
			staying++
		}
	}
	if m == nil {
		return false, reason.New(reason.UnknownMember, "see assent cluster status", "the cluster has no node %q", nameOf(q.Member))
	}
	if q.Leaving != nil {
		if *q.Leaving && staying == 0 {
			return false, reason.New(reason.MemberInUse, "let another node join first", "node %q is the last one that stays", m.Name)
		}
		m.Leaving = *q.Leaving
	}
	if q.Draining != nil {
		m.Draining = *q.Draining
	}
	return c.putMember(ctx, n, *m)
}

// putMember must be called with the table locked.
func (c *Cluster) putMember(ctx context.Context, n *node.Node, m txn.Member) (bool, error) {
	r := c.running.Load()
	if !slices.ContainsFunc(r.log.Group(0).Members(), func(o replog.Replica) bool { return o.Member == m.ID }) {
		return false, reason.New(reason.UnknownMember, "start it with an empty data directory and --join", "member %s is not part of the cluster", m.ID)
	}
	return true, n.PutMember(ctx, &m)
}

func (c *Cluster) doDropMember(ctx context.Context, n *node.Node, id string) (bool, error) {
	c.table.Lock()
	defer c.table.Unlock()
	list, _ := n.Members()
	if i := slices.IndexFunc(list, func(m *txn.Member) bool { return m.ID == id }); i >= 0 && !list[i].Leaving {
		return false, reason.New(reason.MemberInUse, "", "the removal of node %q was taken back", list[i].Name)
	}
	return true, n.RemoveMember(ctx, id)
}

// change is a change of a shard's replicas.
type change struct {
	Shard  uint32 `json:"shard"`
	Kind   string `json:"kind"` // learn, promote, remove, transfer
	Member string `json:"member"`
}

func (c *Cluster) doChange(_ context.Context, n *node.Node, q change) (bool, error) {
	if !n.Shard(q.Shard).Leading {
		return false, shard.NotLeader(q.Shard)
	}
	g := c.running.Load().log.Group(q.Shard)
	var err error
	switch q.Kind {
	case "learn":
		err = g.AddLearner(q.Member)
	case "promote":
		err = g.Promote(q.Member)
	case "remove":
		err = g.Remove(q.Member)
	case "transfer":
		return c.handOver(q.Shard, q.Member)
	default:
		return false, reason.New(reason.InvalidField, "", "change %q is not known", q.Kind)
	}
	if errors.Is(err, replog.ErrNotAppended) {
		return false, shard.NotLeader(q.Shard)
	}
	return err == nil, err
}

// handOver has a voter lead a shard that this node leads: the one that is named, or else
// the one that has the most of its log.
func (c *Cluster) handOver(of uint32, to string) (bool, error) {
	r := c.running.Load()
	heirs := c.heirs(r, of)
	if to == c.self.Member {
		return true, nil
	}
	if to != "" && !slices.Contains(heirs, to) {
		return false, fmt.Errorf("%s is no voter of it that is up and current", nameOf(to))
	}
	if len(heirs) == 0 {
		return false, errors.New("no other voter of it is up and current")
	}
	if to != "" {
		heirs = []string{to}
	}
	err := errors.New("no voter was asked")
	for _, heir := range heirs {
		err = r.log.Group(of).Transfer(heir)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, replog.ErrNotAppended):
			return false, shard.NotLeader(of)
		}
	}
	return false, err
}

// heirs are the voters that can lead a shard which this node leads, the most current first.
func (c *Cluster) heirs(r *running, of uint32) []string {
	g := r.log.Group(of)
	last := g.Stats().LastIndex
	applied := map[string]uint64{}
	var list []string
	for _, m := range g.Members() {
		s, up := c.statusOf(m.Member)
		if !m.Voter || m.Member == c.self.Member || !up || s.Closing {
			continue
		}
		i := slices.IndexFunc(s.Shards, func(o shardStatus) bool { return o.Shard == of })
		if i < 0 || s.Shards[i].Applied+heirEntries < last {
			continue
		}
		applied[m.Member] = s.Shards[i].Applied
		list = append(list, m.Member)
	}
	slices.SortStableFunc(list, func(a, b string) int { return cmp.Compare(applied[b], applied[a]) })
	return list
}

// heirEntries is how far behind a voter may have been when it was heard last to be asked to
// lead: it gets the rest before it is.
const heirEntries = 16 * caughtUpEntries

type placing struct {
	Shard  uint32   `json:"shard"`
	Voters []string `json:"voters"`
}

func (c *Cluster) doPlace(ctx context.Context, n *node.Node, q placing) (bool, error) {
	return true, n.Place(ctx, q.Shard, q.Voters)
}

// withReplicas adds to the table who votes in the registry's log, or follows it, and has
// not told yet where it is.
func (c *Cluster) withReplicas(r *running, table []*txn.Member) []*txn.Member {
	members := slices.Clone(table)
	for _, replica := range r.log.Group(0).Members() {
		if slices.ContainsFunc(members, func(m *txn.Member) bool { return m.ID == replica.Member }) {
			continue
		}
		m := c.own(nil)
		if replica.Member != m.ID {
			m = txn.Member{ID: replica.Member, Name: nameOf(replica.Member)}
			m.Peer, _ = c.Address(m.ID)
		}
		members = append(members, &m)
	}
	slices.SortFunc(members, func(a, b *txn.Member) int { return strings.Compare(a.ID, b.ID) })
	return members
}

// members are those of the replicated table, and those that are not in it yet.
func (c *Cluster) members(r *running) []*txn.Member {
	table, _ := r.node.Members()
	return c.withReplicas(r, table)
}

// Cluster is what this node knows of the cluster.
func (c *Cluster) Cluster(context.Context) (node.Cluster, error) {
	r := c.running.Load()
	if r == nil {
		return node.Cluster{}, notStarted()
	}
	out := node.Cluster{ID: r.identity.Cluster, Incarnation: r.identity.Incarnation, Node: c.self.Name}
	statuses := map[string]status{}
	table := c.book.all()
	if c.isCaughtUp(r) { // the book follows after a while
		table, _ = r.node.Members()
	}
	members := c.withReplicas(r, table)
	for _, m := range members {
		v := node.Member{ID: m.ID, Name: m.Name, Peer: m.Peer, HTTP: m.HTTP, GRPC: m.GRPC, State: "down", Draining: m.Draining, Level: m.Level}
		if s, up := c.statusOf(m.ID); up || m.ID == c.self.Member || c.via(m.ID) != "" {
			v.State = "up"
			if up {
				statuses[m.ID] = s
			}
		}
		if m.Leaving {
			v.State = "leaving"
		}
		out.Members = append(out.Members, v)
	}
	statuses[c.self.Member] = c.ownStatus(r)
	for i := range r.node.Shards() {
		s := node.ShardReplicas{Shard: i}
		best := uint64(0)
		for _, m := range r.log.Group(i).Members() { // as far as it is known here, if no leader tells
			s.Add(m.Member, m.Voter)
		}
		for member, st := range statuses { // order does not matter: a term has one leader
			for j := range st.Shards {
				if o := &st.Shards[j]; o.Shard == i && o.Leading && o.Term > best {
					best = o.Term
					s = node.ShardReplicas{Shard: i, Leader: member, Term: o.Term}
					for _, m := range o.Members {
						s.Add(m.Member, m.Voter)
					}
				}
			}
		}
		if s.Leader == "" { // told by a third node, perhaps
			s.Leader, s.Term = c.heardLead(i)
		}
		out.Shards = append(out.Shards, s)
	}
	return out, nil
}
