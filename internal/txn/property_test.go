package txn

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txnid"
)

// history draws logs: mostly sensible commands on few transactions and services,
// and some that make no sense.
type history struct {
	t     *rapid.T
	nowMs uint64
	term  uint64
	begun []Begin

	shards uint32
	level  uint32 // of the log
	points []hashedPoint
}

// hashedPoint is a VERIFY that was applied, and what the state was there.
type hashedPoint struct {
	index uint64
	sum   [32]byte
}

// hashed gives the hashes of an entry's captures to a state, as its driver does.
func hashed(s *State, effects []Effect) (points []hashedPoint, err error) {
	for i := range effects {
		if e := &effects[i]; e.Kind == EffectVerify {
			p := hashedPoint{e.Token, e.Capture.Hash()}
			points = append(points, p)
			if _, err := s.Hashed(p.index, p.sum); err != nil {
				return nil, err
			}
		}
	}
	return points, nil
}

func (h *history) pick(n int, what string) int { return rapid.IntRange(0, n-1).Draw(h.t, what) }

func (h *history) id() txnid.ID {
	if len(h.begun) > 0 && h.pick(8, "known") > 0 {
		return h.begun[h.pick(len(h.begun), "which")].ID
	}
	return h.newID()
}

// newID is mostly of now, sometimes late or from a clock ahead.
func (h *history) newID() txnid.ID {
	at := int64(h.nowMs) + int64([]int{0, 0, 0, -3_000, -20_000, 50_000}[h.pick(6, "clock")])
	return txnid.New(uint64(at), [10]byte{9: byte(h.pick(4, "random"))})
}

func (h *history) begin() *Begin {
	c := Begin{ID: h.newID(), Digest: [32]byte{byte(h.pick(2, "body"))}, TimeoutMs: 1000}
	if h.pick(4, "again") == 0 {
		c.ID = h.id()
	}
	var needs []lock.Need
	for i := range services {
		if h.pick(2, "branch") == 0 && (i < len(services)-1 || len(c.Branches) > 0) {
			continue
		}
		c.Branches = append(c.Branches, BeginBranch{Service: services[i], Generation: uint64(1 + h.pick(3, "generation")), Ops: [][]byte{{1}, {2}}[:1+h.pick(2, "ops")]})
		if h.pick(3, "keys") > 0 {
			needs = append(needs, lock.Need{Key: services[i] + []string{"", "/k", "/k/l", "/m"}[h.pick(4, "key")], Mode: []lock.Mode{lock.S, lock.X}[h.pick(2, "mode")]})
		}
	}
	c.OnePhase = len(c.Branches) == 1 && h.pick(2, "one phase") == 0
	c.Locks, c.Foreign = h.split(needs)
	return &c
}

// split gives some of the keys to other shards, where there are any.
func (h *history) split(needs []lock.Need) (here []lock.Need, foreign []LockPart) {
	if h.shards == 1 {
		return lock.Fold(needs), nil
	}
	partitions := uint32(h.pick(3, "partitions"))
	for _, p := range SplitLocks(lock.Fold(needs), func(string) uint32 { return partitions }, h.shards) {
		if p.Shard == 0 {
			here = p.Needs
		} else {
			foreign = append(foreign, p)
		}
	}
	return here, foreign
}

// spread is a command of locks over several shards.
func (h *history) spread(dst []byte) []byte {
	shard, request := uint32(1+h.pick(int(h.shards)-1, "shard")), uint32(1+h.pick(3, "request"))
	switch h.pick(6, "spread") {
	case 0, 1:
		return AppendLocked(dst, Locked{ID: h.id(), Shard: shard, Request: request, Token: uint64(h.pick(50, "token"))})
	case 2:
		return AppendYield(dst, Yield{ID: h.id(), Shard: shard, Request: request})
	case 3:
		return AppendDrainHere(dst, services[h.pick(len(services), "service")], uint64(1+h.pick(3, "generation")))
	case 4:
		c := ClaimCmd{ID: h.stranger(), AgeMs: h.nowMs - uint64(h.pick(3, "age")), Request: request}
		c.Whole = c.ID[15]&1 == 0
		needs := []lock.Need{{Key: services[h.pick(len(services), "service")] + []string{"", "/k", "/k/l", "/m"}[h.pick(4, "key")], Mode: []lock.Mode{lock.S, lock.X}[h.pick(2, "mode")]}}
		c.Needs = lock.Fold(needs)
		return AppendClaim(dst, &c)
	}
	c := Release{ID: h.stranger(), Token: uint64(h.pick(50, "token"))}
	switch h.pick(3, "release") {
	case 0:
		c.Service = services[h.pick(len(services), "service")]
	case 1:
		c.Waiting = true
	}
	return AppendRelease(dst, c)
}

