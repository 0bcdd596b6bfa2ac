package sim

import (
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txnid"
)

// What participants did.

// executed: a participant runs a branch's operations now.
func (a *auditor) executed(p *participant, c *shard.Call, vote shard.AnswerKind) {
	r := a.rec(c.ID)
	b := r.branch(p.name)
	if b == nil {
		a.w.fail("%s executes %s, which BEGIN does not name there", p.name, short(c.ID))
	}
	b.execs++
	again := b.execs > 1
	if again && vote == shard.VoteReadOnly && b.vote == shard.VoteReadOnly {
		a.w.reached.hit(ReadOnlyPreparedTwice)
		if r.decision != undecided {
			return // reads again what nobody will look at
		}
	} else if again && !b.defect {
		a.w.fail("%s executes %s a second time", p.name, short(c.ID))
	}
	b.vote = vote
	if vote == shard.VoteNo || b.isolated || b.defect || r.work == nil {
		return
	}
	if r.ended {
		a.w.fail("%s executes %s, which has ended", p.name, short(c.ID))
	}
	locks := r.work.locksAt(p.name)
	for _, o := range a.held[p.name] {
		if o.r != r && conflict(o.locks, locks) {
			a.w.fail("%s executes %s while %s works on the same keys there", p.name, short(c.ID), short(o.r.id))
		}
	}
	a.checkToken(p.name, c, locks)
	if !again {
		a.held[p.name] = append(a.held[p.name], &hold{r: r, locks: locks})
	}
}

// checkToken: of two executions on a key in conflict, the later has the greater token.
func (a *auditor) checkToken(service string, c *shard.Call, locks []declared) {
	list := a.tokens[service]
	for _, l := range locks {
		found := -1
		for i := range list {
			k := &list[i]
			if k.key == l.key && k.excl == l.excl {
				found = i
			}
			if k.id != c.ID && (k.excl || l.excl) && overlap(k.key, l.key) && k.token >= c.Token {
				a.w.fail("%s executes %s on %s with token %s, after %s with token %s", service, short(c.ID), l.key, c.Token, short(k.id), k.token)
			}
		}
		switch {
		case found < 0:
			list = append(list, keyToken{l.key, l.excl, c.Token, c.ID})
		case list[found].token < c.Token:
			list[found].token, list[found].id = c.Token, c.ID
		}
	}
	a.tokens[service] = list
}

func (a *auditor) unhold(service string, r *record) {
	list := a.held[service]
	for i, o := range list {
		if o.r == r {
			a.held[service] = append(list[:i], list[i+1:]...)
			return
		}
	}
}

// committedAt: the branch's effects are visible now.
func (a *auditor) committedAt(p *participant, id txnid.ID) {
	r := a.rec(id)
	b := r.branch(p.name)
	b.effects++
	a.w.aim(a.h)
	if b.effects > 1 && !b.defect {
		a.w.fail("the effects of %s at %s happen %d times", short(id), p.name, b.effects)
	}
	if !b.defect && r.decision != commit && !r.onePhase {
		a.w.fail("%s commits %s without that decision", p.name, short(id))
	}
	a.unhold(p.name, r)
}

// finishedAt: the branch is undone.
func (a *auditor) finishedAt(p *participant, id txnid.ID) {
	r := a.rec(id)
	b := r.branch(p.name)
	if !b.defect && b.vote != shard.VoteReadOnly && r.decision != abort {
		a.w.fail("%s rolls %s back without that decision", p.name, short(id))
	}
	a.unhold(p.name, r)
}

func (a *auditor) defect(id txnid.ID, service string) {
	if b := a.rec(id).branch(service); b != nil {
		b.defect = true
	}
}

func (a *auditor) defected(id txnid.ID, service string) bool {
	b := a.rec(id).branch(service)
	return b != nil && b.defect
}

// wiped: whatever has begun there may now go wrong there.
func (a *auditor) wiped(p *participant) {
	for _, r := range a.order {
		if b := r.branch(p.name); b != nil && !r.id.Less(p.forgotten) {
			b.defect = true
			a.unhold(p.name, r)
		}
	}
}

func overlap(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	return b[:len(a)] == a && (len(a) == len(b) || b[len(a)] == '/')
}

func conflict(a, b []declared) bool {
	for _, x := range a {
		for _, y := range b {
			if (x.excl || y.excl) && overlap(x.key, y.key) {
				return true
			}
		}
	}
	return false
}

// finalBooks: after the world has healed and is quiet, everything adds up.
func (a *auditor) finalBooks() {
	st := a.h.sh.State()
	for _, r := range a.order {
		t := st.Get(r.id)
		if !r.begun {
			continue
		}
		if r.decision == undecided {
			a.w.fail("%s never ended", short(r.id))
		}
		for i := range r.branches {
			b := &r.branches[i]
			want := 0
			if r.decision == commit && b.listed {
				want = 1
			}
			if b.effects != want {
				if !b.defect {
					a.w.fail("%s (decision %d) has %d effects at %s", short(r.id), r.decision, b.effects, b.service)
				}
				// A defect that changed the outcome must be on record - unless the
				// participant did as told first, or lost the rows that would tell.
				if !b.hazard && a.w.opt.UnilateralEveryUs > 0 {
					a.w.fail("%s (decision %d) has %d effects at %s, and no hazard is recorded", short(r.id), r.decision, b.effects, b.service)
				}
			}
			if t != nil && t.Branches[i].Fate.Hazard() != b.hazard {
				a.w.fail("%s at %s: hazard %v in the log, fate %s", short(r.id), b.service, b.hazard, t.Branches[i].Fate)
			}
		}
	}
	for _, r := range a.hazards {
		if !r.resolved && (st.Get(r.id) == nil || !st.Get(r.id).Hazard()) {
			a.w.fail("the unresolved hazard of %s is not visible", short(r.id))
		}
	}
	for _, p := range a.w.parts {
		for id, r := range p.rows { // order does not matter: any one fails the run
			if r.outcome == prepared && !a.defected(id, p.name) {
				a.w.fail("%s is left with a prepared branch of %s", p.name, short(id))
			}
		}
	}
	for _, v := range st.Services() {
		if v.Draining {
			a.w.fail("service %s drains for ever", v.Name)
		}
	}
}
