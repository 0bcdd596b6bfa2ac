package sessions

import (
	"github.com/assent-tx/assent/internal/check/replay"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
)

// coord is the coordinator of one shard: the real core on a modelled log.
type coord struct {
	w     *world
	index int

	sh       *shard.Shard // nil: it is down
	life     int
	term     uint64
	log      []record
	inFlight []record
	oracle   *txn.State
	wakeUs   int64
	waiting  map[shard.Token]func(*shard.Reply)
}

type record struct {
	term  uint64
	entry []byte
}

func newCoord(w *world, index int) *coord {
	c := &coord{w: w, index: index, waiting: map[shard.Token]func(*shard.Reply){}}
	c.oracle = c.newState()
	c.start()
	return c
}

func (c *coord) newState() *txn.State { return txn.New(uint32(c.index), uint32(c.w.opt.Shards)) }

// send takes a message to another shard: perhaps never, perhaps twice, perhaps late.
func (c *coord) send(m *shard.Message) {
	w := c.w
	if int(m.To) == c.index || int(m.From) != c.index {
		w.fail("a message %s from shard %d to %d", m.Kind, m.From, m.To)
	}
	copies := 1
	switch {
	case w.chance(w.opt.LosePct):
		copies = 0
	case w.chance(w.opt.DoublePct):
		copies = 2
	}
	for range copies {
		delay := w.upTo(3_000)
		if w.chance(w.opt.LosePct) {
			delay = w.upTo(1_500_000)
		}
		to, msg := w.coords[m.To], *m
		w.at(delay, func() { to.step(&msg) })
	}
}

// start starts a process on what the log has kept.
func (c *coord) start() {
	w := c.w
	cfg := shard.DefaultConfig()
	cfg.Shard, cfg.Shards = uint32(c.index), uint32(w.opt.Shards)
	cfg.Node, cfg.Cluster, cfg.Incarnation = "sim", [16]byte{1}, 1
	cfg.MaxAppendsInFlight = 1 + w.rng.IntN(3)
	cfg.HashCheckIntervalUs, cfg.HashCheckEntries = 200_000, 10
	c.sh = shard.New(cfg)
	c.life++
	c.term++
	c.wakeUs = 0
	from := 0
	if n := len(c.log); n > 0 && w.rng.IntN(2) == 0 { // from a snapshot somewhere in the log
		from = 1 + w.rng.IntN(n)
		state := c.newState()
		var effects []txn.Effect
		for i, r := range c.log[:from] {
			if err := state.Apply(uint64(i+1), r.term, r.entry, &effects); err != nil {
				w.fail("replay: %v", err)
			}
		}
		var snapshot []byte
		_ = state.Capture().Write(func(b []byte) error { snapshot = append(snapshot, b...); return nil })
		if err := c.sh.Restore(snapshot); err != nil {
			w.fail("restore: %v", err)
		}
	}
	for i := from; i < len(c.log); i++ {
		if err := c.sh.Apply(w.time(), uint64(i+1), c.log[i].term, c.log[i].entry); err != nil {
			w.fail("replay: %v", err)
		}
	}
	if c.sh.State().Hash() != c.oracle.Hash() {
		w.fail("a replay of the log makes another state")
	}
	c.step(&shard.Lead{Term: c.term})
}

// crash kills the process: what it had proposed may be durable, or not.
func (c *coord) crash() {
	w := c.w
	if c.sh == nil {
		return
	}
	w.report.Crashes++
	kept := c.inFlight[:w.rng.IntN(len(c.inFlight)+1)]
	c.inFlight = nil
	c.sh = nil
	c.life++
	for _, r := range kept {
		c.append(r)
	}
	waiting := c.waiting
	c.waiting = map[shard.Token]func(*shard.Reply){}
	for t := shard.Token(1); t <= w.lastToken; t++ { // in order
		if answer := waiting[t]; answer != nil {
			w.at(w.upTo(5_000), func() { answer(nil) })
		}
	}
	life := c.life
	w.at(w.upTo(300_000), func() {
		if c.life == life {
			c.start()
		}
	})
}

// append makes a record durable.
func (c *coord) append(r record) {
	w := c.w
	c.log = append(c.log, r)
	var effects []txn.Effect
	if err := c.oracle.Apply(uint64(len(c.log)), r.term, r.entry, &effects); err != nil {
		w.fail("the log cannot be followed: %v", err)
	}
	if err := c.oracle.Check(); err != nil {
		w.fail("%v\n%s", err, c.oracle)
	}
	for i := range effects {
		switch e := &effects[i]; e.Kind {
		case txn.EffectVerify:
			if _, err := c.oracle.Hashed(e.Token, e.Capture.Hash()); err != nil {
				w.fail("%v", err)
			}
		case txn.EffectVerified:
			w.report.Verified++
		case txn.EffectDeadlock:
			if e.Txn.Interactive {
				w.report.Deadlocks++
			} else {
				w.report.Restarted++
			}
		case txn.EffectCycle:
			w.report.Deadlocks++
		case txn.EffectStepRepeated:
			w.report.Repeated++
		case txn.EffectAskAgain:
			w.report.Yielded++
		case txn.EffectBegan:
			if e.Txn.AgeMs != e.Txn.BeganMs {
				w.report.Upgraded++
			}
			if len(e.Txn.Foreign) > 0 {
				w.report.Spread++
			}
		case txn.EffectDecided:
			w.mix(e.Txn.DecidedMs)
			if e.Txn.Abort == nil {
				w.decided = append(w.decided, replay.Decision{ID: e.Txn.ID.String(), Rank: uint64(len(w.decided))})
				break
			}
			switch e.Txn.Abort.Reason {
			case "LOCK_TIMEOUT":
				w.report.TimedOut++
			case "WOUNDED":
				w.report.Wounded++
			case "IDLE_TIMEOUT":
				w.report.Idle++
			case "EXECUTION_LOST":
				w.report.Lost++
			}
		default: // what the audit sees at the end
		}
	}
}

