package rmhttp

import (
	"time"

	"github.com/assent-tx/assent/internal/rm"
	"github.com/assent-tx/assent/internal/txnid"
)

// job is one call on its way.
type job struct {
	call    *rm.Call
	done    func(rm.Result)
	service *service
	end     rm.Endpoint // the service's when the call was started
	queued  time.Time   // set when it had to wait
	why     string      // set when it was refused
	void    bool        // it waits, and its branch has been decided meanwhile
	try     attempt     // of a call under way
}

// branch identifies the one prepare or execute that may wait or be under way for a
// branch.
type branch struct {
	txn    txnid.ID
	number uint32
}

func (j *job) branch() branch { return branch{j.call.Txn, j.call.Branch} }

// service is the queue and the slots of one service. Client.mu guards it.
//
// Invariants: prepares in flight <= maxPrepares <= maxInFlight, and all in flight
// <= maxInFlight unless the limit was lowered under running calls.
type service struct {
	maxInFlight int
	maxPrepares int
	inFlight    int // all phases
	preparing   int // of these, prepares and executes
	finishes    fifo
	prepares    fifo

	end    rm.Endpoint       // the latest that is known
	flying map[*job]struct{} // under way
}

// setLimit keeps a quarter of the slots (at least one, when there are two) for
// the calls that end transactions.
func (s *service) setLimit(maxInFlight int) {
	maxInFlight = max(maxInFlight, 1)
	s.maxInFlight = maxInFlight
	s.maxPrepares = max(maxInFlight-max(maxInFlight/4, 1), 1)
}

func (s *service) mayStart(p rm.Phase) bool {
	return s.inFlight < s.maxInFlight && (!p.Works() || s.preparing < s.maxPrepares)
}

func (s *service) start(j *job) {
	j.end = s.end
	s.flying[j] = struct{}{}
	s.inFlight++
	if j.call.Phase.Works() {
		s.preparing++
	}
}

func (s *service) finish(j *job) {
	delete(s.flying, j)
	s.inFlight--
	if j.call.Phase.Works() {
		s.preparing--
	}
}

// register takes an endpoint unless a later one is known.
func (s *service) register(e rm.Endpoint) {
	if e.Version >= s.end.Version {
		s.end = e
		s.setLimit(e.MaxInFlight)
	}
}

func (s *service) push(j *job) {
	if j.call.Phase.Works() {
		s.prepares.push(j)
		return
	}
	s.finishes.push(j)
}

// pop returns the waiting call to start next: those that end transactions first.
func (s *service) pop() (*job, bool) {
	switch {
	case s.finishes.len() > 0 && s.mayStart(rm.Commit):
		return s.finishes.pop(), true
	case s.prepares.len() > 0 && s.mayStart(rm.Prepare):
		return s.prepares.pop(), true
	}
	return nil, false
}

func (s *service) waiting() int { return s.finishes.len() + s.prepares.len() }

func (s *service) idle() bool { return s.inFlight == 0 && s.waiting() == 0 }

// fifo is a queue in a slice. Its memory goes when it runs empty.
type fifo struct {
	jobs []*job
	head int
}

func (f *fifo) len() int { return len(f.jobs) - f.head }

func (f *fifo) push(j *job) {
	if f.head > 64 && f.head > len(f.jobs)/2 {
		n := copy(f.jobs, f.jobs[f.head:])
		clear(f.jobs[n:])
		f.jobs, f.head = f.jobs[:n], 0
	}
	f.jobs = append(f.jobs, j)
}

func (f *fifo) pop() *job {
	j := f.jobs[f.head]
	f.jobs[f.head] = nil
	f.head++
	if f.head == len(f.jobs) {
		*f = fifo{}
	}
	return j
}
