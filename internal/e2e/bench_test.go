package e2e

import (
	"context"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/bench"
	"github.com/assent-tx/assent/internal/pgtest"
)

// TestBench: a short run commits, passes its audit, and measures its floor. How
// fast it was is nobody's business here.
func TestBench(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, flags := range [][]string{nil, {"--branches", "3", "--keys", "0", "--services", "5", "--open", "20"}} {
		args := append([]string{"bench", "--concurrency", "8", "--rounds", "2", "--duration", "400ms", "--warmup", "50ms", "--output", "json"}, flags...)
		cmd := exec.CommandContext(ctx, must(t, released), args...)
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

// TestBenchContention: transactions that get in each other's way are all committed once,
// over several shards too, and whoever gives way is counted.
func TestBenchContention(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, must(t, released), "bench", "--contention", "--concurrency", "8", "--shards", "2", "--duration", "800ms", "--output", "json")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var c bench.Contention
	if err := json.Unmarshal(out, &c); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	aborts := 0.0
	for _, r := range c.Rows {
		aborts += r.AbortsPerTxn
		if r.Transactions == 0 || r.RatioToAlone <= 0 || r.P50 <= 0 || r.P999 < r.P99 || r.LongestOverMean < 1 || r.Readers > 0 != strings.HasPrefix(r.Workload, "reader/") {
			t.Errorf("%+v", r)
		}
	}
	if len(c.Rows) != 7 || aborts == 0 {
		t.Errorf("%d workloads, %v aborts a commit in all: %s", len(c.Rows), aborts, out)
	}
}

// TestBenchPostgres: money moves between two databases, behind agents and by hand,
// and the audit agrees.
func TestBenchPostgres(t *testing.T) {
	for _, participants := range []string{"postgres", "postgres-agents"} {
		r := benchPostgres(t, "--participants", participants, "--concurrency", "4", "--rounds", "2", "--duration", "600ms", "--warmup", "100ms")
		if r.Transactions == 0 || r.RatioToFloor <= 0 || r.ParticipantsCPU > 0 != (participants == "postgres-agents") {
			t.Errorf("%s: %+v", participants, r)
		}
	}
}

// BenchmarkPostgres is the figure of docs/PERFORMANCE.md: 16 clients.
func BenchmarkPostgres(b *testing.B) {
	for b.Loop() {
		r := benchPostgres(b, "--concurrency", "16", "--rounds", "5", "--duration", "15s", "--warmup", "2s")
		b.ReportMetric(r.RatioToFloor, "ratio_to_floor")
		b.ReportMetric(r.TxnPerSecond, "txn/s")
		b.ReportMetric(r.FloorTxnPerSecond, "by_hand/s")
		b.ReportMetric(r.P50, "p50_ms")
		b.ReportMetric(r.P99, "p99_ms")
		b.ReportMetric(r.CoordinatorCPU, "coordinator_us")
		b.ReportMetric(r.ParticipantsCPU, "agents_us")
	}
}

func benchPostgres(t testing.TB, flags ...string) *bench.Report {
	t.Helper()
	args := append([]string{"bench", "--output", "json"}, flags...)
	for range 2 {
		args = append(args, "--dsn", pgtest.Start(t).DSN("postgres"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, must(t, released), args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", args, err, out, stderr.String())
	}
	var r bench.Report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return &r
}
