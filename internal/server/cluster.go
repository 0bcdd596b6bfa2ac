package server

import (
	"context"
	"strconv"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
)

// This file is the administration of a cluster over REST.

func getCluster(s *Server, ctx context.Context, _ *request) (any, error) {
	return clusterAnswer(s.coordinator.Cluster(ctx))
}

func drainNode(s *Server, ctx context.Context, r *request) (any, error) {
	return setDraining(s, ctx, r, true)
}

func undrainNode(s *Server, ctx context.Context, r *request) (any, error) {
	return setDraining(s, ctx, r, false)
}

func setDraining(s *Server, ctx context.Context, r *request, draining bool) (any, error) {
	name := r.PathValue("name")
	if err := checkMemberName(name, "name"); err != nil {
		return nil, err
	}
	if len(r.body) > 0 {
		if err := r.decode(&struct{}{}); err != nil {
			return nil, err
		}
	}
	return clusterAnswer(s.coordinator.DrainMember(ctx, name, draining))
}

func removeNode(s *Server, ctx context.Context, r *request) (any, error) {
	name := r.PathValue("name")
	if err := checkMemberName(name, "name"); err != nil {
		return nil, err
	}
	return clusterAnswer(s.coordinator.RemoveMember(ctx, name))
}

func transferShard(s *Server, ctx context.Context, r *request) (any, error) {
	text := r.PathValue("shard")
	shard, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return nil, inField(reason.New(reason.InvalidField, "write a number; GET /v1/cluster lists them", "%.40q is no shard", text), "shard")
	}
	var b TransferBody
	if len(r.body) > 0 {
		if err := r.decode(&b); err != nil {
			return nil, err
		}
	}
	if b.To != "" {
		if err := checkMemberName(b.To, "to"); err != nil {
			return nil, err
		}
	}
	return clusterAnswer(s.coordinator.TransferShard(ctx, uint32(shard), b.To))
}

// maxMemberBytes bounds the name or id of a node.
const maxMemberBytes = 128

// checkMemberName refuses what cannot be the name or the id of a node.
func checkMemberName(name, field string) error {
	if name == "" || len(name) > maxMemberBytes {
		return inField(reason.New(reason.InvalidMember, "write the name or the id of a node, of 1 to "+strconv.Itoa(maxMemberBytes)+" bytes; GET /v1/cluster lists them",
			"%.40q names no node", name), field)
	}
	return nil
}

func clusterAnswer(c node.Cluster, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return clusterJSON(&c), nil
}

func clusterJSON(c *node.Cluster) *Cluster {
	out := &Cluster{
		Cluster: c.ID, Incarnation: c.Incarnation, Node: c.Node, Shards: uint32(len(c.Shards)),
		Nodes: make([]ClusterNode, len(c.Members)), Placement: make([]ShardPlacement, len(c.Shards)),
	}
	for i := range c.Members {
		m := &c.Members[i]
		out.Nodes[i] = ClusterNode{ID: m.ID, Name: m.Name, Peer: m.Peer, HTTP: m.HTTP, GRPC: m.GRPC, State: m.State, Draining: m.Draining, Level: m.Level}
	}
	for i := range c.Shards {
		p := &c.Shards[i]
		out.Placement[i] = ShardPlacement{Shard: p.Shard, Leader: p.Leader, Term: p.Term, Voters: list(p.Voters), Learners: list(p.Learners)}
	}
	return out
}

// list is never null.
func list(names []string) []string {
	if names == nil {
		return []string{}
	}
	return names
}
