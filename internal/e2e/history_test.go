package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assent-tx/assent"
	"github.com/assent-tx/assent/internal/check"
	"github.com/assent-tx/assent/internal/ledger"
	"github.com/assent-tx/assent/internal/pgtest"
	"github.com/assent-tx/assent/internal/serveproc"
)

var historySeconds = flag.Float64("history.seconds", 6, "how long each of TestHistories runs")

// listService is where lists are: what its operations look like, and how to read their
// results.
type listService interface {
	appendTo(key string, value int64) any
	list(key string) any
	parse(result json.RawMessage) ([]int64, error)
}

// onLedger are lists of an SDK participant.
type onLedger struct{}

func (onLedger) appendTo(key string, value int64) any {
	return ledger.Operation{Op: "append", Key: key, Value: value}
}
func (onLedger) list(key string) any { return ledger.Operation{Op: "list", Key: key} }
func (onLedger) parse(result json.RawMessage) ([]int64, error) {
	var l ledger.List
	err := json.Unmarshal(result, &l)
	return l.Values, err
}

// onPostgres are lists in a table, behind an agent.
type onPostgres struct{}

func (onPostgres) appendTo(key string, value int64) any {
	return statement("INSERT INTO item (key, value) VALUES ($1, $2)", key, value)
}

func (onPostgres) list(key string) any {
	return statement("SELECT coalesce(string_agg(value::text, ',' ORDER BY n), '') AS list FROM item WHERE key = $1", key)
}

func (onPostgres) parse(result json.RawMessage) (values []int64, err error) {
	_, rest, found := bytes.Cut(result, []byte(`"list":"`))
	text, _, ended := bytes.Cut(rest, []byte(`"`))
	if !found || !ended {
		return nil, fmt.Errorf("no list in %s", result)
	}
	err = json.Unmarshal(fmt.Appendf(nil, "[%s]", text), &values)
	return values, err
}

func statement(sql string, args ...any) any {
	return map[string]any{"statements": []any{map[string]any{"sql": sql, "args": args}}}
}

// history runs clients that append and read in transactions, and writes down what they
// were told.
type history struct {
	client   *assent.Client
	services map[string]listService
	names    []string
	locks    bool            // off: a planted bug
	whole    bool            // submit transactions as a whole: an open branch would hold all of an SQLite database
	mixed    bool            // submit every third as a whole
	alone    map[string]bool // services whose operations are only submitted as a whole
	prefix   string          // of keys
	check.Recorder
	values  atomic.Int64
	process atomic.Int64
	salt    atomic.Int64
	done    atomic.Int64
}

const historyKeys = 3 // of each service

func (h *history) key(service string, n int) string {
	return fmt.Sprintf("%s/%sk%d", service, h.prefix, n)
}

// atOnce reports whether operations may not be taken step by step.
func (h *history) atOnce(mops []check.Mop) bool {
	return slices.ContainsFunc(mops, func(m check.Mop) bool {
		service, _, _ := strings.Cut(m.Key, "/")
		return h.alone[service]
	})
}

func (h *history) lock(key string, mode assent.Mode) assent.Lock {
	if !h.locks { // a key that nobody else locks
		key = fmt.Sprintf("%s/%d", key, h.salt.Add(1))
	}
	return assent.Lock{Key: key, Mode: mode}
}

func (h *history) clients(ctx context.Context, t *testing.T, n int) {
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			process := int(h.process.Add(1))
			for ctx.Err() == nil {
				var mops []check.Mop
				for range 1 + rand.IntN(4) {
					name := h.names[rand.IntN(len(h.names))]
					mops = append(mops, check.Mop{Append: rand.IntN(2) == 0, Key: h.key(name, rand.IntN(historyKeys))})
				}
				if err := h.transaction(t.Context(), process, mops); err != nil {
					t.Error(err)
					return
				}
				process = int(h.process.Add(1)) // whoever does not know an outcome is somebody new
			}
		})
	}
	all.Wait()
}

// transaction runs one and records each of its tries.
func (h *history) transaction(ctx context.Context, process int, mops []check.Mop) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if h.whole || h.mixed && rand.IntN(3) == 0 || h.atOnce(mops) {
		return h.submit(ctx, process, mops)
	}
	tries := 0
	err := h.client.Run(ctx, func(ctx context.Context, tx *assent.Tx) error {
		if tries++; tries > 1 {
			h.End(process, check.Aborted, nil)
		}
		for i := range mops {
			mops[i].List = nil
			if mops[i].Append {
				mops[i].Value = h.values.Add(1)
			}
		}
		h.Begin(process, mops)
		for i := range mops {
			if err := h.operation(ctx, tx, &mops[i]); err != nil {
				return err
			}
		}
		return nil
	}, assent.WithTries(100), assent.WithTimeout(10*time.Second), assent.WithIdleTimeout(5*time.Second))
	var unknown *assent.UnknownOutcomeError
	var aborted *assent.AbortedError
	switch {
	case err == nil:
		h.done.Add(1)
		h.End(process, check.Committed, mops)
	case errors.As(err, &unknown):
		h.End(process, check.Unknown, nil)
	case errors.As(err, &aborted), errors.Is(err, context.DeadlineExceeded):
		if tries > 0 { // commit was not asked for, or refused
			h.End(process, check.Aborted, nil)
		}
	default:
		return err
	}
	return nil
}

