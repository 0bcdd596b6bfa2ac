package sim

import "github.com/assent-tx/assent/internal/txnid"

// startFaults schedules everything that goes wrong by itself.
func (w *world) startFaults() {
	o, h := &w.opt, w.homes[0]
	w.every(o.CrashEveryUs, h.crash)
	w.every(o.FlipEveryUs, h.flip)
	w.every(o.FailEveryUs, h.failProposals)
	w.every(o.SnapshotEveryUs, h.takeSnapshot)
	w.every(o.PartCrashEveryUs, func() { w.anyPart().crash(w.around(o.PartDownUs)) })
	w.every(o.PartHangEveryUs, func() { w.anyPart().hang(w.around(o.PartDownUs)) })
	w.every(o.WipeEveryUs, func() { w.anyPart().wipe() })
	w.every(o.UnilateralEveryUs, func() { w.anyPart().unilateral() })
	w.every(o.ChurnEveryUs, func() { w.churn(w.anyPart()) })
	w.every(o.ClockJumpEveryUs, func() {
		size := []int64{10_000, 10_000, 3_600_000}[w.rng.IntN(3)]
		jump := w.upTo(2*size) - size
		if jump < 0 {
			w.reached.hit(ClockWentBack)
		}
		w.wallMs += jump
		w.trace("clock jumps", "", txnid.ID{}, uint64(jump))
	})
	w.every(700_000, func() { // an operator looks at hazards
		for _, r := range h.audit.hazards {
			if !r.resolved && h.sh != nil && w.rng.IntN(3) == 0 {
				w.clients.resolve(h, r.id)
				return
			}
		}
	})
}

// every repeats a fault until the world heals.
func (w *world) every(meanUs int64, do func()) {
	if meanUs == 0 {
		return
	}
	w.at(w.around(meanUs), func() {
		if w.healed {
			return
		}
		do()
		w.every(meanUs, do)
	})
}

// aim lets a fault strike at a moment that chance would seldom hit.
func (w *world) aim(h *home) {
	if w.healed || !w.chance(w.opt.AimPct) {
		return
	}
	strike := []func(){h.crash, h.flip, h.failProposals, func() { w.anyPart().crash(w.around(w.opt.PartDownUs)) }}[w.rng.IntN(4)]
	w.at(w.upTo(min(2*w.opt.DelayUs, w.opt.CommitDelayUs)), func() {
		if !w.healed {
			strike()
		}
	})
}

// outage: what takes the leader takes the participants' network with it.
func (w *world) outage() {
	if w.chance(w.opt.OutagePct) {
		for _, p := range w.parts {
			p.hang(700_000 + w.around(int64(w.opt.TimeoutMs)*2000))
		}
	}
}

func (w *world) anyPart() *participant { return w.parts[w.rng.IntN(len(w.parts))] }

// churn registers a service again as it is or otherwise, or removes it.
func (w *world) churn(p *participant) {
	h := w.homes[0]
	if h.sh == nil {
		return
	}
	switch w.rng.IntN(4) {
	case 0:
		w.clients.remove(h, p.name)
		return
	case 1:
		p.drawCaps()
		p.iso = w.rng.IntN(4) == 0
	}
	w.clients.put(h, p)
}

// heal ends every fault.
func (w *world) heal() {
	w.trace("heal", "", txnid.ID{}, 0)
	w.healed, w.calm = true, true
	if logMs := w.homes[0].log.oracle.NowMs(); w.time().WallMs < logMs {
		w.wallMs += int64(logMs - w.time().WallMs) // the clock is right again: new ids are new
	}
	for _, p := range w.parts {
		p.up()
	}
	if len(w.parts) > 1 && w.rng.IntN(2) == 0 {
		w.leaveAlone(w.anyPart())
	}
}

// leaveAlone keeps one participant dead: only what touches it may wait for it.
func (w *world) leaveAlone(dead *participant) {
	h := w.homes[0]
	dead.crash(10 * livenessUs)
	w.until("every transaction ends that does not touch the dead participant", func() bool {
		if h.sh == nil || !h.sh.Leading() {
			return false
		}
		for _, r := range h.audit.live {
			if r.branch(dead.name) == nil {
				return false
			}
		}
		return true
	})
	if len(h.audit.live) > 0 {
		w.reached.hit(DeadPartLeftAlone)
	}
	dead.up()
}

