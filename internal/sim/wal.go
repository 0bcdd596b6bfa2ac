package sim

import (
	"bytes"
	"encoding/binary"

	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// walLog models the replicated log of one shard: a durable order of entries,
// proposals that are not durable yet, and the last snapshot. It keeps the whole
// order aside, and feeds it to an oracle that never crashes nor restores.
type walLog struct {
	full     []logged // everything ever committed; index is position + 1
	inFlight []*proposal
	stale    []*proposal // of a lost leadership; may still be appended, in a later term

	snapshot      []byte
	snapshotIndex uint64
	applied       uint64 // by the present process
	ordinal       uint64 // greatest proposal of this process that it has applied
	lastCommitUs  int64
	applying      bool
	applyLife     uint64
	oracle        *txn.State
	scratch       []byte
	effects       []txn.Effect
}

type logged struct {
	term    uint64
	data    []byte
	life    uint64 // of the process that proposed it
	ordinal uint64
	lead    bool
}

type proposal struct {
	data    []byte
	life    uint64
	ordinal uint64
	since   uint64 // leadSince of its leadership
	lead    bool
	void    bool
}

func (h *home) propose(data []byte) {
	h.proposals++
	p := &proposal{data: data, life: h.life, ordinal: h.proposals, since: h.leadSince}
	var decides bool
	if p.lead, decides = h.audit.proposed(data); decides {
		h.w.aim(h)
	}
	h.w.trace("propose", "", txnid.ID{}, uint64(len(data)))
	h.log.inFlight = append(h.log.inFlight, p)
	h.log.lastCommitUs = max(h.log.lastCommitUs, h.w.nowUs+h.w.upTo(h.w.opt.CommitDelayUs))
	h.w.at(h.log.lastCommitUs-h.w.nowUs, func() {
		if p.void || p.life != h.life {
			return
		}
		h.log.inFlight = h.log.inFlight[1:]
		h.commit(p)
	})
}

// commit makes a proposal durable in the present term.
func (h *home) commit(p *proposal) {
	e := logged{term: h.term, data: p.data, life: p.life, ordinal: p.ordinal, lead: p.lead}
	h.log.full = append(h.log.full, e)
	index := uint64(len(h.log.full))
	h.w.traceEntry(index, e.data)
	h.audit.durable(index, &e, func() {
		h.log.effects = h.log.effects[:0]
		if err := h.log.oracle.Apply(index, e.term, e.data, &h.log.effects); err != nil {
			h.w.fail("the oracle cannot apply entry %d: %v", index, err)
		}
		h.hashed(h.log.oracle)
	})
	h.applyLater()
}

// hashed hashes what the last entry has captured of a state beside the process: the
// hashes that the process logs are compared with it, too.
func (h *home) hashed(st *txn.State) {
	for i := range h.log.effects {
		if e := &h.log.effects[i]; e.Kind == txn.EffectVerify {
			if _, err := st.Hashed(e.Token, e.Capture.Hash()); err != nil {
				h.w.fail("%v", err)
			}
		}
	}
}

// applyLater hands committed entries to the process, in order.
func (h *home) applyLater() {
	l := &h.log
	if l.applying && l.applyLife == h.life || h.sh == nil || l.applied == uint64(len(l.full)) {
		return
	}
	l.applying, l.applyLife = true, h.life
	life := h.life
	h.w.at(h.w.upTo(h.w.opt.ApplyDelayUs), func() {
		if h.life != life {
			return
		}
		l.applying = false
		for n := 1 + h.w.rng.IntN(4); n > 0 && l.applied < uint64(len(l.full)); n-- {
			h.apply()
		}
		h.actLater()
		h.applyLater()
	})
}

func (h *home) apply() {
	l := &h.log
	e := &l.full[l.applied]
	index := l.applied + 1
	// Its bytes are the entry's only during Apply.
	l.scratch = append(l.scratch[:0], e.data...)
	err := h.sh.Apply(h.w.time(), index, e.term, l.scratch)
	for i := range l.scratch {
		l.scratch[i] = 0xAA
	}
	if err != nil {
		h.w.fail("apply entry %d: %v", index, err)
	}
	l.applied = index
	if e.life == h.life {
		l.ordinal = max(l.ordinal, e.ordinal)
	}
	h.w.trace("apply", "", txnid.ID{}, index)
	h.audit.applied(e)
	if h.w.healed || !h.w.chance(h.w.opt.RegistryLagPct) {
		h.publish()
	}
	if h.log.applied == uint64(len(h.log.full)) && h.w.rng.IntN(8) == 0 {
		h.verify()
	}
}

// verify compares the process's state with the oracle's, which has applied the
// whole log from empty.
func (h *home) verify() {
	if h.log.applied != uint64(len(h.log.full)) {
		return
	}
	if err := h.sh.State().Check(); err != nil {
		h.w.fail("state at entry %d: %v", h.log.applied, err)
	}
	if h.sh.State().Hash() != h.log.oracle.Hash() {
		h.w.fail("state restored from a snapshot and the log's tail differs from a replay of the whole log at entry %d:\n--- process\n%s--- replay\n%s",
			h.log.applied, h.sh.State(), h.log.oracle)
	}
}

// replay applies the whole log to an empty state.
func (h *home) replay() {
	st := txn.New(h.cfg.Shard, h.cfg.Shards)
	for i := range h.log.full {
		h.log.effects = h.log.effects[:0]
		if err := st.Apply(uint64(i+1), h.log.full[i].term, h.log.full[i].data, &h.log.effects); err != nil {
			h.w.fail("replay of entry %d: %v", i+1, err)
		}
		h.hashed(st)
	}
	if st.Hash() != h.log.oracle.Hash() {
		h.w.fail("two replays of the same log differ")
	}
}

// takeSnapshot captures now and writes later, while the state moves on.
func (h *home) takeSnapshot() {
	if h.sh == nil || h.log.applied == h.log.snapshotIndex {
		return
	}
	c, index, life := h.sh.State().Capture(), h.log.applied, h.life
	hash := h.sh.State().Hash()
	h.w.trace("capture", "", txnid.ID{}, index)
	h.w.at(h.w.upTo(300_000), func() {
		if h.life != life || index <= h.log.snapshotIndex {
			return
		}
		var buf bytes.Buffer
		if err := c.Write(func(b []byte) error { buf.Write(b); return nil }); err != nil {
			h.w.fail("write snapshot: %v", err)
		}
		st, err := txn.Restore(h.cfg.Shard, h.cfg.Shards, buf.Bytes())
		if err != nil {
			h.w.fail("snapshot of entry %d does not read: %v", index, err)
		}
		if st.Hash() != hash {
			h.w.fail("snapshot of entry %d changed after it was captured", index)
		}
		h.log.snapshot, h.log.snapshotIndex = buf.Bytes(), index
		h.w.trace("snapshot", "", txnid.ID{}, index)
	})
}

// crash: some of what was proposed has reached the disk, in order.
func (l *walLog) crash(h *home) {
	l.finishPrefix(h)
	l.stale = nil
	l.applying = false
}

// abandon ends a leadership without a crash: some proposals are durable in the
// old term, others are lost, others may be appended in a later term.
func (l *walLog) abandon(h *home) {
	rest := l.finishPrefix(h)
	for _, p := range rest {
		if h.w.chance(50) {
			q := *p
			q.void = false
			l.stale = append(l.stale, &q)
		}
	}
}

func (l *walLog) finishPrefix(h *home) []*proposal {
	k := int(h.w.upTo(int64(len(l.inFlight))))
	list := l.inFlight
	l.inFlight = nil
	for i, p := range list {
		p.void = true
		if i < k {
			h.commit(p)
		}
	}
	return list[k:]
}

// placeStale appends leftovers of a lost leadership in the new term: before LEAD,
// or some time after it.
func (l *walLog) placeStale(h *home) {
	stale := l.stale
	l.stale = nil
	life, term := h.life, h.term
	for _, p := range stale {
		if h.w.chance(40) {
			h.commit(p)
			continue
		}
		h.w.at(h.w.around(300_000), func() {
			if h.life == life && h.term >= term && h.leads {
				h.w.trace("stale append", "", txnid.ID{}, p.ordinal)
				h.commit(p)
			}
		})
	}
}

// loseSome drops any of the proposals: one may fail and the next succeed.
func (l *walLog) loseSome(h *home) {
	pct := 30 + h.w.rng.IntN(71)
	kept := l.inFlight[:0]
	for _, p := range l.inFlight {
		if h.w.chance(pct) {
			p.void = true
		} else {
			kept = append(kept, p)
		}
	}
	l.inFlight = kept
}

func headerTerm(data []byte) uint64 { return binary.BigEndian.Uint64(data[1:]) }
