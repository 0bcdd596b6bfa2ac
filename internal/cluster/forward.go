package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/peer"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txnid"
)

func decode(b []byte, v any) error { return json.Unmarshal(b, v) }

// Requests between nodes. A handler executes here; it does not hand on.
type (
	enlist struct {
		ID   string    `json:"id"`
		Step node.Step `json:"step"`
	}
	commit struct {
		ID   string        `json:"id"`
		Wait node.WaitMode `json:"wait"`
	}
	resolve struct{ ID, Note string }
	listing struct {
		Shard uint32         `json:"shard"`
		Query node.ListQuery `json:"query"`
	}
	lockListing struct {
		Shard uint32         `json:"shard"`
		Query node.LockQuery `json:"query"`
	}
	openAt struct {
		Shard    uint32   `json:"shard"`
		Services []string `json:"services"`
	}
)

func doSubmit(ctx context.Context, n *node.Node, s node.Submission) (node.Transaction, error) {
	return n.Submit(ctx, s)
}

func doTransaction(ctx context.Context, n *node.Node, id string) (node.Transaction, error) {
	return n.Transaction(ctx, id)
}

func doRollback(ctx context.Context, n *node.Node, id string) (node.Transaction, error) {
	return n.Rollback(ctx, id)
}

func doResolve(ctx context.Context, n *node.Node, q resolve) (node.Transaction, error) {
	return n.Resolve(ctx, q.ID, q.Note)
}

func doBegin(ctx context.Context, n *node.Node, b node.Beginning) (node.Transaction, error) {
	return n.Begin(ctx, b)
}

func doEnlist(ctx context.Context, n *node.Node, q enlist) (node.Transaction, error) {
	return n.Enlist(ctx, q.ID, q.Step)
}

func doCommit(ctx context.Context, n *node.Node, q commit) (node.Transaction, error) {
	return n.Commit(ctx, q.ID, q.Wait)
}

func doHeartbeat(ctx context.Context, n *node.Node, id string) (node.Transaction, error) {
	return n.Heartbeat(ctx, id)
}

func doPutService(ctx context.Context, n *node.Node, s node.ServiceSpec) (node.Service, error) {
	return n.PutService(ctx, s)
}

func doDeleteService(ctx context.Context, n *node.Node, name string) (node.Service, error) {
	return n.DeleteService(ctx, name)
}

func doRegistrations(ctx context.Context, n *node.Node, services []string) ([]string, error) {
	return n.Registrations(ctx, services)
}

func doServices(ctx context.Context, n *node.Node, name string) ([]node.Service, error) {
	return n.ServicesAt(ctx, name)
}

func doTransactions(ctx context.Context, n *node.Node, q listing) ([]node.Transaction, error) {
	return n.TransactionsAt(ctx, q.Shard, q.Query)
}

func doLocks(ctx context.Context, n *node.Node, q lockListing) ([]node.Lock, error) {
	return n.LocksAt(ctx, q.Shard, q.Query)
}

func doDeadlocks(ctx context.Context, n *node.Node, shard uint32) ([]node.Deadlock, error) {
	return n.DeadlocksAt(ctx, shard)
}

func doOpen(ctx context.Context, n *node.Node, q openAt) ([]int, error) {
	return n.OpenAt(ctx, q.Shard, q.Services)
}

// Handlers are the calls that this node answers; to be given to its port.
func (c *Cluster) Handlers() map[string]peer.Handler {
	return map[string]peer.Handler{
		"submit": serve(c, doSubmit), "transaction": serve(c, doTransaction), "rollback": serve(c, doRollback), "resolve": serve(c, doResolve),
		"begin": serve(c, doBegin), "enlist": serve(c, doEnlist), "commit": serve(c, doCommit), "heartbeat": serve(c, doHeartbeat),
		"put-service": serve(c, doPutService), "delete-service": serve(c, doDeleteService), "registrations": serve(c, doRegistrations),
		"services": serve(c, doServices), "transactions": serve(c, doTransactions), "locks": serve(c, doLocks),
		"deadlocks": serve(c, doDeadlocks), "open": serve(c, doOpen), "backup": serve(c, c.doBackup),
		"put-member": serve(c, c.doPutMember), "treat-member": serve(c, c.doTreat), "drop-member": serve(c, c.doDropMember), "change": serve(c, c.doChange), "place": serve(c, c.doPlace), "admit": serve(c, c.doAdmit),
		"messages": c.takeMessages, "status": c.takeStatus, "relay": c.takeRelay, "hello": c.takeHello, "join": c.takeJoin,
	}
}

// serve answers a call by executing it here.
func serve[Q, A any](c *Cluster, do func(context.Context, *node.Node, Q) (A, error)) peer.Handler {
	return func(ctx context.Context, from peer.Caller, body []byte) ([]byte, error) {
		var q question[Q]
		if from.Stranger {
			return nil, errors.New("a node of another cluster may not ask this")
		}
		if err := decode(body, &q); err != nil {
			return nil, err
		}
		r := c.running.Load()
		if r == nil {
			return encode(envelope[A]{Error: notStarted()}), nil
		}
		answer, err := do(ctx, r.node, q.Request)
		out := envelope[A]{Answer: answer}
		if err != nil && !errors.As(err, &out.Error) {
			out.Error = reason.New(reason.Internal, "", "%v", err)
		}
		return encode(out), nil
	}
}

