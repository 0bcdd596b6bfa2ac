package e2e

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assent-tx/assent"
	"github.com/assent-tx/assent/internal/ledger"
	"github.com/assent-tx/assent/internal/serveproc"
)

// cluster is three nodes under test, with what takes part and who submits.
type cluster struct {
	*serveproc.Cluster
	t       *testing.T
	dir     string
	binary  string
	bank    *bank
	caller  *caller
	client  *assent.Client
	balance string // a load balancer before all nodes
}

// newCluster starts three nodes.
func newCluster(t *testing.T, shards int, flags ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), binary: build(t), bank: &bank{legs: map[string][]leg{}, told: map[string]string{}}}
	var err error
	if c.Cluster, err = serveproc.NewCluster(c.binary, c.dir, 3, append([]string{"--shards", fmt.Sprint(shards)}, flags...)...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.keepLogs()
		}
		c.Close()
	})
	return c
}

// hashChecks has replicas compare their states every two seconds.
const hashChecks = "ASSENT_HASH_CHECK_US=2000000"

func (c *cluster) start(ctx context.Context) {
	c.t.Helper()
	if err := c.Start(ctx, hashChecks); err != nil {
		c.t.Fatal(err)
	}
	c.balance = loadBalancer(c.t, c.URLs())
	c.caller = newCaller(c.URLs(), 4*time.Second)
	c.t.Cleanup(c.caller.client.CloseIdleConnections)
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	client, err := assent.New(assent.Config{Endpoints: c.URLs(), HTTPClient: &http.Client{Transport: &impatient{transport, 4 * time.Second}}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.client = client
	c.t.Cleanup(client.Close)
}

// keepLogs leaves the logs of a failed test where they can be read.
func (c *cluster) keepLogs() {
	dir, err := os.MkdirTemp("", "assent-"+strings.ReplaceAll(c.t.Name(), "/", "-")+"-")
	if err != nil {
		c.t.Log(err)
		return
	}
	logs, _ := filepath.Glob(filepath.Join(c.dir, "*.log")) // the pattern is right
	for _, name := range logs {
		text, _ := os.ReadFile(name) // a report without it is a report still
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), text, 0o600); err != nil {
			c.t.Log(err)
		}
	}
	for _, n := range c.Nodes {
		if n.Running() {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			_ = os.WriteFile(filepath.Join(dir, n.Name+".report"), []byte(n.Report(ctx)), 0o600)
			cancel()
		}
	}
	c.t.Log("logs are in", dir)
}

// impatient gives each request a time of its own: a node that is paused answers nothing,
// and the client goes on with the next one.
type impatient struct {
	http.RoundTripper
	within time.Duration
}

type body struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *body) Close() error {
	b.cancel()
	return b.ReadCloser.Close()
}

func (i *impatient) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(r.Context(), i.within)
	r = r.Clone(ctx)
	if d, err := time.ParseDuration(r.Header.Get("Assent-Timeout")); err != nil || d > i.within/2 {
		r.Header.Set("Assent-Timeout", (i.within / 2).String())
	}
	resp, err := i.RoundTripper.RoundTrip(r)
	if err != nil {
		cancel()
		return nil, err
	}
	resp.Body = &body{resp.Body, cancel}
	return resp, nil
}

// loadBalancer connects who dials it to the next node that takes connections.
func loadBalancer(t *testing.T, urls []string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	next := 0
	carry := func(in net.Conn, first int) {
		defer in.Close()
		for i := range urls {
			u, err := url.Parse(urls[(first+i)%len(urls)])
			if err != nil {
				continue
			}
			out, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", u.Host)
			if err != nil {
				continue
			}
			defer context.AfterFunc(ctx, func() { _, _ = in.Close(), out.Close() })()
			all.Go(func() {
				_, _ = io.Copy(out, in) // ends with either
				_, _ = in.Close(), out.Close()
			})
			_, _ = io.Copy(in, out)
			_ = out.Close()
			return
		}
	}
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			next++
			first := next
			all.Go(func() { carry(in, first) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		stop()
		all.Wait()
	})
	return "http://" + l.Addr().String()
}

