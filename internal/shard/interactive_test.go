package shard

import (
	"bytes"
	"strconv"
	"strings"
	"testing"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// leads is a drive whose shard leads, one of several.
func leads(t *testing.T, shards uint32) *drive {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Shards, cfg.OverlapCommands = shards, 0
	d := &drive{t: t, s: New(cfg)}
	d.step(&Lead{Term: 1})
	d.apply(1)
	return d
}

// all applies whatever is proposed.
func (d *drive) all() {
	d.t.Helper()
	for len(d.entries) > 0 {
		d.apply(1)
	}
}

func (d *drive) open(token Token, id txnid.ID, timeoutMs uint32) {
	d.t.Helper()
	d.step(&Submit{Token: token, ID: id, Begin: txn.AppendOpen(nil, &txn.Open{ID: id, TimeoutMs: timeoutMs, IdleMs: 600_000}), Wait: WaitNone})
	d.all()
}

// enlist asks for a step; the token is its number unless it is said.
func (d *drive) enlist(token Token, c *txn.Enlist) {
	c.Digest[0] = byte(c.Step)
	d.step(&Enlist{Token: token, ID: c.ID, Step: c.Step, Digest: c.Digest, Enlist: txn.AppendEnlist(nil, c), Locks: c.Locks})
}

func (d *drive) answered(token Token) *Reply {
	for i := range d.replies {
		if d.replies[i].Token == token {
			return &d.replies[i]
		}
	}
	return nil
}

func homedID(shard, shards uint32, n byte) txnid.ID {
	return txnid.New(1_750_000_000_000+uint64(n), [10]byte{9: n}).At(shard, shards)
}

func exclusive(keys ...string) []lock.Need {
	var needs []lock.Need
	for _, key := range keys {
		needs = append(needs, lock.Need{Key: key, Mode: lock.X})
	}
	return lock.Fold(needs)
}

// sealing has one operation enlisted, with a lock at shard 1, and its commit asked for: the
// SEAL is not applied yet.
func (d *drive) sealing(id txnid.ID) {
	d.t.Helper()
	d.enlist(2, &txn.Enlist{
		ID: id, Step: 1, Branches: []txn.EnlistBranch{{Service: "s", Generation: 1}}, Ops: []txn.EnlistOp{{Payload: []byte(`1`)}},
		Foreign: []txn.LockPart{{Shard: 1, Needs: exclusive("s/a")}},
	})
	d.all()
	d.step(&Message{Kind: MessageGranted, From: 1, ID: id, Request: 1, Token: 1})
	d.all()
	d.step(&Seal{Token: 3, ID: id, Wait: WaitDecided})
}

// Steps that wait behind one that turns out a repetition are taken as well.
func TestHeldStepsFollowARepetition(t *testing.T) {
	d := leads(t, 1)
	holder, id := homedID(0, 1, 1), homedID(0, 1, 2)
	d.open(1, holder, 600_000)
	d.enlist(2, &txn.Enlist{ID: holder, Step: 1, Locks: exclusive("s/a")})
	d.all()
	d.open(3, id, 600_000)
	d.enlist(11, &txn.Enlist{ID: id, Step: 1, Locks: exclusive("s/a")})
	d.all()
	d.enlist(12, &txn.Enlist{ID: id, Step: 2, Locks: exclusive("s/b")})
	d.enlist(13, &txn.Enlist{ID: id, Step: 2, Locks: exclusive("s/b")}) // its connection broke
	d.enlist(14, &txn.Enlist{ID: id, Step: 2, Locks: exclusive("s/b")}) // and again
	d.enlist(15, &txn.Enlist{ID: id, Step: 3, Locks: exclusive("s/c")})
	d.step(&Rollback{Token: 20, ID: holder})
	d.all()
	for token := Token(11); token <= 15; token++ {
		if d.answered(token) == nil {
			t.Errorf("request %d has no answer although nobody is in the way; %d steps are held", token, len(d.s.runs[id].held))
		}
	}
}

// A commit that was asked for before an elder's wish came is no victim's, whatever the wish
// is called.
func TestSealedIsNoVictimOfACycle(t *testing.T) {
	for _, cycle := range []bool{false, true} {
		d := leads(t, 2)
		id := homedID(0, 2, 2)
		d.open(1, id, 600_000)
		d.sealing(id)
		d.step(&Message{Kind: MessageGiveWay, From: 1, ID: id, Request: 1, Text: "an elder needs it", Waiting: cycle})
		d.all()
		if r := d.s.State().Get(id); r.Status != txn.Preparing {
			t.Errorf("cycle %t: it is %s after its commit was asked: %+v", cycle, r.Status, r.Abort)
		}
	}
}

// The timeout ends phase 1 also if it passed while an abort that came too late was on its
// way.
func TestTimeoutDuringAnAbortThatIsIgnored(t *testing.T) {
	d := leads(t, 2)
	id := homedID(0, 2, 2)
	d.open(1, id, 1000)
	d.sealing(id)
	d.step(&Message{Kind: MessageGiveWay, From: 1, ID: id, Request: 1, Text: "an elder needs it"})
	d.nowUs += 1_100_000
	d.step(&Tick{})
	d.all()
	for range 100 { // nobody votes
		d.nowUs += 1_100_000
		d.step(&Tick{})
		d.all()
	}
	if r := d.s.State().Get(id); !r.Status.Decided() || r.Abort == nil || r.Abort.Reason != reason.Timeout {
		t.Errorf("it is %s long after its timeout", r.Status)
	}
}

// A participant that refuses a one-phase prepare as lost has refused it.
func TestOnePhaseRefusedAsLost(t *testing.T) {
	d := leads(t, 1)
	id := homedID(0, 1, 1)
	b := txn.Begin{ID: id, TimeoutMs: 1000, OnePhase: true, Branches: []txn.BeginBranch{{Service: "s", Generation: 1, Ops: [][]byte{[]byte(`1`)}}}, Locks: exclusive("s/a")}
	d.step(&Submit{Token: 1, ID: id, Begin: txn.AppendBegin(nil, &b), Locks: b.Locks, Wait: WaitDecided})
	d.all()
	for range 20 {
		r := d.s.runs[id]
		if r == nil {
			break
		}
		d.step(&CallDone{ID: id, Phase: PhasePrepare, Attempt: r.branches[0].attempt, Term: 1, Answer: Lost, Reason: "EXECUTION_LOST: gone"})
		d.all()
	}
	if r := d.s.State().Get(id); !r.Status.Decided() {
		t.Errorf("it is %s after %d refusals", r.Status, d.s.runs[id].branches[0].attempt)
	}
}

// What is asked for in vain at another shard leaves nothing in the leader's memory.
func TestClaimingIsForgotten(t *testing.T) {
	d := leads(t, 2)
	id, other := homedID(1, 2, 2), homedID(1, 2, 3)
	ask := func(id txnid.ID, request uint32, key string) {
		d.step(&Message{Kind: MessageAsk, From: 1, ID: id, Request: request, AgeMs: id.UnixMs(), Needs: exclusive(key)})
	}
	ask(id, 1, "s/a")
	ask(other, 1, "s/a") // waits: what is given back is needed at once
	d.all()
	d.step(&Message{Kind: MessageRelease, From: 1, ID: id, Waiting: true, Token: 5})
	ask(id, 2, "s/b") // overtaken by it
	d.all()
	d.step(&Message{Kind: MessageRelease, From: 1, ID: id, Token: 5})
	d.all()
	if c := d.s.State().ForeignClaim(id); c != nil {
		t.Fatalf("claim %+v", c)
	}
	if n := len(d.s.foreign.claiming); n != 0 {
		t.Errorf("%d requests are remembered as being on their way", n)
	}
}

// Nobody is made to give way to an elder that waits no more.
func TestNobodyGivesWayToWhoIsGone(t *testing.T) {
	d := leads(t, 2)
	elder, younger := homedID(0, 2, 1), homedID(1, 2, 2)
	d.step(&Message{Kind: MessageAsk, From: 1, ID: younger, Request: 1, AgeMs: 1_750_000_000_500, Needs: exclusive("s/a")})
	d.all()
	b := txn.Begin{ID: elder, TimeoutMs: 1000, Branches: []txn.BeginBranch{{Service: "s", Generation: 1, Ops: [][]byte{[]byte(`1`)}}}, Locks: exclusive("s/a")}
	d.step(&Submit{Token: 1, ID: elder, Begin: txn.AppendBegin(nil, &b), Locks: b.Locks, Wait: WaitDecided})
	d.all()
	d.step(&Rollback{Token: 2, ID: elder})
	d.all()
	for range 5 {
		d.nowUs += 250_000
		d.s.Step(d.time(), &Tick{})
		for _, m := range d.s.Ready().Messages {
			if m.Kind == MessageGiveWay {
				t.Fatalf("%s is asked to give way: %s", m.ID, m.Text)
			}
		}
		d.act()
	}
}

// A step that comes while the SEAL is on its way is refused by it, not by the decision.
func TestStepBehindASeal(t *testing.T) {
	d := leads(t, 2)
	id := homedID(0, 2, 2)
	d.open(1, id, 600_000)
	d.sealing(id)
	d.enlist(5, &txn.Enlist{ID: id, Step: 2, Locks: exclusive("s/b")})
	d.all()
	if r := d.s.State().Get(id); r.Status != txn.Preparing {
		t.Fatalf("it is %s", r.Status)
	}
	if r := d.answered(5); r == nil || r.Err == nil || r.Err.Code != reason.CommitAsked {
		t.Errorf("answered %+v", r)
	}
}

// Locks without an operation are taken by the registration that they were computed from: a
// service that is being removed takes none, whichever record is on its way, so that it is
// not registered anew, with other partitions, while somebody holds a key by the old ones.
func TestLocksOfARemovedService(t *testing.T) {
	register := func(d *drive, partitions uint32) {
		d.step(&PutService{Token: 90, Service: &txn.Service{
			Name: "s", PrepareURL: "http://s/p", CommitURL: "http://s/c", RollbackURL: "http://s/r",
			MaxInFlight: 1, PrepareTimeoutMs: 1000, FinishTimeoutMs: 1000, Partitions: partitions,
		}})
		d.all()
	}
	lockOnly := func(d *drive, token Token, id txnid.ID, generation uint64) {
		c := &txn.Enlist{ID: id, Step: uint32(token), Locks: exclusive("s/a")}
		c.Digest[0] = byte(c.Step)
		d.step(&Enlist{
			Token: token, ID: id, Step: c.Step, Digest: c.Digest, Enlist: txn.AppendEnlist(nil, c), Locks: c.Locks,
			LocksOf: []Registration{{Service: "s", Generation: generation}},
		})
	}
	wants := func(d *drive, token Token, code reason.Code) {
		t.Helper()
		if r := d.answered(token); r == nil || code == "" && r.Err != nil || code != "" && (r.Err == nil || r.Err.Code != code) {
			t.Errorf("request %d: got %+v, want %q", token, r, code)
		}
	}
	id, other := homedID(0, 1, 1), homedID(0, 1, 2)
	for name, drains := range map[string]func(d *drive){
		"the registry's shard": func(d *drive) { d.step(&DeleteService{Token: 10, Name: "s"}) },
		"another shard":        func(d *drive) { d.step(&Message{Kind: MessageDrain, From: 0, Service: "s", Generation: 1}) },
	} {
		t.Run(name, func(t *testing.T) {
			d := leads(t, 1)
			register(d, 1)
			d.open(1, id, 600_000)
			d.open(2, other, 600_000)
			lockOnly(d, 3, id, 1) // before: removal waits for it
			drains(d)
			lockOnly(d, 4, other, 1) // on its way
			d.all()
			wants(d, 3, "")
			wants(d, 4, reason.ServiceDraining)
			lockOnly(d, 5, other, 1) // and since
			d.all()
			wants(d, 5, reason.ServiceDraining)
			if d.s.st.Service("s") == nil || !d.s.inUse("s") {
				t.Error("it is removed, and its lock is held")
			}
		})
	}
	d := leads(t, 1)
	register(d, 1)
	d.open(1, id, 600_000)
	d.step(&DeleteService{Token: 10, Name: "s"})
	d.all()
	register(d, 2)
	lockOnly(d, 3, id, 1)
	d.all()
	wants(d, 3, reason.UnknownService)
	lockOnly(d, 4, id, 2)
	d.all()
	wants(d, 4, "")
}

// calls collects the calls of one event.
func (d *drive) calls(ev Event) []Call {
	d.s.Step(d.time(), ev)
	calls := append([]Call(nil), d.s.Ready().Calls...)
	d.act()
	return calls
}

// allCalls applies whatever is proposed and returns the calls.
func (d *drive) allCalls(term uint64) (calls []Call) {
	for len(d.entries) > 0 {
		d.index++
		if err := d.s.Apply(d.time(), d.index, term, d.entries[0]); err != nil {
			d.t.Fatal(err)
		}
		d.entries = d.entries[1:]
		calls = append(calls, d.s.Ready().Calls...)
		d.act()
	}
	return calls
}

// A leadership that is given up and taken again in the same term (an append failed, a
// transfer of the lead came to nothing) must not take the answer to a call of before for
// the answer to one of its own, which is about another operation.
func TestAnswerOfAnEarlierLeadershipInTheSameTerm(t *testing.T) {
	d := leads(t, 1)
	id := homedID(0, 1, 1)
	d.open(1, id, 600_000)
	result := func(s string) []byte { return []byte(s) }
	// Step 1 has two reads, both in one call; step 2 another one, which the participant is slow with.
	d.enlist(2, &txn.Enlist{
		ID: id, Step: 1, Branches: []txn.EnlistBranch{{Service: "s", Generation: 1}},
		Ops:   []txn.EnlistOp{{Payload: []byte(`"read a"`), Now: true}, {Payload: []byte(`"read b"`), Now: true}},
		Locks: exclusive("s/a", "s/b"),
	})
	first := d.allCalls(1)
	if len(first) != 1 || len(first[0].Operations) != 2 {
		t.Fatalf("%+v", first)
	}
	d.step(&CallDone{ID: id, Phase: PhaseExecute, Attempt: first[0].Attempt, Term: 1, Answer: Executed, Results: [][]byte{result("a"), result("b")}, Execution: "x"})
	if r := d.answered(2); r == nil || r.Err != nil {
		t.Fatalf("step 1: %+v", r)
	}
	d.enlist(3, &txn.Enlist{
		ID: id, Step: 2, Branches: []txn.EnlistBranch{{Service: "s", Generation: 1}},
		Ops: []txn.EnlistOp{{Payload: []byte(`"read c"`), Now: true}}, Locks: exclusive("s/c"),
	})
	late := d.allCalls(1)
	if len(late) != 1 || late[0].First != 2 {
		t.Fatalf("%+v", late)
	}

	// runner.proposalFailed: Follow, then Lead in the same term.
	d.step(&Follow{})
	d.step(&Lead{Term: 1})
	again := d.allCalls(1)
	if !d.s.Leading() || len(again) != 1 || again[0].First != 0 || len(again[0].Operations) != 1 {
		t.Fatalf("%+v", again)
	}
	again = d.calls(&CallDone{ID: id, Phase: PhaseExecute, Attempt: again[0].Attempt, Term: 1, Answer: Executed, Results: [][]byte{result("a")}, Execution: "x"})
	if len(again) != 1 || again[0].First != 1 {
		t.Fatalf("%+v", again)
	}
	// The answer to the slow call of before arrives: it is about operation 3, "read c".
	third := d.calls(&CallDone{ID: id, Phase: PhaseExecute, Attempt: late[0].Attempt, Term: 1, Answer: Executed, Results: [][]byte{result("c")}, Execution: "x"})
	// And then that to the call that is under way.
	d.calls(&CallDone{ID: id, Phase: PhaseExecute, Attempt: again[0].Attempt, Term: 1, Answer: Executed, Results: [][]byte{result("b")}, Execution: "x"})
	for _, c := range third {
		d.calls(&CallDone{ID: id, Phase: PhaseExecute, Attempt: c.Attempt, Term: 1, Answer: Executed, Results: [][]byte{result("c")}, Execution: "x"})
	}
	// The client repeats step 1, as it is told to when leadership changes.
	d.enlist(4, &txn.Enlist{
		ID: id, Step: 1, Branches: []txn.EnlistBranch{{Service: "s", Generation: 1}},
		Ops:   []txn.EnlistOp{{Payload: []byte(`"read a"`), Now: true}, {Payload: []byte(`"read b"`), Now: true}},
		Locks: exclusive("s/a", "s/b"),
	})
	d.all()
	r := d.answered(4)
	if r == nil || r.View == nil {
		t.Fatalf("step 1 again: %+v", r)
	}
	if got := string(r.View.StepResults[1]); got != "b" {
		t.Errorf("the read of b returns %q, which is what the read of c returned", got)
	}
}

// Who gave back its locks and waits for them again asks what has become of the holder, as
// whoever began to wait does: the holder's release may be lost with its sender.
func TestRestartedWaiterInquires(t *testing.T) {
	d := leads(t, 2)
	id, elder := homedID(0, 2, 2), homedID(1, 2, 1)
	b := txn.Begin{
		ID: id, TimeoutMs: 600_000, Branches: []txn.BeginBranch{{Service: "s", Generation: 1, Ops: [][]byte{[]byte(`1`)}}}, Locks: exclusive("s/a"),
		Foreign: []txn.LockPart{{Shard: 1, Needs: exclusive("s/b")}},
	}
	d.step(&Submit{Token: 1, ID: id, Begin: txn.AppendBegin(nil, &b), Locks: b.Locks, Wait: WaitDecided})
	d.all() // it has s/a, and waits for s/b at shard 1
	d.step(&Message{Kind: MessageAsk, From: 1, ID: elder, Request: 1, AgeMs: 1, Needs: exclusive("s/a")})
	d.all()
	if c := d.s.State().ForeignClaim(elder); c == nil || !c.Granted {
		t.Fatalf("the elder has it not: %+v", c)
	}
	if _, _, waits := d.s.State().Waiting(id, 1); !waits {
		t.Fatal("it does not wait")
	}
	// The elder ends, and its home's leader dies with the release.
	inquired := 0
	for range 10 {
		d.nowUs += 250_000
		d.s.Step(d.time(), &Tick{})
		for _, m := range d.s.Ready().Messages {
			if m.Kind == MessageInquire && m.ID == elder {
				inquired++
			}
		}
		d.act()
	}
	if inquired == 0 {
		t.Error("in 2.5 s nobody asks what has become of the holder")
	}
}

// An execute asks for no more operations than a participant takes in one call (the SDK's
// default is 64), however many steps were granted while the call before was under way.
func TestExecuteOfManySteps(t *testing.T) {
	d := leads(t, 1)
	id := homedID(0, 1, 1)
	d.open(1, id, 600_000)
	step := func(n uint32) {
		d.enlist(Token(10+n), &txn.Enlist{
			ID: id, Step: n, Branches: []txn.EnlistBranch{{Service: "s", Generation: 1}},
			Ops: []txn.EnlistOp{{Payload: []byte(`1`), Now: true}}, Locks: exclusive("s/a"),
		})
	}
	step(1)
	first := d.allCalls(1)
	for n := uint32(2); n <= 100; n++ { // the participant is slow
		step(n)
		d.all()
	}
	next := d.calls(&CallDone{ID: id, Phase: PhaseExecute, Attempt: first[0].Attempt, Term: 1, Answer: Executed, Results: [][]byte{[]byte(`1`)}, Execution: "x"})
	if n := len(next[0].Operations); n > 64 {
		t.Errorf("one execute asks for %d operations, which participants refuse for ever", n)
	}
}

// What operations return is kept while their transaction is open: up to a limit.
func TestResultsOfManySteps(t *testing.T) {
	d := leads(t, 1)
	id := homedID(0, 1, 1)
	d.open(1, id, 600_000)
	half := append(append([]byte{'"'}, bytes.Repeat([]byte("x"), maxStepResultBytes/2-2)...), '"')
	step := func(n uint32, result []byte) {
		d.enlist(Token(10+n), &txn.Enlist{
			ID: id, Step: n, Branches: []txn.EnlistBranch{{Service: "s", Generation: 1}},
			Ops: []txn.EnlistOp{{Payload: []byte(`1`), Now: true}}, Locks: exclusive("s/a"),
		})
		c := d.allCalls(1)[0]
		d.step(&CallDone{ID: id, Phase: PhaseExecute, Attempt: c.Attempt, Term: 1, Answer: Executed, Results: [][]byte{result}, Execution: "x"})
		d.all()
	}
	step(1, half)
	step(2, half)
	if r := d.answered(12); r == nil || r.Err != nil || len(r.View.StepResults[0]) != len(half) {
		t.Fatalf("as much as may be: %+v", r)
	}
	step(3, []byte(`1`))
	if a := d.s.State().Get(id).Abort; a == nil || a.Reason != reason.ExecuteRefused || a.Service != "s" || !strings.Contains(a.Message, strconv.Itoa(maxStepResultBytes)) {
		t.Errorf("more: %+v", a)
	}
}

// A one-shot transaction that gives way at another shard queues again, and its client sees
// nothing: also where the queue of the key is as long as it may be, as it is at home.
func TestRestartAtAFullQueue(t *testing.T) {
	d := leads(t, 2)
	d.s.cfg.MaxKeyWaiters = 1
	younger, elder := homedID(1, 2, 2), homedID(1, 2, 1)
	ask := func(id txnid.ID, request uint32, age uint64) {
		d.step(&Message{Kind: MessageAsk, From: 1, ID: id, Request: request, AgeMs: age, Whole: true, Needs: exclusive("s/a")})
		d.all()
	}
	ask(younger, 1, 2)
	ask(elder, 1, 1) // waits, and the younger one is asked to give way
	if c := d.s.State().ForeignClaim(younger); c == nil || !c.Granted || !c.Asked {
		t.Fatalf("%+v", c)
	}
	// Its home has recorded YIELD, and asks again.
	d.s.Step(d.time(), &Message{Kind: MessageAsk, From: 1, ID: younger, Request: 2, AgeMs: 2, Whole: true, Needs: exclusive("s/a")})
	for _, m := range d.s.Ready().Messages {
		if m.Kind == MessageRefused {
			t.Errorf("%s gave way and is refused, which aborts it: %s", m.ID, m.Text)
		}
	}
	d.act()
	d.all()
	if c := d.s.State().ForeignClaim(elder); !c.Granted {
		t.Error("what the younger one gave back is still held")
	}
}

// Whoever holds a key does not queue for it: a full queue behind it must not keep it from
// going on (read with an update lock, then write), or the queue never gets shorter.
func TestHolderAtAFullQueue(t *testing.T) {
	update := lock.Fold([]lock.Need{{Key: "s/a", Mode: lock.U}})
	t.Run("at home", func(t *testing.T) {
		d := leads(t, 1)
		d.s.cfg.MaxKeyWaiters = 1
		holder, waiter := homedID(0, 1, 1), homedID(0, 1, 2)
		d.open(1, holder, 600_000)
		d.open(2, waiter, 600_000)
		d.enlist(3, &txn.Enlist{ID: holder, Step: 1, Locks: update})
		d.all()
		d.enlist(4, &txn.Enlist{ID: waiter, Step: 1, Locks: update})
		d.all()
		d.enlist(5, &txn.Enlist{ID: holder, Step: 2, Locks: exclusive("s/a")})
		d.all()
		if r := d.answered(5); r == nil || r.Err != nil {
			t.Errorf("the holder's next step: %+v", r)
		}
	})
	t.Run("at another shard", func(t *testing.T) {
		d := leads(t, 2)
		d.s.cfg.MaxKeyWaiters = 1
		holder, waiter := homedID(1, 2, 1), homedID(1, 2, 2)
		d.step(&Message{Kind: MessageAsk, From: 1, ID: holder, Request: 1, AgeMs: 1, Needs: update})
		d.step(&Message{Kind: MessageAsk, From: 1, ID: waiter, Request: 1, AgeMs: 2, Needs: update})
		d.all()
		d.s.Step(d.time(), &Message{Kind: MessageAsk, From: 1, ID: holder, Request: 2, AgeMs: 1, Needs: exclusive("s/a")})
		for _, m := range d.s.Ready().Messages {
			if m.Kind == MessageRefused && m.ID == holder {
				t.Errorf("the holder is refused, which aborts it: %s", m.Text)
			}
		}
		d.act()
	})
}

// Nor does who is older than those in the queue: outside it nobody would give way to it,
// and if it holds what the key's holder waits for, all of them would stand still.
func TestElderAtAFullQueue(t *testing.T) {
	t.Run("at home", func(t *testing.T) {
		d := leads(t, 1)
		d.s.cfg.MaxKeyWaiters = 1
		elder, holder, waiter, youngest := homedID(0, 1, 1), homedID(0, 1, 2), homedID(0, 1, 3), homedID(0, 1, 4)
		for i, id := range []txnid.ID{elder, holder, waiter, youngest} {
			d.open(Token(i+1), id, 600_000)
		}
		d.enlist(5, &txn.Enlist{ID: holder, Step: 1, Locks: exclusive("s/a")})
		d.enlist(6, &txn.Enlist{ID: waiter, Step: 1, Locks: exclusive("s/a")})
		d.all()
		d.enlist(7, &txn.Enlist{ID: youngest, Step: 1, Locks: exclusive("s/a")})
		if r := d.answered(7); r == nil || r.Err == nil || r.Err.Code != reason.TooManyWaiters {
			t.Errorf("who is younger than those in the queue: %+v", r)
		}
		d.enlist(8, &txn.Enlist{ID: elder, Step: 1, Locks: exclusive("s/a")})
		d.all()
		if r := d.answered(8); r == nil || r.Err != nil {
			t.Errorf("the eldest: %+v", r)
		}
		if a := d.s.State().Get(holder).Abort; a == nil || a.Reason != reason.Wounded {
			t.Errorf("the holder has not given way: %+v", a)
		}
	})
	t.Run("at another shard", func(t *testing.T) {
		d := leads(t, 2)
		d.s.cfg.MaxKeyWaiters = 1
		ask := func(n byte) {
			d.s.Step(d.time(), &Message{Kind: MessageAsk, From: 1, ID: homedID(1, 2, n), Request: 1, AgeMs: uint64(n), Needs: exclusive("s/a")})
			for _, m := range d.s.Ready().Messages {
				if refused := m.Kind == MessageRefused; refused != (n == 4) {
					t.Errorf("%d: %+v", n, m)
				}
			}
			d.act()
			d.all()
		}
		for _, n := range []byte{2, 3, 4, 1} {
			ask(n)
		}
		if c := d.s.State().ForeignClaim(homedID(1, 2, 2)); c == nil || !c.Asked {
			t.Errorf("the holder is not asked to give way: %+v", c)
		}
		if d.s.State().ForeignClaim(homedID(1, 2, 4)) != nil {
			t.Error("who is younger than those in the queue is in it")
		}
	})
}

// What ends a transaction is taken also where as many requests wait as may: they wait for
// it (FAILURES.md L1).
func TestCommitAtFullWaitingRoom(t *testing.T) {
	d := leads(t, 1)
	d.s.cfg.MaxWaitingRequests = 2
	holder := homedID(0, 1, 1)
	d.open(1, holder, 600_000)
	d.enlist(2, &txn.Enlist{ID: holder, Step: 1, Branches: []txn.EnlistBranch{{Service: "s", Generation: 1}}, Ops: []txn.EnlistOp{{Payload: []byte(`1`)}}, Locks: exclusive("s/a")})
	d.all()
	for n := byte(2); n < 4; n++ {
		b := txn.Begin{ID: homedID(0, 1, n), TimeoutMs: 600_000, Branches: []txn.BeginBranch{{Service: "s", Generation: 1, Ops: [][]byte{[]byte(`1`)}}}, Locks: exclusive("s/a")}
		d.step(&Submit{Token: Token(n + 10), ID: b.ID, Begin: txn.AppendBegin(nil, &b), Locks: b.Locks, Wait: WaitDecided})
		d.all()
	}
	d.step(&Seal{Token: 20, ID: holder, Wait: WaitDecided})
	d.all()
	if r := d.answered(20); r != nil && r.Err != nil {
		t.Errorf("the commit of the holder: %v", r.Err)
	}
	d.step(&Rollback{Token: 21, ID: holder})
	d.all()
	if r := d.answered(21); r != nil && r.Err != nil {
		t.Errorf("its rollback: %v", r.Err)
	}
}
