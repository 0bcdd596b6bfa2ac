package discovery

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"
)

const (
	learnTimeout    = 2 * time.Second // of one node
	checkTimeout    = time.Second
	maxAskedNodes   = 8 // in one round
	maxClusterBytes = 8 << 20
	maxShards       = 4096
	maxMembers      = 1024
	maxFormer       = 16
)

// view is the answer of GET /v1/cluster, as far as it matters here.
type view struct {
	Cluster     string `json:"cluster"`
	Incarnation uint64 `json:"incarnation"`
	Shards      int    `json:"shards"`
	Nodes       []struct {
		ID       string `json:"id"`
		HTTP     string `json:"http"`
		State    string `json:"state"`
		Draining bool   `json:"draining"`
	} `json:"nodes"`
	Placement []struct {
		Shard  int    `json:"shard"`
		Leader string `json:"leader"`
		Term   uint64 `json:"term"`
	} `json:"placement"`
}

func (v *view) check() error {
	switch {
	case v.Cluster == "" || v.Shards < 1 || v.Shards > maxShards || len(v.Nodes) > maxMembers || len(v.Placement) > maxShards:
		return errors.New("it is not a cluster's")
	case len(v.Nodes) == 0:
		return errors.New("it names no node")
	}
	return nil
}

// learnLocked finds out who is there, in the background.
func (n *Nodes) learnLocked() {
	if n.learning || !n.goLocked(n.learn) {
		return
	}
	n.learning, n.stale, n.learned = true, false, time.Now()
}

// learn asks one node after the other until one tells who is there.
func (n *Nodes) learn() {
	n.mu.Lock()
	reseed := n.reseed
	n.mu.Unlock()
	if reseed {
		if err := n.load(n.ctx); err != nil {
			n.log.Debug("assent: the configured nodes are not known", "error", err)
		}
	}
	told := n.cfg.Static
	for _, e := range n.informants() {
		if told || n.ctx.Err() != nil {
			break
		}
		told = n.ask(e)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.learning = false
	n.stale = n.stale || !told
	now := time.Now()
	for _, e := range n.known { // in any order; who is not needed is looked at, too
		n.wellLocked(e, now)
	}
}

// informants are those to ask, who is well first.
func (n *Nodes) informants() []*endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []*endpoint
	if n.current != nil {
		list = append(list, n.current)
	}
	for _, more := range [][]*endpoint{n.members, n.seeds, n.former} {
		for _, e := range more {
			if !slices.Contains(list, e) {
				list = append(list, e)
			}
		}
	}
	slices.SortStableFunc(list, func(a, b *endpoint) int { return cmp.Compare(a.failures, b.failures) })
	return list[:min(len(list), maxAskedNodes)]
}

// ask reports whether a node has told who is there, or that it has no cluster.
func (n *Nodes) ask(e *endpoint) bool {
	ctx, cancel := context.WithTimeout(n.ctx, learnTimeout)
	defer cancel()
	answer, err := n.send(ctx, e, &Request{Method: http.MethodGet, Path: "/v1/cluster", MaxBytes: maxClusterBytes})
	switch {
	case err != nil:
		if n.ctx.Err() == nil {
			n.failed(e, err)
		}
		return false
	case answer.Status == http.StatusNotFound || answer.Status == http.StatusMethodNotAllowed:
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.cluster == "" // an older one; during an upgrade the others know
	case answer.Status != http.StatusOK:
		return false
	}
	var v view
	if err = json.Unmarshal(answer.Body, &v); err == nil {
		err = v.check()
	}
	if err != nil {
		n.log.Debug("assent: the answer of /v1/cluster is of no use", "node", e.name, "error", err)
		return false
	}
	return n.take(e, &v)
}