// leg is what a transfer does at one place.
type leg struct {
	place   string
	account int
	amount  int
}

// place is a service that holds accounts.
type place interface {
	name() string
	payload(id string, l leg) any
	// books reads every leg by transfer, what the accounts hold and held at first, and how
	// much is in doubt.
	books(ctx context.Context) (legs map[string][]leg, holds, held, doubt int, err error)
}

// bank remembers what was asked of several places, and audits them.
type bank struct {
	places    []place
	covered   bool // accounts are never empty: nothing is refused
	committed atomic.Int64
	aborted   atomic.Int64

	mu      sync.Mutex
	legs    map[string][]leg
	told    map[string]string // by transfer; without: nobody knows
	reasons map[string]int    // of aborts
	commits []time.Time
}

// ownAccounts are further accounts of a covered bank, each for one client that no other
// can be in the way of.
const ownAccounts = 8

// transfer notes and makes the operations of one; own is the client's own account in each
// place, 0: any.
func (b *bank) transfer(id string, from, to place, own int) []assent.Operation {
	amount := 1 + rand.IntN(40)
	if b.covered {
		amount = 1
	}
	legs := []leg{{from.name(), 1 + rand.IntN(accounts), -amount}, {to.name(), 1 + rand.IntN(accounts), amount}}
	if own > 0 {
		legs[0].account, legs[1].account = accounts+own, accounts+own
	}
	b.mu.Lock()
	b.legs[id] = slices.Clone(legs)
	b.mu.Unlock()
	var ops []assent.Operation
	if b.covered && from.name() > to.name() { // in one order: no deadlocks
		from, to = to, from
		slices.Reverse(legs)
	}
	for i, p := range []place{from, to} {
		key := fmt.Sprintf("account/%d", legs[i].account)
		ops = append(ops, assent.Operation{Service: p.name(), Payload: p.payload(id, legs[i]), Locks: []assent.Lock{assent.Exclusive(key)}})
	}
	return ops
}

func (b *bank) pair() (from, to place) {
	i := rand.IntN(len(b.places))
	return b.places[i], b.places[(i+1+rand.IntN(len(b.places)-1))%len(b.places)]
}

// tell notes an outcome that a client was told.
func (b *bank) tell(id, state, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.told[id] = state
	if state == "committed" {
		b.committed.Add(1)
		b.commits = append(b.commits, time.Now())
		return
	}
	b.aborted.Add(1)
	if b.reasons == nil {
		b.reasons = map[string]int{}
	}
	b.reasons[reason]++
}

