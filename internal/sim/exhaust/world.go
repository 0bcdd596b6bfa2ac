package exhaust

import (
	"fmt"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// Times of the model. Short waits are retries and late acknowledgements; a
// deadline is far beyond them, and nothing happens by age.
const (
	startUs    = 1_000
	wallMs     = 1_750_000_000_000
	shortUs    = 1_000 // longer waits are deadlines
	deadlineMs = 1_000 // of the first transaction; of the second ten times that
	neverUs    = 1 << 60
)

// world is one state of the model, reached by a sequence of choices.
type world struct {
	cfg   *Config
	left  Config // what is left of the budgets
	ids   []txnid.ID
	named map[txnid.ID]int

	log      []logged
	raftTerm uint64
	leader   int
	nodes    [2]*node
	tip      *txn.State // follows the log at once
	stale    [][]byte   // entries of earlier terms that may still be appended

	calls    []*call // under way: not delivered, or not answered
	rows     [][]row // by transaction and branch
	requests []request
	facts    []fact
	defects  bool // a participant broke the contract
	fresh    bool // this choice is new here; the way to it has been checked before
}

// logged is one committed entry and the term it was appended in.
type logged struct {
	term uint64
	data []byte
}

// node is one instance of the core and its driver.
type node struct {
	sh       *shard.Shard
	nowUs    int64
	applied  int
	claims   bool     // was told to lead, and not yet to follow
	led      bool     // has applied the LEAD of this leadership
	lead     []byte   // that entry
	opened   int      // how many leaderships it has had
	inFlight [][]byte // proposed, in order, neither committed nor lost
	wakeUs   int64
	startUs  []int64 // by transaction: when its timeout began to run here
}

// call is one request to a participant.
type call struct {
	shard.Call
	txn       int
	from      int // node; -1: nobody waits for the answer
	opened    int // leadership of that node
	inNetwork bool
	answered  bool // the answer is on its way back
	answer    shard.AnswerKind
}

// request is what a client sent and waits for.
type request struct {
	token     shard.Token
	kind      requestKind
	txn       int
	node      int  // -1: answered, or lost with its node
	known     bool // when it was sent, the log had a record
	decided   bool // likewise
	cancelled bool
}

// variant of the transaction's body that a submission carries.
func (q *request) variant() byte { return byte(q.kind) }

type requestKind uint8

const (
	submits requestKind = iota
	conflicts
	rollsBack
	gets
)

func coreConfig(cfg *Config, name string) shard.Config {
	c := shard.DefaultConfig()
	c.Node, c.Cluster, c.Incarnation = name, [16]byte{1}, 1
	c.MaxAppendsInFlight, c.OverlapCommands = max(cfg.MaxAppendsInFlight, 1), 0
	c.AckLingerUs = 50
	c.PrepareBackoffUs, c.MaxPrepareBackoffUs = 10, 20
	c.FinishBackoffUs, c.MaxFinishBackoffUs = 10, 20
	c.ForgetCheckIntervalUs, c.HashCheckIntervalUs = neverUs, 0
	return c
}

// newWorld is the first state: node 0 leads, nothing else has happened.
func newWorld(cfg *Config) *world {
	w := &world{cfg: cfg, left: *cfg, named: map[txnid.ID]int{}, tip: txn.New(0, 1)}
	for i := range cfg.Work {
		id := txnid.New(wallMs, [10]byte{9: byte(i + 1)})
		w.ids = append(w.ids, id)
		w.named[id] = i
		w.rows = append(w.rows, make([]row, len(cfg.Work[i].Branches)))
	}
	w.facts = make([]fact, len(cfg.Work))
	w.start(0)
	w.lead(0)
	w.commit()
	return w
}

func (w *world) start(i int) {
	n := &node{sh: shard.New(coreConfig(w.cfg, string(rune('p'+i)))), nowUs: startUs, startUs: make([]int64, len(w.ids))}
	w.nodes[i] = n
}

func (n *node) time() shard.Time { return shard.Time{MonoUs: n.nowUs, WallMs: wallMs} }

// begin encodes a transaction's BEGIN; variant gives it another body.
func (w *world) begin(t int, variant byte) (cmd []byte, digest [32]byte) {
	work := &w.cfg.Work[t]
	b := txn.Begin{ID: w.ids[t], Digest: [32]byte{byte(t + 1), variant}, TimeoutMs: deadlineMs, OnePhase: work.OnePhase}
	for range t {
		b.TimeoutMs *= 10
	}
	var needs []lock.Need
	for _, p := range work.Branches {
		b.Branches = append(b.Branches, txn.BeginBranch{Service: services[p.Service], Generation: 1, Ops: [][]byte{{variant}}})
		needs = append(needs, lock.Need{Key: services[p.Service] + "/k", Mode: p.Mode})
	}
	b.Locks = lock.Fold(needs)
	return txn.AppendBegin(nil, &b), b.Digest
}

// ---- the log

// lead makes a node the leader of the next term.
func (w *world) lead(i int) {
	w.raftTerm++
	w.leader = i
	w.propose(i)
}

// propose lets a node ask for leadership in the present term.
func (w *world) propose(i int) {
	n := w.nodes[i]
	n.claims, n.led, n.lead = true, false, nil
	n.opened++
	w.step(i, &shard.Lead{Term: w.raftTerm})
}

// commit appends the leader's eldest proposal, which then applies it.
func (w *world) commit() {
	n := w.nodes[w.leader]
	entry := n.inFlight[0]
	n.inFlight = n.inFlight[1:]
	w.appendLog(entry)
	w.catchUp(w.leader)
}

func (w *world) appendLog(entry []byte) {
	w.log = append(w.log, logged{w.raftTerm, entry})
	w.judge(entry)
}

func (w *world) catchUp(i int) {
	for w.nodes[i].applied < len(w.log) {
		w.apply(i)
	}
}

// apply lets a node apply the next entry of the log.
func (w *world) apply(i int) {
	n := w.nodes[i]
	e := w.log[n.applied]
	n.applied++
	before := make([]bool, len(w.ids))
	for t, id := range w.ids {
		before[t] = n.sh.State().Get(id) != nil
	}
	if err := n.sh.Apply(n.time(), uint64(n.applied), e.term, e.data); err != nil {
		w.fail("node %d cannot apply entry %d: %v", i, n.applied, err)
	}
	computed, _, _ := txn.Header(e.data)
	own := n.lead != nil && &n.lead[0] == &e.data[0] && computed == e.term
	n.led = n.led || own
	for t, id := range w.ids {
		if own || !before[t] && n.sh.State().Get(id) != nil {
			n.startUs[t] = n.nowUs
		}
	}
	if n.sh.Leading() && !n.led {
		w.fail("node %d leads although its own LEAD is not applied", i)
	}
	if w.fresh {
		w.agree(i)
	}
	w.collect(i)
}

// handOver gives leadership to the other node; the first kept proposals of the
// old leader are in the log of the new one, the rest is lost or comes late.
func (w *world) handOver(kept int, crash bool) {
	from := w.leader
	old := w.nodes[from]
	for _, entry := range old.inFlight[:kept] {
		w.appendLog(entry)
	}
	if w.left.Late > 0 {
		w.stale = append(w.stale, old.inFlight[kept:]...)
	}
	old.inFlight = nil
	to := 1 - from
	if crash {
		w.gone(from)
		w.nodes[from] = nil
	}
	if w.nodes[to] == nil {
		w.start(to)
	}
	behind := len(w.log) - kept
	for w.nodes[to].applied < behind {
		w.apply(to)
	}
	w.lead(to) // before it has applied all that is committed
	w.catchUp(to)
	if w.fresh {
		w.replayed(to)
	}
}

// gone: nobody waits any more for what a dead node asked, and it answers nobody.
func (w *world) gone(i int) {
	for _, c := range w.calls {
		if c.from == i {
			c.from, c.answered = -1, false
		}
	}
	w.sweep()
	for r := range w.requests {
		if w.requests[r].node == i {
			w.requests[r].node = -1
		}
	}
}

// relead: the driver gives up leadership and takes it again in the same term.
// What was proposed is in the log's queue, or lost.
func (w *world) relead(lost lostKind) {
	n := w.nodes[w.leader]
	switch lost {
	case lostAll:
		n.inFlight = nil
	case lostFirst:
		n.inFlight = n.inFlight[1:]
	}
	n.claims = false
	w.step(w.leader, &shard.Follow{})
	w.propose(w.leader)
}

// ---- driving a node

func (w *world) step(i int, ev shard.Event) {
	n := w.nodes[i]
	n.sh.Step(n.time(), ev)
	w.collect(i)
}

// collect acts on Ready as a driver does.
func (w *world) collect(i int) {
	n := w.nodes[i]
	rd := n.sh.Ready()
	for _, entry := range rd.Entries {
		if n.lead == nil {
			n.lead = entry
		} else if !n.led {
			w.fail("node %d proposes before its LEAD is applied", i)
		}
		switch {
		case i == w.leader:
			n.inFlight = append(n.inFlight, entry)
		case w.left.Late > 0:
			w.stale = append(w.stale, entry)
		}
	}
	for c := range rd.Calls {
		w.called(i, &rd.Calls[c])
	}
	for r := range rd.Replies {
		w.replied(i, &rd.Replies[r])
	}
	n.wakeUs = rd.WakeAtUs
	n.sh.Advance()
}

// tick lets the next short timer of the leader fire. Void timers are passed over:
// wakes is how many ticks it took when this choice was new, 0 if it is.
func (w *world) tick(wakes *int8) {
	i := w.leader
	n := w.nodes[i]
	wake := func() {
		n.nowUs = max(n.nowUs, n.wakeUs)
		w.step(i, &shard.Tick{})
	}
	for range *wakes {
		wake()
	}
	if *wakes > 0 {
		return
	}
	for before := n.sh.String(); n.wakeUs > 0 && n.wakeUs <= n.nowUs+shortUs && n.sh.String() == before; *wakes++ {
		wake()
	}
}

// ---- failures of the model

// violation is what the search looks for.
type violation struct{ text string }

func (v violation) Error() string { return v.text }

func (w *world) fail(format string, args ...any) {
	panic(violation{fmt.Sprintf(format, args...)})
}
