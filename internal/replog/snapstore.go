package replog

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// A snapshot is one file, complete and synced before it gets its name:
//
//	magic | uint32 length, meta (JSON), CRC-32C | frames | uint32 0 | uint64 size of the data | CRC-32C of that size
//
// A frame is uint32 length, data, CRC-32C of the data and its offset. Numbers are
// little-endian.
const (
	snapMagic      = "assent-snapshot-1\n"
	snapSuffix     = ".snap"
	snapTmpSuffix  = ".snap.tmp"
	snapFrameBytes = 256 << 10
	snapMetaBytes  = 1 << 20
	snapTailBytes  = 4 + 8 + 4
)

var errBadSnapshot = errors.New("snapshot fails its checks")

// snapStore keeps one group's snapshots; it implements raft.SnapshotStore.
type snapStore struct {
	disk   vfs.FS
	dir    string
	retain int
	// index of the newest snapshot that is durable; 0: none. It is raised before
	// the Raft library cuts the log off below it.
	index atomic.Uint64
	// installed: the newest snapshot came from a leader, and the log may end below it.
	// Set by recover.
	installed bool
	logEnd    func() uint64 // the last index in the log
}

// snapMeta is a snapshot's header.
type snapMeta struct {
	raft.SnapshotMeta
	// Installed: the log ended below it when it was made, since a leader sent it.
	Installed bool `json:",omitempty"`
}

var _ raft.SnapshotStore = (*snapStore)(nil)

