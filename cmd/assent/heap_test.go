package main

import (
	"context"
	"runtime/debug"
	"testing"
	"time"
)

func TestHeapFloor(t *testing.T) {
	for live, want := range map[uint64]int{0: 2300, 4 << 20: 2300, 8 << 20: 2300, 48 << 20: 300, 96 << 20: 100, 200 << 20: 100, 8 << 30: 100} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d MiB in use: %d %%, want %d", live>>20, got, want)
		}
	}
	current := func() int {
		p := debug.SetGCPercent(100)
		debug.SetGCPercent(p)
		return p
	}
	before := current()
	t.Cleanup(func() { debug.SetGCPercent(before) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { keepHeapFloor(ctx); close(done) }()
	for end := time.Now().Add(20 * time.Second); current() == 100; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never set")
		}
	}
	cancel()
	<-done
	if current() != 100 {
		t.Errorf("left at %d", current())
	}
	t.Setenv("GOGC", "50")
	keepHeapFloor(t.Context()) // returns: it is the user's
}
