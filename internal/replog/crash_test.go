package replog

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// inOrder fails unless got is the proposed streams of all writers interleaved,
// each in its own order and without a hole, up to at least what was acknowledged.
func inOrder(t *testing.T, got []string, acknowledged map[string]int) {
	t.Helper()
	next := map[string]int{}
	for at, d := range got {
		writer, number, ok := strings.Cut(d, "/")
		var n int
		if !ok {
			t.Fatalf("entry %d is %q", at, d)
		}
		if _, err := fmt.Sscanf(number, "%d", &n); err != nil {
			t.Fatalf("entry %d is %q: %v", at, d, err)
		}
		if n != next[writer] {
			t.Fatalf("entry %d: writer %s has %d where %d is next", at, writer, n, next[writer])
		}
		next[writer]++
	}
	for writer, n := range acknowledged {
		if next[writer] < n {
			t.Fatalf("writer %s: %d acknowledged, %d there", writer, n, next[writer])
		}
	}
}

// tally counts acknowledgements; a copy taken before a crash is what the crash
// must not lose.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (a *tally) add(writer string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n[writer]++
}

func (a *tally) copy() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := map[string]int{}
	for k, v := range a.n {
		c[k] = v
	}
	return c
}

// Power fails again and again, at random moments under load, and a random part
// of what was not synced is lost: nothing acknowledged is.
func TestPowerLossUnderLoad(t *testing.T) {
	const seed, runs, crashesPerRun, shards, writers = 20240607, 6, 6, 2, 3
	rng := rand.New(rand.NewPCG(seed, 1))
	for run := range runs {
		disk := vfs.NewCrashableMem()
		var base [shards]int // entries so far, a writer name is new in every run
		round := 0
		for range crashesPerRun {
			round++
			var machines []Machine
			var recorders [shards]*recorder
			for s := range shards {
				recorders[s] = newRecorder()
				machines = append(machines, recorders[s])
			}
			cfg := config("data", machines...)
			cfg.FS = disk
			cfg.SnapshotAfterEntries = 150
			cfg.TrailingEntries = 20
			cfg.MemTableBytes = 256 << 10
			cfg.MaxPendingProposals = 16
			l := open(t, cfg)
			acknowledged := [shards]*tally{}
			var wg sync.WaitGroup
			stop := make(chan struct{})
			progress := make(chan struct{}, 1)
			for s := range shards {
				lead(t, l.Group(uint32(s)))
				acknowledged[s] = &tally{n: map[string]int{}}
				for w := range writers {
					name := fmt.Sprintf("%d.%d.%d.%d", run, round, s, w)
					wg.Go(func() {
						for i := 0; ; i++ {
							select {
							case <-stop:
								return
							default:
							}
							l.Group(uint32(s)).Propose(fmt.Appendf(nil, "%s/%d/%0*d", name, i, 1+i%300, 0), func(err error) {
								if err == nil {
									acknowledged[s].add(name)
									select {
									case progress <- struct{}{}:
									default:
									}
								}
							})
						}
					})
				}
			}
			for range 1 + rng.IntN(120) {
				select {
				case <-progress:
				case <-time.After(20 * time.Second):
					t.Fatal("no progress")
				}
			}
			var must [shards]map[string]int
			for s := range shards {
				must[s] = acknowledged[s].copy()
			}
			crashed := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rand.New(rand.NewPCG(rng.Uint64(), 2))})
			close(stop)
			wg.Wait()
			closeLog(t, l)

			disk = crashed
			machines = nil
			for s := range shards {
				recorders[s] = newRecorder()
				machines = append(machines, recorders[s])
			}
			cfg.FS = disk
			cfg.Machines = machines
			l = open(t, cfg)
			for s := range shards {
				g := l.Group(uint32(s))
				lead(t, g)
				mustPropose(t, g, fmt.Sprintf("%d.%d.%d.probe/0", run, round, s)) // all before it is applied then
				got := recorders[s].stream()
				inOrder(t, got, must[s])
				if len(got) < base[s] {
					t.Fatalf("shard %d: %d entries, %d before", s, len(got), base[s])
				}
				base[s] = len(got)
			}
			closeLog(t, l)
		}
	}
}

// A crash at any point of making a directory leaves one that is made again, or
// is finished.
func TestPowerLossWhileMakingADirectory(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	for round := range 60 {
		disk := vfs.NewCrashableMem()
		var clone *vfs.MemFS
		crashing := &hookFS{FS: disk}
		at, n := round, 0
		crashing.before = func() {
			if n++; n == at*3 {
				clone = disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rand.New(rand.NewPCG(uint64(at), 3))})
			}
		}
		cfg := config("data", newRecorder(), newRecorder())
		cfg.FS = crashing
		l := open(t, cfg)
		closeLog(t, l)
		if clone == nil {
			clone = disk.CrashClone(vfs.CrashCloneCfg{})
		}
		m := newRecorder()
		cfg = config("data", m, newRecorder())
		cfg.FS = clone
		l = open(t, cfg)
		lead(t, l.Group(0))
		mustPropose(t, l.Group(0), "x")
		if got := m.stream(); !slices.Equal(got, []string{"x"}) {
			t.Errorf("round %d: %q", round, got)
		}
		closeLog(t, l)
	}
}
