package bench

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestAuditBites: the count that every run rests on tells once from never and twice.
func TestAuditBites(t *testing.T) {
	p := NewParticipants()
	ask := func(key string) int {
		req := httptest.NewRequest(http.MethodPost, "/assent", strings.NewReader("{}"))
		req.Header.Set("Idempotency-Key", key)
		w := httptest.NewRecorder()
		p.ServeHTTP(w, req)
		return w.Code
	}
	const id = "01a20917-6642-7b1d-9424-f813609991d"
	for _, key := range []string{
		id + "a/1/prepare", id + "a/1/commit", // once
		id + "a/2/prepare",                                        // never committed
		id + "b/1/prepare", id + "b/1/prepare", id + "b/1/commit", // prepared twice
		id + "b/2/prepare", id + "b/2/commit", id + "b/2/rollback", // both
		id + "c/1/prepare", id + "c/1/commit", id + "c/2/commit", "c/2/no", // committed unprepared; rubbish
	} {
		if code := ask(key); code != http.StatusOK && key != "c/2/no" {
			t.Fatalf("%s: status %d", key, code)
		}
	}
	a := p.audit()
	if a.Branches != 6 || a.Once != 2 || a.Wrong != 4 || a.Example == "" {
		t.Fatalf("%+v", a)
	}
	p.reset()
	if a := p.audit(); a.Branches != 0 {
		t.Fatalf("after reset: %+v", a)
	}
}

func TestReportOfKnownRounds(t *testing.T) {
	took := func(ms ...int) (d []time.Duration) {
		for _, v := range ms {
			d = append(d, time.Duration(v)*time.Millisecond)
		}
		return d
	}
	b := &run{cfg: Config{Branches: 2, Rounds: 3}}
	r := b.report([]round{
		{txns: sample{took: took(1, 2), elapsed: time.Second}, floor: floor{txnRate: 4, callTook: took(1)}, ratio: 0.5},
		{txns: sample{took: took(3, 4, 5, 6), elapsed: time.Second}, floor: floor{txnRate: 5, callTook: took(1)}, ratio: 0.8},
		{txns: sample{took: took(9), elapsed: time.Second}, floor: floor{txnRate: 10, callTook: took(1)}, ratio: 0.1},
	}, use{appends: 14, commands: 42, coordinatorUs: 700}, 7)
	if r.TxnPerSecond != 2 || r.RatioToFloor != 0.5 || r.P50 != 4 || r.P99 != 9 || r.AppendsPerTxn != 2 || r.CommandsPerAppend != 3 || r.CoordinatorCPU != 100 {
		t.Fatalf("%+v", r)
	}
	if want := 4.0 / 3; r.P50ToFloor != want {
		t.Fatalf("p50 to floor %v, want %v", r.P50ToFloor, want)
	}
}

// Every goal is judged from the runs it names, and in the right direction.
func TestSuiteJudges(t *testing.T) {
	s := Suite{Reports: map[string]*Report{}}
	for _, r := range suiteRuns {
		s.Reports[r.name] = &Report{
			RatioToFloor: 0.6, TxnPerSecond: 100, FloorTxnPerSecond: 160, P50: 1, P50ToFloor: 1.2, P99: 10, CoordinatorCPU: 100,
			CoordinatorRSS: 200, Keys: 1, Refused: 5,
		}
	}
	s.Reports["256 keys"].Keys, s.Reports["256 keys"].CoordinatorCPU = 128, 6400
	s.judge()
	for i := range s.Goals {
		if !s.Goals[i].Kept() {
			t.Errorf("%+v", s.Goals[i])
		}
	}
	for name, worse := range map[string]func(r *Report){
		"64 clients":             func(r *Report) { r.RatioToFloor = 0.4 },
		"1 client":               func(r *Report) { r.P50ToFloor = 1.6 },
		"10,000 open":            func(r *Report) { r.CoordinatorCPU = 140 },
		"10,000 services":        func(r *Report) { r.CoordinatorCPU = 140 },
		"256 keys":               func(r *Report) { r.CoordinatorCPU = 128 * 140 },
		"full, no snapshots":     func(r *Report) { r.CoordinatorRSS = 600 },
		"full, snapshots":        func(r *Report) { r.P99 = 31 },
		"640 clients, 64 served": func(r *Report) { r.TxnPerSecond = 79 },
		"640 clients":            func(r *Report) { r.TxnPerSecond = 79 },
	} {
		good := *s.Reports[name]
		worse(s.Reports[name])
		s.judge()
		missed := 0
		for i := range s.Goals {
			if !s.Goals[i].Kept() {
				missed++
			}
		}
		if missed != 1 {
			t.Errorf("%s made worse: %d goals are missed, want 1", name, missed)
		}
		*s.Reports[name] = good
	}
}

