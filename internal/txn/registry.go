package txn

import (
	"sort"

	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/reason"
)

// Services returns the registry in order of names.
func (s *State) Services() []*Service {
	list := make([]*Service, 0, len(s.services))
	for _, v := range s.services {
		list = append(list, v)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// applyPutService registers a service or replaces its endpoints and limits; the
// identity stays. What a transaction's record took from the registry - isolation
// and capabilities - changes only while no transaction is open there, and then
// with a new generation, so that a BEGIN computed from the old one is refused.
//
// A service that drains keeps draining, but may move: what it waits for is often
// the answer of a participant that is no longer where it was.
func (s *State) applyPutService(v *Service) {
	old := s.services[v.Name]
	v.Draining = false
	v.UpdatedMs = s.nowMs
	refuse := func(why reason.Code) { s.emit(Effect{Kind: EffectServiceRefused, Name: v.Name, Reason: why}) }
	if old == nil {
		if len(s.services) >= MaxServices {
			refuse(reason.TooManyServices)
			return
		}
		v.RegisteredMs = s.nowMs
		s.nextGen++
		v.Generation = s.nextGen
		if mutant.On("apply-reads-unreplicated") {
			v.Generation = s.registry + 1
		}
	} else {
		v.RegisteredMs, v.Generation, v.Draining = old.RegisteredMs, old.Generation, old.Draining
		if old.Isolated != v.Isolated || old.Capabilities != v.Capabilities || max(old.Partitions, 1) != max(v.Partitions, 1) {
			switch {
			case old.Draining:
				refuse(reason.ServiceDraining)
				return
			case s.OpenAt(v.Name) > 0, s.shards > 1: // others may have it open: it is removed first
				refuse(reason.InvalidService)
				return
			}
			s.nextGen++
			v.Generation = s.nextGen
		}
	}
	s.services[v.Name] = v
	s.registry++
	s.serve(v.Name, v.Generation)
	s.emit(Effect{Kind: EffectServicePut, Name: v.Name, Service: v})
}

func (s *State) applyDrainService(name string) {
	old := s.services[name]
	if old == nil {
		s.emit(Effect{Kind: EffectServiceRefused, Name: name, Reason: reason.UnknownService})
		return
	}
	v := *old
	v.Draining = true
	s.services[name] = &v
	s.registry++
	k := s.serve(name, v.Generation)
	k.drained = true
	s.emit(Effect{Kind: EffectServiceDraining, Name: name, Service: &v})
}

func (s *State) applyRemoveService(name string) {
	v := s.services[name]
	if v == nil || !v.Draining || s.OpenAt(name) > 0 {
		return // overtaken: the leader asks again when the last branch has ended
	}
	delete(s.services, name)
	delete(s.served, name) // nextGen tells its generations from those yet to come
	s.registry++
	s.emit(Effect{Kind: EffectServiceRemoved, Name: name})
}

// applyDrainHere: a shard beside the registry's takes no more branches of a generation.
func (s *State) applyDrainHere(name string, generation uint64) {
	if v := s.serve(name, generation); v.generation == generation {
		v.drained = true
	}
	s.emit(Effect{Kind: EffectDrainedHere, Name: name, Token: generation})
}

// DrainedHere reports whether this shard takes no more branches of a generation.
func (s *State) DrainedHere(name string, generation uint64) bool {
	v := s.served[name]
	return v != nil && (v.generation > generation || v.generation == generation && v.drained)
}
