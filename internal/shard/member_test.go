package shard

import (
	"slices"
	"strings"
	"testing"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// answer is the error code of the one new answer, which must be for the token; "" is
// done, "none" that there is no answer.
func (d *drive) answer(token Token) reason.Code {
	d.t.Helper()
	replies := d.replies
	d.replies = nil
	switch {
	case len(replies) == 0:
		return "none"
	case len(replies) > 1 || replies[0].Token != token:
		d.t.Fatalf("answers: %+v", replies)
	case replies[0].Err != nil:
		return replies[0].Err.Code
	}
	return ""
}

// ask steps an event, applies what it proposes, and returns the answer.
func (d *drive) ask(token Token, ev Event) reason.Code {
	d.t.Helper()
	d.step(ev)
	for len(d.entries) > 0 {
		d.apply(1)
	}
	return d.answer(token)
}

func (d *drive) expect(what string, got, want reason.Code) {
	d.t.Helper()
	if got != want {
		d.t.Errorf("%s: answered %q, not %q", what, got, want)
	}
}

func member(id string) *txn.Member { return &txn.Member{ID: id, Name: id, Level: txn.Level} }

// Requests on members are answered when their records are applied, each by its own.
func TestMembers(t *testing.T) {
	d := newDrive(t)
	d.expect("a follower", d.ask(1, &PutMember{Token: 1, Member: member("a")}), reason.NotLeader)
	d.step(&Lead{Term: 1})
	d.apply(1)
	d.expect("put", d.ask(1, &PutMember{Token: 1, Member: member("a")}), "")
	d.expect("no name", d.ask(1, &PutMember{Token: 1, Member: &txn.Member{ID: "b"}}), reason.InvalidMember)
	d.expect("long", d.ask(1, &PutMember{Token: 1, Member: &txn.Member{ID: "b", Name: "b", Peer: strings.Repeat("p", 1<<20)}}), reason.InvalidMember)
	d.expect("old", d.ask(1, &PutMember{Token: 1, Member: &txn.Member{ID: "b", Name: "b", Level: 1}}), reason.MemberTooOld)
	d.expect("stranger", d.ask(1, &Place{Token: 1, Voters: []string{"b"}}), reason.UnknownMember)
	d.expect("many", d.ask(1, &Place{Token: 1, Voters: make([]string, 1000)}), reason.InvalidPlacement)
	d.expect("none", d.ask(1, &Place{Token: 1}), reason.InvalidPlacement)
	d.expect("no such shard", d.ask(1, &Place{Token: 1, Shard: 1, Voters: []string{"a"}}), reason.InvalidPlacement)
	d.expect("place", d.ask(1, &Place{Token: 1, Voters: []string{"a"}}), "")
	d.expect("in use", d.ask(1, &RemoveMember{Token: 1, ID: "a"}), reason.MemberInUse)
	d.expect("unknown", d.ask(1, &RemoveMember{Token: 1, ID: "b"}), reason.UnknownMember)
	version := d.s.State().MembersVersion()

	// Two at once, the first one given up: the second is answered by its own record.
	d.step(&PutMember{Token: 2, Member: member("b")})
	d.step(&RemoveMember{Token: 3, ID: "c"})
	d.expect("given up", func() reason.Code { d.step(&Cancel{Token: 2}); return d.answer(2) }(), reason.OutcomeUnknown)
	d.apply(1)
	d.expect("none for who gave up", d.answer(2), "none")
	d.apply(1)
	d.expect("the second", d.answer(3), reason.UnknownMember)
	if m := d.s.State().Members(); len(m) != 2 || m[1].ID != "b" || m[1].JoinedMs == 0 || d.s.State().MembersVersion() <= version {
		t.Errorf("members %+v, version %d, was %d", m, d.s.State().MembersVersion(), version)
	}
	if got := d.s.State().Placement(0); !slices.Equal(got, []string{"a"}) {
		t.Errorf("placement %v", got)
	}
	for i := range txn.MaxMembers - 2 {
		d.ask(1, &PutMember{Token: 1, Member: member("m" + string(rune(0x4e00+i)))})
	}
	d.expect("full", d.ask(1, &PutMember{Token: 1, Member: member("z")}), reason.TooManyMembers)
	d.expect("known, when full", d.ask(1, &PutMember{Token: 1, Member: &txn.Member{ID: "b", Name: "b", Draining: true}}), "")

	d.step(&PutMember{Token: 4, Member: member("a")})
	d.expect("lost leadership", func() reason.Code { d.step(&Follow{}); return d.answer(4) }(), reason.OutcomeUnknown)
	if d.s.waiting != 0 {
		t.Errorf("%d requests are counted", d.s.waiting)
	}
}

// Beside shard 0 there are none.
func TestNoMembersElsewhere(t *testing.T) {
	d := newDrive(t)
	cfg := DefaultConfig()
	cfg.Shard, cfg.Shards = 1, 2
	d.s = New(cfg)
	d.step(&Lead{Term: 1})
	d.apply(1)
	d.expect("put", d.ask(1, &PutMember{Token: 1, Member: member("a")}), reason.Internal)
}

// What every member knows bounds the log's level: what needs more is refused, until it is
// raised, by whoever leads and never beyond what this binary knows.
func TestLevelIsWhatAllKnow(t *testing.T) {
	d := newDrive(t)
	level := func(want uint32) {
		t.Helper()
		if got := d.s.State().Level(); got != want {
			t.Fatalf("level %d, not %d", got, want)
		}
	}
	d.step(&RaiseLevel{Level: 2}) // follows: for whoever leads
	d.step(&Lead{Term: 1, Level: 1})
	d.apply(1)
	level(1)
	d.expect("too early", d.ask(1, &PutMember{Token: 1, Member: member("a")}), reason.UpgradePending)
	d.step(&RaiseLevel{Level: 1})
	if len(d.entries) > 0 {
		t.Fatal("the level was proposed that the log is at")
	}
	d.step(&RaiseLevel{Level: txn.Level + 7})
	d.step(&RaiseLevel{Level: txn.Level + 7})
	d.expect("proposed only", func() reason.Code { d.step(&PutMember{Token: 1, Member: member("a")}); return d.answer(1) }(), reason.UpgradePending)
	d.apply(1)
	level(txn.Level)
	d.expect("in time", d.ask(1, &PutMember{Token: 1, Member: member("a")}), "")

	// Raised between LEAD and its application; and never lowered by the next leader.
	d = newDrive(t)
	d.step(&Lead{Term: 1, Level: 1})
	d.step(&RaiseLevel{Level: 2})
	d.apply(1)
	level(1)
	d.apply(1)
	level(2)
	d.step(&Lead{Term: 2, Level: 1})
	d.apply(2)
	level(2)
}

// A log that no LEVEL has reached takes no record of locks over several shards.
func TestLevelOfSpreadLocks(t *testing.T) {
	d := newDrive(t)
	d.s.cfg.Shards = 2
	d.s.st = txn.New(0, 2)
	d.step(&Lead{Term: 1})
	d.entries[0] = txn.AppendLead(txn.AppendBoot(d.entries[0][:txn.HeaderBytes:txn.HeaderBytes], txn.Boot{Shards: 2}), txn.Lead{})
	d.s.leadProposed = d.entries[0] // as if it came from the version before levels
	d.apply(1)
	d.entries, d.s.raised = nil, txn.Level
	id := txnid.New(1_750_000_000_000, [10]byte{1})
	foreign := []txn.LockPart{{Shard: 1, Needs: lock.Fold([]lock.Need{{Key: "a/k", Mode: lock.X}})}}
	begin := txn.AppendBegin(nil, &txn.Begin{ID: id, Branches: []txn.BeginBranch{{Service: "a", Generation: 1}}, Foreign: foreign})
	d.expect("begin", d.ask(1, &Submit{Token: 1, ID: id, Begin: begin}), reason.UpgradePending)
	d.expect("enlist", d.ask(1, &Enlist{Token: 1, ID: id, Step: 1, Enlist: txn.AppendEnlist(nil, &txn.Enlist{ID: id, Step: 1, Foreign: foreign})}), reason.UpgradePending)
	d.expect("partitions", d.ask(1, &PutService{Token: 1, Service: &txn.Service{Name: "a", Partitions: 2}}), reason.UpgradePending)
	d.expect("one shard", d.ask(1, &PutService{Token: 1, Service: &txn.Service{Name: "a"}}), "")
	d.step(&Message{Kind: MessageAsk, From: 1, ID: id, Request: 1, Needs: foreign[0].Needs})
	if d.s.State().Level() != 0 || len(d.entries) > 0 {
		t.Errorf("level %d, %d entries", d.s.State().Level(), len(d.entries))
	}
}
