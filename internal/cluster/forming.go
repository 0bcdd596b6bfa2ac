package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/peer"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/replog"
	"github.com/assent-tx/assent/internal/txn"
)

// A cluster is made by the nodes that are named at their first start: the founders. The
// first of them by name makes it, once all have told their member ids; the others take it
// from there. So two nodes never make two clusters, and a founder that lost its directory
// is not taken for the one that had it.
//
//	claim directory -> hello to every founder until ... somebody is part of a cluster that counts us in: that one
//	                                                 ... all answer, none is, and we are the first: a new one
//
// A node that joins asks any node; the leader of shard 0 takes it in as a learner of that
// shard, and writes it into the table of members.

// Founding is what a new directory needs to become part of a cluster: for replog.Config.
type Founding struct {
	Cluster     string
	Incarnation uint64
	Shards      uint32
	Founders    []string
	Replicas    int
	Join        bool
	Members     []*txn.Member // where they are, for who joins
}

// helloAnswer is what a node says of itself to anybody.
type helloAnswer struct {
	Name     string   `json:"name"`
	Member   string   `json:"member"`
	Founding Founding `json:"founding"` // Cluster is empty while it is part of none
}

// Introduce sets what hello answers before Start.
func (c *Cluster) Introduce(f Founding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.founding = f
}

func (c *Cluster) takeHello(context.Context, peer.Caller, []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return encode(helloAnswer{c.self.Name, c.self.Member, c.founding}), nil
}

const formEvery = 100 * time.Millisecond

// ErrNotCountedIn: the cluster exists and this node is not part of it.
var ErrNotCountedIn = errors.New("the cluster exists, and does not count this node in")

