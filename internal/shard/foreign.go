package shard

import (
	"strconv"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// Locks over several shards: see package txn. Whatever is sent is sent again every
// ResendUs until the state shows that it is needed no more.

// foreign is the leader's memory of dealings with other shards. It is empty in a
// cluster of one shard.
type foreign struct {
	resends  []resend // in order of time: all wait equally long
	releases map[release]struct{}
	claiming map[txnid.ID]uint32   // requests whose CLAIM is on its way
	looking  map[txnid.ID]struct{} // waiters that will inquire
	asking   map[txnid.ID]struct{} // claims whose homes are asked to give way
	cycles   map[txnid.ID]string   // of those, the cycles that they are the youngest of
	sweepUs  int64
	sweptTo  txnid.ID
	drains   map[string]map[uint32]bool // services that drain, and the shards that have none open
	drainOut map[string]struct{}        // a DRAIN of this shard is on its way
}

// release names what is given back at a shard.
type release struct {
	id      txnid.ID
	shard   uint32
	service string
	waiting bool
}

type resendKind uint8

const (
	resendAsk resendKind = iota + 1
	resendRelease
	resendGiveWay
	resendLook
	resendDrain
)

type resend struct {
	atUs    int64
	kind    resendKind
	id      txnid.ID
	request uint32
	shard   uint32
	release release
	service string
}

// part is the leader's memory of what a transaction has at another shard.
type part struct {
	locked  uint32 // the request whose LOCKED is on its way
	yielded uint32 // the request whose YIELD is on its way
	key     string // that it waits for there
	mode    string
	behind  []txnid.ID
}

func newForeign() foreign {
	return foreign{
		releases: map[release]struct{}{}, claiming: map[txnid.ID]uint32{}, looking: map[txnid.ID]struct{}{}, asking: map[txnid.ID]struct{}{}, cycles: map[txnid.ID]string{},
		drains: map[string]map[uint32]bool{}, drainOut: map[string]struct{}{},
	}
}

func (s *Shard) send(m Message) {
	m.From = s.cfg.Shard
	s.out.Messages = append(s.out.Messages, m)
}

func (s *Shard) again(r resend) {
	r.atUs = s.now.MonoUs + s.cfg.ResendUs
	s.foreign.resends = append(s.foreign.resends, r)
}

// fireResends sends again what is still needed.
func (s *Shard) fireResends() {
	for len(s.foreign.resends) > 0 && s.foreign.resends[0].atUs <= s.now.MonoUs {
		r := s.foreign.resends[0]
		s.foreign.resends = s.foreign.resends[1:]
		switch r.kind {
		case resendAsk:
			s.ask(r.id, r.shard, r.request)
		case resendRelease:
			if _, still := s.foreign.releases[r.release]; still {
				s.sendRelease(r.release)
			}
		case resendGiveWay:
			delete(s.foreign.asking, r.id)
			s.giveWay(r.id)
		case resendLook:
			s.look(r.id)
		case resendDrain:
			s.drainOthers(r.service)
		}
	}
	if s.now.MonoUs >= s.foreign.sweepUs {
		s.foreign.sweepUs = s.now.MonoUs + s.cfg.SweepUs
		s.sweep()
	}
}

func (s *Shard) nextResendUs() int64 {
	at := s.foreign.sweepUs
	if len(s.foreign.resends) > 0 {
		at = min(at, s.foreign.resends[0].atUs)
	}
	return at
}

// resumeForeign takes up every dealing that the replicated state still needs.
func (s *Shard) resumeForeign(live []txnid.ID) {
	if s.cfg.Shards <= 1 {
		return
	}
	for _, id := range live {
		t := s.st.Get(id)
		s.askAll(t)
		s.releaseReady(t)
		if _, _, waits := s.st.Waiting(id, 0); waits {
			s.lookLater(id)
		}
	}
	for _, id := range s.st.ForeignClaims() {
		c := s.st.ForeignClaim(id)
		if c.Asked {
			s.giveWay(id)
		}
		if !c.Granted {
			s.lookLater(id)
		}
	}
	for _, v := range s.st.Services() {
		if v.Draining {
			s.drainOthers(v.Name)
		}
	}
	s.foreign.sweepUs = s.now.MonoUs + s.cfg.SweepUs
}

func (s *Shard) message(m *Message) {
	if !s.leading && !mutant.On("foreign-answered-by-follower") || s.st.Level() < txn.LevelSpread {
		return // who needs an answer asks again
	}
	switch m.Kind {
	case MessageAsk:
		s.asked(m)
	case MessageGranted:
		s.partGranted(m)
	case MessageBlocked:
		if p := s.partOf(m); p != nil {
			p.key, p.mode, p.behind = m.Key, m.Mode, m.Behind
		}
	case MessageRefused:
		if r := s.runs[m.ID]; s.partOf(m) != nil && !r.deciding {
			s.proposeAbort(r, txn.AbortCmd{Reason: reason.TooManyWaiters, Message: m.Text, Service: m.Service})
		}
	case MessageRelease:
		s.releaseAsked(m)
	case MessageReleased:
		delete(s.foreign.releases, release{m.ID, m.From, m.Service, m.Waiting})
	case MessageGiveWay:
		s.askedToGiveWay(m)
	case MessageInquire:
		s.inquired(m)
	case MessageDrain:
		s.drainAsked(m)
	case MessageDrained:
		s.drained(m)
	}
}

// maxBehind is how many of those in the way of a request are told.
const maxBehind = 8

// ---- the home's side

// askAll asks for all parts of a transaction that are not granted.
func (s *Shard) askAll(t *txn.Txn) {
	for i := range t.Foreign {
		s.ask(t.ID, t.Foreign[i].Shard, t.Foreign[i].Request)
	}
}

func (s *Shard) ask(id txnid.ID, shard, request uint32) {
	t := s.st.Get(id)
	if t == nil || t.Status != txn.Active {
		return
	}
	f := t.ForeignAt(shard)
	if f.Granted || f.Request != request {
		return
	}
	s.send(Message{Kind: MessageAsk, To: shard, ID: id, Request: request, AgeMs: t.AgeMs, Whole: !t.Interactive, Needs: f.Needs})
	s.again(resend{kind: resendAsk, id: id, shard: shard, request: request})
}

// partOf is the memory of the part that a message is about, if that is still asked for.
func (s *Shard) partOf(m *Message) *part {
	r := s.runs[m.ID]
	if r == nil || r.t.Status != txn.Active {
		return nil
	}
	if f := r.t.ForeignAt(m.From); f == nil || f.Request != m.Request && !mutant.On("foreign-any-request") || f.Granted {
		return nil
	}
	return r.part(m.From)
}

func (r *run) part(shard uint32) *part {
	p := r.parts[shard]
	if p == nil {
		if r.parts == nil {
			r.parts = map[uint32]*part{}
		}
		p = &part{}
		r.parts[shard] = p
	}
	return p
}

// waitsAt is a part that is known to wait for a key, or nil; of several the one at the
// lowest shard.
func (r *run) waitsAt() *part {
	for i := range r.t.Foreign {
		if f := &r.t.Foreign[i]; !f.Granted {
			if p := r.parts[f.Shard]; p != nil && p.key != "" {
				return p
			}
		}
	}
	return nil
}

func (s *Shard) partGranted(m *Message) {
	p := s.partOf(m)
	if p == nil {
		if t := s.st.Get(m.ID); t == nil || t.Status.Ended() {
			s.inquired(m) // a claim that outlived its transaction
		}
		return
	}
	p.key = ""
	if p.locked == m.Request {
		return
	}
	p.locked = m.Request
	s.command(txn.AppendLocked(s.openEntry(), txn.Locked{ID: m.ID, Shard: m.From, Request: m.Request, Token: m.Token}))
}

// askedToGiveWay: an elder waits at another shard for what the transaction has there.
func (s *Shard) askedToGiveWay(m *Message) {
	t := s.st.Get(m.ID)
	if t == nil || t.Status.Ended() {
		s.inquired(m)
		return
	}
	r := s.runs[m.ID]
	f := t.ForeignAt(m.From)
	switch {
	case t.Status != txn.Active || r.deciding || f == nil:
	case s.commitIsAsked(t.ID): // its SEAL is in the log before any abort would be
	case t.Interactive && m.Waiting:
		s.proposeAbort(r, txn.AbortCmd{Reason: reason.Deadlock, Message: m.Text})
	case t.Interactive: // whatever it has asked for since
		c := txn.AbortCmd{Reason: reason.Wounded, Message: m.Text, Service: m.Service}
		if cycle := s.gaveWay(r, &wish{wait: m.wound(), text: m.Text, atMs: s.now.WallMs, waiting: t.WaitsForLocks()}); cycle != nil {
			c.Reason, c.Message = reason.Deadlock, txn.DescribeCycle(cycle)
		}
		s.proposeAbort(r, c)
	case f.Request == m.Request:
		if p := r.part(m.From); p.yielded != m.Request {
			p.yielded = m.Request
			s.gaveWay(r, &wish{wait: m.wound(), text: m.Text, atMs: s.now.WallMs, waiting: true})
			s.command(txn.AppendYield(s.openEntry(), txn.Yield{ID: m.ID, Shard: m.From, Request: m.Request}))
		}
	}
}

// wound is the wait of an elder that a request to give way tells.
func (m *Message) wound() lock.Wait {
	w := lock.Wait{Key: m.Key, For: m.ID}
	if mode, ok := lock.ParseMode(m.Mode); ok && len(m.Behind) == 1 {
		w.Owner, w.Mode = m.Behind[0], mode
	}
	return w
}

// releaseReady gives back what the decision and the acknowledgements allow: the keys of
// a service when its branch owes no answer, everything at the end.
func (s *Shard) releaseReady(t *txn.Txn) {
	if !t.Status.Decided() {
		return
	}
	for i := range t.Foreign {
		f := &t.Foreign[i]
		if t.Status.Ended() {
			s.release(release{id: t.ID, shard: f.Shard})
			continue
		}
		if !f.Granted {
			s.release(release{id: t.ID, shard: f.Shard, waiting: true})
		}
		for _, service := range f.Services {
			for j := range t.Branches {
				if b := &t.Branches[j]; b.Service == service && (b.Fate != txn.FateFinishing || mutant.On("foreign-release-early")) {
					s.release(release{id: t.ID, shard: f.Shard, service: service})
				}
			}
		}
	}
}

func (s *Shard) release(r release) {
	if _, under := s.foreign.releases[r]; under {
		return
	}
	s.foreign.releases[r] = struct{}{}
	s.sendRelease(r)
}

func (s *Shard) sendRelease(r release) {
	s.send(Message{Kind: MessageRelease, To: r.shard, ID: r.id, Service: r.service, Waiting: r.waiting, Token: s.st.Grants()})
	s.again(resend{kind: resendRelease, release: r})
}

// inquired: somebody waits for what the transaction holds at another shard, or nobody
// has heard of it for long.
func (s *Shard) inquired(m *Message) {
	t := s.st.Get(m.ID)
	switch {
	case t == nil && s.st.Expired(m.ID):
		s.release(release{id: m.ID, shard: m.From})
	case t == nil: // not known here: told only through the log
		s.read(barrier{id: m.ID, inquirer: m.From + 1})
	case t.Status.Ended():
		s.release(release{id: m.ID, shard: m.From})
	default:
		s.releaseReady(t)
	}
}

// confirmOver answers an inquiry about an id that has no record: it never will.
func (s *Shard) confirmOver(id txnid.ID, shard uint32) {
	if s.st.Expired(id) {
		s.release(release{id: id, shard: shard})
		return
	}
	if _, under := s.proposed[id]; !under {
		s.proposed[id] = struct{}{}
		s.command(txn.AppendAbort(s.openEntry(), txn.AbortCmd{ID: id, Reason: reason.ClientRollback, Message: "locks of it were found, but nothing else"}))
	}
}

// ---- the lock shard's side

func (s *Shard) asked(m *Message) {
	c := s.st.ForeignClaim(m.ID)
	if c != nil && (c.Over || m.Request <= c.Request) {
		s.tellClaim(m.ID, m.Request)
		return
	}
	if s.foreign.claiming[m.ID] >= m.Request || s.pendingBytes >= s.cfg.MaxPendingBytes {
		return
	}
	// One that was submitted as a whole and gave way queues again, unseen by its client.
	if key, waiting := s.overfull(m.ID, m.AgeMs, m.Needs); waiting > 0 && !(c != nil && c.Whole) {
		text := strconv.Itoa(waiting) + " transactions wait for the lock of " + strconv.Quote(key) + ": slow down, or declare finer keys"
		s.send(Message{Kind: MessageRefused, To: m.From, ID: m.ID, Request: m.Request, Service: lock.Service(key), Text: text})
		return
	}
	s.foreign.claiming[m.ID] = m.Request
	s.command(txn.AppendClaim(s.openEntry(), &txn.ClaimCmd{ID: m.ID, AgeMs: m.AgeMs, Request: m.Request, Whole: m.Whole, Needs: m.Needs}))
}

// tellClaim tells the home how its latest request stands.
func (s *Shard) tellClaim(id txnid.ID, request uint32) {
	c := s.st.ForeignClaim(id)
	if c == nil || c.Over || c.Request != request {
		return
	}
	home := id.Shard(s.cfg.Shards)
	if c.Granted {
		s.send(Message{Kind: MessageGranted, To: home, ID: id, Request: request, Token: c.Token})
		return
	}
	if need, behind, waits := s.st.Waiting(id, maxBehind); waits {
		s.send(Message{Kind: MessageBlocked, To: home, ID: id, Request: request, Key: need.Key, Mode: need.Mode.String(), Behind: behind})
	}
}

func (s *Shard) claimed(e *txn.Effect) {
	// What comes behind the release is dropped, whatever its number.
	if c := s.st.ForeignClaim(e.ID); s.foreign.claiming[e.ID] <= e.Request || c != nil && c.Over {
		delete(s.foreign.claiming, e.ID)
	}
	s.tellClaim(e.ID, e.Request)
	if e.Kind == txn.EffectClaimBlocked {
		s.blocked(e.ID)
	}
}

func (s *Shard) giveWay(id txnid.ID) {
	c := s.st.ForeignClaim(id)
	if c == nil || !c.Asked || c.Over {
		delete(s.foreign.cycles, id)
		return
	}
	if w, ok := s.st.WoundOf(id); ok {
		m := Message{
			Kind: MessageGiveWay, To: id.Shard(s.cfg.Shards), ID: id, Request: c.Request, Text: txn.DescribeWound(w), Service: lock.Service(w.Key),
			Key: w.Key, Mode: w.Mode.String(), Behind: []txnid.ID{w.Owner},
		}
		if cycle, in := s.foreign.cycles[id]; in {
			m.Text, m.Waiting = cycle, true
		}
		s.send(m)
	} else { // whoever waited is gone; a later elder is found when this is looked at again
		delete(s.foreign.cycles, id)
	}
	if _, under := s.foreign.asking[id]; !under && !mutant.On("foreign-give-way-once") {
		s.foreign.asking[id] = struct{}{}
		s.again(resend{kind: resendGiveWay, id: id})
	}
}

func (s *Shard) releaseAsked(m *Message) {
	_, coming := s.foreign.claiming[m.ID]
	if s.st.ForeignClaim(m.ID) == nil && !coming {
		s.send(Message{Kind: MessageReleased, To: m.From, ID: m.ID, Service: m.Service, Waiting: m.Waiting})
		return
	}
	c := txn.Release{ID: m.ID, Service: m.Service, Waiting: m.Waiting, Token: m.Token}
	if s.st.LockWaiters() > 0 || coming {
		s.command(txn.AppendRelease(s.openEntry(), c))
		return
	}
	s.lazyCommand(func(dst []byte) []byte { return txn.AppendRelease(dst, c) })
}

func (s *Shard) released(e *txn.Effect) {
	delete(s.foreign.cycles, e.ID)
	s.lookAtDrains()
	s.send(Message{Kind: MessageReleased, To: e.ID.Shard(s.cfg.Shards), ID: e.ID, Service: e.Name, Waiting: e.Waiting})
}

// lookLater: whoever waits behind transactions of other homes asks what has become of
// them, in case that a release was lost with its sender.
func (s *Shard) lookLater(id txnid.ID) {
	if _, under := s.foreign.looking[id]; under || s.cfg.Shards <= 1 {
		return
	}
	s.foreign.looking[id] = struct{}{}
	s.again(resend{kind: resendLook, id: id})
}

func (s *Shard) look(id txnid.ID) {
	delete(s.foreign.looking, id)
	if mutant.On("foreign-never-inquires") {
		return
	}
	_, behind, waits := s.st.Waiting(id, maxBehind)
	if !waits {
		return
	}
	for _, b := range behind {
		if s.st.ForeignClaim(b) != nil {
			s.send(Message{Kind: MessageInquire, To: b.Shard(s.cfg.Shards), ID: b})
		}
	}
	s.lookLater(id)
}

// maxSwept claims are asked about at once.
const maxSwept = 64

// sweep asks about claims that nobody waits for, some at a time.
func (s *Shard) sweep() {
	if mutant.On("foreign-never-inquires") {
		return
	}
	n := 0
	for _, id := range s.st.ForeignClaims() {
		if !s.foreign.sweptTo.Less(id) {
			continue
		}
		s.foreign.sweptTo = id
		s.send(Message{Kind: MessageInquire, To: id.Shard(s.cfg.Shards), ID: id})
		if n++; n == maxSwept {
			return
		}
	}
	s.foreign.sweptTo = txnid.ID{}
}
