package exhaust

import (
	"encoding/json"
	"os"
	"runtime/debug"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/shard"
)

func init() { debug.SetGCPercent(400) }

func TestTune(t *testing.T) {
	base := map[string][]Work{
		"2p":  {transfer(shard.WaitDecided, lock.X, yesNo, yesNo)},
		"2py": {transfer(shard.WaitDecided, lock.X, yes, yes)},
		"1p":  {single(0, yesNo)},
		"1b":  {{Wait: shard.WaitCompleted, Branches: []Part{{0, lock.X, yesNo}}}},
		"ro":  {transfer(shard.WaitCompleted, lock.X, yesRead, yesRead)},
		"cc":  {transfer(shard.WaitDecided, lock.X, yes, yes), transfer(shard.WaitDecided, lock.X, yes, yes)},
		"c1":  {{Wait: shard.WaitDecided, Branches: []Part{{0, lock.X, yes}}}, single(0, yes)},
		"c2":  {{Wait: shard.WaitDecided, Branches: []Part{{0, lock.X, yes}}}, {Wait: shard.WaitDecided, Branches: []Part{{0, lock.X, yes}}}},
		"cs":  {transfer(shard.WaitDecided, lock.X, yes, yes), {Wait: shard.WaitDecided, Branches: []Part{{0, lock.X, yes}}}},
	}
	cfg := Config{MaxAppendsInFlight: 3}
	cfg.Work = base[os.Getenv("W")]
	if err := json.Unmarshal([]byte(os.Getenv("C")), &cfg); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	res, err := Search(&cfg)
	t.Logf("%s %s: %+v in %v", os.Getenv("W"), os.Getenv("C"), res, time.Since(start))
	if err != nil {
		t.Fatal(err)
	}
}
