package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Nodes are the nodes of one coordinator, as far as they are known. Safe for concurrent use.
type Nodes struct {
	cfg    Config
	log    *slog.Logger
	client *http.Client
	own    *http.Transport // of client, if it is not the caller's
	ctx    context.Context //nolint:containedctx // of what runs in the background, until Close
	cancel context.CancelFunc
	gate   chan struct{} // held by who loads the seeds
	wg     sync.WaitGroup

	mu       sync.Mutex // of everything below, and of the fields of endpoints
	closed   bool
	known    map[string]*endpoint // by key
	seeds    []*endpoint          // configured
	members  []*endpoint          // learned, those that are up and stay first
	former   []*endpoint          // learned before or hinted at, and no members: better than nobody
	current  *endpoint            // answered last; nil: nobody has
	cluster  string               // of what was learned; empty: nothing
	restored uint64               // its incarnation
	leaders  []leader             // by shard
	reseed   bool                 // the seeds may have changed
	seeded   time.Time            // when they were loaded
	stale    bool                 // what was learned may be wrong
	learned  time.Time            // when it was asked for
	half     bool                 // some members have not told where they are
	learning bool                 // somebody asks
}

// leader of a shard; endpoint is nil while it is not known.
type leader struct {
	*endpoint
	term uint64
}

// endpoint is a node, or what may be one.
type endpoint struct {
	key       string // base, and the address if base has a name that was resolved
	base      string
	name      string // key without a password, for logs
	client    *http.Client
	transport *http.Transport // its own, or nil

	seed     bool
	failures int       // in a row
	until    time.Time // passed over until then, and until a look has found it well
	asked    time.Time // when it was picked although it is not well
	looked   time.Time
	check    *check // under way
}

// New returns the nodes of a coordinator, and asks nobody yet. Close them.
func New(cfg Config) (*Nodes, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("endpoints: %w", err)
	}
	n := &Nodes{cfg: cfg, log: cfg.Logger, client: cfg.HTTPClient, gate: make(chan struct{}, 1), known: map[string]*endpoint{}, reseed: true, stale: !cfg.Static}
	if n.client == nil {
		n.own = cfg.transport("", "")
		n.client = &http.Client{Transport: n.own, CheckRedirect: noRedirects}
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n, nil
}

// Close ends what runs in the background and closes idle connections. Requests under way
// go on.
func (n *Nodes) Close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	n.wg.Wait()
	n.client.CloseIdleConnections()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.known { // in any order
		e.closeIdle()
	}
}

func (e *endpoint) closeIdle() {
	if e.transport != nil {
		e.transport.CloseIdleConnections()
	}
}

// String names what is configured.
func (n *Nodes) String() string {
	var list []string
	for _, e := range n.cfg.Endpoints {
		if u, err := parse(e); err == nil {
			list = append(list, u.Redacted())
		}
	}
	if n.cfg.File != "" {
		list = append(list, "those in "+n.cfg.File)
	}
	return strings.Join(list, ", ")
}

// URLs are the base URLs of the nodes as known now: the members if they were learned, else the
// configured ones.
func (n *Nodes) URLs() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := n.members
	if len(list) == 0 {
		list = n.seeds
	}
	var urls []string
	for _, e := range list {
		if !slices.Contains(urls, e.base) {
			urls = append(urls, e.base)
		}
	}
	return urls
}

// goLocked runs f in the background, unless Nodes are closed.
func (n *Nodes) goLocked(f func()) bool {
	if n.closed {
		return false
	}
	n.wg.Go(f)
	return true
}

// endpointLocked is the node at a base URL; address is what is dialled, if not the URL's.
func (n *Nodes) endpointLocked(u *url.URL, address string) *endpoint {
	key, name := u.String(), u.Redacted()
	if address != "" {
		key, name = key+" "+address, name+" at "+address
	}
	e := n.known[key]
	if e == nil {
		e = &endpoint{key: key, base: u.String(), name: name, client: n.client}
		if address != "" {
			e.transport = n.cfg.transport(hostPort(u), address)
			e.client = &http.Client{Transport: e.transport, CheckRedirect: noRedirects}
		}
		n.known[key] = e
	}
	return e
}

