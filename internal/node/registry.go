package node

import (
	"context"
	"strings"
	"time"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/rm"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// registry is the local, read-only copy of shard 0's services. It is a hint: what
// is taken from it into a BEGIN names the generation, and the shard refuses one
// that is outdated.
type registry struct {
	byName map[string]*registered
}

// registered is one service. It is immutable.
type registered struct {
	service  *txn.Service
	endpoint rm.Endpoint
}

// publish copies the registry for readers outside the loop, if it has changed.
func (r *runner) publish() {
	st := r.sh.State()
	if r.idx != 0 || st.RegistryVersion() == r.published {
		return
	}
	r.published = st.RegistryVersion()
	old := r.n.registry.Load()
	services := st.Services()
	var changed []*registered
	next := &registry{byName: make(map[string]*registered, len(services))}
	for _, v := range services {
		e := old.byName[v.Name]
		if e == nil || e.service != v {
			e = &registered{service: v, endpoint: r.n.endpoint(v)}
			r.endpoints++
			e.endpoint.Version = r.endpoints
			changed = append(changed, e)
		}
		next.byName[v.Name] = e
	}
	for name := range old.byName { // order does not matter: each is dropped by itself
		if next.byName[name] == nil {
			r.n.metrics.forgetService(name)
			r.n.hints.forget(name)
		}
	}
	r.n.registry.Store(next)
	for _, e := range changed {
		r.n.caller.Update(e.service.Name, e.endpoint)
		for _, other := range r.n.runners[1:] {
			other.post(&shard.ServiceBack{Name: e.service.Name})
		}
	}
}

func (n *Node) endpoint(v *txn.Service) rm.Endpoint {
	return rm.Endpoint{
		Generation: v.Generation,
		PrepareURL: v.PrepareURL, CommitURL: v.CommitURL, RollbackURL: v.RollbackURL, StatusURL: v.StatusURL, ExecuteURL: v.ExecuteURL,
		ReadOnly: v.Capabilities&txn.ReadOnly != 0, OnePhase: v.Capabilities&txn.OnePhase != 0,
		MaxInFlight:    int(v.MaxInFlight),
		PrepareTimeout: time.Duration(v.PrepareTimeoutMs) * time.Millisecond,
		FinishTimeout:  time.Duration(v.FinishTimeoutMs) * time.Millisecond,
	}
}

// split divides a folded set between the home of a transaction and the other shards.
func (n *Node) split(reg *registry, home uint32, set []lock.Need) (here []lock.Need, foreign []txn.LockPart) {
	if n.cfg.Shards == 1 {
		return set, nil
	}
	for _, p := range txn.SplitLocks(set, reg.partitions, n.cfg.Shards) {
		if p.Shard == home {
			here = p.Needs
		} else {
			foreign = append(foreign, p)
		}
	}
	return here, foreign
}

func (reg *registry) partitions(service string) uint32 {
	if e := reg.byName[service]; e != nil {
		return e.service.Partitions
	}
	return 1
}

// nearby is the id, with its home where the first of the keys is kept: a transaction
// that finds all its locks at home needs no message between shards.
func (n *Node) nearby(id txnid.ID, op *Operation) txnid.ID {
	if n.cfg.Shards == 1 {
		return id
	}
	segment := ""
	if len(op.Locks) > 0 {
		segment, _, _ = strings.Cut(op.Locks[0].Key, "/")
	}
	return id.At(txn.LockShard(op.Service, segment, n.registry.Load().partitions(op.Service), n.cfg.Shards), n.cfg.Shards)
}

// Copies of the registry are a moment late at nodes that only follow it.
const (
	registryPatience = time.Second
	registryPause    = 2 * time.Millisecond
)

// awaitService waits until a service that is registered has arrived in the local copy.
func (n *Node) awaitService(ctx context.Context, name string) {
	for end := time.Now().Add(registryPatience); n.registry.Load().byName[name] == nil && time.Now().Before(end); {
		select {
		case <-time.After(registryPause):
		case <-ctx.Done():
			return
		case <-n.stop:
			return
		}
	}
}
