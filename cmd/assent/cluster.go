package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/assent-tx/assent/internal/server"
)

// clusterCmd is `assent cluster`.
type clusterCmd struct {
	Status   clusterStatusCmd   `cmd:"" help:"Show the nodes, and where each shard is."`
	Add      clusterAddCmd      `cmd:"" help:"Show how to start one more node."`
	Drain    clusterDrainCmd    `cmd:"" help:"Move leaders off a node, and place nothing new there."`
	Undrain  clusterUndrainCmd  `cmd:"" help:"Take a drain back, or a removal that has not ended."`
	Remove   clusterRemoveCmd   `cmd:"" help:"Move a node's replicas to others, then forget it."`
	Transfer clusterTransferCmd `cmd:"" help:"Have another node lead a shard."`
}

const clusterPath = "/v1/cluster"

func nodePath(name string) string { return clusterPath + "/nodes/" + url.PathEscape(name) }

type clusterStatusCmd struct {
	clientFlags
}

// Help is shown by --help.
func (*clusterStatusCmd) Help() string {
	return `As the asked node sees it: a node that it has not heard of for two seconds is down. LEADS and
REPLICAS are shards of each node; replicas that only follow are in brackets.`
}

// Run shows the cluster.
func (c *clusterStatusCmd) Run(ctx context.Context, std *streams) error {
	answer, err := c.client().do(ctx, http.MethodGet, clusterPath, nil)
	if err != nil {
		return err
	}
	return show(&c.clientFlags, std.out, answer, clusterText)
}

func clusterText(out io.Writer, c *server.Cluster) {
	fmt.Fprintf(out, "cluster %s, incarnation %d, as %s sees it\n\n", plain(c.Cluster), c.Incarnation, plain(c.Node))
	w := table(out, "NODE", "STATE", "LEADS", "REPLICAS", "HTTP", "GRPC", "PEER", "ID")
	for i := range c.Nodes {
		n := &c.Nodes[i]
		leads, replicas := shardsOf(c, n.ID)
		state := n.State
		if n.Draining {
			state += ", draining"
		}
		row(w, plain(n.Name), state, leads, replicas, plain(n.HTTP), plain(n.GRPC), plain(n.Peer), plain(n.ID))
	}
	_ = w.Flush() // into memory
	fmt.Fprintln(out)
	w = table(out, "SHARD", "LEADER", "TERM", "VOTERS", "LEARNERS")
	for i := range c.Placement {
		p := &c.Placement[i]
		leader := nameOfMember(c, p.Leader)
		if leader == "" {
			leader = "(none known)"
		}
		row(w, fmt.Sprint(p.Shard), leader, fmt.Sprint(p.Term), namesOf(c, p.Voters), namesOf(c, p.Learners))
	}
	_ = w.Flush() // into memory
}

// shardsOf lists what a node leads, and what it has replicas of.
func shardsOf(c *server.Cluster, id string) (leads, replicas string) {
	var l, r []string
	for i := range c.Placement {
		p := &c.Placement[i]
		if p.Leader == id {
			l = append(l, fmt.Sprint(p.Shard))
		}
		switch {
		case slices.Contains(p.Voters, id):
			r = append(r, fmt.Sprint(p.Shard))
		case slices.Contains(p.Learners, id):
			r = append(r, fmt.Sprintf("(%d)", p.Shard))
		}
	}
	return strings.Join(l, ","), strings.Join(r, ",")
}

func nodeOf(c *server.Cluster, name string) *server.ClusterNode {
	i := slices.IndexFunc(c.Nodes, func(n server.ClusterNode) bool { return n.ID == name || n.Name == name })
	if i < 0 {
		return nil
	}
	return &c.Nodes[i]
}

// nameOfMember is the name of a node, or its id while the node is not known.
func nameOfMember(c *server.Cluster, id string) string {
	if n := nodeOf(c, id); n != nil {
		return plain(n.Name)
	}
	return plain(id)
}

func namesOf(c *server.Cluster, ids []string) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = nameOfMember(c, id)
	}
	return strings.Join(names, ",")
}

type clusterAddCmd struct {
	clientFlags
	Name string `arg:"" optional:"" help:"Name of the new node (default: a free one)."`
}

// Help is shown by --help.
func (*clusterAddCmd) Help() string {
	return `A node adds itself when it is started with --join; this prints the command line, with an
address of this cluster filled in. Run it where the new node is to be, and replace what is
in capitals.`
}

// Run prints a command line.
func (c *clusterAddCmd) Run(ctx context.Context, std *streams) error {
	answer, err := c.client().do(ctx, http.MethodGet, clusterPath, nil)
	if err != nil {
		return err
	}
	v, err := read[server.Cluster](answer)
	if err != nil {
		return err
	}
	if c.Name != "" && nodeOf(v, c.Name) != nil {
		return &exitError{exitRefused, fmt.Errorf("the cluster has a node %q already: choose another name, or remove the lost one first: assent cluster remove %s", c.Name, c.Name)}
	}
	name := c.Name
	for i := len(v.Nodes) + 1; name == "" || nodeOf(v, name) != nil; i++ {
		name = fmt.Sprintf("n%d", i)
	}
	var join []string
	for i := range v.Nodes {
		n := &v.Nodes[i]
		switch {
		case n.State != "up" || n.Peer == "":
		case n.Name == v.Node: // it answers
			join = slices.Insert(join, 0, n.Peer)
		default:
			join = append(join, n.Peer)
		}
	}
	if len(join) == 0 {
		return &exitError{exitRefused, fmt.Errorf("no node of this cluster listens for others: start %s with --peer HOST:PORT first", plain(v.Node))}
	}
	if c.Output == "json" {
		return show(&c.clientFlags, std.out, answer, clusterText)
	}
	_, err = fmt.Fprintf(std.out, `assent serve --node %s --data DIR --http HOST:PORT --grpc HOST:PORT --peer HOST:PORT --join %s

DIR is new and empty, HOST is how the other nodes and the clients reach the new one. If the
nodes of this cluster have --peer-cert, --peer-key and --peer-ca, so must the new one. Then:

  assent cluster status
`, plain(name), plain(join[0]))
	return err
}

