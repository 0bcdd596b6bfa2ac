// Package backup is the file of a cluster's backup: the snapshot of every shard, as its
// leader had it, behind a header that says of which cluster.
//
//	magic | uint32 length, header (JSON) | for each shard, in order: part | end
//	part: uint32 shard | uint64 length | data | SHA-256 of all of it
//	end:  uint32 0xffffffff | SHA-256 of the whole file so far
//
// Numbers are big-endian. A file that was cut short, or in which a bit is wrong, is refused
// before the part that it is in has been handed out; only a file with its end is whole.
package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"
)

const (
	magic      = "assent-backup-1\n"
	format     = 1
	endMark    = 1<<32 - 1
	sumBytes   = sha256.Size
	pieceBytes = 1 << 20
)

// Limits of a file. One with more is refused.
const (
	MaxHeaderBytes = 64 << 10
	MaxShards      = 1024
	MaxPartBytes   = 4 << 30 // of one shard: what a node can restore
)

// ErrDamaged is wrapped by the errors of a file that is not a whole, sound backup.
var ErrDamaged = errors.New("not a sound backup")

// Header says what a backup is of.
type Header struct {
	Format      uint32    `json:"format"`
	Cluster     string    `json:"cluster"` // 32 hexadecimal digits
	Incarnation uint64    `json:"incarnation"`
	Shards      uint32    `json:"shards"`
	Version     string    `json:"version"`  // of the program that made it; for people
	TakenAt     time.Time `json:"taken_at"` // the clock of the node that made it
}

func (h *Header) check() error {
	switch {
	case h.Format != format:
		return fmt.Errorf("format %d, this program knows %d", h.Format, format)
	case len(h.Cluster) != 32 || !isHex(h.Cluster):
		return fmt.Errorf("cluster %.40q: must be 32 lower-case hexadecimal digits", h.Cluster)
	case h.Incarnation < 1 || h.Incarnation > 1<<32-1:
		return fmt.Errorf("incarnation %d", h.Incarnation)
	case h.Shards < 1 || h.Shards > MaxShards:
		return fmt.Errorf("%d shards, must be 1 to %d", h.Shards, MaxShards)
	}
	return nil
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Writer writes a backup.
type Writer struct {
	to     io.Writer
	whole  hash.Hash
	shards uint32
	next   uint32
	err    error
}

// NewWriter writes the header. Header.Format is filled in.
func NewWriter(to io.Writer, h Header) (*Writer, error) {
	h.Format = format
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	head, err := json.Marshal(&h)
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	if len(head) > MaxHeaderBytes {
		return nil, fmt.Errorf("backup: header of %d bytes", len(head))
	}
	whole := sha256.New()
	w := &Writer{to: io.MultiWriter(to, whole), whole: whole, shards: h.Shards}
	b := append([]byte(magic), binary.BigEndian.AppendUint32(nil, uint32(len(head)))...)
	w.write(w.to, append(b, head...))
	return w, w.err
}

func (w *Writer) write(to io.Writer, b []byte) {
	if w.err == nil {
		_, w.err = to.Write(b)
	}
}

// Part writes the next shard's part: size bytes that from hands to put in pieces.
func (w *Writer) Part(size int64, from func(put func([]byte) error) error) error {
	if w.err != nil {
		return w.err
	}
	if w.next >= w.shards || size < 0 || size > MaxPartBytes {
		w.err = fmt.Errorf("backup: part %d of %d shards, of %d bytes", w.next, w.shards, size)
		return w.err
	}
	sum := sha256.New()
	to := io.MultiWriter(w.to, sum)
	head := binary.BigEndian.AppendUint32(nil, w.next)
	w.write(to, binary.BigEndian.AppendUint64(head, uint64(size)))
	left := size
	err := from(func(b []byte) error {
		if left -= int64(len(b)); left < 0 {
			return fmt.Errorf("backup: more than the %d bytes of shard %d", size, w.next)
		}
		w.write(to, b)
		return w.err
	})
	switch {
	case err == nil && left > 0:
		err = fmt.Errorf("backup: %d bytes of shard %d are missing", left, w.next)
		fallthrough
	case err != nil:
		w.err = err
		return err
	}
	w.next++
	w.write(w.to, sum.Sum(nil))
	return w.err
}

// Close writes the end; without it the file is not whole. It does not close what is
// written to.
func (w *Writer) Close() error {
	if w.err == nil && w.next != w.shards {
		w.err = fmt.Errorf("backup: %d parts of %d shards", w.next, w.shards)
	}
	w.write(w.to, binary.BigEndian.AppendUint32(nil, endMark))
	w.write(w.to, w.whole.Sum(nil))
	if w.err != nil {
		return w.err
	}
	w.err = errors.New("backup: closed")
	return nil
}

// Size is how long a backup with this header and these parts is.
func Size(h Header, parts []int64) (int64, error) {
	var n counter
	w, err := NewWriter(&n, h)
	if err != nil {
		return 0, err
	}
	_ = w
	for _, p := range parts {
		n += counter(4 + 8 + p + sumBytes)
	}
	return int64(n) + 4 + sumBytes, nil
}

type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// Reader reads a backup.
type Reader struct {
	from   io.Reader // hashes what is read
	raw    io.Reader
	whole  hash.Hash
	header Header
	next   uint32
	err    error
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrDamaged, fmt.Errorf(format, args...))
}

