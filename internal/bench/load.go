package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/assent-tx/assent/internal/txnid"
)

// run is one benchmark under way.
type run struct {
	cfg    Config
	coord  *coordinator
	parts  *participants
	client *http.Client
}

type coordinator struct {
	url string
	pid int // 0: not ours
}

func newClient(concurrency int) *http.Client {
	return &http.Client{
		Transport: &http.Transport{MaxIdleConns: 4 * concurrency, MaxIdleConnsPerHost: 4 * concurrency, DisableCompression: true},
		Timeout:   60 * time.Second,
	}
}

func service(i int) string { return "bench-" + strconv.Itoa(i) }

// register registers the participants, each a service of its own.
func (b *run) register(ctx context.Context) error {
	for i := range b.cfg.Branches {
		if err := b.registerOne(ctx, service(i), "/assent", 1024); err != nil {
			return err
		}
	}
	return nil
}

func (b *run) registerOne(ctx context.Context, name, path string, inFlight int) error {
	url := b.parts.url + path
	body, err := json.Marshal(map[string]any{
		"http":   map[string]string{"prepare": url, "commit": url, "rollback": url},
		"limits": map[string]any{"max_in_flight": inFlight, "prepare_timeout": "5m"},
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, b.coord.url+"/v1/services/"+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	status, answer, err := b.do(req, nil)
	if err != nil {
		return fmt.Errorf("register at %s: %w", b.coord.url, err)
	}
	if status != http.StatusOK && status != http.StatusCreated {
		return fmt.Errorf("register at %s: status %d: %s", b.coord.url, status, answer)
	}
	return nil
}

// background registers services that take part in nothing, and opens transactions
// that wait for a lock which is never released: what costs by being there.
func (b *run) background(ctx context.Context) error {
	var next atomic.Int64
	_, err := b.inParallel(ctx, time.Hour, func(buf *bytes.Buffer) error {
		n := int(next.Add(1))
		if n > b.cfg.Services {
			return errDone
		}
		return b.registerOne(ctx, "idle-"+strconv.Itoa(n), "/assent", 16)
	})
	if err != nil || b.cfg.Open == 0 {
		return err
	}
	if err := b.registerOne(ctx, "held", "/hold", 16); err != nil {
		return err
	}
	next.Store(0)
	_, err = b.inParallel(ctx, time.Hour, func(buf *bytes.Buffer) error {
		if next.Add(1) > int64(b.cfg.Open) {
			return errDone
		}
		const body = `{"wait":"none","timeout":"10m","operations":[{"service":"held","payload":1,"locks":[{"key":"k"}]}]}`
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.coord.url+"/v1/transactions", strings.NewReader(body))
		if err != nil {
			return err
		}
		req.Header["Content-Type"] = jsonType
		status, answer, err := b.do(req, buf)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("open a transaction: status %d: %s", status, answer)
		}
		return err
	})
	return err
}

// do sends a request and reads the whole answer into buf.
func (b *run) do(req *http.Request, buf *bytes.Buffer) (int, []byte, error) {
	resp, err := b.client.Do(req)
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
func (b *run) inParallel(ctx context.Context, duration time.Duration, work func(buf *bytes.Buffer) error) (sample, error) {
	samples := make([][]time.Duration, b.cfg.Concurrency)
	var refused atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	start := time.Now()
	for i := range b.cfg.Concurrency {
		wg.Go(func() {
			var buf bytes.Buffer
			for ctx.Err() == nil && failed.Load() == nil && time.Since(start) < duration {
				began := time.Now()
				var overload *refusedError
				switch err := work(&buf); {
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
	url := b.coord.url + "/v1/transactions"
	return b.inParallel(ctx, duration, func(buf *bytes.Buffer) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(b.body()))
		if err != nil {
			return err
		}
		req.Header["Content-Type"] = jsonType
		status, answer, err := b.do(req, buf)
		switch {
		case err != nil:
			return err
		case status != http.StatusOK || !bytes.Contains(answer, []byte(`"committ`)):
			return fmt.Errorf("status %d: %s", status, answer)
		}
		return nil
	})
}

// body is one submission: an operation for each service, on keys nobody else uses.
func (b *run) body() string {
	var random [10]byte
	_, _ = rand.Read(random[:]) // never fails: it ends the process instead
	id := txnid.New(uint64(time.Now().UnixMilli()), random).String()
	var s strings.Builder
	s.Grow(256 + b.cfg.Branches*(128+b.cfg.Payload+64*b.cfg.Keys))
	s.WriteString(`{"id":"`)
	s.WriteString(id)
	s.WriteString(`","operations":[`)
	for i := range b.cfg.Branches {
		if i > 0 {
			s.WriteByte(',')
		}
		s.WriteString(`{"service":"`)
		s.WriteString(service(i))
		s.WriteString(`","payload":"`)
		for range b.cfg.Payload {
			s.WriteByte('x')
		}
		s.WriteByte('"')
		for k := range b.cfg.Keys {
			if k == 0 {
				s.WriteString(`,"locks":[`)
			} else {
				s.WriteByte(',')
			}
			s.WriteString(`{"key":"k/`)
			s.WriteString(id)
			s.WriteByte('-')
			s.WriteString(strconv.Itoa(k))
			s.WriteString(`"}`)
		}
		if b.cfg.Keys > 0 {
			s.WriteByte(']')
		}
		s.WriteByte('}')
	}
	s.WriteString(`]}`)
	return s.String()
}

// bareCalls sends the bodies of a transaction's calls - one submission, and for
// every branch a prepare and a commit - to a handler that reads and answers.
func (b *run) bareCalls(ctx context.Context, duration time.Duration) (sample, error) {
	url := b.parts.url + "/bare"
	call := `{"transaction":"01a20917-6642-7b1d-9424-f813609991db","branch":"1","service":"bench-0","phase":"commit","attempt":1,"term":1,"token":"00000001-0000000000000001-0000000000000001","shard":0,"shards":1}`
	prepare := call[:len(call)-1] + `,"operations":[{"payload":"` + strings.Repeat("x", b.cfg.Payload) + `"}],"count":1,"digest":"` + strings.Repeat("0", 64) + `"}`
	var n atomic.Uint64
	each := uint64(1 + 2*b.cfg.Branches)
	return b.inParallel(ctx, duration, func(buf *bytes.Buffer) error {
		body := call
		switch k := n.Add(1) % each; {
		case k == 0:
			body = b.body()
		case k <= uint64(b.cfg.Branches):
			body = prepare
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
		if err != nil {
			return err
		}
		req.Header["Content-Type"] = jsonType
		status, answer, err := b.do(req, buf)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("bare call: status %d: %s", status, answer)
		}
		return err
	})
}

// audit waits until every branch has been asked both things once.
func (b *run) audit(ctx context.Context, transactions int) error {
	want := transactions * b.cfg.Branches
	deadline := time.Now().Add(30 * time.Second)
	for {
		a, err := b.parts.audit(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("audit: %w", err)
		case a.Once == want && a.Wrong == 0:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("audit: %d of %d branches were prepared and committed exactly once, %d were not (%s)", a.Once, want, a.Wrong, a.Example)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
