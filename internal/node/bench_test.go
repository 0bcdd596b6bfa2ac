package node_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/replog"
	rmhttp "github.com/assent-tx/assent/internal/rm/http"
	"github.com/assent-tx/assent/internal/shard"
)

// BenchmarkCommit runs whole transactions over two participants that answer at
// once, on a real log with fsync, from 1 and 64 clients. It reports txn/s, and
// the ratio to the bare HTTP calls that such a transaction cannot do without (four),
// measured in the same run.
func BenchmarkCommit(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) { benchCommit(b, clients) })
	}
}

func benchCommit(b *testing.B, clients int) {
	var calls atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		calls.Add(1)
		_, _ = w.Write([]byte(`{"vote":"yes"}`))
	}))
	defer srv.Close()
	n := node.New(node.Config{Name: "n1", Shard: shard.DefaultConfig()}, rmhttp.New(rmhttp.Config{}), nil)
	log, err := replog.Open(replog.Config{Dir: b.TempDir(), NodeID: "n1", Machines: []replog.Machine{n.Machine(0)}})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	defer func() {
		if err := log.Close(); err != nil {
			b.Error(err)
		}
	}()
	if err := n.Start(log); err != nil {
		b.Fatal(err)
	}
	if err := n.WaitReady(b.Context()); err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		spec := node.ServiceSpec{Name: name, PrepareURL: srv.URL, CommitURL: srv.URL, RollbackURL: srv.URL}
		if _, err := n.PutService(b.Context(), spec); err != nil {
			b.Fatal(err)
		}
	}
	var key atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	took := inParallel(b, clients, b.N, func() error {
		k := fmt.Sprint(key.Add(1) % 100_000)
		t, err := n.Submit(b.Context(), node.Submission{Operations: []node.Operation{op("a", k), op("b", k)}, Wait: node.WaitCompleted})
		if err == nil && t.State != "committed" {
			err = fmt.Errorf("%+v", t)
		}
		return err
	})
	b.StopTimer()
	if got := calls.Load(); got != 4*int64(b.N) {
		b.Fatalf("%d calls for %d transactions, want exactly 4 each", got, b.N)
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4 * clients}}
	defer client.CloseIdleConnections()
	body := bytes.Repeat([]byte("x"), 300)
	floor := inParallel(b, clients, 4*b.N, func() error {
		resp, err := client.Post(srv.URL, "application/json", bytes.NewReader(body))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	})
	b.ReportMetric(float64(b.N)/took.Seconds(), "txn/s")
	b.ReportMetric(floor.Seconds()/took.Seconds(), "ratio_to_bare_calls")
}

// inParallel does the work so many times from so many goroutines.
func inParallel(b *testing.B, clients, times int, work func() error) time.Duration {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(times))
	var wg sync.WaitGroup
	start := time.Now()
	for range clients {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := work(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}
