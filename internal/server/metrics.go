package server

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/assent-tx/assent/internal/reason"
)

// meters count requests by protocol (rest, grpc), method (the RPC's name, in both)
// and code (OK or a reason).
type meters struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMeters(reg prometheus.Registerer, a *admission) (*meters, error) {
	m := &meters{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "assent_api_requests_total", Help: "Requests answered, by protocol, method and code (OK or a reason).",
		}, []string{"protocol", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "assent_api_request_seconds", Help: "From a request's first byte handled to its answer.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 18), // 0.25 ms to 33 s
		}, []string{"protocol", "method"}),
	}
	inFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "assent_api_requests_in_flight", Help: "Requests that are being worked on.",
	}, func() float64 { return float64(a.requests.Load()) })
	held := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "assent_api_request_bytes_in_flight", Help: "Bodies of requests that are being worked on.",
	}, func() float64 { return float64(a.bytes.Load()) })
	var errs []error
	for _, c := range []prometheus.Collector{m.requests, m.seconds, inFlight, held} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

// meter is the part for one method; its good case is resolved once.
type meter struct {
	requests *prometheus.CounterVec
	ok       prometheus.Counter
	seconds  prometheus.Observer
}

func (m *meters) of(protocol, method string) *meter {
	requests := m.requests.MustCurryWith(prometheus.Labels{"protocol": protocol, "method": method})
	return &meter{requests: requests, ok: requests.WithLabelValues("OK"), seconds: m.seconds.WithLabelValues(protocol, method)}
}

func (m *meter) done(since time.Time, p *problem) {
	m.seconds.Observe(time.Since(since).Seconds())
	if p == nil {
		m.ok.Inc()
		return
	}
	code := p.err.Code
	if _, known := wireCodes[code]; !known {
		code = reason.Internal
	}
	m.requests.WithLabelValues(string(code)).Inc()
}
