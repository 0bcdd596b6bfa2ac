package cluster

import (
	"fmt"

	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txnid"
)

// replica is one shard on one node: its Raft, the real core, and a driver that does what
// internal/node does with the two.
type replica struct {
	raft
	n        *node
	g        *group
	leftover []rec // proposals of a lost leadership that are still in the queue before the log

	sh        *shard.Shard // nil: the process is down, or the replica was removed
	applied   uint64
	applying  bool
	restoring bool // a snapshot of another replica waits to be read
	fromDisk  bool // the one that waits is its own
	word      word // what the shard was last told of leadership
	lead      *leadership
	acted     bool // it led at some time since it acted last
	wakeUs    int64
	waiting   map[shard.Token]*request
	queue     []rec // proposals under way to the log
	queueOn   bool
}

type word struct {
	leads bool
	term  uint64
}

// leadership is one time that a shard was told to lead.
type leadership struct {
	node  int
	term  uint64
	ledUs int64  // when its LEAD was applied, by its own clock; 0: not yet
	n     uint64 // proposals that it has made, and of these the last that was applied in its term
	seen  uint64
	began map[txnid.ID]int64
	asked map[txnid.ID]bool // to give way, by a message
}

func (r *replica) String() string {
	return fmt.Sprintf("%s shard %d term %d", r.n, r.g.shard, r.term)
}

// newReplica is an empty one; with a configuration, a founder.
func newReplica(n *node, g *group, founders *config) *replica {
	r := &replica{n: n, g: g}
	r.voted, r.leader = -1, -1
	if founders != nil {
		r.term = 1
		r.log = []rec{{term: 1, kind: recConfig, config: founders}}
		r.synced = 1
	}
	return r
}

func (r *replica) start() {
	c := r.g.c
	cfg := shard.DefaultConfig()
	cfg.Shard, cfg.Shards = uint32(r.g.shard), uint32(len(c.groups))
	cfg.Node, cfg.Cluster, cfg.Incarnation = r.n.String(), [16]byte{1}, 1
	cfg.MaxAppendsInFlight = 1 + c.w.Rand().IntN(3)
	cfg.OverlapCommands = c.w.Rand().IntN(3)
	cfg.RetainedTransactions = c.opt.Retained
	cfg.MaxLockWaitUs = c.opt.LockWaitUs
	cfg.ForgetBatch = 8
	cfg.HashCheckIntervalUs, cfg.HashCheckEntries = 500_000, 20
	r.lose()
	r.sh = shard.New(cfg)
	r.applied, r.applying, r.restoring, r.fromDisk = 0, false, false, false
	r.word, r.lead, r.acted, r.wakeUs = word{}, nil, false, 0
	r.waiting = map[shard.Token]*request{}
	r.queue, r.queueOn, r.leftover = nil, false, nil
	if r.snap.index > 0 {
		r.restoring, r.fromDisk = true, true
		r.applyLater()
	}
	r.postpone()
}

func (r *replica) crash() {
	r.g.leaderLost(r)
	c := r.g.c
	for _, q := range sorted(r.waiting) {
		if c.w.Rand().IntN(2) == 0 {
			c.w.At(c.w.UpTo(5_000), func() { q.done(nil) }) // the connection breaks
		}
	}
	r.sh, r.waiting = nil, nil
}

// remove takes the replica away from its node.
func (r *replica) remove() {
	if r.sh != nil {
		r.crash()
	}
	r.n.reps[r.g.shard] = nil
}

// ---- the log's word

// leadershipLater tells the shard who leads: late, and only the newest.
func (r *replica) leadershipLater() {
	c := r.g.c
	delay := c.w.UpTo(c.opt.WordUs)
	if c.w.Calm() {
		delay = 0
	}
	r.n.later(delay, false, func() {
		if r.sh == nil {
			return
		}
		now := word{r.role == leader, r.term}
		if !now.leads {
			now.term = 0
		}
		if now == r.word {
			return
		}
		if r.word.leads && now.leads {
			c.hit(FlipsMerged)
		}
		if r.word = now; !now.leads {
			r.step(&shard.Follow{})
			return
		}
		r.tellLead()
	})
}

// tellLead tells the shard to lead, and again if its LEAD gets lost.
func (r *replica) tellLead() {
	if r.lead != nil && r.lead.term == r.word.term {
		r.g.c.hit(LeadRepeated)
	}
	r.lead = &leadership{node: r.n.id, term: r.word.term, began: map[txnid.ID]int64{}, asked: map[txnid.ID]bool{}}
	lead := r.lead
	r.step(&shard.Lead{Term: r.word.term})
	r.n.later(500_000, false, func() {
		if r.sh != nil && r.lead == lead && r.word.leads && !r.sh.Leading() {
			r.tellLead()
		}
	})
}

