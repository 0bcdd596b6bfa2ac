package server

import (
	"context"

	"google.golang.org/protobuf/proto"

	assentv1 "github.com/assent-tx/assent/api/assent/v1"
	"github.com/assent-tx/assent/internal/node"
)

type clusterService struct {
	assentv1.UnimplementedClusterServiceServer
	s *Server
}

func (v *clusterService) GetCluster(ctx context.Context, r *assentv1.GetClusterRequest) (*assentv1.Cluster, error) {
	if err := noUnknown(r, "the request"); err != nil {
		return nil, err
	}
	return clusterMessage(v.s.coordinator.Cluster(ctx))
}

func (v *clusterService) DrainNode(ctx context.Context, r *assentv1.DrainNodeRequest) (*assentv1.Cluster, error) {
	if err := checkNodeNamed(r, r.GetName()); err != nil {
		return nil, err
	}
	return clusterMessage(v.s.coordinator.DrainMember(ctx, r.GetName(), true))
}

func (v *clusterService) UndrainNode(ctx context.Context, r *assentv1.UndrainNodeRequest) (*assentv1.Cluster, error) {
	if err := checkNodeNamed(r, r.GetName()); err != nil {
		return nil, err
	}
	return clusterMessage(v.s.coordinator.DrainMember(ctx, r.GetName(), false))
}

func (v *clusterService) RemoveNode(ctx context.Context, r *assentv1.RemoveNodeRequest) (*assentv1.Cluster, error) {
	if err := checkNodeNamed(r, r.GetName()); err != nil {
		return nil, err
	}
	return clusterMessage(v.s.coordinator.RemoveMember(ctx, r.GetName()))
}

func (v *clusterService) TransferShard(ctx context.Context, r *assentv1.TransferShardRequest) (*assentv1.Cluster, error) {
	if err := noUnknown(r, "the request"); err != nil {
		return nil, err
	}
	if r.GetTo() != "" {
		if err := checkMemberName(r.GetTo(), "to"); err != nil {
			return nil, err
		}
	}
	return clusterMessage(v.s.coordinator.TransferShard(ctx, r.GetShard(), r.GetTo()))
}

func checkNodeNamed(m proto.Message, name string) error {
	if err := noUnknown(m, "the request"); err != nil {
		return err
	}
	return checkMemberName(name, "name")
}

func clusterMessage(c node.Cluster, err error) (*assentv1.Cluster, error) {
	if err != nil {
		return nil, err
	}
	return clusterProto(&c), nil
}

func clusterProto(c *node.Cluster) *assentv1.Cluster {
	out := &assentv1.Cluster{Cluster: c.ID, Incarnation: c.Incarnation, Node: c.Node, Shards: uint32(len(c.Shards))}
	for i := range c.Members {
		m := &c.Members[i]
		out.Nodes = append(out.Nodes, &assentv1.ClusterNode{
			Id: m.ID, Name: m.Name, Peer: m.Peer, Http: m.HTTP, Grpc: m.GRPC, State: nodeStates.values[m.State], Draining: m.Draining, Level: m.Level,
		})
	}
	for i := range c.Shards {
		p := &c.Shards[i]
		out.Placement = append(out.Placement, &assentv1.ShardPlacement{Shard: p.Shard, Leader: p.Leader, Term: p.Term, Voters: p.Voters, Learners: p.Learners})
	}
	return out
}
