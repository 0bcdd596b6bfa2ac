package txn

import (
	"bytes"
	"errors"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
)

// entryOf is one entry of term 1 with these commands.
func entryOf(commands ...[]byte) []byte {
	entry := bytes.Join(append([][]byte{make([]byte, HeaderBytes)}, commands...), nil)
	PutHeader(entry, 1, epochMs+60_000)
	return entry
}

func oneOfEach() [][]byte {
	b := beginOf(testID(1), []string{"a", "b=2", "X", "a/k/l", "S", "b"})
	b.TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	return [][]byte{
		AppendBoot(nil, Boot{Cluster: [16]byte{7}, Incarnation: 2, Shard: 0, Shards: 1}),
		AppendLead(nil, Lead{Node: "n1"}),
		AppendBegin(nil, b),
		AppendCommit(nil, Commit{ID: testID(1), Enlisted: 2, Yes: []uint32{1}, ReadOnly: []uint32{0}}),
		AppendAbort(nil, AbortCmd{ID: testID(2), Reason: reason.ClientRollback, Message: "m", Service: "a", Refused: true}),
		AppendAck(nil, Ack{ID: testID(1), Branch: 1, Fate: FateHazardUnknown}),
		AppendForget(nil, Forget{Count: 3, EndedBeforeMs: epochMs}),
		AppendPutService(nil, &Service{Name: "c", PrepareURL: "http://c/p", Resources: []string{"r"}, Capabilities: OnePhase | Tombstone, MaxInFlight: 9, PrepareTimeoutMs: 3000}),
		AppendDrainService(nil, "c"),
		AppendRemoveService(nil, "c"),
		AppendResolve(nil, testID(1), "looked at it"),
	}
}

// newerOfEach are the kinds of later versions.
func newerOfEach() [][]byte {
	needs := lock.Fold([]lock.Need{{Key: "a/k", Mode: lock.X}})
	return [][]byte{
		AppendLevel(nil, Level),
		AppendOpen(nil, &Open{ID: testID(30), Digest: [32]byte{1}, TimeoutMs: 1000, IdleMs: 500, RetryOf: testID(31), TraceParent: "tp"}),
		AppendEnlist(nil, &Enlist{
			ID: testID(30), Step: 1, Digest: [32]byte{2}, Branches: []EnlistBranch{{Service: "a", Generation: 1}},
			Ops: []EnlistOp{{Now: true, Payload: []byte("1")}, {Payload: []byte("2")}}, Locks: needs,
		}),
		AppendSeal(nil, testID(30)),
		AppendPutService(nil, &Service{Name: "d", PrepareURL: "http://d/p", ExecuteURL: "http://d/e", Capabilities: Tombstone}),
		AppendPutService(nil, &Service{Name: "e", PrepareURL: "http://e/p", Capabilities: Tombstone, Partitions: 3}),
		AppendClaim(nil, &ClaimCmd{ID: testID(40), AgeMs: 7, Request: 1, Whole: true, Needs: needs}),
		AppendLocked(nil, Locked{ID: testID(30), Shard: 1, Request: 2, Token: 9}),
		AppendYield(nil, Yield{ID: testID(30), Shard: 1, Request: 2}),
		AppendRelease(nil, Release{ID: testID(40), Service: "a", Waiting: true, Token: 300}),
		AppendDrainHere(nil, "d", 4),
		AppendPutMember(nil, &Member{ID: "n1@1", Name: "n1", Peer: "p:1", HTTP: "http://h:1", GRPC: "g:1", Level: Level, Draining: true}),
		AppendPutMember(nil, &Member{ID: "n2@1", Name: "n2"}),
		AppendPutMember(nil, &Member{ID: "n3@1", Name: "n3"}),
		AppendPlace(nil, Place{Shard: 0, Voters: []string{"n2@1", "n1@1"}}),
		AppendRemoveMember(nil, "n3@1"),
		AppendVerify(nil),
		AppendHash(nil, 1, [32]byte{1, 2}),
	}
}

