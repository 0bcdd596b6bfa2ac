package sim

import (
	"fmt"
	"sort"

	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// participant models a service that keeps the contract: one durable outcome row
// for each branch, written with the work.
type participant struct {
	w    *world
	name string
	caps txn.Capability
	iso  bool

	rows      map[txnid.ID]*row // durable
	forgotten txnid.ID          // durable: greatest forgotten_below seen
	roRows    bool              // keeps a row of read-only branches
	votesRO   bool

	life  uint64 // work of an earlier process is lost
	down  bool
	hung  bool
	inbox []*outgoing // while it hangs
}

type outcome uint8

const (
	prepared outcome = iota + 1
	committed
	rolledBack
	readOnly
)

type row struct {
	outcome   outcome
	term      uint64
	tombstone bool // written by a rollback that came first
}

func newParticipant(w *world, i int) *participant {
	p := &participant{w: w, name: fmt.Sprintf("s%d", i), rows: map[txnid.ID]*row{}, roRows: w.rng.IntN(2) == 0, votesRO: w.rng.IntN(2) == 0, iso: i > 0 && w.rng.IntN(6) == 0}
	p.drawCaps()
	return p
}

func (p *participant) drawCaps() {
	p.caps = txn.Tombstone
	if p.w.rng.IntN(2) == 0 {
		p.caps |= txn.OnePhase
	}
	// A vote is fixed for its branch, also after the service is registered otherwise:
	// a late prepare of a branch that ended read-only must not find another vote.
	if p.votesRO {
		p.caps |= txn.ReadOnly
	}
}

func (p *participant) receive(o *outgoing) {
	switch {
	case p.down:
		return
	case p.hung:
		p.inbox = append(p.inbox, o)
		return
	}
	work := int64(100)
	if !p.w.healed && p.w.chance(p.w.opt.SlowPct) {
		work = p.w.upTo(2 * p.w.opt.CallTimeoutUs)
	}
	life := p.life
	p.w.flying++
	p.w.at(work, func() {
		p.w.flying--
		if p.life != life {
			return
		}
		answer, why := p.execute(&o.call)
		p.w.trace("part "+o.call.Phase.String()+" "+answer.String(), p.name, o.call.ID, o.call.Term)
		if !p.w.healed && p.w.chance(p.w.opt.RubbishPct) {
			answer, why = p.rubbish(o.call.Phase), "rubbish"
		}
		p.w.respond(o, answer, why)
	})
}

// rubbish is an answer that the phase does not know.
func (p *participant) rubbish(phase shard.Phase) shard.AnswerKind {
	p.w.reached.hit(RubbishAnswer)
	var kinds []shard.AnswerKind
	switch phase {
	case shard.PhasePrepare:
		kinds = []shard.AnswerKind{shard.Indefinite, shard.Acknowledged, shard.SaysUnknown, shard.SaysCommitted, shard.SaysRolledBack}
	case shard.PhaseCommit:
		kinds = []shard.AnswerKind{shard.Indefinite, shard.VoteYes, shard.VoteNo, shard.VoteReadOnly, shard.SaysCommitted}
	case shard.PhaseRollback:
		kinds = []shard.AnswerKind{shard.Indefinite, shard.VoteYes, shard.VoteNo, shard.VoteReadOnly, shard.SaysRolledBack, shard.SaysUnknown}
	case shard.PhaseExecute: // the audit has failed
	}
	return kinds[p.w.rng.IntN(len(kinds))]
}

// execute does what is asked and makes it durable in one step.
func (p *participant) execute(c *shard.Call) (shard.AnswerKind, string) {
	audit := p.w.home(c.ID).audit
	p.forget(c.Forgotten)
	r := p.rows[c.ID]
	if r != nil && c.Term < r.term {
		p.w.reached.hit(OldTermRefused)
		return shard.Indefinite, "older term"
	}
	if r != nil {
		r.term = c.Term
	}
	switch c.Phase {
	case shard.PhasePrepare:
		return p.prepare(c, r, audit)
	case shard.PhaseCommit:
		switch {
		case r == nil || r.outcome == readOnly:
			return shard.SaysUnknown, ""
		case r.outcome == rolledBack:
			return shard.SaysRolledBack, ""
		case r.outcome == committed:
			p.w.reached.hit(DuplicateCommit)
			audit.redone(c)
			return shard.Acknowledged, ""
		}
		r.outcome = committed
		audit.committedAt(p, c.ID)
		return shard.Acknowledged, ""
	case shard.PhaseRollback:
		switch {
		case r == nil:
			audit.unhold(p.name, audit.rec(c.ID)) // if it has only read
			if !c.ID.Less(p.forgotten) && !mutant.On("participant-no-tombstone") {
				p.rows[c.ID] = &row{outcome: rolledBack, term: c.Term, tombstone: true}
			}
			return shard.Acknowledged, ""
		case r.outcome == committed:
			return shard.SaysCommitted, ""
		case r.outcome == rolledBack:
			audit.redone(c)
			return shard.Acknowledged, ""
		}
		r.outcome = rolledBack
		audit.finishedAt(p, c.ID)
		return shard.Acknowledged, ""
	case shard.PhaseExecute: // the audit has failed
	}
	return shard.Indefinite, "unknown phase"
}

func (p *participant) prepare(c *shard.Call, r *row, audit *auditor) (shard.AnswerKind, string) {
	if r == nil && c.ID.Less(p.forgotten) {
		p.w.reached.hit(PrepareBelowForgotten)
		return shard.VoteNo, "ended and forgotten"
	}
	if r != nil && !(mutant.On("participant-keyed-by-attempt") && c.Attempt > 1) {
		switch r.outcome {
		case prepared, committed:
			if c.OnePhase {
				p.w.reached.hit(OnePhaseAskedAgain)
			}
			return shard.VoteYes, ""
		case readOnly:
			p.w.reached.hit(ReadOnlyPreparedTwice)
			return shard.VoteReadOnly, ""
		case rolledBack:
			if r.tombstone {
				p.w.reached.hit(TombstoneUsed)
			}
			return shard.VoteNo, "rolled back"
		}
	}
	vote := p.vote(c)
	audit.executed(p, c, vote)
	switch vote {
	case shard.VoteNo:
		p.rows[c.ID] = &row{outcome: rolledBack, term: c.Term}
		return vote, "refused"
	case shard.VoteReadOnly:
		if p.roRows {
			p.rows[c.ID] = &row{outcome: readOnly, term: c.Term}
		}
	case shard.VoteYes:
		p.rows[c.ID] = &row{outcome: prepared, term: c.Term}
		if c.OnePhase {
			p.rows[c.ID].outcome = committed
			audit.committedAt(p, c.ID)
		}
	default:
		p.w.fail("a participant votes %s", vote)
	}
	return vote, ""
}

// vote is fixed for a branch, as the work of a deterministic service is.
func (p *participant) vote(c *shard.Call) shard.AnswerKind {
	if string(c.Operations[0]) == probePayload {
		return shard.VoteYes
	}
	h := uint32(2166136261)
	for _, b := range c.ID {
		h = (h ^ uint32(b)) * 16777619
	}
	h = (h^uint32(p.name[1]))*16777619 ^ h>>15
	roll := int(h>>3) % 100
	switch {
	case roll < p.w.opt.NoPct:
		return shard.VoteNo
	case roll < p.w.opt.NoPct+p.w.opt.ReadOnlyPct && p.votesRO:
		p.w.reached.hit(ReadOnlyVote)
		return shard.VoteReadOnly
	}
	return shard.VoteYes
}

// forget deletes what has ended below the watermark.
func (p *participant) forget(below txnid.ID) {
	if !p.forgotten.Less(below) {
		return
	}
	p.forgotten = below
	for id, r := range p.rows { // order does not matter: each row is judged by itself
		if !id.Less(below) {
			continue
		}
		if r.outcome == prepared && !p.w.home(id).audit.defected(id, p.name) {
			p.w.fail("%s holds a prepared branch of %s, which forgotten_below says has ended", p.name, short(id))
		}
		if r.outcome != prepared {
			delete(p.rows, id)
		}
	}
}

// ---- faults

func (p *participant) crash(downUs int64) {
	if p.down {
		return
	}
	p.w.trace("part down", p.name, txnid.ID{}, 0)
	for id, r := range p.rows { // order does not matter: any one counts
		if r.outcome == prepared && p.w.home(id).audit.rec(id).decision != undecided {
			p.w.reached.hit(PartRestartInDoubt)
			break
		}
	}
	p.life++
	p.down, p.hung, p.inbox = true, false, nil
	life := p.life
	p.w.at(downUs, func() {
		if p.life == life {
			p.up()
		}
	})
}

func (p *participant) up() {
	p.w.trace("part up", p.name, txnid.ID{}, 0)
	p.down = false
	if p.hung {
		p.hung = false
		inbox := p.inbox
		p.inbox = nil
		for _, o := range inbox {
			p.receive(o)
		}
	}
}

func (p *participant) hang(forUs int64) {
	if p.down || p.hung {
		return
	}
	p.w.trace("part hangs", p.name, txnid.ID{}, 0)
	p.hung = true
	life := p.life
	p.w.at(forUs, func() {
		if p.life == life {
			p.up()
		}
	})
}

// wipe loses every row, as a database restored from nothing does.
func (p *participant) wipe() {
	p.w.trace("part wiped", p.name, txnid.ID{}, uint64(len(p.rows)))
	p.w.homes[0].audit.wiped(p)
	p.rows = map[txnid.ID]*row{}
}

// unilateral ends a prepared branch against the contract.
func (p *participant) unilateral() {
	var ids []txnid.ID
	for id, r := range p.rows {
		if r.outcome == prepared {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i].Less(ids[j]) })
	id := ids[p.w.rng.IntN(len(ids))]
	audit := p.w.home(id).audit
	audit.defect(id, p.name)
	if p.w.rng.IntN(2) == 0 {
		p.w.trace("part commits alone", p.name, id, 0)
		p.rows[id].outcome = committed
		audit.committedAt(p, id)
	} else {
		p.w.trace("part rolls back alone", p.name, id, 0)
		p.rows[id].outcome = rolledBack
		audit.finishedAt(p, id)
	}
}
