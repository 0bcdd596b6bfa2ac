package lock

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/assent-tx/assent/internal/txnid"
)

// sample is a table with holders, queues, claims in the middle of their set, an
// overtaken waiter, a partly and a wholly released claim.
func sample() *Table {
	t := NewTable()
	id := func(n uint64) txnid.ID { return txnid.Floor(n) }
	t.Claim(id(1), 10, Fold([]Need{{"a/x", X}, {"c/x", S}}))
	t.Claim(id(2), 30, Fold([]Need{{"a/x", X}, {"a/y", S}, {"c/x", S}}))
	t.Claim(id(3), 20, Fold([]Need{{"a/x", S}, {"a-b/x", X}}))
	t.Claim(id(4), 25, Fold([]Need{{"c", S}}))
	t.Claim(id(5), 40, Fold([]Need{{"d/y", X}}))
	t.Release(id(5), "d", nil)
	t.Claim(id(6), 50, Fold([]Need{{"d/x", X}, {"e", IX}}))
	t.Release(id(6), "d", nil)
	t.Claim(id(7), 60, Fold([]Need{{"c/x", X}}))
	return t
}

// grown is a table of claims that grew: conversions granted and waiting, updates, a
// claim that gave up waiting, one that still has more to ask for.
func grown() *Table {
	t := NewTable()
	id := func(n uint64) txnid.ID { return txnid.Floor(n) }
	t.Extend(id(1), 10, Fold([]Need{{"a/x", S}, {"c", S}}))
	t.Extend(id(2), 20, Fold([]Need{{"a/x", S}}))
	t.Extend(id(3), 30, Fold([]Need{{"a/y", U}}))
	t.Claim(id(4), 15, Fold([]Need{{"a/x", X}, {"d/z", X}}))
	t.Extend(id(1), 10, Fold([]Need{{"c/1", X}}))
	t.Extend(id(2), 20, Fold([]Need{{"a/x", X}, {"e/1", S}}))
	t.Extend(id(5), 50, Fold([]Need{{"a/y", S}}))
	t.Abandon(id(5), nil)
	t.Extend(id(5), 50, Fold([]Need{{"e", S}}))
	t.Extend(id(3), 30, Fold([]Need{{"a/y", X}, {"e/1", X}}))
	return t
}

func TestRestoreRefusesEveryTruncation(t *testing.T) {
	whole := sample().AppendSnapshot(nil)
	for n := range whole {
		kept := sample()
		if _, err := kept.Restore(SnapshotVersion, whole[:n]); !errors.Is(err, ErrSnapshot) {
			t.Fatalf("%d of %d bytes: %v", n, len(whole), err)
		}
		if !bytes.Equal(kept.AppendSnapshot(nil), whole) {
			t.Fatalf("a failed restore changed the table")
		}
	}
}