func openSnapStore(disk vfs.FS, parent string, shard uint32, retain int) (*snapStore, error) {
	s := &snapStore{disk: disk, dir: disk.PathJoin(parent, fmt.Sprint(shard)), retain: retain}
	if err := disk.MkdirAll(s.dir, dirMode); err != nil {
		return nil, err
	}
	if err := syncDir(disk, parent); err != nil {
		return nil, err
	}
	names, err := disk.List(s.dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if strings.HasSuffix(name, snapTmpSuffix) {
			if err := disk.Remove(disk.PathJoin(s.dir, name)); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

func (s *snapStore) path(id string) string { return s.disk.PathJoin(s.dir, id+snapSuffix) }

// Create begins a snapshot. It exists when the sink was closed without an error.
func (s *snapStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	if version != 1 {
		return nil, fmt.Errorf("snapshot version %d", version)
	}
	meta := raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%020d-%020d", term, index), Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}
	header, err := json.Marshal(snapMeta{meta, s.logEnd != nil && index > s.logEnd()})
	if err != nil {
		return nil, err
	}
	tmp := s.disk.PathJoin(s.dir, meta.ID+snapTmpSuffix)
	f, err := s.disk.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	k := &snapSink{store: s, id: meta.ID, index: index, tmp: tmp, file: f, frame: make([]byte, 0, snapFrameBytes)}
	b := append([]byte(nil), snapMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(header)))
	b = append(b, header...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(header, castagnoli))
	if _, err := f.Write(b); err != nil {
		return nil, errors.Join(err, k.Cancel())
	}
	return k, nil
}

// List returns the newest snapshot only: at start the Raft library would fall
// back to an older one, below which the log is gone.
func (s *snapStore) List() ([]*raft.SnapshotMeta, error) {
	metas, err := s.all()
	return metas[:min(1, len(metas))], err
}

// all returns the snapshots, newest first.
func (s *snapStore) all() ([]*raft.SnapshotMeta, error) {
	names, err := s.disk.List(s.dir)
	if err != nil {
		return nil, err
	}
	var metas []*raft.SnapshotMeta
	for _, name := range names {
		id, ok := strings.CutSuffix(name, snapSuffix)
		if !ok {
			continue
		}
		meta, r, err := s.Open(id)
		if err != nil {
			return nil, err
		}
		if err := r.Close(); err != nil {
			return nil, err
		}
		metas = append(metas, meta)
	}
	slices.SortFunc(metas, func(a, b *raft.SnapshotMeta) int {
		return cmp.Or(cmp.Compare(b.Index, a.Index), cmp.Compare(b.Term, a.Term))
	})
	return metas, nil
}

// Open returns a snapshot's meta data and a reader that checks what it reads.
func (s *snapStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := s.open(id)
	if err != nil {
		return nil, nil, err
	}
	return meta, r, nil
}

func (s *snapStore) open(id string) (*raft.SnapshotMeta, *snapReader, error) {
	f, err := s.disk.Open(s.path(id))
	if err != nil {
		return nil, nil, err
	}
	fail := func(err error) (*raft.SnapshotMeta, *snapReader, error) {
		_ = f.Close()
		return nil, nil, fmt.Errorf("%s: %w", s.path(id), err)
	}
	info, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	var tail [snapTailBytes]byte
	if info.Size() < int64(len(snapMagic)+snapTailBytes) {
		return fail(fmt.Errorf("%w: %d bytes", errBadSnapshot, info.Size()))
	}
	if _, err := f.ReadAt(tail[:], info.Size()-snapTailBytes); err != nil {
		return fail(err)
	}
	r := &snapReader{file: f, buf: bufio.NewReaderSize(f, 64<<10)}
	meta, err := r.header()
	if err != nil {
		return fail(err)
	}
	size := binary.LittleEndian.Uint64(tail[4:])
	if crc32.Checksum(tail[4:12], castagnoli) != binary.LittleEndian.Uint32(tail[12:]) || size > uint64(info.Size()) {
		return fail(fmt.Errorf("%w: end of the file", errBadSnapshot))
	}
	if meta.ID != id {
		return fail(fmt.Errorf("%w: it says %q", errBadSnapshot, meta.ID))
	}
	meta.Size = int64(size)
	r.size = size
	return meta, r, nil
}

// recover verifies the newest snapshot from end to end and sets the index.
func (s *snapStore) recover() error {
	metas, err := s.List()
	if err != nil || len(metas) == 0 {
		return err
	}
	meta, r, err := s.open(metas[0].ID)
	if err != nil {
		return err
	}
	s.installed = r.installed
	if _, err := io.Copy(io.Discard, r); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", s.path(meta.ID), err), r.Close())
	}
	s.index.Store(meta.Index)
	return r.Close()
}

// prune removes all but the newest.
func (s *snapStore) prune() error {
	metas, err := s.all()
	if err != nil {
		return err
	}
	for _, meta := range metas[min(s.retain, len(metas)):] {
		if err := s.disk.Remove(s.path(meta.ID)); err != nil {
			return err
		}
	}
	return nil
}

type snapSink struct {
	store *snapStore
	id    string
	index uint64
	tmp   string
	file  vfs.File
	frame []byte
	size  uint64 // of the data in finished frames
	done  bool
}

func (k *snapSink) ID() string { return k.id }

func (k *snapSink) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		take := min(len(p), snapFrameBytes-len(k.frame))
		k.frame = append(k.frame, p[:take]...)
		p = p[take:]
		n += take
		if len(k.frame) == snapFrameBytes {
			if err := k.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func frameSum(offset uint64, data []byte) uint32 {
	var at [8]byte
	binary.LittleEndian.PutUint64(at[:], offset)
	return crc32.Update(crc32.Checksum(at[:], castagnoli), castagnoli, data)
}

func (k *snapSink) flush() error {
	if len(k.frame) == 0 {
		return nil
	}
	var n [4]byte
	binary.LittleEndian.PutUint32(n[:], uint32(len(k.frame)))
	if _, err := k.file.Write(n[:]); err != nil {
		return err
	}
	sum := frameSum(k.size, k.frame)
	k.size += uint64(len(k.frame))
	binary.LittleEndian.PutUint32(n[:], sum)
	if _, err := k.file.Write(k.frame); err != nil {
		return err
	}
	if _, err := k.file.Write(n[:]); err != nil {
		return err
	}
	k.frame = k.frame[:0]
	return nil
}

// Close makes the snapshot durable and gives it its name.
func (k *snapSink) Close() error {
	if k.done {
		return nil
	}
	tail := func() error {
		if err := k.flush(); err != nil {
			return err
		}
		b := binary.LittleEndian.AppendUint32(nil, 0)
		b = binary.LittleEndian.AppendUint64(b, k.size)
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[4:], castagnoli))
		if _, err := k.file.Write(b); err != nil {
			return err
		}
		return k.file.Sync()
	}
	if err := tail(); err != nil {
		return errors.Join(err, k.Cancel())
	}
	k.done = true
	if err := k.file.Close(); err != nil {
		return err
	}
	if err := k.store.disk.Rename(k.tmp, k.store.path(k.id)); err != nil {
		return err
	}
	if err := syncDir(k.store.disk, k.store.dir); err != nil {
		return err
	}
	k.store.index.Store(k.index)
	return k.store.prune()
}

