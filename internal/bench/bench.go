// Package bench measures a coordinator, of one node or several: committed transactions over HTTP
// participants that answer at once, each audited, beside a floor measured in
// turns with it - the bare HTTP calls and the bare log appends that such
// transactions cannot do without.
//
//	rounds:  transactions | bare calls | bare appends | transactions | bare calls | ...
//
// Machines are noisy: what is quoted is the median over the rounds of the ratio
// within each round, not a rate.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/assent-tx/assent/internal/serveproc"
)

// Config of a run. Zero fields take the defaults of the command.
type Config struct {
	Binary      string // the assent binary, for child processes
	Dir         string // of the data; empty: a temporary directory
	URL         string // of a running coordinator; empty: one is started
	Nodes       int    // of the coordinator that is started; 0 and 1: one that is alone
	Shards      int    // that it spreads transactions over; 0: 1
	Concurrency int    // clients that wait for their answer
	Branches    int    // participants in a transaction, one operation each
	Keys        int    // locks of each operation; 0: its whole service
	Payload     int    // bytes of each operation's payload
	Services    int    // registered besides, taking part in nothing
	Open        int    // transactions that wait for a lock all the time, besides
	Ended       int    // transactions committed before the first round, at least
	Rounds      int
	Duration    time.Duration // of the transactions in all rounds together
	Warmup      time.Duration // before the first round, not counted
	ServeFlags  []string      // further flags of the coordinator that is started
	NoFloor     bool          // do not measure the floor
	DSNs        []string      // PostgreSQL databases to be the participants, by agents; empty: HTTP services that answer at once
	Apart       bool          // each agent in a process of its own, not in the coordinator's
}

// Report is what a run found. Rates are per second, times in milliseconds.
type Report struct {
	Concurrency int `json:"concurrency"`
	Branches    int `json:"branches"`
	Keys        int `json:"keys"`
	Payload     int `json:"payload_bytes"`
	Services    int `json:"idle_services"`
	Nodes       int `json:"nodes"`
	Shards      int `json:"shards"`
	Open        int `json:"open_transactions"`
	Rounds      int `json:"rounds"`

	Transactions int64   `json:"transactions"` // committed and audited
	Refused      int64   `json:"refused"`      // by an overloaded coordinator; not counted above
	TxnPerSecond float64 `json:"txn_per_second"`
	P50          float64 `json:"p50_ms"`
	P99          float64 `json:"p99_ms"`
	P999         float64 `json:"p99_9_ms"`

	FloorTxnPerSecond float64 `json:"floor_txn_per_second"`
	FloorCalls        float64 `json:"floor_calls_per_second"`
	FloorAppends      float64 `json:"floor_appends_per_second"`
	RatioToFloor      float64 `json:"ratio_to_floor"`
	FloorCallP50      float64 `json:"floor_call_p50_ms"`
	FloorAppendP50    float64 `json:"floor_append_p50_ms"`
	// P50ToFloor is P50 over three bare calls and two bare appends, one after the other.
	P50ToFloor float64 `json:"p50_to_floor"`

	CoordinatorCPU  float64 `json:"coordinator_cpu_us_per_txn"`
	ParticipantsCPU float64 `json:"participants_cpu_us_per_txn"`
	ClientCPU       float64 `json:"client_cpu_us_per_txn"`
	CoordinatorRSS  float64 `json:"coordinator_rss_mib"`

	AppendsPerTxn     float64 `json:"appends_per_txn"`
	CommandsPerAppend float64 `json:"commands_per_append"`
	BytesPerTxn       float64 `json:"log_bytes_per_txn"`
	FsyncsPerTxn      float64 `json:"fsyncs_per_txn"`

	Ratios []float64 `json:"ratios"` // of each round
}