// NewReader reads the header.
func NewReader(from io.Reader) (*Reader, error) {
	whole := sha256.New()
	r := &Reader{from: io.TeeReader(from, whole), raw: from, whole: whole}
	head := make([]byte, len(magic)+4)
	if err := r.read(head); err != nil {
		return nil, err
	}
	if string(head[:len(magic)]) != magic {
		return nil, damaged("it does not begin as one")
	}
	n := binary.BigEndian.Uint32(head[len(magic):])
	if n > MaxHeaderBytes {
		return nil, damaged("header of %d bytes", n)
	}
	text := make([]byte, n)
	if err := r.read(text); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &r.header); err != nil {
		return nil, damaged("header: %w", err)
	}
	if err := r.header.check(); err != nil {
		return nil, damaged("header: %w", err)
	}
	return r, nil
}

// Header says what the backup is of. It is not proved before Next has returned io.EOF.
func (r *Reader) Header() Header { return r.header }

func (r *Reader) read(b []byte) error {
	_, err := io.ReadFull(r.from, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("it is cut short")
	}
	return err
}

// Next returns the next shard's snapshot, and io.EOF behind the last one: only then is
// the file known to be whole.
func (r *Reader) Next() (data []byte, err error) {
	if r.err == nil {
		data, r.err = r.part()
	}
	return data, r.err
}

func (r *Reader) part() ([]byte, error) {
	if r.next == r.header.Shards {
		return nil, r.end()
	}
	head := make([]byte, 4+8)
	if err := r.read(head); err != nil {
		return nil, err
	}
	shard, size := binary.BigEndian.Uint32(head), binary.BigEndian.Uint64(head[4:])
	if shard != r.next {
		return nil, damaged("a part of shard %d where that of %d must be", shard, r.next)
	}
	if size > MaxPartBytes {
		return nil, damaged("%d bytes of shard %d", size, shard)
	}
	// Grown as it is read: a wrong length must not cost more memory than there is file.
	var data bytes.Buffer
	data.Grow(int(min(size, pieceBytes)))
	if n, err := io.CopyN(&data, r.from, int64(size)); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, damaged("it is cut short, at %d of %d bytes of shard %d", n, size, shard)
		}
		return nil, err
	}
	sum := sha256.New()
	sum.Write(head)
	sum.Write(data.Bytes())
	told := make([]byte, sumBytes)
	if err := r.read(told); err != nil {
		return nil, err
	}
	if !bytes.Equal(told, sum.Sum(nil)) {
		return nil, damaged("the part of shard %d fails its checksum", shard)
	}
	r.next++
	return data.Bytes(), nil
}

func (r *Reader) end() error {
	mark := make([]byte, 4)
	if err := r.read(mark); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(mark) != endMark {
		return damaged("no end behind the last part")
	}
	sum, told := r.whole.Sum(nil), make([]byte, sumBytes)
	if err := r.read(told); err != nil {
		return err
	}
	if !bytes.Equal(told, sum) {
		return damaged("the file fails its checksum")
	}
	if n, err := io.ReadFull(r.raw, mark[:1]); n > 0 || !errors.Is(err, io.EOF) {
		if n > 0 || err == nil {
			return damaged("there is more behind its end")
		}
		return err
	}
	return io.EOF
}