// spreadOfEach are the kinds that make sense in a cluster of several shards only.
func spreadOfEach() [][]byte {
	parts := []LockPart{{Shard: 1, Needs: lock.Fold([]lock.Need{{Key: "b/k", Mode: lock.S}})}, {Shard: 2, Needs: lock.Fold([]lock.Need{{Key: "c", Mode: lock.X}})}}
	b := beginOf(testID(60), []string{"a", "b", "c", "X", "a/k"})
	b.Foreign = parts
	return [][]byte{
		AppendBegin(nil, b),
		AppendOpen(nil, &Open{ID: testID(61), TimeoutMs: 1000, IdleMs: 500}),
		AppendEnlist(nil, &Enlist{ID: testID(61), Step: 1, Foreign: parts}),
	}
}

// A state with open, waiting, ended and doubtful transactions.
func busyState(t testing.TB) *State {
	s := New(0, 1)
	var effects []Effect
	commands := oneOfEach()
	for _, words := range [][]string{{"a", "X", "a/k"}, {"a", "b=2", "X", "a/k", "S", "b/m"}, {"b=2"}} {
		commands = append(commands, AppendBegin(nil, beginOf(testID(len(commands)), words)))
	}
	if err := s.Apply(1, 1, entryOf(commands...), &effects); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	return s
}

// Whatever bytes a log holds, a replica halts with an error or goes on in a state
// whose invariants hold and that a snapshot reproduces.
func FuzzApply(f *testing.F) {
	for _, c := range oneOfEach() {
		f.Add(entryOf(c)[HeaderBytes:])
	}
	f.Add(bytes.Join(oneOfEach(), nil))
	for _, c := range append(newerOfEach(), spreadOfEach()...) {
		f.Add(entryOf(c)[HeaderBytes:])
	}
	f.Add(bytes.Join(newerOfEach(), nil))
	f.Fuzz(func(t *testing.T, commands []byte) {
		s := busyState(t)
		var effects []Effect
		err := s.Apply(2, 1, entryOf(commands), &effects)
		if lines, derr := Describe(entryOf(commands)); derr != nil && err == nil {
			t.Fatalf("applied, but cannot be described: %v after %q", derr, lines)
		}
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("not a format error: %v", err)
			}
			return
		}
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		restored, err := Restore(0, 1, snapshotOf(s))
		if err != nil || restored.Hash() != s.Hash() {
			t.Fatalf("restored otherwise: %v", err)
		}
	})
}

// Describe takes anything.
func FuzzDescribe(f *testing.F) {
	f.Add(entryOf(oneOfEach()...))
	f.Fuzz(func(t *testing.T, entry []byte) {
		if _, err := Describe(entry); err != nil && !errors.Is(err, ErrFormat) {
			t.Fatal(err)
		}
	})
}

// A snapshot of any bytes is refused, or is a state that can go on and whose own
// snapshot is the same.
func FuzzRestore(f *testing.F) {
	f.Add(snapshotOf(busyState(f)))
	f.Add(snapshotOf(New(0, 1)))
	f.Fuzz(func(t *testing.T, snapshot []byte) {
		s, err := Restore(0, 1, snapshot)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("not a format error: %v", err)
			}
			return
		}
		again, err := Restore(0, 1, snapshotOf(s))
		if err != nil || again.Hash() != s.Hash() {
			t.Fatalf("its own snapshot restores otherwise: %v", err)
		}
		// What is open can be ended.
		index, term := s.Applied(), s.Term()
		if index+1 == 0 {
			return
		}
		var commands [][]byte
		for _, id := range s.LiveIDs() {
			commands = append(commands, AppendAbort(nil, AbortCmd{ID: id, Reason: reason.Timeout, Refused: true}))
			for i := range s.Get(id).Branches {
				commands = append(commands, AppendAck(nil, Ack{ID: id, Branch: uint32(i), Fate: FateDone}))
			}
		}
		entry := entryOf(commands...)
		PutHeader(entry, term, s.NowMs())
		var effects []Effect
		if err := s.Apply(index+1, term, entry, &effects); err != nil {
			t.Fatal(err)
		}
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		if s.Live() > 0 {
			t.Fatalf("%d transactions cannot be ended:\n%s", s.Live(), s)
		}
	})
}