// stranger is a transaction of another home; ids of here differ in their first half.
func (h *history) stranger() txnid.ID {
	return txnid.New(epochMs, [10]byte{2: 1, 9: byte(h.pick(5, "stranger"))})
}

// step is a command of interactive transactions.
func (h *history) step(dst []byte) []byte {
	switch h.pick(4, "step") {
	case 0:
		c := Open{ID: h.newID(), TimeoutMs: 1000, IdleMs: 1000}
		h.begun = append(h.begun, Begin{ID: c.ID})
		return AppendOpen(dst, &c)
	case 1:
		return AppendSeal(dst, h.id())
	}
	b := h.begin()
	c := Enlist{ID: h.id(), Step: uint32(1 + h.pick(4, "number")), Locks: b.Locks, Foreign: b.Foreign}
	for i := range b.Branches {
		c.Branches = append(c.Branches, EnlistBranch{Service: b.Branches[i].Service, Generation: b.Branches[i].Generation})
		c.Ops = append(c.Ops, EnlistOp{Branch: uint32(i), Now: h.pick(2, "now") == 0, Payload: []byte{1}})
	}
	return AppendEnlist(dst, &c)
}

// member is a command on members and placement.
func (h *history) member(dst []byte) []byte {
	id := func() string { return []string{"n1", "n2", "n3", "n4", ""}[h.pick(5, "member")] }
	switch h.pick(6, "membership") {
	case 4:
		return AppendVerify(dst)
	case 5:
		if len(h.points) == 0 {
			return dst
		}
		p := h.points[h.pick(len(h.points), "point")]
		return AppendHash(dst, p.index, p.sum)
	case 0:
		return AppendRemoveMember(dst, id())
	case 1:
		c := Place{Shard: uint32(h.pick(int(h.shards)+1, "place"))}
		for range h.pick(4, "voters") {
			c.Voters = append(c.Voters, id())
		}
		return AppendPlace(dst, c)
	}
	return AppendPutMember(dst, &Member{ID: id(), Name: "n", Level: uint32(h.pick(int(Level)+2, "level")), Draining: h.pick(2, "draining") == 0})
}

var services = []string{"a", "a-b", "c"}

func (h *history) command(dst []byte) []byte {
	switch what := h.pick(10, "family"); {
	case what < 3:
		return h.step(dst)
	case what < 6 && h.shards > 1:
		return h.spread(dst)
	}
	if h.level >= levelMembers && h.pick(10, "members") == 0 {
		return h.member(dst)
	}
	switch h.pick(20, "command") {
	case 0, 1, 2, 3, 4:
		c := h.begin()
		h.begun = append(h.begun, *c)
		return AppendBegin(dst, c)
	case 5, 6, 7, 8:
		if len(h.begun) == 0 {
			return dst
		}
		b := &h.begun[h.pick(len(h.begun), "commit")]
		c := Commit{ID: b.ID, Enlisted: uint32(len(b.Branches))}
		for i := range b.Branches {
			switch h.pick(12, "vote") {
			case 0:
			case 1, 2:
				c.ReadOnly = append(c.ReadOnly, uint32(i))
			default:
				c.Yes = append(c.Yes, uint32(i))
			}
		}
		return AppendCommit(dst, c)
	case 9, 10:
		why := []reason.Code{reason.VotedNo, reason.Timeout, reason.ClientRollback}[h.pick(3, "why")]
		return AppendAbort(dst, AbortCmd{ID: h.id(), Reason: why, Message: "m", Refused: h.pick(3, "refused") == 0})
	case 11, 12, 13, 14, 15:
		fate := []Fate{FateDone, FateDone, FateDone, FateDone, FateHazardUnknown, FateHazardCommitted, FateHazardRolledBack, FateOpen, FateReadOnly}[h.pick(9, "fate")]
		return AppendAck(dst, Ack{ID: h.id(), Branch: uint32(h.pick(4, "branch")), Fate: fate})
	case 16, 17:
		c := Forget{Count: uint32(h.pick(4, "count"))}
		if h.pick(3, "by age") == 0 {
			c.EndedBeforeMs = h.nowMs - 5_000
		}
		return AppendForget(dst, c)
	case 18:
		name := services[h.pick(len(services), "service")]
		switch h.pick(3, "registry") {
		case 0:
			return AppendPutService(dst, &Service{Name: name, Isolated: h.pick(2, "isolated") == 0, Resources: []string{"r"}})
		case 1:
			return AppendDrainService(dst, name)
		}
		return AppendRemoveService(dst, name)
	}
	return AppendResolve(dst, h.id(), "note")
}

