package rmhttp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/assent-tx/assent/internal/rm"
)

const benchCallers = 64

func benchServer(b *testing.B) *httptest.Server {
	return serve(b, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, `{"vote":"yes"}`)
	})
}

// BenchmarkCall is this package, 64 calls in flight, client and server in one process.
func BenchmarkCall(b *testing.B) {
	s := benchServer(b)
	cl := newClient(b, Config{})
	e := at(s.URL)
	e.MaxInFlight = 2 * benchCallers
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range benchCallers {
		wg.Go(func() {
			answered := make(chan rm.Result, 1)
			done := func(r rm.Result) { answered <- r }
			for n := i; n < b.N; n += benchCallers {
				cl.Call(call(rm.Prepare), e, done)
				if r := <-answered; r.Kind != rm.Yes {
					b.Errorf("%+v", r)
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// BenchmarkBareLoop is the floor: net/http's client in a loop, no limits, no
// queue, body and headers built ahead, the same server and answer.
func BenchmarkBareLoop(b *testing.B) {
	s := benchServer(b)
	transport := &http.Transport{MaxIdleConnsPerHost: benchCallers}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	body := appendCall(nil, call(rm.Prepare), rm.Prepare)
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range benchCallers {
		wg.Go(func() {
			for n := i; n < b.N; n += benchCallers {
				resp, err := client.Post(s.URL+"/prepare", "application/json", bytes.NewReader(body))
				if err != nil {
					b.Error(err)
					continue
				}
				var a struct{ Vote string }
				if err := json.NewDecoder(resp.Body).Decode(&a); err != nil || a.Vote != "yes" {
					b.Error(a, err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

func BenchmarkEncode(b *testing.B) {
	c := call(rm.Prepare)
	b.ReportAllocs()
	for b.Loop() {
		_ = appendCall(make([]byte, 0, callSize(c, rm.Prepare)), c, rm.Prepare)
	}
}

func BenchmarkDecode(b *testing.B) {
	body := []byte(`{"vote":"yes","results":[{"balance":10}]}`)
	b.ReportAllocs()
	for b.Loop() {
		_ = decodePrepare(200, body, false, 64)
	}
}
