package sim

import (
	"flag"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

var (
	seedsFlag = flag.Int("seeds", 400, "how many seeds TestSeeds runs")
	seedFlag  = flag.Uint64("seed", 1, "the first seed of TestSeeds")
	traceFlag = flag.Bool("lines", false, "print every line of the run (with -seeds=1)")
)

// TestSeeds runs a batch of seeds. Each must keep every invariant, and together
// they must meet every situation.
func TestSeeds(t *testing.T) {
	if *traceFlag {
		Run(*seedFlag, true, func(s string) { fmt.Println(s) })
	}
	b := RunBatch(*seedFlag, *seedsFlag, runtime.GOMAXPROCS(0))
	if b.Failed != nil {
		f := Run(b.Failed.Seed, true, nil).Failure
		if f == nil {
			t.Fatalf("%v\nbut the seed does not fail again: the simulator is not deterministic", b.Failed)
		}
		t.Fatalf("%s\n%v\nrepeat: go test ./internal/sim -run TestSeeds -seeds=1 -seed=%d -lines", strings.Join(f.Tail, "\n"), f, f.Seed)
	}
	var out strings.Builder
	b.Print(&out)
	t.Log("\n" + out.String())
	if missing := b.Reached.Missing(); len(missing) > 0 && *seedsFlag >= 400 {
		t.Errorf("never met in %d seeds: %v", b.Runs, missing)
	}
}

// TestSameSeed: a seed is a run.
func TestSameSeed(t *testing.T) {
	for seed := uint64(1); seed <= 10; seed++ {
		a, b := Run(seed, false, nil), Run(seed, true, nil)
		if a.Trace != b.Trace || a.Steps != b.Steps {
			t.Fatalf("seed %d: trace %x after %d steps, then %x after %d", seed, a.Trace, a.Steps, b.Trace, b.Steps)
		}
	}
	if a, b := Run(1, false, nil), Run(2, false, nil); a.Trace == b.Trace {
		t.Fatal("two seeds, one trace")
	}
}

func TestMain(m *testing.M) {
	flag.Parse()
	goleak.VerifyTestMain(m)
}
