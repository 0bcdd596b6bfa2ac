package txn

import (
	"encoding/binary"
	"testing"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txnid"
)

const benchBatch = 64 // commands an entry, as under load

// benchID spreads ids over time, so that they can be forgotten.
func benchID(n int) txnid.ID {
	var random [10]byte
	binary.BigEndian.PutUint64(random[2:], uint64(n))
	return txnid.New(epochMs+uint64(n)/100, random)
}

// transferOf is a BEGIN with two branches and a key at each.
func transferOf(n int) *Begin {
	key := string(binary.AppendUvarint([]byte("k"), uint64(n)))
	b := &Begin{ID: benchID(n), TimeoutMs: 5000}
	payload := []byte(`{"account":"12345678","amount":100}`)
	for _, service := range []string{"a", "b"} {
		b.Branches = append(b.Branches, BeginBranch{Service: service, Generation: 1, Ops: [][]byte{payload}})
	}
	b.Locks = lock.Fold([]lock.Need{{Key: "a/" + key, Mode: lock.X}, {Key: "b/" + key, Mode: lock.X}})
	return b
}

func benchState(b testing.TB) *State {
	s := New(0, 1)
	var effects []Effect
	if err := s.Apply(1, 1, entryOf(AppendBoot(nil, Boot{Shards: 1}), AppendLead(nil, Lead{Node: "n"})), &effects); err != nil {
		b.Fatal(err)
	}
	return s
}

// applyAll applies entries of benchBatch commands each.
func applyAll(b testing.TB, s *State, n int, command func(dst []byte, i int) []byte) {
	var effects []Effect
	for at := 0; at < n; at += benchBatch {
		entry := make([]byte, HeaderBytes, 32<<10)
		PutHeader(entry, 1, epochMs+uint64(at)/100)
		for i := at; i < min(n, at+benchBatch); i++ {
			entry = command(entry, i)
		}
		effects = effects[:0]
		if err := s.Apply(s.Applied()+1, 1, entry, &effects); err != nil {
			b.Fatal(err)
		}
	}
}

func applyBegins(b testing.TB, s *State, n int) {
	applyAll(b, s, n, func(dst []byte, i int) []byte { return AppendBegin(dst, transferOf(i)) })
}

func applyCommits(b testing.TB, s *State, n int) {
	applyAll(b, s, n, func(dst []byte, i int) []byte {
		return AppendCommit(dst, Commit{ID: benchID(i), Enlisted: 2, Yes: []uint32{0, 1}})
	})
}

func applyAcks(b testing.TB, s *State, n int) {
	applyAll(b, s, 2*n, func(dst []byte, i int) []byte {
		return AppendAck(dst, Ack{ID: benchID(i / 2), Branch: uint32(i % 2), Fate: FateDone})
	})
}

// One operation is one command (of its ACKs, the two of a transaction). Encoding
// of BEGIN is part of the figure: BenchmarkEncodeBegin tells how much.
func BenchmarkApply(b *testing.B) {
	b.Run("begin", func(b *testing.B) {
		b.ReportAllocs()
		s := benchState(b)
		applyBegins(b, s, b.N)
	})
	b.Run("commit", func(b *testing.B) {
		b.ReportAllocs()
		s := benchState(b)
		applyBegins(b, s, b.N)
		b.ResetTimer()
		applyCommits(b, s, b.N)
	})
	b.Run("acks", func(b *testing.B) {
		b.ReportAllocs()
		s := benchState(b)
		applyBegins(b, s, b.N)
		applyCommits(b, s, b.N)
		b.ResetTimer()
		applyAcks(b, s, b.N)
		b.StopTimer()
		if s.Live() != 0 || s.LockOwners() != 0 || s.Done() != b.N {
			b.Fatalf("%d live, %d lock owners, %d done of %d", s.Live(), s.LockOwners(), s.Done(), b.N)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	begin := transferOf(1)
	commit := Commit{ID: begin.ID, Enlisted: 2, Yes: []uint32{0, 1}}
	ack := Ack{ID: begin.ID, Branch: 1, Fate: FateDone}
	abort := AbortCmd{ID: begin.ID, Reason: reason.VotedNo, Message: "insufficient funds", Service: "a"}
	for name, encode := range map[string]func([]byte) []byte{
		"begin":  func(dst []byte) []byte { return AppendBegin(dst, begin) },
		"commit": func(dst []byte) []byte { return AppendCommit(dst, commit) },
		"ack":    func(dst []byte) []byte { return AppendAck(dst, ack) },
		"abort":  func(dst []byte) []byte { return AppendAbort(dst, abort) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			buf := make([]byte, 0, 4096)
			for range b.N {
				buf = encode(buf[:0])
			}
			b.ReportMetric(float64(len(buf)), "bytes")
		})
	}
}

func BenchmarkDecodeBegin(b *testing.B) {
	b.ReportAllocs()
	s := benchState(b)
	applyBegins(b, s, 1)
	command := AppendBegin(nil, transferOf(1))[1:]
	for range b.N {
		r := &reader{b: command}
		if r.begin(false, s.intern); r.err != nil {
			b.Fatal(r.err)
		}
	}
}

// A loaded shard: 10,000 open, 100,000 ended.
func loadedState(b testing.TB) *State {
	const ended, open = 100_000, 10_000
	s := benchState(b)
	applyBegins(b, s, ended)
	applyCommits(b, s, ended)
	applyAcks(b, s, ended)
	applyAll(b, s, open, func(dst []byte, i int) []byte { return AppendBegin(dst, transferOf(ended+i)) })
	if s.Live() != open || s.Done() != ended {
		b.Fatalf("%d live, %d done", s.Live(), s.Done())
	}
	return s
}

// The shard stands still during Capture; Write runs beside it.
func BenchmarkCapture(b *testing.B) {
	s := loadedState(b)
	b.Run("capture", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			s.Capture()
		}
	})
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		c, bytes := s.Capture(), 0
		for range b.N {
			bytes = 0
			_ = c.Write(func(p []byte) error {
				bytes += len(p)
				return nil
			})
		}
		b.ReportMetric(float64(bytes), "bytes")
	})
	b.Run("hash", func(b *testing.B) { // of VERIFY, beside the loop
		c := s.Capture()
		for range b.N {
			c.Hash()
		}
	})
	b.Run("restore", func(b *testing.B) {
		b.ReportAllocs()
		snapshot := snapshotOf(s)
		b.ResetTimer()
		for range b.N {
			if _, err := Restore(0, 1, snapshot); err != nil {
				b.Fatal(err)
			}
		}
	})
}