func (c *coord) step(ev shard.Event) {
	w := c.w
	if c.sh == nil {
		return
	}
	c.sh.Step(w.time(), ev)
	c.act()
}

func (c *coord) act() {
	w := c.w
	rd := c.sh.Ready()
	entries := append([][]byte(nil), rd.Entries...)
	calls := append([]shard.Call(nil), rd.Calls...)
	replies := append([]shard.Reply(nil), rd.Replies...)
	messages := append([]shard.Message(nil), rd.Messages...)
	captures := append([]shard.Capture(nil), rd.Captures...)
	wake := rd.WakeAtUs
	c.sh.Advance()
	for _, e := range entries {
		c.propose(e)
	}
	for i := range replies {
		r := &replies[i]
		answer := c.waiting[r.Token]
		delete(c.waiting, r.Token)
		if answer == nil {
			continue
		}
		if w.chance(w.opt.LosePct) {
			w.at(w.upTo(200_000), func() { answer(nil) })
			continue
		}
		w.at(w.upTo(2_000), func() { answer(r) })
	}
	for i := range calls {
		c.call(&calls[i])
	}
	for i := range messages {
		c.send(&messages[i])
	}
	for _, v := range captures {
		life := c.life
		w.at(int64(v.Index%5)*1_000, func() {
			if c.life == life {
				c.step(&shard.Hashed{Index: v.Index, Hash: v.State.Hash()})
			}
		})
	}
	if wake > 0 && (c.wakeUs == 0 || wake < c.wakeUs) {
		c.wakeUs = wake
		life := c.life
		w.at(wake-1-w.nowUs, func() {
			if c.life == life && c.wakeUs == wake {
				c.wakeUs = 0
				c.step(&shard.Tick{})
			}
		})
	}
}

func (c *coord) propose(entry []byte) {
	w := c.w
	c.inFlight = append(c.inFlight, record{c.term, append([]byte(nil), entry...)})
	life := c.life
	w.at(50+w.upTo(1_000), func() {
		if c.life != life {
			return
		}
		r := c.inFlight[0]
		c.inFlight = c.inFlight[1:]
		c.append(r)
		if err := c.sh.Apply(w.time(), uint64(len(c.log)), r.term, r.entry); err != nil {
			w.fail("%v", err)
		}
		if w.chance(w.opt.CrashPct) {
			c.crash() // before anything that the record justifies has left
			return
		}
		c.act()
		if w.chance(w.opt.CrashPct) {
			c.crash()
		}
	})
}

// ask sends a request; the answer is nil if none came.
func (c *coord) ask(ev func(shard.Token) shard.Event, answer func(*shard.Reply)) {
	w := c.w
	w.lastToken++
	token := w.lastToken
	if c.sh == nil || w.chance(w.opt.LosePct) {
		w.at(20_000+w.upTo(200_000), func() { answer(nil) })
		return
	}
	c.waiting[token] = answer
	c.step(ev(token))
}

// call sends a request to a participant: perhaps never, perhaps twice.
func (c *coord) call(call *shard.Call) {
	w := c.w
	life := c.life
	copies := 1
	switch {
	case w.chance(w.opt.LosePct):
		copies = 0
	case w.chance(w.opt.DoublePct):
		copies = 2
	}
	var p *part
	for _, q := range w.parts {
		if q.name == call.Service {
			p = q
		}
	}
	answered := false
	done := func(d *shard.CallDone) {
		if c.life != life || answered {
			return
		}
		answered = true
		c.step(d)
	}
	for range copies {
		delay := w.upTo(3_000)
		if w.chance(w.opt.LosePct) {
			delay = w.upTo(800_000) // long after its answer is of use
		}
		w.at(delay, func() {
			d := p.serve(call)
			if !w.chance(w.opt.LosePct) {
				w.at(w.upTo(3_000), func() { done(d) })
			}
		})
	}
	w.at(250_000, func() {
		done(&shard.CallDone{ID: call.ID, Branch: call.Branch, Phase: call.Phase, Attempt: call.Attempt, Term: call.Term, Answer: shard.Indefinite, Reason: "timeout"})
	})
}