func (h *history) entry() (term uint64, entry []byte) {
	h.nowMs += uint64([]int{0, 1, 1_000, 15_000}[h.pick(4, "passes")])
	entry = make([]byte, HeaderBytes)
	computed := h.term
	switch h.pick(12, "term") {
	case 0:
		h.term++
		computed = h.term
		entry = AppendLead(entry, Lead{Node: "n"})
	case 1:
		computed--
	}
	PutHeader(entry, computed, h.nowMs)
	for range h.pick(4, "commands") {
		entry = h.command(entry)
	}
	return h.term, entry
}

// Whatever is in the log: the invariants hold after every entry, equal logs make
// equal states, a snapshot at any point and the rest of the log make the same
// state, decisions and ends are final, W and F never go back, and F is above no id
// that is open or could still begin.
func TestAnyLog(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := &history{t: rt, nowMs: epochMs + 100_000, term: 1, shards: uint32(1 + 2*rapid.IntRange(0, 1).Draw(rt, "more shards"))}
		st, twin := New(0, h.shards), New(0, h.shards)
		raise := rapid.IntRange(0, 40).Draw(rt, "level at")
		if h.shards > 1 {
			raise = 1 // from the first entry on
		}
		cut := rapid.IntRange(1, 40).Draw(rt, "snapshot after")
		decided := map[txnid.ID]bool{}
		for index := uint64(1); index <= 40; index++ {
			term, entry := h.entry()
			if int(index) == raise {
				entry = AppendLevel(append([]byte(nil), entry[:HeaderBytes]...), Level)
			}
			w, f, members := st.Watermark(), st.Forgotten(), st.MembersVersion()
			var effects []Effect
			var points [2][]hashedPoint
			for i, s := range []*State{st, twin} {
				effects = effects[:0]
				if err := s.Apply(index, term, entry, &effects); err != nil {
					rt.Fatalf("entry %d: %v", index, err)
				}
				if err := s.Check(); err != nil {
					rt.Fatalf("entry %d: %v", index, err)
				}
				var err error
				if points[i], err = hashed(s, effects); err != nil {
					rt.Fatalf("entry %d: %v", index, err)
				}
			}
			if !slices.Equal(points[0], points[1]) {
				rt.Fatalf("entry %d: two replicas hash %x and %x", index, points[0], points[1])
			}
			h.points = append(h.points, points[0]...)
			if int(index) == cut {
				restored, err := Restore(0, h.shards, snapshotOf(twin))
				if err != nil {
					rt.Fatal(err)
				}
				twin = restored
			}
			if st.Hash() != twin.Hash() || st.String() != twin.String() {
				rt.Fatalf("after entry %d, snapshot after %d:\n%s\n%s", index, cut, st, twin)
			}
			if h.level = st.Level(); st.MembersVersion() < members || st.MembersVersion() != twin.MembersVersion() {
				rt.Fatalf("members version from %d to %d", members, st.MembersVersion())
			}
			if st.Watermark() < w || st.Forgotten().Less(f) {
				rt.Fatalf("W from %d to %d, F from %s to %s", w, st.Watermark(), f, st.Forgotten())
			}
			if f2 := twin.Forgotten(); f2 != st.Forgotten() {
				rt.Fatalf("F is %s, and %s after a snapshot", st.Forgotten(), f2)
			}
			if err := final(st, decided); err != nil {
				rt.Fatal(err)
			}
			if err := boundedByF(st, h.nowMs); err != nil {
				rt.Fatal(err)
			}
			if _, err := Describe(entry); err != nil {
				rt.Fatal(err)
			}
		}
	})
}

