package replog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(failVariable); dir != "" {
		os.Exit(openWithFailure(dir))
	}
	goleak.VerifyTestMain(m)
}

// recorder is a Machine that remembers its stream.
type recorder struct {
	mu       sync.Mutex
	changed  *sync.Cond
	data     []string // in order; after a restore: what the snapshot held
	indexes  []uint64 // of what was applied since start
	restored int      // how many of data came from a snapshot
	persist  func()   // called while a snapshot is written; may be nil
	refuse   func(Entry) error
	spoilt   error // of Persist and Restore
}

func newRecorder() *recorder {
	r := &recorder{}
	r.changed = sync.NewCond(&r.mu)
	return r
}

func (r *recorder) Apply(entries []Entry) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		if r.refuse != nil {
			if err := r.refuse(e); err != nil {
				return err
			}
		}
		if n := len(r.indexes); n > 0 && r.indexes[n-1] >= e.Index {
			return fmt.Errorf("entry %d after %d", e.Index, r.indexes[n-1])
		}
		if e.Term == 0 {
			return fmt.Errorf("entry %d has no term", e.Index)
		}
		r.indexes = append(r.indexes, e.Index)
		r.data = append(r.data, string(e.Data))
	}
	r.changed.Broadcast()
	return nil
}

type recorded struct {
	data    []string
	spoilt  error
	persist func()
}

func (r *recorder) Snapshot() (Snapshot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &recorded{data: r.data[:len(r.data):len(r.data)], persist: r.persist, spoilt: r.spoilt}, nil
}

func (s *recorded) Persist(w io.Writer) error {
	if s.persist != nil {
		s.persist()
	}
	if s.spoilt != nil {
		return s.spoilt
	}
	for _, d := range s.data {
		b := binary.LittleEndian.AppendUint32(nil, uint32(len(d)))
		if _, err := w.Write(append(b, d...)); err != nil {
			return err
		}
	}
	return nil
}

func (s *recorded) Release() {}

func (r *recorder) Restore(in io.Reader) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.spoilt != nil {
		return r.spoilt
	}
	r.data, r.indexes = nil, nil
	for {
		var n [4]byte
		if _, err := io.ReadFull(in, n[:]); err != nil {
			if errors.Is(err, io.EOF) {
				r.restored = len(r.data)
				return nil
			}
			return err
		}
		b := make([]byte, binary.LittleEndian.Uint32(n[:]))
		if _, err := io.ReadFull(in, b); err != nil {
			return err
		}
		r.data = append(r.data, string(b))
	}
}

func (r *recorder) stream() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.data[:len(r.data):len(r.data)]
}

// waitFor waits until n entries are there.
func (r *recorder) waitFor(t testing.TB, n int) []string {
	t.Helper()
	deadline := time.AfterFunc(20*time.Second, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.changed.Broadcast()
	})
	defer deadline.Stop()
	end := time.Now().Add(20 * time.Second)
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.data) < n {
		if time.Now().After(end) {
			t.Fatalf("%d entries, waited for %d", len(r.data), n)
		}
		r.changed.Wait()
	}
	return r.data[:len(r.data):len(r.data)]
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func config(dir string, machines ...Machine) Config {
	return Config{
		Dir: dir, NodeID: "n1", Machines: machines, Logger: quiet(), ElectionTimeoutMs: 5,
		MemTableBytes: 4 << 20,
	}
}

// open opens a log that must not fail.
func open(t testing.TB, cfg Config) *Log {
	t.Helper()
	if cfg.OnFatal == nil {
		cfg.OnFatal = func(err error) { t.Errorf("the log failed: %v", err) }
	}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// lead waits until the group leads here.
func lead(t testing.TB, g Group) Leadership {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		select {
		case l := <-g.Leadership():
			if l.Leading {
				return l
			}
		case <-ctx.Done():
			t.Fatal("no leader")
		}
	}
}

// propose waits for the outcome.
func propose(g Group, data string) error {
	c := make(chan error, 1)
	g.Propose([]byte(data), func(err error) { c <- err })
	return <-c
}

func mustPropose(t testing.TB, g Group, data string) {
	t.Helper()
	if err := propose(g, data); err != nil {
		t.Fatalf("propose %q: %v", data, err)
	}
}

func numbered(from, to int) []string {
	var s []string
	for i := from; i < to; i++ {
		s = append(s, fmt.Sprintf("entry-%06d", i))
	}
	return s
}

// fatal collects what OnFatal is told.
type fatal chan error

func (f fatal) hook(err error) { f <- err }

func (f fatal) wait(t testing.TB) error {
	t.Helper()
	select {
	case err := <-f:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("OnFatal was not called")
		return nil
	}
}
