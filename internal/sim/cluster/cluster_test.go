package cluster

import (
	"flag"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

var (
	seedsFlag = flag.Int("seeds", 300, "how many seeds TestSeeds runs")
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
		r := Run(b.Failed.Seed, true, nil)
		if r.Failure == "" {
			t.Fatalf("%v\nbut the seed does not fail again: the simulator is not deterministic", b.Failed.Failure)
		}
		t.Fatalf("%s\n%v\nrepeat: go test ./internal/sim/cluster -run TestSeeds -seeds=1 -seed=%d -lines", strings.Join(r.Lines, "\n"), r.Failure, r.Seed)
	}
	var out strings.Builder
	b.Print(&out)
	t.Log("\n" + out.String())
	if missing := b.Reached.Missing(); len(missing) > 0 && *seedsFlag >= 300 {
		t.Errorf("never met in %d seeds: %v", b.Runs, missing)
	}
}

// TestSameSeed: a seed is a run.
func TestSameSeed(t *testing.T) {
	for seed := uint64(1); seed <= 16; seed++ {
		a, b := Run(seed, false, nil), Run(seed, true, nil)
		if a.Trace != b.Trace || a.Reached != b.Reached || a.VirtualUs != b.VirtualUs {
			t.Fatalf("seed %d: trace %x after %d us, then %x after %d us", seed, a.Trace, a.VirtualUs, b.Trace, b.VirtualUs)
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