// progress waits for further commits.
func (b *bank) progress(ctx context.Context, n int64) error {
	for want := b.committed.Load() + n; b.committed.Load() < want; {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d commits are missing of %d: work does not go on", want-b.committed.Load(), n)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// audit reports what is wrong, and how much there was.
func (b *bank) audit(ctx context.Context, t *testing.T) {
	t.Helper()
	found, err := b.findings(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, f := range found {
		t.Error(f)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t.Logf("%d transfers: %d committed, %d aborted %v, %d unknown to their clients",
		len(b.legs), b.committed.Load(), b.aborted.Load(), b.reasons, len(b.legs)-len(b.told))
}

// findings is what contradicts this: each transfer is everywhere, once, or nowhere, as its
// client was told; no money was made; nothing is in doubt.
func (b *bank) findings(ctx context.Context) (list []string, err error) {
	bad := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	b.mu.Lock()
	defer b.mu.Unlock()
	found := map[string][]leg{}
	total, atFirst := 0, 0
	for _, p := range b.places {
		legs, holds, held, doubt, err := p.books(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name(), err)
		}
		moved := 0
		for id, list := range legs {
			found[id] = append(found[id], list...)
			for _, l := range list {
				moved += l.amount
			}
		}
		if doubt != 0 {
			bad("%s: %d branches are in doubt", p.name(), doubt)
		}
		if holds != held+moved {
			bad("%s: its accounts hold %d, its transfers say %d", p.name(), holds, held+moved)
		}
		total, atFirst = total+holds, atFirst+held
	}
	if total != atFirst {
		bad("money was made or lost: %d, at the start %d", total, atFirst)
	}
	for id, list := range found {
		wanted := slices.Clone(b.legs[id])
		for _, l := range [][]leg{list, wanted} {
			slices.SortFunc(l, func(a, b leg) int { return cmp.Compare(a.amount, b.amount) })
		}
		if !slices.Equal(list, wanted) {
			bad("transfer %s has %v, its client asked for %v", id, list, wanted)
		}
		if b.told[id] == "aborted" {
			bad("transfer %s is booked, but its client was told that it is aborted", id)
		}
	}
	for id, state := range b.told {
		if state == "committed" && found[id] == nil {
			bad("transfer %s is nowhere, but its client was told that it is committed", id)
		}
	}
	return list, nil
}

const bookBalance = 1_000_000 // of each account behind a gate

// sqlitePlace is a ledger; its file is read beside the process.
type sqlitePlace struct {
	service, file string
	held          int // by all accounts at first
}

func (p *sqlitePlace) name() string { return p.service }
func (p *sqlitePlace) payload(id string, l leg) any {
	return ledger.Posting{Transfer: id, Account: int64(l.account), Amount: int64(l.amount)}
}

func (p *sqlitePlace) books(ctx context.Context) (legs map[string][]leg, holds, held, doubt int, err error) {
	legs = map[string][]leg{}
	db, err := sql.Open("sqlite", "file:"+p.file+"?_pragma=busy_timeout(5000)")
	if err != nil {
		return nil, 0, 0, 0, err
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, "SELECT transfer, account, amount FROM entry")
	if err != nil {
		return nil, 0, 0, 0, err
	}
	defer rows.Close()
	for rows.Next() {
		id, l := "", leg{place: p.service}
		if err := rows.Scan(&id, &l.account, &l.amount); err != nil {
			return nil, 0, 0, 0, err
		}
		legs[id] = append(legs[id], l)
	}
	err = errors.Join(
		rows.Err(),
		db.QueryRowContext(ctx, "SELECT COALESCE(SUM(balance), 0) FROM account").Scan(&holds),
		db.QueryRowContext(ctx, "SELECT (SELECT COUNT(*) FROM hold) + (SELECT COUNT(*) FROM pending)").Scan(&doubt),
	)
	return legs, holds, p.held, doubt, err
}

// caller submits with plain HTTP: at a node, and at the next one with the same id if that
// does not answer.
type caller struct {
	urls   []string
	client *http.Client

	mu       sync.Mutex
	failures map[string]int // of single requests
}

func newCaller(urls []string, within time.Duration) *caller {
	return &caller{urls: urls, failures: map[string]int{}, client: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: within,
	}}
}

type outcome struct {
	State string
	Abort *struct{ Reason, Message, Service string }
}

// submit returns once the transaction is decided; at is the node to begin with, and is
// left at the one that answered.
func (c *caller) submit(ctx context.Context, at *int, id string, ops []assent.Operation, timeout time.Duration) (*outcome, error) {
	request, err := json.Marshal(map[string]any{"id": id, "operations": ops, "timeout": timeout.String()})
	if err != nil {
		return nil, err
	}
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		o, failure, err := c.try(ctx, c.urls[*at%len(c.urls)], request)
		if err != nil {
			return nil, fmt.Errorf("transaction %s: %w", id, err)
		}
		if failure == "" && (strings.HasPrefix(o.State, "commit") || strings.HasPrefix(o.State, "abort")) {
			return o, nil
		}
		if failure != "" {
			*at++
			c.mu.Lock()
			c.failures[failure]++
			c.mu.Unlock()
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return nil, fmt.Errorf("transaction %s has no outcome; last: %s %+v", id, failure, o)
		}
	}
}

// try makes one request. failure is why another one may help, an error why none will.
func (c *caller) try(ctx context.Context, url string, request []byte) (o *outcome, failure string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/transactions", bytes.NewReader(request))
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Assent-Timeout", (c.client.Timeout / 2).String())
	resp, err := c.client.Do(req)
	if err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return nil, "no answer in time", nil
		}
		return nil, "no connection", nil
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	switch {
	case err != nil:
		return nil, "the answer broke off", nil
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		var why struct{ Details []struct{ Reason string } }
		_ = json.Unmarshal(answer, &why) // who it is not from says nothing
		failure = fmt.Sprint("status ", resp.StatusCode)
		if len(why.Details) > 0 {
			failure += " " + why.Details[0].Reason
		}
		return nil, failure, nil
	case resp.StatusCode != http.StatusOK:
		return nil, "", fmt.Errorf("refused with status %d: %s", resp.StatusCode, bytes.TrimSpace(answer))
	}
	o = &outcome{}
	return o, "", json.Unmarshal(answer, o)
}

