package sessions

import (
	"fmt"

	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// coord is the coordinator of one shard: the real core on a modelled log.
type coord struct {
	w     *World
	all   *single
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

// single is a Cluster of one node for each shard.
type single struct{ coords []*coord }

func alone(w *World) Cluster {
	s := &single{}
	for i := range w.opt.Shards {
		s.coords = append(s.coords, newCoord(w, s, i))
	}
	return s
}

func (s *single) of(id txnid.ID) *coord { return s.coords[id.Shard(uint32(len(s.coords)))] }

func (s *single) Ask(id txnid.ID, ev func(shard.Token) shard.Event, answer func(*shard.Reply)) {
	s.of(id).ask(ev, answer)
}

func (s *single) Committed(id txnid.ID) bool {
	t := s.of(id).oracle.Get(id)
	return t != nil && t.Status == txn.Committed
}

func (s *single) Heal() {}

func (s *single) Quiet() bool {
	for _, c := range s.coords {
		if c.sh == nil || !c.sh.Leading() || c.sh.State().Live() > 0 || c.sh.State().LockOwners() > 0 {
			return false
		}
	}
	return true
}

func (s *single) Audit() {
	for _, c := range s.coords {
		if c.sh.State().Hash() != c.oracle.Hash() {
			c.w.Fail("the leader's state differs from the log's")
		}
	}
}

func (s *single) String() (text string) {
	for _, c := range s.coords {
		text += fmt.Sprintf("%d requests wait\n", len(c.waiting))
		if c.sh != nil {
			text += c.sh.String()
		}
	}
	return text
}

func newCoord(w *World, all *single, index int) *coord {
	c := &coord{w: w, all: all, index: index, waiting: map[shard.Token]func(*shard.Reply){}}
	c.oracle = c.newState()
	c.start()
	return c
}

func (c *coord) newState() *txn.State { return txn.New(uint32(c.index), uint32(c.w.opt.Shards)) }

// send takes a message to another shard: perhaps never, perhaps twice, perhaps late.
func (c *coord) send(m *shard.Message) {
	w := c.w
	if int(m.To) == c.index || int(m.From) != c.index {
		w.Fail("a message %s from shard %d to %d", m.Kind, m.From, m.To)
	}
	copies := 1
	switch {
	case w.Chance(w.opt.LosePct):
		copies = 0
	case w.Chance(w.opt.DoublePct):
		copies = 2
	}
	for range copies {
		delay := w.UpTo(3_000)
		if w.Chance(w.opt.LosePct) {
			delay = w.UpTo(1_500_000)
		}
		to, msg := c.all.coords[m.To], *m
		w.At(delay, func() { to.step(&msg) })
	}
}

// start starts a process on what the log has kept.
func (c *coord) start() {
	w := c.w
	cfg := shard.DefaultConfig()
	cfg.Shard, cfg.Shards = uint32(c.index), uint32(w.opt.Shards)
	cfg.Node, cfg.Cluster, cfg.Incarnation = "sim", [16]byte{1}, 1
	cfg.MaxAppendsInFlight = 1 + w.rng.IntN(3)
	cfg.OverlapCommands = 2 * (cfg.MaxAppendsInFlight - 1)
	if w.opt.KeyWaiters > 0 {
		cfg.MaxKeyWaiters = w.opt.KeyWaiters
	}
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
				w.Fail("replay: %v", err)
			}
		}
		var snapshot []byte
		_ = state.Capture().Write(func(b []byte) error { snapshot = append(snapshot, b...); return nil })
		if err := c.sh.Restore(snapshot); err != nil {
			w.Fail("restore: %v", err)
		}
	}
	for i := from; i < len(c.log); i++ {
		if err := c.sh.Apply(w.time(), uint64(i+1), c.log[i].term, c.log[i].entry); err != nil {
			w.Fail("replay: %v", err)
		}
	}
	if c.sh.State().Hash() != c.oracle.Hash() {
		w.Fail("a replay of the log makes another state")
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
			w.At(w.UpTo(5_000), func() { answer(nil) })
		}
	}
	life := c.life
	w.At(w.UpTo(300_000), func() {
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
		w.Fail("the log cannot be followed: %v", err)
	}
	if err := c.oracle.Check(); err != nil {
		w.Fail("%v\n%s", err, c.oracle)
	}
	for i := range effects {
		if e := &effects[i]; e.Kind == txn.EffectVerify {
			if _, err := c.oracle.Hashed(e.Token, e.Capture.Hash()); err != nil {
				w.Fail("%v", err)
			}
		}
	}
	w.Durable(effects)
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
		if w.Chance(w.opt.LosePct) {
			w.At(w.UpTo(200_000), func() { answer(nil) })
			continue
		}
		w.At(w.UpTo(2_000), func() { answer(r) })
	}
	for i := range calls {
		c.call(&calls[i])
	}
	for i := range messages {
		c.send(&messages[i])
	}
	for _, v := range captures {
		life := c.life
		w.At(int64(v.Index%5)*1_000, func() {
			if c.life == life {
				c.step(&shard.Hashed{Index: v.Index, Hash: v.State.Hash()})
			}
		})
	}
	if wake > 0 && (c.wakeUs == 0 || wake < c.wakeUs) {
		c.wakeUs = wake
		life := c.life
		w.At(wake-1-w.nowUs, func() {
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
	w.At(50+w.UpTo(1_000), func() {
		if c.life != life {
			return
		}
		r := c.inFlight[0]
		c.inFlight = c.inFlight[1:]
		c.append(r)
		if err := c.sh.Apply(w.time(), uint64(len(c.log)), r.term, r.entry); err != nil {
			w.Fail("%v", err)
		}
		if w.Chance(w.opt.CrashPct) {
			c.crash() // before anything that the record justifies has left
			return
		}
		c.act()
		if w.Chance(w.opt.CrashPct) {
			c.crash()
		}
	})
}

// ask sends a request; the answer is nil if none came.
func (c *coord) ask(ev func(shard.Token) shard.Event, answer func(*shard.Reply)) {
	w := c.w
	w.lastToken++
	token := w.lastToken
	if c.sh == nil || w.Chance(w.opt.LosePct) {
		w.At(20_000+w.UpTo(200_000), func() { answer(nil) })
		return
	}
	c.waiting[token] = answer
	c.step(ev(token))
}

// call sends a request to a participant: perhaps never, perhaps twice.
func (c *coord) call(call *shard.Call) {
	w := c.w
	w.part(call.Service).sent(call)
	life := c.life
	copies := 1
	switch {
	case w.Chance(w.opt.LosePct):
		copies = 0
	case w.Chance(w.opt.DoublePct):
		copies = 2
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
		delay := w.UpTo(3_000)
		if w.Chance(w.opt.LosePct) {
			delay = w.UpTo(800_000) // long after its answer is of use
		}
		w.At(delay, func() {
			d := w.Serve(call)
			if !w.Chance(w.opt.LosePct) {
				w.At(w.UpTo(3_000), func() { done(d) })
			}
		})
	}
	w.At(250_000, func() {
		done(&shard.CallDone{ID: call.ID, Branch: call.Branch, Phase: call.Phase, Attempt: call.Attempt, Term: call.Term, Answer: shard.Indefinite, Reason: "timeout"})
	})
}