func TestMetric(t *testing.T) {
	text := []byte("# HELP a_total x\na_total 17\na_total_more 3\nb{x=\"1\"} 4\nc 1.5e3\n")
	for name, want := range map[string]float64{"a_total": 17, "a_total_more": 3, "c": 1500, "missing": 0} {
		if got := metric(text, name); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
}

// TestScalingTables: the tables of the documentation are there, one that is not is told, and
// a transaction is sent to the leader of its home.
func TestScalingTables(t *testing.T) {
	tables, runs := scalingRuns()
	if len(tables) != 8 {
		t.Errorf("%d tables: %q", len(tables), tables)
	}
	for table, list := range runs {
		for _, r := range list {
			var c Config
			if r.set(&c); c.Nodes != 1 && c.Nodes != 3 || c.Shards+c.Services+c.Open == 0 {
				t.Errorf("%s, %s: %+v", table, r.name, c)
			}
		}
	}
	if _, err := RunScaling(t.Context(), "", t.TempDir(), "nodes of gold", io.Discard); err == nil || !strings.Contains(err.Error(), "registered services") {
		t.Errorf("a table that is not there: %v", err)
	}
	if _, err := Run(t.Context(), Config{URL: "http://127.0.0.1:1", Nodes: 3}, io.Discard); err == nil || !strings.Contains(err.Error(), "--url") {
		t.Errorf("several nodes of a coordinator that runs: %v", err)
	}
	c := coordinator{urls: []string{"a", "b"}, shards: 2}
	id := newID()
	if c.at(id) != "a" {
		t.Error("who leads was known before it was asked")
	}
	c.leaders.Store(&[]string{"x", "y"})
	if want := []string{"x", "y"}[id.Shard(2)]; c.at(id) != want {
		t.Errorf("%v is sent to %s, not to %s", id, c.at(id), want)
	}
	var out strings.Builder
	s := Scaling{Rows: []*ScalingRow{{tables[0], &Report{Shards: 1, CoordinatorCPU: 100}}, {tables[0], &Report{Shards: 4, CoordinatorCPU: 250}}}}
	if s.Print(&out); strings.Count(out.String(), tables[0]) != 1 || !strings.Contains(out.String(), "2.50") {
		t.Errorf("printed:\n%s", out.String())
	}
}

// A workload that is not there is told before anything is started.
func TestNoSuchWorkload(t *testing.T) {
	if _, err := RunContention(t.Context(), Config{}, "nobody", io.Discard); err == nil || !strings.Contains(err.Error(), "nobody") || !strings.Contains(err.Error(), "zipf/steps") {
		t.Errorf("got %v", err)
	}
}

// TestContentionPrints: the figures stand where their names are.
func TestContentionPrints(t *testing.T) {
	var out strings.Builder
	c := Contention{Clients: 4, Shards: 1, Rows: []*ContentionRow{{Workload: "reader/once", RatioToAlone: 0.25, P999: 9.5, Readers: 3, ReaderLongest: 150}}}
	c.Print(&out)
	for _, want := range []string{"reader/once", "0.25", "9.5", "3 commits", "longest 150 ms"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
