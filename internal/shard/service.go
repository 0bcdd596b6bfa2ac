package shard

import "github.com/assent-tx/assent/internal/txn"

// The registry lives in shard 0. A service is removed in two records: DRAIN, after
// which no transaction may begin there, and REMOVE, once the last has ended.

func (s *Shard) putService(ev *PutService) {
	if !s.admit(ev.Token) {
		return
	}
	command := txn.AppendPutService(nil, ev.Service)
	if err := s.tooNew(command); err != nil {
		s.refuse(ev.Token, err)
		return
	}
	s.waitService(ev.Service.Name, svcWaiter{token: ev.Token})
	s.command(append(s.openEntry(), command...))
}

func (s *Shard) deleteService(ev *DeleteService) {
	if s.admit(ev.Token) {
		s.waitService(ev.Name, svcWaiter{token: ev.Token, drain: true})
		s.command(txn.AppendDrainService(s.openEntry(), ev.Name))
	}
}

func (s *Shard) waitService(name string, w svcWaiter) {
	s.services[name] = append(s.services[name], w)
	s.waiting++
}

// serviceDone answers the request whose record was applied: this leader's records of one
// service are applied in the order in which it proposed them.
func (s *Shard) serviceDone(name string, r Reply) (w svcWaiter) {
	queue := s.services[name]
	if !s.mine || len(queue) == 0 {
		return svcWaiter{} // nobody's here
	}
	w = queue[0]
	if s.services[name] = queue[1:]; len(queue) == 1 {
		delete(s.services, name)
	}
	if w.token == 0 {
		return w // the request was given up
	}
	if r.Service != nil || r.Err != nil {
		s.waiting--
		r.Token = w.token
		s.reply(r)
	}
	return w
}

func (s *Shard) draining(e *txn.Effect) {
	s.notice(Notice{Kind: NoticeService, Service: e.Name, Text: "draining"})
	if w := s.serviceDone(e.Name, Reply{}); w.token != 0 {
		s.removals[e.Name] = append(s.removals[e.Name], w.token)
	}
	s.lazyUrgent = s.lazyUrgent || len(s.lazy) > 0
	s.drainOthers(e.Name)
	s.removeIfDrained(e.Name)
}

func (s *Shard) removeIfDrained(name string) {
	v := s.st.Service(name)
	if v == nil || !v.Draining {
		return
	}
	s.drains[name] = struct{}{}
	// Who uses it is looked at last: that may look at every open transaction.
	if _, under := s.removing[name]; under || !s.drainedElsewhere(name) || s.inUse(name) {
		return
	}
	s.removing[name] = struct{}{}
	s.command(txn.AppendRemoveService(s.openEntry(), name))
}

func (s *Shard) removed(name string) {
	delete(s.removing, name)
	delete(s.drains, name)
	s.notice(Notice{Kind: NoticeService, Service: name, Text: "removed"})
	for _, token := range s.removals[name] {
		s.waiting--
		s.reply(Reply{Token: token, Service: &ServiceView{Service: txn.Service{Name: name}, Removed: true}})
	}
	delete(s.removals, name)
	delete(s.backoff, name)
	delete(s.foreign.drains, name)
}

func (s *Shard) serviceView(v *txn.Service) *ServiceView {
	if v == nil {
		return nil
	}
	return &ServiceView{Service: *v, Open: s.st.OpenAt(v.Name)}
}
