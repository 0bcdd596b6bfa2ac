package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/assent-tx/assent/internal/txnid"
)

// run is one benchmark under way.
type run struct {
	cfg   Config
	coord *coordinator
	dir   string // for data
	http  *http.Client
	work  workload

	silent *participants // what background needs; nil without
}

// client is one of those that submit at the same time.
type client struct {
	buf  bytes.Buffer
	name string
	made int
}

// next is a name that nobody else uses.
func (c *client) next() string {
	c.made++
	return c.name + "-" + strconv.Itoa(c.made)
}

// coordinator is the nodes that are measured together.
type coordinator struct {
	urls    []string
	pids    []int                    // none: it is not ours
	shards  int                      // 0: nobody knows
	leaders atomic.Pointer[[]string] // URLs by shard; nil: a node alone
}

// at is the node that a client sends a transaction to: the leader of its home, as clients
// do that have learned it.
func (c *coordinator) at(id txnid.ID) string {
	if leaders := c.leaders.Load(); leaders != nil {
		return (*leaders)[id.Shard(uint32(c.shards))]
	}
	return c.urls[0]
}

// settle waits until leads have stayed where they are for a while: a cluster that has just
// been made spreads them over its nodes, and a new leader prepares again what is open,
// which the audit counts.
func (b *run) settle(ctx context.Context) error {
	if len(b.coord.urls) < 2 {
		return nil
	}
	const quiet, limit = 3 * time.Second, time.Minute
	var last []string
	since, end := time.Now(), time.Now().Add(limit)
	for ctx.Err() == nil {
		if time.Now().After(end) {
			return fmt.Errorf("leads still move after %v: the machine is too busy to measure on", limit)
		}
		if err := b.findLeaders(ctx); err != nil {
			return err
		}
		now := *b.coord.leaders.Load()
		if !slices.Equal(now, last) {
			last, since = now, time.Now()
		}
		if time.Since(since) >= quiet {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return ctx.Err()
}

// findLeaders asks who leads, and again until every shard is led.
func (b *run) findLeaders(ctx context.Context) error {
	if len(b.coord.urls) < 2 {
		return nil
	}
	return eventually(ctx, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.coord.urls[0]+"/v1/cluster", nil)
		if err != nil {
			return err
		}
		status, body, err := b.do(req, nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d: %s", status, body)
		}
		if err != nil {
			return fmt.Errorf("ask who leads: %w", err)
		}
		var view struct {
			Nodes     []struct{ ID, HTTP string }
			Placement []struct {
				Shard  int
				Leader string
			}
		}
		if err := json.Unmarshal(body, &view); err != nil {
			return err
		}
		leaders := make([]string, b.coord.shards)
		for _, p := range view.Placement {
			for _, n := range view.Nodes {
				if n.ID == p.Leader && p.Shard < len(leaders) {
					leaders[p.Shard] = n.HTTP
				}
			}
		}
		if shard := slices.Index(leaders, ""); shard >= 0 {
			return fmt.Errorf("shard %d has no leader", shard)
		}
		b.coord.leaders.Store(&leaders)
		return nil
	})
}

func newClient(concurrency int) *http.Client {
	return &http.Client{
		Transport: &http.Transport{MaxIdleConns: 4 * concurrency, MaxIdleConnsPerHost: 4 * concurrency, DisableCompression: true},
		Timeout:   60 * time.Second,
	}
}

func service(i int) string { return "bench-" + strconv.Itoa(i) }

