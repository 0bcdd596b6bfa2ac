package cluster

import (
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

// Open reads the file of an earlier run. static are addresses by node name.
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
		if c.isCaughtUp(r) && !c.isRight(list) {
			ctx, cancel := context.WithTimeout(c.ctx, 2*time.Second)
			if _, err := at(ctx, c, 0, "put-member", c.own(list), c.doPutMember); err != nil && c.ctx.Err() == nil {
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

// doPutMember records where a member is. One that is in no log any more was removed.
func (c *Cluster) doPutMember(ctx context.Context, n *node.Node, m txn.Member) (bool, error) {
	r := c.running.Load()
	if !slices.ContainsFunc(r.log.Group(0).Members(), func(o replog.Replica) bool { return o.Member == m.ID }) {
		return false, reason.New(reason.UnknownMember, "start it with an empty data directory and --join", "member %s is not part of the cluster", m.ID)
	}
	return true, n.PutMember(ctx, &m)
}

func (c *Cluster) doDropMember(ctx context.Context, n *node.Node, id string) (bool, error) {
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
		err = g.Transfer(q.Member)
	default:
		return false, reason.New(reason.InvalidField, "", "change %q is not known", q.Kind)
	}
	if errors.Is(err, replog.ErrNotAppended) {
		return false, shard.NotLeader(q.Shard)
	}
	return err == nil, err
}

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
		if s, up := c.statusOf(m.ID); up || m.ID == c.self.Member {
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
		out.Shards = append(out.Shards, s)
	}
	return out, nil
}
