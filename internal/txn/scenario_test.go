package txn

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txnid"
)

const epochMs = 1_750_000_000_000

// TestScenarios runs testdata/scenario/*; `go test -run Scenarios -rewrite` writes
// what the machine does now. Each line of a directive's input is a command of one
// entry; the directive prints the effects. Transactions are t1, t2, ...: the id of
// tN was made N seconds after the epoch of the test. The state is checked after
// each entry.
//
//	apply [term=T] [in=T] [at=MS]   applies one entry with the commands below, appended in
//	                                term T (the last one), computed in term in= (the same), MS
//	                                milliseconds after the epoch (the last time)
//	  boot [shard=0] [shards=1]     lead NODE
//	  begin tN a b=G c... [one-phase] [isolated] [body=N] [S|X key]...
//	                                branches at services, of generation G (1); keys are
//	                                "service/key" and are folded
//	  open tN [retry=tM] [body=N]   seal tN
//	  enlist tN STEP [now|later SERVICE...]... [S|U|X key]... [other]
//	                                other: with another body
//	  commit tN yes=0,1 [ro=2] [enlisted=N]
//	  abort tN REASON [refused]     ack tN BRANCH [unknown|committed|rolled_back]
//	  forget COUNT [before=MS]      resolve tN NOTE
//	  put-service NAME [isolated] [one_phase] [read_only] [url=U]
//	  drain NAME                    remove NAME
//	  level N
//	  put-member ID [name=N] [level=L] [peer=A] [draining]
//	  remove-member ID              place SHARD ID...
//	print                           the state
//	forgotten                       F and W
//	hash-equal                      a snapshot restored from here has the same hash
//	snapshot-restore                goes on with a state restored from a snapshot
//	describe                        the commands of the last entry, for people
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/scenario", func(t *testing.T, path string) {
		m := &machine{st: New(0, 1), term: 1}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string { return m.run(t, d) })
	})
}

type machine struct {
	st    *State
	index uint64
	term  uint64
	ms    uint64
	last  []byte
}

func testID(n int) txnid.ID {
	return txnid.New(epochMs+uint64(n)*1000, [10]byte{8: byte(n >> 8), 9: byte(n)})
}

// short writes t1, t2, ... for ids.
func short(text string) string {
	for n := range 128 {
		text = strings.ReplaceAll(text, testID(n).String(), "t"+strconv.Itoa(n))
	}
	return strings.ReplaceAll(text, strconv.FormatUint(epochMs, 10)[:7], "")
}

func (m *machine) run(t *testing.T, d *datadriven.TestData) string {
	switch d.Cmd {
	case "apply":
		d.MaybeScanArgs(t, "term", &m.term)
		computed := m.term
		d.MaybeScanArgs(t, "in", &computed)
		d.MaybeScanArgs(t, "at", &m.ms)
		entry := make([]byte, HeaderBytes)
		PutHeader(entry, computed, epochMs+m.ms)
		for line := range strings.Lines(d.Input) {
			var err error
			if entry, err = appendLine(entry, strings.Fields(line)); err != nil {
				d.Fatalf(t, "%q: %v", line, err)
			}
		}
		m.index++
		m.last = entry
		var effects []Effect
		if err := m.st.Apply(m.index, m.term, entry, &effects); err != nil {
			return fmt.Sprintf("halts: %v\n", err)
		}
		if err := m.st.Check(); err != nil {
			d.Fatalf(t, "%v", err)
		}
		var b strings.Builder
		for i := range effects {
			b.WriteString(short(effectText(&effects[i])))
		}
		return b.String()
	case "print":
		return short(m.st.String())
	case "forgotten":
		f := "none"
		if id := m.st.Forgotten(); !id.IsZero() {
			f = fmt.Sprintf("below %d ms", int64(id.UnixMs())-epochMs)
			if m.st.Get(id) != nil {
				f = "below " + short(id.String())
			}
		}
		w := int64(0)
		if m.st.Watermark() > 0 {
			w = int64(m.st.Watermark()) - epochMs
		}
		return fmt.Sprintf("forgotten %s, W=%d ms\n", f, w)
	case "hash-equal", "snapshot-restore":
		restored, err := Restore(0, 1, snapshotOf(m.st))
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		if restored.Hash() != m.st.Hash() || restored.String() != m.st.String() {
			d.Fatalf(t, "the restored state differs:\n%s\n%s", restored, m.st)
		}
		if d.Cmd == "snapshot-restore" {
			m.st = restored
		}
		return "ok\n"
	case "describe":
		lines, err := Describe(m.last)
		if err != nil {
			return err.Error() + "\n"
		}
		return short(strings.Join(lines, "\n") + "\n")
	}
	d.Fatalf(t, "unknown command %q", d.Cmd)
	return ""
}

func snapshotOf(s *State) []byte {
	var out []byte
	_ = s.Capture().Write(func(b []byte) error {
		out = append(out, b...)
		return nil
	})
	return out
}