// take believes a node. Of two that contradict each other the leader with the higher term is
// one; members are what was told last.
func (n *Nodes) take(from *endpoint, v *view) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	same := n.cluster == v.Cluster && n.restored == v.Incarnation && len(n.leaders) == v.Shards
	if n.cluster == v.Cluster && v.Incarnation < n.restored || n.cluster != v.Cluster && n.cluster != "" && !from.seed {
		// It was left behind by a restore; or it has the address of a former member, and is
		// not whom we were sent to.
		n.failedLocked(from, errors.New("it is of another cluster"))
		n.members = slices.DeleteFunc(n.members, func(e *endpoint) bool { return e == from })
		n.former = slices.DeleteFunc(n.former, func(e *endpoint) bool { return e == from })
		for i := range n.leaders {
			if n.leaders[i].endpoint == from {
				n.leaders[i].endpoint = nil
			}
		}
		n.forgetLocked()
		return false
	}
	byID := map[string]*endpoint{}
	var members, others []*endpoint
	half := false
	for i := range v.Nodes {
		m := &v.Nodes[i]
		u, err := parse(m.HTTP)
		if err != nil {
			half = true
			continue // it has not told yet where clients reach it
		}
		e := n.endpointLocked(u, "")
		byID[m.ID] = e
		switch {
		case slices.Contains(members, e) || slices.Contains(others, e):
		case m.State == "up" && !m.Draining:
			members = append(members, e)
		default:
			others = append(others, e)
		}
	}
	leaders := make([]leader, v.Shards)
	if same {
		copy(leaders, n.leaders)
	}
	for _, p := range v.Placement {
		if p.Shard < 0 || p.Shard >= v.Shards || p.Leader == "" {
			continue
		}
		if l := &leaders[p.Shard]; p.Term >= l.term {
			*l = leader{byID[p.Leader], p.Term}
		}
	}
	var former []*endpoint
	if same {
		for _, e := range append(n.members[:len(n.members):len(n.members)], n.former...) {
			if !slices.Contains(members, e) && !slices.Contains(others, e) && len(former) < maxFormer {
				former = append(former, e)
			}
		}
	}
	n.cluster, n.restored, n.leaders, n.former, n.half = v.Cluster, v.Incarnation, leaders, former, half
	n.members = append(members, others...)
	if slices.Contains(others, n.current) {
		n.current = nil // it goes, or is gone
	}
	n.forgetLocked()
	for i := range n.leaders { // who is forgotten leads nothing
		if e := n.leaders[i].endpoint; e != nil && n.known[e.key] != e {
			n.leaders[i].endpoint = nil
		}
	}
	return true
}

// hinted is a node that another one names: the key it is picked by.
func (n *Nodes) hinted(base string) string {
	u, err := parse(base)
	if err != nil {
		return ""
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stale = true
	if n.cluster == "" { // not learned yet: it may be out of our reach, but it was offered
		e := n.endpointLocked(u, "")
		if !slices.Contains(n.seeds, e) && !slices.Contains(n.former, e) && len(n.former) < maxFormer {
			n.former = append(n.former, e)
		}
		n.forgetLocked()
	}
	return u.String()
}

// check is a look at whether a node is well.
type check struct {
	done  chan struct{} // closed at the end
	alive bool          // it has answered; read after done
}

// checkLocked looks at a node, once for all who want to know. It is nil after Close.
func (n *Nodes) checkLocked(e *endpoint) *check {
	if e.check == nil {
		c := &check{done: make(chan struct{})}
		if !n.goLocked(func() { n.look(e, c) }) {
			return nil
		}
		e.check, e.looked = c, time.Now()
	}
	return e.check
}

func (n *Nodes) look(e *endpoint, c *check) {
	ctx, cancel := context.WithTimeout(n.ctx, checkTimeout)
	defer cancel()
	n.mu.Lock()
	failures := e.failures
	n.mu.Unlock()
	answer, err := n.send(ctx, e, &Request{Method: http.MethodGet, Path: "/readyz", MaxBytes: maxClusterBytes})
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.ctx.Err() != nil:
	case err != nil:
		n.failedLocked(e, err)
	case answer.Status == http.StatusServiceUnavailable || answer.Status == http.StatusBadGateway:
		if e.failures > 0 { // it is not told off for what nobody has asked it
			n.failedLocked(e, errUnready)
		}
	case e.failures == failures: // else it has failed since
		n.workedLocked(e)
	}
	c.alive = err == nil
	e.check = nil
	close(c.done)
}

// alive reports whether a node answers at all.
func (n *Nodes) alive(ctx context.Context, e *endpoint) bool {
	n.mu.Lock()
	c := n.checkLocked(e)
	n.mu.Unlock()
	if c == nil {
		return true // nobody can say any more
	}
	select {
	case <-c.done:
		return c.alive || n.ctx.Err() != nil
	case <-ctx.Done():
		return true
	}
}
