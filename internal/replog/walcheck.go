package replog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/batchrepr"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"

	"github.com/assent-tx/assent/internal/mutant"
)

// Before the database is opened, its write-ahead files and its manifest are read
// here, because the database itself takes bad bytes for the end of the file in
// cases where they are not: anywhere in the manifest; in a write-ahead file when
// a good record follows in the same 32 KB block, when a header's log number was
// hit, and when its own promise (the "sync offset" in each chunk) lags, which it
// does after large writes.
//
// Our own promise rests on two facts: records lie in a write-ahead file in the
// order of their sequence numbers, and a sync covers all before it. Every synced
// batch begins with a note: "all records below this sequence number were synced
// when I was written". So a record that is missing although a later note covers
// it was lost after it was durable: damage. A bad spot that no later note covers
// is a write that a crash cut short: the database cuts it off.
//
// What stays invisible: bad bytes in the last synced batches of a process that
// was killed, behind which no note was written yet. After a clean Close the floor
// file covers those too.

const (
	nonceBytes = 8
	noteBytes  = nonceBytes + 8

	walBlock        = 32 << 10
	walHeaderMin    = 7  // checksum, size, type
	walHeaderNumber = 11 // and log number
	walHeaderSync   = 19 // and sync offset

	// Chunk types, in groups of four: full, first, middle, last.
	walTypeNumbered = 5
	walTypeSync     = 9
	walTypeEnd      = 13

	batchHeader = 12 // sequence number, count
)

// note is the first operation of every synced batch.
func appendNote(dst []byte, nonce [nonceBytes]byte, synced uint64) []byte {
	dst = append(dst, nonce[:]...)
	return binary.LittleEndian.AppendUint64(dst, synced)
}

// noteOf returns the promise in the beginning of a batch.
func noteOf(batch []byte, nonce [nonceBytes]byte) (uint64, bool) {
	const kindLogData = 3
	if len(batch) < batchHeader+2+noteBytes || batch[batchHeader] != kindLogData || batch[batchHeader+1] != noteBytes ||
		!bytes.Equal(batch[batchHeader+2:batchHeader+2+nonceBytes], nonce[:]) {
		return 0, false
	}
	return binary.LittleEndian.Uint64(batch[batchHeader+2+nonceBytes:]), true
}

// walChunk is a piece of a record; it never crosses a block.
type walChunk struct {
	position byte // 0 full, 1 first, 2 middle, 3 last
	synced   uint64
	payload  []byte
	end      int // offset behind it
}

func cookedSum(b []byte) uint32 {
	c := crc32.Checksum(b, castagnoli)
	return (c>>15 | c<<17) + 0xa282ead8
}

// walChunkAt decodes the chunk of log number num at off, if a sound one lies there.
func walChunkAt(b []byte, off int, num uint32) (walChunk, bool) {
	end := min(len(b), (off/walBlock+1)*walBlock)
	if off+walHeaderNumber > end {
		return walChunk{}, false
	}
	kind := b[off+6]
	header := walHeaderNumber
	switch {
	case kind >= walTypeSync && kind < walTypeEnd:
		header = walHeaderSync
	case kind >= walTypeNumbered && kind < walTypeSync:
	default:
		return walChunk{}, false
	}
	next := off + header + int(binary.LittleEndian.Uint16(b[off+4:]))
	if next > end || binary.LittleEndian.Uint32(b[off+7:]) != num ||
		cookedSum(b[off+6:next]) != binary.LittleEndian.Uint32(b[off:]) {
		return walChunk{}, false
	}
	c := walChunk{position: (kind - 1) % 4, payload: b[off+header : next], end: next}
	if header == walHeaderSync {
		c.synced = binary.LittleEndian.Uint64(b[off+11:])
	}
	return c, true
}

// skipPadding moves off to where the next chunk would begin: a block's rest that
// is too short for a header is filled with zeros.
func skipPadding(b []byte, off int) int {
	blockEnd := (off/walBlock + 1) * walBlock
	if blockEnd <= len(b) && blockEnd-off < walHeaderSync && !slices.ContainsFunc(b[off:blockEnd], func(c byte) bool { return c != 0 }) {
		return blockEnd
	}
	return off
}

// walEnd says where and how the sound part of a write-ahead file ends.
type walEnd struct {
	offset  int    // of the first byte that is no sound record
	next    uint64 // sequence number behind the last record; 0: no record
	records int
	closed  bool // an end marker stands there
}

// checkWAL returns an error if a record that was once durable is not readable.
func checkWAL(b []byte, num uint32, nonce [nonceBytes]byte) (walEnd, error) {
	if mutant.On("log-no-promise-check") {
		nonce = [nonceBytes]byte{}
	}
	var e walEnd
	var record []byte
	inside := false // a record has begun; its first chunk may be empty
	for off := 0; ; {
		off = skipPadding(b, off)
		c, ok := walChunkAt(b, off, num)
		if !ok || inside != (c.position >= 2) {
			e.closed = !inside && isEndMarker(b, off, num)
			break
		}
		record = append(record, c.payload...)
		off = c.end
		inside = c.position == 1 || c.position == 2
		if inside {
			continue
		}
		h, ok := batchrepr.ReadHeader(record)
		if !ok {
			return e, fmt.Errorf("record of %d bytes at offset %d", len(record), e.offset)
		}
		if synced, ok := noteOf(record, nonce); ok && e.records > 0 && synced > e.next {
			return e, fmt.Errorf("records %d to %d, which were durable, are missing before offset %d", e.next, synced, e.offset)
		}
		if h.Count > 0 {
			e.next = uint64(h.SeqNum) + uint64(h.Count)
			e.records++
		}
		e.offset = off
		record = record[:0]
	}
	return e, checkBehind(b, num, nonce, e)
}