var effectNames = [...]string{
	EffectBooted: "booted", EffectLed: "led", EffectStale: "stale", EffectBegan: "began", EffectBeginRepeated: "begin repeated",
	EffectBeginRefused: "begin refused", EffectBlocked: "blocked", EffectGranted: "granted", EffectDecided: "decided", EffectDecisionIgnored: "decision ignored",
	EffectAcked: "acked", EffectEnded: "ended", EffectForgotten: "forgotten", EffectForgetDone: "forget done", EffectHazard: "hazard", EffectResolved: "resolved",
	EffectServicePut: "service put", EffectServiceRefused: "service refused", EffectServiceDraining: "service draining", EffectServiceRemoved: "service removed",
	EffectStepTaken: "step taken", EffectStepRepeated: "step repeated", EffectStepRefused: "step refused", EffectStepBlocked: "step blocked",
	EffectStepGranted: "step granted", EffectSealed: "sealed", EffectSealRefused: "seal refused", EffectDeadlock: "deadlock: gives way",
	EffectLevel: "level", EffectMemberPut: "member put", EffectMemberRemoved: "member removed", EffectMemberRefused: "member refused", EffectPlaced: "placed",
}

func effectText(e *Effect) string {
	text := effectNames[e.Kind]
	if !e.ID.IsZero() {
		text += " " + e.ID.String()
	} else if e.Txn != nil {
		text += " " + e.Txn.ID.String()
	}
	if e.Kind == EffectAcked || e.Kind == EffectHazard {
		text += fmt.Sprintf(" branch %d %s", e.Branch, e.Txn.Branches[e.Branch].Fate)
	}
	if e.Txn != nil && e.Kind == EffectDecided {
		text += " " + map[bool]string{true: "commit", false: "abort"}[e.Txn.Abort == nil]
	}
	if e.Reason != "" {
		text += " " + string(e.Reason)
	}
	if e.Name != "" {
		text += " " + e.Name
	}
	if e.Step > 0 {
		text += fmt.Sprintf(" step %d", e.Step)
	}
	for _, w := range e.Cycle {
		text += fmt.Sprintf("; %s waits for %s %s behind %s", w.Owner, w.Mode, w.Key, w.For)
	}
	if e.Service != nil {
		text += fmt.Sprintf(" generation %d", e.Service.Generation)
	}
	return text + "\n"
}

// appendLine encodes one command of the test language.
func appendLine(dst []byte, words []string) ([]byte, error) {
	if len(words) == 0 {
		return dst, nil
	}
	flags := map[string]string{}
	var args []string
	for _, word := range words[1:] {
		if k, v, ok := strings.Cut(word, "="); ok && words[0] != "begin" {
			flags[k] = v
		} else {
			args = append(args, word)
		}
	}
	if len(args) == 0 {
		args = append(args, "")
	}
	var id txnid.ID
	if n, err := strconv.Atoi(strings.TrimPrefix(args[0], "t")); err == nil && args[0][0] == 't' {
		id = testID(n)
	}
	switch words[0] {
	case "boot":
		return AppendBoot(dst, Boot{Cluster: [16]byte{1}, Incarnation: 1, Shard: uint32(atoi(flags["shard"], 0)), Shards: uint32(atoi(flags["shards"], 1))}), nil
	case "lead":
		return AppendLead(dst, Lead{Node: args[0]}), nil
	case "begin":
		return AppendBegin(dst, beginOf(id, words[2:])), nil
	case "open":
		c := &Open{ID: id, Digest: [32]byte{byte(atoi(flags["body"], 1))}, TimeoutMs: 1000, IdleMs: 500}
		if v, ok := flags["retry"]; ok {
			c.RetryOf = testID(atoi(strings.TrimPrefix(v, "t"), 0))
		}
		return AppendOpen(dst, c), nil
	case "enlist":
		return AppendEnlist(dst, enlistOf(id, args[1:])), nil
	case "seal":
		return AppendSeal(dst, id), nil
	case "commit":
		c := Commit{ID: id, Yes: indices(flags["yes"]), ReadOnly: indices(flags["ro"])}
		c.Enlisted = uint32(atoi(flags["enlisted"], len(c.Yes)+len(c.ReadOnly)))
		return AppendCommit(dst, c), nil
	case "abort":
		return AppendAbort(dst, AbortCmd{ID: id, Reason: reason.Code(args[1]), Refused: len(args) > 2}), nil
	case "ack":
		fate := FateDone
		if len(args) > 2 {
			fate = map[string]Fate{"unknown": FateHazardUnknown, "committed": FateHazardCommitted, "rolled_back": FateHazardRolledBack, "open": FateOpen}[args[2]]
		}
		return AppendAck(dst, Ack{ID: id, Branch: uint32(atoi(args[1], 0)), Fate: fate}), nil
	case "forget":
		c := Forget{Count: uint32(atoi(args[0], 0))}
		if v, ok := flags["before"]; ok {
			c.EndedBeforeMs = epochMs + uint64(atoi(v, 0))
		}
		return AppendForget(dst, c), nil
	case "resolve":
		return AppendResolve(dst, id, args[1]), nil
	case "put-service":
		v := &Service{Name: args[0], PrepareURL: flags["url"], Capabilities: Tombstone}
		for _, a := range args[1:] {
			v.Isolated = v.Isolated || a == "isolated"
			v.Capabilities |= map[string]Capability{"one_phase": OnePhase, "read_only": ReadOnly}[a]
		}
		return AppendPutService(dst, v), nil
	case "drain":
		return AppendDrainService(dst, args[0]), nil
	case "remove":
		return AppendRemoveService(dst, args[0]), nil
	case "level":
		return AppendLevel(dst, uint32(atoi(args[0], 0))), nil
	case "put-member":
		m := &Member{ID: args[0], Name: args[0], Peer: flags["peer"], Level: uint32(atoi(flags["level"], 0)), Draining: len(args) > 1}
		if name, ok := flags["name"]; ok {
			m.Name = name
		}
		return AppendPutMember(dst, m), nil
	case "remove-member":
		return AppendRemoveMember(dst, args[0]), nil
	case "place":
		return AppendPlace(dst, Place{Shard: uint32(atoi(args[0], 0)), Voters: args[1:]}), nil
	case "unknown-kind":
		return append(dst, 200), nil
	}
	return nil, fmt.Errorf("unknown command %q", words[0])
}