// seen are the failures of single requests, in words.
func (c *caller) seen() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []string
	for _, f := range slices.Sorted(maps.Keys(c.failures)) {
		list = append(list, fmt.Sprintf("%s: %d", f, c.failures[f]))
	}
	return "single requests that failed: " + cmp.Or(strings.Join(list, ", "), "none")
}

// load is clients at work; stop lets each end what it has begun.
type load struct {
	cancel context.CancelFunc
	all    sync.WaitGroup
	t      *testing.T
}

func (l *load) stop() {
	l.cancel()
	l.all.Wait()
}

// newLoad makes one that runs until it is stopped.
func (c *cluster) newLoad(ctx context.Context) (*load, context.Context) {
	l := &load{t: c.t}
	ctx, l.cancel = context.WithCancel(ctx)
	c.t.Cleanup(l.stop)
	return l, ctx
}

// patience of one transaction: it may meet many faults in a row.
const patience = 2 * time.Minute

// coveredTimeout of the transactions of a covered bank: none may be aborted, so none is given
// up because its client does not come through on a busy machine.
const coveredTimeout = time.Minute

// oneShots submit transfers as a whole.
func (c *cluster) oneShots(ctx context.Context, l *load, clients int) {
	timeout := 30 * time.Second
	if c.bank.covered {
		timeout = coveredTimeout
	}
	for i := range clients {
		l.all.Go(func() {
			at := i
			for ctx.Err() == nil {
				id := assent.NewID()
				from, to := c.bank.pair()
				ops := c.bank.transfer(id, from, to, 0)
				hard, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
				begun := time.Now()
				o, err := c.caller.submit(hard, &at, id, ops, timeout)
				cancel()
				if took := time.Since(begun); took > 15*time.Second {
					c.t.Logf("transaction %s took %v", id, took.Round(time.Millisecond))
				}
				switch {
				case err != nil:
					c.t.Error(err)
					return
				case strings.HasPrefix(o.State, "commit"):
					c.bank.tell(id, "committed", "")
				default:
					reason := "unknown"
					if o.Abort != nil {
						reason = o.Abort.Reason
					}
					c.bank.tell(id, "aborted", reason)
				}
			}
		})
	}
}

// stepByStep make transfers in interactive transactions: the debit now, if the place can,
// the credit with the commit.
func (c *cluster) stepByStep(ctx context.Context, l *load, clients int, now func(service string) bool) {
	for i := range clients {
		own := 0
		if c.bank.covered {
			own = 1 + i
		}
		l.all.Go(func() {
			for ctx.Err() == nil {
				if err := c.interactive(ctx, own, now); err != nil {
					c.t.Error(err)
					return
				}
			}
		})
	}
}