// isEndMarker reports the header that a closed file ends with: no payload, and
// the log number behind this one's.
func isEndMarker(b []byte, off int, num uint32) bool {
	return off+walHeaderNumber <= len(b) && b[off+6] == walTypeNumbered &&
		binary.LittleEndian.Uint16(b[off+4:]) == 0 && binary.LittleEndian.Uint32(b[off:]) == 0 &&
		binary.LittleEndian.Uint32(b[off+7:]) == num+1
}

// checkBehind looks for sound chunks behind the end that prove that more was
// durable. They may lie anywhere: the size in the bad header says nothing.
func checkBehind(b []byte, num uint32, nonce [nonceBytes]byte, e walEnd) error {
	// ends are where sound batches behind the end end, in sequence numbers: a
	// note beyond any of them covers the bad spot too. Only the least matters.
	least := e.next
	known := e.records > 0
	pattern := binary.LittleEndian.AppendUint32(nil, num)
	for off := e.offset; ; {
		i := bytes.Index(b[min(off+7, len(b)):], pattern)
		if i < 0 {
			return nil
		}
		off += i
		c, ok := walChunkAt(b, off, num)
		if !ok {
			off++
			continue
		}
		if c.synced > uint64(e.offset) {
			return fmt.Errorf("bad bytes at offset %d, although a record at offset %d says that all before offset %d was durable",
				e.offset, off, c.synced)
		}
		if c.position <= 1 && len(c.payload) >= batchHeader {
			if synced, ok := noteOf(c.payload, nonce); ok && known && synced > least {
				return fmt.Errorf("bad bytes at offset %d, although a record at offset %d says that all records below %d were durable (%d is next)",
					e.offset, off, synced, e.next)
			}
			if h, ok := batchrepr.ReadHeader(c.payload); ok && h.Count > 0 && !known {
				least, known = uint64(h.SeqNum)+uint64(h.Count)-1, true
			}
		}
		off = c.end
	}
}

// checkDatabaseFiles checks the write-ahead files and the manifest of the
// database in dir, before anything in it is changed. It returns a line for each
// file that a crash cut short.
func checkDatabaseFiles(disk vfs.FS, dir string, nonce [nonceBytes]byte) (torn []string, err error) {
	names, err := disk.List(dir)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	for _, name := range names {
		base, isWAL := strings.CutSuffix(name, ".log")
		num, perr := strconv.ParseUint(base, 10, 64)
		if !isWAL || perr != nil {
			continue
		}
		content, err := readWhole(disk, disk.PathJoin(dir, name))
		if err != nil {
			return nil, err
		}
		end, err := checkWAL(content, uint32(num), nonce)
		if err != nil {
			return nil, damaged(dir, "%s: %v", name, err)
		}
		if rest := trimZeros(content[end.offset:]); !end.closed && len(rest) > 0 {
			torn = append(torn, fmt.Sprintf("%s: ends at offset %d after %d records; at most %d bytes of an unfinished write follow",
				name, end.offset, end.records, len(rest)))
		}
	}
	manifest, err := atomicfs.ReadMarker(disk, dir, "manifest")
	if err != nil {
		return nil, err
	}
	if manifest == "" {
		return torn, nil
	}
	content, err := readWhole(disk, disk.PathJoin(dir, manifest))
	if err != nil {
		return nil, damaged(dir, "%s: %v", manifest, err)
	}
	if err := checkManifest(content); err != nil {
		return nil, damaged(dir, "%s: %v", manifest, err)
	}
	return torn, nil
}

func trimZeros(b []byte) []byte { return bytes.TrimRight(b, "\x00") }

func readWhole(disk vfs.FS, name string) ([]byte, error) {
	f, err := disk.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(f)
}

// checkManifest returns an error if a sound record lies behind a bad spot: each
// record of a manifest is synced before the next is written.
func checkManifest(b []byte) error {
	off := 0
	for off < len(b) {
		if blockEnd := (off/walBlock + 1) * walBlock; blockEnd-off < walHeaderMin {
			off = blockEnd
			continue
		}
		next, ok := manifestChunkAt(b, off)
		if !ok {
			break
		}
		off = next
	}
	for i := off + 1; i < len(b); i++ {
		if _, ok := manifestChunkAt(b, i); ok {
			return fmt.Errorf("bad bytes at offset %d, a sound record at %d", off, i)
		}
	}
	return nil
}

func manifestChunkAt(b []byte, off int) (next int, ok bool) {
	end := min(len(b), (off/walBlock+1)*walBlock)
	if off+walHeaderMin > end || b[off+6] < 1 || b[off+6] >= walTypeNumbered {
		return 0, false
	}
	next = off + walHeaderMin + int(binary.LittleEndian.Uint16(b[off+4:]))
	if next > end || next == off+walHeaderMin || cookedSum(b[off+6:next]) != binary.LittleEndian.Uint32(b[off:]) {
		return 0, false
	}
	return next, true
}
