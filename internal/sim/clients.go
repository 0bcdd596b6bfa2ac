package sim

import (
	"crypto/sha256"
	"encoding/binary"
	"sort"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

const probePayload = `"probe"`

// clients are all users of the coordinator: they submit, ask, roll back, give up
// waiting, repeat themselves at once or much later, and register services.
type clients struct {
	w         *world
	works     []*work
	byDigest  map[[32]byte]*body
	waiting   map[shard.Token]*request
	nextToken shard.Token
	budget    int
	doneUs    int64 // when the budget was spent
	graceUs   int64 // late repeats come until this long after
}

// work is what a client wants done under one id.
type work struct {
	id      txnid.ID
	bodies  []*body // the first is the client's own; others reuse the id by mistake
	retries int
}

// body is one request's content.
type body struct {
	digest    [32]byte
	timeoutMs uint32
	ops       []operation
}

type operation struct {
	service string
	payload string
	locks   []declared
}

// declared is a lock as a client declares it; the key names its service first.
type declared struct {
	key  string
	excl bool
}

// locksAt is what the body uses at a service: without declared keys, all of it.
func (b *body) locksAt(service string) (locks []declared) {
	for i := range b.ops {
		op := &b.ops[i]
		switch {
		case op.service != service:
		case len(op.locks) == 0:
			locks = append(locks, declared{service, true})
		default:
			locks = append(locks, op.locks...)
		}
	}
	return locks
}

type requestKind uint8

const (
	reqSubmit requestKind = iota + 1
	reqGet
	reqRollback
	reqResolve
	reqPut
	reqDelete
)

// request is one question that waits for its answer.
type request struct {
	token     shard.Token
	kind      requestKind
	home      *home
	work      *work
	body      *body
	id        txnid.ID
	name      string
	wait      shard.WaitMode
	proposals uint64 // made by the process before it was asked
	begun     bool   // a record was durable before it was asked
	decided   bool   // and the decision
	givenUp   bool
	onAnswer  func(*shard.Reply)
}

func (c *clients) start(w *world) {
	c.w = w
	c.byDigest = map[[32]byte]*body{}
	c.waiting = map[shard.Token]*request{}
	c.budget = w.opt.Transactions
	c.graceUs = w.upTo(60_000_000)
	for _, p := range w.parts {
		c.register(p)
	}
	for range w.opt.Clients {
		c.next()
	}
}

// register puts a service until it is there.
func (c *clients) register(p *participant) {
	h := c.w.homes[0]
	if h.sh != nil {
		c.put(h, p)
	}
	c.w.at(c.w.around(100_000), func() {
		if h.registry[p.name] == nil && !c.w.calm {
			c.register(p)
		}
	})
}

func (c *clients) next() { c.w.at(c.w.around(c.w.opt.ThinkUs), c.act) }

func (c *clients) finished() bool {
	return c.budget <= 0 && c.w.nowUs > c.doneUs+c.graceUs
}

// act is one client's next move.
func (c *clients) act() {
	w := c.w
	if w.calm || c.budget <= 0 {
		return
	}
	defer c.next()
	h := w.homes[0]
	if h.sh == nil {
		return
	}
	switch {
	case len(c.works) > 0 && w.chance(w.opt.GetPct):
		c.get(h, c.some())
	case len(c.works) > 0 && w.chance(w.opt.RollbackPct):
		c.rollback(h, c.some())
	case len(c.works) > 0 && w.chance(w.opt.RetryPct):
		k := c.some()
		c.submit(h, k, k.bodies[0])
	case len(c.works) > 0 && w.chance(w.opt.ConflictPct):
		k := c.some()
		b := c.newBody()
		k.bodies = append(k.bodies, b)
		c.submit(h, k, b)
	default:
		c.spend()
		c.newWork(h)
	}
}

func (c *clients) spend() {
	if c.budget--; c.budget == 0 {
		c.doneUs = c.w.nowUs
	}
}

// some picks a known id, mostly a fresh one.
func (c *clients) some() *work {
	n := len(c.works)
	if c.w.rng.IntN(3) > 0 {
		return c.works[n-1-c.w.rng.IntN(min(n, 4))]
	}
	return c.works[c.w.rng.IntN(n)]
}

func (c *clients) newWork(h *home) {
	w := c.w
	offset := int64(0)
	switch {
	case w.chance(w.opt.FuturePct):
		offset = w.upTo(90_000)
	case w.chance(w.opt.PastPct):
		offset = -w.upTo(120_000)
	}
	k := &work{id: w.newID(offset)}
	k.bodies = []*body{c.newBody()}
	c.works = append(c.works, k)
	if w.chance(w.opt.RacePct) { // a rollback that races its own submission
		first := w.rng.IntN(2) == 0
		if first {
			c.rollback(h, k)
		}
		c.later(w.upTo(w.opt.CommitDelayUs+1000), h, func() { c.submit(h, k, k.bodies[0]) })
		if !first {
			c.later(w.upTo(w.opt.CommitDelayUs+1000), h, func() { c.rollback(h, k) })
		}
		return
	}
	c.submit(h, k, k.bodies[0])
}

// later does something if the process is there by then.
func (c *clients) later(delayUs int64, h *home, do func()) {
	c.w.at(delayUs, func() {
		if h.sh != nil && !c.w.calm {
			do()
		}
	})
}

func (c *clients) newBody() *body {
	w := c.w
	b := &body{timeoutMs: 1 + uint32(w.upTo(int64(w.opt.TimeoutMs)))}
	for n := 1 + w.rng.IntN(4); n > 0; n-- {
		p := w.parts[w.rng.IntN(len(w.parts))]
		op := operation{service: p.name, payload: `"work"`}
		if !w.chance(w.opt.UndeclaredPct) {
			for l := 1 + w.rng.IntN(3); l > 0; l-- {
				op.locks = append(op.locks, declared{p.name + "/" + c.key(), w.rng.IntN(3) > 0})
			}
		}
		b.ops = append(b.ops, op)
	}
	if w.rng.IntN(4) == 0 {
		b.ops = b.ops[:1] // more of one branch
	}
	c.seal(b)
	return b
}

func (c *clients) key() string {
	n := c.w.rng.IntN(c.w.opt.Keys)
	k := string(rune('a' + n))
	if c.w.opt.Hierarchical {
		switch c.w.rng.IntN(3) {
		case 0:
			return string(rune('a' + n%3))
		case 1:
			return string(rune('a'+n%3)) + "/" + k
		}
		return string(rune('a'+n%3)) + "/" + k + "/" + string(rune('x'+c.w.rng.IntN(2)))
	}
	return k
}

// seal gives the body its digest. Two bodies are never the same request.
func (c *clients) seal(b *body) {
	var salt [8]byte
	binary.LittleEndian.PutUint64(salt[:], c.w.rng.Uint64())
	b.digest = sha256.Sum256(salt[:])
	c.byDigest[b.digest] = b
}

// ---- requests

func (c *clients) ask(h *home, q *request) *request {
	c.nextToken++
	q.token, q.home, q.proposals = c.nextToken, h, h.proposals
	if !q.id.IsZero() {
		q.begun = h.log.oracle.Get(q.id) != nil
		q.decided = h.audit.rec(q.id).decision != undecided
	}
	c.waiting[q.token] = q
	if c.w.chance(c.w.opt.CancelPct) && !c.w.calm {
		c.w.at(c.w.upTo(int64(c.w.opt.TimeoutMs)*1500), func() { c.giveUp(q) })
	}
	return q
}

func (c *clients) giveUp(q *request) {
	if c.waiting[q.token] != q {
		return
	}
	c.w.reached.hit(WaitGivenUp)
	c.w.trace("give up", q.name, q.id, uint64(q.token))
	q.givenUp = true
	q.home.cancelled = append(q.home.cancelled, q.token)
	q.home.step(&shard.Cancel{Token: q.token, ID: q.id, Name: q.name})
}

func (c *clients) submit(h *home, k *work, b *body) *request {
	begin := c.begin(h, k.id, b)
	if begin == nil {
		return nil // the driver's registry does not know the service, or it drains
	}
	wait := shard.WaitMode(1 + c.w.rng.IntN(3))
	q := c.ask(h, &request{kind: reqSubmit, work: k, body: b, id: k.id, wait: wait})
	c.w.trace("submit", "", k.id, uint64(q.token))
	h.step(&shard.Submit{Token: q.token, ID: k.id, Digest: b.digest, Begin: txn.AppendBegin(nil, begin), Wait: wait})
	return q
}

// begin computes the BEGIN as the node does, from its copy of the registry.
func (c *clients) begin(h *home, id txnid.ID, b *body) *txn.Begin {
	v := &txn.Begin{ID: id, Digest: b.digest, TimeoutMs: b.timeoutMs}
	var needs []lock.Need
	var only *txn.Service
	for i := range b.ops {
		op := &b.ops[i]
		s := h.registry[op.service]
		if s == nil || s.Draining && c.w.rng.IntN(2) == 0 {
			return nil
		}
		only = s
		at := -1
		for j := range v.Branches {
			if v.Branches[j].Service == s.Name {
				at = j
			}
		}
		if at < 0 {
			at = len(v.Branches)
			v.Branches = append(v.Branches, txn.BeginBranch{Service: s.Name, Generation: s.Generation, Isolated: s.Isolated})
		}
		v.Branches[at].Ops = append(v.Branches[at].Ops, []byte(op.payload))
		switch {
		case s.Isolated:
		case len(op.locks) == 0:
			needs = append(needs, lock.Need{Key: s.Name, Mode: lock.X})
		default:
			for _, l := range op.locks {
				mode := lock.S
				if l.excl {
					mode = lock.X
				}
				needs = append(needs, lock.Need{Key: l.key, Mode: mode})
			}
		}
	}
	v.OnePhase = len(v.Branches) == 1 && only.Capabilities&txn.OnePhase != 0
	v.Locks = lock.Fold(needs)
	return v
}

func (c *clients) get(h *home, k *work) {
	q := c.ask(h, &request{kind: reqGet, work: k, id: k.id})
	c.w.trace("get", "", k.id, uint64(q.token))
	h.step(&shard.Get{Token: q.token, ID: k.id})
}

func (c *clients) rollback(h *home, k *work) {
	q := c.ask(h, &request{kind: reqRollback, work: k, id: k.id})
	c.w.trace("rollback", "", k.id, uint64(q.token))
	h.step(&shard.Rollback{Token: q.token, ID: k.id})
}

func (c *clients) resolve(h *home, id txnid.ID) {
	q := c.ask(h, &request{kind: reqResolve, id: id})
	c.w.trace("resolve", "", id, uint64(q.token))
	h.step(&shard.Resolve{Token: q.token, ID: id, Note: "looked at"})
}

func (c *clients) put(h *home, p *participant) {
	q := c.ask(h, &request{kind: reqPut, name: p.name})
	c.w.trace("put", p.name, txnid.ID{}, uint64(q.token))
	h.step(&shard.PutService{Token: q.token, Service: &txn.Service{Name: p.name, PrepareURL: "p", CommitURL: "c", RollbackURL: "r", Capabilities: p.caps, Isolated: p.iso, MaxInFlight: 1, PrepareTimeoutMs: 1000, FinishTimeoutMs: 1000}})
}

func (c *clients) remove(h *home, name string) *request {
	q := c.ask(h, &request{kind: reqDelete, name: name})
	c.w.trace("delete", name, txnid.ID{}, uint64(q.token))
	h.step(&shard.DeleteService{Token: q.token, Name: name})
	return q
}

// ---- answers

// waits reports whether the request is still unanswered.
func (c *clients) waits(token shard.Token) bool { return c.waiting[token] != nil }

// open counts the requests that wait for an answer of this shard, and those among them
// that end transactions.
func (c *clients) open(h *home) (n, ends int) {
	for _, q := range c.waiting { // order does not matter: a count
		if q.home == h {
			n++
			if q.kind == reqRollback {
				ends++
			}
		}
	}
	return n, ends
}

func (c *clients) reply(h *home, rep *shard.Reply) {
	q := c.waiting[rep.Token]
	if q == nil || q.home != h {
		c.w.fail("a reply for request %d, which does not wait", rep.Token)
	}
	delete(c.waiting, rep.Token)
	what := "told"
	if rep.Err != nil {
		what += " " + string(rep.Err.Code)
	} else if rep.View != nil {
		what += " " + rep.View.Txn.Status.String()
	}
	c.w.trace(what, q.name, q.id, uint64(rep.Token))
	h.audit.told(q, rep)
	if q.onAnswer != nil {
		q.onAnswer(rep)
	}
	if q.kind != reqSubmit || rep.Err == nil && !rep.View.Txn.Status.Decided() {
		return
	}
	switch {
	case rep.Err == nil:
		if c.w.chance(c.w.opt.RetryPct) && c.w.rng.IntN(4) == 0 {
			c.repeat(q, c.w.upTo(90_000_000)) // says it again, maybe when it is long forgotten
		}
	case rep.Err.Code == reason.OutcomeUnknown, rep.Err.Code == reason.NotLeader, rep.Err.Code == reason.Overloaded, rep.Err.Code == reason.UnknownService:
		c.repeat(q, c.w.around(300_000))
	}
}

// lost: the process died, its clients lose their connections.
func (c *clients) lost(h *home) {
	var gone []*request
	for _, q := range c.waiting { // sorted below
		if q.home == h {
			gone = append(gone, q)
		}
	}
	sort.Slice(gone, func(i, j int) bool { return gone[i].token < gone[j].token })
	for _, q := range gone {
		delete(c.waiting, q.token)
		if q.kind == reqSubmit {
			c.repeat(q, c.w.around(1_000_000))
		}
	}
}

// repeat sends the same submission again, or asks for it.
func (c *clients) repeat(q *request, delayUs int64) {
	if q.work.retries++; q.work.retries > 6 || c.w.rng.IntN(5) == 0 {
		return
	}
	c.later(delayUs, q.home, func() {
		if c.w.rng.IntN(4) == 0 {
			c.get(q.home, q.work)
		} else {
			c.submit(q.home, q.work, q.body)
		}
	})
}