// proposalFailed starts over: what is applied tells what became of everything.
func (r *replica) proposalFailed() {
	if r.sh == nil || !r.word.leads {
		return
	}
	r.g.c.hit(ProposalFailed)
	lead := r.lead
	r.step(&shard.Follow{})
	r.n.later(50_000, false, func() {
		if r.sh != nil && r.word.leads && r.lead == lead {
			r.tellLead()
		}
	})
}

// deposed: what was proposed and not committed is unknown.
func (r *replica) deposed() {
	c := r.g.c
	r.g.leaderLost(r)
	if r.commit < r.last() {
		for i := max(r.commit, r.first) + 1; i <= r.last(); i++ {
			if e := r.at(i); e.kind == recData && c.w.Chance(20) {
				r.leftover = append(r.leftover, *e)
			}
		}
		if c.w.Rand().IntN(2) == 0 {
			r.n.later(c.w.UpTo(20_000), false, r.proposalFailed)
		}
	}
}

// propose hands an entry to the log, in order.
func (r *replica) propose(data []byte) {
	r.lead.n++
	r.queue = append(r.queue, rec{kind: recData, data: append([]byte(nil), data...), by: r.lead, ordinal: r.lead.n, atUs: r.n.mono()})
	r.drainQueue()
}

func (r *replica) drainQueue() {
	c := r.g.c
	if r.queueOn || len(r.queue) == 0 {
		return
	}
	r.queueOn = true
	r.n.later(c.w.UpTo(c.opt.QueueUs), false, func() {
		if r.sh == nil {
			return
		}
		r.queueOn = false
		e := r.queue[0]
		r.queue = r.queue[1:]
		switch {
		case r.role != leader || r.transfer > 0 || c.w.Chance(c.opt.RefusePct):
			r.n.later(c.w.UpTo(5_000), false, r.proposalFailed)
		default:
			r.appendRec(e)
			r.replicateAll()
			r.g.aim(r)
		}
		r.drainQueue()
	})
}

// ---- the applied stream

func (r *replica) applyLater() {
	c := r.g.c
	if r.applying || r.sh == nil || r.applied >= r.commit && !r.restoring {
		return
	}
	r.applying = true
	r.n.later(c.w.UpTo(c.opt.ApplyUs), false, func() {
		if r.sh == nil {
			return
		}
		r.applying = false
		if r.restoring {
			r.restore()
		} else {
			for n := 1 + c.w.Rand().IntN(4); n > 0 && r.applied < r.commit; n-- {
				r.apply()
			}
		}
		r.act()
		r.g.allAnswered(r)
		r.applyLater()
	})
}

func (r *replica) restore() {
	c := r.g.c
	r.restoring = false
	r.acted = r.acted || r.sh.Leading()
	if !r.fromDisk && r.sh.Leading() {
		c.hit(RestoredWhileLeading)
	}
	if err := r.sh.Restore(r.snap.state); err != nil {
		c.w.Fail("%s: restore: %v", r, err)
	}
	r.applied = r.snap.index
	r.g.sameState(r, true)
	if r.sh.State().Live() > 0 {
		if r.fromDisk {
			c.hit(OwnSnapshotWithOpen)
		} else {
			c.hit(SnapshotWithOpenInstalled)
		}
	}
	r.fromDisk = false
	c.line("%s restores a snapshot of entry %d", r, r.applied)
}

func (r *replica) apply() {
	c := r.g.c
	e := r.at(r.applied + 1)
	r.applied++
	if e.kind != recData {
		return
	}
	r.acted = r.acted || r.sh.Leading()
	scratch := append([]byte(nil), e.data...)
	if err := r.sh.Apply(r.n.time(), r.applied, e.term, scratch); err != nil {
		c.w.Fail("%s: apply entry %d: %v", r, r.applied, err)
	}
	if e.by == r.lead && e.term == r.lead.term {
		r.lead.seen = max(r.lead.seen, e.ordinal)
	}
	clear(scratch) // its bytes are the entry's only during Apply
	r.leads()
	r.g.sameState(r, false)
}

// leads looks whether the shard has begun to lead.
func (r *replica) leads() {
	if !r.sh.Leading() {
		return
	}
	r.acted = true
	if r.lead == nil || r.lead.ledUs == 0 {
		r.g.leads(r)
		r.lead.ledUs = r.n.mono()
	}
}

// takeSnapshot captures now and writes later, while the state moves on.
func (r *replica) takeSnapshot() {
	if r.sh == nil || r.restoring || r.applied <= r.snap.index || r.sh.State().Applied() == 0 {
		return
	}
	c, index, capture := r.g.c, r.applied, r.sh.State().Capture()
	r.n.later(c.w.UpTo(200_000), false, func() {
		if r.sh == nil || r.restoring || index <= r.snap.index {
			return
		}
		var state []byte
		if err := capture.Write(func(b []byte) error { state = append(state, b...); return nil }); err != nil {
			c.w.Fail("%s: write snapshot: %v", r, err)
		}
		r.compact(index, state)
	})
}