// Cancel drops an unfinished snapshot.
func (k *snapSink) Cancel() error {
	if k.done {
		return nil
	}
	k.done = true
	return errors.Join(k.file.Close(), k.store.disk.Remove(k.tmp))
}

// snapReader yields the data of a snapshot file; it returns an error before the
// first byte that fails its checksum, and never a clean end before the real one.
type snapReader struct {
	file  vfs.File
	buf   *bufio.Reader
	frame []byte
	rest  []byte
	read  uint64
	size  uint64
	err   error

	installed bool
	closed    bool
}

func (r *snapReader) header() (*raft.SnapshotMeta, error) {
	head := make([]byte, len(snapMagic)+4)
	if _, err := io.ReadFull(r.buf, head); err != nil || string(head[:len(snapMagic)]) != snapMagic {
		return nil, fmt.Errorf("%w: no snapshot header", errBadSnapshot)
	}
	n := binary.LittleEndian.Uint32(head[len(snapMagic):])
	if n > snapMetaBytes {
		return nil, fmt.Errorf("%w: header of %d bytes", errBadSnapshot, n)
	}
	body := make([]byte, n+4)
	if _, err := io.ReadFull(r.buf, body); err != nil {
		return nil, fmt.Errorf("%w: header cut short", errBadSnapshot)
	}
	if crc32.Checksum(body[:n], castagnoli) != binary.LittleEndian.Uint32(body[n:]) {
		return nil, fmt.Errorf("%w: header checksum", errBadSnapshot)
	}
	var meta snapMeta
	if err := json.Unmarshal(body[:n], &meta); err != nil {
		return nil, fmt.Errorf("%w: header: %w", errBadSnapshot, err)
	}
	r.installed = meta.Installed
	return &meta.SnapshotMeta, nil
}

func (r *snapReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err == nil {
			r.err = r.next()
		}
		if r.err != nil {
			return 0, r.err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *snapReader) next() error {
	var n [4]byte
	if _, err := io.ReadFull(r.buf, n[:]); err != nil {
		return fmt.Errorf("%w: cut short at %d of %d bytes", errBadSnapshot, r.read, r.size)
	}
	size := binary.LittleEndian.Uint32(n[:])
	if size == 0 {
		if r.read != r.size {
			return fmt.Errorf("%w: ends at %d of %d bytes", errBadSnapshot, r.read, r.size)
		}
		return io.EOF
	}
	if size > snapFrameBytes {
		return fmt.Errorf("%w: frame of %d bytes at %d", errBadSnapshot, size, r.read)
	}
	if r.frame == nil {
		r.frame = make([]byte, snapFrameBytes)
	}
	if _, err := io.ReadFull(r.buf, r.frame[:size]); err != nil {
		return fmt.Errorf("%w: cut short at %d of %d bytes", errBadSnapshot, r.read, r.size)
	}
	if _, err := io.ReadFull(r.buf, n[:]); err != nil {
		return fmt.Errorf("%w: cut short at %d of %d bytes", errBadSnapshot, r.read, r.size)
	}
	if frameSum(r.read, r.frame[:size]) != binary.LittleEndian.Uint32(n[:]) {
		return fmt.Errorf("%w: checksum of the frame at %d", errBadSnapshot, r.read)
	}
	r.rest = r.frame[:size]
	r.read += uint64(size)
	return nil
}

// Close may be called again: the Raft library closes what a restore has closed.
func (r *snapReader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	return r.file.Close()
}