// Every command comes out as it went in.
func TestRoundTrip(t *testing.T) {
	read := func(entry []byte) *reader { return &reader{b: entry[1:]} }
	b := beginOf(testID(1), []string{"a", "b=2", "one-phase", "isolated", "X", "a/k/l", "S", "b"})
	b.TraceParent = "tp"
	b.Branches[1].Digest[5] = 9
	if got := read(AppendBegin(nil, b)).begin(false, func(s string) string { return s }); !reflect.DeepEqual(got, b) {
		t.Errorf("BEGIN %+v, was %+v", got, b)
	}
	v := &Service{
		Name: "s", Generation: 4, PrepareURL: "p", CommitURL: "c", RollbackURL: "r", StatusURL: "s", Resources: []string{"x", "y"}, Capabilities: ReadOnly,
		Isolated: true, RequireKeys: true, MaxInFlight: 1, PrepareTimeoutMs: 2, FinishTimeoutMs: 3, RegisteredMs: 4, UpdatedMs: 5, Draining: true,
	}
	if got := read(AppendPutService(nil, v)).service(); !reflect.DeepEqual(got, v) {
		t.Errorf("PUT_SERVICE %+v, was %+v", got, v)
	}
	lines, err := Describe(entryOf(oneOfEach()...))
	if err != nil || len(lines) != len(oneOfEach()) {
		t.Fatalf("%d lines of %d commands: %v", len(lines), len(oneOfEach()), err)
	}
	// The others change a state in every field that they carry.
	s := New(0, 1)
	var effects []Effect
	entry := entryOf(oneOfEach()...)
	PutHeader(entry, 1, epochMs+2_000) // too early to forget
	if err := s.Apply(1, 1, entry, &effects); err != nil {
		t.Fatal(err)
	}
	one, two := s.Get(testID(1)), s.Get(testID(2))
	if cluster, incarnation := s.Cluster(); cluster != [16]byte{7} || incarnation != 2 || s.Term() != 1 {
		t.Errorf("BOOT, LEAD: %v %d, term %d", cluster, incarnation, s.Term())
	}
	if one.Branches[0].Fate != FateReadOnly || one.Branches[1].Fate != FateHazardUnknown || one.Status != Committed || one.Resolution != "looked at it" {
		t.Errorf("COMMIT, ACK, RESOLVE: %+v", one)
	}
	if want := (Abort{reason.ClientRollback, "m", "a"}); *two.Abort != want {
		t.Errorf("ABORT: %+v", two.Abort)
	}
	if s.Service("c") != nil {
		t.Error("REMOVE_SERVICE did nothing")
	}
}

