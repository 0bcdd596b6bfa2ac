package rmhttp

import (
	"context"
	"crypto/tls"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/assent-tx/assent/internal/rm"
)

// Config holds the limits of a Client. Zero values take the defaults.
type Config struct {
	MaxResponseBytes   int           // of one answer; over it the answer is indefinite. Default 1 MiB
	MaxResults         int           // values a prepare answer may return; over it the answer is indefinite. Default 65,536, one for each operation
	MaxWaitingPrepares int           // calls waiting for a slot, per service; further ones are refused unsent. Default 10,000
	MaxWaitingFinishes int           // the same for commit, rollback and status. Default 100,000
	MaxIdleConns       int           // idle connections kept per host, until the timeout below. Default 2,048
	DialTimeout        time.Duration // of one connect, TLS handshake apart. Default 2s
	IdleConnTimeout    time.Duration // after which an idle connection is closed. Default 60s
	TLS                *tls.Config   // for https endpoints; nil: the system's roots

	// AllowedNetworks limits where a connection may go; empty allows every
	// address but link-local, multicast and unspecified ones. It is checked on
	// the resolved address at connect time, so a name cannot be rebound past it.
	AllowedNetworks []netip.Prefix
}

func (c Config) withDefaults() Config {
	setInt := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	setDuration := func(p *time.Duration, v time.Duration) {
		if *p <= 0 {
			*p = v
		}
	}
	setInt(&c.MaxResponseBytes, 1<<20)
	setInt(&c.MaxResults, 1<<16)
	setInt(&c.MaxWaitingPrepares, 10_000)
	setInt(&c.MaxWaitingFinishes, 100_000)
	setInt(&c.MaxIdleConns, 2048)
	setDuration(&c.DialTimeout, 2*time.Second)
	setDuration(&c.IdleConnTimeout, time.Minute)
	return c
}

// Client implements rm.Caller over HTTP. It is safe for concurrent use.
type Client struct {
	cfg    Config
	pool   *pool
	ctx    context.Context //nolint:containedctx // ends every try at Close
	cancel context.CancelFunc

	mu       sync.Mutex // guards what follows; held only for queue moves, never while calling out
	closed   bool
	services map[string]*service // those with a call in flight or waiting; others have no state
	prepares map[branch]*job     // prepares and executes in flight or waiting
	refused  []*job              // calls to be told, without having been sent
	refusing bool                // a goroutine is telling them
	idle     []chan *job         // workers without a call, the latest last; at most maxIdleWorkers
	running  int                 // the teller and every worker. Not a WaitGroup, whose Add may not meet its Wait
	ended    sync.Cond           // running fell to zero

	urlMu sync.RWMutex
	urls  map[string]*url.URL // parsed once; at most maxParsedURLs
	here  map[string]Local    // by host, see Serve
}

const maxParsedURLs = 4096

// maxIdleWorkers are kept for the next calls, with the stacks they have grown.
const maxIdleWorkers = 64

var _ rm.Caller = (*Client)(nil)

// New returns a Client. Close it to end its calls and connections.
func New(cfg Config) *Client {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	cl := &Client{
		cfg:      cfg,
		pool:     newPool(cfg),
		ctx:      ctx,
		cancel:   cancel,
		services: make(map[string]*service),
		prepares: make(map[branch]*job),
		urls:     make(map[string]*url.URL),
		here:     make(map[string]Local),
	}
	cl.ended.L = &cl.mu
	return cl
}

// overtakenGrace is what a prepare still gets when its branch has been decided, and
// a call when its service has moved: an answer that is on its way arrives, and one
// that is not keeps no slot.
const overtakenGrace = time.Second

// Call queues c and returns at once; done runs exactly once, on another goroutine.
func (cl *Client) Call(c *rm.Call, e rm.Endpoint, done func(rm.Result)) {
	j := &job{call: c, done: done}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.closed {
		cl.refuse(j, "the coordinator is shutting down")
		return
	}
	s := cl.services[c.Service]
	if s == nil {
		s = &service{flying: make(map[*job]struct{})}
		cl.services[c.Service] = s
	}
	j.service = s
	s.register(e)
	switch c.Phase {
	case rm.Prepare, rm.Execute:
		cl.prepares[j.branch()] = j
	case rm.Commit, rm.Rollback:
		if p := cl.prepares[j.branch()]; p != nil {
			p.void = true
			p.try.hurry("the transaction was decided")
		}
	case rm.Status:
	}
	switch {
	case s.waiting() == 0 && s.mayStart(c.Phase):
		cl.start(j)
	case c.Phase.Works() && s.prepares.len() >= cl.cfg.MaxWaitingPrepares:
		cl.refuse(j, "too many prepare calls of this service are waiting")
	case !c.Phase.Works() && s.finishes.len() >= cl.cfg.MaxWaitingFinishes:
		cl.refuse(j, "too many calls of this service are waiting")
	default:
		j.queued = time.Now()
		s.push(j)
		cl.startWaiting(s) // a raised limit, or the reserve
	}
}