func (c *cluster) interactive(ctx context.Context, own int, now func(service string) bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	var tries []string
	why := map[string]string{} // a try was aborted
	from, to := c.bank.pair()
	begun := time.Now()
	timeout, idle := 20*time.Second, 8*time.Second
	if c.bank.covered {
		timeout, idle = coveredTimeout, coveredTimeout
	}
	defer func() {
		if took := time.Since(begun); took > 15*time.Second {
			c.t.Logf("an interactive transaction took %v: %v", took.Round(time.Millisecond), tries)
		}
	}()
	err := c.client.Run(ctx, func(ctx context.Context, tx *assent.Tx) error {
		tries = append(tries, tx.ID())
		for _, op := range c.bank.transfer(tx.ID(), from, to, own) {
			if _, err := tx.Do(ctx, assent.StepOperation{Operation: op, Now: now(op.Service)}); err != nil {
				if a := (*assent.AbortedError)(nil); errors.As(err, &a) {
					why[tx.ID()] = a.Reason
				}
				return err
			}
		}
		return nil
	}, assent.WithTries(100), assent.WithTimeout(timeout), assent.WithIdleTimeout(idle))
	var unknown *assent.UnknownOutcomeError
	var aborted *assent.AbortedError
	last := len(tries) - 1
	for i, id := range tries {
		if i < last {
			if t, err := c.client.Get(ctx, id); err == nil && t.Abort != nil && why[id] == "" {
				why[id] = t.Abort.Reason
				if c.bank.covered {
					c.t.Logf("transaction %s: %+v", id, *t)
				}
			}
			c.bank.tell(id, "aborted", cmp.Or(why[id], "in its commit"))
		}
	}
	switch {
	case err == nil:
		c.bank.tell(tries[last], "committed", "")
	case errors.As(err, &aborted):
		if last >= 0 {
			c.bank.tell(tries[last], "aborted", aborted.Reason)
		}
	case errors.As(err, &unknown), errors.Is(err, context.DeadlineExceeded):
	default:
		return err
	}
	return nil
}

// quiet waits until nothing is open, and checks that the replicas are the same and every
// node is as it should be. Without settled there is nothing to audit: a transaction under
// way is in some books only.
func (c *cluster) quiet(ctx context.Context) (settled bool) {
	c.t.Helper()
	stages := time.Now()
	stage := func(what string) {
		if took := time.Since(stages); took > 5*time.Second {
			c.t.Logf("until %s: %v", what, took.Round(time.Millisecond))
		}
		stages = time.Now()
	}
	for _, n := range c.Nodes {
		if n.Died() {
			c.t.Errorf("%s ended by itself, with exit code %d", n.Name, n.ExitCode())
			return false
		}
	}
	if err := c.Ready(ctx); err != nil {
		c.t.Error(err)
		return false
	}
	stage("every node was ready")
	if err := c.Settled(ctx); err != nil {
		c.t.Error(err)
		return false
	}
	stage("nothing was open")
	if err := c.Converged(ctx); err != nil {
		c.t.Error(err)
	}
	stage("the replicas were the same")
	return true
}

// gate stands before a ledger, and writes down what a coordinator calls and is answered.
type gate struct {
	*httptest.Server
	mu    sync.Mutex
	calls []call
	slow  func(phase string) // the participant's own slowness; nil: none
}

type call struct {
	Transaction, Phase string
	Branch             int
	Term               uint64
	status             int
	vote               string
}

// behindGate opens a ledger and registers it at a gate.
func (c *cluster) behindGate(ctx context.Context, name string) *gate {
	c.t.Helper()
	book, err := ledger.Open(c.dir, name, accounts+ownAccounts, bookBalance, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = book.Close() })
	if err := book.Serve("127.0.0.1:0"); err != nil {
		c.t.Fatal(err)
	}
	target, err := url.Parse(book.URL())
	if err != nil {
		c.t.Fatal(err)
	}
	g := &gate{}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	proxy := &httputil.ReverseProxy{
		Transport:    transport,
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		request, err := io.ReadAll(r.Body)
		if err != nil {
			return // who called is gone
		}
		k := call{Phase: filepath.Base(r.URL.Path)}
		_ = json.Unmarshal(request, &k) // what it is not, the ledger refuses
		if g.slow != nil {
			g.slow(k.Phase)
		}
		r = r.Clone(context.WithoutCancel(r.Context())) // it goes on when the caller has died
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(request)), int64(len(request))
		answer := httptest.NewRecorder()
		proxy.ServeHTTP(answer, r)
		var said struct{ Vote string }
		_ = json.Unmarshal(answer.Body.Bytes(), &said) // not every answer has one
		k.status, k.vote = answer.Code, said.Vote
		g.mu.Lock()
		g.calls = append(g.calls, k)
		g.mu.Unlock()
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes()) // who called may be gone
	}))
	c.t.Cleanup(func() {
		g.Close()
		transport.CloseIdleConnections()
	})
	if err := book.RegisterAt(ctx, c.balance, g.URL); err != nil {
		c.t.Fatal(err)
	}
	c.bank.places = append(c.bank.places, &sqlitePlace{name, filepath.Join(c.dir, name+".db"), (accounts + ownAccounts) * bookBalance})
	return g
}

