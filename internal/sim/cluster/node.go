package cluster

import (
	"fmt"

	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/sim/sessions"
)

// node is one process, with a replica of some of the shards.
type node struct {
	c       *Cluster
	id      int
	life    int // events of an earlier process are void
	up      bool
	gone    bool // for ever, and its directory with it
	paused  bool
	backlog []job // what waits until it goes on
	reps    []*replica
	belief  []int // who leads, of each shard
	slowUs  int64 // how much later it hears the log

	offsetUs, ppm, wallMs int64 // of its clocks
}

type job struct {
	log bool // the Raft's
	do  func()
}

func (n *node) String() string { return fmt.Sprintf("n%d", n.id) }

func (n *node) mono() int64 {
	now := n.c.w.NowUs()
	return 1 + n.offsetUs + now + now/1_000_000*n.ppm + now%1_000_000*n.ppm/1_000_000
}

func (n *node) time() shard.Time {
	return shard.Time{MonoUs: n.mono(), WallMs: uint64(sessions.StartMs + n.c.w.NowUs()/1000 + n.wallMs)}
}

// do does something in the process, if it is there and when it is awake.
func (n *node) do(life int, log bool, do func()) {
	switch {
	case n.life != life || !n.up:
	case n.paused:
		n.backlog = append(n.backlog, job{log, do})
	default:
		do()
	}
}

func (n *node) later(delayUs int64, log bool, do func()) {
	life := n.life
	n.c.w.At(delayUs, func() { n.do(life, log, do) })
}

// pause is a SIGSTOP: what comes meanwhile waits.
func (n *node) pause(forUs int64) {
	if !n.up || n.paused {
		return
	}
	n.c.line("%s is paused", n)
	n.paused = true
	life := n.life
	n.c.w.At(forUs, func() {
		if n.life == life {
			n.goOn()
		}
	})
}

// goOn is the SIGCONT. The shards may act on what they believed before the log has told
// them of its new leader.
func (n *node) goOn() {
	if !n.paused {
		return
	}
	n.c.line("%s goes on", n)
	n.paused = false
	backlog := n.backlog
	n.backlog = nil
	lag := n.c.w.UpTo(60_000)
	for _, j := range backlog {
		delay := n.c.w.UpTo(2_000)
		if j.log {
			delay = lag + n.c.w.UpTo(10_000)
		}
		n.later(delay, j.log, j.do)
	}
}

// crash kills the process; what is not synced may be lost.
func (n *node) crash() {
	if !n.up {
		return
	}
	n.c.line("%s crashes", n)
	n.c.w.Crashed()
	n.up, n.paused, n.backlog = false, false, nil
	n.life++
	for _, r := range n.reps {
		if r != nil {
			r.crash()
		}
	}
}

func (n *node) start() {
	if n.up || n.gone {
		return
	}
	n.c.line("%s starts", n)
	n.up = true
	n.life++
	for _, r := range n.reps {
		if r != nil {
			r.start()
		}
	}
}

// restart is a crash and a start some time later.
func (n *node) restart(downUs int64) {
	n.crash()
	life := n.life
	n.c.w.At(downUs, func() {
		if n.life == life {
			n.start()
		}
	})
}

// leaderOf is whom the node believes to lead.
func (n *node) leaderOf(shard int) int {
	if r := n.reps[shard]; r != nil && r.leader >= 0 {
		return r.leader
	}
	return n.belief[shard]
}

// ---- the network between nodes

// send takes something to another node: perhaps never, perhaps twice, perhaps late.
func (c *Cluster) send(from *node, to int, log bool, do func(*node)) {
	w := c.w
	if to < 0 || to >= len(c.nodes) || c.cut[from.id][to] {
		return
	}
	copies := 1
	switch {
	case w.Chance(c.opt.LossPct):
		copies = 0
	case w.Chance(c.opt.DoublePct):
		copies = 2
	}
	n := c.nodes[to]
	for range copies {
		delay := 50 + w.UpTo(c.opt.DelayUs)
		if log && !w.Calm() {
			delay += w.UpTo(n.slowUs)
		}
		if w.Chance(c.opt.LatePct) {
			delay = w.UpTo(c.opt.LateUs)
		}
		w.At(delay, func() {
			if c.cut[from.id][to] || !n.up { // what was under way when the line went dead is lost
				return
			}
			n.do(n.life, log, func() { do(n) })
		})
	}
}

// ---- partitions

type partition uint8

const (
	cutFull partition = iota
	cutMinority
	cutBridge
	cutOneWay
)

// split cuts lines.
func (c *Cluster) split(kind partition) {
	w := c.w
	nodes := c.alive()
	if len(nodes) < 2 {
		return
	}
	w.Rand().Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	side := map[int]int{}
	half := 1 + w.Rand().IntN(len(nodes)-1)
	for i, n := range nodes {
		switch kind {
		case cutFull:
			side[n.id] = i
		case cutBridge:
			if side[n.id] = 1 + i%2; i == 0 {
				side[n.id] = 0 // hears both halves
			}
		case cutMinority:
			if i < min(half, (len(nodes)-1)/2) || i == 0 && len(nodes) == 2 {
				side[n.id] = 1
			}
		case cutOneWay:
			if i < half {
				side[n.id] = 1
			}
		}
	}
	c.line("partition %d: %v", kind, side)
	c.join()
	for _, a := range nodes {
		for _, b := range nodes {
			switch x, y := side[a.id], side[b.id]; {
			case x == y, kind == cutBridge && (x == 0 || y == 0), kind == cutOneWay && x == 0:
			default:
				c.cut[a.id][b.id] = true
			}
		}
	}
	c.hit([]Situation{cutFull: PartitionFull, cutMinority: PartitionMinority, cutBridge: PartitionBridge, cutOneWay: PartitionOneWay}[kind])
	c.minority = map[int]bool{}
	if kind == cutMinority {
		for id, s := range side { // order does not matter: a set
			c.minority[id] = s == 1
		}
	}
	c.splits++
	n := c.splits
	w.At(50_000+w.UpTo(c.opt.SplitUs), func() {
		if c.splits == n {
			c.line("partition ends")
			c.join()
		}
	})
}

// join ends a partition.
func (c *Cluster) join() {
	c.minority = nil
	for i := range c.cut {
		for j := range c.cut[i] {
			c.cut[i][j] = false
		}
	}
}

func (c *Cluster) alive() []*node {
	var nodes []*node
	for _, n := range c.nodes {
		if !n.gone {
			nodes = append(nodes, n)
		}
	}
	return nodes
}
