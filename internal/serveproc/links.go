package serveproc

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// Links are the network between nodes: whoever dials a node comes to a proxy first, which
// reads in the greeting who it is. So each direction between two nodes can be held, cut
// or slow, while neither knows. Names are those of nodes.
type Links struct {
	mu        sync.Mutex
	changed   chan struct{} // closed when a link has changed
	links     map[[2]string]Link
	listeners []net.Listener
	conns     map[*proxied]struct{}
	closed    bool
	wg        sync.WaitGroup
}

// Link is one direction between two nodes. The zero value lets everything through.
type Link struct {
	Held  bool          // nothing passes; it passes later, as what a network lost is sent again
	Cut   bool          // connections of either direction are closed, and not made
	Delay time.Duration // of each piece
}

// proxied is one connection through a proxy.
type proxied struct {
	from, to string
	done     chan struct{}
	once     sync.Once
	ends     []net.Conn
}

func (p *proxied) close() {
	p.once.Do(func() {
		close(p.done)
		for _, c := range p.ends {
			_ = c.Close()
		}
	})
}

// NewLinks makes a network without faults.
func NewLinks() *Links {
	return &Links{changed: make(chan struct{}), links: map[[2]string]Link{}, conns: map[*proxied]struct{}{}}
}

// Listen makes the proxy before a node that listens at an address, and returns where
// others dial it.
func (l *Links) Listen(node, address string) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	l.listeners = append(l.listeners, listener)
	l.mu.Unlock()
	l.wg.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			l.wg.Go(func() { l.carry(c, node, address) })
		}
	})
	return listener.Addr().String(), nil
}

// Set changes the direction from one node to another.
func (l *Links) Set(from, to string, link Link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.links[[2]string{from, to}] = link
	l.wakeLocked()
}

// Heal ends all faults.
func (l *Links) Heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.links)
	l.wakeLocked()
}

func (l *Links) wakeLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
	for p := range l.conns {
		if l.links[[2]string{p.from, p.to}].Cut || l.links[[2]string{p.to, p.from}].Cut {
			p.close()
		}
	}
}

// Close ends everything.
func (l *Links) Close() {
	l.mu.Lock()
	l.closed = true
	for _, listener := range l.listeners {
		_ = listener.Close()
	}
	for p := range l.conns {
		p.close()
	}
	l.mu.Unlock()
	l.wg.Wait()
}

// add takes part of a connection under watch; false: it may not be.
func (l *Links) add(p *proxied, c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.ends = append(p.ends, c)
	if l.closed || l.links[[2]string{p.from, p.to}].Cut || l.links[[2]string{p.to, p.from}].Cut {
		p.close()
		_ = c.Close() // it may have been closed before this end was there
		return false
	}
	l.conns[p] = struct{}{}
	return true
}

func (l *Links) drop(p *proxied) {
	p.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, p)
}

const greetingTime = 5 * time.Second

func (l *Links) carry(c net.Conn, to, address string) {
	p := &proxied{to: to, done: make(chan struct{})}
	defer l.drop(p)
	if !l.add(p, c) || c.SetReadDeadline(time.Now().Add(greetingTime)) != nil {
		return
	}
	greeting, from, err := readGreeting(c)
	if err != nil || c.SetReadDeadline(time.Time{}) != nil {
		return
	}
	l.mu.Lock()
	p.from = from
	l.mu.Unlock()
	if !l.pass(p, from, to) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), greetingTime)
	backend, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	cancel()
	if err != nil || !l.add(p, backend) {
		return
	}
	if _, err := backend.Write(greeting); err != nil {
		return
	}
	l.wg.Go(func() {
		l.copy(p, c, backend, to, from)
		p.close()
	})
	l.copy(p, backend, c, from, to)
}

// copy carries what from sends to to.
func (l *Links) copy(p *proxied, into io.Writer, out io.Reader, from, to string) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := out.Read(buffer)
		if n > 0 {
			if !l.pass(p, from, to) {
				return
			}
			if _, err := into.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass waits until a piece may go on; false: never.
func (l *Links) pass(p *proxied, from, to string) bool {
	delayed := false
	for {
		l.mu.Lock()
		link, changed := l.links[[2]string{from, to}], l.changed
		l.mu.Unlock()
		var later <-chan time.Time
		switch {
		case link.Cut:
			return false
		case link.Held:
		case link.Delay > 0 && !delayed:
			later, changed, delayed = time.After(link.Delay), nil, true
		default:
			return true
		}
		select {
		case <-later:
		case <-changed:
		case <-p.done:
			return false
		}
	}
}

// readGreeting reads the first message of a connection between nodes: 14 bytes of magic,
// its length in 4 bytes, JSON with the member who dials.
func readGreeting(r io.Reader) (greeting []byte, from string, err error) {
	const head = 18
	var begin [head]byte
	if _, err := io.ReadFull(r, begin[:]); err != nil {
		return nil, "", err
	}
	n := binary.BigEndian.Uint32(begin[head-4:])
	if n > 1<<16 || !bytes.HasPrefix(begin[:], []byte("assent-peer-")) {
		return nil, "", fmt.Errorf("no greeting: %q", begin)
	}
	greeting = make([]byte, head+n)
	copy(greeting, begin[:])
	if _, err := io.ReadFull(r, greeting[head:]); err != nil {
		return nil, "", err
	}
	var h struct {
		From string `json:"from"`
	}
	err = json.Unmarshal(greeting[head:], &h)
	from, _, _ = strings.Cut(h.From, "@")
	return greeting, from, err
}
