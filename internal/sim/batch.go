package sim

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Batch is what many seeds came to.
type Batch struct {
	Failed  *FailureError // of the lowest seed that failed; nil: all held
	Runs    int
	Steps   uint64
	Entries int
	Virtual time.Duration
	Reached Counters
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
	b.Steps += r.Steps
	b.Entries += r.Entries
	b.Virtual += time.Duration(r.AtUs) * time.Microsecond
	b.Reached.Add(&r.Reached)
	if r.Failure != nil && (b.Failed == nil || r.Failure.Seed < b.Failed.Seed) {
		b.Failed = r.Failure
	}
}

// Print writes the figures and the counters.
func (b *Batch) Print(to io.Writer) {
	fmt.Fprintf(to, "%d seeds, %d steps, %d log entries, %s of virtual time\n", b.Runs, b.Steps, b.Entries, b.Virtual.Round(time.Second))
	b.Reached.Print(to)
}