// ---- driving the shard

func (r *replica) step(ev shard.Event) {
	r.acted = r.acted || r.sh.Leading()
	r.sh.Step(r.n.time(), ev)
	r.leads()
	r.act()
	r.g.allAnswered(r)
}

func (r *replica) act() {
	rd := r.sh.Ready()
	entries := append([][]byte(nil), rd.Entries...)
	calls := append([]shard.Call(nil), rd.Calls...)
	replies := append([]shard.Reply(nil), rd.Replies...)
	messages := append([]shard.Message(nil), rd.Messages...)
	for i := range rd.Notices {
		r.noticed(&rd.Notices[i])
	}
	captures := append([]shard.Capture(nil), rd.Captures...)
	wake := rd.WakeAtUs
	r.sh.Advance()
	r.g.mayAct(r, len(entries), len(calls), len(messages))
	r.acted = r.sh.Leading()
	for _, e := range entries {
		r.propose(e)
	}
	for i := range replies {
		r.reply(&replies[i])
	}
	for i := range calls {
		r.g.called(r, &calls[i])
		r.call(&calls[i])
	}
	for i := range messages {
		r.message(&messages[i])
	}
	for _, v := range captures {
		r.n.later(r.g.c.w.UpTo(10_000), false, func() {
			if r.sh != nil {
				r.step(&shard.Hashed{Index: v.Index, Hash: v.State.Hash()})
			}
		})
	}
	r.wake(wake)
}

func (r *replica) noticed(n *shard.Notice) {
	if n.Kind == shard.NoticeBegan && r.lead != nil {
		r.lead.began[n.ID] = r.n.mono()
	}
}

// wake gives the shard the Tick that it asked for, by its node's clock.
func (r *replica) wake(atUs int64) {
	if atUs <= 0 || r.wakeUs != 0 && r.wakeUs <= atUs {
		return
	}
	r.wakeUs = atUs
	r.n.later(max(atUs-r.n.mono(), 0)*1_000_000/(1_000_000+r.n.ppm)+1, false, func() {
		if r.sh == nil || r.wakeUs != atUs {
			return
		}
		r.wakeUs = 0
		r.step(&shard.Tick{})
	})
}

// message goes to the node that is believed to lead the other shard.
func (r *replica) message(m *shard.Message) {
	c := r.g.c
	r.g.messaged(r, m)
	to := r.n.leaderOf(int(m.To))
	if c.w.Chance(c.opt.MisroutePct) {
		to = c.w.Rand().IntN(len(c.nodes))
	}
	c.line("%s: %s of %s to shard %d at n%d", r, m.Kind, m.ID, m.To, to)
	msg := *m
	deliver := func(n *node) {
		p := n.reps[msg.To]
		if p == nil || p.sh == nil {
			return
		}
		if !p.sh.Leading() {
			c.hit(MessageAtNonLeader)
		} else {
			p.g.heard(p, &msg)
		}
		again := msg
		p.step(&again)
	}
	if to == r.n.id {
		r.n.later(c.w.UpTo(200), false, func() { deliver(r.n) })
		return
	}
	c.send(r.n, to, false, deliver)
}

// call goes to a participant: perhaps never, perhaps twice, perhaps long after its answer
// is of use.
func (r *replica) call(call *shard.Call) {
	c, w := r.g.c, r.g.c.w
	copies := 1
	switch {
	case w.Chance(c.opt.LossPct):
		copies = 0
	case w.Chance(c.opt.DoublePct):
		copies = 2
	}
	answered := false
	done := func(d *shard.CallDone) {
		if r.sh == nil || answered {
			return
		}
		answered = true
		r.step(d)
	}
	life := r.n.life
	for range copies {
		delay := w.UpTo(3_000)
		if w.Chance(c.opt.LatePct) {
			delay = w.UpTo(c.opt.LateUs)
		}
		w.At(delay, func() {
			d := w.Serve(call)
			r.g.served(call, d)
			if !w.Chance(c.opt.LossPct) {
				w.At(w.UpTo(3_000), func() { r.n.do(life, false, func() { done(d) }) })
			}
		})
	}
	r.n.later(250_000, false, func() {
		done(&shard.CallDone{ID: call.ID, Branch: call.Branch, Phase: call.Phase, Attempt: call.Attempt, Term: call.Term, Answer: shard.Indefinite, Reason: "timeout"})
	})
}

// terminal is what any replica may tell of a transaction.
func (r *replica) terminal(id txnid.ID) *shard.View {
	t := r.sh.State().Get(id)
	if t == nil || !t.Status.Decided() {
		return nil
	}
	return &shard.View{Txn: *t, Branches: make([]shard.BranchView, len(t.Branches))}
}