// Form waits until the nodes of a new cluster have found each other. founders are their
// addresses by name, this node's among them; want is what this node would make. The port
// must serve.
func (c *Cluster) Form(ctx context.Context, founders map[string]string, want Founding) (Founding, error) {
	names := make([]string, 0, len(founders))
	for name := range founders {
		names = append(names, name)
	}
	slices.Sort(names)
	complained := time.Now()
	for {
		ids := map[string]string{c.self.Name: c.self.Member}
		var silent []string
		for _, name := range names {
			if name == c.self.Name {
				continue
			}
			h, err := c.hello(ctx, founders[name])
			switch {
			case err != nil:
				silent = append(silent, fmt.Sprintf("%s at %s: %v", name, founders[name], err))
				continue
			case h.Name != name:
				return Founding{}, fmt.Errorf("at %s is node %q, not %q: give every node the same --cluster", founders[name], h.Name, name)
			case h.Founding.Cluster == "":
			case !slices.Contains(h.Founding.Founders, c.self.Member):
				return Founding{}, fmt.Errorf("%w: %s is in cluster %s; a new node, or one that lost its data directory, starts with --join %s (remove the lost one first: assent cluster remove %s)",
					ErrNotCountedIn, name, h.Founding.Cluster, founders[name], c.self.Name)
			default:
				return h.Founding, nil
			}
			ids[name] = h.Member
		}
		if len(ids) == len(names) && c.self.Name == names[0] {
			want.Founders = nil
			for _, name := range names {
				want.Founders = append(want.Founders, ids[name])
			}
			return want, nil
		}
		if time.Since(complained) > 5*time.Second && len(silent) > 0 {
			complained = time.Now()
			c.log.Info("a new cluster waits for all of its nodes", "missing", silent)
		}
		if err := pause(ctx, formEvery); err != nil {
			return Founding{}, fmt.Errorf("waiting for the nodes of a new cluster: %w; missing: %q", err, silent)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *Cluster) hello(ctx context.Context, address string) (helloAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var h helloAnswer
	body, err := c.cfg.Port.CallAddress(ctx, address, "hello", nil)
	if err == nil {
		err = decode(body, &h)
	}
	return h, err
}

// Join asks the cluster of the node at an address to take this one in, until it does or
// refuses. The port must serve.
func (c *Cluster) Join(ctx context.Context, address string) (Founding, error) {
	own := txn.Member{ID: c.self.Member, Name: c.self.Name, Peer: c.self.Peer, HTTP: c.self.HTTP, GRPC: c.self.GRPC, Level: txn.Level}
	complained := time.Now()
	for {
		var a envelope[Founding]
		tried, cancel := context.WithTimeout(ctx, 10*time.Second)
		body, err := c.cfg.Port.CallAddress(tried, address, "join", encode(own))
		cancel()
		if err == nil {
			err = decode(body, &a)
		}
		if err == nil && a.Error != nil {
			if a.Error.RetryAfterMs == 0 {
				return Founding{}, a.Error
			}
			err = a.Error
		}
		if err == nil {
			a.Answer.Join = true
			return a.Answer, c.book.learn(a.Answer.Members)
		}
		if time.Since(complained) > 5*time.Second {
			complained = time.Now()
			c.log.Info("not taken into the cluster yet", "asked", address, "error", err)
		}
		if err := pause(ctx, formEvery); err != nil {
			return Founding{}, fmt.Errorf("asking %s to join its cluster: %w", address, cmp.Or(a.err(), err))
		}
	}
}

func (e *envelope[A]) err() error {
	if e.Error == nil {
		return nil
	}
	return e.Error
}

// takeJoin takes a node in.
func (c *Cluster) takeJoin(ctx context.Context, from peer.Caller, body []byte) ([]byte, error) {
	var m txn.Member
	if err := decode(body, &m); err != nil {
		return nil, err
	}
	refuse := func(err *reason.Error) ([]byte, error) { return encode(envelope[Founding]{Error: err}), nil }
	r := c.running.Load()
	if r == nil {
		return refuse(notStarted())
	}
	if m.ID != from.Member || nameOf(m.ID) != m.Name || m.Peer == "" {
		return refuse(reason.New(reason.InvalidField, "", "the node that asks is not the one that it speaks of"))
	}
	_, err := at(ctx, c, 0, "admit", m, c.doAdmit)
	if err != nil {
		var refused *reason.Error
		if !errors.As(err, &refused) {
			refused = notStarted()
		}
		return refuse(refused)
	}
	members, _ := r.node.Members()
	if !slices.ContainsFunc(members, func(o *txn.Member) bool { return o.ID == m.ID }) {
		members = append(members, &m)
	}
	return encode(envelope[Founding]{Answer: Founding{
		Cluster: r.identity.Cluster, Incarnation: r.identity.Incarnation, Shards: r.identity.Shards, Members: members,
	}}), nil
}

// doAdmit is executed by the leader of shard 0.
func (c *Cluster) doAdmit(ctx context.Context, n *node.Node, m txn.Member) (bool, error) {
	for _, o := range c.members(c.running.Load()) {
		if o.Name == m.Name && o.ID != m.ID && o.Leaving {
			e := reason.New(reason.MemberInUse, "wait until it is removed: assent cluster status", "the cluster has a node %q with another data directory (%s), which is being removed", o.Name, o.ID)
			e.RetryAfterMs = 200
			return false, e
		}
		if o.Name == m.Name && o.ID != m.ID {
			return false, reason.New(reason.MemberInUse, fmt.Sprintf("choose another name, or remove the lost one first: assent cluster remove %s", o.Name),
				"the cluster has a node %q already, with another data directory (%s)", o.Name, o.ID)
		}
	}
	if m.Level < n.Level() {
		return false, reason.New(reason.InvalidField, "run a version that is not older than the cluster's", "the cluster writes records of level %d; the node knows up to %d", n.Level(), m.Level)
	}
	if err := n.PutMember(ctx, &m); err != nil {
		return false, err
	}
	_, err := c.doChange(ctx, n, change{Kind: "learn", Member: m.ID})
	return err == nil, err
}

// Founded is what a directory that is part of a cluster says of it.
func Founded(id replog.Identity) Founding {
	return Founding{Cluster: id.Cluster, Incarnation: id.Incarnation, Shards: id.Shards, Founders: id.Founders, Replicas: id.Replicas, Join: id.Joined}
}
