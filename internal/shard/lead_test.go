package shard

import (
	"testing"

	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// drive is a driver in small: it keeps what the shard proposes and answers.
type drive struct {
	t       *testing.T
	s       *Shard
	nowUs   int64
	index   uint64
	entries [][]byte
	replies []Reply
}

func newDrive(t *testing.T) *drive { return &drive{t: t, s: New(DefaultConfig())} }

func (d *drive) time() Time { d.nowUs++; return Time{MonoUs: d.nowUs, WallMs: 1_750_000_000_000} }

func (d *drive) act() {
	rd := d.s.Ready()
	for _, e := range rd.Entries {
		d.entries = append(d.entries, append([]byte(nil), e...))
	}
	d.replies = append(d.replies, rd.Replies...)
	d.s.Advance()
}

func (d *drive) step(ev Event) { d.s.Step(d.time(), ev); d.act() }

// apply commits the oldest proposal in a term.
func (d *drive) apply(term uint64) {
	d.t.Helper()
	d.index++
	if err := d.s.Apply(d.time(), d.index, term, d.entries[0]); err != nil {
		d.t.Fatal(err)
	}
	d.entries = d.entries[1:]
	d.act()
}

// A LEAD that came late, of a leadership that was given up, makes no leader; and a
// LEAD that was proposed twice does not pass for another entry of the new leader,
// which would let a read through before its record.
func TestLeadsByItsOwnLeadOnly(t *testing.T) {
	d := newDrive(t)
	d.step(&Lead{Term: 1})
	d.step(&Lead{Term: 1}) // the driver lost patience
	d.apply(1)
	if d.s.Leading() {
		t.Fatal("leads by the LEAD of a leadership that was given up")
	}
	d.apply(1)
	if !d.s.Leading() {
		t.Fatal("does not lead by its own LEAD")
	}
	d.step(&Follow{})
	d.step(&Lead{Term: 1})
	d.step(&Follow{})
	d.apply(1)
	if d.s.Leading() {
		t.Fatal("leads although leadership was lost before its LEAD was applied")
	}
}

// An entry that was computed in an earlier term but appended in this one is no
// entry of this leader: a read does not pass by it.
func TestReadWaitsForAnEntryOfThisLeader(t *testing.T) {
	d := newDrive(t)
	d.step(&Lead{Term: 1})
	d.apply(1)
	id := txnid.New(1_750_000_000_000, [10]byte{1})
	d.step(&Rollback{Token: 1, ID: id})
	late := d.entries[0]
	d.step(&Lead{Term: 2})
	d.entries = d.entries[1:]
	d.apply(2)
	d.step(&Get{Token: 2, ID: id})
	d.replies = nil
	d.entries = append([][]byte{late}, d.entries...)
	d.apply(2)
	if len(d.replies) > 0 {
		t.Fatalf("the read was answered by an entry of another term: %v", d.replies[0].Err)
	}
	d.apply(2)
	if len(d.replies) != 1 || d.s.State().Get(id) != nil {
		t.Fatalf("%d answers; record %v", len(d.replies), d.s.State().Get(id))
	}
}

// A proposal that never reached the log, as the next one tells: who waits for it is not
// answered by the other's record, and asks again.
func TestLostProposal(t *testing.T) {
	d := leads(t, 1)
	d.expect("put", d.ask(1, &PutMember{Token: 1, Member: member("a")}), "")
	d.step(&RemoveMember{Token: 2, ID: "a"})
	d.entries = d.entries[1:]
	d.step(&PutMember{Token: 3, Member: member("b")})
	d.apply(1)
	if len(d.replies) != 2 {
		t.Fatalf("%d answers", len(d.replies))
	}
	for _, r := range d.replies {
		if r.Err == nil || r.Err.Code != reason.OutcomeUnknown {
			t.Errorf("request %d was answered %v by the record of another", r.Token, r.Err)
		}
	}
	d.replies = nil
	d.step(&Lead{Term: 1})
	d.apply(1)
	d.expect("the lead taken anew", d.ask(4, &RemoveMember{Token: 4, ID: "b"}), "")
}

// An entry that the log has twice stands for itself only: a read does not pass by it.
func TestReadWaitsForItsOwnEntry(t *testing.T) {
	d := leads(t, 1)
	d.step(&PutMember{Token: 1, Member: member("a")})
	d.entries = append(d.entries, d.entries[0])
	d.step(&Get{Token: 2, ID: txnid.New(1_750_000_000_000, [10]byte{1})})
	d.apply(1)
	d.expect("put", d.answer(1), "")
	d.apply(1)
	d.expect("by another entry", d.answer(2), "none")
	d.apply(1)
	d.expect("by its own", d.answer(2), reason.NotFound)
}

// While every append is in flight an overdue acknowledgement asks for no Tick: the
// driver would spin until the disk answers.
func TestNoTickForWhatWaitsForAnAppend(t *testing.T) {
	d := newDrive(t)
	d.step(&Lead{Term: 1})
	d.apply(1)
	d.s.cfg.OverlapCommands = 0
	for i := range d.s.cfg.MaxAppendsInFlight {
		d.step(&Get{Token: Token(i + 1), ID: txnid.New(1_750_000_000_000, [10]byte{byte(i)})})
	}
	d.s.lazyAck(txn.Ack{ID: txnid.New(1_750_000_000_000, [10]byte{1}), Fate: txn.FateDone})
	d.nowUs += 2 * d.s.cfg.AckLingerUs
	d.step(&Tick{})
	if wake := d.s.Ready().WakeAtUs; wake <= d.nowUs {
		t.Fatalf("wants a Tick at %d although it had one at %d", wake, d.nowUs)
	}
	d.apply(1)
	if len(d.entries) != d.s.cfg.MaxAppendsInFlight {
		t.Fatalf("the acknowledgement was not proposed when an append was free: %d in flight", len(d.entries))
	}
}

// A small entry waits for the append in flight, and goes when that is applied or when it
// has grown; meanwhile the shard asks for no Tick.
func TestSmallEntryWaits(t *testing.T) {
	d := newDrive(t)
	d.s.cfg.OverlapCommands = 3
	d.step(&Lead{Term: 1})
	d.apply(1)
	ask := func(n int) { d.step(&Rollback{Token: Token(n), ID: txnid.New(1_750_000_000_000, [10]byte{byte(n)})}) }
	ask(1)
	ask(2)
	ask(3)
	if len(d.entries) != 1 {
		t.Fatalf("%d entries in flight, wanted the first alone", len(d.entries))
	}
	d.s.lazyAck(txn.Ack{ID: txnid.New(1_750_000_000_000, [10]byte{9}), Fate: txn.FateDone})
	d.nowUs += 2 * d.s.cfg.AckLingerUs
	d.step(&Tick{})
	if wake := d.s.Ready().WakeAtUs; wake <= d.nowUs {
		t.Fatalf("wants a Tick at %d although it had one at %d", wake, d.nowUs)
	}
	ask(4)
	if len(d.entries) != 2 {
		t.Fatalf("%d entries in flight: one of three commands did not go", len(d.entries))
	}
	ask(5)
	d.apply(1)
	if len(d.entries) != 1 {
		t.Fatalf("%d entries in flight: one left before those before it were applied", len(d.entries))
	}
	d.apply(1)
	if len(d.entries) != 1 || len(d.replies) != 4 {
		t.Fatalf("%d entries in flight, %d answers", len(d.entries), len(d.replies))
	}
	d.apply(1)
	if len(d.entries) != 0 || len(d.replies) != 5 {
		t.Fatalf("%d entries in flight, %d answers", len(d.entries), len(d.replies))
	}
}

// A registry request that was given up is not answered again when leadership goes.
func TestGivenUpRequestIsAnsweredOnce(t *testing.T) {
	d := newDrive(t)
	d.step(&Lead{Term: 1})
	d.apply(1)
	d.step(&PutService{Token: 7, Service: &txn.Service{Name: "a"}})
	d.step(&Cancel{Token: 7, Name: "a"})
	d.step(&Follow{})
	if len(d.replies) != 1 || d.replies[0].Token != 7 {
		t.Fatalf("answers: %+v", d.replies)
	}
}

// A record that is made and forgotten by the same entry still answers its requests.
func TestForgottenInTheEntryThatAnswers(t *testing.T) {
	d := newDrive(t)
	d.s.cfg.RetentionMs, d.s.cfg.MaxAppendsInFlight = 0, 1
	d.step(&Lead{Term: 1})
	d.apply(1)
	old := func(n byte) txnid.ID { return txnid.New(1_749_999_000_000, [10]byte{n}) }
	d.step(&Rollback{Token: 1, ID: old(1)})
	d.apply(1)
	d.step(&Get{Token: 2, ID: old(9)}) // takes the only append
	d.step(&Rollback{Token: 3, ID: old(2)})
	d.nowUs += d.s.cfg.ForgetCheckIntervalUs
	d.step(&Tick{}) // FORGET joins the rollback
	d.apply(1)
	d.replies = nil
	d.apply(1)
	if len(d.replies) != 1 || d.replies[0].View == nil || d.replies[0].View.Txn.Abort == nil {
		t.Fatalf("answers: %+v", d.replies)
	}
	if d.s.State().Done() != 0 {
		t.Fatalf("%d transactions kept", d.s.State().Done())
	}
}

// A step whose wait was given up has its answer: when leadership is lost before its
// record is applied, nobody is answered again.
func TestAnsweredOnce(t *testing.T) {
	d := newDrive(t)
	d.step(&Lead{Term: 1})
	d.apply(1)
	id := txnid.New(1_750_000_000_000, [10]byte{1})
	d.step(&Submit{Token: 1, ID: id, Begin: txn.AppendOpen(nil, &txn.Open{ID: id, TimeoutMs: 1000, IdleMs: 1000}), Wait: WaitNone})
	d.apply(1)
	d.replies = nil
	d.step(&Seal{Token: 2, ID: id})
	d.step(&Cancel{Token: 2, ID: id})
	d.step(&Follow{})
	if len(d.replies) != 1 || d.replies[0].Token != 2 {
		t.Fatalf("answers %+v to one request", d.replies)
	}
}

// A leader may have been deposed without knowing it, and the transaction decided since:
// what it remembers of one that is open it tells only through the log, also to who
// repeats a request.
func TestRepeatsAreAnsweredThroughTheLog(t *testing.T) {
	d := newDrive(t)
	d.step(&Lead{Term: 1})
	d.apply(1)
	id := txnid.New(1_750_000_000_000, [10]byte{1})
	open := &Submit{Token: 1, ID: id, Begin: txn.AppendOpen(nil, &txn.Open{ID: id, TimeoutMs: 1000, IdleMs: 1000}), Wait: WaitNone}
	step := txn.AppendEnlist(nil, &txn.Enlist{ID: id, Step: 1})
	again := *open
	again.Token = 9
	d.step(open)
	d.step(&again)
	d.apply(1)
	if len(d.replies) != 1 || d.replies[0].Token != 1 {
		t.Fatalf("answers %+v by the entry of the first", d.replies)
	}
	d.apply(1)
	if len(d.replies) != 2 || d.replies[1].Token != 9 || d.replies[1].View == nil {
		t.Fatalf("answers %+v", d.replies)
	}
	d.step(&Enlist{Token: 2, ID: id, Step: 1, Enlist: step})
	d.apply(1)
	for i, repeat := range []func(Token) Event{
		func(token Token) Event { again := *open; again.Token = token; return &again },
		func(token Token) Event { return &Enlist{Token: token, ID: id, Step: 1, Enlist: step} },
		func(token Token) Event { return &Heartbeat{Token: token, ID: id} },
	} {
		d.replies = nil
		d.step(repeat(3))
		if len(d.replies) > 0 {
			t.Fatalf("repeat %d: answers %+v without an entry", i, d.replies)
		}
		d.step(&Cancel{Token: 3, ID: id})
		if len(d.replies) != 1 || d.replies[0].Err == nil || d.replies[0].View != nil {
			t.Fatalf("repeat %d: answers %+v to who gives up", i, d.replies)
		}
		d.apply(1)
		d.step(repeat(4))
		d.apply(1)
		if len(d.replies) != 2 || d.replies[1].Token != 4 || d.replies[1].View == nil {
			t.Fatalf("repeat %d: answers %+v", i, d.replies)
		}
	}
}

// A leader that was deposed while it slept may get the new leader's snapshot before it
// is told: whoever waits for an answer of it gets one.
func TestRestoreAnswersWhoWaits(t *testing.T) {
	d := newDrive(t)
	d.step(&Lead{Term: 1})
	d.apply(1)
	var snapshot []byte
	if err := d.s.State().Capture().Write(func(b []byte) error { snapshot = append(snapshot, b...); return nil }); err != nil {
		t.Fatal(err)
	}
	id := txnid.New(1_750_000_000_000, [10]byte{1})
	d.step(&Rollback{Token: 1, ID: id})
	d.step(&Get{Token: 2, ID: id})
	if err := d.s.Restore(snapshot); err != nil {
		t.Fatal(err)
	}
	d.act()
	if len(d.replies) != 2 || d.s.Leading() {
		t.Fatalf("leads %v, answers %+v", d.s.Leading(), d.replies)
	}
}

// What another leader wrote says that this one was deposed, before its log does: it is
// not acted on.
func TestLaterTermDeposes(t *testing.T) {
	d := newDrive(t)
	d.step(&Lead{Term: 1})
	d.apply(1)
	id := txnid.New(1_750_000_000_000, [10]byte{1})
	open := txn.AppendOpen(nil, &txn.Open{ID: id, TimeoutMs: 1000, IdleMs: 1000})
	d.step(&Submit{Token: 1, ID: id, Begin: open, Wait: WaitNone})
	other := append(make([]byte, txn.HeaderBytes), open...)
	txn.PutHeader(other, 2, 1_750_000_000_000)
	d.entries = append([][]byte{other}, d.entries...)
	d.apply(2)
	if d.s.Leading() || len(d.replies) != 1 || d.replies[0].View != nil {
		t.Fatalf("leads %v, answers %+v", d.s.Leading(), d.replies)
	}
}