// runLiveness waits until the healed world is quiet, and asks that it is right.
func (w *world) runLiveness() {
	h := w.homes[0]
	w.until("every transaction ends and every request is answered", w.quiet)
	w.settled()
	for _, p := range w.parts { // services that are still there, or back again
		if v := h.sh.State().Service(p.name); v == nil || v.Draining {
			w.clients.put(h, p)
			w.until("service "+p.name+" is registered again", w.quiet)
		}
	}
	w.probe()
	w.until("transactions on keys that were locked commit", w.quiet)
	w.settled()
	for _, p := range w.parts {
		w.clients.remove(h, p.name)
		w.until("service "+p.name+" is drained and removed", w.quiet)
	}
	if n := len(h.sh.State().Services()); n > 0 {
		w.fail("%d services are left", n)
	}
	// Ids may be 60 s ahead and are kept 10 s behind log time at least.
	w.runUntil(w.nowUs + 90_000_000)
	if n := h.sh.State().Done(); n > w.opt.Retained {
		w.fail("%d ended transactions are kept, at most %d allowed", n, w.opt.Retained)
	}
	w.runUntil(w.nowUs + int64(w.opt.RetentionMs)*1000)
	if n := h.sh.State().Done(); n > 0 {
		w.fail("%d ended transactions are kept beyond their retention", n)
	}
	w.tooLate()
	w.settled()
	h.replay()
	h.audit.finalBooks()
}

// tooLate submits what has been forgotten: nothing may come of it.
func (w *world) tooLate() {
	h := w.homes[0]
	for _, p := range w.parts {
		w.clients.put(h, p)
		w.until("service "+p.name+" is registered again", w.quiet)
	}
	h.publish()
	for _, k := range w.clients.works[:min(20, len(w.clients.works))] {
		w.clients.submit(h, k, k.bodies[0])
		w.until("a late repeat is answered", w.quiet)
	}
}

// quiet reports whether nothing is under way any more.
func (w *world) quiet() bool {
	h := w.homes[0]
	return h.sh != nil && h.sh.Leading() && w.flying == 0 && len(w.clients.waiting) == 0 && len(h.log.inFlight) == 0 && !h.acting &&
		h.log.applied == uint64(len(h.log.full)) && h.sh.State().Live() == 0 && h.sh.State().LockWaiters() == 0
}

func (w *world) until(what string, done func() bool) {
	for limit := w.nowUs + livenessUs; !done(); {
		if w.nowUs > limit || len(w.queue) == 0 {
			h := w.homes[0]
			state := "the process is down"
			if h.sh != nil {
				state = h.sh.String()
			}
			w.fail("not within %d s of healing: %s (%d messages, %d requests wait)\n%s", livenessUs/1_000_000, what, w.flying, len(w.clients.waiting), state)
		}
		w.runUntil(w.nowUs + quietCheckUs)
	}
}

func (w *world) runUntil(atUs int64) {
	for len(w.queue) > 0 && w.queue[0].atUs <= atUs {
		w.one()
	}
	w.nowUs = max(w.nowUs, atUs)
}

// settled: nothing is held, and a restored state equals a replayed one.
func (w *world) settled() {
	h := w.homes[0]
	if h.sh.State().LockOwners() != 0 {
		w.fail("locks are left:\n%s", h.sh.State())
	}
	h.verify()
}

// probe runs a transaction on every key that was ever used.
func (w *world) probe() {
	h := w.homes[0]
	h.publish()
	seen := map[string]bool{}
	for _, k := range append([]*work(nil), w.clients.works...) {
		for _, b := range k.bodies {
			for i := range b.ops {
				for _, l := range b.ops[i].locks {
					if !seen[l.key] {
						seen[l.key] = true
						w.probeKey(h, b.ops[i].service, l.key)
					}
				}
			}
		}
	}
}

func (w *world) probeKey(h *home, service, key string) {
	b := &body{timeoutMs: 600_000, ops: []operation{{service: service, payload: probePayload, locks: []declared{{key, true}}}}}
	w.clients.seal(b)
	k := &work{id: w.newID(0), bodies: []*body{b}, retries: 100}
	q := w.clients.submit(h, k, b)
	if q == nil {
		w.fail("service %s is not registered after healing", service)
	}
	w.until("the probe of "+key+" is answered", func() bool { return !w.clients.waits(q.token) })
	w.until("quiet", w.quiet)
	if r := h.audit.rec(k.id); r.decision != commit {
		w.fail("a transaction on %s does not commit after healing (decision %d)", key, r.decision)
	}
}
