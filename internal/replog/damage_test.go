package replog

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// killed returns a directory as a process that was killed leaves it: everything
// acknowledged is in the files, nothing was closed. The first entries are large.
func killed(t *testing.T, large, small int) (dir string, want []string) {
	t.Helper()
	live := filepath.Join(t.TempDir(), "live")
	m := newRecorder()
	l := open(t, config(live, m))
	lead(t, l.Group(0))
	for i := range large {
		mustPropose(t, l.Group(0), fmt.Sprintf("%d%s", i, strings.Repeat("L", 50_000)))
	}
	for _, d := range numbered(0, small) {
		mustPropose(t, l.Group(0), d)
	}
	dir = copyDir(t, live)
	want = m.stream()
	closeLog(t, l)
	return dir, want
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	for {
		to := filepath.Join(t.TempDir(), "copy")
		err := os.CopyFS(to, os.DirFS(from))
		if errors.Is(err, os.ErrNotExist) {
			continue // the database of a log that runs has just removed an old file
		}
		if err != nil {
			t.Fatal(err)
		}
		return to
	}
}

// theFile returns the one file that matches, or the last of several.
func theFile(t *testing.T, dir, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("no file %s in %s: %v", pattern, dir, err)
	}
	slices.Sort(names)
	return names[len(names)-1]
}

func walNumber(t *testing.T, name string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(name), ".log"), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

func nonceOf(t *testing.T, dir string) (nonce [nonceBytes]byte) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, identityName))
	if err != nil {
		t.Fatal(err)
	}
	id, err := decodeIdentity(content)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hex.Decode(nonce[:], []byte(id.Nonce)); err != nil {
		t.Fatal(err)
	}
	return nonce
}

// opens reports what a directory holds: the last index, or the refusal.
func opens(t *testing.T, dir string) (last uint64, err error) {
	t.Helper()
	cfg := config(dir, newRecorder())
	cfg.ElectionTimeoutMs, cfg.still = 600_000, true // it appends nothing by itself
	cfg.OnFatal = func(error) {}
	l, err := Open(cfg)
	if err != nil {
		return 0, err
	}
	last = l.Group(0).Stats().LastIndex
	closeLog(t, l)
	return last, nil
}

