package discovery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Request to whichever node suits. It must be one that may be repeated, as all of the
// coordinator's API may: a node that breaks off may have executed it.
type Request struct {
	Key    string // id of the transaction it is about; may be empty
	Method string
	Path   string // with its query, below the base URL
	Body   []byte // JSON; may be nil
	// Wait is how long the node may take to answer, told in the header Assent-Timeout, and
	// bounded by the context's deadline. Default 20s.
	Wait     time.Duration
	MaxBytes int64 // of an answer. Default 32 MiB

	maybeTaken bool
}

// MaybeTaken reports whether some node was sent the request and has not answered: it may
// have taken it, or take it yet. Requests are used by one goroutine at a time.
func (r *Request) MaybeTaken() bool { return r.maybeTaken }

// neverSent reports whether no connection could be made.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && (op.Op == "dial" || op.Op == "proxyconnect")
}

// Answer of a node, whatever it is.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	Node   string // base URL
}

var (
	// ErrClosed: the Nodes are closed.
	ErrClosed = errors.New("closed")
	// ErrTooLarge is an answer over the limit.
	ErrTooLarge = errors.New("the answer is over the limit")

	errUnready = errors.New("it is not ready")
	errSilent  = errors.New("the node has fallen silent")
)

const (
	forwardedHeader = "Assent-Forwarded" // names the node that has executed a request for another
	defaultWait     = 20 * time.Second
	defaultMaxBytes = 32 << 20
	// grace is what a node gets beyond the wait that it was asked for.
	grace = 5 * time.Second
	// silence is how long a request is out before its node is looked at: it may wait for a
	// lock, or be dead without having said so.
	silence = time.Second
)

// Do sends a request to the node that suits, and on to another one as long as there is one
// that may be well: each at most once. It returns the first answer that is not "not ready",
// the last of those, or the last error.
func (n *Nodes) Do(ctx context.Context, r *Request) (*Answer, error) {
	if err := n.ready(ctx); err != nil {
		return nil, err
	}
	var (
		tried   []*endpoint
		hint    string
		unready *Answer
		last    error
	)
	for {
		e := n.pick(r.Key, hint, tried)
		if e == nil {
			if unready != nil {
				return unready, nil
			}
			return nil, last
		}
		answer, err := n.once(ctx, e, r)
		if err != nil && !neverSent(err) || err == nil && answer.foreign() {
			r.maybeTaken = true
		}
		leader, elsewhere := "", false
		if err == nil {
			leader, elsewhere = answer.elsewhere()
		}
		switch {
		case err != nil && (ctx.Err() != nil || errors.Is(err, ErrTooLarge)):
			return nil, err // not the node's fault
		case err != nil:
			n.failed(e, err)
			last = err
		case !elsewhere:
			n.worked(e, len(tried) == 0)
			if r.Key != "" && answer.Header.Get(forwardedHeader) != "" {
				n.moved() // another node leads there
			}
			return answer, nil
		default:
			n.failed(e, errUnready)
			unready = answer
			if leader != "" {
				hint = n.hinted(leader)
			}
		}
		tried = append(tried, e)
	}
}

// foreign reports whether a proxy answers that it got no answer, or none in time.
func (a *Answer) foreign() bool {
	var status struct {
		Details []json.RawMessage `json:"details"`
	}
	switch a.Status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return json.Unmarshal(a.Body, &status) != nil || len(status.Details) == 0
	}
	return false
}

// elsewhere reports whether another node may know better, and which one this node takes for
// the leader.
func (a *Answer) elsewhere() (leader string, yes bool) {
	switch a.Status {
	case http.StatusBadGateway: // of a proxy
		return "", true
	case http.StatusServiceUnavailable:
	default:
		return "", false
	}
	var status struct {
		Details []struct {
			Reason   string            `json:"reason"`
			Metadata map[string]string `json:"metadata"`
		} `json:"details"`
	}
	if json.Unmarshal(a.Body, &status) != nil {
		return "", true // of a proxy
	}
	for _, d := range status.Details {
		if d.Reason == "UPGRADE_PENDING" || d.Reason == "OVERLOADED" {
			return "", false // so it is at the others
		}
		if h := d.Metadata["leader_http"]; h != "" {
			leader = h
		}
	}
	return leader, true
}

// once makes one try at one node, and gives up on a node that has fallen silent.
func (n *Nodes) once(ctx context.Context, e *endpoint, r *Request) (*Answer, error) {
	wait := r.Wait
	if wait <= 0 {
		wait = defaultWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait+grace)
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	look := time.AfterFunc(silence, func() { n.watch(ctx, e, giveUp) })
	defer look.Stop()
	answer, err := n.send(ctx, e, r)
	if err != nil && errors.Is(context.Cause(ctx), errSilent) {
		err = fmt.Errorf("%s %s%s: %w", r.Method, e.base, r.Path, errSilent)
	}
	return answer, err
}

// watch looks at a node for as long as a request is out there.
func (n *Nodes) watch(ctx context.Context, e *endpoint, giveUp context.CancelCauseFunc) {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return
	}
	n.wg.Add(1)
	n.mu.Unlock()
	defer n.wg.Done()
	next := time.NewTicker(silence)
	defer next.Stop()
	for {
		if !n.alive(ctx, e) {
			giveUp(errSilent)
			return
		}
		select {
		case <-next.C:
		case <-ctx.Done():
			return
		case <-n.ctx.Done():
			return
		}
	}
}

func (n *Nodes) send(ctx context.Context, e *endpoint, r *Request) (*Answer, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, e.base+r.Path, bytes.NewReader(r.Body))
	if err != nil {
		return nil, err
	}
	if r.Body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	wait := r.Wait
	if wait <= 0 {
		wait = defaultWait
	}
	if end, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(end))
	}
	if wait >= minWait {
		req.Header.Set("Assent-Timeout", wait.Round(time.Millisecond).String())
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // read, or of no use
	limit := r.MaxBytes
	if limit <= 0 {
		limit = defaultMaxBytes
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(body)) > limit:
		return nil, fmt.Errorf("%w of %d bytes", ErrTooLarge, limit)
	}
	return &Answer{Status: resp.StatusCode, Header: resp.Header, Body: body, Node: e.base}, nil
}

// minWait is the shortest that the API takes.
const minWait = 10 * time.Millisecond
