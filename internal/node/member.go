package node

import (
	"context"
	"slices"

	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
)

// members is the local, read-only copy of shard 0's table of members and placement.
type members struct {
	version   uint64
	list      []*txn.Member
	placement [][]string
	level     uint32
}

// publishMembers copies the table for readers outside the loop, if it has changed.
func (r *runner) publishMembers() {
	st, old := r.sh.State(), r.n.members.Load()
	if r.idx != 0 || st.MembersVersion() == old.version && st.Level() == old.level {
		return
	}
	m := &members{version: st.MembersVersion(), list: st.Members(), level: st.Level()}
	for i := range r.n.cfg.Shards {
		m.placement = append(m.placement, slices.Clone(st.Placement(i)))
	}
	r.n.members.Store(m)
}

// Members lists the members of the cluster as this node knows them, in order of ids, with
// a number that changes whenever the list does. They must not be modified.
func (n *Node) Members() ([]*txn.Member, uint64) {
	m := n.members.Load()
	return m.list, m.version
}

// Placement is who is to vote in a shard; nil: it is not placed.
func (n *Node) Placement(shard uint32) []string {
	if m := n.members.Load(); int(shard) < len(m.placement) {
		return m.placement[shard]
	}
	return nil
}

// Level is that of the records in shard 0's log.
func (n *Node) Level() uint32 { return n.members.Load().level }

// PutMember adds a member, or changes it: this node must lead shard 0.
func (n *Node) PutMember(ctx context.Context, m *txn.Member) error {
	return n.administer(ctx, func(t shard.Token) shard.Event { return &shard.PutMember{Token: t, Member: m} })
}

// RemoveMember takes out a member that is to vote nowhere.
func (n *Node) RemoveMember(ctx context.Context, id string) error {
	return n.administer(ctx, func(t shard.Token) shard.Event { return &shard.RemoveMember{Token: t, ID: id} })
}

// Place records who is to vote in a shard.
func (n *Node) Place(ctx context.Context, at uint32, voters []string) error {
	return n.administer(ctx, func(t shard.Token) shard.Event { return &shard.Place{Token: t, Shard: at, Voters: voters} })
}

func (n *Node) administer(ctx context.Context, event func(shard.Token) shard.Event) error {
	token := shard.Token(n.tokens.Add(1))
	rep := n.runners[0].do(ctx, token, event(token), &shard.Cancel{})
	if rep.Err != nil {
		if rep.Err.Code == reason.Internal {
			return reason.New(reason.OutcomeUnknown, "look at the table of members", "%s", rep.Err.Message)
		}
		return rep.Err
	}
	return nil
}
