package cluster

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/assent-tx/assent/internal/sim/sessions"
)

// Result is what a run came to.
type Result struct {
	Seed      uint64
	Failure   string // empty: every invariant held
	Lines     []string
	Trace     uint64 // equal for equal seeds
	VirtualUs int64
	Entries   int
	Nodes     int
	Committed int
	Aborted   int
	Unknown   int
	Questions int
	Reached   Counters
}

// Run runs one seed. With trace it keeps the last lines for the failure; verbose, if not
// nil, gets every line.
func Run(seed uint64, trace bool, verbose func(string)) (res Result) {
	res.Seed = seed
	opt := sessions.Options{Transactions: 60, Clients: 5, Services: 2, Keys: 3, Shards: 1 + int(seed%4), NoPct: 2, SilentPct: 1, CalmAtUs: 40_000_000}
	if seed%3 == 0 {
		opt.RestartPct = 1
	}
	opt.Moves = seed%7 == 3
	var l *lines
	if trace || verbose != nil {
		l = &lines{all: verbose}
	}
	var c *Cluster
	asks := seed/4%4 == 3 // clients that ask about and end each other's transactions
	found := func(w *sessions.World) sessions.Cluster {
		c = build(w, asks, l)
		return c
	}
	var wrong []string
	var err error
	if asks {
		opt.Transactions = 40
		var r sessions.StatusReport
		r, err = sessions.RunStatusOn(seed, opt, found)
		for _, p := range r.Problems {
			wrong = append(wrong, p.Object+": "+p.Text)
		}
		res.Trace, res.VirtualUs, res.Committed, res.Aborted, res.Questions = r.Trace, r.VirtualUs, r.Committed, r.Aborted, r.Questions
	} else {
		var r sessions.Report
		r, err = sessions.RunOn(seed, opt, found)
		for _, a := range r.Anomalies {
			wrong = append(wrong, a.Kind+": "+a.Text)
		}
		wrong = append(wrong, r.Replay...)
		for _, p := range r.Locks {
			wrong = append(wrong, p.Object+": "+p.Text)
		}
		res.Trace, res.VirtualUs, res.Committed, res.Aborted, res.Unknown = r.Trace, r.VirtualUs, r.Committed, r.Aborted, r.Unknown
	}
	switch {
	case err != nil:
		res.Failure = err.Error()
	case len(wrong) > 0:
		res.Failure = fmt.Sprintf("seed %d: %s", seed, strings.Join(wrong, "\n"))
	}
	if c != nil {
		res.Reached, res.Nodes = c.reached, len(c.nodes)
		for _, g := range c.groups {
			res.Entries += len(g.committed)
		}
	}
	if l != nil {
		res.Lines = l.last
	}
	return res
}

// Batch is what many seeds came to.
type Batch struct {
	Failed                      *Result // of the lowest seed that failed; nil: all held
	Runs, Nodes, Entries        int
	Committed, Aborted, Unknown int
	Questions                   int
	Virtual                     time.Duration
	Reached                     Counters
}

// RunBatch runs n seeds from first on workers goroutines, each run on one. It ends
// early when a seed fails; seeds below that one still run.
func RunBatch(first uint64, n, workers int) *Batch {
	b := &Batch{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := 0
	for range workers {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				done := i >= n || b.Failed != nil
				mu.Unlock()
				if done {
					return
				}
				res := Run(first+uint64(i), false, nil)
				mu.Lock()
				b.add(&res)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return b
}

func (b *Batch) add(r *Result) {
	b.Runs++
	b.Nodes += r.Nodes
	b.Entries += r.Entries
	b.Committed += r.Committed
	b.Aborted += r.Aborted
	b.Unknown += r.Unknown
	b.Questions += r.Questions
	b.Virtual += time.Duration(r.VirtualUs) * time.Microsecond
	b.Reached.Add(&r.Reached)
	if r.Failure != "" && (b.Failed == nil || r.Seed < b.Failed.Seed) {
		b.Failed = r
	}
}

// Print writes the figures and the counters.
func (b *Batch) Print(to io.Writer) {
	fmt.Fprintf(to, "%d seeds, %d nodes, %d entries, %s of virtual time\n", b.Runs, b.Nodes, b.Entries, b.Virtual.Round(time.Second))
	fmt.Fprintf(to, "%d transactions committed, %d aborted, %d of unknown outcome to their client; %d questions by others\n", b.Committed, b.Aborted, b.Unknown, b.Questions)
	b.Reached.Print(to)
}
