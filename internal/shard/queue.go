package shard

import (
	"sort"
	"strconv"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// ---- entries: group commit without a timer. A batch closes when an append is free.

// openEntry is the entry that takes the next command; pass the result to command.
func (s *Shard) openEntry() []byte {
	if len(s.open) == 0 {
		s.open = make([]byte, txn.HeaderBytes, 4096)
	}
	return s.open
}

// command takes the open entry back with one command appended to it.
func (s *Shard) command(entry []byte) {
	s.pendingBytes += len(entry) - max(len(s.open), txn.HeaderBytes)
	s.open = entry
	s.openCount++
	if len(entry) >= s.cfg.MaxEntryBytes {
		s.seal()
	}
}

func (s *Shard) seal() {
	s.sealed = append(s.sealed, s.open)
	s.sealedCount = append(s.sealedCount, s.openCount)
	s.open, s.openCount = nil, 0
}

// lazyAck keeps an acknowledgement for whatever entry comes next. Losing it is
// harmless: the branch is told its decision again.
func (s *Shard) lazyAck(a txn.Ack) {
	s.lazyCommand(func(dst []byte) []byte { return txn.AppendAck(dst, a) })
}

// lazyCommand is lazyAck for another command that will be asked for again if it is lost.
func (s *Shard) lazyCommand(add func(dst []byte) []byte) {
	if len(s.lazy) == 0 {
		s.lazySinceUs = s.now.MonoUs
	}
	s.lazy = add(s.lazy)
	s.lazyCount++
}

func (s *Shard) fillEntries() {
	if s.leadEntry != nil {
		s.propose(s.leadEntry, 1)
		s.leadEntry, s.leadProposed = nil, s.leadEntry
	}
	if !s.leading {
		return
	}
	for s.mayPropose() && s.hasEntry() {
		if len(s.sealed) == 0 {
			s.openEntry()
			s.seal()
		}
		entry, count := s.sealed[0], s.sealedCount[0]
		s.sealed, s.sealedCount = s.sealed[1:], s.sealedCount[1:]
		s.pendingBytes -= len(entry) - txn.HeaderBytes
		entry = append(entry, s.lazy...)
		count += s.lazyCount
		s.lazy, s.lazyCount, s.lazyUrgent, s.wantEntry = s.lazy[:0], 0, false, false
		s.inFlight++
		s.proposedSeq++
		s.propose(entry, count)
	}
}

// mayPropose: an append costs much the same whatever it carries, so a small one waits for
// the one before it, and takes along what comes meanwhile.
func (s *Shard) mayPropose() bool {
	if s.inFlight <= 0 { // less, if the log has committed one twice
		return true
	}
	return s.inFlight < s.cfg.MaxAppendsInFlight && (len(s.sealed) > 0 || s.openCount >= s.cfg.OverlapCommands)
}

func (s *Shard) propose(entry []byte, count int) {
	txn.PutHeader(entry, s.term, s.now.WallMs)
	s.out.Entries = append(s.out.Entries, entry)
	s.notice(Notice{Kind: NoticeProposed, N: count, Bytes: len(entry)})
}

func (s *Shard) hasEntry() bool {
	return len(s.sealed) > 0 || s.openCount > 0 || s.wantEntry ||
		len(s.lazy) > 0 && (s.lazyUrgent || len(s.lazy) >= s.cfg.MaxEntryBytes || s.now.MonoUs >= s.lazySinceUs+s.cfg.AckLingerUs)
}

// ---- timers

const (
	noBranch   = -1
	idleBranch = -2 // the client's silence
	lockBranch = -3 // a wait for locks
)

// timer is a deadline of a transaction (noBranch, idleBranch, lockBranch) or the retry of a
// branch. It is void if the run no longer has that time.
type timer struct {
	atUs   int64
	id     txnid.ID
	branch int
}

func (t timer) before(o timer) bool {
	switch {
	case t.atUs != o.atUs:
		return t.atUs < o.atUs
	case t.id != o.id:
		return t.id.Less(o.id)
	}
	return t.branch < o.branch
}

// timerHeap is a binary min-heap.
type timerHeap []timer

func (h *timerHeap) push(t timer) {
	*h = append(*h, t)
	a := *h
	for i := len(a) - 1; i > 0; {
		up := (i - 1) / 2
		if !a[i].before(a[up]) {
			return
		}
		a[i], a[up] = a[up], a[i]
		i = up
	}
}

func (h *timerHeap) pop() timer {
	a := *h
	first, last := a[0], len(a)-1
	a[0] = a[last]
	a = a[:last]
	*h = a
	for i := 0; ; {
		l := 2*i + 1
		if l >= last {
			return first
		}
		if r := l + 1; r < last && a[r].before(a[l]) {
			l = r
		}
		if !a[l].before(a[i]) {
			return first
		}
		a[i], a[l] = a[l], a[i]
		i = l
	}
}

// startTimer adds a timer, and clears out void ones when they outnumber the rest.
func (s *Shard) startTimer(t timer) {
	s.timers.push(t)
	if len(s.timers) < 4096+8*len(s.runs) {
		return
	}
	var live timerHeap
	for _, t := range s.timers {
		r := s.runs[t.id]
		if r != nil && r.awaits(t) {
			live.push(t)
		}
	}
	s.timers = live
}

// awaits reports whether the timer still means something.
func (r *run) awaits(t timer) bool {
	switch t.branch {
	case noBranch:
		return r.deadlineUs == t.atUs && !r.t.Status.Decided()
	case lockBranch:
		return r.lockUs == t.atUs && r.waitsForLocks()
	case idleBranch:
		return r.idleUs == t.atUs && r.t.Status == txn.Active
	}
	return r.branches[t.branch].retryAtUs == t.atUs
}

func (s *Shard) fireTimers() {
	if !s.leading {
		return
	}
	for len(s.timers) > 0 && s.timers[0].atUs <= s.now.MonoUs {
		t := s.timers.pop()
		r := s.runs[t.id]
		switch {
		case r == nil:
		case t.branch == noBranch:
			if r.deadlineUs == t.atUs {
				s.timedOut(r)
			}
		case t.branch == lockBranch:
			if r.awaits(t) && !r.deciding {
				s.lockTimedOut(r, " for "+strconv.FormatInt(s.cfg.MaxLockWaitUs/1000, 10)+" ms, the limit of a wait,")
			}
		case t.branch == idleBranch:
			if r.idleUs == t.atUs {
				s.lookIdle(r)
			}
		case r.branches[t.branch].retryAtUs == t.atUs:
			s.retryNow(r, t.branch)
		}
	}
	if s.cfg.Shards > 1 {
		s.fireResends()
	}
	if s.now.MonoUs >= s.forgetUs {
		s.forgetUs = s.now.MonoUs + s.cfg.ForgetCheckIntervalUs
		s.forget(true)
	}
	if s.cfg.HashCheckIntervalUs > 0 && s.now.MonoUs >= s.verifyUs {
		s.verify()
	}
}

// timedOut ends phase 1. It never touches a one-phase transaction that may have
// reached its participant, nor a decision that is on its way.
func (s *Shard) timedOut(r *run) {
	t := r.t
	if t.Status.Decided() || r.deciding {
		return
	}
	if t.Status == txn.Active && t.Interactive && !t.StepPending {
		c := txn.AbortCmd{Reason: reason.Timeout, Message: "commit was not asked for within the transaction's timeout"}
		if i := r.executing(); i >= 0 {
			r.blame(&c, i, "no result from ")
		}
		s.proposeAbort(r, c)
		return
	}
	if t.Status == txn.Active {
		s.lockTimedOut(r, "")
		return
	}
	if t.OnePhase {
		return
	}
	c := txn.AbortCmd{Reason: reason.Timeout, Message: "not every participant voted within the transaction's timeout"}
	for i := range r.branches {
		if r.branches[i].vote == Indefinite {
			r.blame(&c, i, "no vote from ")
			break
		}
	}
	s.proposeAbort(r, c)
}

// blame says in an abort what a branch did not answer.
func (r *run) blame(c *txn.AbortCmd, i int, what string) {
	c.Service = r.t.Branches[i].Service
	c.Message = what + c.Service
	if why := r.branches[i].lastError; why != "" {
		c.Message += ": " + why
	}
}

// lockTimedOut aborts a transaction that has waited for its locks too long: for its
// timeout, or for as long as is said.
func (s *Shard) lockTimedOut(r *run, long string) {
	c := txn.AbortCmd{Reason: reason.LockTimeout, Message: "no lock within the transaction's timeout"}
	if need, ids, ok := s.st.Waiting(r.t.ID, 1); ok {
		c.Message = "waited" + long + " for " + need.Key + " (" + need.Mode.String() + ")"
		if len(ids) > 0 {
			c.Message += " behind transaction " + ids[0].String()
		}
		c.Service = lock.Service(need.Key)
	} else if p := r.waitsAt(); p != nil {
		c.Message, c.Service = "waited"+long+" for "+p.key+" ("+p.mode+")", lock.Service(p.key)
		if len(p.behind) > 0 {
			c.Message += " behind transaction " + p.behind[0].String()
		}
	}
	s.proposeAbort(r, c)
}

func (s *Shard) nextWakeUs() int64 {
	if !s.leading {
		return 0
	}
	at := s.forgetUs
	if s.cfg.HashCheckIntervalUs > 0 {
		at = min(at, s.verifyUs)
	}
	if s.cfg.Shards > 1 {
		at = min(at, s.nextResendUs())
	}
	if len(s.timers) > 0 {
		at = min(at, s.timers[0].atUs)
	}
	if len(s.lazy) > 0 && s.mayPropose() { // else the next Apply lets them go
		at = min(at, s.lazySinceUs+s.cfg.AckLingerUs)
	}
	return at
}

// ---- retention

// forget keeps ended transactions within their limits. By count it runs as they
// end, by age with a timer.
func (s *Shard) forget(byAge bool) {
	if s.forgetOut || !s.st.CanForget(s.now.WallMs) {
		return
	}
	var c txn.Forget
	if over := s.st.Done() - s.cfg.RetainedTransactions; over >= s.cfg.ForgetBatch || over > 0 && byAge {
		c.Count = uint32(over)
	}
	if now := s.now.WallMs; byAge && now > s.cfg.RetentionMs {
		if oldest := s.st.OldestDoneMs(); oldest > 0 && oldest <= now-s.cfg.RetentionMs {
			c.EndedBeforeMs = now - s.cfg.RetentionMs
		}
	}
	if c.Count > 0 || c.EndedBeforeMs > 0 {
		s.forgetOut = true
		s.command(txn.AppendForget(s.openEntry(), c))
	}
}

// ---- branches in backoff, by service

// ref names a branch.
type ref struct {
	id     txnid.ID
	branch int
}

// backoffList is a queue: who has waited longest is asked first.
type backoffList struct{ refs []ref }

func (s *Shard) listBackoff(service string, id txnid.ID, i int) {
	b := &s.runs[id].branches[i]
	if b.listed {
		return
	}
	b.listed = true
	l := s.backoff[service]
	if l == nil {
		l = &backoffList{}
		s.backoff[service] = l
	}
	l.refs = append(l.refs, ref{id, i})
}

// wakeService retries a few branches at once, because their service has just
// answered. Each answer wakes the next few, so a recovered service is met by a
// growing trickle, not by a storm.
func (s *Shard) wakeService(service string, n int) {
	l := s.backoff[service]
	for l != nil && n > 0 && len(l.refs) > 0 {
		next := l.refs[0]
		l.refs = l.refs[1:]
		r := s.runs[next.id]
		if r == nil {
			continue
		}
		b := &r.branches[next.branch]
		b.listed = false
		if b.retryAtUs != 0 {
			s.retryNow(r, next.branch)
			n--
		}
	}
	if l != nil && len(l.refs) == 0 {
		delete(s.backoff, service)
	}
}

// ---- results of ended transactions, best effort

type keptResult struct {
	results [][][]byte
	bytes   int
}

type keptResults struct {
	byID  map[txnid.ID]keptResult
	order []txnid.ID
	bytes int
}

func (k *keptResults) keep(id txnid.ID, r *run, limitBytes int) {
	var v keptResult
	for i := range r.branches {
		for _, b := range r.branches[i].results {
			v.bytes += len(b)
		}
	}
	if v.bytes == 0 || v.bytes > limitBytes {
		return
	}
	for i := range r.branches {
		v.results = append(v.results, r.branches[i].results)
	}
	k.byID[id] = v
	k.order = append(k.order, id)
	k.bytes += v.bytes
	for k.bytes > limitBytes || len(k.order) > 2*len(k.byID)+1024 {
		k.drop(k.order[0])
		k.order = k.order[1:]
	}
}

func (k *keptResults) drop(id txnid.ID) {
	k.bytes -= k.byID[id].bytes
	delete(k.byID, id)
}

// ---- small helpers of order and chance

// spread is a fixed pseudo-random number of a branch's attempt (FNV-1a).
func spread(id txnid.ID, branch, attempt uint32) uint64 {
	h := uint64(14695981039346656037)
	mix := func(b byte) { h = (h ^ uint64(b)) * 1099511628211 }
	for _, b := range id {
		mix(b)
	}
	mix(byte(branch))
	mix(byte(attempt))
	mix(byte(attempt >> 8))
	return h
}

func sortedIDs[V any](m map[txnid.ID]V) []txnid.ID {
	ids := make([]txnid.ID, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i].Less(ids[j]) })
	return ids
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
