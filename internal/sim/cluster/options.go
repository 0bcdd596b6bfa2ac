package cluster

import "math/rand/v2"

// Options is what can go wrong in a run, and how much of it. Times are virtual
// microseconds, intervals are means; 0 turns a thing off.
type Options struct {
	Nodes, Grow, Replicas int // at first; how many there are to be; voters of a shard

	LossPct, DoublePct, LatePct, MisroutePct int
	DelayUs, LateUs                          int64

	SyncUs, ApplyUs, QueueUs int64 // a disk, the applied stream, the queue before the log
	WordUs                   int64 // how late a shard hears who leads
	SlowUs                   int64 // how much later a slow follower hears its leader
	RefusePct                int   // of proposals
	PreVote, Lease           bool  // of the Raft: hashicorp's has both
	Trailing                 int   // entries kept before a snapshot

	CrashEveryUs, RestartAllEveryUs, DownUs int64
	PauseEveryUs, PauseUs                   int64
	SplitEveryUs, SplitUs                   int64
	TransferEveryUs                         int64
	MemberEveryUs, ReplaceEveryUs           int64
	SnapshotEveryUs                         int64
	ClockEveryUs                            int64
	ClockPct                                int // of nodes whose clocks are wrong
	AimPct                                  int // a fault strikes just when a decision is under way

	MeddlePct  int // of submissions that somebody else rolls back
	Retained   int
	LockWaitUs int64
}

// Swarm draws options. Every feature is off in a good part of the seeds, so that
// one does not hide what another would show.
func Swarm(r *rand.Rand) Options {
	on := func(pct int) bool { return r.IntN(100) < pct }
	pct := func(chance, most int) int {
		if !on(chance) {
			return 0
		}
		return 1 + r.IntN(most)
	}
	every := func(chance int, least, most int64) int64 {
		if !on(chance) {
			return 0
		}
		return least + r.Int64N(most-least)
	}
	pick := func(list ...int64) int64 { return list[r.IntN(len(list))] }
	const ms, s = int64(1000), int64(1_000_000)
	o := Options{
		Nodes: int(pick(1, 2, 3, 3, 3, 3, 4, 5, 5)), Replicas: int(pick(3, 3, 5)),
		LossPct: pct(60, 6), DoublePct: pct(60, 8), LatePct: pct(50, 3), MisroutePct: pct(40, 10),
		DelayUs: pick(200, 2*ms, 10*ms), LateUs: pick(300*ms, 2*s, 15*s),
		SyncUs: pick(100, 2*ms, 15*ms), ApplyUs: pick(0, ms, 30*ms), QueueUs: pick(50, ms, 10*ms),
		WordUs: pick(0, 10*ms, 300*ms, 2*s), SlowUs: pick(0, 50*ms, 150*ms),
		RefusePct: pct(30, 2), PreVote: on(80), Lease: on(70), Trailing: int(pick(0, 3, 20)),
		CrashEveryUs: every(60, 200*ms, 4*s), RestartAllEveryUs: every(15, 2*s, 10*s), DownUs: pick(100*ms, 500*ms, 2*s),
		PauseEveryUs: every(50, 300*ms, 4*s), PauseUs: pick(100*ms, 700*ms, 2*s),
		SplitEveryUs: every(60, 500*ms, 5*s), SplitUs: pick(300*ms, s, 4*s),
		TransferEveryUs: every(30, 300*ms, 4*s), MemberEveryUs: every(50, 100*ms, s), ReplaceEveryUs: every(30, s, 6*s),
		SnapshotEveryUs: every(80, 50*ms, 2*s), ClockEveryUs: every(20, s, 5*s), ClockPct: pct(50, 100), AimPct: pct(60, 12),
		MeddlePct: pct(60, 20), Retained: int(pick(5, 50, 100_000)), LockWaitUs: pick(0, 0, s),
	}
	o.Grow = o.Nodes
	if o.MemberEveryUs > 0 && on(60) {
		o.Grow = o.Nodes + 1 + r.IntN(2)
	}
	return o
}
