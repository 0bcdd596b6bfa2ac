package lock

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/assent-tx/assent/internal/contention"
)

var policies = []struct {
	name string
	make func() manager
}{
	{"eldest", func() manager { return newReal(false) }},
	{"fifo", func() manager { return newPlain(fifo) }},
	{"wound-wait", func() manager { return newReal(true) }},
}

// The comparison is fair only if the plain table and the real one differ in nothing but
// the policy: with the same policy they do the same, victim for victim.
func TestPlainTableDoesWhatTheRealDoes(t *testing.T) {
	cycles, wounds := map[policy]int{}, 0
	for _, w := range contention.Workloads() {
		for _, p := range []policy{eldestFirst, woundWait} {
			got := simulate(newReal(p == woundWait), w, 400, 1)
			want := simulate(newPlain(p), w, 400, 1)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s, policy %d: %d us, %d aborts, %d restarts; plainly %d us, %d, %d", w.Name, p, got.Us, got.Aborts, got.Restarts, want.Us, want.Aborts, want.Restarts)
			}
			cycles[p] += got.Aborts + got.Restarts - got.Needless
			wounds += got.Needless
		}
	}
	if cycles[eldestFirst] == 0 || cycles[woundWait] == 0 || wounds == 0 {
		t.Errorf("met were cycles, by policy, %v, and %d wounds", cycles, wounds)
	}
}

// What the policies promise, whatever the load.
func TestPolicies(t *testing.T) {
	for _, w := range contention.Workloads() {
		for _, p := range policies {
			f := simulate(p.make(), w, 400, 2)
			if f.Commits < 400 {
				t.Errorf("%s, %s: stands still after %d commits", w.Name, p.name, f.Commits)
			}
			if f.EldestGaveWay > 0 {
				t.Errorf("%s, %s: %d times the eldest of all gave way", w.Name, p.name, f.EldestGaveWay)
			}
			once := strings.HasSuffix(w.Name, "/once")
			if p.name != "wound-wait" && (f.Needless > 0 || once && f.Aborts+f.Restarts > 0) {
				t.Errorf("%s, %s: %d aborts, %d restarts, %d needless", w.Name, p.name, f.Aborts, f.Restarts, f.Needless)
			}
			if again := simulate(p.make(), w, 400, 2); !reflect.DeepEqual(f, again) {
				t.Errorf("%s, %s: the same seed gave another run", w.Name, p.name)
			}
		}
	}
}

// BenchmarkPolicy prints the table of docs/PERFORMANCE.md; times are virtual.
func BenchmarkPolicy(b *testing.B) {
	for _, w := range contention.Workloads() {
		for _, p := range policies {
			b.Run(fmt.Sprintf("%s/%s", w.Name, p.name), func(b *testing.B) {
				var f figures
				for b.Loop() {
					f = simulate(p.make(), w, 20_000, 3)
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(f.Commits)/float64(f.Us)*1e6, "txn/s")
				b.ReportMetric(1000*float64(f.Aborts)/float64(f.Commits), "aborts/1000")
				b.ReportMetric(1000*float64(f.Restarts)/float64(f.Commits), "restarts/1000")
				b.ReportMetric(1000*float64(f.Needless)/float64(f.Commits), "needless/1000")
				b.ReportMetric(f.percentile(0.5), "p50-ms")
				b.ReportMetric(f.percentile(0.99), "p99-ms")
				b.ReportMetric(f.percentile(0.999), "p99.9-ms")
				b.ReportMetric(f.longestOverMean(), "longest/mean")
				b.ReportMetric(float64(f.MostRestarts), "restarts-at-once")
				if f.Readers > 0 {
					b.ReportMetric(float64(f.Readers)/float64(f.Us)*1e6, "readers/s")
					b.ReportMetric(float64(f.LongestReaderUs)/1000, "longest-reader-ms")
				}
			})
		}
	}
}
