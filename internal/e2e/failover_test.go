package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/assent-tx/assent"
	"github.com/assent-tx/assent/internal/serveproc"
)

var failoverKills = flag.Int("failover.kills", 5, "how many leaders TestFailoverGap kills")

// twoBooks are a cluster with two ledgers behind gates.
func twoBooks(ctx context.Context, t *testing.T, shards int) (*cluster, []*gate) {
	t.Helper()
	c := newCluster(t, shards)
	c.start(ctx)
	c.bank.covered = true
	return c, []*gate{c.behindGate(ctx, "bank-a"), c.behindGate(ctx, "bank-b")}
}

func deferred(string) bool { return false }

// TestZombieLeader: a leader is stopped in the middle of its work, long enough for another
// one to be elected and to finish what was open. Then it goes on where it was, in the
// belief that it leads, with calls half made. It does no harm: every transfer is as its
// client was told, and no participant was brought to do both.
func TestZombieLeader(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	c, gates := twoBooks(ctx, t, 1)
	l, working := c.newLoad(ctx)
	c.oneShots(working, l, 8)
	c.stepByStep(working, l, 3, deferred)
	for range 3 {
		if err := c.bank.progress(ctx, 30); err != nil {
			t.Fatal(err)
		}
		zombie, err := c.AwaitLeader(ctx, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(rand.N(50 * time.Millisecond)) // anywhere in its work
		zombie.Pause()
		next, err := c.AwaitLeader(ctx, 0, zombie)
		if err != nil {
			zombie.Resume()
			t.Fatal(err)
		}
		err = c.bank.progress(ctx, 30)
		zombie.Resume()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s was stopped, %s led on", zombie.Name, next.Name)
	}
	if err := c.bank.progress(ctx, 50); err != nil {
		t.Fatal(err)
	}
	l.stop()
	if c.quiet(ctx) {
		c.bank.audit(ctx, t)
	}
	late := 0
	for _, g := range gates {
		late += g.judge(t)
	}
	t.Logf("%d calls came from a leader after its successor's", late)
	if c.bank.aborted.Load() > 0 { // nothing is refused, and who leads next aborts nothing
		t.Errorf("transfers were aborted: %v", c.bank.reasons)
	}
}

// TestLeaderDeathAbortsNothing: a leader dies with transactions in every state: waiting
// for locks, prepared with one participant and not with a slow one, interactive ones with
// locks, with work executed, and in their commit. All of them commit.
func TestLeaderDeathAbortsNothing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c, gates := twoBooks(ctx, t, 1)
	dead := make(chan struct{})
	over := sync.OnceFunc(func() { close(dead) })
	defer over()                         // a gate does not close before its calls have ended
	gates[1].slow = func(phase string) { // until the kill, however long it takes to come to it
		if phase == "prepare" {
			<-dead
		}
	}
	a, b := c.bank.places[0], c.bank.places[1]
	gates = append(gates, c.behindGate(ctx, "bank-c"))
	third := c.bank.places[2]

	leader, err := c.AwaitLeader(ctx, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	const heaped, apart = 8, 12
	const within = 2 * time.Minute // the kill included
	for i := range heaped + apart {
		id := assent.NewID()
		ops := c.bank.transfer(id, a, b, 0)
		if i < heaped { // all wait for one key besides
			ops[0].Locks = append(ops[0].Locks, assent.Exclusive("heap"))
		}
		all.Go(func() {
			at := i
			o, err := c.caller.submit(ctx, &at, id, ops, within)
			switch {
			case err != nil:
				t.Error(err)
			case o.Abort != nil || !strings.HasPrefix(o.State, "commit"):
				t.Errorf("transaction %s is %s: %+v", id, o.State, o.Abort)
			default:
				c.bank.tell(id, "committed", "")
			}
		})
	}
	var opened sync.WaitGroup // interactive ones that are where they should be
	for i := range 4 {
		opened.Add(1)
		all.Go(func() {
			var last string
			arrived := sync.OnceFunc(opened.Done)
			defer arrived() // also if it never begins
			err := c.client.Run(ctx, func(ctx context.Context, tx *assent.Tx) error {
				last = tx.ID()
				ops := c.bank.transfer(tx.ID(), third, a, 1+i)
				err := tx.Lock(ctx, assent.Exclusive(fmt.Sprint("own/", i)).Of("bank-a"))
				if err == nil {
					// The ledger has one open branch at a time: only one transaction executes.
					_, err = tx.Do(ctx, assent.StepOperation{Operation: ops[0], Now: i == 0})
				}
				arrived()
				if err != nil {
					return err
				}
				select {
				case <-dead:
				case <-ctx.Done():
				}
				return tx.Defer(ctx, ops[1].Service, ops[1].Payload, ops[1].Locks...)
			}, assent.WithTries(1), assent.WithTimeout(within), assent.WithIdleTimeout(20*time.Second))
			if err != nil {
				t.Errorf("interactive transaction %s: %v", last, err)
				return
			}
			c.bank.tell(last, "committed", "")
		})
	}
	opened.Wait()
	waiting, preparing := 0, 0
	for waiting == 0 || preparing == 0 {
		for state, n := range map[string]*int{"active": &waiting, "preparing": &preparing} {
			body, err := leader.Get(ctx, "/v1/transactions?page_size=100&state="+state)
			if ctx.Err() != nil || t.Failed() {
				t.Fatalf("%d transactions wait for locks, %d are in their preparation: %v", waiting, preparing, err)
			}
			*n = strings.Count(string(body), map[string]string{"active": `"waits_for":`, "preparing": `"state":"preparing"`}[state])
		}
	}
	leader.Kill()
	over()
	t.Logf("%s was killed with %d transactions that wait for locks and %d in their preparation", leader.Name, waiting, preparing)
	all.Wait()
	if err := leader.Start(ctx, hashChecks); err != nil {
		t.Fatal(err)
	}
	if c.quiet(ctx) {
		c.bank.audit(ctx, t)
	}
	for _, g := range gates {
		g.judge(t)
	}
	body, err := leader.Get(ctx, "/v1/transactions?page_size=100")
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Transactions []outcome }
	if err := json.Unmarshal(body, &list); err != nil {
		t.Fatal(err)
	}
	for _, o := range list.Transactions {
		if o.Abort != nil {
			t.Errorf("aborted: %+v", o.Abort)
		}
	}
}

