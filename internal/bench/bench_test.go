package bench

import (
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
		{txns: sample{took: took(1, 2), elapsed: time.Second}, calls: sample{took: took(1), elapsed: time.Second}, floor: 4, ratio: 0.5},
		{txns: sample{took: took(3, 4, 5, 6), elapsed: time.Second}, calls: sample{took: took(1), elapsed: time.Second}, floor: 5, ratio: 0.8},
		{txns: sample{took: took(9), elapsed: time.Second}, calls: sample{took: took(1), elapsed: time.Second}, floor: 10, ratio: 0.1},
	}, use{appends: 14, commands: 42, coordinatorUs: 700}, 7)
	if r.TxnPerSecond != 2 || r.RatioToFloor != 0.5 || r.P50 != 4 || r.P99 != 9 || r.AppendsPerTxn != 2 || r.CommandsPerAppend != 3 || r.CoordinatorCPU != 100 {
		t.Fatalf("%+v", r)
	}
	if want := 4.0 / 3; r.P50ToFloor != want {
		t.Fatalf("p50 to floor %v, want %v", r.P50ToFloor, want)
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
