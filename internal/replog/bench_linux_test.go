package replog

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const benchEntryBytes = 200

// idle is a Machine that does nothing.
type idle struct{ *recorder }

func (idle) Apply([]Entry) error { return nil }

// BenchmarkFloor is what the disk allows: one write of an entry's size and one
// fdatasync into a file of fixed size, one after the other.
func BenchmarkFloor(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "floor"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const size = 16 << 20
	if _, err := f.Write(make([]byte, size)); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	entry := make([]byte, benchEntryBytes)
	b.ResetTimer()
	for i := range b.N {
		if _, err := f.WriteAt(entry, int64(i*benchEntryBytes%(size-benchEntryBytes))); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
}

// BenchmarkOpenToLead is a restart with 1,000 entries in the log, until this node
// leads and has applied them, with the default election timeout.
func BenchmarkOpenToLead(b *testing.B) {
	dir := b.TempDir()
	cfg := config(dir, newRecorder())
	cfg.ElectionTimeoutMs = 0
	l := open(b, cfg)
	lead(b, l.Group(0))
	for range 1000 {
		mustPropose(b, l.Group(0), "entry")
	}
	closeLog(b, l)
	b.ResetTimer()
	for range b.N {
		m := newRecorder()
		cfg.Machines = []Machine{m}
		l = open(b, cfg)
		lead(b, l.Group(0))
		m.waitFor(b, 1000)
		b.StopTimer()
		closeLog(b, l)
		b.StartTimer()
	}
}

// BenchmarkAppend is Propose until done, with fsync. Compare with BenchmarkFloor
// of the same run.
func BenchmarkAppend(b *testing.B) {
	for _, groups := range []int{1, 4} {
		for _, writers := range []int{1, 64, 1000} {
			b.Run(fmt.Sprintf("groups=%d/writers=%d", groups, writers), func(b *testing.B) {
				var machines []Machine
				for range groups {
					machines = append(machines, idle{newRecorder()})
				}
				cfg := config(b.TempDir(), machines...)
				cfg.MemTableBytes = 0
				l := open(b, cfg)
				for g := range groups {
					lead(b, l.Group(uint32(g)))
				}
				before := l.Group(0).Stats().Fsyncs
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for w := range writers {
					n := b.N / writers
					if w < b.N%writers {
						n++
					}
					wg.Go(func() {
						g := l.Group(uint32(w % groups))
						done := make(chan error, 1)
						finish := func(err error) { done <- err }
						for range n {
							g.Propose(make([]byte, benchEntryBytes), finish)
							if err := <-done; err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
				b.ReportMetric(float64(l.Group(0).Stats().Fsyncs-before)/float64(b.N), "fsyncs/op")
				closeLog(b, l)
			})
		}
	}
}