// hostPort is what a transport dials for a URL.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

const (
	resolveTimeout = 3 * time.Second
	maxAddresses   = 64 // of one name
	seedEvery      = time.Second
)

// ready loads the seeds if nobody has.
func (n *Nodes) ready(ctx context.Context) error {
	n.mu.Lock()
	loaded, closed := len(n.seeds) > 0, n.closed
	n.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if loaded {
		return nil
	}
	return n.load(ctx)
}

// load reads the file again and resolves the names again. What cannot be found out stays as
// it was.
func (n *Nodes) load(ctx context.Context) error {
	select {
	case n.gate <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-n.gate }()
	n.mu.Lock()
	due := n.reseed && time.Since(n.seeded) >= seedEvery
	n.mu.Unlock()
	if !due {
		return nil // somebody has just done it
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	urls, err := n.cfg.configured()
	if err != nil {
		return err
	}
	type found struct {
		addresses []string
		err       error
	}
	results := make([]found, len(urls))
	var all sync.WaitGroup
	for i, u := range urls {
		if n.cfg.HTTPClient == nil && net.ParseIP(u.Hostname()) == nil {
			all.Go(func() { results[i].addresses, results[i].err = n.cfg.Resolve(ctx, u.Hostname()) })
		}
	}
	all.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	var seeds []*endpoint
	var errs []error
	add := func(e *endpoint) {
		if !slices.Contains(seeds, e) {
			e.seed = true
			seeds = append(seeds, e)
		}
	}
	for i, u := range urls {
		r := results[i]
		if r.err != nil || r.addresses == nil && n.cfg.HTTPClient == nil && net.ParseIP(u.Hostname()) == nil {
			if r.err == nil {
				r.err = errNoAddress
			}
			errs = append(errs, fmt.Errorf("the name %s is not resolved: %w", u.Hostname(), r.err))
			for _, e := range n.seeds {
				if e.base == u.String() {
					add(e)
				}
			}
			continue
		}
		if r.addresses == nil {
			add(n.endpointLocked(u, ""))
		}
		_, port, _ := net.SplitHostPort(hostPort(u))
		for _, a := range r.addresses[:min(len(r.addresses), maxAddresses)] {
			add(n.endpointLocked(u, net.JoinHostPort(a, port)))
		}
	}
	n.reseed, n.seeded = len(errs) > 0, time.Now()
	if len(seeds) == 0 {
		n.seeded = time.Time{}
		return errors.Join(errs...)
	}
	for _, e := range n.seeds {
		e.seed = slices.Contains(seeds, e)
	}
	n.seeds = seeds
	n.forgetLocked()
	return nil
}

var errNoAddress = errors.New("it has no address")

// forgetLocked drops who is in no list any more.
func (n *Nodes) forgetLocked() {
	for key, e := range n.known { // in any order
		if !slices.Contains(n.seeds, e) && !slices.Contains(n.members, e) && !slices.Contains(n.former, e) {
			e.closeIdle()
			delete(n.known, key)
			if n.current == e {
				n.current = nil
			}
		}
	}
}

// Pauses for which a node that has failed is passed over.
const (
	firstAvoid = 100 * time.Millisecond
	maxAvoid   = 10 * time.Second
	keepFor    = 30 * time.Second       // what was learned
	keepHalf   = time.Second            // likewise, if it is not all
	learnEvery = 500 * time.Millisecond // at most
	lookEvery  = 250 * time.Millisecond // at most, at a node when all have failed
)

// pick returns the node for a request, or nil if every one that may be there was tried.
func (n *Nodes) pick(key, hint string, tried []*endpoint) *endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	lead := n.leaderLocked(key)
	keep := keepFor
	if n.half {
		keep = keepHalf
	}
	if n.stale && now.Sub(n.learned) >= learnEvery || now.Sub(n.learned) >= keep && !n.cfg.Static {
		n.learnLocked()
	}
	if n.current == nil && len(tried) == 0 {
		if only := n.onlyLocked(); only != nil {
			return only
		}
	}
	fits := func(e *endpoint) bool { return e != nil && !slices.Contains(tried, e) && n.wellLocked(e, now) }
	if hint != "" {
		if e := n.known[hint]; fits(e) {
			return e
		}
	}
	if fits(lead) {
		return lead
	}
	if fits(n.current) {
		return n.current
	}
	for _, list := range [][]*endpoint{n.members, n.seeds, n.former} {
		for _, e := range list {
			if fits(e) {
				return e
			}
		}
	}
	if len(tried) > 0 {
		return nil
	}
	// All have failed: they take turns, and are all looked at, not to miss the first that is back.
	var first *endpoint
	for _, list := range [][]*endpoint{n.members, n.seeds, n.former} {
		for _, e := range list {
			if first == nil || e.asked.Before(first.asked) {
				first = e
			}
			if now.Sub(e.looked) >= lookEvery {
				n.checkLocked(e)
			}
		}
	}
	first.asked = now
	return first
}

