package sessions

import (
	"flag"
	"testing"
)

var (
	seeds = flag.Int("seeds", 150, "how many seeds to run")
	first = flag.Uint64("seed", 0, "the first seed")
)

// TestSessions: whatever fails, what clients were told is strictly serializable.
func TestSessions(t *testing.T) {
	var sum Report
	for seed := *first; seed < *first+uint64(*seeds); seed++ {
		r, err := Run(seed, DefaultOptions())
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range r.Anomalies {
			t.Fatalf("seed %d: %s: %s", seed, a.Kind, a.Text)
		}
		for _, wrong := range r.Replay {
			t.Fatalf("seed %d: %s", seed, wrong)
		}
		for _, p := range r.Locks {
			t.Fatalf("seed %d: %s: %s", seed, p.Object, p.Text)
		}
		sum.Committed += r.Committed
		sum.Aborted += r.Aborted
		sum.Unknown += r.Unknown
		sum.Deadlocks += r.Deadlocks
		sum.Restarted += r.Restarted
		sum.Idle += r.Idle
		sum.Lost += r.Lost
		sum.Crashes += r.Crashes
		sum.Repeated += r.Repeated
		sum.Upgraded += r.Upgraded
		sum.Wounded += r.Wounded
		sum.Yielded += r.Yielded
		sum.Spread += r.Spread
		sum.Verified += r.Verified
		sum.Whole += r.Whole
		sum.Granted += r.Granted
	}
	t.Logf("%+v", sum)
	if *seeds < 100 {
		return
	}
	for what, n := range map[string]int{
		"committed": sum.Committed, "aborted": sum.Aborted, "unknown": sum.Unknown, "deadlocks": sum.Deadlocks, "one-shot victims": sum.Restarted,
		"dead clients": sum.Idle, "lost executions": sum.Lost, "crashes": sum.Crashes, "retries with their age": sum.Upgraded, "wounds": sum.Wounded, "parts given back": sum.Yielded, "locks at several shards": sum.Spread, "whole services": sum.Whole, "states compared": sum.Verified, "locks granted": sum.Granted,
	} {
		if n == 0 {
			t.Errorf("never reached: %s", what)
		}
	}
}

// TestWithoutFaults: where nothing fails nobody waits in vain, over however many shards
// a cycle of waiting could run.
func TestWithoutFaults(t *testing.T) {
	for seed := range uint64(max(30, *seeds/5)) {
		r, err := Run(seed, Options{Transactions: 200, Clients: 12, Services: 2, Keys: 2})
		if err != nil || len(r.Anomalies) > 0 || len(r.Replay) > 0 || len(r.Locks) > 0 {
			t.Fatal(seed, err, r.Anomalies, r.Replay, r.Locks)
		}
		if r.TimedOut > 0 || r.Committed == 0 {
			t.Errorf("seed %d: %d waited for a lock until their timeout, %d committed", seed, r.TimedOut, r.Committed)
		}
	}
}

// TestMoves: a service is removed and registered anew, with other partitions, while its keys
// are locked, and some who lock them do not know it yet.
func TestMoves(t *testing.T) {
	opt := DefaultOptions()
	opt.Moves, opt.Trusting, opt.Shards = true, true, 3
	var sum Report
	for seed := *first; seed < *first+uint64(max(20, *seeds/5)); seed++ {
		r, err := Run(seed, opt)
		if err != nil || len(r.Anomalies) > 0 || len(r.Replay) > 0 || len(r.Locks) > 0 {
			t.Fatal(seed, err, r.Anomalies, r.Replay, r.Locks)
		}
		sum.Moved += r.Moved
		sum.Committed += r.Committed
		sum.Aborted += r.Aborted
		sum.Unknown += r.Unknown
	}
	t.Logf("%+v", sum)
	if sum.Moved == 0 || sum.Committed == 0 {
		t.Error("too little happened")
	}
}

