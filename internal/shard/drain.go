package shard

import (
	"slices"

	"github.com/assent-tx/assent/internal/mutant"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
)

// Removing a service: every shard drains before the registry's lets go of it.

// drainOthers asks the other shards until they have no transaction open at the service.
func (s *Shard) drainOthers(name string) {
	v := s.st.Service(name)
	if s.cfg.Shards <= 1 || v == nil || !v.Draining {
		delete(s.foreign.drains, name)
		return
	}
	done := s.foreign.drains[name]
	if done == nil {
		done = map[uint32]bool{}
		s.foreign.drains[name] = done
	}
	for shard := uint32(1); shard < s.cfg.Shards; shard++ {
		if !done[shard] {
			s.send(Message{Kind: MessageDrain, To: shard, Service: name, Generation: v.Generation})
		}
	}
	if len(done) < int(s.cfg.Shards)-1 {
		s.again(resend{kind: resendDrain, service: name})
	}
}

// inUse reports whether a transaction has a branch at the service, or a lock of it, here or
// asked for from here. One that has only locks counts too: registered anew with other
// partitions, the service would have them granted twice.
func (s *Shard) inUse(name string) bool {
	if mutant.On("removal-misses-locks") {
		return s.st.OpenAt(name) > 0
	}
	if s.st.OpenAt(name) > 0 || s.st.LockInUse(name) {
		return true
	}
	if s.cfg.Shards > 1 {
		for _, r := range s.runs { // order does not matter: is there one?
			for i := range r.t.Foreign {
				if slices.Contains(r.t.Foreign[i].Services, name) {
					return true
				}
			}
		}
	}
	return false
}

// stillOpen is what the registry is told: how many transactions keep the service here, or
// 1 if they are not counted.
func (s *Shard) stillOpen(name string) int {
	if n := s.st.OpenAt(name); n > 0 || !s.inUse(name) {
		return n
	}
	return 1
}

// lookAtDrains removes what a transaction that is over, or a lock that was given back, was
// the last to keep.
func (s *Shard) lookAtDrains() {
	if len(s.drains) == 0 {
		return
	}
	for _, name := range sortedNames(s.drains) {
		s.removeIfDrained(name)
	}
}

// drainedElsewhere reports whether no other shard has the service open.
func (s *Shard) drainedElsewhere(name string) bool {
	return s.cfg.Shards <= 1 || len(s.foreign.drains[name]) == int(s.cfg.Shards)-1
}

func (s *Shard) drainAsked(m *Message) {
	if s.st.DrainedHere(m.Service, m.Generation) {
		s.send(Message{Kind: MessageDrained, To: m.From, Service: m.Service, Generation: m.Generation, Open: s.stillOpen(m.Service)})
		return
	}
	if _, under := s.foreign.drainOut[m.Service]; !under {
		s.foreign.drainOut[m.Service] = struct{}{}
		s.command(txn.AppendDrainHere(s.openEntry(), m.Service, m.Generation))
	}
}

func (s *Shard) drainedHere(e *txn.Effect) {
	delete(s.foreign.drainOut, e.Name)
	s.lazyUrgent = s.lazyUrgent || len(s.lazy) > 0
	s.send(Message{Kind: MessageDrained, Service: e.Name, Generation: e.Token, Open: s.stillOpen(e.Name)})
}

func (s *Shard) drained(m *Message) {
	v, done := s.st.Service(m.Service), s.foreign.drains[m.Service]
	if v == nil || v.Generation != m.Generation || done == nil || m.Open > 0 {
		return
	}
	done[m.From] = true
	s.removeIfDrained(m.Service)
}

// takesNoLocks says why locks of these registrations are not taken, or nil. What this leader
// has proposed counts already: who looks at a drained service's locks (inUse) must not miss
// one whose record is on its way.
func (s *Shard) takesNoLocks(of []Registration) *reason.Error {
	if mutant.On("locks-of-any-registration") {
		return nil
	}
	for _, v := range of {
		why := s.st.Admits(v.Service, v.Generation)
		if _, under := s.foreign.drainOut[v.Service]; under && why == "" {
			why = reason.ServiceDraining
		}
		for _, w := range s.services[v.Service] {
			if w.drain && why == "" {
				why = reason.ServiceDraining
			}
		}
		if why != "" {
			return refusal(why, v.Service)
		}
	}
	return nil
}
