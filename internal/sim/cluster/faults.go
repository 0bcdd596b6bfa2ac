package cluster

import "slices"

// startFaults schedules everything that goes wrong by itself.
func (c *Cluster) startFaults() {
	o := &c.opt
	c.every(o.CrashEveryUs, func() { c.any().restart(c.around(o.DownUs)) })
	c.every(o.RestartAllEveryUs, func() {
		c.hit(AllRestarted)
		for _, n := range c.alive() {
			n.restart(c.around(o.DownUs))
		}
	})
	c.every(o.PauseEveryUs, func() { c.any().pause(c.around(o.PauseUs)) })
	c.every(o.SplitEveryUs, func() { c.split(partition(c.w.Rand().IntN(4))) })
	c.every(o.TransferEveryUs, func() {
		if l := c.groups[c.w.Rand().IntN(len(c.groups))].leader(); l != nil && !l.n.paused {
			l.handOver()
		}
	})
	c.every(o.SnapshotEveryUs, func() {
		if r := c.any().reps[c.w.Rand().IntN(len(c.groups))]; r != nil && !r.n.paused {
			r.takeSnapshot()
		}
	})
	c.every(o.ClockEveryUs, func() {
		c.hit(ClockJumped)
		c.any().wallMs = c.w.UpTo(28_000) - 20_000
	})
	c.gossip()
	c.every(o.MemberEveryUs, func() { c.members(false) })
	c.every(o.ReplaceEveryUs, c.replace)
	if c.opt.MemberEveryUs > 0 {
		c.every(2_000_000, func() {
			if len(c.alive()) < c.opt.Grow {
				c.line("n%d joins", len(c.nodes))
				c.addNode().start()
			}
		})
	}
}

// gossip: who has no replica of a shard, or one that hears no leader, learns from others
// who leads it.
func (c *Cluster) gossip() {
	for _, n := range c.nodes {
		m := c.nodes[c.w.Rand().IntN(len(c.nodes))]
		if !n.up || n.paused || !m.up || m.paused || c.cut[m.id][n.id] || c.cut[n.id][m.id] {
			continue
		}
		for s := range n.belief {
			if r := m.reps[s]; r != nil && r.leader >= 0 && (n.reps[s] == nil || n.reps[s].leader < 0) {
				n.belief[s] = r.leader
			}
		}
	}
	c.w.At(100_000, c.gossip)
}

// every repeats a fault until the world heals.
func (c *Cluster) every(meanUs int64, do func()) {
	if meanUs == 0 {
		return
	}
	c.w.At(c.around(meanUs), func() {
		if c.w.Calm() {
			return
		}
		do()
		c.every(meanUs, do)
	})
}

// around is a time with this mean, seldom very long.
func (c *Cluster) around(meanUs int64) int64 {
	return 1 + int64(min(c.w.Rand().ExpFloat64(), 6)*float64(meanUs))
}

func (c *Cluster) any() *node {
	nodes := c.alive()
	return nodes[c.w.Rand().IntN(len(nodes))]
}

// aim lets a fault strike a leader at a moment that chance would seldom hit.
func (g *group) aim(r *replica) {
	c := g.c
	if !c.w.Chance(c.opt.AimPct) || c.w.Rand().IntN(3) > 0 {
		return
	}
	strike := []func(){
		func() { r.n.restart(c.around(c.opt.DownUs)) },
		func() { r.n.pause(400_000 + c.around(c.opt.PauseUs)) },
		func() { c.isolate(r.n, true, true) },
		func() { c.isolate(r.n, true, false) },
		func() { c.isolate(r.n, false, true) },
		func() {
			if r.sh != nil && !r.n.paused {
				r.handOver()
			}
		},
	}[c.w.Rand().IntN(6)]
	c.w.At(c.w.UpTo(2*c.opt.DelayUs+c.opt.SyncUs), func() {
		if !c.w.Calm() && r.n.up {
			strike()
		}
	})
}

// isolate cuts what one node sends, or hears, or both.
func (c *Cluster) isolate(n *node, sends, hears bool) {
	c.join()
	for _, o := range c.alive() {
		if o != n {
			c.cut[n.id][o.id], c.cut[o.id][n.id] = sends, hears
		}
	}
	c.line("%s is cut off: sends %v, hears %v", n, !sends, !hears)
	if sends && hears {
		c.minority = map[int]bool{n.id: len(c.alive()) > 2}
		c.hit(PartitionMinority)
	} else {
		c.hit(PartitionOneWay)
	}
	c.splits++
	at := c.splits
	c.w.At(300_000+c.w.UpTo(c.opt.SplitUs), func() {
		if c.splits == at {
			c.join()
		}
	})
}

