package node

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/rm"
	"github.com/assent-tx/assent/internal/shard"
)

// Metrics are a node's meters. A nil *Metrics measures nothing.
type Metrics struct {
	transactions *prometheus.CounterVec // by outcome, reason
	refused      *prometheus.CounterVec // by reason
	lockWait     prometheus.Histogram
	prepare      prometheus.Histogram // begun to decided
	finish       prometheus.Histogram // decided to ended
	retries      *prometheus.CounterVec
	hazards      *prometheus.CounterVec
	blocked      prometheus.Counter
	stepWait     prometheus.Histogram
	deadlocks    prometheus.Counter
	wounds       prometheus.Counter
	needless     prometheus.Counter
	grants       prometheus.Counter
	cycles       prometheus.Histogram
	calls        *prometheus.HistogramVec // by service, phase, result
	noKeys       *prometheus.CounterVec
	batch        prometheus.Histogram
	batchBytes   prometheus.Histogram
	appendTime   prometheus.Histogram
	storeEntries prometheus.Histogram
	snapshots    prometheus.Histogram
	stale        prometheus.Counter
	leads        prometheus.Counter
	checks       *prometheus.CounterVec // by result
	forwarded    *prometheus.CounterVec // by result
	relayed      prometheus.Counter
	members      atomic.Pointer[func() (up, down int)]

	committed, abortedVote, abortedOther prometheus.Counter // resolved once: the hot ones

	node atomic.Pointer[Node]
}

// NewMetrics registers a node's meters.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	times := prometheus.ExponentialBuckets(0.00025, 2, 18) // 0.25 ms to 33 s
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "assent_" + name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "assent_" + name, Help: help, Buckets: buckets})
		reg.MustRegister(h)
		return h
	}
	m := &Metrics{
		transactions: counter("transactions_total", "Transactions decided, by outcome and abort reason.", "outcome", "reason"),
		refused:      counter("requests_refused_total", "Requests refused by a shard, by reason.", "reason"),
		retries:      counter("call_retries_total", "Calls to participants without a definite answer, to be repeated.", "service", "phase"),
		hazards:      counter("hazards_total", "Branches that ended otherwise than decided.", "service", "kind"),
		noKeys:       counter("undeclared_key_operations_total", "Operations without keys: each takes its whole service exclusively. Declare keys to let transactions run side by side.", "service"),
		lockWait:     histogram("lock_wait_seconds", "From BEGIN applied to every lock granted.", times),
		prepare:      histogram("decision_seconds", "From BEGIN applied to the decision applied.", times),
		finish:       histogram("finish_seconds", "From the decision applied to the last acknowledgement applied.", times),
		batch:        histogram("append_commands", "Commands in one entry of the log.", prometheus.ExponentialBuckets(1, 2, 13)),
		batchBytes:   histogram("append_bytes", "Bytes of one entry of the log.", prometheus.ExponentialBuckets(64, 4, 10)),
		appendTime:   histogram("append_seconds", "One synced write to the log.", times),
		storeEntries: histogram("append_entries", "Entries in one synced write to the log.", prometheus.ExponentialBuckets(1, 2, 8)),
		snapshots:    histogram("snapshot_seconds", "Writing one snapshot.", prometheus.ExponentialBuckets(0.001, 2, 16)),
	}
	m.blocked = counter("lock_waits_total", "Transactions that had to wait for a lock.").WithLabelValues()
	m.stepWait = histogram("step_wait_seconds", "From a step's arrival to all its locks granted, of interactive transactions.", times)
	m.deadlocks = counter("deadlocks_total", "Cycles of waiting that were broken; each cost one victim its turn.").WithLabelValues()
	m.grants = counter("lock_grants_total", "Transactions, and steps of interactive ones, that got all their locks.").WithLabelValues()
	m.wounds = counter("wounds_total", "Transactions that gave way to an older one, in no cycle that was seen; aborts by reason WOUNDED are among them, the rest were restarted unseen.").WithLabelValues()
	m.needless = counter("needless_victims_total", "Of those, the ones that surely stood in no cycle.").WithLabelValues()
	m.cycles = histogram("deadlock_transactions", "Transactions in a cycle of waiting.", prometheus.LinearBuckets(2, 1, 8))
	m.stale = counter("stale_entries_total", "Log entries ignored because they were computed in another term.").WithLabelValues()
	m.leads = counter("leaderships_total", "Times that this node began to lead a shard.").WithLabelValues()
	m.checks = counter("state_checks_total", "Comparisons of this replica's state with the leader's, by result. A replica that diverged halts.", "result")
	m.forwarded = counter("forwarded_requests_total", "Requests handed to the leader at another node, by result: answered, refused, unreachable.", "result")
	m.relayed = counter("relayed_calls_total", "Calls to a node that this one does not reach, handed to a third one that does.").WithLabelValues()
	m.calls = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "assent_call_seconds", Help: "Calls to participants, by service, phase and result.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
	}, []string{"service", "phase", "result"})
	reg.MustRegister(m.calls, &stateCollector{m: m})
	m.committed = m.transactions.WithLabelValues("committed", "")
	m.abortedVote = m.transactions.WithLabelValues("aborted", string(reason.VotedNo))
	m.abortedOther = m.transactions.WithLabelValues("aborted", string(reason.Timeout))
	return m
}