// Update takes a service's new endpoint at once: see rm.Caller.
func (cl *Client) Update(name string, e rm.Endpoint) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	s := cl.services[name]
	if s == nil {
		return // the next call brings it
	}
	s.register(e)
	for j := range s.flying { // order does not matter: each is hurried by itself
		if target(j.call.Phase, &j.end) != target(j.call.Phase, &s.end) {
			j.try.hurry("the service has moved")
		}
	}
	cl.startWaiting(s)
}

// startWaiting starts what may start. cl.mu is held.
func (cl *Client) startWaiting(s *service) {
	for {
		j, ok := cl.pop(s)
		if !ok {
			return
		}
		cl.start(j)
	}
}

// start hands j to a worker. cl.mu is held.
func (cl *Client) start(j *job) {
	j.service.start(j)
	if last := len(cl.idle) - 1; last >= 0 {
		cl.idle[last] <- j // has room: an idle worker's channel is empty
		cl.idle = cl.idle[:last]
		return
	}
	cl.running++
	go cl.work(j)
}

// pop returns the next call of s that may start and is still wanted: a prepare
// or execute that waited longer than a try may last probably is not. Its asker learns that it
// was not sent, and decides. cl.mu is held.
func (cl *Client) pop(s *service) (*job, bool) {
	for {
		j, ok := s.pop()
		switch {
		case !ok || !j.call.Phase.Works():
			return j, ok
		case j.void:
			cl.refuse(j, "the transaction was decided before the call was sent")
		case time.Since(j.queued) > s.end.PrepareTimeout:
			cl.refuse(j, "waited longer than the prepare timeout for a free call slot of this service")
		default:
			return j, true
		}
	}
}

// work runs j and then whatever waits at its service: one goroutine for each slot
// in use, none for a waiting call. Without a call it stays a while for the next.
func (cl *Client) work(j *job) {
	defer cl.end()
	next := make(chan *job, 1)
	for {
		j.done(cl.try(j))
		var ok bool
		if j, ok = cl.next(j, next); ok {
			continue
		}
		if j, ok = <-next; !ok {
			return
		}
	}
}

// end is the last thing that a counted goroutine does.
func (cl *Client) end() {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.running--; cl.running == 0 {
		cl.ended.Broadcast()
	}
}

// next gives finished's slot to a waiting call of its service. If there is none,
// the worker that asks becomes idle, or is told to end by its channel.
func (cl *Client) next(finished *job, worker chan *job) (*job, bool) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	s := finished.service
	s.finish(finished)
	cl.forget(finished)
	if j, ok := cl.pop(s); ok { // nothing waits once the client is closed
		s.start(j)
		return j, true
	}
	if s.idle() && cl.services[finished.call.Service] == s {
		delete(cl.services, finished.call.Service)
	}
	if cl.closed || len(cl.idle) >= maxIdleWorkers {
		close(worker)
	} else {
		cl.idle = append(cl.idle, worker)
	}
	return nil, false
}

// forget drops a prepare that has ended, unless a later one of the branch has taken
// its place. cl.mu is held.
func (cl *Client) forget(j *job) {
	if j.call.Phase.Works() && cl.prepares[j.branch()] == j {
		delete(cl.prepares, j.branch())
	}
}

// refuse tells j's asker that the call was never sent. cl.mu is held.
func (cl *Client) refuse(j *job, why string) {
	cl.forget(j)
	j.why = why
	cl.refused = append(cl.refused, j)
	if !cl.refusing {
		cl.refusing = true
		cl.running++
		go cl.tellRefused()
	}
}

func (cl *Client) tellRefused() {
	defer cl.end()
	for {
		cl.mu.Lock()
		batch := cl.refused
		cl.refused = nil
		if len(batch) == 0 {
			cl.refusing = false
			cl.mu.Unlock()
			return
		}
		cl.mu.Unlock()
		for _, j := range batch {
			j.done(rm.Result{Kind: rm.Indefinite, Reason: j.why})
		}
	}
}

// Close ends the calls in flight, refuses those that wait, and returns when every
// done of an earlier call has run. Later calls are refused.
func (cl *Client) Close() {
	cl.mu.Lock()
	cl.closed = true
	for name, s := range cl.services {
		for _, q := range []*fifo{&s.finishes, &s.prepares} {
			for q.len() > 0 {
				cl.refuse(q.pop(), "the coordinator is shutting down")
			}
		}
		delete(cl.services, name)
	}
	for _, worker := range cl.idle {
		close(worker)
	}
	cl.idle = nil
	cl.mu.Unlock()
	cl.cancel() // ends what connects
	cl.pool.close()
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for cl.running > 0 {
		cl.ended.Wait()
	}
}

// parseURL parses each registered URL once. The result must not be changed.
func (cl *Client) parseURL(raw string) (*url.URL, error) {
	cl.urlMu.RLock()
	u := cl.urls[raw]
	cl.urlMu.RUnlock()
	if u != nil {
		return u, nil
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	cl.urlMu.Lock()
	defer cl.urlMu.Unlock()
	if len(cl.urls) >= maxParsedURLs {
		clear(cl.urls) // registrations come and go; those in use are parsed again
	}
	cl.urls[raw] = u
	return u, nil
}
