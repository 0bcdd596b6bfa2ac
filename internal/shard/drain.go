package shard

import "github.com/assent-tx/assent/internal/txn"

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

// drainedElsewhere reports whether no other shard has the service open.
func (s *Shard) drainedElsewhere(name string) bool {
	return s.cfg.Shards <= 1 || len(s.foreign.drains[name]) == int(s.cfg.Shards)-1
}

func (s *Shard) drainAsked(m *Message) {
	if s.st.DrainedHere(m.Service, m.Generation) {
		s.send(Message{Kind: MessageDrained, To: m.From, Service: m.Service, Generation: m.Generation, Open: s.st.OpenAt(m.Service)})
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
	s.send(Message{Kind: MessageDrained, Service: e.Name, Generation: e.Token, Open: s.st.OpenAt(e.Name)})
}

func (s *Shard) drained(m *Message) {
	v, done := s.st.Service(m.Service), s.foreign.drains[m.Service]
	if v == nil || v.Generation != m.Generation || done == nil || m.Open > 0 {
		return
	}
	done[m.From] = true
	s.removeIfDrained(m.Service)
}