// Run runs the benchmark. It fails if any transaction was not prepared and
// committed exactly once at each of its participants.
func Run(ctx context.Context, cfg Config, progress io.Writer) (*Report, error) {
	if cfg.URL != "" && (cfg.Open > 0 || cfg.Nodes > 1 || cfg.Shards > 1) {
		return nil, errors.New("transactions that stay open, several nodes and shards are for a coordinator of the benchmark's own: leave out --url, or the others")
	}
	dir := cfg.Dir
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "assent-bench-"); err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
	}
	b := &run{cfg: cfg, coord: &coordinator{}, dir: dir, http: newClient(cfg.Concurrency)}
	defer b.http.CloseIdleConnections()
	if len(cfg.DSNs) > 0 {
		b.work = &postgresWorkload{cfg: cfg}
	} else {
		b.work = &httpWorkload{cfg: cfg, path: "/assent"}
	}
	defer b.work.stop()
	flags, err := b.work.before(ctx, dir)
	if err != nil {
		return nil, err
	}
	stop, err := b.startCoordinator(ctx, append(flags, cfg.ServeFlags...))
	if err != nil {
		return nil, err
	}
	defer stop()
	if err := b.work.start(ctx, b); err != nil {
		return nil, err
	}
	defer func() {
		if b.silent != nil {
			b.silent.stop()
		}
	}()
	if err := b.background(ctx); err != nil {
		return nil, err
	}
	return b.rounds(ctx, progress)
}

// startCoordinator starts the nodes, unless the coordinator runs already.
func (b *run) startCoordinator(ctx context.Context, flags []string) (stop func(), err error) {
	if b.cfg.URL != "" {
		b.coord.urls = []string{b.cfg.URL}
		return func() {}, nil
	}
	b.coord.shards = max(b.cfg.Shards, 1)
	// Those that are kept open come on top of what a coordinator admits by default.
	flags = append(flags, "--shards", strconv.Itoa(b.coord.shards), "--max-open-transactions", strconv.Itoa(20_000+b.cfg.Open))
	var nodes *serveproc.Cluster
	if b.cfg.Nodes > 1 {
		nodes, err = serveproc.NewPlainCluster(b.cfg.Binary, b.dir, b.cfg.Nodes, flags...)
	} else {
		nodes = &serveproc.Cluster{}
		var alone *serveproc.Process
		alone, err = serveproc.New(b.cfg.Binary, filepath.Join(b.dir, "coordinator"), flags...)
		nodes.Nodes = append(nodes.Nodes, alone)
	}
	if err != nil {
		return nil, err
	}
	if err := nodes.Start(ctx); err != nil {
		nodes.Close()
		return nil, err
	}
	for _, n := range nodes.Nodes {
		b.coord.urls, b.coord.pids = append(b.coord.urls, n.URL), append(b.coord.pids, n.Pid())
	}
	return nodes.Close, nil
}

// round is what one round measured.
type round struct {
	txns  sample
	floor floor
	ratio float64
}

func (b *run) rounds(ctx context.Context, progress io.Writer) (*Report, error) {
	cfg := b.cfg
	if err := b.warmUp(ctx); err != nil {
		return nil, fmt.Errorf("warm-up: %w", err)
	}
	var rounds []round
	var spent use // by the transactions alone
	for i := range cfg.Rounds {
		start, err := b.usage(ctx)
		if err != nil {
			return nil, err
		}
		var r round
		if r.txns, err = b.transactions(ctx, cfg.Duration/time.Duration(cfg.Rounds)); err != nil {
			return nil, err
		}
		end, err := b.usage(ctx)
		if err != nil {
			return nil, err
		}
		spent.add(end.minus(start))
		if len(r.txns.took) == 0 {
			return nil, errors.New("no transaction was committed in a whole round")
		}
		if cfg.NoFloor {
			rounds = append(rounds, r)
			continue
		}
		perTxn := end.minus(start).perTxn(len(r.txns.took))
		if r.floor, err = b.work.floor(ctx, b, perTxn, 3*cfg.Duration/time.Duration(4*cfg.Rounds)); err != nil {
			return nil, err
		}
		r.ratio = r.txns.rate() / r.floor.txnRate
		rounds = append(rounds, r)
		fmt.Fprintf(progress, "round %d of %d: %7.0f txn/s, floor %7.0f, ratio %.2f\n", i+1, cfg.Rounds, r.txns.rate(), r.floor.txnRate, r.ratio)
	}
	total := 0
	for _, r := range rounds {
		total += len(r.txns.took)
	}
	if err := b.work.audit(ctx, total); err != nil {
		return nil, err
	}
	return b.report(rounds, spent, total), nil
}

// warmUp submits for the time asked for, and until enough transactions have ended.
func (b *run) warmUp(ctx context.Context) error {
	for ended, stretch := 0, b.cfg.Warmup; ; stretch = time.Second {
		warm, err := b.transactions(ctx, stretch)
		if err == nil {
			err = b.work.audit(ctx, len(warm.took)) // their commits must not be counted below
		}
		if err == nil {
			err = b.work.reset(ctx)
		}
		if ended += len(warm.took); err != nil || ended >= b.cfg.Ended {
			return err
		}
	}
}

