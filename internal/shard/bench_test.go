package shard

import (
	"encoding/binary"
	"testing"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// One operation is a whole one-shot transaction of two branches with a key each:
// submission, BEGIN, two votes, COMMIT, two acknowledgements, end. 64 of them are
// under way together, so that entries carry many commands as they do under load.
func BenchmarkTransaction(b *testing.B) {
	const together = 64
	b.ReportAllocs()
	s := New(DefaultConfig())
	now := Time{MonoUs: 1, WallMs: epochMs}
	var entries [][]byte
	var calls []Call
	index, replies := uint64(0), 0
	act := func() {
		rd := s.Ready()
		entries = append(entries, rd.Entries...)
		calls = append(calls, rd.Calls...)
		replies += len(rd.Replies)
		s.Advance()
	}
	commit := func() {
		for len(entries) > 0 {
			index++
			if err := s.Apply(now, index, 1, entries[0]); err != nil {
				b.Fatal(err)
			}
			entries = entries[1:]
			act()
		}
		entries = nil
	}
	answer := func(kind AnswerKind) {
		asked := calls
		calls = nil
		for i := range asked {
			c := &asked[i]
			s.Step(now, &CallDone{ID: c.ID, Branch: c.Branch, Phase: c.Phase, Attempt: c.Attempt, Term: 1, Answer: kind})
		}
		act()
		commit()
	}
	s.Step(now, &Lead{Term: 1})
	act()
	commit()
	payload := []byte(`{"account":"12345678","amount":100}`)
	ops := [][]byte{payload}
	begins := make([]*Submit, together)
	done := 0
	for done < b.N {
		b.StopTimer() // the node builds BEGIN outside the shard
		n := min(together, b.N-done)
		now.MonoUs += 1000
		now.WallMs++
		for i := range n {
			var random [10]byte
			binary.BigEndian.PutUint64(random[2:], uint64(done+i))
			id := txnid.New(now.WallMs, random)
			key := string(binary.AppendUvarint([]byte("k"), uint64(i)))
			cmd := txn.AppendBegin(nil, &txn.Begin{
				ID: id, TimeoutMs: 5000,
				Branches: []txn.BeginBranch{{Service: "a", Generation: 1, Ops: ops}, {Service: "b", Generation: 1, Ops: ops}},
				Locks:    lock.Fold([]lock.Need{{Key: "a/" + key, Mode: lock.X}, {Key: "b/" + key, Mode: lock.X}}),
			})
			begins[i] = &Submit{Token: Token(done + i + 1), ID: id, Begin: cmd, Wait: WaitCompleted}
		}
		b.StartTimer()
		for _, ev := range begins[:n] {
			s.Step(now, ev)
		}
		act()
		commit()
		answer(VoteYes)
		answer(Acknowledged)
		done += n
	}
	b.StopTimer()
	if replies != b.N || s.State().Live() != 0 {
		b.Fatalf("%d of %d answered, %d open", replies, b.N, s.State().Live())
	}
}
