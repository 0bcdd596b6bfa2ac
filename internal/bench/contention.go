package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	assent "github.com/assent-tx/assent"
	"github.com/assent-tx/assent/internal/contention"
)

// Contention is what RunContention found.
type Contention struct {
	Clients int              `json:"clients"`
	Shards  int              `json:"shards"`
	Rows    []*ContentionRow `json:"rows"`
}

// ContentionRow is one workload: clients that get in each other's way, and the same clients
// where each has keys of its own, in turns. Times are in milliseconds, from the first try
// to the commit.
type ContentionRow struct {
	Workload        string  `json:"workload"`
	Transactions    int     `json:"transactions"` // committed and audited
	TxnPerSecond    float64 `json:"txn_per_second"`
	AlonePerSecond  float64 `json:"alone_per_second"` // where nobody waits for anybody
	RatioToAlone    float64 `json:"ratio_to_alone"`   // median of the rounds
	AbortsPerTxn    float64 `json:"aborts_per_txn"`   // which the client tried again
	RestartsPerTxn  float64 `json:"restarts_per_txn"` // which the client did not see
	NeedlessPerTxn  float64 `json:"needless_per_txn"` // of both, those that surely stood in no cycle
	P50             float64 `json:"p50_ms"`
	P99             float64 `json:"p99_ms"`
	P999            float64 `json:"p99_9_ms"`
	LongestOverMean float64 `json:"longest_over_mean"`
	Readers         int     `json:"readers"` // commits of the long reader, if there is one
	ReaderP50       float64 `json:"reader_p50_ms"`
	ReaderLongest   float64 `json:"reader_longest_ms"`
}

const (
	contentionRounds = 2
	// maxTries is more than anybody needs: who tries again keeps his age.
	maxTries = 10_000
	// contentionTimeout is beyond every wait that a run of this length can bring.
	contentionTimeout = 5 * time.Minute
)

// RunContention measures transactions that get in each other's way, on a coordinator of its
// own: each workload for cfg.Duration, half of it without contention. only names the
// workloads: those that contain it. It fails if any transaction was not prepared and
// committed exactly once. What was measured before an error is returned with it.
func RunContention(ctx context.Context, cfg Config, only string, progress io.Writer) (*Contention, error) {
	found := &Contention{Clients: cfg.Concurrency, Shards: max(cfg.Shards, 1)}
	all := contention.Workloads()
	if !slices.ContainsFunc(all, func(w contention.Workload) bool { return strings.Contains(w.Name, only) }) {
		var names []string
		for _, w := range all {
			names = append(names, w.Name)
		}
		return found, fmt.Errorf("no workload is named like %q: there are %s", only, strings.Join(names, ", "))
	}
	dir, err := os.MkdirTemp(cfg.Dir, "assent-bench-")
	if err != nil {
		return found, err
	}
	defer os.RemoveAll(dir)
	cfg.Branches = 1
	work := &httpWorkload{cfg: cfg, path: contendedPath}
	b := &run{cfg: cfg, coord: &coordinator{}, dir: dir, http: newClient(cfg.Concurrency), work: work}
	defer b.http.CloseIdleConnections()
	defer work.stop()
	stop, err := b.startCoordinator(ctx, nil)
	if err != nil {
		return found, err
	}
	defer stop()
	if err := work.start(ctx, b); err != nil {
		return found, err
	}
	client, err := assent.New(assent.Config{Endpoints: b.coord.urls, HTTPClient: b.http})
	if err != nil {
		return found, err
	}
	defer client.Close()
	for _, w := range all {
		if !strings.Contains(w.Name, only) {
			continue
		}
		fmt.Fprintln(progress, w.Name)
		row, err := b.contend(ctx, client, w)
		if err != nil {
			return found, fmt.Errorf("%s: %w", w.Name, err)
		}
		found.Rows = append(found.Rows, row)
	}
	return found, nil
}

// contend runs one workload, in turns with itself without contention.
func (b *run) contend(ctx context.Context, client *assent.Client, w contention.Workload) (*ContentionRow, error) {
	row := &ContentionRow{Workload: w.Name}
	var met contended
	var gaveWay givenWay
	var rates, alone, ratios []float64
	for range contentionRounds {
		before, err := b.givenWay(ctx)
		if err != nil {
			return nil, err
		}
		shared, err := b.stretch(ctx, client, w, false)
		if err != nil {
			return nil, err
		}
		after, err := b.givenWay(ctx)
		if err != nil {
			return nil, err
		}
		apart, err := b.stretch(ctx, client, w, true)
		if err != nil {
			return nil, err
		}
		if len(shared.took) == 0 || len(apart.took) == 0 {
			return nil, errors.New("nothing was committed in a whole round")
		}
		gaveWay.all += after.all - before.all
		gaveWay.needless += after.needless - before.needless
		rates, alone, ratios = append(rates, shared.rate()), append(alone, apart.rate()), append(ratios, shared.rate()/apart.rate())
		met.add(shared)
	}
	n := float64(len(met.took))
	slices.Sort(met.took)
	slices.Sort(met.reader)
	sum := time.Duration(0)
	for _, d := range met.took {
		sum += d
	}
	row.Transactions, row.Readers = len(met.took), len(met.reader)
	row.TxnPerSecond, row.AlonePerSecond, row.RatioToAlone = median(rates), median(alone), median(ratios)
	row.AbortsPerTxn, row.NeedlessPerTxn = float64(met.aborts)/n, gaveWay.needless/n
	row.RestartsPerTxn = max(0, gaveWay.all-float64(met.aborts)) / n
	row.P50, row.P99, row.P999 = ms(quantile(met.took, 0.5)), ms(quantile(met.took, 0.99)), ms(quantile(met.took, 0.999))
	row.LongestOverMean = float64(met.took[len(met.took)-1]) * n / float64(sum)
	if len(met.reader) > 0 {
		row.ReaderP50, row.ReaderLongest = ms(quantile(met.reader, 0.5)), ms(met.reader[len(met.reader)-1])
	}
	return row, nil
}

