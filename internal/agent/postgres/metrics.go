package postgres

import (
	"errors"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/assent-tx/assent/participant"
)

type metrics struct {
	votes, executes                       *prometheus.CounterVec
	prepared, oldest                      prometheus.Gauge
	sweeps, sweepErrors, orphans, hazards prometheus.Counter
	fast, slow                            prometheus.Counter
}

func newMetrics() *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "assent_agent_" + name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "assent_agent_" + name + "_total", Help: help})
	}
	return &metrics{
		votes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "assent_agent_votes_total",
			Help: "What became of the work of prepares: yes, read_only, no_ with its class, retried.",
		}, []string{"vote"}),
		executes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "assent_agent_executes_total",
			Help: "Answers to calls that execute before prepare: executed, the reason of a refusal, or error.",
		}, []string{"answer"}),
		prepared:    gauge("prepared", "Branches that are prepared in the database, at the last sweep."),
		oldest:      gauge("prepared_oldest_seconds", "Age of the oldest of them."),
		sweeps:      counter("sweeps", "Looks for branches that nobody ends."),
		sweepErrors: counter("sweep_errors", "Such looks that failed."),
		orphans:     counter("orphans", "Prepared branches rolled back because their transaction had aborted."),
		hazards:     counter("hazards", "Sightings of prepared branches whose transaction has ended otherwise: a person must look."),
		fast:        counter("one_trip", "Branches prepared in one round trip to the database."),
		slow:        counter("one_trip_failed", "Branches that were tried so and then done step by step: refusals, conflicts, duplicates."),
	}
}

// register shows the metrics, and those of the connections.
func (m *metrics) register(r prometheus.Registerer, conns *pgxpool.Pool, openBranches func() int) error {
	if r == nil {
		return nil
	}
	pool := func(name, help string, value func(*pgxpool.Stat) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "assent_agent_connections_" + name, Help: help}, func() float64 { return value(conns.Stat()) })
	}
	for _, c := range []prometheus.Collector{
		m.votes, m.executes, m.prepared, m.oldest, m.sweeps, m.sweepErrors, m.orphans, m.hazards, m.fast, m.slow,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "assent_agent_open_branches", Help: "Branches whose local transaction is open between calls; each has a connection.",
		}, func() float64 { return float64(openBranches()) }),
		pool("in_use", "Connections to the database in use.", func(s *pgxpool.Stat) float64 { return float64(s.AcquiredConns()) }),
		pool("open", "Connections to the database.", func(s *pgxpool.Stat) float64 { return float64(s.TotalConns()) }),
		pool("waits", "Waits for a free connection since the start.", func(s *pgxpool.Stat) float64 { return float64(s.EmptyAcquireCount()) }),
	} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *metrics) vote(kind string) { m.votes.WithLabelValues(kind).Inc() }

// voted counts what a prepare's work came to.
func (m *metrics) voted(err error) {
	var refused *classedError
	switch {
	case err == nil:
		m.vote("yes")
	case errors.Is(err, participant.ReadOnly):
		m.vote("read_only")
	case errors.As(err, &refused):
		m.vote("no_" + refused.class)
	case sqlState(err) == serialization, sqlState(err) == deadlock:
		m.vote("retried")
	}
}

// executed counts an answer to execute.
func (m *metrics) executed(x *participant.Execution, err error) {
	switch {
	case err != nil:
		m.executes.WithLabelValues("error").Inc()
	case x.Executed:
		m.executes.WithLabelValues("executed").Inc()
	default:
		m.executes.WithLabelValues(x.Reason).Inc()
	}
}
