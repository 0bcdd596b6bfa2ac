package exhaust

import (
	"flag"
	"os"
	"runtime/debug"
	"testing"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/shard"
)

var which = flag.String("exhaust", "small", `"small": bounded configurations; "large": the larger ones too (two minutes); or the name of one`)

// configurations lists every search with the number of its distinct states. A
// change of the core or of the model that changes what can happen changes a
// count: see that the change is meant, then write the count that the failure
// names. A lost branch of the search shows as a smaller one.
var configurations = []struct {
	Config
	states int
}{
	{Config{
		Name: "votes", Work: []Work{transfer(shard.WaitDecided, lock.X, yesNo, yesNo)},
		MaxAppendsInFlight: 3, Crashes: 1,
	}, 4655},
	{Config{
		Name: "ended early", Work: []Work{transfer(shard.WaitDecided, lock.X, yesNo, yesNo)},
		MaxAppendsInFlight: 3, Deadlines: 1, Rollbacks: 1,
	}, 8837},
	{Config{
		Name: "lost messages", Work: []Work{transfer(shard.WaitCompleted, lock.X, yes, yes)},
		MaxAppendsInFlight: 3, Crashes: 1, Timeouts: 1,
	}, 3639},
	{Config{
		Name: "two crashes", Work: []Work{transfer(shard.WaitDecided, lock.X, yes, yes)},
		MaxAppendsInFlight: 3, Crashes: 2,
	}, 2521},
	{Config{
		Name: "read-only", Work: []Work{transfer(shard.WaitCompleted, lock.X, yesRead, yesRead)},
		MaxAppendsInFlight: 3, Crashes: 1, Doubles: 1,
	}, 3315},
	{Config{
		Name: "deposed", Work: []Work{transfer(shard.WaitDecided, lock.X, yes, yes)},
		MaxAppendsInFlight: 3, Depose: 1,
	}, 3260},
	{Config{
		Name: "one-phase", Work: []Work{single(0, any3)},
		MaxAppendsInFlight: 3, Crashes: 1, Timeouts: 1, Rollbacks: 2, Deadlines: 1,
	}, 5311},
	{Config{
		Name: "one-phase deposed", Work: []Work{single(0, yesNo)},
		MaxAppendsInFlight: 3, Depose: 1, Late: 1, Rollbacks: 1,
	}, 2093},
	{Config{
		Name: "one-phase started over", Work: []Work{single(0, yesNo)},
		MaxAppendsInFlight: 3, Relead: 1, Rollbacks: 1, Gets: 1, Timeouts: 1,
	}, 6233},
	{Config{
		Name: "started over", Work: []Work{{Wait: shard.WaitDecided, Branches: []Part{{0, lock.X, yesNo}}}},
		MaxAppendsInFlight: 3, Relead: 1, Rollbacks: 2, Gets: 1,
	}, 9823},
	{Config{
		Name: "clients", Work: []Work{{Wait: shard.WaitCompleted, Branches: []Part{{0, lock.X, yesNo}}}},
		MaxAppendsInFlight: 1, Crashes: 1, Resubmits: 1, Rollbacks: 1, Cancels: 1,
	}, 6727},
	{Config{
		Name: "other body", Work: []Work{{Wait: shard.WaitDecided, Branches: []Part{{0, lock.X, yes}}}},
		MaxAppendsInFlight: 1, Crashes: 1, Conflicts: 1, Resubmits: 1,
	}, 712},
	{Config{
		Name: "contract broken", Work: []Work{transfer(shard.WaitCompleted, lock.X, yesNo, yes)},
		MaxAppendsInFlight: 3, Crashes: 1, Unilateral: 1,
	}, 6350},
	{Config{
		Name: "conflict", Work: []Work{transfer(shard.WaitDecided, lock.X, yes, yes), transfer(shard.WaitCompleted, lock.X, yes, yes)},
		MaxAppendsInFlight: 3, Deadlines: 1,
	}, 6520},
	{Config{
		Name: "conflict at one", Work: []Work{transfer(shard.WaitDecided, lock.X, yes, yes), {Wait: shard.WaitDecided, Branches: []Part{{0, lock.X, yes}}}},
		MaxAppendsInFlight: 3, Crashes: 1,
	}, 3295},
	{Config{
		Name: "conflict deposed", Work: []Work{{Wait: shard.WaitDecided, Branches: []Part{{0, lock.X, yes}}}, {Wait: shard.WaitDecided, Branches: []Part{{0, lock.X, yes}}}},
		MaxAppendsInFlight: 3, Depose: 1,
	}, 2582},
	{Config{
		Name: "conflict one-phase", Work: []Work{{Wait: shard.WaitDecided, Branches: []Part{{0, lock.X, yes}}}, single(0, yes)},
		MaxAppendsInFlight: 3, Crashes: 1, Deadlines: 1, Rollbacks: 1,
	}, 19524},
	{Config{
		Name: "shared and exclusive", Work: []Work{{Wait: shard.WaitDecided, Branches: []Part{{0, lock.S, yes}}}, {Wait: shard.WaitDecided, Branches: []Part{{0, lock.X, yes}}}},
		MaxAppendsInFlight: 3, Crashes: 1, Deadlines: 1,
	}, 3164},
	{Config{
		Name: "large votes", Large: true, Work: []Work{transfer(shard.WaitDecided, lock.X, yesNo, yesNo)},
		MaxAppendsInFlight: 3, Crashes: 1, Timeouts: 1, Deadlines: 1,
	}, 311291},
	{Config{
		Name: "large read-only", Large: true, Work: []Work{transfer(shard.WaitCompleted, lock.X, yesRead, yesRead)},
		MaxAppendsInFlight: 3, Crashes: 1, Timeouts: 1, Doubles: 1,
	}, 34215},
	{Config{
		Name: "large deposed", Large: true, Work: []Work{transfer(shard.WaitDecided, lock.X, yes, yes)},
		MaxAppendsInFlight: 3, Depose: 1, Late: 1,
	}, 6856},
	{Config{
		Name: "large one-phase", Large: true, Work: []Work{single(0, yesNo)},
		MaxAppendsInFlight: 3, Depose: 1, Late: 1, Timeouts: 1, Rollbacks: 1,
	}, 8953},
	{Config{
		Name: "large clients", Large: true, Work: []Work{{Wait: shard.WaitCompleted, Branches: []Part{{0, lock.X, yesNo}}}},
		MaxAppendsInFlight: 1, Crashes: 1, Resubmits: 1, Conflicts: 1, Rollbacks: 1, Gets: 1,
	}, 79094},
	{Config{
		Name: "large conflict", Large: true, Work: []Work{transfer(shard.WaitDecided, lock.X, yes, yes), transfer(shard.WaitCompleted, lock.X, yes, yes)},
		MaxAppendsInFlight: 3, Crashes: 1, Deadlines: 1,
	}, 110728},
	{Config{
		Name: "large conflict one-phase", Large: true, Work: []Work{{Wait: shard.WaitDecided, Branches: []Part{{0, lock.X, yes}}}, single(0, yes)},
		MaxAppendsInFlight: 3, Depose: 1, Late: 1, Deadlines: 1,
	}, 45434},
}

// A replay makes much garbage and keeps nothing.
func TestMain(m *testing.M) {
	flag.Parse()
	debug.SetGCPercent(400)
	os.Exit(m.Run())
}

func TestSearch(t *testing.T) {
	ran := 0
	for i := range configurations {
		c := &configurations[i]
		if *which != c.Name && *which != "large" && (c.Large || *which != "small") {
			continue
		}
		ran++
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			res, err := Search(&c.Config)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d states, %d transitions, %d ends, the farthest after %d choices", res.States, res.Transitions, res.Ends, res.Depth)
			if res.States != c.states {
				t.Errorf("%d distinct states, expected %d: if what can happen was changed on purpose, write %d into the table of configurations", res.States, c.states, res.States)
			}
		})
	}
	if ran == 0 {
		t.Fatalf("no configuration %q", *which)
	}
}