// submit runs one as a whole. Results are best effort: without them nobody knows what
// it has read.
func (h *history) submit(ctx context.Context, process int, mops []check.Mop) error {
	s := assent.Submission{Completed: true, Timeout: 5 * time.Second}
	for i := range mops {
		m := &mops[i]
		service, key, _ := strings.Cut(m.Key, "/")
		op := assent.Operation{Service: service, Payload: h.services[service].list(key), Locks: []assent.Lock{h.lock(key, assent.ModeShared)}}
		if m.Append {
			m.Value = h.values.Add(1)
			op.Payload, op.Locks = h.services[service].appendTo(key, m.Value), []assent.Lock{h.lock(key, assent.ModeExclusive)}
		}
		s.Operations = append(s.Operations, op)
	}
	h.Begin(process, mops)
	r, err := h.client.Submit(ctx, s)
	var unknown *assent.UnknownOutcomeError
	var aborted *assent.AbortedError
	switch {
	case errors.As(err, &unknown):
		h.End(process, check.Unknown, nil)
		return nil
	case errors.As(err, &aborted):
		h.End(process, check.Aborted, nil)
		return nil
	case err != nil:
		return err
	}
	taken := map[string]int{}
	for i := range mops {
		service, _, _ := strings.Cut(mops[i].Key, "/")
		var results []json.RawMessage
		for _, b := range r.Branches {
			if b.Service == service {
				results = b.Results
			}
		}
		n := taken[service]
		taken[service]++
		if n >= len(results) {
			h.End(process, check.Unknown, nil)
			return nil
		}
		if !mops[i].Append {
			if mops[i].List, err = h.services[service].parse(results[n]); err != nil {
				return err
			}
		}
	}
	h.done.Add(1)
	h.End(process, check.Committed, mops)
	return nil
}

func (h *history) operation(ctx context.Context, tx *assent.Tx, m *check.Mop) error {
	service, key, _ := strings.Cut(m.Key, "/")
	s := h.services[service]
	if m.Append {
		_, err := tx.Now(ctx, service, s.appendTo(key, m.Value), h.lock(key, assent.ModeExclusive))
		return err
	}
	mode := assent.ModeShared
	if rand.IntN(3) == 0 {
		mode = assent.ModeUpdate
	}
	result, err := tx.Now(ctx, service, s.list(key), h.lock(key, mode))
	if err != nil {
		return err
	}
	m.List, err = s.parse(result)
	return err
}

// judge reads every list once more, in one transaction, and checks the history.
func (h *history) judge(t *testing.T) []check.Anomaly {
	t.Helper()
	var all []check.Mop
	for _, name := range h.names {
		for k := range historyKeys {
			all = append(all, check.Mop{Key: h.key(name, k)})
		}
	}
	var events []check.Event
	var txns []check.Txn
	committed := false
	for try := 1; !committed; try++ { // without it, appends that were lost at the end go unseen
		if try > 50 {
			t.Fatal("the closing read does not commit")
		}
		process := int(h.process.Add(1))
		if err := h.transaction(t.Context(), process, all); err != nil {
			t.Fatal(err)
		}
		events = h.Events()
		var err error
		if txns, err = check.Pair(events); err != nil {
			t.Fatal(err)
		}
		committed = slices.ContainsFunc(txns, func(x check.Txn) bool { return x.Process == process && x.Status == check.Committed })
	}
	found := check.Check(txns, check.StrictSerializable)
	t.Logf("%d committed of %d tries, %d anomalies", h.done.Load(), len(txns), len(found))
	if h.locks && len(found) > 0 {
		f, err := os.Create(filepath.Join(os.TempDir(), "assent-history.json"))
		if err == nil {
			err = errors.Join(check.Write(f, events), f.Close())
		}
		t.Logf("the history is in %s: %v", f.Name(), err)
	}
	return found
}

