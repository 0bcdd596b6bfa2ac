package sim

import "github.com/assent-tx/assent/internal/shard"

// send carries a call to its participant: lost, doubled, reordered, or late by
// minutes, also after the caller has given up.
func (w *world) send(o *outgoing) {
	p := w.part(o.call.Service)
	copies := w.copies()
	for range copies {
		w.flying++
		w.at(w.delay(), func() {
			w.flying--
			p.receive(o)
		})
	}
}

// respond carries an answer back.
func (w *world) respond(o *outgoing, answer shard.AnswerKind, why string) {
	copies := w.copies()
	if copies == 0 && o.call.OnePhase && answer == shard.VoteYes {
		w.reached.hit(OnePhaseAnswerLost)
	}
	for range copies {
		w.flying++
		w.at(w.delay(), func() {
			w.flying--
			o.done(answer, why)
		})
	}
}

func (w *world) copies() int {
	switch {
	case w.healed:
		return 1
	case w.chance(w.opt.LossPct):
		return 0
	case w.chance(w.opt.DupPct):
		return 2
	}
	return 1
}

func (w *world) delay() int64 {
	if !w.healed && w.chance(w.opt.LatePct) {
		return w.upTo(w.opt.LateUs)
	}
	d := w.opt.DelayUs
	if w.healed {
		d = min(d, w.opt.CallTimeoutUs/4)
	}
	return 50 + w.upTo(d)
}

func (w *world) part(name string) *participant {
	for _, p := range w.parts {
		if p.name == name {
			return p
		}
	}
	w.fail("no participant %s", name)
	return nil
}
