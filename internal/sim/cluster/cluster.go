package cluster

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/sim/sessions"
	"github.com/assent-tx/assent/internal/txnid"
)

// Cluster is all nodes and shards of a run. It implements sessions.Cluster.
type Cluster struct {
	w      *sessions.World
	opt    Options
	asks   bool // clients ask about each other's transactions: nobody else may end them
	nodes  []*node
	groups []*group

	cut      [][]bool // from, to
	minority map[int]bool
	splits   int
	replaces int // nodes that were lost for ever

	lastToken shard.Token
	reached   Counters
	lines     *lines
}

func build(w *sessions.World, asks bool, l *lines) *Cluster {
	c := &Cluster{w: w, opt: Swarm(w.Rand()), asks: asks, lines: l}
	if asks { // who asks in the end wants an answer
		c.opt.Retained = 100_000
	}
	founders := c.opt.Nodes
	for range founders {
		c.addNode()
	}
	for s := range w.Options().Shards {
		g := newGroup(c, s)
		c.groups = append(c.groups, g)
	}
	for s, g := range c.groups {
		cfg := &config{}
		for i := range min(c.opt.Replicas, founders) {
			cfg.voters = append(cfg.voters, (s+i)%founders)
		}
		slices.Sort(cfg.voters)
		for _, id := range cfg.voters {
			c.nodes[id].reps[s] = newReplica(c.nodes[id], g, cfg)
		}
		for _, n := range c.nodes {
			n.belief[s] = cfg.voters[0]
		}
	}
	for _, n := range c.nodes {
		n.start()
	}
	c.startFaults()
	return c
}

func (c *Cluster) addNode() *node {
	shards := c.w.Options().Shards
	n := &node{c: c, id: len(c.nodes), reps: make([]*replica, shards), belief: make([]int, shards)}
	n.offsetUs = c.w.UpTo(1_000_000_000)
	if c.opt.ClockPct > 0 && c.w.Rand().IntN(100) < c.opt.ClockPct {
		n.ppm = c.w.UpTo(100_000) - 50_000
		n.wallMs = c.w.UpTo(40_000) - 20_000
		c.hit(ClocksDiffer)
	}
	if c.w.Rand().IntN(4) == 0 {
		n.slowUs = c.opt.SlowUs
	}
	c.nodes = append(c.nodes, n)
	for i := range c.cut {
		c.cut[i] = append(c.cut[i], false)
	}
	c.cut = append(c.cut, make([]bool, len(c.nodes)))
	return n
}

// ---- clients

// request is a client's, at one node or another.
type request struct {
	c        *Cluster
	id       txnid.ID
	token    shard.Token
	ev       shard.Event
	answer   func(*shard.Reply)
	answered bool
	entry    *node
	at       *replica // where it waits
	life     int
	lead     *leadership // that took it,
	ordinal  uint64      // after so many proposals
}

// done answers the client, once.
func (q *request) done(rep *shard.Reply) {
	if q.answered {
		return
	}
	q.answered = true
	q.answer(rep)
}

// Ask implements sessions.Cluster: the request reaches any node, perhaps never.
func (c *Cluster) Ask(id txnid.ID, ev func(shard.Token) shard.Event, answer func(*shard.Reply)) {
	w := c.w
	c.lastToken++
	q := &request{c: c, id: id, token: c.lastToken, ev: ev(c.lastToken), answer: answer}
	nodes := c.alive()
	n := nodes[w.Rand().IntN(len(nodes))]
	patience := []int64{400_000, 2_000_000, 8_000_000}[w.Rand().IntN(3)]
	w.At(patience+w.UpTo(patience), func() { q.giveUp() })
	if _, ok := q.ev.(*shard.Submit); ok && !c.asks && w.Chance(c.opt.MeddlePct) { // somebody else ends it
		w.At(w.UpTo(400_000), func() {
			c.Ask(id, func(t shard.Token) shard.Event { return &shard.Rollback{Token: t, ID: id} }, func(*shard.Reply) {})
		})
	}
	copies := []*request{q}
	if _, ok := q.ev.(*shard.Rollback); ok {
		c.groups[id.Shard(uint32(len(c.groups)))].rolls[id] = true
	}
	switch q.ev.(type) {
	case *shard.Submit, *shard.Get, *shard.Rollback: // said again they do the same
		if w.Chance(c.opt.DoublePct) {
			c.lastToken++
			copies = append(copies, &request{c: c, id: id, token: c.lastToken, ev: ev(c.lastToken), answer: func(*shard.Reply) {}})
		}
	}
	for _, q := range copies {
		q.entry = n
		if w.Chance(c.opt.LossPct) {
			continue
		}
		delay := 50 + w.UpTo(c.opt.DelayUs)
		if w.Chance(c.opt.LatePct) {
			delay = w.UpTo(c.opt.LateUs)
		}
		w.At(delay, func() {
			if !n.up { // the connection is refused
				w.At(w.UpTo(2_000), func() { q.done(nil) })
				return
			}
			n.do(n.life, false, func() { c.route(n, q, 0) })
		})
	}
}