// Heal implements sessions.Cluster.
func (c *Cluster) Heal() {
	c.line("the cluster heals")
	c.splits++
	c.join()
	for _, n := range c.nodes {
		now := n.mono()
		n.ppm, n.wallMs, n.slowUs = 0, 0, 0
		n.offsetUs += now - n.mono()
		n.goOn()
		n.start()
	}
	c.tidy()
}

// tidy lets go of members that are gone for ever.
func (c *Cluster) tidy() {
	c.members(true)
	c.w.At(300_000, c.tidy)
}

// ---- members

// members makes one step of one shard's membership, as an operator's hand would: a
// learner is added, or promoted when it has caught up, or a voter is removed. The leader
// that is asked need not be one any more.
func (c *Cluster) members(onlyGone bool) {
	w := c.w
	groups := c.groups
	if !onlyGone {
		g := w.Rand().IntN(len(groups))
		groups = groups[g : g+1]
	}
	for _, g := range groups {
		var leaders []*replica
		for _, n := range c.nodes {
			if r := n.reps[g.shard]; r != nil && r.sh != nil && r.role == leader && !n.paused {
				leaders = append(leaders, r)
			}
		}
		if len(leaders) > 0 {
			g.member(leaders[w.Rand().IntN(len(leaders))], onlyGone)
		}
	}
}

func (g *group) member(r *replica, onlyGone bool) {
	c, w, cfg := g.c, g.c.w, r.config()
	if !r.mayChange() {
		return
	}
	// Who knows an older configuration elects nobody whom that does not make a voter: if
	// he is needed two changes later, there is no leader for ever.
	for _, id := range cfg.voters {
		if !c.nodes[id].gone && r.match[id] < r.configs[len(r.configs)-1].index {
			return
		}
	}
	for _, id := range cfg.others(r.n.id) {
		if c.nodes[id].gone {
			if r.change(cfg.without(id)) {
				c.hit(GoneRemoved)
			}
			return
		}
	}
	for _, id := range cfg.learners {
		if r.match[id]+3 >= r.commit && !onlyGone {
			if r.change(cfg.with(id, -1)) {
				c.hit(LearnerPromoted)
			}
			return
		}
	}
	if onlyGone {
		return
	}
	if len(cfg.voters) > c.opt.Replicas || len(cfg.voters) == c.opt.Replicas && len(cfg.voters) > 2 && w.Rand().IntN(4) == 0 {
		id := cfg.voters[w.Rand().IntN(len(cfg.voters))]
		if id == r.n.id && w.Rand().IntN(2) == 0 {
			r.handOver()
			return
		}
		if r.change(cfg.without(id)) {
			c.hit(VoterRemoved)
		}
		return
	}
	if len(cfg.learners) > 0 {
		return
	}
	var free []*node
	for _, n := range c.alive() {
		if !cfg.has(n.id) && !g.removed[n.id] && n.up {
			free = append(free, n)
		}
	}
	if len(free) == 0 {
		return
	}
	n := free[w.Rand().IntN(len(free))]
	if n.reps[g.shard] == nil {
		n.reps[g.shard] = newReplica(n, g, nil)
		n.reps[g.shard].start()
	}
	r.change(cfg.with(-1, n.id))
}

// reconfigured: who is no member any more keeps its replica for a while, and never gets
// another one of this shard.
func (g *group) reconfigured(cfg *config) {
	c := g.c
	if g.latest != nil {
		for _, id := range append(slices.Clone(g.latest.voters), g.latest.learners...) {
			if cfg.has(id) {
				continue
			}
			g.removed[id] = true
			r := c.nodes[id].reps[g.shard]
			c.w.At(c.w.UpTo(2_000_000), func() {
				if r != nil && r.n.reps[g.shard] == r {
					r.remove()
				}
			})
		}
	}
	g.latest = cfg
}

// replace loses a node for ever, and adds a new one.
func (c *Cluster) replace() {
	n := c.any()
	if c.replaces >= 2 {
		return
	}
	for _, g := range c.groups { // whoever may lead then must still find a majority
		for _, o := range c.nodes {
			r := o.reps[g.shard]
			if r == nil {
				continue
			}
			if r.config() != nil && r.config() != g.latest { // in the middle of a change
				return
			}
			for _, at := range r.configs {
				left := 0
				for _, v := range at.config.voters {
					if v != n.id && !c.nodes[v].gone {
						left++
					}
				}
				if left <= len(at.config.voters)/2 {
					return
				}
			}
		}
	}
	c.replaces++
	c.hit(NodeReplaced)
	c.line("%s is lost for ever", n)
	n.crash()
	n.gone = true
	n.life++
	for s := range n.reps {
		n.reps[s] = nil
	}
	c.addNode().start()
}
