package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/pgtest"
	"github.com/assent-tx/assent/internal/serveproc"
)

var (
	chaosMinutes = flag.Float64("chaos.minutes", 1, "how long TestChaos breaks things")
	chaosSeed    = flag.Uint64("chaos.seed", 1, "which faults, in which order; 0: others each time")
)

// postgresPlace are accounts in a database behind an agent.
type postgresPlace struct {
	service string
	server  *pgtest.Cluster
}

func (p *postgresPlace) name() string { return p.service }

func (p *postgresPlace) payload(id string, l leg) any {
	return map[string]any{"statements": []any{
		map[string]any{"sql": "UPDATE account SET balance = balance + $1 WHERE id = $2", "args": []any{l.amount, l.account}, "expect": map[string]int{"rows": 1}},
		map[string]any{"sql": "INSERT INTO transfer VALUES ($1, $2, $3)", "args": []any{id, l.account, l.amount}},
	}}
}

func (p *postgresPlace) books(ctx context.Context) (legs map[string][]leg, holds, held, doubt int, err error) {
	legs = map[string][]leg{}
	query := func(sql string) string {
		out, failed := p.server.Query(ctx, "postgres", sql)
		err = errors.Join(err, failed)
		return out
	}
	for line := range strings.SplitSeq(query("SELECT id, account, amount FROM transfer"), "\n") {
		id, rest, _ := strings.Cut(line, "|")
		l := leg{place: p.service}
		if n, _ := fmt.Sscanf(rest, "%d|%d", &l.account, &l.amount); n == 2 {
			legs[id] = append(legs[id], l)
		}
	}
	_, _ = fmt.Sscan(query("SELECT sum(balance) FROM account"), &holds)
	_, _ = fmt.Sscan(query("SELECT count(*) FROM pg_prepared_xacts"), &doubt)
	return legs, holds, accounts * balance, doubt, err
}

// chaos is a cluster with two ledgers and two databases, all of which can break.
type chaos struct {
	*cluster
	random   *rand.Rand
	children map[string]*child
	servers  []*pgtest.Cluster
	history  *history
	disk     *serveproc.Process // the node on a small disk; nil: there is none
	filler   string
	compared bool // replicas did compare their states
}

// fault is something that breaks, until everything is mended.
type fault struct {
	name       string
	survivable bool // a majority is left whole: work goes on meanwhile
	alone      bool // and nothing else breaks at the time
	begin      func(ctx context.Context)
}

// TestChaos breaks nodes, the network between them, services, agents and databases, in an
// order of its seed, while clients move money and append to lists. Then everything is
// mended, and must be as if nothing had happened: each transfer everywhere or nowhere, as
// its client was told; what clients have read and appended strictly serializable; nothing
// open, prepared or locked; replicas the same; and work goes on.
func TestChaos(t *testing.T) {
	length := time.Duration(*chaosMinutes * float64(time.Minute))
	ctx, cancel := context.WithTimeout(t.Context(), 2*length+6*time.Minute)
	defer cancel()
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-chaos.seed %d", seed)
	c := &chaos{cluster: newCluster(t, 3, "--min-free-space", "16MiB"), random: rand.New(rand.NewPCG(seed, 0)), children: map[string]*child{}}
	c.smallDisk()
	c.start(ctx)
	c.participants(ctx)
	faults := c.faults()
	c.random.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	const audited = 90 * time.Second // after which there is an audit
	next := 0
	for round, end := 0, time.Now().Add(length); !t.Failed() && (round == 0 || time.Now().Before(end)); round++ {
		until := time.Now().Add(audited)
		if until.After(end) {
			until = end
		}
		c.round(ctx, round, until, func() *fault {
			next++
			return &faults[next%len(faults)]
		})
	}
	t.Log(c.caller.seen())
	if !c.compared && !t.Failed() {
		t.Error("replicas never compared their states")
	}
}