func beginOf(id txnid.ID, words []string) *Begin {
	c := &Begin{ID: id, Digest: [32]byte{1}, TimeoutMs: 1000}
	var needs []lock.Need
	isolated := false
	for i := 0; i < len(words); i++ {
		name, value, _ := strings.Cut(words[i], "=")
		switch {
		case name == "one-phase":
			c.OnePhase = true
		case name == "isolated":
			isolated = true
		case name == "body":
			c.Digest[0] = byte(atoi(value, 1))
		case name == "S" || name == "X":
			i++
			needs = append(needs, lock.Need{Key: words[i], Mode: map[string]lock.Mode{"S": lock.S, "X": lock.X}[name]})
		default:
			c.Branches = append(c.Branches, BeginBranch{Service: name, Generation: uint64(atoi(value, 1)), Ops: [][]byte{[]byte(`{}`)}})
		}
	}
	for i := range c.Branches {
		c.Branches[i].Isolated = isolated
	}
	c.Locks = lock.Fold(needs)
	return c
}

// enlistOf: STEP, then "now" or "later" before the services of operations, and modes
// before keys.
func enlistOf(id txnid.ID, words []string) *Enlist {
	c := &Enlist{ID: id, Step: uint32(atoi(words[0], 1)), Digest: [32]byte{1}}
	var needs []lock.Need
	now := false
	for i := 1; i < len(words); i++ {
		switch word := words[i]; word {
		case "now", "later":
			now = word == "now"
		case "other":
			c.Digest[0] = 2
		case "S", "X", "U":
			i++
			needs = append(needs, lock.Need{Key: words[i], Mode: map[string]lock.Mode{"S": lock.S, "X": lock.X, "U": lock.U}[word]})
		default:
			at := -1
			for j := range c.Branches {
				if c.Branches[j].Service == word {
					at = j
				}
			}
			if at < 0 {
				at = len(c.Branches)
				c.Branches = append(c.Branches, EnlistBranch{Service: word, Generation: 1})
			}
			c.Ops = append(c.Ops, EnlistOp{Branch: uint32(at), Now: now, Payload: []byte(`{}`)})
		}
	}
	c.Locks = lock.Fold(needs)
	return c
}

func atoi(s string, otherwise int) int {
	if n, err := strconv.Atoi(s); err == nil {
		return n
	}
	return otherwise
}

func indices(s string) (list []uint32) {
	for _, part := range strings.Split(s, ",") {
		if part != "" {
			list = append(list, uint32(atoi(part, 0)))
		}
	}
	return list
}

// TestRestoreReadsEarlierVersions: snapshots of versions without interactive transactions,
// without locks over several shards, and without members, with what was open, ended, and
// hazardous then. The last is what is written until the level is raised.
func TestRestoreReadsEarlierVersions(t *testing.T) {
	for _, version := range []string{"v1", "v2", "v3"} {
		old, err := os.ReadFile("testdata/golden/snapshot-" + version + ".bin")
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile("testdata/golden/snapshot-" + version + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		st, err := Restore(0, 1, old)
		if err != nil {
			t.Fatal(err)
		}
		if st.String() != string(want) || (st.Level() == 0) != (version < "v3") {
			t.Errorf("%s: got\n%s\nwant\n%s", version, st, want)
		}
		again, err := Restore(0, 1, snapshotOf(st))
		if err != nil || again.Hash() != st.Hash() {
			t.Errorf("%s: and on from there: %v", version, err)
		}
		if version == "v3" && !bytes.Equal(snapshotOf(st), old) {
			t.Error("at its level another snapshot is written than by the version before")
		}
	}
}
