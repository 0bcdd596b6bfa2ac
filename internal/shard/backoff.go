package shard

import "github.com/assent-tx/assent/internal/txnid"

// Branches in backoff, by service.

// ref names a branch.
type ref struct {
	id     txnid.ID
	branch int
}

// backoffList is a queue: who has waited longest is asked first.
type backoffList struct{ refs []ref }

func (s *Shard) listBackoff(service string, id txnid.ID, i int) {
	b := &s.runs[id].branches[i]
	if b.listed {
		return
	}
	b.listed = true
	l := s.backoff[service]
	if l == nil {
		l = &backoffList{}
		s.backoff[service] = l
	}
	l.refs = append(l.refs, ref{id, i})
}

// wakeService retries a few branches at once, because their service has just
// answered. Each answer wakes the next few, so a recovered service is met by a
// growing trickle, not by a storm.
func (s *Shard) wakeService(service string, n int) {
	l := s.backoff[service]
	for l != nil && n > 0 && len(l.refs) > 0 {
		next := l.refs[0]
		l.refs = l.refs[1:]
		r := s.runs[next.id]
		if r == nil {
			continue
		}
		b := &r.branches[next.branch]
		b.listed = false
		if b.retryAtUs != 0 {
			s.retryNow(r, next.branch)
			n--
		}
	}
	if l != nil && len(l.refs) == 0 {
		delete(s.backoff, service)
	}
}
