package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// heapFloor is what the heap may grow to before it is collected, however little of it is in
// use. A node with few transactions would collect many times a second otherwise, for
// garbage of some MiB; one that keeps 100,000 gets as large anyway.
const heapFloor = 192 << 20

// leastLive bounds the percentage where next to nothing is in use.
const leastLive = 8 << 20

// gcPercent is GOGC for the bytes in use after the last collection: Go's own 100 from half
// the floor on.
func gcPercent(live uint64) int {
	return int(max(200, heapFloor*100/max(live, leastLive))) - 100
}

// keepHeapFloor keeps to the floor until ctx ends, unless the environment sets GOGC.
func keepHeapFloor(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	const every = 200 * time.Millisecond // bounds what a heap that grows fast takes too much
	tick := time.NewTicker(every)
	defer tick.Stop()
	set := 100
	defer func() { debug.SetGCPercent(100) }()
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	for {
		metrics.Read(sample)
		if sample[0].Value.Kind() != metrics.KindUint64 {
			return // another Go, which has no such figure
		}
		if want := gcPercent(sample[0].Value.Uint64()); want != set { // it stops the world for some microseconds
			debug.SetGCPercent(want)
			set = want
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