// onlyLocked is the only node that is known: it is not looked at, but asked.
func (n *Nodes) onlyLocked() *endpoint {
	var only *endpoint
	for _, e := range n.known { // in any order
		if only != nil {
			return nil
		}
		only = e
	}
	return only
}

// leaderLocked is the leader of a transaction's home shard, if it is known.
func (n *Nodes) leaderLocked(key string) *endpoint {
	home, ok := home(key, len(n.leaders))
	if !ok {
		return nil
	}
	l := n.leaders[home]
	if l.term == 0 || l.endpoint != nil && l.failures > 0 {
		n.stale = true // there is another one soon
	}
	return l.endpoint
}

// home is the shard of a transaction: the 12 bits behind the version of its id, a UUIDv7.
func home(id string, shards int) (int, bool) {
	if len(id) != 36 || shards == 0 {
		return 0, false
	}
	bits, err := strconv.ParseUint(id[15:18], 16, 12)
	return int(bits) % shards, err == nil
}

// wellLocked reports whether a node may be asked. One that has failed is looked at when its
// time has come.
func (n *Nodes) wellLocked(e *endpoint, now time.Time) bool {
	if e.failures == 0 {
		return true
	}
	if now.After(e.until) {
		n.checkLocked(e)
	}
	return false
}

func (n *Nodes) worked(e *endpoint, first bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.workedLocked(e)
	if n.current == nil || !first {
		n.current = e
	}
}

// moved: somebody else leads than was learned.
func (n *Nodes) moved() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stale = true
}

func (n *Nodes) workedLocked(e *endpoint) {
	if e.failures > 0 {
		n.log.Debug("assent: a node is back", "node", e.name)
	}
	e.failures, e.until = 0, time.Time{}
}

// failed: a node did not answer, or said that it is of no use now.
func (n *Nodes) failed(e *endpoint, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failedLocked(e, err)
}

func (n *Nodes) failedLocked(e *endpoint, err error) {
	now := time.Now()
	if e.failures > 0 && now.Before(e.until) {
		return // that was known: several requests were under way
	}
	if e.failures == 0 {
		n.log.Debug("assent: a node is passed over", "node", e.name, "error", err)
	}
	pause := min(firstAvoid<<min(e.failures, 10), maxAvoid)
	e.failures++
	e.until = now.Add(pause/2 + rand.N(pause/2))
	n.stale = true
	n.reseed = n.reseed || e.seed
	if n.current == e {
		n.current = nil
	}
}
