package replog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// An entry at rest. The key is kindEntry, shard and index, big-endian, so that
// keys sort by index. The value is, little-endian where fixed:
//
//	byte    format (1)
//	byte    raft.LogType
//	uint32  CRC-32C of key and the rest of the value
//	uint64  term
//	int64   leader's time of append, Unix nanoseconds; 0 = none
//	uvarint length of the extensions, then the extensions
//	        data, to the end
const (
	kindEntry  byte = 'e'
	kindStable byte = 's'

	entryFormat      = 1
	entryHeaderBytes = 1 + 1 + 4 + 8 + 8
	entryKeyBytes    = 1 + 4 + 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errBadEntry = errors.New("entry fails its checks")

func putEntryKey(dst []byte, shard uint32, index uint64) {
	dst[0] = kindEntry
	binary.BigEndian.PutUint32(dst[1:], shard)
	binary.BigEndian.PutUint64(dst[5:], index)
}

func entryKey(shard uint32, index uint64) []byte {
	k := make([]byte, entryKeyBytes)
	putEntryKey(k, shard, index)
	return k
}

func stableKey(shard uint32, name []byte) []byte {
	k := make([]byte, 0, 5+len(name))
	k = append(k, kindStable)
	k = binary.BigEndian.AppendUint32(k, shard)
	return append(k, name...)
}

func uvarintLen(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

func entrySize(l *raft.Log) int {
	return entryHeaderBytes + uvarintLen(uint64(len(l.Extensions))) + len(l.Extensions) + len(l.Data)
}

// putEntry encodes l into dst, which has entrySize(l) bytes; key is its key.
func putEntry(dst, key []byte, l *raft.Log) {
	dst[0] = entryFormat
	dst[1] = byte(l.Type)
	binary.LittleEndian.PutUint64(dst[6:], l.Term)
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	binary.LittleEndian.PutUint64(dst[14:], uint64(at))
	n := entryHeaderBytes
	n += binary.PutUvarint(dst[n:], uint64(len(l.Extensions)))
	n += copy(dst[n:], l.Extensions)
	copy(dst[n:], l.Data)
	binary.LittleEndian.PutUint32(dst[2:], entrySum(key, dst))
}

func entrySum(key, value []byte) uint32 {
	sum := crc32.Update(0, castagnoli, key)
	sum = crc32.Update(sum, castagnoli, value[:2])
	return crc32.Update(sum, castagnoli, value[6:])
}

// getEntry decodes a stored entry into l, copying what it keeps.
func getEntry(key, value []byte, l *raft.Log) error {
	if len(key) != entryKeyBytes || key[0] != kindEntry {
		return fmt.Errorf("%w: key of %d bytes", errBadEntry, len(key))
	}
	if len(value) < entryHeaderBytes+1 {
		return fmt.Errorf("%w: %d bytes", errBadEntry, len(value))
	}
	if value[0] != entryFormat {
		return fmt.Errorf("%w: format %d, this program knows %d", errBadEntry, value[0], entryFormat)
	}
	if got, want := entrySum(key, value), binary.LittleEndian.Uint32(value[2:]); got != want {
		return fmt.Errorf("%w: checksum %08x, stored %08x", errBadEntry, got, want)
	}
	ext, n := binary.Uvarint(value[entryHeaderBytes:])
	rest := value[entryHeaderBytes:]
	if n <= 0 || ext > uint64(len(rest)-n) {
		return fmt.Errorf("%w: extensions run over the end", errBadEntry)
	}
	rest = rest[n:]
	*l = raft.Log{
		Index: binary.BigEndian.Uint64(key[5:]),
		Term:  binary.LittleEndian.Uint64(value[6:]),
		Type:  raft.LogType(value[1]),
	}
	if at := int64(binary.LittleEndian.Uint64(value[14:])); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	if ext > 0 {
		l.Extensions = append([]byte(nil), rest[:ext]...)
	}
	if data := rest[ext:]; len(data) > 0 {
		l.Data = append([]byte(nil), data...)
	}
	return nil
}