// waitFlags are those of commands that begin what the cluster then does by itself.
type waitFlags struct {
	Wait   bool          `help:"Wait until it is done."`
	Within time.Duration `default:"10m" help:"How long to wait with --wait."`
}

// pollEvery is how often a command looks whether it is done.
const pollEvery = 200 * time.Millisecond

// await shows the cluster: at once, or when it is done.
func (w *waitFlags) await(ctx context.Context, f *clientFlags, std *streams, answer []byte, what string, done func(*server.Cluster) (left string)) error {
	v, err := read[server.Cluster](answer)
	if err != nil {
		return err
	}
	left := done(v)
	for until := time.Now().Add(w.Within); w.Wait && left != ""; left = done(v) {
		if time.Now().After(until) {
			return &exitError{exitUnknown, fmt.Errorf("%s after %v: %s; it goes on: assent cluster status", what, w.Within, left)}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
		if answer, err = f.client().do(ctx, http.MethodGet, clusterPath, nil); err != nil {
			return err
		}
		if v, err = read[server.Cluster](answer); err != nil {
			return err
		}
	}
	if f.Output == "text" && left != "" {
		fmt.Fprintf(std.out, "%s, and goes on by itself: %s\n\n", what, left)
	}
	return show(f, std.out, answer, clusterText)
}

type clusterDrainCmd struct {
	clientFlags
	waitFlags
	Name string `arg:"" help:"Name or id of the node."`
}

// Help is shown by --help.
func (*clusterDrainCmd) Help() string {
	return `Before a node is stopped for a while: others take over what it leads, and nothing new is
placed there. It keeps its replicas, and counts in votes while it runs. assent cluster
undrain NAME takes it back.`
}

// Run drains.
func (c *clusterDrainCmd) Run(ctx context.Context, std *streams) error {
	answer, err := c.client().do(ctx, http.MethodPost, nodePath(c.Name)+":drain", nil)
	if err != nil {
		return err
	}
	return c.await(ctx, &c.clientFlags, std, answer, c.Name+" is draining", func(v *server.Cluster) string {
		n := nodeOf(v, c.Name)
		if n == nil {
			return ""
		}
		if leads, _ := shardsOf(v, n.ID); leads != "" {
			return "it leads shards " + leads
		}
		if !n.Draining {
			return "the asked node has not heard of it yet"
		}
		return ""
	})
}

type clusterUndrainCmd struct {
	clientFlags
	Name string `arg:"" help:"Name or id of the node."`
}

// Run takes a drain back.
func (c *clusterUndrainCmd) Run(ctx context.Context, std *streams) error {
	answer, err := c.client().do(ctx, http.MethodPost, nodePath(c.Name)+":undrain", nil)
	if err != nil {
		return err
	}
	return show(&c.clientFlags, std.out, answer, clusterText)
}

type clusterRemoveCmd struct {
	clientFlags
	waitFlags
	Name string `arg:"" help:"Name or id of the node."`
}

// Help is shown by --help.
func (*clusterRemoveCmd) Help() string {
	return `For good: other nodes get its replicas first, so there must be enough of them. A node that
is lost with its data is removed in the same way; the others need a majority of every shard.
Until it has ended, assent cluster undrain NAME takes it back. Do not start its directory
again. A node of the same name may join later, with a new one.`
}

// Run removes.
func (c *clusterRemoveCmd) Run(ctx context.Context, std *streams) error {
	answer, err := c.client().do(ctx, http.MethodDelete, nodePath(c.Name), nil)
	if err != nil {
		return err
	}
	return c.await(ctx, &c.clientFlags, std, answer, c.Name+" is being removed", func(v *server.Cluster) string {
		n := nodeOf(v, c.Name)
		if n == nil {
			return ""
		}
		_, replicas := shardsOf(v, n.ID)
		return "it has replicas of shards " + replicas
	})
}

type clusterTransferCmd struct {
	clientFlags
	Shard uint32 `arg:"" help:"Number of the shard."`
	To    string `placeholder:"NAME" help:"A voter of the shard (default: any other)."`
}

// Run transfers.
func (c *clusterTransferCmd) Run(ctx context.Context, std *streams) error {
	answer, err := c.client().do(ctx, http.MethodPost, clusterPath+"/shards/"+strconv.FormatUint(uint64(c.Shard), 10)+":transfer", server.TransferBody{To: c.To})
	if err != nil {
		return err
	}
	return show(&c.clientFlags, std.out, answer, clusterText)
}