// TestShortQueues: nor does anybody where hardly one may wait for a key: whoever is refused
// asks again outside the queue.
func TestShortQueues(t *testing.T) {
	for seed := range uint64(max(30, *seeds/5)) {
		r, err := Run(seed, Options{Transactions: 200, Clients: 12, Services: 2, Keys: 2, KeyWaiters: 1 + int(seed%3)})
		if err != nil || len(r.Anomalies) > 0 || len(r.Replay) > 0 || len(r.Locks) > 0 {
			t.Fatal(seed, err, r.Anomalies, r.Replay, r.Locks)
		}
		if r.TimedOut+r.Expired > 0 || r.Committed == 0 {
			t.Errorf("seed %d: %d waited for a lock until their timeout, %d in vain for a place in a queue, %d committed", seed, r.TimedOut, r.Expired, r.Committed)
		}
	}
}

// TestDeaths: where only shards die, whoever waits goes on soon: what one shard has asked
// of another is asked again. Hardly anybody waits until the timeout; that takes several
// deaths of the same shard.
func TestDeaths(t *testing.T) {
	runs, timedOut := max(30, *seeds/5), 0
	for seed := range uint64(runs) {
		r, err := Run(seed, Options{Transactions: 200, Clients: 12, Services: 2, Keys: 2, CrashPct: 1})
		if err != nil || len(r.Anomalies) > 0 || len(r.Replay) > 0 || len(r.Locks) > 0 {
			t.Fatal(seed, err, r.Anomalies, r.Replay, r.Locks)
		}
		timedOut += r.TimedOut
	}
	if timedOut > runs/10 {
		t.Errorf("in %d runs %d waited for a lock until their timeout", runs, timedOut)
	}
}

// TestSameSeed: a seed is a run.
func TestSameSeed(t *testing.T) {
	a, err := Run(3, DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := Run(3, DefaultOptions()); err != nil || a.Trace != b.Trace || a.Committed != b.Committed {
		t.Errorf("%+v and %+v, %v", a, b, err)
	}
}

// TestLinearLocks: of what clients were told of locks alone, nothing excludes each other.
func TestLinearLocks(t *testing.T) {
	opt := DefaultOptions()
	opt.Trusting = true
	for seed := range uint64(min(99, *seeds)) {
		r, err := Run(seed, opt)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range r.Locks {
			t.Fatalf("seed %d: %s: %s", seed, p.Object, p.Text)
		}
	}
}

// TestStatus: several clients ask about and decide the same transactions.
func TestStatus(t *testing.T) {
	var sum StatusReport
	for seed := *first; seed < *first+uint64(*seeds); seed++ {
		r, err := RunStatus(seed, DefaultOptions())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range r.Problems {
			t.Fatalf("seed %d: %s: %s", seed, p.Object, p.Text)
		}
		sum.Committed += r.Committed
		sum.Aborted += r.Aborted
		sum.Absent += r.Absent
		sum.Questions += r.Questions
		sum.Unanswered += r.Unanswered
		sum.Crashes += r.Crashes
	}
	t.Logf("%+v", sum)
	if *seeds >= 20 && (sum.Committed == 0 || sum.Aborted == 0 || sum.Unanswered == 0 || sum.Crashes == 0) {
		t.Error("something was never reached")
	}
}

// TestWithoutLocks: with locks that exclude nobody, histories are convicted, and
// replays, and what was told of locks, by each for itself.
func TestWithoutLocks(t *testing.T) {
	opt := DefaultOptions()
	opt.LocksOff, opt.Trusting = true, true
	guilty, differs, shared := 0, 0, 0
	for seed := range uint64(20) {
		r, err := Run(seed, opt)
		if err != nil {
			t.Fatal(err)
		}
		guilty += min(1, len(r.Anomalies))
		differs += min(1, len(r.Replay))
		shared += min(1, len(r.Locks))
	}
	t.Logf("of 20 runs without locks %d histories were convicted, %d replays, and locks in %d", guilty, differs, shared)
	if guilty < 18 || differs < 18 || shared < 18 {
		t.Error("that is too few")
	}
}
