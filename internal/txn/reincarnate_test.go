package txn

import (
	"errors"
	"testing"

	"github.com/assent-tx/assent/internal/txnid"
)

func TestReincarnate(t *testing.T) {
	s := New(0, 1)
	var effects []Effect
	index := uint64(0)
	apply := func(commands ...[]byte) {
		t.Helper()
		index++
		if err := s.Apply(index, 1, entryOf(commands...), &effects); err != nil {
			t.Fatal(err)
		}
	}
	apply(oneOfEach()...)
	apply(newerOfEach()...)
	before := snapshotOf(s)
	if Level >= levelMembers && len(s.Members()) == 0 {
		t.Fatal("no members to drop")
	}
	expire := uint64(epochMs + 3_600_000)
	change := Reincarnation{Cluster: [16]byte{7}, Incarnation: 5, ExpireMs: expire}
	after, applied, err := Reincarnate(0, 1, before, change)
	if err != nil || applied != index {
		t.Fatal(applied, err)
	}
	r, err := Restore(0, 1, after)
	if err != nil {
		t.Fatal(err)
	}
	if c, incarnation := r.Cluster(); c != [16]byte{7} || incarnation != 5 {
		t.Errorf("cluster %x, incarnation %d", c, incarnation)
	}
	if len(r.Members()) > 0 || r.Placement(0) != nil {
		t.Error("the old members are still there")
	}
	// An id of before the restore that is not known may have run meanwhile.
	lost := txnid.New(expire, [10]byte{9: 200})
	if !r.Expired(lost) || s.Expired(lost) {
		t.Error("an id of after the backup may begin again")
	}
	if r.Expired(testID(1)) || r.Get(testID(1)) == nil {
		t.Error("a known transaction is gone")
	}
	if r.Forgotten().UnixMs() > lowestLive(r).UnixMs() {
		t.Errorf("forgets below %v, but %v is open", r.Forgotten(), lowestLive(r))
	}
	effects = effects[:0]
	if err := r.Apply(index+1, 1, entryOf(AppendAbort(nil, AbortCmd{ID: lost})), &effects); err != nil {
		t.Fatal(err)
	}
	for i := range effects {
		if effects[i].Kind == EffectDecided {
			t.Error("an unknown id was told to have aborted")
		}
	}
	live := r.Get(r.LiveIDs()[0])
	if len(live.Branches) > 0 && r.FencingToken(live, &live.Branches[0]) <= s.FencingToken(live, &live.Branches[0]) {
		t.Error("a fencing token of before is not older")
	}
	// All else is as it was.
	r, err = Restore(0, 1, after)
	if err != nil {
		t.Fatal(err)
	}
	r.incarn, r.w, r.members, r.placement, r.membersAt = s.incarn, s.w, s.members, s.placement, s.membersAt
	if string(snapshotOf(r)) != string(before) {
		t.Error("something else was changed")
	}

	for name, change := range map[string]Reincarnation{
		"another cluster":         {Cluster: [16]byte{8}, Incarnation: 5},
		"the same incarnation":    {Cluster: [16]byte{7}, Incarnation: 2},
		"an earlier incarnation":  {Cluster: [16]byte{7}, Incarnation: 1},
		"a time that no id knows": {Cluster: [16]byte{7}, Incarnation: 5, ExpireMs: 1 << 48},
	} {
		if _, _, err := Reincarnate(0, 1, before, change); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := Reincarnate(0, 1, snapshotOf(New(0, 1)), change); !errors.Is(err, ErrFormat) {
		t.Errorf("without a leader: %v", err)
	}
	if _, _, err := Reincarnate(1, 2, before, change); !errors.Is(err, ErrFormat) {
		t.Errorf("of another shard: %v", err)
	}
}

func lowestLive(s *State) txnid.ID { return s.LiveIDs()[0] }
