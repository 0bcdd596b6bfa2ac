package txnid

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestTextRoundTripKeepsOrder(t *testing.T) {
	gen := rapid.Custom(func(t *rapid.T) ID {
		var r [10]byte
		copy(r[:], rapid.SliceOfN(rapid.Byte(), 10, 10).Draw(t, "random"))
		return New(rapid.Uint64Range(0, 1<<48-1).Draw(t, "ms"), r)
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := gen.Draw(t, "a"), gen.Draw(t, "b")
		back, err := Parse(a.String())
		if err != nil || back != a {
			t.Fatalf("Parse(%s) = %s, %v", a, back, err)
		}
		if got, want := a.Less(b), strings.Compare(a.String(), b.String()) < 0; got != want {
			t.Fatalf("Less(%s, %s) = %v, texts say %v", a, b, got, want)
		}
		if a.UnixMs() < b.UnixMs() && !a.Less(b) {
			t.Fatalf("an earlier id sorts after a later one: %s, %s", a, b)
		}
		if Floor(a.UnixMs()) != a && !Floor(a.UnixMs()).Less(a) {
			t.Fatalf("Floor(%d) is above %s", a.UnixMs(), a)
		}
		if s := a.Shard(7); s >= 7 {
			t.Fatalf("shard %d of 7", s)
		}
	})
}

func TestParseRefusesOtherSpellings(t *testing.T) {
	good := Floor(1764000000000).String()
	for name, s := range map[string]string{
		"empty":      "",
		"upper case": strings.ToUpper("019aa" + good[5:]),
		"no dashes":  strings.ReplaceAll(good, "-", ""),
		"braces":     "{" + good + "}",
		"urn":        "urn:uuid:" + good,
		"version 4":  good[:14] + "4" + good[15:],
		"variant":    good[:19] + "c" + good[20:],
		"not hex":    good[:35] + "g",
		"dash moved": good[:7] + "-" + good[7:8] + good[9:],
	} {
		if _, err := Parse(s); err == nil {
			t.Errorf("%s: %q was accepted", name, s)
		}
	}
}

func TestBeside(t *testing.T) {
	for a := range 1 << 12 {
		first := New(1, [10]byte{byte(a >> 8), byte(a), 0xff})
		id := New(2, [10]byte{0x0f, 0xff, 0x12}).Beside(first)
		for shards := uint32(1); shards <= 300; shards += 13 {
			if id.Shard(shards) != first.Shard(shards) || id.UnixMs() != 2 || id[8] != 0x92 {
				t.Fatalf("%s beside %s", id, first)
			}
		}
		if _, err := Parse(id.String()); err != nil {
			t.Fatal(err)
		}
	}
}