// lookAtComparisons notes whether replicas have compared their states; a node that
// differs ends by itself.
func (c *chaos) lookAtComparisons(ctx context.Context) {
	for _, n := range c.Nodes {
		metrics, _ := n.Get(ctx, "/metrics") // it may be down, and counts anew then
		for line := range strings.Lines(string(metrics)) {
			var times float64
			if rest, found := strings.CutPrefix(line, `assent_state_checks_total{result="equal"}`); found {
				_, _ = fmt.Sscan(rest, &times)
				c.compared = c.compared || times > 0
			}
		}
	}
}

// round breaks things until a moment, and audits.
func (c *chaos) round(ctx context.Context, round int, until time.Time, next func() *fault) {
	old := c.history
	c.history = &history{client: c.client, locks: true, mixed: true, names: old.names, services: old.services, alone: old.alone, prefix: fmt.Sprint("r", round)}
	l, working := c.newLoad(ctx)
	c.oneShots(working, l, 5)
	c.stepByStep(working, l, 3, func(service string) bool { return strings.HasPrefix(service, "pg-") })
	l.all.Go(func() { c.history.clients(working, c.t, 4) })
	work := func(n int64, within time.Duration, when string) {
		limited, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		if err := c.bank.progress(limited, n); err != nil {
			c.t.Errorf("%s: %v; %s", when, err, c.caller.seen())
		}
	}
	work(10, time.Minute, "at the beginning")
	for time.Now().Before(until) && !c.t.Failed() {
		if !c.compared {
			c.lookAtComparisons(ctx)
		}
		f := next()
		names, survivable := f.name, f.survivable
		if survivable { // with one that still reads its log, it is not
			limited, cancel := context.WithTimeout(ctx, time.Minute)
			if err := c.Ready(limited); err != nil {
				c.t.Error(err)
			}
			cancel()
		}
		start, before := time.Now(), c.bank.committed.Load()
		f.begin(ctx)
		if !f.alone && c.random.IntN(3) == 0 {
			time.Sleep(c.upTo(time.Second))
			if second := next(); !second.alone {
				names, survivable = names+", "+second.name, false
				second.begin(ctx)
			}
		}
		time.Sleep(500*time.Millisecond + c.upTo(3*time.Second))
		if survivable {
			work(3, 30*time.Second, "while it lasts: "+names)
		}
		during, lasted := c.bank.committed.Load()-before, time.Since(start)
		c.mend()
		work(10, time.Minute, "after "+names)
		c.t.Logf("%s: %.1f s, %d commits meanwhile, mended and at work after %.1f s", names, lasted.Seconds(), during, time.Since(start).Seconds()-lasted.Seconds())
	}
	l.stop()
	if !c.quiet(ctx) {
		return
	}
	nothingPrepared(c.t, c.servers)
	c.bank.audit(ctx, c.t)
	if !c.compared { // a short run may have looked before the first only
		c.lookAtComparisons(ctx)
	}
	for _, a := range c.history.judge(c.t) {
		c.t.Errorf("%s: %s", a.Kind, a.Text)
	}
	for _, n := range c.Nodes {
		for _, word := range []string{"panic", "STATE DIVERGED"} {
			if strings.Contains(n.LogText(), word) {
				c.t.Errorf("the log of %s speaks of %q", n.Name, word)
			}
		}
	}
}

func (c *chaos) upTo(d time.Duration) time.Duration { return time.Duration(c.random.Int64N(int64(d))) }

