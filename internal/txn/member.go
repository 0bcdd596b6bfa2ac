package txn

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/reason"
)

// Members and placement: shard 0 keeps who belongs to the cluster, how to reach them, and
// which of them are to vote in which shard. It is what is wanted; the log of each shard
// knows who votes in it now.

// Limits of members. A record with more is refused when it is applied.
const (
	MaxMembers         = 128
	MaxVoters          = 7 // of one shard
	MaxMemberNameBytes = 64
	MaxMemberIDBytes   = 80 // a name and what makes it unique
	MaxAddressBytes    = 256
)

// Member is a node of the cluster. Values are immutable: a change replaces them.
type Member struct {
	ID        string // for life: a node that lost its data comes back with another
	Name      string // chosen by people
	Peer      string // host:port, for other nodes
	HTTP      string // as clients reach it
	GRPC      string // as clients reach it
	Level     uint32 // the highest that it knows; 0: not announced
	Draining  bool   // it is to lead nothing, and to get nothing new
	Leaving   bool   // it is to hold no replicas, and then to be removed
	JoinedMs  uint64 // log times, set by Apply
	UpdatedMs uint64
}

// Valid reports whether every text is there that must be, and none is too long.
func (m *Member) Valid() bool {
	for _, text := range [...]struct {
		s    string
		most int
	}{{m.ID, MaxMemberIDBytes}, {m.Name, MaxMemberNameBytes}, {m.Peer, MaxAddressBytes}, {m.HTTP, MaxAddressBytes}, {m.GRPC, MaxAddressBytes}} {
		if len(text.s) > text.most || !utf8.ValidString(text.s) {
			return false
		}
	}
	return m.ID != "" && m.Name != ""
}

// Place says who is to vote in a shard.
type Place struct {
	Shard  uint32
	Voters []string // ids of members
}