// What later versions write comes out as it went in, and can be told to people.
func TestRoundTripOfLaterKinds(t *testing.T) {
	commands := append(spreadOfEach(), newerOfEach()...)
	lines, err := Describe(entryOf(commands...))
	if err != nil || len(lines) != len(commands) {
		t.Fatalf("%d lines of %d commands: %v", len(lines), len(commands), err)
	}
	s := New(0, 3)
	var effects []Effect
	if err := s.Apply(1, 1, entryOf(commands...), &effects); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	one, two, claim := s.Get(testID(60)), s.Get(testID(61)), s.ForeignClaim(testID(40))
	if one == nil || len(one.Foreign) != 2 || one.Foreign[0].Shard != 1 || one.Foreign[1].Services[0] != "c" || one.Foreign[1].Keys != 1 || one.Status != Active {
		t.Errorf("BEGIN: %+v", one)
	}
	if two == nil || !two.StepPending || len(two.Foreign[0].Needs) != 2 || two.Foreign[0].Request != 1 {
		t.Errorf("ENLIST: %+v", two)
	}
	if claim == nil || !claim.Whole || claim.AgeMs != 7 || !claim.Over || s.Grants() < 300 || s.Level() != Level {
		t.Errorf("CLAIM, RELEASE, LEVEL: %+v, %d", claim, s.Grants())
	}
	if d, e := s.Service("d"), s.Service("e"); d.ExecuteURL == "" || e.Partitions != 3 || s.DrainedHere("d", 5) || !s.DrainedHere("d", 4) {
		t.Errorf("PUT_SERVICE, DRAIN_SERVICE: %+v %+v", d, e)
	}
	member := Member{ID: "n1@1", Name: "n1", Peer: "p:1", HTTP: "http://h:1", GRPC: "g:1", Level: Level, Draining: true, JoinedMs: s.NowMs(), UpdatedMs: s.NowMs()}
	if m := s.Member("n1@1"); m == nil || *m != member || len(s.Members()) != 2 || !slices.Equal(s.Placement(0), []string{"n1@1", "n2@1"}) || s.Placement(1) != nil || s.MembersVersion() != 1 {
		t.Errorf("PUT_MEMBER, PLACE, REMOVE_MEMBER: %+v %v", m, s.Placement(0))
	}
	restored, err := Restore(0, 3, snapshotOf(s))
	if err != nil || restored.Hash() != s.Hash() || restored.String() != s.String() || restored.MembersVersion() != 1 {
		t.Errorf("restored: %v\n%s\n%s", err, restored, s)
	}
	var again []Effect
	if err := New(1, 3).Apply(1, 1, entryOf(spreadOfEach()...), &again); !errors.Is(err, ErrFormat) {
		t.Errorf("a part for the shard itself: %v", err)
	}
}

// A key has one lock shard, whichever set it stands in; a lock on a whole service meets
// every key of it.
func TestSplitLocks(t *testing.T) {
	const shards = 5
	partitions := func(service string) uint32 { return map[string]uint32{"p": 3, "wide": 1000}[service] }
	set := lock.Fold([]lock.Need{{Key: "a/k/l", Mode: lock.X}, {Key: "a-b", Mode: lock.S}, {Key: "p/x", Mode: lock.X}, {Key: "p/y/z", Mode: lock.S}, {Key: "p/w", Mode: lock.X}, {Key: "wide/1", Mode: lock.S}})
	where := map[string]uint32{}
	for _, p := range SplitLocks(set, partitions, shards) {
		for i, n := range p.Needs {
			if i > 0 && p.Needs[i-1].Key >= n.Key {
				t.Errorf("shard %d: not in order: %v", p.Shard, p.Needs)
			}
			if strings.Contains(n.Key, "/") {
				if at, twice := where[n.Key]; twice {
					t.Errorf("%s at shards %d and %d", n.Key, at, p.Shard)
				}
				where[n.Key] = p.Shard
			}
		}
		for _, n := range p.Needs {
			if !slices.ContainsFunc(p.Needs, func(o lock.Need) bool { return o.Key == lock.Service(n.Key) }) {
				t.Errorf("shard %d: %s without its service", p.Shard, n.Key)
			}
		}
	}
	for _, n := range set {
		if _, there := where[n.Key]; strings.Contains(n.Key, "/") && !there {
			t.Errorf("%s is kept nowhere", n.Key)
		}
	}
	for service, n := range map[string]int{"a": 1, "p": 3, "wide": shards} {
		parts := SplitLocks(lock.Fold([]lock.Need{{Key: service, Mode: lock.X}}), partitions, shards)
		if len(parts) != n {
			t.Errorf("%s as a whole: %v", service, parts)
		}
		for key, at := range where {
			if lock.Service(key) == service && !slices.ContainsFunc(parts, func(p LockPart) bool { return p.Shard == at }) {
				t.Errorf("a lock on %s does not meet %s at shard %d", service, key, at)
			}
		}
	}
}