// Appended observes one synced write to a shard's log.
func (m *Metrics) Appended(_ uint32, took time.Duration, entries, _ int) {
	if m != nil {
		m.appendTime.Observe(took.Seconds())
		m.storeEntries.Observe(float64(entries))
	}
}

// Snapshotted observes one snapshot of a shard.
func (m *Metrics) Snapshotted(_ uint32, took time.Duration, _ int64, err error) {
	if m != nil && err == nil {
		m.snapshots.Observe(took.Seconds())
	}
}

// Relayed counts one call that a third node was asked to hand on.
func (m *Metrics) Relayed() { m.relayed.Inc() }

// Forwarded counts one request handed to another node.
func (m *Metrics) Forwarded(result string) { m.forwarded.WithLabelValues(result).Inc() }

// CountMembers sets what tells how many members of the cluster are up and down.
func (m *Metrics) CountMembers(count func() (up, down int)) { m.members.Store(&count) }

func (m *Metrics) called(c *rm.Call, res *rm.Result) {
	if m != nil {
		m.calls.WithLabelValues(c.Service, c.Phase.String(), res.Kind.String()).Observe(res.Took.Seconds())
	}
}

func (m *Metrics) undeclared(service string) {
	if m != nil {
		m.noKeys.WithLabelValues(service).Inc()
	}
}

// forgetService drops the series of a removed service.
func (m *Metrics) forgetService(name string) {
	if m == nil {
		return
	}
	label := prometheus.Labels{"service": name}
	m.calls.DeletePartialMatch(label)
	m.retries.DeletePartialMatch(label)
	m.noKeys.DeletePartialMatch(label)
}

func (m *Metrics) observe(e *shard.Notice) {
	seconds := float64(e.DurUs) / 1e6
	switch e.Kind {
	case shard.NoticeDecided:
		m.prepare.Observe(seconds)
		switch {
		case e.Committed:
			m.committed.Inc()
		case e.Reason == reason.VotedNo:
			m.abortedVote.Inc()
		case e.Reason == reason.Timeout:
			m.abortedOther.Inc()
		default:
			m.transactions.WithLabelValues("aborted", string(e.Reason)).Inc()
		}
	case shard.NoticeGranted:
		m.lockWait.Observe(seconds)
		m.grants.Inc()
	case shard.NoticeBlocked:
		m.blocked.Inc()
	case shard.NoticeEnded:
		m.finish.Observe(seconds)
	case shard.NoticeProposed:
		m.batch.Observe(float64(e.N))
		m.batchBytes.Observe(float64(e.Bytes))
	case shard.NoticeRefused:
		m.refused.WithLabelValues(string(e.Reason)).Inc()
	case shard.NoticeRetry:
		m.retries.WithLabelValues(e.Service, e.Phase.String()).Inc()
	case shard.NoticeHazard:
		m.hazards.WithLabelValues(e.Service, e.Text).Inc()
	case shard.NoticeStaleEntry:
		m.stale.Inc()
	case shard.NoticeLeading:
		m.leads.Inc()
	case shard.NoticeStep:
		m.stepWait.Observe(seconds)
		m.grants.Inc()
	case shard.NoticeDeadlock:
		m.deadlocks.Inc()
		m.cycles.Observe(float64(e.N))
	case shard.NoticeWounded:
		m.wounds.Inc()
		if e.Needless {
			m.needless.Inc()
		}
	case shard.NoticeFollowing, shard.NoticeBegan, shard.NoticeResolved, shard.NoticeIgnored, shard.NoticeService, shard.NoticeLevel, shard.NoticeMember, shard.NoticePlaced:
	case shard.NoticeVerified:
		m.checks.WithLabelValues("equal").Inc()
	case shard.NoticeDiverged:
		m.checks.WithLabelValues("diverged").Inc()
	}
}

