package lock

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/assent-tx/assent/internal/txnid"
)

// TestScenarios runs testdata/scenario/*; `go test -run Scenarios -rewrite` writes
// what the table does now. Owners are t1, t2, ...; the table is checked after
// each command.
//
//	claim t1 at=10        its needs, one "MODE key" a line, are folded and claimed
//	extend t1 at=10       as claim, for a further step
//	abandon t1            gives up what t1 waits for; tells who woke
//	cycle                 the next cycle of waiting and who should give way
//	wound-wait            turns the policy on
//	wound [sealed=t1]     the next wait of an elder behind a younger that is not sealed
//	wound-of t1           an elder that waits for t1
//	restart t1            gives all back and claims again; tells who woke
//	list [after=K] [max=N] [prefix=P] [waited]   keys, how many hold, how many wait
//	release t1 bank       gives back t1's nodes at the service; tells who woke
//	drop t1               ends t1's claim; tells who woke
//	waiting t1 [max=N]    what t1 waits for and at most N (8) of those in its way
//	contended t1 bank     does anybody wait for what t1 holds there?
//	fold                  the folded set of the needs
//	print                 the whole table
//	snapshot-restore      goes on with a table restored from a snapshot
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/scenario", func(t *testing.T, path string) {
		table := NewTable()
		names := strings.NewReplacer() // ids back to t1, t2, ...
		known := []string{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			owner := func() txnid.ID {
				name := d.CmdArgs[0].Key
				n, err := strconv.ParseUint(strings.TrimPrefix(name, "t"), 10, 48)
				if err != nil {
					d.Fatalf(t, "owner %q", name)
				}
				id := txnid.Floor(n)
				known = append(known, id.String(), name)
				names = strings.NewReplacer(known...)
				return id
			}
			needs := func() (set []Need) {
				for line := range strings.Lines(d.Input) {
					mode, key, _ := strings.Cut(strings.TrimSpace(line), " ")
					for m := range Mode(modes) {
						if m.String() == mode {
							set = append(set, Need{Key: key, Mode: m})
						}
					}
				}
				return Fold(set)
			}
			woke := func(ids []txnid.ID) string {
				if len(ids) == 0 {
					return "woke nobody\n"
				}
				return names.Replace(fmt.Sprintln("woke", ids))
			}
			var out string
			switch d.Cmd {
			case "claim":
				id := owner()
				var at uint64
				d.ScanArgs(t, "at", &at)
				if table.Claim(id, at, needs()) {
					out = "granted\n"
				} else {
					need, _, _ := table.Waiting(id, 0)
					out = fmt.Sprintf("waits for %s %s\n", need.Mode, need.Key)
				}
			case "extend":
				id := owner()
				var at uint64
				d.ScanArgs(t, "at", &at)
				if table.Extend(id, at, needs()) {
					out = "granted\n"
				} else {
					need, _, _ := table.Waiting(id, 0)
					out = fmt.Sprintf("waits for %s %s\n", need.Mode, need.Key)
				}
			case "abandon":
				out = woke(table.Abandon(owner(), nil))
			case "restart":
				granted, woken := table.Restart(owner(), nil)
				out = fmt.Sprintf("granted %v, %s", granted, woke(woken))
			case "cycle":
				cycle := table.NextCycle()
				for _, w := range cycle {
					out += names.Replace(fmt.Sprintf("%s waits for %s %s behind %s\n", w.Owner, w.Mode, w.Key, w.For))
				}
				if cycle == nil {
					out = "none\n"
				} else {
					out += names.Replace(fmt.Sprintf("victim %s\n", table.Victim(cycle)))
				}
			case "wound-wait":
				table.WoundWait()
				out = "ok\n"
			case "wound", "wound-of":
				var w Wait
				var found bool
				if d.Cmd == "wound" {
					sealed := ""
					d.MaybeScanArgs(t, "sealed", &sealed)
					w, found = table.NextWound(func(id txnid.ID) bool { return names.Replace(id.String()) != sealed })
				} else {
					w, found = table.WoundOf(owner())
				}
				if out = "none\n"; found {
					out = names.Replace(fmt.Sprintf("%s waits for %s %s behind %s\n", w.Owner, w.Mode, w.Key, w.For))
				}
			case "list":
				after, prefix, limit := "", "", 100
				d.MaybeScanArgs(t, "after", &after)
				d.MaybeScanArgs(t, "prefix", &prefix)
				d.MaybeScanArgs(t, "max", &limit)
				waited := d.HasArg("waited")
				for _, n := range table.List(above(after), limit, func(key string, waiters int) bool {
					return strings.HasPrefix(key, prefix) && (!waited || waiters > 0)
				}) {
					out += fmt.Sprintf("%s: %d hold, %d wait\n", n.Key, len(n.Holders), len(n.Waiters))
				}
			case "release":
				out = woke(table.Release(owner(), d.CmdArgs[1].Key, nil))
			case "drop":
				out = woke(table.Drop(owner(), nil))
			case "waiting":
				limit := 8
				d.MaybeScanArgs(t, "max", &limit)
				need, blockers, ok := table.Waiting(owner(), limit)
				if !ok {
					out = "waits for nothing\n"
					break
				}
				out = names.Replace(fmt.Sprintf("%s %s behind %v\n", need.Mode, need.Key, blockers))
			case "contended":
				out = fmt.Sprintln(table.Contended(owner(), d.CmdArgs[1].Key))
			case "fold":
				for _, n := range needs() {
					out += fmt.Sprintf("%-3s %s\n", n.Mode, n.Key)
				}
			case "print":
				out = names.Replace(table.String())
				if out == "" {
					out = "empty\n"
				}
			case "snapshot-restore":
				before := table.AppendSnapshot(nil)
				table = NewTable()
				if _, err := table.Restore(SnapshotVersion, before); err != nil {
					d.Fatalf(t, "%v", err)
				}
				if !bytes.Equal(table.AppendSnapshot(nil), before) {
					d.Fatalf(t, "the restored table has another snapshot")
				}
				out = "ok\n"
			default:
				d.Fatalf(t, "unknown command %q", d.Cmd)
			}
			if err := table.Check(); err != nil {
				d.Fatalf(t, "%v", err)
			}
			return out
		})
	})
}

// above is the least text behind a key; none is behind no key.
func above(key string) string {
	if key == "" {
		return ""
	}
	return key + "\x00"
}