func (c *Cluster) home(id string) (uint32, error) {
	r := c.running.Load()
	if r == nil {
		return 0, notStarted()
	}
	parsed, err := txnid.Parse(id)
	if err != nil {
		return 0, reason.New(reason.InvalidID, "make ids as UUIDv7 (RFC 9562), in lower case", "%q: %v", id, err)
	}
	return parsed.Shard(r.node.Shards()), nil
}

// Submit starts a one-shot transaction, or finds the one that its id names.
func (c *Cluster) Submit(ctx context.Context, s node.Submission) (node.Transaction, error) {
	if r := c.running.Load(); r != nil && s.ID == "" { // made here, so that the request may be repeated below
		s.ID = r.node.NewSubmissionID(&s)
	}
	shard, err := c.home(s.ID)
	if err != nil {
		return node.Transaction{}, err
	}
	return at(ctx, c, shard, "submit", s, doSubmit)
}

// Transaction returns the current state of a transaction.
func (c *Cluster) Transaction(ctx context.Context, id string) (node.Transaction, error) {
	shard, err := c.home(id)
	if err != nil {
		return node.Transaction{}, err
	}
	return at(ctx, c, shard, "transaction", id, doTransaction)
}

// Rollback aborts a transaction that is not decided.
func (c *Cluster) Rollback(ctx context.Context, id string) (node.Transaction, error) {
	shard, err := c.home(id)
	if err != nil {
		return node.Transaction{}, err
	}
	return at(ctx, c, shard, "rollback", id, doRollback)
}

// Resolve closes a hazard with an operator's note.
func (c *Cluster) Resolve(ctx context.Context, id, note string) (node.Transaction, error) {
	shard, err := c.home(id)
	if err != nil {
		return node.Transaction{}, err
	}
	return at(ctx, c, shard, "resolve", resolve{id, note}, doResolve)
}

// Begin starts an interactive transaction, or finds the one that its id names.
func (c *Cluster) Begin(ctx context.Context, b node.Beginning) (node.Transaction, error) {
	if r := c.running.Load(); r != nil && b.ID == "" {
		var err error
		if b.ID, err = r.node.NewBeginningID(&b); err != nil {
			return node.Transaction{}, err
		}
	}
	shard, err := c.home(b.ID)
	if err != nil {
		return node.Transaction{}, err
	}
	return at(ctx, c, shard, "begin", b, doBegin)
}

// Enlist adds a step to an interactive transaction, or finds the one that its number
// names.
func (c *Cluster) Enlist(ctx context.Context, id string, s node.Step) (node.Transaction, error) {
	shard, err := c.home(id)
	if err != nil {
		return node.Transaction{}, err
	}
	return at(ctx, c, shard, "enlist", enlist{id, s}, doEnlist)
}

// Commit asks for the commit of an interactive transaction.
func (c *Cluster) Commit(ctx context.Context, id string, w node.WaitMode) (node.Transaction, error) {
	shard, err := c.home(id)
	if err != nil {
		return node.Transaction{}, err
	}
	return at(ctx, c, shard, "commit", commit{id, w}, doCommit)
}

// Heartbeat says that the client of an interactive transaction is alive.
func (c *Cluster) Heartbeat(ctx context.Context, id string) (node.Transaction, error) {
	shard, err := c.home(id)
	if err != nil {
		return node.Transaction{}, err
	}
	return at(ctx, c, shard, "heartbeat", id, doHeartbeat)
}

// PutService registers a service, or replaces its endpoints and limits.
func (c *Cluster) PutService(ctx context.Context, s node.ServiceSpec) (node.Service, error) {
	return at(ctx, c, 0, "put-service", s, doPutService)
}

// DeleteService drains a service and removes it.
func (c *Cluster) DeleteService(ctx context.Context, name string) (node.Service, error) {
	return at(ctx, c, 0, "delete-service", name, doDeleteService)
}

// registrationsWithin bounds the question how services are registered.
const registrationsWithin = 2 * time.Second

// Registrations asks the leader of shard 0.
func (c *Cluster) Registrations(ctx context.Context, services []string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, registrationsWithin)
	defer cancel()
	return at(ctx, c, 0, "registrations", services, doRegistrations)
}

// ServicesAt implements node.Parts.
func (c *Cluster) ServicesAt(ctx context.Context, name string) ([]node.Service, error) {
	return at(ctx, c, 0, "services", name, doServices)
}

// TransactionsAt implements node.Parts.
func (c *Cluster) TransactionsAt(ctx context.Context, shard uint32, q node.ListQuery) ([]node.Transaction, error) {
	return at(ctx, c, shard, "transactions", listing{shard, q}, doTransactions)
}

// LocksAt implements node.Parts.
func (c *Cluster) LocksAt(ctx context.Context, shard uint32, q node.LockQuery) ([]node.Lock, error) {
	return at(ctx, c, shard, "locks", lockListing{shard, q}, doLocks)
}

// DeadlocksAt implements node.Parts.
func (c *Cluster) DeadlocksAt(ctx context.Context, shard uint32) ([]node.Deadlock, error) {
	return at(ctx, c, shard, "deadlocks", shard, doDeadlocks)
}

// OpenAt implements node.Parts.
func (c *Cluster) OpenAt(ctx context.Context, shard uint32, services []string) ([]int, error) {
	return at(ctx, c, shard, "open", openAt{shard, services}, doOpen)
}
