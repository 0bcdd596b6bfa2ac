package shard

import (
	"strings"
	"testing"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/txn"
)

// TestVotesOutliveAGiveWayThatCameLate: an abort to give way meets the SEAL of its
// transaction in the log, so it is refused. The votes that came meanwhile count: nobody
// who said yes is asked again, and whoever said no is.
func TestVotesOutliveAGiveWayThatCameLate(t *testing.T) {
	for _, test := range []struct {
		name    string
		before  []AnswerKind // the votes that come before the abort is refused, by branch
		calls   []string     // what is sent when it is
		decides bool         // then
	}{
		{"both say yes", []AnswerKind{VoteYes, VoteReadOnly}, nil, true},
		{"one is silent", []AnswerKind{VoteYes}, nil, false},
		{"one says no", []AnswerKind{VoteYes, VoteNo}, []string{"call prepare t0/1 at b, attempt 2"}, false},
		{"one has no answer", []AnswerKind{VoteYes, Indefinite}, nil, false}, // its pause goes on
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := scenarioDefaults()
			cfg.Shards = 2
			s := newScenario(cfg)
			s.term = 1
			s.step(&Lead{Term: 1})
			all := func() {
				for len(s.proposed) > 0 {
					s.commit()
				}
			}
			all()
			for _, name := range []string{"a", "b"} {
				s.step(&PutService{Token: 1, Service: &txn.Service{Name: name, Capabilities: txn.Tombstone}})
			}
			all()
			id := testID(0)
			if id.Shard(2) != 0 {
				t.Fatalf("%v has its home elsewhere", id)
			}
			s.step(&Submit{Token: 2, ID: id, Begin: txn.AppendOpen(nil, &txn.Open{ID: id, TimeoutMs: 60_000, IdleMs: 60_000}), Wait: WaitNone})
			all()
			needs := lock.Fold([]lock.Need{{Key: "b/k", Mode: lock.X}})
			enlist := txn.Enlist{
				ID: id, Step: 1, Foreign: []txn.LockPart{{Shard: 1, Needs: needs}},
				Branches: []txn.EnlistBranch{{Service: "a", Generation: 1}, {Service: "b", Generation: 2}},
				Ops:      []txn.EnlistOp{{Branch: 0, Payload: []byte("1")}, {Branch: 1, Payload: []byte("2")}},
			}
			s.step(&Enlist{Token: 3, ID: id, Step: 1, Enlist: txn.AppendEnlist(nil, &enlist)})
			all()
			s.step(&Message{Kind: MessageGranted, From: 1, ID: id, Request: 1, Token: 1})
			all()
			s.step(&Seal{Token: 4, ID: id, Wait: WaitDecided})
			s.step(&Message{Kind: MessageGiveWay, From: 1, ID: id, Request: 1, Text: "an elder waits"})
			if len(s.proposed) != 2 {
				t.Fatalf("%d entries are proposed, not SEAL and ABORT\n%s", len(s.proposed), s.out.String())
			}
			s.commit()
			for i, answer := range test.before {
				c, ok := s.calls[id.String()+"/"+string(rune('0'+i))]
				if !ok {
					t.Fatalf("branch %d was not asked\n%s", i, s.out.String())
				}
				s.step(&CallDone{ID: id, Branch: uint32(i), Phase: PhasePrepare, Attempt: c.Attempt, Term: c.Term, Answer: answer})
			}
			s.out.Reset()
			s.commit() // the ABORT
			out := s.short(s.out.String())
			if !strings.Contains(out, "decision ignored t0") {
				t.Fatalf("the abort was not refused:\n%s", out)
			}
			if got := strings.Count(out, "call "); got != len(test.calls) {
				t.Errorf("%d calls, want %d:\n%s", got, len(test.calls), out)
			}
			for _, call := range test.calls {
				if !strings.Contains(out, call) {
					t.Errorf("no %q in\n%s", call, out)
				}
			}
			if got := strings.Contains(out, "propose [COMMIT t0"); got != test.decides {
				t.Errorf("COMMIT proposed: %v, want %v:\n%s", got, test.decides, out)
			}
		})
	}
}