// judge: no branch was both committed and rolled back. It tells how many calls came from
// a leader after a later one had called for the same branch.
func (g *gate) judge(t *testing.T) (late int) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	type branch struct {
		transaction string
		number      int
	}
	ended := map[branch]string{}
	terms := map[branch]uint64{}
	for _, k := range g.calls {
		b := branch{k.Transaction, k.Branch}
		if k.Term < terms[b] {
			late++
		}
		terms[b] = max(terms[b], k.Term)
		if k.status != http.StatusOK || k.Phase != "commit" && k.Phase != "rollback" {
			continue
		}
		if before := ended[b]; before != "" && before != k.Phase {
			t.Errorf("branch %d of transaction %s took a %s after a %s", b.number, b.transaction, k.Phase, before)
		}
		ended[b] = k.Phase
	}
	return late
}

// fakePlace holds what it is told to.
type fakePlace struct {
	service      string
	legs         map[string][]leg
	holds, doubt int
}

func (p *fakePlace) name() string            { return p.service }
func (p *fakePlace) payload(string, leg) any { return nil }
func (p *fakePlace) books(context.Context) (legs map[string][]leg, holds, held, doubt int, err error) {
	return p.legs, p.holds, 100, p.doubt, nil
}

// TestBankAuditBites damages equal books in every way that the audit must notice.
func TestBankAuditBites(t *testing.T) {
	for want, damage := range map[string]func(a, b *fakePlace, told map[string]string){
		"":             func(_, _ *fakePlace, _ map[string]string) {},
		"in doubt":     func(a, _ *fakePlace, _ map[string]string) { a.doubt = 1 },
		"made or lost": func(_, b *fakePlace, _ map[string]string) { b.holds++ },
		"accounts hold": func(a, b *fakePlace, _ map[string]string) {
			a.holds, b.holds = a.holds+1, b.holds-1
		},
		"has [{a 1 -7}], its client": func(_, b *fakePlace, _ map[string]string) {
			delete(b.legs, "t")
			b.holds -= 7
		},
		"has [{a 1 -7} {b 2 7} {b 2 7}]": func(_, b *fakePlace, _ map[string]string) {
			b.legs["t"] = append(b.legs["t"], b.legs["t"][0])
			b.holds += 7
		},
		"told that it is aborted":                        func(_, _ *fakePlace, told map[string]string) { told["t"] = "aborted" },
		"transfer u is nowhere, but its client was told": func(_, _ *fakePlace, told map[string]string) { told["u"] = "committed" },
	} {
		t.Run(want, func(t *testing.T) {
			first, second := leg{"a", 1, -7}, leg{"b", 2, 7}
			a := &fakePlace{service: "a", legs: map[string][]leg{"t": {first}}, holds: 93}
			b := &fakePlace{service: "b", legs: map[string][]leg{"t": {second}}, holds: 107}
			told := map[string]string{"t": "committed", "v": "aborted"}
			damage(a, b, told)
			bank := &bank{places: []place{a, b}, told: told, legs: map[string][]leg{"t": {first, second}, "u": {first, second}, "v": {first, second}}}
			found, err := bank.findings(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if text := strings.Join(found, "\n"); want == "" && text != "" || !strings.Contains(text, want) {
				t.Errorf("found %q", text)
			}
		})
	}
}