// final checks that no decision is changed, and remembers new ones.
func final(s *State, decided map[txnid.ID]bool) error {
	for id, t := range s.txns {
		committed, known := decided[id]
		switch {
		case !t.Status.Decided() && known:
			return fmt.Errorf("%s was decided and is %s", id, t.Status)
		case !t.Status.Decided():
		case known && committed != (t.Abort == nil):
			return fmt.Errorf("%s changed its decision", id)
		default:
			decided[id] = t.Abort == nil
		}
	}
	return nil
}

func boundedByF(s *State, nowMs uint64) error {
	f := s.Forgotten()
	for _, id := range s.LiveIDs() {
		if id.Less(f) {
			return fmt.Errorf("%s is open and below F %s", id, f)
		}
	}
	if f.IsZero() {
		return nil
	}
	if txnid.Floor(s.Watermark() + 1).Less(f) {
		return fmt.Errorf("an id below F %s could begin: W is %d", f, s.Watermark())
	}
	if nowMs >= WatermarkLagMs && s.Watermark() > nowMs-WatermarkLagMs {
		return fmt.Errorf("W %d is less than %d ms behind %d", s.Watermark(), WatermarkLagMs, nowMs)
	}
	return nil
}

// One transaction that stays in doubt, or a follower that never asks for F, must
// not make the state keep the id of everything that ended since.
func TestEndedTransactionsLeaveNothing(t *testing.T) {
	s := benchState(t)
	const n = 10_000
	var effects []Effect
	apply := func(commands ...[]byte) {
		entry := entryOf(commands...)
		effects = effects[:0]
		if err := s.Apply(s.Applied()+1, 1, entry, &effects); err != nil {
			t.Fatal(err)
		}
	}
	apply(AppendBegin(nil, transferOf(0)))
	for i := 1; i < n; i++ {
		id := benchID(i)
		apply(AppendBegin(nil, transferOf(i)), AppendAbort(nil, AbortCmd{ID: id, Reason: reason.Timeout}),
			AppendAck(nil, Ack{ID: id, Branch: 0, Fate: FateDone}), AppendAck(nil, Ack{ID: id, Branch: 1, Fate: FateDone}))
	}
	if s.Live() != 1 || len(s.LiveIDs()) != 1 || s.LiveIDs()[0] != benchID(0) {
		t.Fatalf("%d live: %v", s.Live(), s.LiveIDs())
	}
	if kept := len(s.liveHeap); kept > 2048 {
		t.Fatalf("%d ids are kept for one open transaction", kept)
	}
}

