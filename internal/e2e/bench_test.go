package e2e

import (
	"context"
	"encoding/json"
	"os/exec"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/bench"
)

// TestBench: a short run commits, passes its audit, and measures its floor. How
// fast it was is nobody's business here.
func TestBench(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, flags := range [][]string{nil, {"--branches", "3", "--keys", "0", "--services", "5", "--open", "20"}} {
		args := append([]string{"bench", "--concurrency", "8", "--rounds", "2", "--duration", "400ms", "--warmup", "50ms", "--output", "json"}, flags...)
		cmd := exec.CommandContext(ctx, build(t), args...)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		var r bench.Report
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for name, v := range map[string]float64{
			"transactions": float64(r.Transactions), "p50": r.P50, "ratio": r.RatioToFloor, "floor calls": r.FloorCalls, "floor appends": r.FloorAppends,
			"coordinator CPU": r.CoordinatorCPU, "appends": r.AppendsPerTxn, "commands": r.CommandsPerAppend, "fsyncs": r.FsyncsPerTxn, "memory": r.CoordinatorRSS,
		} {
			if v <= 0 {
				t.Errorf("%v: no %s in %s", flags, name, out)
			}
		}
	}
}
