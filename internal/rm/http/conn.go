package rmhttp

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// Limits of one answer, and of what a connection keeps.
const (
	maxHeaderBytes     = 64 << 10
	maxInterimAnswers  = 5 // 1xx, before the answer
	connReadBytes      = 4 << 10
	connWriteBytes     = 4 << 10
	maxHosts           = 16 << 10 // with idle connections
	sweepsPerIdleLimit = 4
)

// pool keeps connections to participants and sends requests over them: one at a
// time on each, written and read by the goroutine that asks. http.Transport
// starts two goroutines for each connection and hands every request to both,
// which costs a coordinator on two cores a third of its throughput
// (docs/PERFORMANCE.md). The format is still net/http's: Request.Write and
// ReadResponse. HTTP/1.1, no proxy, no redirects, no compression.
type pool struct {
	cfg    Config
	dialer net.Dialer
	tls    *tls.Config

	mu     sync.Mutex // guards what follows; never held over I/O
	closed bool
	idle   map[string][]*conn // by scheme and address, the latest used last
	open   map[*conn]struct{} // idle or in use, to be closed by close
	sweep  *time.Timer        // runs while there are idle connections
}

// conn is one connection. Whoever took it from the pool owns it.
type conn struct {
	host string // its key in pool.idle
	raw  net.Conn
	rw   net.Conn // raw, or TLS over it
	// records is between the two; nil without TLS.
	records *records
	left    int // bytes that may still be read; guards against endless headers
	br      *bufio.Reader
	bw      *bufio.Writer
	used    time.Time // when it became idle
}

var errHeaderTooLarge = fmt.Errorf("the answer's header is over the limit of %d bytes", maxHeaderBytes)

// Read implements io.Reader for br.
func (c *conn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errHeaderTooLarge
	}
	n, err := c.rw.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

