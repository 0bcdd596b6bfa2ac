package replog

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// lengths is a recorder's snapshot of these entries.
func lengths(entries ...string) []byte {
	var b []byte
	for _, e := range entries {
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(e))), e...)
	}
	return b
}

const someCluster = "00112233445566778899aabbccddeeff"

func restoration(snapshot func(uint32) (uint64, []byte, error)) Restoration {
	return Restoration{Cluster: someCluster, Incarnation: 2, Shards: 2, Term: 1 << 32, Snapshot: snapshot, Logger: quiet()}
}

func TestRestore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	id, err := Restore(dir, "n1", restoration(func(shard uint32) (uint64, []byte, error) {
		if shard == 1 {
			return 0, nil, nil // nothing was ever appended
		}
		return 41, lengths("a", "b"), nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	if id.Cluster != someCluster || id.Incarnation != 2 || id.Shards != 2 || id.Member == "n1" || len(id.Founders) > 0 || id.Joined {
		t.Fatalf("%+v", id)
	}
	for round := range 2 {
		first, second := newRecorder(), newRecorder()
		l := open(t, config(dir, first, second))
		if l.Incarnation() != 2 || l.Identity().Member != id.Member {
			t.Fatalf("opened as %+v", l.Identity())
		}
		if led := lead(t, l.Group(0)); led.Term <= 1<<32 {
			t.Errorf("leads in term %d", led.Term)
		}
		lead(t, l.Group(1))
		if got, want := first.stream()[:2], []string{"a", "b"}; !slices.Equal(got, want) {
			t.Errorf("restored %q", got)
		}
		mustPropose(t, l.Group(0), "c")
		mustPropose(t, l.Group(1), "d")
		if at := first.indexes[0]; at <= 41 {
			t.Errorf("the next entry has index %d", at)
		}
		if got := first.waitFor(t, 3+round); len(got) != 3+round {
			t.Errorf("round %d: %q", round, got)
		}
		if members := l.Group(0).Members(); len(members) != 1 || members[0] != (Replica{id.Member, true}) {
			t.Errorf("members %v", members)
		}
		closeLog(t, l)
	}
}

func TestRestoreRefuses(t *testing.T) {
	sound := func(uint32) (uint64, []byte, error) { return 1, lengths("a"), nil }
	for name, spoil := range map[string]func(*Restoration){
		"a cluster without an id": func(r *Restoration) { r.Cluster = "x" },
		"the first incarnation":   func(r *Restoration) { r.Incarnation = 1 },
		"the first term":          func(r *Restoration) { r.Term = 1 },
		"no shards":               func(r *Restoration) { r.Shards = 0 },
		"too many shards":         func(r *Restoration) { r.Shards = maxShards + 1 },
	} {
		r := restoration(sound)
		spoil(&r)
		dir := filepath.Join(t.TempDir(), "data")
		if _, err := Restore(dir, "n1", r); err == nil {
			t.Error("restored ", name)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Error("made a directory for ", name)
		}
	}
	dir := made(t, 3)
	before := tree(t, dir)
	var refusal *DirError
	if _, err := Restore(dir, "n1", restoration(sound)); !errors.Is(err, ErrForeignDirectory) || !errors.As(err, &refusal) {
		t.Error("over another directory: ", err)
	}
	if !slices.Equal(before, tree(t, dir)) {
		t.Error("another directory was changed")
	}
}

// A restore that fails in the middle leaves nothing that a node would start with, and
// may be repeated.
func TestRestoreIsRepeated(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	broken := errors.New("broken")
	_, err := Restore(dir, "n1", restoration(func(shard uint32) (uint64, []byte, error) {
		if shard == 1 {
			return 0, nil, broken
		}
		return 1, lengths("a"), nil
	}))
	if !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, identityName)); !os.IsNotExist(err) {
		t.Fatal("an identity was left: ", err)
	}
	if _, err := Restore(dir, "n1", restoration(func(uint32) (uint64, []byte, error) { return 1, lengths("a"), nil })); err != nil {
		t.Fatal(err)
	}
	l := open(t, config(dir, newRecorder(), newRecorder()))
	closeLog(t, l)
}