// stateCollector reads gauges from the shards when they are scraped.
type stateCollector struct{ m *Metrics }

var (
	descOpen    = prometheus.NewDesc("assent_transactions_open", "Transactions that have not ended.", nil, nil)
	descDone    = prometheus.NewDesc("assent_transactions_retained", "Ended transactions whose outcome is kept.", nil, nil)
	descDoubt   = prometheus.NewDesc("assent_transactions_in_doubt", "Decided transactions that some participant has not acknowledged.", nil, nil)
	descAge     = prometheus.NewDesc("assent_in_doubt_age_seconds", "Age of the oldest decision that is not acknowledged; 0 if there is none.", nil, nil)
	descHazards = prometheus.NewDesc("assent_hazards_open", "Transactions with an unresolved heuristic hazard.", nil, nil)
	descAppends = prometheus.NewDesc("assent_log_appends_total", "Entries appended by this node's proposals.", nil, nil)
	descBytes   = prometheus.NewDesc("assent_log_appended_bytes_total", "Bytes of those entries.", nil, nil)
	descFsyncs  = prometheus.NewDesc("assent_log_fsyncs_total", "Synced writes of the log's database, all shards.", nil, nil)
	descLocks   = prometheus.NewDesc("assent_lock_owners", "Transactions that hold or wait for a lock.", nil, nil)
	descWaiters = prometheus.NewDesc("assent_lock_waiters", "Transactions that wait for a lock.", nil, nil)
	descQueue   = prometheus.NewDesc("assent_lock_longest_queue", "Transactions that wait for the key that most wait for.", nil, nil)
	descLeading = prometheus.NewDesc("assent_shards_leading", "Shards that this node leads.", nil, nil)
	descMembers = prometheus.NewDesc("assent_members", "Members of the cluster, as this node hears them.", []string{"state"}, nil)
	descW       = prometheus.NewDesc("assent_watermark_seconds", "Unix time of the lowest shard's watermark: ids below it without a record are expired.", nil, nil)
)