func newPool(cfg Config) *pool {
	t := cfg.TLS.Clone()
	if t == nil {
		t = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	t.NextProtos = []string{"http/1.1"}
	return &pool{
		cfg: cfg, dialer: newDialer(cfg), tls: t,
		idle: make(map[string][]*conn), open: make(map[*conn]struct{}),
	}
}

// response is what came back. Its body must be read before release or drop.
type response struct {
	*http.Response
	conn *conn
	pool *pool
}

// roundTrip sends req, whose body is in memory, and returns when the header of the
// answer is there. An idle connection that the participant closes just as the
// request is written costs one replay, on a new connection: by contract a doubled
// call is normal. Nothing else is replayed, so that a participant that dies of a
// call does not get it again from every idle connection in turn.
//
// Reading and writing fail after the attempt's deadline; ctx ends connecting only.
func (p *pool) roundTrip(ctx context.Context, try *attempt, req *http.Request, body func() io.ReadCloser) (*response, error) {
	var broken *brokenBeforeAnswerError // of the first time
	if c := p.take(req.URL); c != nil {
		a, err := p.exchange(c, req, try)
		if err == nil {
			return a, nil
		}
		if !errors.As(err, &broken) || ctx.Err() != nil {
			return nil, err
		}
		p.dropIdle(c.host) // they are as old
		req.Body = body()
	}
	ctx, cancel := context.WithDeadline(ctx, try.until())
	defer cancel()
	c, err := p.dial(ctx, req.URL)
	switch {
	case err != nil && broken != nil: // not as if nothing had been sent
		return nil, fmt.Errorf("%w, and then: %v", broken, err) //nolint:errorlint // on purpose: see neverConnected
	case err != nil:
		return nil, err
	}
	return p.exchange(c, req, try)
}

// brokenBeforeAnswerError: the connection ended before the first byte of an answer.
type brokenBeforeAnswerError struct{ err error }

func (e *brokenBeforeAnswerError) Error() string { return e.err.Error() }
func (e *brokenBeforeAnswerError) Unwrap() error { return e.err }

// exchange sends req over c. c is try's until try.leave.
func (p *pool) exchange(c *conn, req *http.Request, try *attempt) (*response, error) {
	fail := func(err error) (*response, error) {
		try.leave()
		p.drop(c)
		return nil, err
	}
	if err := try.take(c.rw); err != nil {
		return fail(&brokenBeforeAnswerError{err})
	}
	writeErr := req.Write(c.bw)
	if writeErr == nil {
		writeErr = c.bw.Flush()
	}
	// A participant may refuse and close before it has read everything: its answer
	// counts, the error of the write does not.
	c.left = maxHeaderBytes
	if _, err := c.br.Peek(1); err != nil {
		if writeErr != nil {
			err = writeErr
		}
		if isTimeout(err) {
			return fail(err)
		}
		return fail(&brokenBeforeAnswerError{err})
	}
	for interim := 0; ; interim++ {
		resp, err := http.ReadResponse(c.br, req) //nolint:bodyclose // release or drop ends the connection's part
		switch {
		case err != nil:
			return fail(err)
		case resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols && interim < maxInterimAnswers:
			continue
		}
		if writeErr != nil || resp.StatusCode < 200 {
			resp.Close = true
		}
		c.left = p.cfg.MaxResponseBytes + 2*connReadBytes + maxHeaderBytes // with chunk headers; the reader of the body has the exact limit
		return &response{Response: resp, conn: c, pool: p}, nil
	}
}

// release gives the connection back for the next request. The body must have been
// read to its end.
func (a *response) release() {
	c, p := a.conn, a.pool
	if a.Close || c.br.Buffered() > 0 { // bytes that nobody asked for
		p.drop(c)
		return
	}
	c.used = time.Now()
	p.mu.Lock()
	list := p.idle[c.host]
	if p.closed || len(list) >= p.cfg.MaxIdleConns || list == nil && len(p.idle) >= maxHosts {
		p.mu.Unlock()
		p.drop(c)
		return
	}
	p.idle[c.host] = append(list, c)
	if p.sweep == nil {
		p.sweep = time.AfterFunc(p.cfg.IdleConnTimeout/sweepsPerIdleLimit, p.sweepIdle)
	}
	p.mu.Unlock()
}

// drop closes the connection: its answer was not read to the end.
func (a *response) drop() { a.pool.drop(a.conn) }

func (p *pool) drop(c *conn) {
	p.mu.Lock()
	delete(p.open, c)
	p.mu.Unlock()
	_ = c.raw.Close() // nothing is lost: what mattered was read
}

func hostKey(u *url.URL) string {
	if u.Scheme == "https" {
		return "https " + u.Host
	}
	return u.Host
}

// take returns the idle connection used last, or nil. One that the participant has
// closed, or on which it sent what nobody asked for, is not used.
func (p *pool) take(u *url.URL) *conn {
	host := hostKey(u)
	for {
		p.mu.Lock()
		list := p.idle[host]
		if len(list) == 0 {
			p.mu.Unlock()
			return nil
		}
		c := list[len(list)-1]
		list[len(list)-1] = nil
		if list = list[:len(list)-1]; len(list) == 0 {
			delete(p.idle, host)
		} else {
			p.idle[host] = list
		}
		p.mu.Unlock()
		if time.Since(c.used) < p.cfg.IdleConnTimeout && c.quiet() {
			return c
		}
		p.drop(c)
	}
}

func (p *pool) dropIdle(host string) {
	p.mu.Lock()
	list := p.idle[host]
	delete(p.idle, host)
	p.mu.Unlock()
	for _, c := range list {
		p.drop(c)
	}
}

// sweepIdle closes the connections that have been idle for too long.
func (p *pool) sweepIdle() {
	p.mu.Lock()
	var old []*conn
	for host, list := range p.idle {
		n := 0 // oldest first
		for n < len(list) && time.Since(list[n].used) >= p.cfg.IdleConnTimeout {
			n++
		}
		old = append(old, list[:n]...)
		if n == len(list) {
			delete(p.idle, host)
		} else if n > 0 {
			p.idle[host] = append([]*conn(nil), list[n:]...)
		}
	}
	if p.closed || len(p.idle) == 0 {
		p.sweep = nil
	} else {
		p.sweep.Reset(p.cfg.IdleConnTimeout / sweepsPerIdleLimit)
	}
	p.mu.Unlock()
	for _, c := range old {
		p.drop(c)
	}
}

var errPoolClosed = errors.New("the coordinator is shutting down")

func (p *pool) dial(ctx context.Context, u *url.URL) (*conn, error) {
	port := u.Port()
	if port == "" {
		if port = "80"; u.Scheme == "https" {
			port = "443"
		}
	}
	host, err := asciiHost(u.Hostname())
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	raw, err := p.dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, err
	}
	c := &conn{host: hostKey(u), raw: raw, rw: raw}
	if u.Scheme == "https" {
		cfg := p.tls
		if cfg.ServerName == "" {
			cfg = cfg.Clone()
			cfg.ServerName = host
		}
		c.records = &records{Conn: raw}
		t := tls.Client(c.records, cfg)
		ctx, cancel := context.WithTimeout(ctx, p.cfg.DialTimeout)
		defer cancel()
		if err := t.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: raw.RemoteAddr(), Err: fmt.Errorf("TLS: %w", err)}
		}
		c.rw = t
	}
	c.br, c.bw = bufio.NewReaderSize(c, connReadBytes), bufio.NewWriterSize(c.rw, connWriteBytes)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = raw.Close()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errPoolClosed}
	}
	p.open[c] = struct{}{}
	return c, nil
}

// close closes every connection, also those in use.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.sweep != nil {
		p.sweep.Stop()
	}
	for c := range p.open {
		_ = c.raw.Close()
	}
	clear(p.open)
	clear(p.idle)
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