func (b *run) report(rounds []round, spent use, total int) *Report {
	cfg := b.cfg
	r := &Report{Concurrency: cfg.Concurrency, Branches: cfg.Branches, Keys: cfg.Keys, Payload: cfg.Payload, Services: cfg.Services, Nodes: max(cfg.Nodes, 1), Shards: max(cfg.Shards, 1), Open: cfg.Open, Rounds: cfg.Rounds, Transactions: int64(total)}
	var all, calls []time.Duration
	var rates, floors, callRates, appendRates, appendTimes []float64
	for _, x := range rounds {
		all = append(all, x.txns.took...)
		calls = append(calls, x.floor.callTook...)
		r.Refused += x.txns.refused
		rates = append(rates, x.txns.rate())
		floors = append(floors, x.floor.txnRate)
		callRates = append(callRates, x.floor.callRate)
		appendRates = append(appendRates, x.floor.appendRate)
		appendTimes = append(appendTimes, ms(x.floor.appendTook))
		r.Ratios = append(r.Ratios, math.Round(x.ratio*1000)/1000)
	}
	r.TxnPerSecond, r.FloorTxnPerSecond, r.RatioToFloor = median(rates), median(floors), median(r.Ratios)
	r.FloorCalls, r.FloorAppends, r.FloorAppendP50 = median(callRates), median(appendRates), median(appendTimes)
	slices.Sort(all)
	slices.Sort(calls)
	r.P50, r.P99, r.P999 = ms(quantile(all, 0.5)), ms(quantile(all, 0.99)), ms(quantile(all, 0.999))
	r.FloorCallP50 = ms(quantile(calls, 0.5))
	if floor := 3*r.FloorCallP50 + 2*r.FloorAppendP50; floor > 0 {
		r.P50ToFloor = r.P50 / floor
	}
	per := spent.perTxn(total)
	r.CoordinatorCPU, r.ParticipantsCPU, r.ClientCPU, r.CoordinatorRSS = per.coordinatorUs, per.participantsUs, per.clientUs, per.rssMiB
	r.AppendsPerTxn, r.BytesPerTxn, r.FsyncsPerTxn = per.appends, per.bytes, per.fsyncs
	r.CommandsPerAppend = per.commands / max(per.appends, 1e-9)
	return r
}

func median(v []float64) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	if n := len(s); n%2 == 1 {
		return s[n/2]
	} else if n > 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return 0
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Print writes the report for people.
func (r *Report) Print(w io.Writer) {
	fmt.Fprintf(w, `
%d clients, %d participants, %d keys each, payloads of %d bytes; %d nodes, %d shards; medians of %d rounds
besides             %9d idle services, %d open transactions
transactions        %9.0f /s     %d committed, each prepared and committed exactly once; %d refused
latency             %9.2f ms p50   %.2f ms p99   %.2f ms p99.9
floor               %9.0f txn/s  (%d bare calls at %.0f/s beside %.2f bare appends at %.0f/s)
ratio_to_floor      %9.2f        rounds: %v
p50 to its floor    %9.2f        of 3 bare calls (%.3f ms) and 2 bare appends (%.3f ms)
CPU per transaction %9.0f us     coordinator; %.0f us participants, %.0f us clients
log per transaction %9.2f appends of %.1f commands, %.0f bytes, %.2f fsyncs
coordinator memory  %9.0f MiB
`, r.Concurrency, r.Branches, r.Keys, r.Payload, r.Nodes, r.Shards, r.Rounds, r.Services, r.Open, r.TxnPerSecond, r.Transactions, r.Refused, r.P50, r.P99, r.P999,
		r.FloorTxnPerSecond, 1+2*r.Branches, r.FloorCalls, r.AppendsPerTxn, r.FloorAppends, r.RatioToFloor, r.Ratios,
		r.P50ToFloor, r.FloorCallP50, r.FloorAppendP50, r.CoordinatorCPU, r.ParticipantsCPU, r.ClientCPU,
		r.AppendsPerTxn, r.CommandsPerAppend, r.BytesPerTxn, r.FsyncsPerTxn, r.CoordinatorRSS)
}