// register registers a service; url takes all its calls.
func (b *run) register(ctx context.Context, name, url string, inFlight int) error {
	body, err := json.Marshal(map[string]any{
		"http":   map[string]string{"prepare": url, "commit": url, "rollback": url},
		"limits": map[string]any{"max_in_flight": inFlight, "prepare_timeout": "5m"},
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, b.coord.urls[0]+"/v1/services/"+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	status, answer, err := b.do(req, nil)
	if err != nil {
		return fmt.Errorf("register at %s: %w", b.coord.urls[0], err)
	}
	if status != http.StatusOK && status != http.StatusCreated {
		return fmt.Errorf("register at %s: status %d: %s", b.coord.urls[0], status, answer)
	}
	return nil
}

// background registers services that take part in nothing, and opens transactions
// that wait for a lock which is never released: what costs by being there.
func (b *run) background(ctx context.Context) error {
	if err := b.settle(ctx); err != nil {
		return err
	}
	if b.cfg.Services == 0 && b.cfg.Open == 0 {
		return nil
	}
	silent, err := startParticipants(ctx, b.cfg.Binary)
	if err != nil {
		return err
	}
	b.silent = silent
	var next atomic.Int64
	_, err = b.inParallel(ctx, time.Hour, func(*client) error {
		n := int(next.Add(1))
		if n > b.cfg.Services {
			return errDone
		}
		return b.register(ctx, "idle-"+strconv.Itoa(n), silent.url+"/assent", 16)
	})
	if err != nil || b.cfg.Open == 0 {
		return err
	}
	if err := b.register(ctx, "held", silent.url+"/hold", 16); err != nil {
		return err
	}
	next.Store(0)
	_, err = b.inParallel(ctx, time.Hour, func(c *client) error {
		n := next.Add(1)
		if n > int64(b.cfg.Open) {
			return errDone
		}
		// So many may wait for one key that one in waitersPerKey has its lock, and waits for
		// its participant.
		id := newID()
		body := fmt.Sprintf(`{"id":"%v","wait":"none","timeout":"10m","operations":[{"service":"held","payload":1,"locks":[{"key":"k%d"}]}]}`, id, n/waitersPerKey)
		status, answer, err := b.submit(ctx, c, id, body)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("open a transaction: status %d: %s", status, answer)
		}
		return err
	})
	return err
}

// waitersPerKey is below what a coordinator takes by default.
const waitersPerKey = 500

func (b *run) submit(ctx context.Context, c *client, id txnid.ID, body string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.coord.at(id)+"/v1/transactions", strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header["Content-Type"] = jsonType
	return b.do(req, &c.buf)
}

// do sends a request and reads the whole answer into buf.
func (b *run) do(req *http.Request, buf *bytes.Buffer) (int, []byte, error) {
	resp, err := b.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
		seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if err != nil || seconds < 1 {
			return 0, nil, fmt.Errorf("status %d with Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)) // for the connection's sake
		return 0, nil, &refusedError{time.Duration(seconds) * time.Second}
	}
	if buf == nil {
		buf = new(bytes.Buffer)
	}
	buf.Reset()
	if _, err := buf.ReadFrom(io.LimitReader(resp.Body, 4<<20)); err != nil {
		return 0, nil, err
	}
	return resp.StatusCode, buf.Bytes(), nil
}

// sample is what the clients of one stretch measured.
type sample struct {
	took    []time.Duration // of each success
	refused int64
	elapsed time.Duration
}

func (s sample) rate() float64 { return float64(len(s.took)) / s.elapsed.Seconds() }

var errDone = errors.New("this client has nothing more to do")

// refusedError: overloaded; the client is asked to come back after a time.
type refusedError struct{ after time.Duration }

func (e *refusedError) Error() string { return "refused, retry after " + e.after.String() }

// inParallel runs work from every client for a time. A client that is refused
// pauses as long as it is asked to.
func (b *run) inParallel(ctx context.Context, duration time.Duration, work func(*client) error) (sample, error) {
	samples := make([][]time.Duration, b.cfg.Concurrency)
	var refused atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	start := time.Now()
	for i := range b.cfg.Concurrency {
		wg.Go(func() {
			c := &client{name: strconv.FormatInt(start.UnixNano(), 36) + "-" + strconv.Itoa(i)}
			for ctx.Err() == nil && failed.Load() == nil && time.Since(start) < duration {
				began := time.Now()
				var overload *refusedError
				switch err := work(c); {
				case err == nil:
					samples[i] = append(samples[i], time.Since(began))
				case errors.Is(err, errDone):
					return
				case errors.As(err, &overload):
					refused.Add(1)
					pause := overload.after + mathrand.N(overload.after/4)
					time.Sleep(min(pause, duration-time.Since(start)))
				default:
					failed.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	s := sample{refused: refused.Load(), elapsed: time.Since(start)}
	for _, one := range samples {
		s.took = append(s.took, one...)
	}
	if err := failed.Load(); err != nil {
		return s, *err
	}
	return s, ctx.Err()
}

// transactions submits for a time and expects every one to be committed.
func (b *run) transactions(ctx context.Context, duration time.Duration) (sample, error) {
	if err := b.findLeaders(ctx); err != nil {
		return sample{}, err
	}
	return b.inParallel(ctx, duration, func(c *client) error {
		id := newID()
		status, answer, err := b.submit(ctx, c, id, b.submission(id))
		if err == nil && (status != http.StatusOK || !bytes.Contains(answer, []byte(`"committ`))) {
			err = fmt.Errorf("status %d: %s", status, answer)
		}
		return err
	})
}