// Describe implements prometheus.Collector.
func (*stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descOpen, descDone, descDoubt, descAge, descHazards, descAppends, descBytes, descFsyncs, descLocks, descWaiters, descQueue, descLeading, descMembers, descW} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	n := c.m.node.Load()
	if n == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var open, done, doubt, hazards, locks, waiters, queue, leading int
	var age, w float64
	for _, r := range n.runners {
		err := r.run(ctx, func(sh *shard.Shard) {
			st := sh.State()
			open += st.Live()
			done += st.Done()
			hazards += st.Hazards()
			locks += st.LockOwners()
			waiters += st.LockWaiters()
			queue = max(queue, st.LongestLockQueue())
			if sh.Leading() {
				leading++
			}
			count, oldest := sh.InDoubt()
			doubt += count
			if oldest > 0 {
				age = max(age, time.Since(time.UnixMilli(int64(oldest))).Seconds())
			}
			if s := float64(st.Watermark()) / 1000; w == 0 || s < w {
				w = s
			}
		})
		if err != nil {
			return // stopping, or stuck: a missing series says so, a wrong one would not
		}
	}
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	counter := func(d *prometheus.Desc, v uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	var appends, appended, fsyncs uint64
	for _, r := range n.runners {
		if g := r.group.Load(); g != nil {
			stats := (*g).Stats()
			appends += stats.Appends
			appended += stats.AppendedBytes
			fsyncs = max(fsyncs, stats.Fsyncs) // of the database that all shards share
		}
	}
	if count := c.m.members.Load(); count != nil {
		up, down := (*count)()
		ch <- prometheus.MustNewConstMetric(descMembers, prometheus.GaugeValue, float64(up), "up")
		ch <- prometheus.MustNewConstMetric(descMembers, prometheus.GaugeValue, float64(down), "down")
	}
	counter(descAppends, appends)
	counter(descBytes, appended)
	counter(descFsyncs, fsyncs)
	gauge(descOpen, float64(open))
	gauge(descDone, float64(done))
	gauge(descDoubt, float64(doubt))
	gauge(descAge, age)
	gauge(descHazards, float64(hazards))
	gauge(descLocks, float64(locks))
	gauge(descWaiters, float64(waiters))
	gauge(descQueue, float64(queue))
	gauge(descLeading, float64(leading))
	gauge(descW, w)
}

// observe passes a shard's notice on to meters and the log.
func (n *Node) observe(idx uint32, e *shard.Notice) {
	if n.metrics != nil {
		n.metrics.observe(e)
	}
	switch e.Kind {
	case shard.NoticeHazard:
		n.log.Error("HEURISTIC HAZARD: a participant ended a branch otherwise than decided; compare its data, then resolve the transaction",
			"transaction", e.ID.String(), "service", e.Service, "kind", e.Text, "decided_commit", e.Committed)
	case shard.NoticeLeading:
		n.log.Info("leading", "shard", idx, "open_transactions", e.N)
	case shard.NoticeFollowing:
		n.log.Info("no longer leading", "shard", idx)
	case shard.NoticeService:
		n.log.Info("service "+e.Text, "service", e.Service)
	case shard.NoticeMember:
		n.log.Info("member "+e.Text, "member", e.Member)
	case shard.NoticePlaced:
		n.log.Info("shard placed", "shard", e.N, "voters", e.Text)
	case shard.NoticeVerified:
		n.log.Debug("the state is the leader's", "shard", idx, "entry", e.N)
	case shard.NoticeDiverged:
		n.log.Error("STATE DIVERGED: this replica is about to stop; let it rejoin empty", "shard", idx, "error", e.Text)
	case shard.NoticeLevel:
		n.log.Info("the log has reached a feature level", "shard", idx, "level", e.N)
	case shard.NoticeResolved:
		n.log.Info("hazard resolved", "transaction", e.ID.String())
	case shard.NoticeRetry:
		// Each doubling of the failures in a row is worth a line, not each failure.
		// The calls of what is not decided end with its timeout.
		if (e.Phase == shard.PhaseCommit || e.Phase == shard.PhaseRollback) && e.N >= 4 && e.N&(e.N-1) == 0 {
			n.log.Warn("a decided branch is not acknowledged yet", "transaction", e.ID.String(), "service", e.Service, "phase", e.Phase.String(), "failures", e.N, "error", e.Text)
		}
	case shard.NoticeDeadlock:
		n.log.Info("deadlock broken", "shard", idx, "victim", e.ID.String(), "cycle", e.Text)
	case shard.NoticeWounded:
		n.log.Debug("gave way", "shard", idx, "transaction", e.ID.String(), "because", e.Text)
	case shard.NoticeStaleEntry:
		n.log.Info("an entry of another term was ignored", "shard", idx)
	case shard.NoticeBegan, shard.NoticeRefused, shard.NoticeBlocked, shard.NoticeGranted, shard.NoticeDecided, shard.NoticeEnded, shard.NoticeProposed, shard.NoticeIgnored, shard.NoticeStep:
	}
}
