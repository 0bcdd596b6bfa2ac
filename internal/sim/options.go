package sim

import "math/rand/v2"

// Options is what can go wrong in a run, and how much of it. Times are virtual
// microseconds, intervals are means; 0 turns a thing off.
type Options struct {
	Clients      int
	Transactions int
	ThinkUs      int64
	Services     int
	Keys         int // per service; few keys are hot
	Hierarchical bool

	LossPct, DupPct, LatePct int
	DelayUs, LateUs          int64

	CrashEveryUs, FlipEveryUs, FailEveryUs, SnapshotEveryUs int64
	CommitDelayUs, ApplyDelayUs                             int64
	BatchUs                                                 int64 // events gather this long before Ready is taken

	PartCrashEveryUs, PartHangEveryUs, PartDownUs int64
	RubbishPct, SlowPct                           int
	WipeEveryUs, UnilateralEveryUs                int64
	OutagePct                                     int // a lost leadership takes participants with it
	AimPct                                        int // a fault strikes just when a decision or its end is under way
	RegistryLagPct                                int // of applied entries after which the driver's registry is not renewed

	NoPct, ReadOnlyPct                                      int
	ChurnEveryUs, ClockJumpEveryUs                          int64
	CancelPct, RollbackPct, GetPct, RetryPct                int
	ConflictPct, FuturePct, PastPct, UndeclaredPct, RacePct int

	Retained      int
	RetentionMs   uint64
	MaxOpen       int
	MaxWaiting    int
	TimeoutMs     uint32
	CallTimeoutUs int64
	EntryBytes    int
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
	const ms, s = int64(1000), int64(1_000_000)
	o := Options{
		Clients: 1 + r.IntN(8), Transactions: 30 + r.IntN(120), ThinkUs: []int64{2 * ms, 30 * ms, 200 * ms, s}[r.IntN(4)],
		Services: 1 + r.IntN(5), Keys: 1 + r.IntN(12), Hierarchical: on(50),
		LossPct: pct(50, 25), DupPct: pct(50, 30), LatePct: pct(50, 20),
		DelayUs: []int64{200, 2 * ms, 20 * ms, 150 * ms}[r.IntN(4)], LateUs: []int64{2 * s, 30 * s, 300 * s}[r.IntN(3)],
		CrashEveryUs: every(60, s/4, 10*s), FlipEveryUs: every(50, s/4, 10*s), FailEveryUs: every(40, s/4, 10*s), SnapshotEveryUs: every(70, 100*ms, 10*s),
		CommitDelayUs: []int64{100, ms, 10 * ms, 200 * ms}[r.IntN(4)], ApplyDelayUs: []int64{0, 0, ms, 50 * ms}[r.IntN(4)],
		BatchUs:          []int64{0, 0, 500, 20 * ms}[r.IntN(4)],
		PartCrashEveryUs: every(40, s/2, 10*s), PartHangEveryUs: every(30, s, 10*s), PartDownUs: []int64{100 * ms, 2 * s, 30 * s}[r.IntN(3)],
		RubbishPct: pct(30, 20), SlowPct: pct(30, 30),
		OutagePct: pct(40, 80), AimPct: pct(50, 10), RegistryLagPct: pct(50, 95),
		WipeEveryUs: every(15, s/4, 8*s), UnilateralEveryUs: every(20, 20*ms, s),
		NoPct: pct(60, 25), ReadOnlyPct: pct(60, 40),
		ChurnEveryUs: every(40, s/2, 10*s), ClockJumpEveryUs: every(20, s, 20*s),
		CancelPct: pct(50, 40), RollbackPct: pct(60, 25), GetPct: pct(70, 30), RetryPct: pct(70, 30),
		ConflictPct: pct(40, 10), FuturePct: pct(25, 10), PastPct: pct(25, 5), UndeclaredPct: pct(40, 25), RacePct: pct(40, 20),
		Retained: []int{1, 5, 20, 1000}[r.IntN(4)], RetentionMs: []uint64{1, 500, 5_000, 30_000, 600_000}[r.IntN(5)],
		MaxOpen: []int{2, 8, 1000, 1000}[r.IntN(4)], MaxWaiting: []int{3, 1000, 1000, 1000}[r.IntN(4)],
		TimeoutMs: []uint32{50, 500, 3000, 10_000}[r.IntN(4)], CallTimeoutUs: []int64{20 * ms, 200 * ms, 3 * s}[r.IntN(3)],
		EntryBytes: []int{100, 1000, 256 << 10}[r.IntN(3)],
	}
	if o.WipeEveryUs > 0 { // one kind of defect in a run, so that each hazard has one cause
		o.UnilateralEveryUs = 0
	}
	return o
}
