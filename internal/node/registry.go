package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
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

// fingerprint tells registrations of a service apart.
func fingerprint(v *txn.Service) string {
	text := txn.AppendPutService(nil, v)
	text = fmt.Appendf(text, " %d %t", v.Generation, v.Draining)
	h := sha256.Sum256(text)
	return hex.EncodeToString(h[:16])
}

// Registrations is a fingerprint of each service's registration, "" of one that is not registered,
// of shard 0, which this node must lead.
func (n *Node) Registrations(ctx context.Context, services []string) ([]string, error) {
	prints := make([]string, len(services))
	err := n.lead(ctx, 0, func(sh *shard.Shard) {
		for i, name := range services {
			if v := sh.State().Service(name); v != nil {
				prints[i] = fingerprint(v)
			}
		}
	})
	return prints, err
}

// is reports whether services are registered in the copy as the prints say.
func (reg *registry) is(services, prints []string) bool {
	for i, name := range services {
		here := ""
		if e := reg.byName[name]; e != nil {
			here = fingerprint(e.service)
		}
		if here != prints[i] {
			return false
		}
	}
	return true
}

// fromRegistry reports whether a refusal says how a service is registered: from an outdated
// copy it is no answer, since who reads it does not try again.
func fromRegistry(code reason.Code) bool {
	switch code {
	case reason.UnknownService, reason.ServiceDraining, reason.CannotExecute, reason.KeysRequired:
		return true
	}
	return false
}

// withRegistry makes a request that is computed from a copy of the registry, in which the
// services may be late. What is refused for how they are registered is compared with the
// registry itself, and computed anew when the copy has followed. The copy can be outdated
// by the time the record is applied, too: the shard then refuses it and stores nothing
// (computed says so).
func (n *Node) withRegistry(ctx context.Context, services func() []string, request func(*registry) (Transaction, *reason.Error)) (Transaction, *reason.Error) {
	for try := 1; ; try++ {
		used := n.registry.Load()
		t, refused := request(used)
		followed := func(reg *registry) bool { return reg != used }
		switch {
		case refused == errOutdated:
		case refused != nil && fromRegistry(refused.Code):
			names := services()
			prints, err := n.Registrations(ctx, names)
			if err != nil && n.cfg.Peers != nil && !n.runners[0].health().Leading {
				prints, err = n.cfg.Peers.Registrations(ctx, names)
			}
			if err != nil {
				return t, asReason(err)
			}
			if len(prints) != len(names) || used.is(names, prints) {
				return t, refused
			}
			followed = func(reg *registry) bool { return reg.is(names, prints) }
		default:
			return t, refused
		}
		if try == registryTries || !n.awaitRegistry(ctx, followed) {
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
