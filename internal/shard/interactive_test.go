package shard

import (
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