func TestRestoreRefusesBrokenInvariants(t *testing.T) {
	claim := func(n byte, later ...byte) []byte {
		id := txnid.Floor(uint64(n))
		return append(append(append([]byte{}, id[:]...), n, 0), later...)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	one := join([]byte{1}, claim(1, 0))
	two := join([]byte{2}, claim(1, 0), claim(2, 0))
	for name, src := range map[string][]byte{
		"claims out of order":     join([]byte{2}, claim(2, 0), claim(1, 0), []byte{0}),
		"a claim twice":           join([]byte{2}, claim(1, 0), claim(1, 0), []byte{0}),
		"nodes out of order":      join(one, []byte{2, 1, 'b', 1, 0, 4, 0, 1, 'a', 1, 0, 4, 0}),
		"a node nobody is at":     join(one, []byte{1, 1, 'a', 0, 0}),
		"a node without a key":    join(one, []byte{1, 0, 1, 0, 4, 0}),
		"no such claim":           join(one, []byte{1, 1, 'a', 1, 1, 4, 0}),
		"unknown mode":            join(one, []byte{1, 1, 'a', 1, 0, 6, 0}),
		"incompatible holders":    join(two, []byte{1, 1, 'a', 2, 0, 4, 1, 4, 0}),
		"one holder twice":        join(one, []byte{1, 1, 'a', 2, 0, 0, 0, 0, 0}),
		"a waiter for nothing":    join(one, []byte{1, 1, 'a', 0, 1, 0, 4, 0}),
		"a grantable waiter":      join(two, []byte{1, 1, 'a', 1, 0, 2, 1, 1, 2, 0}),
		"overtaken too often":     join(two, []byte{1, 1, 'a', 1, 0, 4, 1, 1, 4, 9}),
		"waits twice":             join(two, []byte{2, 1, 'a', 1, 0, 4, 1, 1, 4, 0, 1, 'b', 1, 0, 4, 1, 1, 4, 0}),
		"grown by more than one":  join([]byte{1}, make([]byte, 16), []byte{1, 2, 0, 0}),
		"holds past its wait":     join(two, []byte{2, 1, 'a', 1, 0, 4, 1, 1, 4, 0, 1, 'b', 1, 1, 4, 0}),
		"holds more than it asks": join(two, []byte{1, 1, 'a', 2, 0, 2, 1, 2, 1, 1, 2, 0}),
		"conversion behind":       join([]byte{3}, claim(1, 0), claim(2, 0), claim(3, 0), []byte{1, 1, 'a', 2, 0, 2, 1, 2, 2, 2, 4, 0, 1, 4, 0}),
		"wants and does not wait": join([]byte{1}, claim(1, 1, 1, 'b', 4), []byte{1, 1, 'a', 1, 0, 4, 0}),
		"key without service":     join(one, []byte{1, 3, 'a', '/', 'b', 1, 0, 4, 0}),
		"long number":             join([]byte{0x80, 0}),
		"huge count of claims":    {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
		"huge count of nodes":     join(one, []byte{0xff, 0xff, 0xff, 0xff, 0x0f}),
		"huge key":                join(one, []byte{1, 0xff, 0xff, 0xff, 0xff, 0x0f, 'a', 0, 0, 0, 0, 0, 0}),
	} {
		if _, err := NewTable().Restore(SnapshotVersion, src); !errors.Is(err, ErrSnapshot) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewTable().Restore(SnapshotVersion, join(two, []byte{1, 1, 'a', 1, 0, 4, 1, 1, 4, 8})); err != nil {
		t.Errorf("what all these were made from: %v", err)
	}
}

// Snapshots that were written once can be read for ever. Version 1 had no claims that
// grew, and no mode U.
func TestRestoreReadsEveryVersion(t *testing.T) {
	for version := byte(SnapshotVersion1); version <= SnapshotVersion; version++ {
		name := fmt.Sprintf("testdata/golden/snapshot-v%d", version)
		whole, err := os.ReadFile(name + ".bin")
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(name + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		table := NewTable()
		if rest, err := table.Restore(version, whole); err != nil || len(rest) > 0 || table.String() != string(want) {
			t.Errorf("version %d: %v, %d bytes left:\n%s\nwant\n%s", version, err, len(rest), table, want)
		}
		if version == SnapshotVersion && !bytes.Equal(table.AppendSnapshot(nil), whole) {
			t.Error("this version's bytes are written otherwise now: that needs another version")
		}
	}
}

// Equal calls give equal bytes, whatever the maps' order.
func TestEqualCallsGiveEqualBytes(t *testing.T) {
	for name, build := range map[string]func() *Table{"sample": sample, "grown": grown} {
		want := build().AppendSnapshot(nil)
		for range 20 {
			table := build()
			if err := table.Check(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := table.AppendSnapshot(nil); !bytes.Equal(got, want) {
				t.Fatalf("%s: %x, then %x", name, want, got)
			}
		}
	}
}

// A snapshot is read back or refused, and one state has one spelling.
func FuzzRestore(f *testing.F) {
	for _, whole := range [][]byte{sample().AppendSnapshot(nil), grown().AppendSnapshot(nil), NewTable().AppendSnapshot(nil)} {
		f.Add(byte(SnapshotVersion), whole)
		f.Add(byte(SnapshotVersion1), whole)
		for i := 0; i < len(whole); i += 7 {
			flipped := bytes.Clone(whole)
			flipped[i] ^= 1
			f.Add(byte(SnapshotVersion), flipped)
		}
	}
	first, err := os.ReadFile("testdata/golden/snapshot-v1.bin")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(byte(SnapshotVersion1), first)
	f.Fuzz(func(t *testing.T, version byte, src []byte) {
		table := NewTable()
		rest, err := table.Restore(version, src)
		if err != nil {
			if !errors.Is(err, ErrSnapshot) || table.Len()+table.Nodes() > 0 {
				t.Fatalf("error %v, table\n%s", err, table)
			}
			return
		}
		if err := table.Check(); err != nil {
			t.Fatal(err)
		}
		back := table.AppendSnapshot(nil)
		if version == SnapshotVersion && !bytes.Equal(back, src[:len(src)-len(rest)]) {
			t.Fatalf("%x came back as %x", src[:len(src)-len(rest)], back)
		}
		if _, err := NewTable().Restore(SnapshotVersion, back); err != nil {
			t.Fatalf("%x was written and is refused: %v", back, err)
		}
		// Whatever it holds can be worked off.
		for table.Len() > 0 {
			before := table.Len()
			for _, owner := range table.sortedOwners() {
				if table.Granted(owner) {
					table.Drop(owner, nil)
				}
			}
			if table.Len() == before { // claims that grew may wait for each other
				table.Drop(table.sortedOwners()[0], nil)
			}
			if err := table.Check(); err != nil || table.Len() == before {
				t.Fatalf("stuck, Check %v\n%s", err, table)
			}
		}
	})
}

func TestBrokenInvariantsPanic(t *testing.T) {
	for name, f := range map[string]func(*Table){
		"second claim":             func(tb *Table) { tb.Claim(txnid.Floor(1), 1, nil) },
		"order":                    func(tb *Table) { tb.Claim(txnid.Floor(99), 1, []Need{{"b", X}, {"a", X}}) },
		"a key twice":              func(tb *Table) { tb.Claim(txnid.Floor(99), 1, []Need{{"a", IX}, {"a", X}}) },
		"not folded":               func(tb *Table) { tb.Claim(txnid.Floor(99), 1, []Need{{"a/b", X}}) },
		"no key":                   func(tb *Table) { tb.Claim(txnid.Floor(99), 1, []Need{{"", X}}) },
		"no such mode":             func(tb *Table) { tb.Claim(txnid.Floor(99), 1, []Need{{"a", modes}}) },
		"release while it waits":   func(tb *Table) { tb.Release(txnid.Floor(2), "a", nil) },
		"extension while it waits": func(tb *Table) { tb.Extend(txnid.Floor(2), 30, Fold([]Need{{"z", S}})) },
		"extension out of order":   func(tb *Table) { tb.Extend(txnid.Floor(1), 10, []Need{{"b", X}, {"a", X}}) },
		"restart without a claim":  func(tb *Table) { tb.Restart(txnid.Floor(99), nil) },
	} {
		table := sample()
		before := table.AppendSnapshot(nil)
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f(table)
		}()
		if !bytes.Equal(table.AppendSnapshot(nil), before) {
			t.Errorf("%s: the table changed", name)
		}
	}
}

// Check finds what is wrong: each of these breaks one invariant by hand.
func TestCheckBites(t *testing.T) {
	one := txnid.Floor(1)
	for name, spoil := range map[string]func(*Table){
		"waiter count":     func(tb *Table) { tb.waiters++ },
		"claim misfiled":   func(tb *Table) { tb.claims[txnid.Floor(99)] = tb.claims[one] },
		"node misfiled":    func(tb *Table) { tb.nodes["zz"] = tb.nodes["a"] },
		"empty node":       func(tb *Table) { tb.nodes["zz"] = &node{key: "zz"} },
		"tally of holders": func(tb *Table) { tb.nodes["a"].holding.add(IS) },
		"tally of waiters": func(tb *Table) { tb.nodes["a/x"].waiting.remove(X) },
		"mode of a holder": func(tb *Table) { tb.claims[one].slots[0].mode = X },
		"order of a claim": func(tb *Table) { tb.claims[one].slots[0].key = "a/xx" },
		"chain":            func(tb *Table) { tb.claims[one].slots[0].same = 2 },
		"next":             func(tb *Table) { tb.claims[one].next-- },
		"slot of another":  func(tb *Table) { tb.claims[one].slots[1].claim = tb.claims[txnid.Floor(2)] },
		"torn list":        func(tb *Table) { tb.nodes["a"].holders.tail = tb.nodes["a"].holders.head },
		"holder removed":   func(tb *Table) { n := tb.nodes["a/x"]; n.unhold(n.holders.head) },
		"overtaken":        func(tb *Table) { tb.nodes["a/x"].queue.head.overtaken = maxOvertakes + 1 },
		"owner gone":       func(tb *Table) { delete(tb.claims, one) },
		"node gone":        func(tb *Table) { delete(tb.nodes, "a") },
		"half released":    func(tb *Table) { s := &tb.claims[one].slots[1]; s.node.unhold(s); s.node = nil },
	} {
		table := sample()
		if err := table.Check(); err != nil {
			t.Fatal(err)
		}
		spoil(table)
		if err := table.Check(); err == nil {
			t.Errorf("%s: not found", name)
		}
	}
	// The same for claims that grew; 2 waits to convert a/x.
	for name, spoil := range map[string]func(*Table){
		"count of the grown":     func(tb *Table) { tb.grown-- },
		"known nodes":            func(tb *Table) { delete(tb.claims[one].grown.held, "c/1") },
		"known node of another":  func(tb *Table) { tb.claims[one].grown.held["c/1"] = tb.claims[one].grown.held["c"] },
		"no conversion":          func(tb *Table) { tb.nodes["a/x"].queue.head.converts = false },
		"converts what is not":   func(tb *Table) { tb.nodes["a/x"].queue.tail.converts = true },
		"conversion behind":      func(tb *Table) { n := tb.nodes["a/x"]; s := n.queue.head; n.dequeue(s); n.enqueue(n.queue.tail, s) },
		"asked while it waited":  func(tb *Table) { c := tb.claims[txnid.Floor(2)]; c.grown.parts = append(c.grown.parts, &part{}) },
		"holder beside another":  func(tb *Table) { tb.nodes["c"].holders.head.mode = IS },
		"update beside a writer": func(tb *Table) { n := tb.nodes["a/y"]; n.holding.add(X) },
	} {
		table := grown()
		if err := table.Check(); err != nil {
			t.Fatal(err)
		}
		spoil(table)
		if err := table.Check(); err == nil {
			t.Errorf("%s: not found", name)
		}
	}
}

func TestRestartRefusesAClaimThatGrew(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic: its later steps would be lost")
		}
	}()
	grown().Restart(txnid.Floor(2), nil)
}
