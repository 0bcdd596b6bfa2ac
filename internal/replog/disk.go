package replog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/assent-tx/assent/internal/mutant"
)

const (
	fileMode os.FileMode = 0o600
	dirMode  os.FileMode = 0o700
)

// disk is the file system as this package and the database see it. It tells fail
// of every write or sync that failed and refuses every change from then on, so
// that nobody can retry: the database does, and would record a flush twice. It
// counts the syncs of write-ahead files, and keeps files private.
type disk struct {
	vfs.FS
	private bool // the operating system's files: set modes
	fail    func(error)
	failure func() error // not nil: no more changes
	fsyncs  *atomic.Uint64
	// opening is closed when the attempt to open the database has ended; nil
	// before the first one.
	opening atomic.Pointer[chan struct{}]
}

// gate is asked before every change.
func (d *disk) gate() error {
	err := d.failure()
	if mutant.On("log-retry-failed-write") {
		return nil
	}
	if ended := d.opening.Load(); err != nil && ended != nil {
		select {
		case <-*ended: // what runs in its background goes on, so that it closes
			return err
		default:
		}
		if errors.Is(err, ErrDamaged) {
			// A compaction met damage: the database may finish opening, and is closed
			// then. The files as they were found are kept.
			return nil
		}
		// The database retries a failed flush for ever while it opens: it hangs here
		// instead. openPebble has given up waiting for it, and the process is about to end.
		<-*ended
	}
	return err
}

func (d *disk) Unwrap() vfs.FS { return d.FS }

func (d *disk) broken(op, name string, err error) {
	if err != nil {
		d.fail(fmt.Errorf("%s %s: %w", op, name, err))
	}
}

func (d *disk) wrap(f vfs.File, name string) vfs.File {
	return &diskFile{File: f, disk: d, name: name, wal: strings.HasSuffix(name, ".log")}
}

func (d *disk) own(name string) error {
	if !d.private {
		return nil
	}
	return os.Chmod(name, fileMode)
}

func (d *disk) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := d.gate(); err != nil {
		return nil, err
	}
	f, err := d.FS.Create(name, category)
	if err == nil {
		if err = d.own(name); err != nil {
			_ = f.Close()
		}
	}
	if err == nil && strings.HasPrefix(d.PathBase(name), "MANIFEST-") {
		// The database next writes a marker file that names this one, and syncs the
		// directory after both: a crash in between may keep the marker alone.
		if err = syncDir(d.FS, d.PathDir(name)); err != nil {
			_ = f.Close()
		}
	}
	if err != nil {
		d.broken("create", name, err)
		return nil, err
	}
	return d.wrap(f, name), nil
}

func (d *disk) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := d.gate(); err != nil {
		return nil, err
	}
	f, err := d.FS.OpenReadWrite(name, category, opts...)
	if err == nil {
		if err = d.own(name); err != nil {
			_ = f.Close()
		}
	}
	if err != nil {
		d.broken("open", name, err)
		return nil, err
	}
	return d.wrap(f, name), nil
}

func (d *disk) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := d.gate(); err != nil {
		return nil, err
	}
	f, err := d.FS.ReuseForWrite(oldname, newname, category)
	if err != nil {
		d.broken("reuse", newname, err)
		return nil, err
	}
	return d.wrap(f, newname), nil
}

func (d *disk) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return d.wrap(f, name), nil
}

func (d *disk) Rename(oldname, newname string) error {
	if err := d.gate(); err != nil {
		return err
	}
	err := d.FS.Rename(oldname, newname)
	d.broken("rename", newname, err)
	return err
}

func (d *disk) Link(oldname, newname string) error {
	if err := d.gate(); err != nil {
		return err
	}
	err := d.FS.Link(oldname, newname)
	d.broken("link", newname, err)
	return err
}

func (d *disk) Remove(name string) error {
	if err := d.gate(); err != nil {
		return err
	}
	return d.FS.Remove(name)
}

func (d *disk) MkdirAll(dir string, _ os.FileMode) error {
	return d.FS.MkdirAll(dir, dirMode)
}

func (d *disk) Lock(name string) (io.Closer, error) {
	c, err := d.FS.Lock(name)
	if err == nil {
		if err = d.own(name); err != nil {
			_ = c.Close()
		}
	}
	return c, err
}

type diskFile struct {
	vfs.File
	disk *disk
	name string
	wal  bool
}

func (f *diskFile) Write(p []byte) (int, error) {
	if err := f.disk.gate(); err != nil {
		return 0, err
	}
	n, err := f.File.Write(p)
	f.disk.broken("write", f.name, err)
	return n, err
}

func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.disk.gate(); err != nil {
		return 0, err
	}
	n, err := f.File.WriteAt(p, off)
	f.disk.broken("write", f.name, err)
	return n, err
}

func (f *diskFile) Sync() error { return f.synced(f.File.Sync) }

func (f *diskFile) SyncData() error { return f.synced(f.File.SyncData) }

func (f *diskFile) synced(sync func() error) error {
	if err := f.disk.gate(); err != nil {
		return err
	}
	if f.wal {
		f.disk.fsyncs.Add(1)
	}
	err := sync()
	f.disk.broken("sync", f.name, err)
	return err
}

func (f *diskFile) SyncTo(length int64) (bool, error) {
	if err := f.disk.gate(); err != nil {
		return false, err
	}
	full, err := f.File.SyncTo(length)
	f.disk.broken("sync", f.name, err)
	return full, err
}

// writeFile replaces a file as a whole, durably: after a crash there is the old
// or the new content.
func writeFile(fs vfs.FS, dir, name string, content []byte) error {
	tmp := fs.PathJoin(dir, name+".tmp")
	f, err := fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := fs.Rename(tmp, fs.PathJoin(dir, name)); err != nil {
		return err
	}
	return syncDir(fs, dir)
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		_ = d.Close()
		return err
	}
	return d.Close()
}

func readFile(fs vfs.FS, name string, maxBytes int64) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	content, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > maxBytes {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxBytes)
	}
	return content, nil
}
