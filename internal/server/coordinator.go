package server

import (
	"context"

	"github.com/assent-tx/assent/internal/node"
)

// Coordinator is what the API needs of a node; *cluster.Cluster implements it.
//
// A context that ends stops the waiting, not the transaction: Submit then
// returns the current state of a transaction that is known to be durable, and
// reason.OutcomeUnknown (with the id) where even that is not known.
type Coordinator interface { //nolint:interfacebloat // one method for each method of the API
	Submit(ctx context.Context, s node.Submission) (node.Transaction, error)
	Transaction(ctx context.Context, id string) (node.Transaction, error)
	Transactions(ctx context.Context, q node.ListQuery) (node.TransactionPage, error)
	Rollback(ctx context.Context, id string) (node.Transaction, error)
	Resolve(ctx context.Context, id, note string) (node.Transaction, error)
	PutService(ctx context.Context, s node.ServiceSpec) (node.Service, error)
	Service(ctx context.Context, name string) (node.Service, error)
	Services(ctx context.Context) ([]node.Service, error)
	DeleteService(ctx context.Context, name string) (node.Service, error)
	Begin(ctx context.Context, b node.Beginning) (node.Transaction, error)
	Enlist(ctx context.Context, id string, s node.Step) (node.Transaction, error)
	Commit(ctx context.Context, id string, wait node.WaitMode) (node.Transaction, error)
	Heartbeat(ctx context.Context, id string) (node.Transaction, error)
	Locks(ctx context.Context, q node.LockQuery) (node.LockPage, error)
	Deadlocks(ctx context.Context) ([]node.Deadlock, error)
	Cluster(ctx context.Context) (node.Cluster, error)
	DrainMember(ctx context.Context, name string, draining bool) (node.Cluster, error)
	RemoveMember(ctx context.Context, name string) (node.Cluster, error)
	TransferShard(ctx context.Context, shard uint32, to string) (node.Cluster, error)
	Backup(ctx context.Context) (*node.Backup, error)
	Health() node.Health
}