// contended is what the clients of one stretch met.
type contended struct {
	took    []time.Duration // of each commit, from its first try on
	reader  []time.Duration // of those, the long reader's
	aborts  int64
	elapsed time.Duration
}

func (c *contended) add(o contended) {
	c.took, c.reader = append(c.took, o.took...), append(c.reader, o.reader...)
	c.aborts += o.aborts
	c.elapsed += o.elapsed
}

func (c *contended) rate() float64 { return float64(len(c.took)) / c.elapsed.Seconds() }

// stretch runs the workload for a time: every client one transaction after the other. A
// transaction that has begun is ended, too. apart: each client has keys of its own.
func (b *run) stretch(ctx context.Context, client *assent.Client, w contention.Workload, apart bool) (contended, error) {
	if err := b.work.reset(ctx); err != nil {
		return contended{}, err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	each := make([]contended, b.cfg.Concurrency)
	var aborts atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for i := range each {
		wg.Go(func() {
			r := mathrand.New(mathrand.NewPCG(uint64(i), uint64(start.UnixNano())))
			prefix := ""
			if apart {
				prefix = strconv.Itoa(i) + "-"
			}
			for ctx.Err() == nil && time.Since(start) < b.cfg.Duration/(2*contentionRounds) {
				p := w.Plan(r, i)
				began := time.Now()
				tries, err := carryOut(ctx, client, p, prefix)
				if err != nil {
					stop(err)
					return
				}
				took := time.Since(began)
				each[i].took = append(each[i].took, took)
				aborts.Add(int64(tries - 1))
				if p.Long {
					each[i].reader = append(each[i].reader, took)
				}
			}
		})
	}
	wg.Wait()
	all := contended{aborts: aborts.Load()}
	for _, one := range each {
		all.add(one)
	}
	all.elapsed = time.Since(start)
	if err := context.Cause(ctx); err != nil {
		return all, err
	}
	return all, b.work.audit(ctx, len(all.took))
}

// carryOut runs one transaction until it is committed, and says how often it was tried.
func carryOut(ctx context.Context, client *assent.Client, p contention.Plan, prefix string) (tries int, err error) {
	var payload any = 1
	if p.Long && p.Once {
		payload = holdPayload // by steps it takes long anyway
	}
	locks := func(step []contention.Lock) (locks []assent.Lock) {
		for _, l := range step {
			locks = append(locks, assent.Lock{Key: prefix + l.Key, Mode: modes[l.Mode]})
		}
		return locks
	}
	if p.Once {
		_, err := client.Submit(ctx, assent.Submission{
			Operations: []assent.Operation{{Service: service(0), Payload: payload, Locks: locks(p.Steps[0])}}, Timeout: contentionTimeout,
		})
		return 1, err
	}
	err = client.Run(ctx, func(ctx context.Context, tx *assent.Tx) error {
		tries++
		last := len(p.Steps) - 1
		for _, step := range p.Steps[:last] {
			keys := locks(step)
			for i := range keys {
				keys[i] = keys[i].Of(service(0))
			}
			if err := tx.Lock(ctx, keys...); err != nil {
				return err
			}
		}
		return tx.Defer(ctx, service(0), payload, locks(p.Steps[last])...)
	}, assent.WithTries(maxTries), assent.WithTimeout(contentionTimeout))
	return tries, err
}

var modes = map[contention.Mode]assent.Mode{
	contention.Shared: assent.ModeShared, contention.Update: assent.ModeUpdate, contention.Exclusive: assent.ModeExclusive,
}

// givenWay counts transactions that gave way, restarted ones included.
type givenWay struct{ all, needless float64 }

func (b *run) givenWay(ctx context.Context) (g givenWay, err error) {
	for _, url := range b.coord.urls {
		text, err := b.metrics(ctx, url)
		if err != nil {
			return g, err
		}
		g.all += metric(text, "assent_wounds_total") + metric(text, "assent_deadlocks_total")
		g.needless += metric(text, "assent_needless_victims_total")
	}
	return g, nil
}

// Print writes the table for people.
func (c *Contention) Print(w io.Writer) {
	fmt.Fprintf(w, "\n%d clients, %d shards\n%-13s %7s %7s %6s %8s %9s %9s %9s %9s %9s %8s\n", c.Clients, c.Shards,
		"", "txn/s", "alone", "ratio", "aborts", "restarts", "needless", "p50 ms", "p99 ms", "p99.9 ms", "longest")
	for _, r := range c.Rows {
		fmt.Fprintf(w, "%-13s %7.0f %7.0f %6.2f %8.3f %9.3f %9.3f %9.1f %9.1f %9.1f %8.1f\n", r.Workload, r.TxnPerSecond, r.AlonePerSecond, r.RatioToAlone,
			r.AbortsPerTxn, r.RestartsPerTxn, r.NeedlessPerTxn, r.P50, r.P99, r.P999, r.LongestOverMean)
		if r.Readers > 0 {
			fmt.Fprintf(w, "%-13s %d commits, p50 %.0f ms, longest %.0f ms\n", "  the reader:", r.Readers, r.ReaderP50, r.ReaderLongest)
		}
	}
	fmt.Fprintln(w, "\nalone: the same where each client has keys of its own. aborts, restarts (unseen by the client), needless (of both: in no cycle): for each commit.\nTimes from the first try to the commit; longest: beside the mean. Every transaction was prepared and committed exactly once.")
}
