package bench

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Goal is one figure of the suite and what it must keep to.
type Goal struct {
	Name  string  `json:"name"`
	Got   float64 `json:"got"`
	Limit float64 `json:"limit"`
	Least bool    `json:"least"` // Limit is the least, not the most
	From  string  `json:"from"`  // the figures that it was made of
}

// Kept reports whether the goal was reached in this run.
func (g *Goal) Kept() bool { return g.Got == g.Limit || g.Got > g.Limit == g.Least }

// Suite is what RunSuite found.
type Suite struct {
	Goals   []Goal             `json:"goals"`
	Reports map[string]*Report `json:"reports"`
}

// The coordinator's own limit in the overload runs, and the clients that ask.
const (
	overloadLimit   = 64
	overloadClients = 10 * overloadLimit
)

// suiteRun is one run of the suite; all other settings are common to all.
type suiteRun struct {
	name string
	set  func(*Config)
}

var suiteRuns = []suiteRun{
	{"64 clients", func(c *Config) { c.Rounds, c.Duration, c.NoFloor = 5, 10*time.Second, false }},
	{"1 client", func(c *Config) { c.Concurrency, c.Rounds, c.Duration, c.NoFloor = 1, 5, 5*time.Second, false }},
	{"10 services", func(c *Config) { c.Services = 10 }},
	{"10,000 services", func(c *Config) { c.Services = 10_000 }},
	{"100 open", func(c *Config) { c.Open = 100 }},
	{"10,000 open", func(c *Config) { c.Open = 10_000 }},
	{"2 keys", func(c *Config) { c.Concurrency = 16 }},
	{"256 keys", func(c *Config) { c.Concurrency, c.Keys = 16, 128 }},
	{"full, no snapshots", func(c *Config) { full(c, "1GiB") }},
	{"full, snapshots", func(c *Config) { full(c, "4MiB") }},
	{"640 clients, 64 served", func(c *Config) {
		c.Concurrency, c.ServeFlags = overloadClients, []string{"--max-waiting-requests", fmt.Sprint(overloadLimit)}
	}},
	{"640 clients", func(c *Config) { c.Concurrency = overloadClients }},
}

// full is a coordinator with all the ended transactions it keeps, and many open.
func full(c *Config, snapshotBytes string) {
	c.Open, c.Ended, c.Duration = 10_000, 100_000, 8*time.Second
	c.ServeFlags = []string{"--snapshot-bytes", snapshotBytes}
}

// RunSuite measures what must hold of one node, by runs of a few seconds each, in
// about three minutes.
func RunSuite(ctx context.Context, binary, dir string, progress io.Writer) (*Suite, error) {
	s := &Suite{Reports: map[string]*Report{}}
	for i, r := range suiteRuns {
		cfg := Config{Binary: binary, Dir: dir, Concurrency: 64, Branches: 2, Keys: 1, Payload: 64, Rounds: 3, Duration: 5 * time.Second, Warmup: time.Second, NoFloor: true}
		r.set(&cfg)
		fmt.Fprintf(progress, "%d of %d: %s\n", i+1, len(suiteRuns), r.name)
		report, err := Run(ctx, cfg, io.Discard)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
		s.Reports[r.name] = report
	}
	s.judge()
	return s, nil
}

func (s *Suite) judge() {
	at := func(name string) *Report { return s.Reports[name] }
	cpu := func(name, many, few string, per float64) Goal {
		a, b := at(many), at(few)
		return Goal{
			Name: name, Got: a.CoordinatorCPU / per / b.CoordinatorCPU, Limit: 1.3,
			From: fmt.Sprintf("%.0f us at %s, %.0f us at %s", a.CoordinatorCPU, many, b.CoordinatorCPU, few),
		}
	}
	base, one := at("64 clients"), at("1 client")
	still, snapped := at("full, no snapshots"), at("full, snapshots")
	limited, crowd := at("640 clients, 64 served"), at("640 clients")
	keys := at("256 keys")
	s.Goals = []Goal{
		{Name: "ratio_to_floor, 64 clients", Got: base.RatioToFloor, Limit: 0.5, Least: true, From: fmt.Sprintf("%.0f txn/s, floor %.0f", base.TxnPerSecond, base.FloorTxnPerSecond)},
		{Name: "p50 to its floor, 1 client", Got: one.P50ToFloor, Limit: 1.5, From: fmt.Sprintf("%.2f ms, floor %.2f ms", one.P50, one.P50/one.P50ToFloor)},
		cpu("CPU, many open transactions", "10,000 open", "100 open", 1),
		cpu("CPU, many services", "10,000 services", "10 services", 1),
		cpu("CPU for each key", "256 keys", "2 keys", float64(keys.Keys)),
		{Name: "memory when full, MiB", Got: max(still.CoordinatorRSS, snapped.CoordinatorRSS), Limit: 500, From: "100,000 ended, 10,000 open, at most"},
		{Name: "p99, snapshots under load", Got: snapped.P99 / still.P99, Limit: 3, From: fmt.Sprintf("%.1f ms with a snapshot every 4 MiB, %.1f ms without", snapped.P99, still.P99)},
		{Name: "goodput, 10 x the limit", Got: limited.TxnPerSecond / base.TxnPerSecond, Limit: 0.8, Least: true, From: fmt.Sprintf("%.0f txn/s beside %d refusals", limited.TxnPerSecond, limited.Refused)},
		{Name: "goodput, 10 x the clients", Got: crowd.TxnPerSecond / base.TxnPerSecond, Limit: 0.8, Least: true, From: fmt.Sprintf("%.0f txn/s, p99 %.0f ms", crowd.TxnPerSecond, crowd.P99)},
	}
}

// Print writes the suite for people.
func (s *Suite) Print(w io.Writer) {
	s.Reports["64 clients"].Print(w)
	s.Reports["1 client"].Print(w)
	fmt.Fprintln(w)
	for i := range s.Goals {
		g := &s.Goals[i]
		sign, verdict := "<=", "kept"
		if g.Least {
			sign = ">="
		}
		if !g.Kept() {
			verdict = "MISSED"
		}
		fmt.Fprintf(w, "%-28s %7.2f  %s %-5.3g %-7s %s\n", g.Name, g.Got, sign, g.Limit, verdict, g.From)
	}
}
