package sessions

import (
	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// registration is what a request is computed from.
type registration struct {
	generation uint64
	partitions uint32
}

// registrar removes the second service and registers it anew, now with one partition, now
// with two, while transactions use it.
type registrar struct {
	w    *World
	all  map[string][]registration // of each service, the last is in force
	busy bool
}

// movedService is the one that is removed and registered.
const movedService = "s1"

// registration is a service's in force; with a registrar sometimes the one before: some
// node's copy of the registry is behind.
func (w *World) registration(service string) registration {
	if w.registrar == nil {
		if service == movedService {
			return registration{1, 2}
		}
		return registration{1, 1}
	}
	all := w.registrar.all[service]
	last := len(all) - 1
	if last > 0 && !w.calm && w.rng.IntN(3) == 0 {
		last--
	}
	return all[last]
}

// found registers every service.
func (g *registrar) found() {
	w := g.w
	for _, p := range w.parts {
		g.put(p.name, 1, func() {})
	}
	all := func() bool { return len(g.all) == len(w.parts) }
	w.until(func() bool { return all() || w.late() }, 3_600_000_000)
	if !all() { // never up for long enough
		w.heal()
		w.until(all, 600_000_000)
	}
	w.At(w.UpTo(500_000), g.move)
}

// ask asks shard 0 until it has a definite answer. What was given up may still be done, at
// any time.
func (g *registrar) ask(ev func(shard.Token) shard.Event, done func(*shard.Reply)) {
	again := func() { g.w.At(1_000+g.w.UpTo(100_000), func() { g.ask(ev, done) }) }
	g.w.cluster.Ask(txnid.ID{}.At(0, uint32(g.w.opt.Shards)), ev, func(r *shard.Reply) {
		if r == nil {
			again()
			return
		}
		if r.Err != nil {
			switch r.Err.Code {
			case reason.NotLeader, reason.NotReady, reason.Overloaded, reason.OutcomeUnknown:
				again()
				return
			}
		}
		done(r)
	})
}

func (g *registrar) put(name string, partitions uint32, then func()) {
	g.ask(func(t shard.Token) shard.Event {
		return &shard.PutService{Token: t, Service: &txn.Service{
			Name: name, PrepareURL: "p", CommitURL: "c", RollbackURL: "r", ExecuteURL: "e",
			MaxInFlight: 1, PrepareTimeoutMs: 1000, FinishTimeoutMs: 1000, Partitions: partitions,
		}}
	}, func(r *shard.Reply) {
		switch {
		case r.Err != nil && (r.Err.Code == reason.InvalidService || r.Err.Code == reason.ServiceDraining):
			g.remove(then) // an earlier try came late
			return
		case r.Err != nil:
			g.w.Fail("registration of %s: %v", name, r.Err)
		}
		v := &r.Service.Service
		g.all[name] = append(g.all[name], registration{v.Generation, max(v.Partitions, 1)})
		then()
	})
}

// move removes the service, and then registers it with another number of partitions.
func (g *registrar) move() {
	if g.w.calm {
		return
	}
	g.busy = true
	g.remove(func() {
		g.w.report.Moved++
		g.busy = false
		g.w.At(g.w.UpTo(300_000), g.move)
	})
}

func (g *registrar) remove(then func()) {
	w := g.w
	g.ask(func(t shard.Token) shard.Event { return &shard.DeleteService{Token: t, Name: movedService} }, func(r *shard.Reply) {
		switch {
		case r.Err != nil && r.Err.Code != reason.UnknownService: // that: an earlier try has removed it
			w.Fail("removal of %s: %v", movedService, r.Err)
		case r.Err == nil && !r.Service.Removed: // the wait for it was given up
			w.At(w.UpTo(100_000), func() { g.remove(then) })
			return
		}
		all := g.all[movedService]
		g.put(movedService, 1+all[len(all)-1].partitions%2, then)
	})
}

// settle registers the service once more, when nothing is late any more: the last to arrive
// may have been a removal.
func (g *registrar) settle() {
	g.busy = true
	all := g.all[movedService]
	g.put(movedService, all[len(all)-1].partitions, func() { g.busy = false })
}

// split divides the locks of a transaction between its home and other shards, by the
// registrations that it goes by.
func (w *World) split(id txnid.ID, needs []lock.Need, by map[string]registration) (here []lock.Need, elsewhere []txn.LockPart) {
	shards := uint32(w.opt.Shards)
	for _, p := range txn.SplitLocks(lock.Fold(needs), func(service string) uint32 { return by[service].partitions }, shards) {
		if p.Shard == id.Shard(shards) {
			here = p.Needs
		} else {
			elsewhere = append(elsewhere, p)
		}
	}
	return here, elsewhere
}
