package replog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// testStore returns a group's store whose Raft instance never stands for election,
// so that the test alone uses it.
func testStore(t *testing.T) *store {
	t.Helper()
	cfg := config("data", newRecorder())
	cfg.FS = vfs.NewMem()
	cfg.Join, cfg.ClusterID = true, strings.Repeat("0", 32) // it votes for nobody, and appends nothing
	cfg.OnFatal = func(error) {}
	l := open(t, cfg)
	t.Cleanup(func() { _ = l.Close() })
	return l.groups[0].store
}

func TestStableStore(t *testing.T) {
	s := testStore(t)
	if _, err := s.Get([]byte("none")); err == nil || err.Error() != "not found" {
		t.Errorf("missing key: %v", err)
	}
	if _, err := s.GetUint64([]byte("none")); err == nil || err.Error() != "not found" {
		t.Errorf("missing number: %v", err)
	}
	syncs := s.log.fsyncs.Load()
	for range 3 {
		if err := s.SetUint64([]byte("n"), 1<<63+5); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.log.fsyncs.Load() - syncs; got != 1 {
		t.Errorf("%d syncs for one change", got)
	}
	if err := s.Set([]byte("v"), []byte("candidate")); err != nil {
		t.Fatal(err)
	}
	if err := s.Set([]byte("empty"), nil); err != nil {
		t.Fatal(err)
	}
	if n, err := s.GetUint64([]byte("n")); n != 1<<63+5 || err != nil {
		t.Errorf("number %d, %v", n, err)
	}
	if v, err := s.Get([]byte("v")); string(v) != "candidate" || err != nil {
		t.Errorf("value %q, %v", v, err)
	}
	if v, err := s.Get([]byte("empty")); len(v) != 0 || err != nil {
		t.Errorf("empty value %q, %v", v, err)
	}
	if _, err := s.GetUint64([]byte("v")); err == nil {
		t.Error("nine bytes pass for a number")
	}
}

func entries(from, to uint64) []*raft.Log {
	var logs []*raft.Log
	for i := from; i <= to; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: 3, Data: fmt.Appendf(nil, "%d", i), AppendedAt: time.Unix(0, int64(i))})
	}
	return logs
}

func TestLogStore(t *testing.T) {
	s := testStore(t)
	bounds := func(first, last uint64) {
		t.Helper()
		f, err1 := s.FirstIndex()
		l, err2 := s.LastIndex()
		if f != first || l != last || err1 != nil || err2 != nil {
			t.Errorf("bounds %d to %d, want %d to %d", f, l, first, last)
		}
		var e raft.Log
		for i := range last + 3 {
			err := s.GetLog(i, &e)
			if there := i >= first && i <= last && i > 0; there != (err == nil) || !there && !errors.Is(err, raft.ErrLogNotFound) {
				t.Errorf("entry %d: %v", i, err)
			}
			if err == nil && (e.Index != i || i > 1 && string(e.Data) != fmt.Sprint(i)) {
				t.Errorf("entry %d is %+v", i, e)
			}
		}
	}
	if err := s.StoreLogs(entries(1, 1)); err != nil {
		t.Fatal(err)
	}
	bounds(1, 1)
	if err := s.StoreLogs(entries(2, 20)); err != nil {
		t.Fatal(err)
	}
	if err := s.StoreLog(entries(21, 21)[0]); err != nil {
		t.Fatal(err)
	}
	bounds(1, 21)
	if err := s.DeleteRange(1, 4); err != nil {
		t.Fatal(err)
	}
	bounds(5, 21)
	if err := s.DeleteRange(0, 4); err != nil {
		t.Fatal(err)
	}
	bounds(5, 21)
	if err := s.DeleteRange(7, 9); err == nil {
		t.Error("a hole was torn")
	}
	if err := s.DeleteRange(15, 99); err != nil {
		t.Fatal(err)
	}
	bounds(5, 14)
	if floor, err := readFloor(s.log.disk, s.log.cfg.Dir, 1); err != nil || floor[0].last != 14 {
		t.Errorf("floor %+v, %v: it must come down before entries go", floor, err)
	}
	if err := s.StoreLogs(entries(15, 16)); err != nil {
		t.Fatal(err)
	}
	bounds(5, 16)
	if err := s.DeleteRange(5, 16); err != nil {
		t.Fatal(err)
	}
	bounds(0, 0)
	if err := s.StoreLogs(entries(30, 31)); err != nil { // behind a snapshot that was received
		t.Fatal(err)
	}
	bounds(30, 31)
	if err := s.StoreLogs(entries(33, 34)); err == nil || s.log.Err() == nil {
		t.Errorf("a gap was accepted: %v", err)
	}
}

