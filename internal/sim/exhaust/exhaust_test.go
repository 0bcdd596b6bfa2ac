package exhaust

import (
	"flag"
	"testing"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/shard"
)

var which = flag.String("exhaust", "small", `"small": bounded configurations; "large": the larger ones too (an hour and 30 GB); or the name of one`)

// configurations lists every search with the number of its distinct states. A
// change of the core or of the model that changes what can happen changes a
// count: see that the change is meant, then write the count that the failure
// names. A lost branch of the search shows as a smaller one.
var configurations = []struct {
	Config
	states int
}{
	{Config{
		Name: "two-phase", Work: []Work{transfer(shard.WaitDecided, lock.X, yesNo, yesNo)},
		MaxAppendsInFlight: 3, Crashes: 1, Timeouts: 1, Deadlines: 1, Rollbacks: 1,
	}, 1},
	{Config{
		Name: "read-only", Work: []Work{transfer(shard.WaitCompleted, lock.X, yesRead, yesRead)},
		MaxAppendsInFlight: 3, Crashes: 1, Timeouts: 1, Doubles: 1, Rollbacks: 1,
	}, 1},
	{Config{
		Name: "one-phase", Work: []Work{single(0, any3)},
		MaxAppendsInFlight: 3, Crashes: 2, Timeouts: 2, Doubles: 1, Deadlines: 1, Rollbacks: 2, Gets: 1,
	}, 1},
	{Config{
		Name: "deposed", Work: []Work{transfer(shard.WaitDecided, lock.X, yes, yes)},
		MaxAppendsInFlight: 3, Depose: 1, Late: 1, Deadlines: 1,
	}, 1},
	{Config{
		Name: "clients", Work: []Work{{Wait: shard.WaitCompleted, Branches: []Part{{0, lock.X, yesNo}}}},
		MaxAppendsInFlight: 1, Crashes: 1, Resubmits: 1, Conflicts: 1, Rollbacks: 1, Gets: 1, Cancels: 1,
	}, 1},
	{Config{
		Name: "started over", Work: []Work{{Wait: shard.WaitDecided, Branches: []Part{{0, lock.X, yesNo}}}},
		MaxAppendsInFlight: 3, Relead: 2, Timeouts: 1, Rollbacks: 2, Gets: 1, Resubmits: 1,
	}, 1},
	{Config{
		Name: "contract broken", Work: []Work{transfer(shard.WaitCompleted, lock.X, yesNo, yes)},
		MaxAppendsInFlight: 3, Crashes: 1, Timeouts: 1, Unilateral: 1,
	}, 1},
	{Config{
		Name: "conflict", Work: []Work{transfer(shard.WaitDecided, lock.X, yes, yes), transfer(shard.WaitDecided, lock.X, yes, yes)},
		MaxAppendsInFlight: 3, Deadlines: 1,
	}, 1},
	{Config{
		Name: "conflict one-phase", Work: []Work{{Wait: shard.WaitDecided, Branches: []Part{{0, lock.X, yesNo}}}, single(0, yesNo)},
		MaxAppendsInFlight: 3, Crashes: 1, Deadlines: 1, Rollbacks: 1,
	}, 1},
}

func TestSearch(t *testing.T) {
	for i := range configurations {
		c := &configurations[i]
		if *which != c.Name && *which != "large" && (c.Large || *which != "small") {
			continue
		}
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
}
