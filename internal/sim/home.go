package sim

import (
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// home is one shard: the real core, its modelled log, and what the driver keeps.
type home struct {
	w     *world
	cfg   shard.Config
	sh    *shard.Shard // nil: the process is down
	life  uint64       // events of an earlier process are void
	log   walLog
	audit *auditor

	leads     bool   // the log's word, as told to the shard
	term      uint64 // raft's term
	leadSince uint64 // proposals made by the present leadership count from here
	proposals uint64 // by this process
	acting    bool   // act is due
	wakeAtUs  int64  // when a Tick is scheduled; 0: none
	cancelled []shard.Token

	registry map[string]*txn.Service // the driver's copy: a hint, may be outdated

	entries [][]byte
	calls   []shard.Call
	replies []shard.Reply
	notices []shard.Notice
}

func newHome(w *world, idx, shards uint32) *home {
	cfg := shard.DefaultConfig()
	cfg.Shard, cfg.Shards, cfg.Node, cfg.Incarnation = idx, shards, "sim", 1
	cfg.Cluster = [16]byte{1}
	cfg.MaxOpenTransactions, cfg.MaxWaitingRequests = w.opt.MaxOpen, w.opt.MaxWaiting
	cfg.RetainedTransactions, cfg.RetentionMs = w.opt.Retained, w.opt.RetentionMs
	cfg.ForgetBatch = 1 + w.rng.IntN(8)
	cfg.MaxEntryBytes = w.opt.EntryBytes
	cfg.MaxResultBytes = []int{20, 1 << 20}[w.rng.IntN(2)]
	cfg.MaxAppendsInFlight, cfg.OverlapCommands = 1+w.rng.IntN(4), int(w.seed%3)
	cfg.MaxPendingBytes = []int{300, 64 << 20, 64 << 20}[w.rng.IntN(3)]
	cfg.RecoveryWakeups = w.rng.IntN(3)
	cfg.HashCheckIntervalUs = []int64{0, 100_000, 2_000_000}[w.seed%3]
	cfg.HashCheckEntries = 1 + w.seed%16
	h := &home{w: w, cfg: cfg, registry: map[string]*txn.Service{}}
	h.log.oracle = txn.New(idx, shards)
	h.audit = newAuditor(w, h)
	h.start()
	return h
}

// start starts a process on what the log has kept.
func (h *home) start() {
	h.sh = shard.New(h.cfg)
	h.leads, h.proposals, h.leadSince, h.acting, h.wakeAtUs = false, 0, 0, false, 0
	h.log.applied, h.log.ordinal = 0, 0
	if h.log.snapshot != nil {
		if err := h.sh.Restore(h.log.snapshot); err != nil {
			h.w.fail("restore: %v", err)
		}
		h.log.applied = h.log.snapshotIndex
		if h.sh.State().Live() > 0 {
			h.w.reached.hit(SnapshotWithOpenRestored)
		}
	}
	h.w.trace("start", "", txnid.ID{}, h.log.applied)
	h.log.lastCommitUs = h.w.nowUs
	h.applyLater()
	life := h.life
	h.w.at(h.w.upTo(300_000), func() {
		if h.life == life {
			h.lead()
		}
	})
}

// publish renews the driver's copy of the registry.
func (h *home) publish() {
	clear(h.registry)
	for _, v := range h.sh.State().Services() {
		h.registry[v.Name] = v
	}
}

// ---- driving the shard

func (h *home) step(ev shard.Event) {
	h.sh.Step(h.w.time(), ev)
	h.actLater()
}

// actLater takes Ready now, or soon: a driver gathers events before it acts.
func (h *home) actLater() {
	if h.acting {
		return
	}
	if h.w.opt.BatchUs == 0 || h.w.healed {
		h.act()
		return
	}
	h.acting = true
	life := h.life
	h.w.at(h.w.upTo(h.w.opt.BatchUs), func() {
		if h.life == life {
			h.acting = false
			h.act()
		}
	})
}

func (h *home) act() {
	rd := h.sh.Ready()
	h.entries = append(h.entries[:0], rd.Entries...)
	h.calls = append(h.calls[:0], rd.Calls...)
	h.replies = append(h.replies[:0], rd.Replies...)
	h.notices = append(h.notices[:0], rd.Notices...)
	captures := append([]shard.Capture(nil), rd.Captures...)
	wake := rd.WakeAtUs
	h.sh.Advance()

	h.audit.leadership()
	for _, e := range h.entries {
		h.propose(e)
	}
	for i := range h.replies {
		h.w.clients.reply(h, &h.replies[i])
	}
	for i := range h.calls {
		h.audit.called(&h.calls[i])
		h.call(&h.calls[i])
	}
	for _, c := range captures {
		h.hash(c)
	}
	for i := range h.notices {
		h.noticed(&h.notices[i])
	}
	h.audit.bounds()
	for _, token := range h.cancelled {
		if h.w.clients.waits(token) {
			h.w.fail("request %d was given up, but not answered", token)
		}
	}
	h.cancelled = h.cancelled[:0]
	h.wake(wake)
}

// hash brings the hash of a captured state, some time later.
func (h *home) hash(c shard.Capture) {
	life := h.life
	h.w.at(int64(c.Index%5)*10_000, func() {
		if h.life == life {
			h.step(&shard.Hashed{Index: c.Index, Hash: c.State.Hash()})
		}
	})
}

// wake schedules the Tick that the shard asked for.
func (h *home) wake(atUs int64) {
	if atUs == 0 || h.wakeAtUs != 0 && h.wakeAtUs <= atUs {
		return
	}
	h.wakeAtUs = atUs
	life := h.life
	h.w.at(max(atUs-h.w.time().MonoUs, 0), func() {
		if h.life != life || h.wakeAtUs != atUs {
			return
		}
		h.wakeAtUs = 0
		h.step(&shard.Tick{})
		if !h.acting && h.wakeAtUs == atUs {
			h.w.fail("the shard wants a Tick at %d us although it just had one: a driver would spin", atUs)
		}
	})
}

func (h *home) noticed(n *shard.Notice) {
	w := h.w
	switch n.Kind {
	case shard.NoticeStaleEntry:
		w.reached.hit(StaleEntryIgnored)
	case shard.NoticeIgnored:
		w.reached.hit(DecisionIgnored)
	case shard.NoticeBlocked:
		w.reached.hit(LockWaited)
	case shard.NoticeLeading:
		w.trace("leads", "", txnid.ID{}, uint64(n.N))
	case shard.NoticeFollowing:
		w.trace("follows", "", txnid.ID{}, 0)
	case shard.NoticeVerified:
		w.reached.hit(StateVerified)
		if h.log.full[n.N-1].life != h.life {
			w.reached.hit(StateVerifiedOnReplay)
		}
	case shard.NoticeDiverged:
		w.fail("%s", n.Text)
	default: // for meters only
	}
}

// ---- leadership

// lead tells the shard that it leads in a new term.
func (h *home) lead() {
	h.term++
	h.leads = true
	h.log.placeStale(h)
	h.leadAgain()
}

// leadAgain proposes LEAD in the present term; again, if that gets lost.
func (h *home) leadAgain() {
	h.w.trace("lead", "", txnid.ID{}, h.term)
	h.leadSince = h.proposals
	h.step(&shard.Lead{Term: h.term})
	h.watchLead()
}

func (h *home) watchLead() {
	life, term := h.life, h.term
	h.w.at(500_000, func() {
		if h.life == life && h.term == term && h.leads && !h.sh.Leading() {
			h.w.reached.hit(LeadRepeated)
			h.leadAgain()
		}
	})
}

// flip loses leadership without a crash and takes it again in a later term.
func (h *home) flip() {
	if h.sh == nil || !h.leads {
		return
	}
	h.w.trace("flip", "", txnid.ID{}, h.term)
	h.audit.leaderLost()
	h.log.abandon(h)
	h.w.outage()
	life := h.life
	again := func() {
		if h.life == life && !h.leads {
			h.lead()
		}
	}
	h.leads = false
	if h.w.chance(30) { // the log reports only the newest leadership
		again()
		return
	}
	h.step(&shard.Follow{})
	h.w.at(h.w.around(200_000), again)
}

// failProposals loses some appends in the middle of a term: the driver starts over.
func (h *home) failProposals() {
	if h.sh == nil || !h.leads || len(h.log.inFlight) == 0 {
		return
	}
	h.w.trace("appends fail", "", txnid.ID{}, uint64(len(h.log.inFlight)))
	h.log.loseSome(h)
	h.w.outage()
	life, term := h.life, h.term
	h.w.at(h.w.upTo(20_000), func() {
		if h.life != life || h.term != term || !h.leads {
			return
		}
		h.audit.leaderLost()
		h.leads = false
		h.step(&shard.Follow{})
		h.w.at(h.w.upTo(100_000), func() {
			if h.life == life && h.term == term && !h.leads {
				h.w.reached.hit(SameTermAgain)
				h.leads = true
				h.leadAgain()
			}
		})
	})
}

// crash kills the process; what it had proposed may have reached the disk.
func (h *home) crash() {
	if h.sh == nil {
		return
	}
	h.w.trace("crash", "", txnid.ID{}, h.log.applied)
	h.w.reached.hit(Crash)
	h.audit.leaderLost()
	h.log.crash(h)
	h.w.outage()
	h.sh, h.leads = nil, false
	h.life++
	h.w.clients.lost(h)
	h.w.at(h.w.around(300_000), func() {
		if h.sh == nil {
			h.start()
		}
	})
}

// ---- calls

// call sends one request; exactly one CallDone answers it, unless the process
// dies first.
func (h *home) call(c *shard.Call) {
	w := h.w
	w.callSeq++
	o := &outgoing{h: h, life: h.life, call: *c, seq: w.callSeq}
	w.trace("call "+c.Phase.String(), c.Service, c.ID, uint64(c.Attempt))
	v := h.sh.State().Service(c.Service)
	if v == nil {
		w.fail("%s of %s: service %s is not registered any more", c.Phase, short(c.ID), c.Service)
	}
	timeout := w.opt.CallTimeoutUs
	w.at(timeout, func() { o.done(shard.Indefinite, "timeout") })
	w.send(o)
}

// outgoing is a call under way.
type outgoing struct {
	h        *home
	life     uint64
	call     shard.Call
	seq      uint64
	answered bool
}

// done reports the answer of the call, the first one only.
func (o *outgoing) done(answer shard.AnswerKind, why string) {
	h, c := o.h, &o.call
	if o.answered || h.life != o.life || h.sh == nil {
		if answer == shard.VoteYes {
			h.audit.lateVote(c)
		}
		return
	}
	o.answered = true
	h.w.trace("answer "+answer.String(), c.Service, c.ID, uint64(c.Attempt))
	h.audit.answered(c, answer)
	done := &shard.CallDone{ID: c.ID, Branch: c.Branch, Phase: c.Phase, Attempt: c.Attempt, Term: c.Term, Answer: answer, Reason: why}
	if answer == shard.VoteYes || answer == shard.VoteReadOnly {
		done.Results = [][]byte{[]byte(resultOf(c.Service))}
	}
	h.step(done)
}

func resultOf(service string) string { return `"` + service + `"` }
