package shard

import (
	"math"
	"slices"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

func (s *Shard) reply(r Reply) { s.out.Replies = append(s.out.Replies, r) }

func (s *Shard) answer(token Token, v *View) { s.reply(Reply{Token: token, View: v}) }

func (s *Shard) refuse(token Token, err *reason.Error) {
	s.notice(Notice{Kind: NoticeRefused, Reason: err.Code})
	s.reply(Reply{Token: token, Err: err})
}

// refusal builds the error for a refusal that the replicated machine made.
func refusal(code reason.Code, subject string) *reason.Error {
	switch code {
	case reason.IDExpired:
		return reason.New(code, "use a new id for new work; whether an old id was executed can no longer be told",
			"the transaction's id is older than every outcome that is still kept")
	case reason.UnknownService:
		return reason.New(code, "register it with PUT /v1/services/"+subject, "service %q is not registered", subject)
	case reason.ServiceDraining:
		return reason.New(code, "wait until it is removed, then register it again", "service %q is being removed", subject)
	case reason.InvalidService:
		return reason.New(code, "wait until no transaction is open at the service, or remove it first",
			"isolation and capabilities of service %q cannot change while transactions are open there", subject)
	case reason.TooManyServices:
		return reason.New(code, "remove services that are no longer used", "the registry holds its limit of %d services", txn.MaxServices)
	case reason.NotAHazard:
		return reason.New(code, "list open hazards with GET /v1/transactions?state=hazard", "the transaction has no open hazard")
	}
	return reason.New(code, "", "refused: %s", subject)
}

// NotLeader is the answer of a replica that does not lead: nothing was taken, and what
// is here may be old.
func NotLeader(shard uint32) *reason.Error {
	err := reason.New(reason.NotLeader, "try another node, or again", "shard %d is not led here", shard)
	err.RetryAfterMs = 50
	return err
}

// admit refuses a request that this shard cannot take now.
func (s *Shard) admit(token Token) bool { return s.admitUpTo(token, s.cfg.MaxWaitingRequests) }

// admitEnd is admit for what ends a transaction: others wait for that, so that a full
// waiting room would never empty. It has as much room besides.
func (s *Shard) admitEnd(token Token) bool { return s.admitUpTo(token, 2*s.cfg.MaxWaitingRequests) }

func (s *Shard) admitUpTo(token Token, limit int) bool {
	switch {
	case !s.leading:
		s.refuse(token, NotLeader(s.cfg.Shard))
	case s.waiting >= limit:
		err := reason.New(reason.Overloaded, "slow down, or raise --max-waiting-requests", "%d requests wait for an answer", s.waiting)
		err.RetryAfterMs = 200
		s.refuse(token, err)
	default:
		return true
	}
	return false
}

func (s *Shard) submit(ev *Submit) {
	if !s.admit(ev.Token) {
		return
	}
	w := waiter{token: ev.Token, kind: waitSubmit, mode: ev.Wait, digest: ev.Digest}
	if t := s.st.Get(ev.ID); t != nil && !(t.NeverBegun && mutant.On("begin-beats-abort-record")) {
		w.repeated = true
		s.attachFresh(t, w)
		return
	}
	if _, under := s.proposed[ev.ID]; under {
		w.repeated = true
		s.read(barrier{token: ev.Token, id: ev.ID, then: w})
		return
	}
	var err *reason.Error
	switch {
	case s.st.Expired(ev.ID):
		err = refusal(reason.IDExpired, "")
	case ev.ID.UnixMs() > s.now.WallMs+s.cfg.MaxIDAheadMs:
		err = s.fromFuture(ev.ID)
	case s.lowSpace:
		err = reason.New(reason.Overloaded, "make room on the disk of the data directory; what is open goes on meanwhile", "the disk of shard %d's leader is nearly full", s.cfg.Shard)
		err.RetryAfterMs = 1000
	case s.st.Live()+len(s.proposed) >= s.cfg.MaxOpenTransactions:
		err = reason.New(reason.Overloaded, "slow down, or raise --max-open-transactions", "%d transactions are open", s.st.Live())
		err.RetryAfterMs = 500
	default:
		if err = s.tooNew(ev.Begin); err == nil {
			err = s.fullQueue(ev.ID, ev.Locks)
		}
		if err == nil {
			err = s.notRetried(ev.RetryOf)
		}
	}
	if err != nil {
		s.refuse(ev.Token, err)
		return
	}
	s.proposed[ev.ID] = struct{}{}
	s.wait(ev.ID, w)
	s.command(append(s.openEntry(), ev.Begin...))
}

// notRetried refuses to try again what cannot be: what is committed would be done twice.
// Only what never changes is looked at, since this leader may have been deposed.
func (s *Shard) notRetried(id txnid.ID) *reason.Error {
	switch t := s.st.Get(id); {
	case t == nil || t.NeverBegun:
	case !t.Interactive:
		return reason.New(reason.NotInteractive, "leave retry_of out: it keeps the age of transactions begun with POST /v1/transactions:begin", "transaction %s, which retry_of names, was submitted as a whole", id)
	case t.Status.Decided() && t.Abort == nil:
		return reason.New(reason.AlreadyCommitted, "there is nothing to try again", "transaction %s, which retry_of names, is committed", id)
	}
	return nil
}

// fullQueue refuses new work that the log or the queue of a key has no room for.
func (s *Shard) fullQueue(id txnid.ID, locks []lock.Need) *reason.Error {
	if s.pendingBytes >= s.cfg.MaxPendingBytes {
		err := reason.New(reason.Overloaded, "slow down; the disk does not keep up", "%d bytes wait for the log", s.pendingBytes)
		err.RetryAfterMs = 500
		return err
	}
	age := uint64(math.MaxUint64) // a new one is the youngest
	if t := s.st.Get(id); t != nil {
		age = t.AgeMs
	}
	if key, waiting := s.overfull(id, age, locks); waiting > 0 {
		err := reason.New(reason.TooManyWaiters, "slow down, declare finer keys, or raise --max-key-waiters", "%d transactions wait for the lock of %q", waiting, key)
		err.RetryAfterMs = 500
		return err
	}
	return nil
}

// overfull is a key that the limit of waiters is reached at, and how many wait for it.
// Those whose records are on their way are not counted. Who holds the key already goes
// ahead of those: the queue gets no shorter without. So does who is older than they are:
// outside the queue it makes nobody give way, and whoever waits for what it holds waits in a
// cycle that nothing finds.
func (s *Shard) overfull(id txnid.ID, ageMs uint64, locks []lock.Need) (key string, waiting int) {
	if s.st.LockWaiters() < s.cfg.MaxKeyWaiters {
		return "", 0
	}
	for _, n := range locks {
		waiting := s.st.LockQueue(n.Key)
		if waiting >= s.cfg.MaxKeyWaiters && !s.st.HoldsLock(id, n.Key) && s.st.LockElders(n.Key, id, ageMs) >= s.cfg.MaxKeyWaiters {
			return n.Key, waiting
		}
	}
	return "", 0
}

// UnderWay reports whether a record of an id that is not known yet is on its way.
func (s *Shard) UnderWay(id txnid.ID) bool {
	_, under := s.proposed[id]
	return under
}

// StepUnderWay reports whether a step of a transaction is on its way, or waits to be.
func (s *Shard) StepUnderWay(id txnid.ID, number uint32) bool {
	r := s.runs[id]
	return slices.ContainsFunc(s.steps[id], func(w waiter) bool { return w.kind == waitStep && w.step == number }) ||
		r != nil && slices.ContainsFunc(r.held, func(ev *Enlist) bool { return ev.Step == number })
}

func (s *Shard) fromFuture(id txnid.ID) *reason.Error {
	return reason.New(reason.IDFromFuture, "correct the clock that makes the ids",
		"the id's timestamp is %d ms ahead of the coordinator's clock; at most %d are accepted", id.UnixMs()-s.now.WallMs, s.cfg.MaxIDAheadMs)
}

func (s *Shard) rollback(ev *Rollback) {
	if !s.admitEnd(ev.Token) {
		return
	}
	w := waiter{token: ev.Token, kind: waitRollback}
	abort := txn.AbortCmd{ID: ev.ID, Reason: reason.ClientRollback, Message: "rolled back by the client"}
	t := s.st.Get(ev.ID)
	switch {
	case t != nil:
		r := s.runs[ev.ID]
		if !t.Status.Decided() && !r.deciding && (t.Status == txn.Active || !t.OnePhase) {
			s.proposeAbort(r, abort)
		}
		s.attach(t, w)
	case s.st.Expired(ev.ID):
		s.refuse(ev.Token, refusal(reason.IDExpired, ""))
	case ev.ID.UnixMs() > s.now.WallMs+s.cfg.MaxIDAheadMs:
		s.refuse(ev.Token, s.fromFuture(ev.ID))
	case mutant.On("rollback-without-record"):
		s.answer(ev.Token, &View{Txn: txn.Txn{ID: ev.ID, NeverBegun: true, Status: txn.Aborted, Abort: &txn.Abort{Reason: reason.ClientRollback}}})
	default:
		// A BEGIN may be on its way: the record that is applied first wins.
		s.proposed[ev.ID] = struct{}{}
		s.wait(ev.ID, w)
		s.command(txn.AppendAbort(s.openEntry(), abort))
	}
}

func (s *Shard) get(ev *Get) {
	if !s.admit(ev.Token) {
		return
	}
	if t := s.st.Get(ev.ID); t != nil && t.Status.Decided() {
		s.answer(ev.Token, s.view(t, false))
		return
	}
	// "Not found" and "not decided" are told only through the log.
	if mutant.On("not-found-from-memory") && s.st.Get(ev.ID) == nil {
		s.refuse(ev.Token, refusal(reason.NotFound, ""))
		return
	}
	s.read(barrier{token: ev.Token, id: ev.ID})
}

// read answers a question when an entry that is proposed after it has been applied.
func (s *Shard) read(b barrier) {
	b.seq = s.proposedSeq + 1
	s.barriers = append(s.barriers, b)
	s.wantEntry = true
	s.waiting++
}

// attachFresh attaches who repeats a request. What was deposed without knowing it must
// not tell that a transaction is open which another leader has decided.
func (s *Shard) attachFresh(t *txn.Txn, w waiter) {
	if mutant.On("repeat-answered-from-memory") || t.Status.Decided() || w.kind == waitSubmit && w.digest != t.Digest { // which is as true later
		s.attach(t, w)
		return
	}
	s.read(barrier{token: w.token, id: t.ID, then: w})
}

// passBarriers answers the reads whose entry has been applied.
func (s *Shard) passBarriers() {
	n := 0
	for n < len(s.barriers) && s.barriers[n].seq <= s.appliedSeq {
		b := s.barriers[n]
		n++
		s.waiting--
		t := s.st.Get(b.id)
		switch {
		case b.inquirer > 0 && t == nil:
			s.confirmOver(b.id, b.inquirer-1)
		case b.inquirer > 0:
			s.inquired(&Message{ID: b.id, From: b.inquirer - 1})
		case t != nil && b.then.kind != 0:
			s.attach(t, b.then)
		case t != nil:
			s.attach(t, waiter{token: b.token, kind: waitGet})
		case s.st.Expired(b.id):
			s.refuse(b.token, refusal(reason.IDExpired, ""))
		case b.then.kind != 0: // it repeats one whose record is still to come, or was refused
			if _, under := s.proposed[b.id]; under {
				s.wait(b.id, b.then)
				break
			}
			err := reason.New(reason.OutcomeUnknown, "send the same request again: it is executed once", "the request that this one repeats was refused")
			err.Details = map[string]string{"id": b.id.String()}
			err.RetryAfterMs = 100
			s.refuse(b.token, err)
		default:
			s.refuse(b.token, reason.New(reason.NotFound, "it may never have been received: sending it again with the same id executes it once",
				"no transaction %s", b.id))
		}
	}
	s.barriers = s.barriers[n:]
}

func (s *Shard) resolve(ev *Resolve) {
	if !s.admit(ev.Token) {
		return
	}
	t := s.st.Get(ev.ID)
	if t == nil || !t.Hazard() || t.Resolution != "" {
		s.refuse(ev.Token, refusal(reason.NotAHazard, ""))
		return
	}
	s.wait(ev.ID, waiter{token: ev.Token, kind: waitGet})
	s.command(txn.AppendResolve(s.openEntry(), ev.ID, ev.Note))
}

func (s *Shard) resolved(e *txn.Effect) {
	if e.Txn == nil {
		s.refusePending(e)
		return
	}
	s.notice(Notice{Kind: NoticeResolved, ID: e.ID})
	s.settlePending(e.Txn)
}

// wait keeps a request until the record of its transaction is applied.
func (s *Shard) wait(id txnid.ID, w waiter) {
	s.pending[id] = append(s.pending[id], w)
	s.waiting++
}

// settlePending hands the requests on an id over to its record, which a later
// record of the same entry may have forgotten already.
func (s *Shard) settlePending(t *txn.Txn) {
	id := t.ID
	delete(s.proposed, id)
	waiters := s.pending[id]
	if waiters == nil {
		return
	}
	delete(s.pending, id)
	for _, w := range waiters {
		s.waiting--
		s.attach(t, w)
		if w.kind == waitRollback && !t.Status.Decided() {
			// Its ABORT(id) follows the BEGIN in the log and decides.
			s.runs[id].deciding = s.runs[id].deciding || !t.OnePhase
		}
	}
}

// refusePending tells the requests on an id that there is no record of it.
func (s *Shard) refusePending(e *txn.Effect) {
	var others []waiter
	for _, w := range s.pending[e.ID] {
		if e.Kind == txn.EffectBeginRefused && w.kind != waitSubmit {
			others = append(others, w) // their own record is still to come
			continue
		}
		s.waiting--
		s.refuse(w.token, refusal(e.Reason, e.Name))
	}
	if s.pending[e.ID] = others; len(others) == 0 {
		delete(s.pending, e.ID)
		delete(s.proposed, e.ID)
	}
}

// attach answers a request from a record now, or keeps it until it can.
func (s *Shard) attach(t *txn.Txn, w waiter) {
	r := s.runs[t.ID]
	if s.settle(t, r, w) {
		return
	}
	r.waiters = append(r.waiters, w)
	s.waiting++
	s.lazyUrgent = s.lazyUrgent || t.Status.Decided() && len(s.lazy) > 0
}

func (s *Shard) settleWaiters(r *run) {
	keep := r.waiters[:0]
	for _, w := range r.waiters {
		if s.settle(r.t, r, w) {
			s.waiting--
		} else {
			keep = append(keep, w)
		}
	}
	r.waiters = keep
}

// settle answers a request if its condition holds.
func (s *Shard) settle(t *txn.Txn, r *run, w waiter) bool {
	decided := t.Status.Decided() || r != nil && r.onePhase
	ended := t.Status.Ended() || r != nil && r.onePhase
	switch w.kind {
	case waitSubmit:
		if w.digest != t.Digest && !t.NeverBegun && !mutant.On("ignore-digest") {
			err := reason.New(reason.IDConflict, "use a new id for new work", "transaction %s was submitted with another body", t.ID)
			s.refuse(w.token, err)
			return true
		}
		if w.mode != WaitNone && !decided || w.mode == WaitCompleted && !ended {
			return false
		}
	case waitGet:
		// The outcome of a one-phase transaction is the participant's: it waits.
		if !decided && t.OnePhase && t.Status == txn.Preparing {
			return false
		}
	case waitStep:
		if !decided && !s.stepDone(t, r, w.step) {
			return false
		}
		if r != nil {
			r.touchedUs = s.now.MonoUs
		}
		// An abort answers every step. A commit answers those that are part of it, as far
		// as that can be told: what is remembered of steps ends with the decision.
		if t.Status.Decided() && t.Abort == nil && !w.taken {
			err := stepRefusal(reason.AlreadyDecided, t.ID, w.step, "")
			s.notice(Notice{Kind: NoticeRefused, Reason: err.Code})
			s.reply(Reply{Token: w.token, Err: err, View: s.view(t, false)})
			return true
		}
		v := s.view(t, w.repeated)
		if !decided {
			v.StepResults = stepResults(t, r, w.step)
		}
		s.answer(w.token, v)
		return true
	case waitSeal:
		if w.mode != WaitNone && !decided || w.mode == WaitCompleted && !ended {
			return false
		}
	case waitRollback:
		if !decided {
			return false
		}
		if t.Abort == nil {
			err := reason.New(reason.AlreadyCommitted, "compensate it by a new transaction", "transaction %s is committed", t.ID)
			s.notice(Notice{Kind: NoticeRefused, Reason: err.Code})
			s.reply(Reply{Token: w.token, Err: err, View: s.view(t, false)})
			return true
		}
	}
	s.answer(w.token, s.view(t, w.repeated))
	return true
}

// cancel ends a wait: the answer is the current state, never one that could be
// read as an abort.
func (s *Shard) cancel(ev *Cancel) {
	for i, b := range s.barriers {
		if b.token == ev.Token && b.inquirer == 0 {
			s.barriers = append(s.barriers[:i:i], s.barriers[i+1:]...)
			s.giveUpRead(ev.Token, b.id)
			return
		}
	}
	if w, ok := take(s.pending, ev.ID, ev.Token); ok {
		s.giveUp(ev.Token, ev.ID, w.kind)
		return
	}
	for i, w := range s.steps[ev.ID] {
		if w.token == ev.Token {
			// The place in the queue belongs to a record: only the answer is given up.
			s.steps[ev.ID][i].token = 0
			s.giveUp(ev.Token, ev.ID, w.kind)
			return
		}
	}
	if r := s.runs[ev.ID]; r != nil {
		for i, held := range r.held {
			if held.Token == ev.Token { // it was never proposed
				r.held = append(r.held[:i:i], r.held[i+1:]...)
				s.giveUp(ev.Token, ev.ID, waitStep)
				return
			}
		}
		for i, w := range r.waiters {
			if w.token == ev.Token {
				r.waiters = append(r.waiters[:i:i], r.waiters[i+1:]...)
				r.touchedUs = s.now.MonoUs
				s.giveUp(ev.Token, ev.ID, w.kind)
				return
			}
		}
	}
	for i, token := range s.memberWaiters {
		if token == ev.Token {
			// The place in the queue belongs to a record: only the answer is given up.
			s.memberWaiters[i] = 0
			s.giveUp(token, txnid.ID{}, waitSubmit)
			return
		}
	}
	for i, token := range s.removals[ev.Name] {
		if token == ev.Token {
			s.removals[ev.Name] = append(s.removals[ev.Name][:i:i], s.removals[ev.Name][i+1:]...)
			s.waiting--
			s.reply(Reply{Token: token, Service: s.serviceView(s.st.Service(ev.Name))})
			return
		}
	}
	for i, w := range s.services[ev.Name] {
		if w.token == ev.Token {
			// The place in the queue belongs to a record: only the answer is given up.
			s.services[ev.Name][i].token = 0
			s.giveUp(ev.Token, txnid.ID{}, waitSubmit)
			return
		}
	}
}

func take(m map[txnid.ID][]waiter, id txnid.ID, token Token) (waiter, bool) {
	for i, w := range m[id] {
		if w.token == token {
			m[id] = append(m[id][:i:i], m[id][i+1:]...)
			return w, true
		}
	}
	return waiter{}, false
}

// giveUpRead: its entry has not been applied, so nothing can be told but a decision.
func (s *Shard) giveUpRead(token Token, id txnid.ID) {
	s.waiting--
	if t := s.st.Get(id); t != nil && t.Status.Decided() {
		s.answer(token, s.view(t, false))
		return
	}
	err := reason.New(reason.OutcomeUnknown, "ask again", "the question was not answered in time")
	err.Details = map[string]string{"id": id.String()}
	s.reply(Reply{Token: token, Err: err})
}

func (s *Shard) giveUp(token Token, id txnid.ID, kind waitKind) {
	s.waiting--
	t := s.st.Get(id)
	switch {
	case t == nil:
		err := reason.New(reason.OutcomeUnknown, "ask for it by its id, or send the same request again: it is executed once",
			"the request was not answered in time; it may or may not take effect")
		if !id.IsZero() {
			err.Details = map[string]string{"id": id.String()}
		}
		s.reply(Reply{Token: token, Err: err})
	case (kind == waitStep || kind == waitSeal) && !t.Status.Decided():
		err := reason.New(reason.OutcomeUnknown, "send the same request again: it is executed once", "the request was not done in time; it may or may not take effect")
		err.Details = map[string]string{"id": id.String()}
		s.reply(Reply{Token: token, Err: err, View: s.view(t, false)})
	case kind == waitRollback && !t.Status.Decided():
		err := reason.New(reason.OutcomeUnknown, "ask for the transaction by its id", "the rollback was not decided in time")
		if t.OnePhase && t.Status == txn.Preparing {
			err = reason.New(reason.OnePhasePending, "ask for the transaction by its id; the participant's answer decides",
				"transaction %s commits in one phase and cannot be rolled back any more", t.ID)
		}
		s.reply(Reply{Token: token, Err: err, View: s.view(t, false)})
	default:
		s.answer(token, s.view(t, false))
	}
}

// view copies what a client is told of a transaction.
func (s *Shard) view(t *txn.Txn, repeated bool) *View {
	v := &View{Txn: *t, Branches: make([]BranchView, len(t.Branches)), Repeated: repeated}
	v.Txn.Branches = append([]txn.Branch(nil), t.Branches...)
	r := s.runs[t.ID]
	if r == nil {
		if k, ok := s.kept.byID[t.ID]; ok {
			for i := range v.Branches {
				v.Branches[i].Results = k.results[i]
			}
		}
		return v
	}
	for i := range v.Branches {
		b := &r.branches[i]
		v.Branches[i] = BranchView{Vote: b.vote, Results: b.results, Attempts: b.attempt, LastError: b.lastError}
	}
	if r.onePhase && !t.Status.Decided() {
		v.Txn.Status = txn.Committed
		v.Txn.Branches[0].Fate = txn.FateDone
	}
	if t.Status == txn.Active {
		if need, ids, ok := s.st.Waiting(t.ID, maxBehind); ok {
			v.WaitKey, v.WaitMode, v.WaitsFor = need.Key, need.Mode.String(), ids
		} else if p := r.waitsAt(); p != nil {
			v.WaitKey, v.WaitMode, v.WaitsFor = p.key, p.mode, p.behind
		}
	}
	return v
}