func write(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// lastRecord is the offset where the last record of a write-ahead file begins,
// and where it ends.
func lastRecord(t *testing.T, b []byte, num uint32) (from, to int) {
	t.Helper()
	for off := 0; ; {
		off = skipPadding(b, off)
		c, ok := walChunkAt(b, off, num)
		if !ok {
			return from, to
		}
		if c.position <= 1 {
			from = off
		}
		off = c.end
		to = off
	}
}

// Every single flipped bit in a write-ahead file, except in its last record,
// either changes nothing that is read or is found out.
func TestEveryFlippedByteOfAKilledLogIsFound(t *testing.T) {
	for _, shape := range []struct{ large, small int }{{0, 400}, {20, 30}} {
		dir, _ := killed(t, shape.large, shape.small)
		name := theFile(t, dir, dbName+"/*.log")
		num, nonce := walNumber(t, name), nonceOf(t, dir)
		sound, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		want, err := checkWAL(sound, num, nonce)
		if err != nil || want.closed || want.records < shape.small+shape.large/4 {
			t.Fatalf("the sound file: %+v, %v", want, err)
		}
		from, to := lastRecord(t, sound, num)
		step := max(1, to/4000)
		missed := 0
		for i := 0; i < from; i += step {
			bad := slices.Clone(sound)
			bad[i] ^= 1 << (i % 8)
			if got, err := checkWAL(bad, num, nonce); err == nil && got != want {
				missed++
				t.Errorf("offset %d of %d: %+v, want a refusal or %+v", i, from, got, want)
			}
		}
		if missed > 0 {
			t.Errorf("%d flips of %d were missed", missed, from/step)
		}
		// In the last record alone bad bytes look like a write cut short.
		bad := slices.Clone(sound)
		bad[to-1] ^= 1
		if got, err := checkWAL(bad, num, nonce); err != nil || got.offset != from {
			t.Errorf("last record: %+v, %v, want the end at %d", got, err, from)
		}
	}
}

// Records that begin at every distance from the end of a block are read: the
// rest of a block may be too short for a chunk, or take a chunk without payload.
func TestRecordsAtBlockEnds(t *testing.T) {
	mem := vfs.NewMem()
	options := func() *pebble.Options {
		return &pebble.Options{FS: mem, FormatMajorVersion: pebble.FormatWALSyncChunks, MemTableSize: 8 << 20, Logger: dbLogger{logger: quiet(), fail: func(err error) { t.Error(err) }}}
	}
	for range 2 { // the second write-ahead file has the format
		db, err := pebble.Open("db", options())
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	db, err := pebble.Open("db", options())
	if err != nil {
		t.Fatal(err)
	}
	names, err := mem.List("db")
	if err != nil {
		t.Fatal(err)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, ".log") })
	name := slices.Max(names)
	content := func() []byte {
		b, err := readWhole(mem, "db/"+name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	records := 0
	for left := range 64 {
		at := len(content())
		fill := walBlock - at%walBlock - left - walHeaderSync - batchHeader - 1 - 3
		if fill < 0 {
			fill += walBlock - walHeaderSync // in the next block, behind one more header
		}
		if err := db.LogData(make([]byte, fill), pebble.Sync); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := db.Set([]byte("key"), []byte("value"), pebble.Sync); err != nil {
				t.Fatal(err)
			}
			records++
		}
		b := content()
		got, err := checkWAL(b, walNumber(t, name), [nonceBytes]byte{1})
		if err != nil || got.records != records || len(trimZeros(b[got.offset:])) != 0 {
			t.Errorf("%d bytes left in a block: %+v of %d bytes, %v, want %d records", left, got, len(b), err, records)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// The same through Open, with the header's fields hit on purpose: the least bit
// of a log number makes the header an end marker.
func TestFlippedByteRefusesToStart(t *testing.T) {
	dir, want := killed(t, 3, 60)
	name := theFile(t, dir, dbName+"/*.log")
	sound, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	num := walNumber(t, name)
	from, to := lastRecord(t, sound, num)
	full, err := opens(t, copyDir(t, dir))
	if err != nil || full < uint64(len(want)) {
		t.Fatalf("the sound directory: %d entries, %v", full, err)
	}
	offsets := []int{0, 4, 5, 6, 7, 11, 18, 19, 40, from - 1}
	for i := 100; i < from; i += from / 12 {
		offsets = append(offsets, i)
	}
	for off := 0; off < from; { // every field of one header in the middle
		c, _ := walChunkAt(sound, off, num)
		if c.end > from/2 {
			offsets = append(offsets, off, off+4, off+5, off+6, off+7, off+8, off+11)
			break
		}
		off = skipPadding(sound, c.end)
	}
	found := 0
	for _, off := range offsets {
		for _, mask := range []byte{1, 0x80} {
			bad := copyDir(t, dir)
			content := slices.Clone(sound)
			content[off] ^= mask
			write(t, filepath.Join(bad, dbName, filepath.Base(name)), content)
			last, err := opens(t, bad)
			switch {
			case errors.Is(err, ErrDamaged):
				found++
			case err != nil:
				t.Errorf("offset %d: %v, want %v", off, err, ErrDamaged)
			case last < full:
				t.Errorf("offset %d: %d entries of %d were silently lost", off, full-last, full)
			}
		}
	}
	if found < len(offsets) {
		t.Errorf("%d of %d flips were refused", found, 2*len(offsets))
	}
	// A torn tail is cut.
	for _, cut := range []int{from, from + 1, from + 7, from + 19, (from + to) / 2, to - 1} {
		torn := copyDir(t, dir)
		write(t, filepath.Join(torn, dbName, filepath.Base(name)), sound[:cut])
		if last, err := opens(t, torn); err != nil || last != full-1 {
			t.Errorf("cut at %d: %d entries, %v, want %d", cut, last, err, full-1)
		}
		if last, err := opens(t, torn); err != nil || last != full-1 {
			t.Errorf("cut at %d, second start: %d entries, %v, want %d", cut, last, err, full-1)
		}
	}
}

// A write-ahead file whose very first record is torn must not stop a later start.
func TestTornFirstRecord(t *testing.T) {
	live := made(t, 5)
	floor, err := os.ReadFile(filepath.Join(live, floorName))
	if err != nil {
		t.Fatal(err)
	}
	l := open(t, config(live, newRecorder())) // a fresh write-ahead file
	lead(t, l.Group(0))
	mustPropose(t, l.Group(0), "lost")
	dir := copyDir(t, live)
	write(t, filepath.Join(dir, floorName), floor) // it is raised in the background: the power failed before
	had := l.Group(0).Stats().LastIndex
	closeLog(t, l)
	name := theFile(t, dir, dbName+"/*.log")
	sound, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	write(t, name, sound[:10])
	for range 3 {
		// Without this run's no-op and its proposal.
		if last, err := opens(t, dir); err != nil || last != had-2 {
			t.Fatalf("%d entries, %v, want %d", last, err, had-2)
		}
	}
}

// After a clean Close nothing may be missing at all.
func TestDamageAfterCleanClose(t *testing.T) {
	dir := made(t, 50)
	full, err := opens(t, copyDir(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	hit := func(what, pattern string, step int) {
		name := theFile(t, dir, pattern)
		sound, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for i := 0; i < len(sound); i += step {
			bad := copyDir(t, dir)
			content := slices.Clone(sound)
			content[i] ^= 1 << (i % 8)
			write(t, filepath.Join(bad, rel), content)
			last, err := opens(t, bad)
			switch {
			case errors.Is(err, ErrDamaged):
				found++
			case err != nil:
				t.Errorf("%s, offset %d: %v, want %v", what, i, err, ErrDamaged)
			case last < full:
				t.Errorf("%s, offset %d of %d: %d of %d entries were silently lost", what, i, len(sound), full-last, full)
			}
		}
		if found == 0 {
			t.Errorf("%s: no flip was found", what)
		}
		t.Logf("%s: %d of %d flips refused, the others harmless", what, found, (len(sound)+step-1)/step)
		for _, size := range []int{0, len(sound) / 3, len(sound) - 1} {
			cut := copyDir(t, dir)
			write(t, filepath.Join(cut, rel), sound[:size])
			if last, err := opens(t, cut); err == nil && last < full {
				t.Errorf("%s cut to %d bytes: %d of %d entries were silently lost", what, size, full-last, full)
			}
		}
	}
	hit("write-ahead file", dbName+"/*.log", 211)
	hit("floor", floorName, 1)
	// A second start moves the entries into a table, and the manifest says so.
	if _, err := opens(t, dir); err != nil {
		t.Fatal(err)
	}
	hit("manifest", dbName+"/MANIFEST-*", 5)
	hit("table", dbName+"/*.sst", 41)
}

// A log that was cut between two records is not seen to be cut before the database
// has been opened, which rewrites its files: they are kept as they were found.
func TestLostTailIsRefusedAndKept(t *testing.T) {
	dir := made(t, 50)
	name := theFile(t, dir, dbName+"/*.log")
	sound, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	num := walNumber(t, name)
	boundary := 0
	for off := 0; off < len(sound)/2; {
		c, ok := walChunkAt(sound, off, num)
		if !ok {
			t.Fatalf("no chunk at %d", off)
		}
		off = skipPadding(sound, c.end)
		boundary = off
	}
	write(t, name, sound[:boundary])
	for range 2 { // the second start must not replace what the first one kept
		if _, err := opens(t, dir); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), foundName) || strings.Contains(err.Error(), "nothing was changed") {
			t.Fatalf("%v", err)
		}
		kept, err := os.ReadFile(filepath.Join(dir, foundName, filepath.Base(name)))
		if err != nil || string(kept) != string(sound[:boundary]) {
			t.Fatalf("%d bytes of %d are kept, %v", len(kept), boundary, err)
		}
	}
	whole := made(t, 3)
	if _, err := opens(t, whole); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(whole, foundName)); !os.IsNotExist(err) {
		t.Errorf("links are left in a sound directory: %v", err)
	}
}

func TestMissingParts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	cfg := config(dir, newRecorder())
	cfg.TrailingEntries = 5
	l := open(t, cfg)
	lead(t, l.Group(0))
	for _, d := range numbered(0, 50) {
		mustPropose(t, l.Group(0), d)
	}
	if err := l.Snapshot(0); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	snapshot := theFile(t, dir, snapshotsDir+"/0/*"+snapSuffix)
	rel, err := filepath.Rel(dir, snapshot)
	if err != nil {
		t.Fatal(err)
	}
	for _, missing := range []string{floorName, dbName, snapshotsDir, rel} {
		bad := copyDir(t, dir)
		if err := os.RemoveAll(filepath.Join(bad, missing)); err != nil {
			t.Fatal(err)
		}
		if _, err := opens(t, bad); !errors.Is(err, ErrDamaged) {
			t.Errorf("without %s: %v", missing, err)
		}
	}
	sound, err := os.ReadFile(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(sound); i += 31 {
		bad := copyDir(t, dir)
		content := slices.Clone(sound)
		content[i] ^= 1 << (i % 8)
		write(t, filepath.Join(bad, rel), content)
		if _, err := opens(t, bad); !errors.Is(err, ErrDamaged) {
			t.Errorf("snapshot, offset %d of %d: %v", i, len(sound), err)
		}
		write(t, filepath.Join(bad, rel), sound[:i])
		if _, err := opens(t, bad); !errors.Is(err, ErrDamaged) {
			t.Errorf("snapshot cut to %d of %d bytes: %v", i, len(sound), err)
		}
	}
	if _, err := opens(t, dir); err != nil {
		t.Errorf("the sound directory: %v", err)
	}
}
