package node

import (
	"context"
	"iter"
	"strings"
	"time"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
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
	registryTries    = 3
)

// registryWith is a copy of the registry that has each of the services. One that has not
// arrived here is waited for; who reads "unknown" does not try again, so shard 0's leader
// is asked before that is said.
func (n *Node) registryWith(ctx context.Context, services iter.Seq[string]) (*registry, *reason.Error) {
	reg, waited := n.registry.Load(), false
	for name := range services {
		if reg.byName[name] != nil {
			continue
		}
		known, err := n.KnowsService(ctx, name)
		if err != nil && n.cfg.Peers != nil && !n.runners[0].health().Leading {
			known, err = n.cfg.Peers.KnowsService(ctx, name)
		}
		switch {
		case err != nil:
			return nil, asReason(err)
		case !known:
			return nil, reason.New(reason.UnknownService, "register it with PUT /v1/services/"+name, "service %q is not registered", name)
		case !n.awaitRegistry(ctx, func(reg *registry) bool { return reg.byName[name] != nil }):
			return nil, registryBehind()
		}
		reg, waited = n.registry.Load(), true
	}
	if waited {
		for name := range services {
			if reg.byName[name] == nil {
				return nil, registryBehind() // removed while another was waited for
			}
		}
	}
	return reg, nil
}

// withRegistry makes a request that is computed from a copy of the registry. The copy can
// be outdated by the time the record is applied: the shard then refuses it and stores
// nothing (computed says so), and the request is computed anew from the next copy.
func (n *Node) withRegistry(ctx context.Context, request func() (Transaction, *reason.Error)) (Transaction, *reason.Error) {
	for try := 1; ; try++ {
		used := n.registry.Load()
		t, err := request()
		if err != errOutdated {
			return t, err
		}
		if try == registryTries || !n.awaitRegistry(ctx, func(reg *registry) bool { return reg != used }) {
			return t, registryBehind()
		}
	}
}

// errOutdated stays inside of withRegistry.
var errOutdated = registryBehind()

// computed is the answer to a request inside of withRegistry, which had no draining service
// in its copy.
func (n *Node) computed(rep *shard.Reply) (Transaction, *reason.Error) {
	t, err := n.transaction(rep)
	if err != nil && (err.Code == reason.UnknownService || err.Code == reason.ServiceDraining) {
		err = errOutdated
	}
	return t, err
}

func registryBehind() *reason.Error {
	e := reason.New(reason.NotReady, "try again, or at another node", "this node's copy of the registry of services is behind")
	e.RetryAfterMs = 200
	return e
}

// awaitRegistry waits until the local copy is as asked for, and says whether it is.
func (n *Node) awaitRegistry(ctx context.Context, ok func(*registry) bool) bool {
	for end := time.Now().Add(registryPatience); time.Now().Before(end); {
		if ok(n.registry.Load()) {
			return true
		}
		select {
		case <-time.After(registryPause):
		case <-ctx.Done():
			return false
		case <-n.stop:
			return false
		}
	}
	return false
}
