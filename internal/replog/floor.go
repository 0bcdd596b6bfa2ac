package replog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// The floor is a file beside the database that says how much of each group was
// durable at some past moment. The database cannot lose less than that without
// being caught: its manifest, and the tail of its last write-ahead file, end
// without an error where bytes went bad. The floor is written after a start,
// when the database has moved data between files, and at Close; it is off the
// append path, and it is only ever behind.
const (
	floorName    = "floor"
	floorMagic   = "assent-floor-1\n\x00"
	floorMinSize = len(floorMagic) + 4 + 4
)

type floorMark struct {
	last uint64 // index of the last durable entry, or of the snapshot if that is later
	term uint64 // Raft's current term
}

func encodeFloor(marks []floorMark) []byte {
	b := append([]byte(nil), floorMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(marks)))
	for _, m := range marks {
		b = binary.LittleEndian.AppendUint64(b, m.last)
		b = binary.LittleEndian.AppendUint64(b, m.term)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeFloor(b []byte) ([]floorMark, error) {
	if len(b) < floorMinSize || string(b[:len(floorMagic)]) != floorMagic {
		return nil, fmt.Errorf("not a floor file")
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fmt.Errorf("checksum wrong")
	}
	body = body[len(floorMagic):]
	n := binary.LittleEndian.Uint32(body)
	body = body[4:]
	if uint64(len(body)) != uint64(n)*16 {
		return nil, fmt.Errorf("%d bytes for %d shards", len(body), n)
	}
	marks := make([]floorMark, n)
	for i := range marks {
		marks[i] = floorMark{last: binary.LittleEndian.Uint64(body[i*16:]), term: binary.LittleEndian.Uint64(body[i*16+8:])}
	}
	return marks, nil
}

// readFloor returns nil without an error if there is none: the directory was
// never opened to the end.
func readFloor(disk vfs.FS, dir string, shards int) ([]floorMark, error) {
	content, err := readFile(disk, disk.PathJoin(dir, floorName), 1<<20)
	if oserror.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read floor: %w", err)
	}
	marks, err := decodeFloor(content)
	if err != nil {
		return nil, damaged(dir, "%s: %v", floorName, err)
	}
	if len(marks) != shards {
		return nil, damaged(dir, "%s: %d shards, identity says %d", floorName, len(marks), shards)
	}
	return marks, nil
}