// maxHops of a request from node to node.
const maxHops = 2

// route hands a request to the leader of its shard, as far as the node knows it.
func (c *Cluster) route(n *node, q *request, hops int) {
	if q.at != nil { // a connection carries a request once
		return
	}
	s := int(q.id.Shard(uint32(len(c.groups))))
	r := n.reps[s]
	if r != nil && r.sh != nil {
		if _, get := q.ev.(*shard.Get); get && !r.sh.Leading() && c.w.Rand().IntN(2) == 0 {
			if v := r.terminal(q.id); v != nil {
				c.hit(TerminalToldByFollower)
				r.g.told(r, q, &shard.Reply{Token: q.token, View: v})
				c.back(n, q, &shard.Reply{Token: q.token, View: v})
				return
			}
		}
		if r.sh.Leading() || r.role == leader && c.w.Rand().IntN(2) == 0 {
			q.at, q.life = r, n.life
			if r.lead != nil {
				q.lead, q.ordinal = r.lead, r.lead.n
			}
			if _, ok := q.ev.(*shard.Submit); ok && r.sh.Leading() {
				if b := r.g.book(q.id); b.asked == nil {
					b.asked = r.lead
				}
			}
			r.waiting[q.token] = q
			r.step(q.ev)
			return
		}
	}
	to := n.leaderOf(s)
	if hops >= maxHops || to < 0 || to == n.id {
		c.refuse(n, q, s)
		return
	}
	c.hit(Forwarded)
	c.send(n, to, false, func(m *node) { c.route(m, q, hops+1) })
	n.later(150_000, false, func() { // nobody answers there: perhaps somebody else leads
		if !q.answered && q.at == nil && n.belief[s] == to {
			n.belief[s] = c.anyReplica(s)
		}
	})
}

// refuse tells the client that there is no leader here.
func (c *Cluster) refuse(n *node, q *request, s int) {
	if c.minority[n.id] {
		c.hit(MinorityRefused)
	} else {
		c.hit(NoLeaderRefused)
	}
	if r := n.reps[s]; r == nil || r.leader < 0 {
		n.belief[s] = c.anyReplica(s)
	}
	c.back(n, q, &shard.Reply{Token: q.token, Err: reason.New(reason.NotReady, "try again", "no leader is known")})
}

func (c *Cluster) anyReplica(s int) int {
	var ids []int
	for _, n := range c.nodes {
		if n.reps[s] != nil {
			ids = append(ids, n.id)
		}
	}
	if len(ids) == 0 {
		return -1
	}
	return ids[c.w.Rand().IntN(len(ids))]
}

// back takes an answer to the client, by the node that the request reached first.
func (c *Cluster) back(n *node, q *request, rep *shard.Reply) {
	w := c.w
	if w.Chance(c.opt.LossPct) {
		return
	}
	client := func(*node) { w.At(w.UpTo(c.opt.DelayUs), func() { q.done(rep) }) }
	if n == q.entry {
		client(n)
		return
	}
	c.send(n, q.entry.id, false, client)
}

