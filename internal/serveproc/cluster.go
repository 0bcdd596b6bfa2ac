package serveproc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Cluster is several coordinators that are one, with a network between them that can
// break.
type Cluster struct {
	Nodes []*Process
	Links *Links
}

// NewCluster prepares nodes n1, n2, ... with their data below a directory; extra are
// further flags of each.
func NewCluster(binary, dir string, nodes int, extra ...string) (*Cluster, error) {
	return newCluster(&Cluster{Links: NewLinks()}, binary, dir, nodes, extra)
}

// NewPlainCluster is NewCluster without a network that can break: Links is nil, and what
// the nodes say to each other takes no detour.
func NewPlainCluster(binary, dir string, nodes int, extra ...string) (*Cluster, error) {
	return newCluster(&Cluster{}, binary, dir, nodes, extra)
}

func newCluster(c *Cluster, binary, dir string, nodes int, extra []string) (*Cluster, error) {
	var founders, listen []string
	for i := range nodes {
		name := fmt.Sprint("n", i+1)
		own, err := FreeAddress()
		if err != nil {
			return nil, err
		}
		dialled := own
		if c.Links != nil {
			if dialled, err = c.Links.Listen(name, own); err != nil {
				return nil, err
			}
		}
		listen, founders = append(listen, own), append(founders, name+"="+dialled)
	}
	for i := range nodes {
		name := fmt.Sprint("n", i+1)
		flags := append([]string{"--node", name, "--peer", listen[i], "--cluster", strings.Join(founders, ",")}, extra...)
		p, err := New(binary, filepath.Join(dir, name), flags...)
		if err != nil {
			return nil, err
		}
		p.Name = name
		c.Nodes = append(c.Nodes, p)
	}
	return c, nil
}

// Start starts every node and returns when all are ready.
func (c *Cluster) Start(ctx context.Context, env ...string) error {
	for _, n := range c.Nodes {
		if err := n.Launch(env...); err != nil {
			return err
		}
	}
	return c.Ready(ctx)
}

// Ready returns when every node is.
func (c *Cluster) Ready(ctx context.Context) error {
	for _, n := range c.Nodes {
		if err := n.Ready(ctx); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	return nil
}

// Close kills every node and ends the network.
func (c *Cluster) Close() {
	for _, n := range c.Nodes {
		n.Kill()
	}
	if c.Links != nil {
		c.Links.Close()
	}
}

// URLs of all nodes.
func (c *Cluster) URLs() []string {
	var list []string
	for _, n := range c.Nodes {
		list = append(list, n.URL)
	}
	return list
}

// Others are the nodes besides one.
func (c *Cluster) Others(but *Process) []*Process {
	var list []*Process
	for _, n := range c.Nodes {
		if n != but {
			list = append(list, n)
		}
	}
	return list
}

// Health is what a node tells of itself at /healthz.
type Health struct {
	Status string
	Shards []struct {
		Shard   uint32
		Leading bool
		Term    uint64
		Applied uint64
		Hazards int
	}
}

// Health asks a node how it is.
func (p *Process) Health(ctx context.Context) (*Health, error) {
	body, err := p.Get(ctx, "/healthz")
	if err != nil {
		return nil, err
	}
	h := &Health{}
	return h, json.Unmarshal(body, h)
}

const healthTime = 300 * time.Millisecond

// healths are those of the nodes that answer soon, nil for the others.
func (c *Cluster) healths(ctx context.Context) []*Health {
	ctx, cancel := context.WithTimeout(ctx, healthTime)
	defer cancel()
	list := make([]*Health, len(c.Nodes))
	var all sync.WaitGroup
	for i, n := range c.Nodes {
		all.Go(func() {
			if h, err := n.Health(ctx); err == nil {
				list[i] = h
			}
		})
	}
	all.Wait()
	return list
}

// Leader is who leads a shard in the latest term, of the nodes that answer; nil: none.
func (c *Cluster) Leader(ctx context.Context, shard uint32) *Process {
	var leader *Process
	term := uint64(0)
	for i, h := range c.healths(ctx) {
		if h == nil || int(shard) >= len(h.Shards) {
			continue
		}
		if s := h.Shards[shard]; s.Leading && s.Term > term {
			leader, term = c.Nodes[i], s.Term
		}
	}
	return leader
}

// AwaitLeader waits for a leader of a shard other than one.
func (c *Cluster) AwaitLeader(ctx context.Context, shard uint32, but *Process) (*Process, error) {
	for {
		if leader := c.Leader(ctx, shard); leader != nil && leader != but {
			return leader, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("shard %d has no leader: %w", shard, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Converged waits until every node has applied the same entries of every shard.
func (c *Cluster) Converged(ctx context.Context) error {
	for {
		var applied []string
		equal := true
		for i, h := range c.healths(ctx) {
			text := fmt.Sprint(c.Nodes[i].Name, " does not answer")
			if h != nil {
				text = ""
				for _, s := range h.Shards {
					text += fmt.Sprintf("shard %d: %d; ", s.Shard, s.Applied)
				}
			}
			applied = append(applied, text)
			equal = equal && h != nil && text == applied[0]
		}
		if equal {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the nodes have not applied the same: %q", applied)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Settled waits until no transaction is open and no lock is held, as every node tells,
// and fails if a hazard is left.
func (c *Cluster) Settled(ctx context.Context) error {
	var errs []error
	for _, n := range c.Nodes {
		for {
			left, err := n.open(ctx)
			if err == nil && left == "" {
				break
			}
			if ctx.Err() == nil {
				select {
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
				continue
			}
			errs = append(errs, fmt.Errorf("%s: %s %w", n.Name, left, err))
			break
		}
	}
	return errors.Join(errs...)
}

// open says what is open in the cluster, as a node tells it; "": nothing.
func (p *Process) open(ctx context.Context) (string, error) {
	for _, path := range []string{
		"/v1/transactions?state=active", "/v1/transactions?state=preparing", "/v1/transactions?state=in_doubt", "/v1/transactions?state=hazard", "/v1/locks",
	} {
		body, err := p.Get(ctx, path)
		if err != nil {
			return path, err
		}
		var page struct{ Transactions, Locks []json.RawMessage }
		if err := json.Unmarshal(body, &page); err != nil {
			return path, err
		}
		if list := append(page.Transactions, page.Locks...); len(list) > 0 {
			return fmt.Sprintf("%s: %d left, such as %s", path, len(list), list[0]), nil
		}
	}
	return "", nil
}

// LogText is the whole log of a node.
func (p *Process) LogText() string {
	text, _ := os.ReadFile(p.LogFile()) // a report without it is a report still
	return string(text)
}