// participants starts what takes part.
func (c *chaos) participants(ctx context.Context) {
	c.history = &history{services: map[string]listService{}, alone: map[string]bool{}}
	for _, name := range []string{"book-a", "book-b"} {
		c.children[name] = &child{log: filepath.Join(c.dir, name+".log"), args: []string{
			"ledger", "--name", name, "--dir", c.dir, "--listen", freeAddress(c.t), "--coordinator", c.balance,
			"--accounts", fmt.Sprint(accounts), "--balance", fmt.Sprint(balance),
		}}
		c.bank.places = append(c.bank.places, &sqlitePlace{name, filepath.Join(c.dir, name+".db"), accounts * balance})
		c.history.names, c.history.alone[name], c.history.services[name] = append(c.history.names, name), true, onLedger{}
	}
	for _, name := range []string{"pg-a", "pg-b"} {
		server := pgtest.Start(c.t)
		if err := server.SQL(
			ctx, "postgres",
			"CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0))",
			"CREATE TABLE transfer (id text PRIMARY KEY, account int NOT NULL, amount bigint NOT NULL)",
			"CREATE TABLE item (n bigserial PRIMARY KEY, key text NOT NULL, value bigint NOT NULL)",
			fmt.Sprintf("INSERT INTO account SELECT i, %d FROM generate_series(1, %d) i", balance, accounts),
		); err != nil {
			c.t.Fatal(err)
		}
		c.servers = append(c.servers, server)
		c.children[name] = &child{
			log: filepath.Join(c.dir, name+".log"), env: []string{"ASSENT_AGENT_DSN=" + server.DSN("postgres")},
			args: []string{
				"agent", "postgres", "--service", name, "--listen", freeAddress(c.t), "--coordinator", c.balance,
				"--isolation", "read committed", "--sweep-interval", "1s", "--orphan-after", "2s",
			},
		}
		c.bank.places = append(c.bank.places, &postgresPlace{name, server})
		c.history.names, c.history.services[name] = append(c.history.names, name), onPostgres{}
	}
	for _, child := range c.children {
		child.start(c.t, c.binary)
		c.t.Cleanup(child.kill)
	}
	registered(ctx, c.t, c.Nodes[0], c.history.names)
}

// smallDisk puts the data of the last node on a disk that can be filled, where this
// process may mount one.
func (c *chaos) smallDisk() {
	n := c.Nodes[len(c.Nodes)-1]
	if err := os.MkdirAll(n.Data, 0o700); err != nil {
		c.t.Fatal(err)
	}
	if err := mountSmall(n.Data); err != nil {
		c.t.Log("no disk will be full: ", err)
		return
	}
	c.t.Cleanup(func() {
		n.Kill()
		if err := unmount(n.Data); err != nil {
			c.t.Log(err)
		}
	})
	c.disk, c.filler = n, filepath.Join(n.Data, "filler")
}

func (c *chaos) leader(ctx context.Context) *serveproc.Process {
	if leader := c.Leader(ctx, c.random.Uint32N(3)); leader != nil {
		return leader
	}
	return c.node()
}

func (c *chaos) follower(ctx context.Context) *serveproc.Process {
	others := c.Others(c.leader(ctx))
	return others[c.random.IntN(len(others))]
}

func (c *chaos) node() *serveproc.Process { return c.Nodes[c.random.IntN(len(c.Nodes))] }

// around sets the links of a node with the others: out of it, and into it.
func (c *chaos) around(n *serveproc.Process, out, in serveproc.Link) {
	for _, o := range c.Others(n) {
		c.Links.Set(n.Name, o.Name, out)
		c.Links.Set(o.Name, n.Name, in)
	}
}

