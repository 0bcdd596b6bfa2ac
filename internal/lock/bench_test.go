package lock

import (
	"fmt"
	"testing"

	"github.com/assent-tx/assent/internal/txnid"
)

func benchID(n int) txnid.ID { return txnid.Floor(uint64(n)) }

func BenchmarkClaimDrop(b *testing.B) {
	for _, keys := range []int{1, 2, 256} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			table := NewTable()
			// Others hold the services, as in a busy table.
			var needs []Need
			for i := range keys {
				needs = append(needs, Need{Key: fmt.Sprintf("service-%d/accounts/%d", i%2, i), Mode: X})
			}
			table.Claim(benchID(1), 1, Fold([]Need{{"service-0/accounts/o", X}, {"service-1/accounts/o", X}}))
			set := Fold(needs)
			var woken []txnid.ID
			b.ReportAllocs()
			for b.Loop() {
				table.Claim(benchID(2), 2, set)
				woken = table.Release(benchID(2), "service-0", woken[:0])
				woken = table.Release(benchID(2), "service-1", woken[:0])
				woken = table.Drop(benchID(2), woken[:0])
			}
		})
	}
}

func BenchmarkFold(b *testing.B) {
	for _, keys := range []int{1, 2, 256} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			var needs []Need
			for i := range keys {
				needs = append(needs, Need{Key: fmt.Sprintf("service-%d/accounts/%d", i%2, i), Mode: X})
			}
			b.ReportAllocs()
			for b.Loop() {
				Fold(needs)
			}
		})
	}
}

// One exclusive key with 10,000 waiters: the holder leaves, the next is granted,
// a new one joins at the end; with wound-wait, as it is used.
func BenchmarkHotKey(b *testing.B) {
	for _, waiters := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("waiters=%d", waiters), func(b *testing.B) { hotKey(b, NewTable(), waiters) })
		b.Run(fmt.Sprintf("waiters=%d/wound-wait", waiters), func(b *testing.B) {
			table := NewTable()
			table.WoundWait()
			hotKey(b, table, waiters)
		})
	}
}

func hotKey(b *testing.B, table *Table, waiters int) {
	may := func(txnid.ID) bool { return true }
	set := Fold([]Need{{"s/hot", X}})
	for i := range waiters + 1 {
		table.Claim(benchID(i), uint64(i), set)
	}
	var woken []txnid.ID
	next := waiters + 1
	b.ReportAllocs()
	for b.Loop() {
		woken = table.Drop(benchID(next-waiters-1), woken[:0])
		table.Claim(benchID(next), uint64(next), set)
		if _, found := table.NextWound(may); found {
			b.Fatal("nobody waits for a younger")
		}
		next++
	}
	if len(woken) != 1 || table.Waiters() != waiters {
		b.Fatalf("woke %d, %d wait", len(woken), table.Waiters())
	}
}

// An elder asks for all of a service that 10,000 younger claims write to: each gives way.
func BenchmarkWoundMany(b *testing.B) {
	const holders = 10_000
	sets := make([][]Need, holders)
	for i := range sets {
		sets[i] = Fold([]Need{{fmt.Sprintf("s/%d", i), X}})
	}
	for b.Loop() {
		table, gone := NewTable(), map[txnid.ID]bool{}
		table.WoundWait()
		for i, set := range sets {
			table.Claim(benchID(i+1), uint64(i+1), set)
		}
		table.Claim(benchID(0), 0, []Need{{"s", X}})
		for {
			w, found := table.NextWound(func(id txnid.ID) bool { return !gone[id] })
			if !found {
				break
			}
			gone[w.For] = true
		}
		if len(gone) != holders {
			b.Fatalf("%d of %d give way", len(gone), holders)
		}
	}
}

// 10,000 owners, half of them waiting for the other half.
func BenchmarkSnapshot(b *testing.B) {
	table := NewTable()
	for i := range 10_000 {
		table.Claim(benchID(i), uint64(i), Fold([]Need{{fmt.Sprintf("bank/accounts/%d", i/2), X}}))
	}
	var buf []byte
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			buf = table.AppendSnapshot(buf[:0])
		}
	})
	b.Run("restore", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := NewTable().Restore(SnapshotVersion, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}
