package shard

import (
	"strings"

	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
)

// Members and placement live in shard 0: see package txn. What they ask for is done by
// others; here they are recorded, one request after the other.

// PutMember adds a member, or changes what is known of it.
type PutMember struct {
	Token  Token
	Member *txn.Member
}

// RemoveMember takes out a member that is to vote nowhere.
type RemoveMember struct {
	Token Token
	ID    string
}

// Place says who is to vote in a shard.
type Place struct {
	Token  Token
	Shard  uint32
	Voters []string // ids of members
}

func (*PutMember) event()    {}
func (*RemoveMember) event() {}
func (*Place) event()        {}

func (s *Shard) putMember(ev *PutMember) {
	if !ev.Member.Valid() { // nor may its length burden the log
		s.refuse(ev.Token, memberRefusal(&txn.Effect{Reason: reason.InvalidMember, Name: ev.Member.ID}, 0))
		return
	}
	s.proposeMember(ev.Token, txn.AppendPutMember(nil, ev.Member))
}

func (s *Shard) removeMember(ev *RemoveMember) {
	if s.st.Member(ev.ID) == nil && len(ev.ID) > txn.MaxMemberIDBytes {
		s.refuse(ev.Token, memberRefusal(&txn.Effect{Reason: reason.UnknownMember, Name: ev.ID}, 0))
		return
	}
	s.proposeMember(ev.Token, txn.AppendRemoveMember(nil, ev.ID))
}

func (s *Shard) place(ev *Place) {
	tooLong := func(id string) bool { return len(id) > txn.MaxMemberIDBytes }
	for _, id := range ev.Voters {
		if len(ev.Voters) > txn.MaxVoters || tooLong(id) {
			s.refuse(ev.Token, memberRefusal(&txn.Effect{Reason: reason.InvalidPlacement, Shard: ev.Shard}, 0))
			return
		}
	}
	s.proposeMember(ev.Token, txn.AppendPlace(nil, txn.Place{Shard: ev.Shard, Voters: ev.Voters}))
}

// proposeMember keeps the request until its record is applied. The records of this leader
// are applied in the order in which it proposed them, so the requests wait in a queue.
func (s *Shard) proposeMember(token Token, command []byte) {
	if !s.admit(token) {
		return
	}
	err := s.tooNew(command)
	if s.cfg.Shard != 0 {
		err = reason.New(reason.Internal, "ask shard 0", "shard %d keeps no members", s.cfg.Shard)
	}
	if err != nil {
		s.refuse(token, err)
		return
	}
	s.memberWaiters = append(s.memberWaiters, token)
	s.waiting++
	s.command(append(s.openEntry(), command...))
}

// memberDone answers the request whose record was applied.
func (s *Shard) memberDone(e *txn.Effect) {
	switch e.Kind { //nolint:exhaustive // effect hands over these kinds and no others
	case txn.EffectMemberPut:
		s.notice(Notice{Kind: NoticeMember, Member: e.Name, Text: "put"})
	case txn.EffectMemberRemoved:
		s.notice(Notice{Kind: NoticeMember, Member: e.Name, Text: "removed"})
	case txn.EffectPlaced:
		s.notice(Notice{Kind: NoticePlaced, N: int(e.Shard), Text: strings.Join(s.st.Placement(e.Shard), " ")})
	}
	if !s.mine || len(s.memberWaiters) == 0 {
		return // nobody's here
	}
	token := s.memberWaiters[0]
	s.memberWaiters = s.memberWaiters[1:]
	if token == 0 {
		return // the request was given up, and answered
	}
	s.waiting--
	if e.Kind == txn.EffectMemberRefused {
		s.refuse(token, memberRefusal(e, s.st.Level()))
		return
	}
	s.reply(Reply{Token: token})
}

func memberRefusal(e *txn.Effect, level uint32) *reason.Error {
	switch e.Reason {
	case reason.InvalidMember:
		return reason.New(e.Reason, "", "member %.100q: an id and a name are needed, of at most %d and %d bytes; addresses have at most %d",
			e.Name, txn.MaxMemberIDBytes, txn.MaxMemberNameBytes, txn.MaxAddressBytes)
	case reason.MemberTooOld:
		return reason.New(e.Reason, "start it with a newer version", "member %q knows level %d, and the log is at level %d", e.Name, e.Request, level)
	case reason.TooManyMembers:
		return reason.New(e.Reason, "remove members that are gone", "the cluster has its limit of %d members", txn.MaxMembers)
	case reason.UnknownMember:
		return reason.New(e.Reason, "", "the cluster has no member %.100q", e.Name)
	case reason.MemberInUse:
		return reason.New(e.Reason, "drain it first", "member %q is to vote in shard %d", e.Name, e.Shard)
	case reason.InvalidPlacement:
		return reason.New(e.Reason, "", "shard %d: a shard of the cluster, and 1 to %d different members are needed", e.Shard, txn.MaxVoters)
	}
	return refusal(e.Reason, e.Name)
}