// TestLevel: who waits when the rule changes is judged by the new one; a level of a newer
// version halts.
func TestLevel(t *testing.T) {
	s := New(0, 1)
	var effects []Effect
	needs := lock.Fold([]lock.Need{{Key: "a/k", Mode: lock.X}})
	for i, commands := range [][][]byte{
		{AppendOpen(nil, &Open{ID: testID(1), TimeoutMs: 1000}), AppendOpen(nil, &Open{ID: testID(2), TimeoutMs: 1000})},
		{AppendEnlist(nil, &Enlist{ID: testID(2), Step: 1, Locks: needs}), AppendEnlist(nil, &Enlist{ID: testID(1), Step: 1, Locks: needs})},
	} {
		if err := s.Apply(uint64(i+1), 1, entryOf(commands...), &effects); err != nil {
			t.Fatal(err)
		}
	}
	if elder := s.Get(testID(1)); !elder.StepPending || s.Level() != 0 {
		t.Fatalf("before: %s", s)
	}
	if err := s.Apply(3, 1, entryOf(AppendLevel(nil, Level)), &effects); err != nil {
		t.Fatal(err)
	}
	elder, younger := s.Get(testID(1)), s.Get(testID(2))
	if elder.StepPending || younger.Abort == nil || younger.Abort.Reason != reason.Wounded || s.Level() != Level {
		t.Errorf("after: %s", s)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	if err := s.Apply(4, 1, entryOf(AppendLevel(nil, Level+1)), &effects); err == nil {
		t.Error("a level that this version does not know was applied")
	}
}

// TestStepLimits: a transaction cannot grow without bound, step by step.
func TestStepLimits(t *testing.T) {
	st := New(0, 1)
	index := uint64(0)
	apply := func(commands ...func([]byte) []byte) (last *Effect) {
		entry := make([]byte, HeaderBytes)
		PutHeader(entry, 1, epochMs)
		for _, c := range commands {
			entry = c(entry)
		}
		var effects []Effect
		index++
		if err := st.Apply(index, 1, entry, &effects); err != nil {
			t.Fatal(err)
		}
		for i := range effects {
			if k := effects[i].Kind; k == EffectStepTaken || k == EffectStepRefused {
				last = &effects[i]
			}
		}
		return last
	}
	id, step := testID(1), uint32(0)
	enlist := func(payload int, keys int) reason.Code {
		step++
		c := &Enlist{ID: id, Step: step, Branches: []EnlistBranch{{Service: "a", Generation: 1}}, Ops: []EnlistOp{{Payload: make([]byte, payload)}}}
		var needs []lock.Need
		for k := range keys {
			needs = append(needs, lock.Need{Key: fmt.Sprintf("a/%d-%d", step, k), Mode: lock.X})
		}
		c.Locks = lock.Fold(needs)
		e := apply(func(b []byte) []byte { return AppendEnlist(b, c) })
		if step%1000 == 1 { // it looks at everything
			if err := st.Check(); err != nil {
				t.Fatal(err)
			}
		}
		return e.Reason
	}
	begin := func(n int) {
		id, step = testID(n), 0
		apply(func(b []byte) []byte { return AppendOpen(b, &Open{ID: id, TimeoutMs: 1, IdleMs: 1}) })
	}
	begin(1)
	for range 16 {
		if why := enlist(1<<20, 0); why != "" {
			t.Fatalf("step %d: %s", step, why)
		}
	}
	if why := enlist(1, 0); why != reason.RequestTooLarge {
		t.Errorf("beyond %d bytes: %q", MaxStepBytes, why)
	}
	begin(2)
	for range 4 {
		if why := enlist(1, 16_000); why != "" {
			t.Fatalf("step %d: %s", step, why)
		}
	}
	if why := enlist(1, 16_000); why != reason.TooManyKeys {
		t.Errorf("beyond %d locks: %q", MaxNeeds, why)
	}
	restored, err := Restore(0, 1, snapshotOf(st))
	if err != nil || restored.Hash() != st.Hash() {
		t.Fatal(err)
	}
	st = restored // the limits are the same behind a snapshot
	if why := enlist(1, 16_000); why != reason.TooManyKeys {
		t.Errorf("beyond %d locks, restored: %q", MaxNeeds, why)
	}
	id, step = testID(1), 100
	if why := enlist(1, 0); why != reason.RequestTooLarge {
		t.Errorf("beyond %d bytes, restored: %q", MaxStepBytes, why)
	}
	begin(3)
	for range MaxSteps {
		if why := enlist(0, 0); why != "" {
			t.Fatalf("step %d: %s", step, why)
		}
	}
	if why := enlist(0, 0); why != reason.TooManySteps {
		t.Errorf("beyond %d steps: %q", MaxSteps, why)
	}
}

// Whatever the machine has applied, its snapshot can be restored.
func TestSnapshotOfLocksOfManyServices(t *testing.T) {
	s := New(0, 2)
	id := txnid.New(1_750_000_000_000, [10]byte{1}).At(0, 2)
	var needs []lock.Need
	for i := range MaxBranches + 1 {
		needs = append(needs, lock.Need{Key: fmt.Sprintf("s%05d", i), Mode: lock.S})
	}
	entry := make([]byte, HeaderBytes)
	entry = AppendLevel(entry, Level)
	entry = AppendOpen(entry, &Open{ID: id, TimeoutMs: 1000, IdleMs: 1000})
	entry = AppendEnlist(entry, &Enlist{ID: id, Step: 1, Foreign: []LockPart{{Shard: 1, Needs: needs}}})
	PutHeader(entry, 1, 1_750_000_000_000)
	var eff []Effect
	if err := s.Apply(1, 1, entry, &eff); err != nil {
		t.Fatal(err)
	}
	if s.Get(id).ForeignAt(1) == nil {
		t.Fatalf("%+v", eff)
	}
	var snapshot []byte
	if err := s.Capture().Write(func(b []byte) error { snapshot = append(snapshot, b...); return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(0, 2, snapshot); err != nil {
		t.Errorf("the replica does not start again: %v", err)
	}
}