// TestHistories: what clients are told is strictly serializable, whoever is killed: a
// coordinator with two services of the SDK, whose lists are in SQLite (transactions as a
// whole) or in PostgreSQL (step by step), and one with two PostgreSQL servers behind agents.
// With locks that exclude nobody the same clients are convicted.
func TestHistories(t *testing.T) {
	binary := build(t)
	for _, c := range []struct {
		locks                     bool
		shards, shardsForDatabase string
	}{{true, "3", "2"}, {true, "1", ""}, {false, "1", "1"}} {
		locks := c.locks
		ofTheSDK := func(t *testing.T, h *history, more ...[]string) {
			dir := t.TempDir()
			proc, err := serveproc.New(binary, filepath.Join(dir, "coordinator"), "--shards", c.shards)
			if err != nil {
				t.Fatal(err)
			}
			h.locks, h.names, h.services = locks, []string{"a", "b"}, map[string]listService{"a": onLedger{}, "b": onLedger{}}
			var services []*child
			var kill []func()
			for i, name := range h.names {
				s := &child{
					log:  filepath.Join(dir, name+".log"),
					args: []string{"ledger", "--name", name, "--dir", dir, "--listen", freeAddress(t), "--coordinator", proc.URL},
				}
				if i < len(more) {
					s.args = append(s.args, more[i]...)
				}
				services = append(services, s)
				kill = append(kill, func() { s.kill(); s.start(t, binary) })
			}
			h.run(t, proc, binary, services, kill)
		}
		t.Run(fmt.Sprintf("services, shards=%s, locks=%t", c.shards, locks), func(t *testing.T) {
			ofTheSDK(t, &history{whole: true})
		})
		t.Run(fmt.Sprintf("services by steps, shards=%s, locks=%t", c.shards, locks), func(t *testing.T) {
			ofTheSDK(t, &history{mixed: true}, []string{"--dsn", pgtest.Start(t).DSN("postgres")}, []string{"--dsn", pgtest.Start(t).DSN("postgres")})
		})
		if c.shardsForDatabase == "" {
			continue
		}
		t.Run(fmt.Sprintf("PostgreSQL, shards=%s, locks=%t", c.shardsForDatabase, locks), func(t *testing.T) {
			h, servers, proc := listsInPostgres(t, binary, c.shardsForDatabase)
			h.locks = locks
			var kill []func()
			for _, s := range servers {
				kill = append(kill, func() {
					s.Kill()
					if err := s.Restart(); err != nil {
						t.Error(err)
					}
				})
			}
			h.run(t, proc, binary, nil, kill)
			nothingPrepared(t, servers)
		})
	}
}

// listsInPostgres are two servers with lists, behind agents in the coordinator's process.
func listsInPostgres(t *testing.T, binary, shards string) (*history, []*pgtest.Cluster, *serveproc.Process) {
	t.Helper()
	dir := t.TempDir()
	h := &history{locks: true, services: map[string]listService{"a": onPostgres{}, "b": onPostgres{}}, names: []string{"a", "b"}}
	var servers []*pgtest.Cluster
	config := "agents:\n"
	for _, name := range h.names {
		s := pgtest.Start(t)
		if err := s.SQL(t.Context(), "postgres", "CREATE TABLE item (n bigserial PRIMARY KEY, key text NOT NULL, value bigint NOT NULL)"); err != nil {
			t.Fatal(err)
		}
		config += fmt.Sprintf("  - postgres:\n      service: %s\n      dsn: %q\n      sweep-interval: 1s\n      orphan-after: 2s\n", name, s.DSN("postgres"))
		servers = append(servers, s)
	}
	file := filepath.Join(dir, "assent.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	proc, err := serveproc.New(binary, filepath.Join(dir, "coordinator"), "--config", file, "--shards", shards)
	if err != nil {
		t.Fatal(err)
	}
	return h, servers, proc
}

func nothingPrepared(t *testing.T, servers []*pgtest.Cluster) {
	t.Helper()
	for _, s := range servers {
		var left string
		var err error
		for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			if left, err = s.Query(t.Context(), "postgres", "SELECT gid FROM pg_prepared_xacts"); err == nil && left == "" || time.Now().After(end) {
				break
			}
		}
		if err != nil || left != "" {
			t.Errorf("left prepared: %q, %v", left, err)
		}
	}
}