// A snapshot in which locks and transactions do not fit is refused: the first
// release would reach for a transaction that is not there, or panic.
func TestRestoreRefusesStrayLocks(t *testing.T) {
	for name, damage := range map[string]func(*State){
		"claim of nobody":       func(s *State) { s.locks.Claim(testID(40), epochMs, []lock.Need{{Key: "z", Mode: lock.X}}) },
		"claim of an ended one": func(s *State) { s.locks.Claim(testID(2), epochMs, []lock.Need{{Key: "z", Mode: lock.X}}) },
		"decided, but it waits": func(s *State) {
			s.txns[testID(12)].Status, s.txns[testID(12)].Branches[0].Fate = Committing, FateFinishing
		},
		"holds, but says it won't": func(s *State) { s.txns[testID(11)].locked = false },
	} {
		s := busyState(t)
		damage(s)
		if _, err := Restore(0, 1, snapshotOf(s)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Every cut of an entry halts the replica; none is taken for a shorter entry, but
// at the end of a command.
func TestCutEntriesHalt(t *testing.T) {
	for i, c := range append(append(oneOfEach(), newerOfEach()...), spreadOfEach()...) {
		for n := 1; n < len(c); n++ {
			s := New(0, 3)
			s.level = Level
			var effects []Effect
			if err := s.Apply(1, 1, entryOf(c[:n]), &effects); !errors.Is(err, ErrFormat) {
				t.Fatalf("command %d cut after %d of %d bytes: %v", i, n, len(c), err)
			}
		}
	}
}

// Few bytes cannot ask for much memory.
func TestDecodingAllocatesLittle(t *testing.T) {
	huge := append(AppendBegin(nil, beginOf(testID(1), []string{"a"}))[:1+16+32], 0, 0, 0)
	for name, commands := range map[string][]byte{
		"branches":   append(huge, uv(nil, MaxBranches)...),
		"operations": append(append(append(huge, 1, 1, 'a', 1, 0), make([]byte, 32)...), uv(nil, MaxOps)...),
		"indices":    append(append([]byte{byte(kindCommit)}, make([]byte, 17)...), uv(nil, MaxBranches)...),
	} {
		entry := entryOf(commands)
		s := New(0, 1)
		var effects []Effect
		var before, after runtime.MemStats
		const runs = 100
		runtime.ReadMemStats(&before)
		for i := range uint64(runs) {
			if err := s.Apply(i+1, 1, entry, &effects); err == nil {
				t.Fatalf("%s: applied", name)
			}
		}
		runtime.ReadMemStats(&after)
		bytesPerRun := (after.TotalAlloc - before.TotalAlloc) / runs
		if bytesPerRun > 4<<10 {
			t.Errorf("%s: %d bytes allocated for an entry of %d", name, bytesPerRun, len(entry))
		}
	}
}

// A message is cut between characters, so that it is still text on every wire.
func TestLongMessagesStayText(t *testing.T) {
	long := strings.Repeat("é", MaxMessageBytes) // two bytes each, behind one of one byte
	s := New(0, 1)
	var effects []Effect
	begin := AppendBegin(nil, beginOf(testID(1), []string{"a"}))
	commands := [][]byte{
		begin, AppendCommit(nil, Commit{ID: testID(1), Enlisted: 1, Yes: []uint32{0}}), AppendAck(nil, Ack{ID: testID(1), Fate: FateHazardUnknown}),
		AppendResolve(nil, testID(1), "x"+long), AppendAbort(nil, AbortCmd{ID: testID(2), Reason: reason.Timeout, Message: "x" + long}),
	}
	if err := s.Apply(1, 1, entryOf(commands...), &effects); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{s.Get(testID(1)).Resolution, s.Get(testID(2)).Abort.Message} {
		if len(text) != MaxMessageBytes-1 || !utf8.ValidString(text) {
			t.Errorf("%d bytes, valid: %t", len(text), utf8.ValidString(text))
		}
	}
}
