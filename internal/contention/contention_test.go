package contention

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// Every workload is what its name says.
func TestWorkloads(t *testing.T) {
	const drawn = 2_000
	for _, w := range Workloads() {
		r := rand.New(rand.NewPCG(1, 2))
		locked, read, upgraded := map[string]int{}, 0, 0
		for i := range drawn {
			p := w.Plan(r, i%4)
			if p.Once != strings.HasSuffix(w.Name, "/once") || p.Once && len(p.Steps) != 1 {
				t.Fatalf("%s: %+v", w.Name, p)
			}
			if long := i%4 == 0 && strings.HasPrefix(w.Name, "reader/"); p.Long != long {
				t.Fatalf("%s, client %d: %+v", w.Name, i%4, p)
			}
			had := map[string]Mode{}
			for _, step := range p.Steps {
				for _, l := range step {
					if had[l.Key] == Exclusive || l.Mode == had[l.Key] {
						t.Fatalf("%s: %s twice in %+v", w.Name, l.Key, p)
					}
					if had[l.Key] != 0 {
						upgraded++
					}
					if l.Mode == Shared {
						read++
					}
					had[l.Key] = l.Mode
				}
			}
			for key := range had {
				locked[key]++
			}
			if n := len(had); p.Long && n != readerKeys || !p.Long && (n < 1 || n > 4) {
				t.Fatalf("%s: %d keys", w.Name, n)
			}
		}
		if writes := strings.HasPrefix(w.Name, "hot/"); writes != (read == 0) {
			t.Errorf("%s: %d reads", w.Name, read)
		}
		if stepwise := w.Name == "zipf/steps" || w.Name == "zipf/update"; stepwise != (upgraded > drawn/2) {
			t.Errorf("%s: %d upgrades", w.Name, upgraded)
		}
		// Of the weights of 1,000 keys with exponent 0.99 the first has 13 %.
		if hottest := locked[key(0)]; strings.HasPrefix(w.Name, "zipf/") && (hottest < drawn/5 || hottest > drawn/2 || len(locked) < 500) {
			t.Errorf("%s: the hottest of %d keys is in %d transactions", w.Name, len(locked), hottest)
		}
		if n := locked["hot"]; strings.HasPrefix(w.Name, "hot/") != (n == drawn) {
			t.Errorf("%s: the hot key is in %d of %d", w.Name, n, drawn)
		}
	}
}