// Members lists the members in order of ids. The caller must not modify them.
func (s *State) Members() []*Member {
	list := make([]*Member, 0, len(s.members))
	for _, m := range s.members {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b *Member) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// Member returns a member, or nil. The caller must not modify it.
func (s *State) Member(id string) *Member { return s.members[id] }

// Placement is who is to vote in a shard, in order of ids; nil: it is not placed. The
// caller must not modify it.
func (s *State) Placement(shard uint32) []string { return s.placement[shard] }

// MembersVersion is the index of the entry that last changed members or placement: the
// same on every replica, and never going back; 0: there are none yet.
func (s *State) MembersVersion() uint64 { return s.membersAt }

// placed lists the shards that are placed, in order.
func (s *State) placed() []uint32 {
	shards := make([]uint32, 0, len(s.placement))
	for shard := range s.placement {
		shards = append(shards, shard)
	}
	slices.Sort(shards)
	return shards
}

func (s *State) refuseMember(e Effect) {
	e.Kind = EffectMemberRefused
	s.emit(e)
}

// applyPutMember adds a member, or changes its addresses, its level and whether it drains.
func (s *State) applyPutMember(m *Member) {
	old := s.members[m.ID]
	switch {
	case !m.Valid():
		s.refuseMember(Effect{Reason: reason.InvalidMember, Name: m.ID})
		return
	case m.Level > 0 && m.Level < s.level: // it would have to stop at the first record of this level
		s.refuseMember(Effect{Reason: reason.MemberTooOld, Name: m.ID, Request: m.Level})
		return
	case old == nil && len(s.members) >= MaxMembers:
		s.refuseMember(Effect{Reason: reason.TooManyMembers, Name: m.ID})
		return
	}
	m.JoinedMs, m.UpdatedMs = s.nowMs, s.nowMs
	if old != nil {
		m.JoinedMs, m.UpdatedMs = old.JoinedMs, old.UpdatedMs
		if *m == *old {
			s.emit(Effect{Kind: EffectMemberPut, Name: m.ID})
			return
		}
		m.UpdatedMs = s.nowMs
	}
	s.members[m.ID] = m
	s.membersAt = s.applied
	s.emit(Effect{Kind: EffectMemberPut, Name: m.ID})
}

// applyRemoveMember takes out a member that is to vote nowhere.
func (s *State) applyRemoveMember(id string) {
	if s.members[id] == nil {
		s.refuseMember(Effect{Reason: reason.UnknownMember, Name: id})
		return
	}
	for _, shard := range s.placed() {
		if slices.Contains(s.placement[shard], id) && !mutant.On("remove-placed-member") {
			s.refuseMember(Effect{Reason: reason.MemberInUse, Name: id, Shard: shard})
			return
		}
	}
	delete(s.members, id)
	s.membersAt = s.applied
	s.emit(Effect{Kind: EffectMemberRemoved, Name: id})
}

// applyPlace says who is to vote in a shard.
func (s *State) applyPlace(c Place) {
	slices.Sort(c.Voters)
	if n := len(c.Voters); c.Shard >= s.shards || n == 0 || n > MaxVoters || len(slices.Compact(slices.Clone(c.Voters))) != n {
		s.refuseMember(Effect{Reason: reason.InvalidPlacement, Shard: c.Shard})
		return
	}
	for _, id := range c.Voters {
		if s.members[id] == nil {
			s.refuseMember(Effect{Reason: reason.UnknownMember, Name: id, Shard: c.Shard})
			return
		}
	}
	if !slices.Equal(s.placement[c.Shard], c.Voters) {
		s.placement[c.Shard] = c.Voters
		s.membersAt = s.applied
	}
	s.emit(Effect{Kind: EffectPlaced, Shard: c.Shard})
}

// ---- records and snapshot

// AppendPutMember appends a member. Its times are set by Apply.
func AppendPutMember(dst []byte, m *Member) []byte {
	return appendMember(append(dst, byte(kindPutMember)), m)
}

// AppendRemoveMember appends: the member is gone.
func AppendRemoveMember(dst []byte, id string) []byte {
	return str(append(dst, byte(kindRemoveMember)), id)
}

// AppendPlace appends who is to vote in a shard.
func AppendPlace(dst []byte, c Place) []byte {
	return appendPlace(append(dst, byte(kindPlace)), c.Shard, c.Voters)
}

func appendMember(dst []byte, m *Member) []byte {
	for _, text := range [...]string{m.ID, m.Name, m.Peer, m.HTTP, m.GRPC} {
		dst = str(dst, text)
	}
	return flag(flag(uv(dst, uint64(m.Level)), m.Draining), m.Leaving)
}

func appendPlace(dst []byte, shard uint32, voters []string) []byte {
	dst = uv(uv(dst, uint64(shard)), uint64(len(voters)))
	for _, id := range voters {
		dst = str(dst, id)
	}
	return dst
}

func (r *reader) member() *Member {
	return &Member{ID: r.string(), Name: r.string(), Peer: r.string(), HTTP: r.string(), GRPC: r.string(), Level: r.uint32("level"), Draining: r.bool(), Leaving: r.bool()}
}

func (r *reader) place() Place {
	c := Place{Shard: r.uint32("shard")}
	for n := r.count(MaxMembers, "voters"); n > 0 && r.err == nil; n-- {
		c.Voters = append(c.Voters, r.string())
	}
	return c
}

func (s *State) appendMembers(dst []byte) []byte {
	dst = uv(uv(dst, s.membersAt), uint64(len(s.members)))
	for _, m := range s.Members() {
		dst = uv(uv(appendMember(dst, m), m.JoinedMs), m.UpdatedMs)
	}
	shards := s.placed()
	dst = uv(dst, uint64(len(shards)))
	for _, shard := range shards {
		dst = appendPlace(dst, shard, s.placement[shard])
	}
	return dst
}

func (s *State) restoreMembers(r *reader) {
	s.membersAt = r.uint()
	for n := r.count(MaxMembers, "members"); n > 0 && r.err == nil; n-- {
		m := r.member()
		m.JoinedMs, m.UpdatedMs = r.uint(), r.uint()
		s.members[m.ID] = m
	}
	for n := r.count(MaxShards, "placed shards"); n > 0 && r.err == nil; n-- {
		c := r.place()
		s.placement[c.Shard] = c.Voters
	}
}

// ---- for people

func (s *State) printMembers(b *strings.Builder) {
	for _, m := range s.Members() {
		fmt.Fprintf(b, "member %s name=%s level=%d peer=%s http=%s grpc=%s", m.ID, m.Name, m.Level, m.Peer, m.HTTP, m.GRPC)
		if m.Draining {
			b.WriteString(" draining")
		}
		if m.Leaving {
			b.WriteString(" leaving")
		}
		b.WriteByte('\n')
	}
	for _, shard := range s.placed() {
		fmt.Fprintf(b, "shard %d voters %s\n", shard, strings.Join(s.placement[shard], " "))
	}
}

func (s *State) checkMembers() error {
	if len(s.members) > MaxMembers {
		return fmt.Errorf("%d members", len(s.members))
	}
	for _, m := range s.Members() {
		if !m.Valid() {
			return fmt.Errorf("member %q is not valid", m.ID)
		}
	}
	for _, shard := range s.placed() {
		voters := s.placement[shard]
		if shard >= s.shards || len(voters) == 0 || len(voters) > MaxVoters {
			return fmt.Errorf("shard %d has %d voters", shard, len(voters))
		}
		for i, id := range voters {
			if s.members[id] == nil || i > 0 && voters[i-1] >= id {
				return fmt.Errorf("shard %d: voter %q is no member, or out of order", shard, id)
			}
		}
	}
	return nil
}