// TestKillAtEveryStep: the coordinator kills itself before and after every record and
// call of interactive transactions, and of locks over several shards, under load. What
// the clients were told is strictly serializable, and nothing is left.
func TestKillAtEveryStep(t *testing.T) {
	h, servers, proc := listsInPostgres(t, build(t), "3")
	h.mixed = true
	t.Cleanup(proc.Kill)
	client, err := assent.New(assent.Config{Endpoints: []string{proc.URL}})
	if err != nil {
		t.Fatal(err)
	}
	h.client = client
	defer client.Close()
	if err := proc.Start(t.Context()); err != nil { // its agents register by themselves, some moments later
		t.Fatal(err)
	}
	registered(t.Context(), t, proc, h.names)
	proc.Kill()
	var points []string
	for _, kind := range []string{"OPEN", "ENLIST", "SEAL", "CLAIM", "LOCKED", "YIELD", "RELEASE"} {
		for _, stage := range []string{"before-append", "after-apply", "after-append"} {
			points = append(points, stage+":"+kind)
		}
	}
	points = append(points, "before-call:execute", "after-call:execute")
	for round := range *rounds {
		for i, point := range points {
			t.Run(fmt.Sprintf("%s/%d", point, round), func(t *testing.T) {
				minute := func() context.Context { // for each stage: one that is slow takes nothing from the next
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					t.Cleanup(cancel)
					return ctx
				}
				if err := proc.Launch(fmt.Sprintf("ASSENT_FAILPOINT=%s@%d", point, 1+(i+round*7)%5)); err != nil {
					t.Fatal(err)
				}
				load, stop := context.WithCancel(t.Context())
				defer stop()
				var running sync.WaitGroup
				running.Go(func() { h.clients(load, t, 6) })
				select {
				case <-proc.Exited():
				case <-minute().Done():
					t.Errorf("%s was never reached; %d transactions committed", point, h.done.Load())
				}
				proc.Kill()
				if err := proc.Start(minute()); err != nil {
					t.Error(err)
				}
				before, working := h.done.Load(), minute()
				for h.done.Load() < before+10 && working.Err() == nil {
					time.Sleep(5 * time.Millisecond)
				}
				if done := h.done.Load() - before; done < 10 {
					t.Errorf("%d transactions committed after the restart", done)
				}
				stop()
				running.Wait()
				if err := proc.Settled(minute()); err != nil {
					t.Error(err)
				}
				proc.Kill()
			})
			if t.Failed() {
				return
			}
		}
	}
	if err := proc.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, a := range h.judge(t) {
		t.Errorf("%s: %s", a.Kind, a.Text)
	}
	if err := proc.Settled(t.Context()); err != nil {
		t.Error(err)
	}
	nothingPrepared(t, servers)
}

// run runs clients while somebody is killed again and again; without locks nobody needs
// to be.
func (h *history) run(t *testing.T, proc *serveproc.Process, binary string, services []*child, kill []func()) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	t.Cleanup(proc.Kill)
	if err := proc.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for _, s := range services {
		s.start(t, binary)
		t.Cleanup(s.kill)
	}
	registered(ctx, t, proc, h.names)
	client, err := assent.New(assent.Config{Endpoints: []string{proc.URL}})
	if err != nil {
		t.Fatal(err)
	}
	h.client = client
	defer client.Close()
	// So long, and until there is enough to judge: how fast the machine is says nothing.
	end, convicted := time.Now().Add(time.Duration(*historySeconds*float64(time.Second))), false
	goOn := func() bool {
		enough := h.done.Load() >= 20 && time.Now().After(end)
		if !h.locks {
			enough = convicted
		}
		return !enough && ctx.Err() == nil && !t.Failed()
	}
	load, stop := context.WithCancel(ctx)
	defer stop()
	var running sync.WaitGroup
	running.Go(func() { h.clients(load, t, 6) })
	kills := 0
	kill = append(kill, func() {
		proc.Kill()
		if err := proc.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	for ; h.locks && goOn(); kills++ {
		before := h.done.Load()
		for h.done.Load() < before+5 && goOn() {
			time.Sleep(10 * time.Millisecond)
		}
		kill[kills%len(kill)]()
	}
	for goOn() { // without locks
		time.Sleep(200 * time.Millisecond)
		txns, err := check.Pair(h.Events())
		if err != nil {
			t.Error(err)
			break
		}
		convicted = len(check.Check(txns, check.StrictSerializable)) > 0
	}
	stop()
	running.Wait()
	found := h.judge(t)
	if err := proc.Settled(ctx); err != nil {
		t.Error(err)
	}
	switch {
	case !h.locks && len(found) == 0:
		t.Errorf("%d transactions without locks, and nothing was found", h.done.Load())
	case !h.locks:
		t.Logf("without locks: %s: %s", found[0].Kind, found[0].Text)
	case h.done.Load() < 20:
		t.Errorf("only %d transactions in %d kills: that proves too little", h.done.Load(), kills)
	default:
		t.Logf("%d kills", kills)
		for _, a := range found {
			t.Errorf("%s: %s", a.Kind, a.Text)
		}
	}
}