// giveUp: the client waits no longer. The leader may hear of it.
func (q *request) giveUp() {
	if q.answered {
		return
	}
	c := q.c
	if r := q.at; r != nil && c.w.Rand().IntN(2) == 0 {
		r.n.do(q.life, false, func() {
			if r.sh == nil || r.waiting[q.token] != q {
				return
			}
			c.hit(WaitGivenUp)
			cancel := &shard.Cancel{Token: q.token, ID: q.id}
			switch ev := q.ev.(type) {
			case *shard.PutService:
				cancel.Name = ev.Service.Name
			case *shard.DeleteService:
				cancel.Name = ev.Name
			}
			r.step(cancel)
			if r.waiting[q.token] != nil {
				c.w.Fail("%s: request %d for %s was given up, but not answered", r, q.token, q.id)
			}
		})
	}
	q.done(nil)
}

func (r *replica) reply(rep *shard.Reply) {
	c := r.g.c
	q := r.waiting[rep.Token]
	if q == nil {
		c.w.Fail("%s answers request %d, which does not wait", r, rep.Token)
	}
	delete(r.waiting, rep.Token)
	r.g.told(r, q, rep)
	c.back(r.n, q, rep)
}

func sorted(waiting map[shard.Token]*request) []*request {
	list := make([]*request, 0, len(waiting))
	for _, q := range waiting { // order does not matter: sorted below
		list = append(list, q)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].token < list[j].token })
	return list
}

// ---- sessions.Cluster

// Committed implements sessions.Cluster: also of what was forgotten since.
func (c *Cluster) Committed(id txnid.ID) bool {
	b := c.groups[id.Shard(uint32(len(c.groups)))].books[id]
	return b != nil && b.committed && b.ended
}

// Quiet implements sessions.Cluster: every shard leads, all its replicas have applied all
// there is, and nothing is open or locked.
func (c *Cluster) Quiet() bool {
	for _, g := range c.groups {
		l := g.leader()
		if l == nil || !l.sh.Leading() || len(l.queue) > 0 || l.commit != l.last() || l.commit != uint64(len(g.committed)) {
			return false
		}
		st := l.sh.State()
		if st.Live() > 0 || st.LockOwners() > 0 || len(st.ForeignClaims()) > 0 {
			return false
		}
		for _, id := range append(l.config().others(l.n.id), l.n.id) {
			r := c.nodes[id].reps[g.shard]
			if r == nil || r.sh == nil || r.restoring || r.applied != l.commit {
				return false
			}
		}
	}
	return true
}

// Audit implements sessions.Cluster.
func (c *Cluster) Audit() {
	for _, g := range c.groups {
		g.finalAudit()
	}
}

func (c *Cluster) String() string {
	var b strings.Builder
	for _, n := range c.nodes {
		fmt.Fprintf(&b, "%s up %v gone %v paused %v, believes in %v\n", n, n.up, n.gone, n.paused, n.belief)
		for _, r := range n.reps {
			if r == nil || r.sh == nil {
				continue
			}
			fmt.Fprintf(&b, "  shard %d role %d leader %d term %d log %d..%d synced %d commit %d applied %d config %v word %v leading %v waiting %d\n",
				r.g.shard, r.role, r.leader, r.term, r.first, r.last(), r.synced, r.commit, r.applied, r.config(), r.word, r.sh.Leading(), len(r.waiting))
			if r.sh.Leading() {
				b.WriteString(r.sh.String())
			}
		}
	}
	return b.String()
}

// ---- lines of the run, for people

// lines are the last of them; nil: nobody reads them.
type lines struct {
	last []string
	all  func(string)
}

const keptLines = 300

func (c *Cluster) line(format string, args ...any) {
	if c.lines == nil {
		return
	}
	s := fmt.Sprintf("%10.6f  ", float64(c.w.NowUs())/1e6) + fmt.Sprintf(format, args...)
	if c.lines.all != nil {
		c.lines.all(s)
	}
	if c.lines.last = append(c.lines.last, s); len(c.lines.last) > 2*keptLines {
		c.lines.last = slices.Clone(c.lines.last[keptLines:])
	}
}

func (c *Cluster) hit(s Situation) { c.reached[s]++ }