// steady waits until no lead has moved for a while: a cluster that has just been made
// spreads them, and its nodes still learn of each other and of the services.
func (c *cluster) steady(ctx context.Context, shards uint32) {
	c.t.Helper()
	const quiet = 3 * time.Second
	last, since := "", time.Now()
	for time.Since(since) < quiet {
		now := ""
		for shard := range shards {
			n, err := c.AwaitLeader(ctx, shard, nil)
			if err != nil {
				c.t.Fatal(err)
			}
			now += n.Name + " "
		}
		if now != last {
			last, since = now, time.Now()
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestTwoNodesApart: two leaders do not see each other, and a third node sees both. Nobody
// is elected, since each of them has its majority; what they have to say to each other, for
// transactions with locks of both and for requests that a client brings to the wrong one,
// goes over the third. Nothing is aborted.
func TestTwoNodesApart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	c, _ := twoBooks(ctx, t, 3)
	c.steady(ctx, 3)
	l, working := c.newLoad(ctx)
	c.oneShots(working, l, 6)
	c.stepByStep(working, l, 3, deferred)
	for _, cut := range []serveproc.Link{{Cut: true}, {Held: true}} {
		const tries = 3 // a node that stalls for longer than an election takes loses its lead, cut or not
		for try := 1; c.apart(ctx, cut); try++ {
			if try == tries {
				t.Fatalf("%+v: a lead was taken in each of %d tries", cut, tries)
			}
		}
	}
	l.stop()
	if c.quiet(ctx) {
		c.bank.audit(ctx, t)
	}
	t.Log(c.caller.seen())
	if c.bank.aborted.Load() > 0 {
		t.Errorf("transactions were aborted: %v", c.bank.reasons)
	}
}

// TestRollingRestart: every node is restarted after the other, under load. A client that
// goes to the next node meets no error, no transaction is aborted, and nobody waits for
// an election.
func TestRollingRestart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	c, _ := twoBooks(ctx, t, 2)
	l, working := c.newLoad(ctx)
	c.oneShots(working, l, 6)
	c.stepByStep(working, l, 3, deferred)
	if err := c.bank.progress(ctx, 30); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for _, n := range c.Nodes {
		led := time.Now()
		if code := n.Terminate(); code != 0 {
			t.Errorf("%s ended with exit code %d", n.Name, code)
		}
		ended := time.Now()
		if err := c.bank.progress(ctx, 20); err != nil {
			t.Fatal(err)
		}
		if err := n.Start(ctx, hashChecks); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: ended in %v, ready again after %v", n.Name, ended.Sub(led).Round(time.Millisecond), time.Since(led).Round(time.Millisecond))
		if err := c.bank.progress(ctx, 20); err != nil {
			t.Fatal(err)
		}
	}
	end := time.Now()
	l.stop()
	if c.quiet(ctx) {
		c.bank.audit(ctx, t)
	}
	t.Log("longest time without a commit:", c.bank.gap(start, end).Round(time.Millisecond), "-", c.caller.seen())
	if c.bank.aborted.Load() > 0 {
		t.Errorf("transactions were aborted: %v", c.bank.reasons)
	}
}

// gap is the longest time without a commit between two moments.
func (b *bank) gap(from, to time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	longest, last := time.Duration(0), from
	for _, at := range b.commits {
		if at.Before(from) || at.After(to) {
			continue
		}
		longest, last = max(longest, at.Sub(last)), at
	}
	return max(longest, to.Sub(last))
}

// apart cuts two leaders off from each other for some seconds of work, and says whether one
// of them lost its lead.
func (c *cluster) apart(ctx context.Context, cut serveproc.Link) (taken bool) {
	c.t.Helper()
	c.steady(ctx, 3)
	var a, b *serveproc.Process
	for a == b { // leads are spread over the nodes
		var err error
		if a, err = c.AwaitLeader(ctx, 0, nil); err != nil {
			c.t.Fatal(err)
		}
		if b, err = c.AwaitLeader(ctx, 1, nil); err != nil {
			c.t.Fatal(err)
		}
	}
	c.Links.Set(a.Name, b.Name, cut)
	c.Links.Set(b.Name, a.Name, cut)
	start := time.Now()
	for _, n := range []int64{100, 100, 100} { // what was under way when it began is no proof
		if err := c.bank.progress(ctx, n); err != nil {
			c.t.Fatal(err)
		}
		time.Sleep(time.Second)
	}
	c.t.Logf("%s and %s are apart (%+v) for %v: the longest time without a commit is %v", a.Name, b.Name, cut,
		time.Since(start).Round(time.Millisecond), c.bank.gap(start, time.Now()).Round(time.Millisecond))
	for shard, n := range []*serveproc.Process{a, b} {
		now, err := c.AwaitLeader(ctx, uint32(shard), nil)
		if err != nil {
			c.t.Fatal(err)
		}
		if now != n {
			c.t.Logf("shard %d was taken from %s", shard, n.Name)
			taken = true
		}
	}
	c.Links.Heal()
	for _, n := range []*serveproc.Process{a, b} {
		for {
			body, err := n.Get(ctx, "/v1/cluster")
			if err != nil {
				c.t.Fatal(err)
			}
			if !strings.Contains(string(body), `"down"`) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return taken
}

// TestFailoverGap measures how long a steady load is without a commit when the leader is
// killed. It asserts only that work goes on.
func TestFailoverGap(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(*failoverKills)*time.Minute+time.Minute)
	defer cancel()
	c, _ := twoBooks(ctx, t, 1)
	l, working := c.newLoad(ctx)
	c.oneShots(working, l, 8)
	var gaps, elections, quiet []time.Duration
	for i := range *failoverKills {
		if err := c.bank.progress(ctx, 50); err != nil {
			t.Fatal(err)
		}
		before := time.Now()
		time.Sleep(time.Second + rand.N(200*time.Millisecond)) // how the load is without a kill
		quiet = append(quiet, c.bank.gap(before, time.Now()))
		leader, err := c.AwaitLeader(ctx, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		leader.Kill()
		next, err := c.AwaitLeader(ctx, 0, leader)
		if err != nil {
			t.Fatal(err)
		}
		elected := time.Since(killed)
		if err := c.bank.progress(ctx, 50); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // what comes late
		gap := c.bank.gap(killed, time.Now())
		gaps, elections = append(gaps, gap), append(elections, elected)
		t.Logf("kill %d: %s, then %s: a leader after %v, %v without a commit (%v before)", i+1, leader.Name, next.Name,
			elected.Round(time.Millisecond), gap.Round(time.Millisecond), quiet[i].Round(time.Millisecond))
		if err := leader.Start(ctx, hashChecks); err != nil {
			t.Fatal(err)
		}
	}
	l.stop()
	if c.quiet(ctx) {
		c.bank.audit(ctx, t)
	}
	t.Log(c.caller.seen())
	for _, d := range []struct {
		what string
		list []time.Duration
	}{{"without a commit", gaps}, {"until a leader has applied its LEAD", elections}, {"without a commit in a second before", quiet}} {
		slices.Sort(d.list)
		at := func(q float64) time.Duration {
			return d.list[int(q*float64(len(d.list)-1)+0.5)].Round(time.Millisecond)
		}
		t.Logf("%d kills: %s: p50 %v, p90 %v, p99 %v, max %v", len(d.list), d.what, at(.5), at(.9), at(.99), at(1))
	}
}
