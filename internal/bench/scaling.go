package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Scaling is what RunScaling found: the same transactions on more nodes, over more shards,
// beside more services and more open transactions.
type Scaling struct {
	Rows []*ScalingRow `json:"rows"`
}

// ScalingRow is one run.
type ScalingRow struct {
	Table  string  `json:"table"`
	Report *Report `json:"report"`
}

const (
	thinClients = 4
	fullClients = 64
)

func scalingRuns() (tables []string, runs map[string][]suiteRun) {
	runs = map[string][]suiteRun{}
	add := func(table, name string, set func(*Config)) {
		if len(runs[table]) == 0 {
			tables = append(tables, table)
		}
		runs[table] = append(runs[table], suiteRun{name, set})
	}
	for _, nodes := range []int{1, 3} {
		for _, clients := range []int{thinClients, fullClients} {
			table := fmt.Sprintf("shards: %d nodes, %d clients", nodes, clients)
			for _, shards := range []int{1, 4, 16} {
				add(table, fmt.Sprintf("%d shards", shards), func(c *Config) { c.Nodes, c.Shards, c.Concurrency = nodes, shards, clients })
			}
		}
	}
	for _, nodes := range []int{1, 3} {
		for _, services := range []int{10, 100, 1_000, 10_000} {
			add(fmt.Sprintf("registered services: %d nodes", nodes), fmt.Sprintf("%d services", services), func(c *Config) { c.Nodes, c.Services = nodes, services })
		}
		for _, open := range []int{1_000, 10_000, 100_000, 200_000} {
			add(fmt.Sprintf("open transactions: %d nodes", nodes), fmt.Sprintf("%d open", open), func(c *Config) { c.Nodes, c.Open = nodes, open })
		}
	}
	return tables, runs
}

// RunScaling measures how the cost of a transaction grows with nodes, shards, services and
// open transactions, by runs of a few seconds each. only names the tables to make: those
// that contain it. What was measured before an error is returned with it.
func RunScaling(ctx context.Context, binary, dir, only string, progress io.Writer) (*Scaling, error) {
	s := &Scaling{}
	tables, runs := scalingRuns()
	if !slices.ContainsFunc(tables, func(table string) bool { return strings.Contains(table, only) }) {
		return s, fmt.Errorf("no table is named like %q: there are %q", only, tables)
	}
	for _, table := range tables {
		if !strings.Contains(table, only) {
			continue
		}
		for _, r := range runs[table] {
			cfg := Config{Binary: binary, Dir: dir, Concurrency: fullClients, Branches: 2, Keys: 1, Payload: 64, Rounds: 3, Duration: 6 * time.Second, Warmup: time.Second, NoFloor: true}
			r.set(&cfg)
			fmt.Fprintf(progress, "%s: %s\n", table, r.name)
			report, err := Run(ctx, cfg, io.Discard)
			if errors.Is(err, errAudit) && cfg.Nodes > 1 && ctx.Err() == nil {
				// A lead that moves in the middle has its open transactions prepared again.
				fmt.Fprintf(progress, "%s: %s: once more: %v\n", table, r.name, err)
				report, err = Run(ctx, cfg, io.Discard)
			}
			if err != nil {
				return s, fmt.Errorf("%s: %s: %w", table, r.name, err)
			}
			s.Rows = append(s.Rows, &ScalingRow{table, report})
		}
	}
	return s, nil
}

// Print writes the tables for people. The last column compares with the first row of each.
func (s *Scaling) Print(w io.Writer) {
	table, first := "", (*Report)(nil)
	for _, row := range s.Rows {
		r := row.Report
		if row.Table != table {
			table, first = row.Table, r
			fmt.Fprintf(w, "\n%s\n%8s %9s %8s %9s %9s %9s %9s %9s %9s %9s %7s\n", table,
				"shards", "services", "open", "txn/s", "p50 ms", "p99 ms", "CPU us", "appends", "commands", "fsyncs", "CPU x")
		}
		fmt.Fprintf(w, "%8d %9d %8d %9.0f %9.2f %9.2f %9.0f %9.2f %9.1f %9.2f %7.2f\n", r.Shards, r.Services, r.Open,
			r.TxnPerSecond, r.P50, r.P99, r.CoordinatorCPU, r.AppendsPerTxn, r.CommandsPerAppend, r.FsyncsPerTxn, r.CoordinatorCPU/first.CoordinatorCPU)
	}
	fmt.Fprintln(w, "\nCPU: of all nodes, for a transaction; x: beside the first row. appends, fsyncs: for a transaction, of all nodes; commands: in one append.")
}
