package replog

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/hashicorp/raft"
)

// changeTimeout bounds the wait for a free place in the Raft library's queue.
const changeTimeout = 2 * time.Second

// standIfAlone makes a lone voter lead at once: nobody else could.
func (g *group) standIfAlone() {
	members := g.Members()
	voters := 0
	for _, m := range members {
		if m.Voter {
			voters++
		}
	}
	if voters == 1 && g.votes(members) {
		g.transport.stand(func() bool { return g.raft.State() == raft.Leader })
	}
}

func (g *group) votes(members []Replica) bool {
	for _, m := range members {
		if m.Member == g.log.id.member() {
			return m.Voter
		}
	}
	return false
}

// Leader is described with Group.
func (g *group) Leader() string {
	_, id := g.raft.LeaderWithID()
	return string(id)
}

// Members is described with Group.
func (g *group) Members() []Replica {
	f := g.raft.GetConfiguration()
	if f.Error() != nil {
		return nil // never: it reads a copy
	}
	var members []Replica
	for _, s := range f.Configuration().Servers {
		members = append(members, Replica{Member: string(s.ID), Voter: s.Suffrage == raft.Voter})
	}
	return members
}

// AddLearner is described with Group.
func (g *group) AddLearner(member string) error {
	return g.changed(g.raft.AddNonvoter(raft.ServerID(member), raft.ServerAddress(member), 0, changeTimeout))
}

// Promote is described with Group.
func (g *group) Promote(member string) error {
	return g.changed(g.raft.AddVoter(raft.ServerID(member), raft.ServerAddress(member), 0, changeTimeout))
}

// Remove is described with Group.
func (g *group) Remove(member string) error {
	return g.changed(g.raft.RemoveServer(raft.ServerID(member), 0, changeTimeout))
}

// Transfer is described with Group.
func (g *group) Transfer(to string) error {
	g.handOver.Lock()
	defer g.handOver.Unlock()
	if time.Since(g.notTaken[to]) < resendFor {
		return fmt.Errorf("shard %d: %w: %s did not take it a moment ago", g.shard, ErrNotTaken, to)
	}
	err := g.raft.LeadershipTransferToServer(raft.ServerID(to), raft.ServerAddress(to)).Error()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader):
		return fmt.Errorf("shard %d: %w: %w", g.shard, ErrNotAppended, err)
	}
	maps.DeleteFunc(g.notTaken, func(_ string, at time.Time) bool { return time.Since(at) >= resendFor })
	g.notTaken[to] = time.Now()
	return fmt.Errorf("shard %d: %w: %w", g.shard, ErrNotTaken, err)
}

func (g *group) changed(f raft.Future) error {
	err := f.Error()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("shard %d: %w: %w", g.shard, ErrNotAppended, err)
	default:
		return fmt.Errorf("shard %d: %w: %w", g.shard, ErrUnknown, err)
	}
}