// faults are all that there are.
func (c *chaos) faults() []fault {
	held, cut, none := serveproc.Link{Held: true}, serveproc.Link{Cut: true}, serveproc.Link{}
	list := []fault{
		{"a leader is killed", true, false, func(ctx context.Context) { c.leader(ctx).Kill() }},
		{"a follower is killed", true, false, func(ctx context.Context) { c.follower(ctx).Kill() }},
		{"two nodes are killed", false, false, func(ctx context.Context) {
			for _, n := range c.Others(c.node()) {
				n.Kill()
			}
		}},
		{"all nodes are killed", false, false, func(context.Context) {
			for _, n := range c.Nodes {
				n.Kill()
			}
		}},
		{"a leader is stopped", true, false, func(ctx context.Context) { c.leader(ctx).Pause() }},
		{"a follower is stopped", true, false, func(ctx context.Context) { c.follower(ctx).Pause() }},
		{"a leader stumbles", true, false, func(ctx context.Context) {
			for range 3 {
				n := c.leader(ctx)
				n.Pause()
				time.Sleep(300*time.Millisecond + c.upTo(time.Second)) // around the election timeout
				n.Resume()
				time.Sleep(c.upTo(300 * time.Millisecond))
			}
		}},
		{"a leader is cut off", true, false, func(ctx context.Context) { c.around(c.leader(ctx), held, held) }},
		{"a node is cut off", true, false, func(context.Context) { c.around(c.node(), cut, cut) }},
		{"every node is alone", false, false, func(context.Context) {
			for _, n := range c.Nodes {
				c.around(n, held, held)
			}
		}},
		{"a leader is not heard", true, false, func(ctx context.Context) { c.around(c.leader(ctx), held, none) }},
		{"a leader hears nothing", true, false, func(ctx context.Context) { c.around(c.leader(ctx), none, held) }},
		{"two nodes do not see each other", true, false, func(ctx context.Context) {
			a, b := c.leader(ctx), c.follower(ctx)
			c.Links.Set(a.Name, b.Name, cut)
			c.Links.Set(b.Name, a.Name, cut)
		}},
		{"a node is slow to reach", true, false, func(context.Context) {
			slow := serveproc.Link{Delay: 10*time.Millisecond + c.upTo(150*time.Millisecond)}
			c.around(c.node(), slow, slow)
		}},
		{"connections break again and again", true, false, func(context.Context) {
			for range 6 {
				c.around(c.node(), cut, cut)
				time.Sleep(c.upTo(300 * time.Millisecond))
				c.Links.Heal()
				time.Sleep(c.upTo(300 * time.Millisecond))
			}
		}},
		{"nodes are restarted in turn", true, true, func(ctx context.Context) {
			for _, n := range c.Nodes {
				if code := n.Terminate(); code != 0 {
					c.t.Errorf("%s ended with exit code %d", n.Name, code)
				}
				if err := n.Start(ctx, hashChecks); err != nil {
					c.t.Error(err)
				}
			}
		}},
	}
	for _, name := range []string{"book-a", "pg-b"} {
		list = append(list, fault{name + " is killed", false, false, func(context.Context) { c.children[name].kill() }})
	}
	list = append(list,
		fault{"pg-a is stopped", false, false, func(context.Context) { c.children["pg-a"].signal(syscall.SIGSTOP) }},
		fault{"book-b is stopped", false, false, func(context.Context) { c.children["book-b"].signal(syscall.SIGSTOP) }},
		fault{"a database is killed", false, false, func(context.Context) { c.servers[c.random.IntN(len(c.servers))].Kill() }},
	)
	if c.disk != nil {
		// Until a write fails, the node refuses new transactions of the shards that it leads.
		list = append(list, fault{"a disk is full", false, false, func(context.Context) {
			f, err := os.Create(c.filler)
			if err != nil {
				return // full already
			}
			_, _ = io.Copy(f, zeros{}) // until nothing goes in
			_ = f.Close()
		}})
	}
	return list
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// mend ends all faults.
func (c *chaos) mend() {
	c.Links.Heal()
	if c.disk != nil {
		if err := os.Remove(c.filler); err == nil {
			c.disk.Kill() // it has ended, or is about to
		}
	}
	var all sync.WaitGroup
	for _, s := range c.servers {
		all.Go(func() {
			if err := s.Restart(); err != nil {
				c.t.Error(err)
			}
		})
	}
	for name, child := range c.children {
		child.signal(syscall.SIGCONT)
		died := child.died()
		if died {
			c.t.Errorf("%s ended by itself: %v", name, child.cmd.ProcessState)
		}
		if died || child.cmd == nil {
			child.start(c.t, c.binary)
		}
	}
	for _, n := range c.Nodes {
		if n.Died() {
			c.t.Errorf("%s ended by itself, with exit code %d", n.Name, n.ExitCode())
		}
		n.Resume()
		if !n.Running() {
			if err := n.Launch(hashChecks); err != nil {
				c.t.Error(err)
			}
		}
	}
	all.Wait()
}