func TestEntryRoundTrip(t *testing.T) {
	for _, want := range []raft.Log{
		{Index: 1, Term: 1},
		{Index: 1 << 60, Term: 1 << 50, Type: raft.LogConfiguration, Data: []byte("data"), AppendedAt: time.Unix(5, 6)},
		{Index: 7, Term: 2, Type: raft.LogNoop, Extensions: bytes.Repeat([]byte("x"), 300), Data: []byte("y")},
	} {
		key, value := encode(7, &want)
		var got raft.Log
		if err := getEntry(key, value, &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
		for i := range value {
			bad := bytes.Clone(value)
			bad[i] ^= 0x10
			if err := getEntry(key, bad, &got); !errors.Is(err, errBadEntry) {
				t.Errorf("byte %d flipped: %v", i, err)
			}
		}
		other, _ := encode(8, &want)
		if err := getEntry(other, value, &got); !errors.Is(err, errBadEntry) {
			t.Errorf("under another shard's key: %v", err)
		}
	}
}

func encode(shard uint32, l *raft.Log) (key, value []byte) {
	key = entryKey(shard, l.Index)
	value = make([]byte, entrySize(l))
	putEntry(value, key, l)
	return key, value
}

func FuzzEntry(f *testing.F) {
	key, value := encode(0, &raft.Log{Index: 9, Term: 3, Data: []byte("d"), Extensions: []byte("e"), AppendedAt: time.Unix(1, 1)})
	f.Add(key, value)
	f.Add(key, value[:20])
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		var l raft.Log
		_ = getEntry(key, value, &l)
		// With a true checksum, so that the fields behind it are reached.
		if len(key) == entryKeyBytes && len(value) > entryHeaderBytes {
			value = bytes.Clone(value)
			sum := entrySum(key, value)
			value[2], value[3], value[4], value[5] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
			if err := getEntry(key, value, &l); err == nil {
				var again raft.Log
				k, v := encode(0, &l)
				copy(k, key)
				putEntry(v, k, &l)
				if err := getEntry(k, v, &again); err != nil || !reflect.DeepEqual(l, again) {
					t.Errorf("%+v became %+v, %v", l, again, err)
				}
			}
		}
	})
}

func FuzzWAL(f *testing.F) {
	f.Add([]byte{}, uint32(4))
	f.Add(bytes.Repeat([]byte{0}, 100), uint32(4))
	chunk := append([]byte{0, 0, 0, 0, 12, 0, 9, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 12)...)
	sum := cookedSum(chunk[6:])
	chunk[0], chunk[1], chunk[2], chunk[3] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
	f.Add(chunk, uint32(4))
	f.Fuzz(func(t *testing.T, content []byte, num uint32) {
		end, err := checkWAL(content, num, [nonceBytes]byte{})
		if err == nil && (end.offset < 0 || end.offset > len(content)) {
			t.Errorf("end %+v of %d bytes", end, len(content))
		}
		_ = checkManifest(content)
	})
}

func FuzzFloor(f *testing.F) {
	f.Add(encodeFloor([]floorMark{{1, 2}, {3, 4}}))
	f.Fuzz(func(t *testing.T, content []byte) {
		if marks, err := decodeFloor(content); err == nil && !bytes.Equal(encodeFloor(marks), content) {
			t.Errorf("%+v is not what %x says", marks, content)
		}
	})
}

func FuzzSnapshotFile(f *testing.F) {
	disk := vfs.NewMem()
	if err := disk.MkdirAll("s", 0o700); err != nil {
		f.Fatal(err)
	}
	s, err := openSnapStore(disk, "s", 0, 2)
	if err != nil {
		f.Fatal(err)
	}
	sink, err := s.Create(1, 7, 2, raft.Configuration{}, 1, nil)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := sink.Write([]byte("state")); err != nil {
		f.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		f.Fatal(err)
	}
	content, err := readFile(disk, s.path(sink.ID()), 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(content)
	f.Fuzz(func(t *testing.T, content []byte) {
		disk := vfs.NewMem()
		if err := disk.MkdirAll("s", 0o700); err != nil {
			t.Fatal(err)
		}
		s, err := openSnapStore(disk, "s", 0, 2)
		if err != nil {
			t.Fatal(err)
		}
		if err := writeFile(disk, s.dir, sink.ID()+snapSuffix, content); err != nil {
			t.Fatal(err)
		}
		meta, r, err := s.Open(sink.ID())
		if err != nil {
			return
		}
		n, err := io.Copy(io.Discard, r)
		if err == nil && n != meta.Size {
			t.Errorf("%d bytes, meta says %d", n, meta.Size)
		}
		_ = r.Close()
	})
}

// Snapshots larger than a frame come back whole, newest first, and old ones go.
func TestSnapshotFiles(t *testing.T) {
	disk := vfs.NewMem()
	if err := disk.MkdirAll("s", 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := openSnapStore(disk, "s", 0, 2)
	if err != nil {
		t.Fatal(err)
	}
	state := bytes.Repeat([]byte("0123456789"), 100_000)
	for i := range uint64(4) {
		sink, err := s.Create(1, 10+i, 9-i, raft.Configuration{Servers: []raft.Server{{ID: "a"}}}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sink.Write(state[:len(state)-int(i)]); err != nil {
			t.Fatal(err)
		}
		if i == 3 {
			if err := sink.Cancel(); err != nil {
				t.Fatal(err)
			}
			break
		}
		if err := sink.Close(); err != nil {
			t.Fatal(err)
		}
	}
	metas, err := s.all()
	if err != nil || len(metas) != 2 || metas[0].Index != 12 || metas[1].Index != 11 || metas[0].Configuration.Servers[0].ID != "a" {
		t.Fatalf("%d snapshots, %v", len(metas), err)
	}
	if newest, err := s.List(); err != nil || len(newest) != 1 || newest[0].Index != 12 {
		t.Errorf("List gives %d snapshots, %v", len(newest), err)
	}
	meta, r, err := s.Open(metas[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, state[:len(state)-2]) || meta.Size != int64(len(got)) {
		t.Errorf("%d bytes of %d, %v", len(got), meta.Size, err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	if err := s.recover(); s.index.Load() != 12 || err != nil {
		t.Errorf("newest %d, %v", s.index.Load(), err)
	}
}
