package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Participants serves services that vote yes and acknowledge at once, and counts
// what each branch was asked. It runs in a process of its own.
//
//	POST /assent  a participant call       POST /bare  the same body, answered without counting
//	POST /contended  likewise, and a prepare of holdPayload takes holdTime
//	POST /hold    never answered           GET /audit  Audit as JSON
//	POST /reset   forgets all counts
type Participants struct {
	stripes [64]stripe
}

const (
	contendedPath = "/contended"
	holdPayload   = "hold"
	holdTime      = 100 * time.Millisecond
)

type stripe struct {
	mu   sync.Mutex
	seen map[[38]byte]*counts // transaction and branch as text
}

type counts struct{ prepared, committed, other uint32 }

// Audit sums up what the branches were asked.
type Audit struct {
	Branches  int    `json:"branches"`
	Once      int    `json:"once"`  // prepared exactly once and committed exactly once
	Wrong     int    `json:"wrong"` // anything else
	Example   string `json:"example"`
	Malformed int    `json:"malformed"`
}

// NewParticipants returns participants that have seen nothing.
func NewParticipants() *Participants {
	p := &Participants{}
	p.reset()
	return p
}

func (p *Participants) reset() {
	for i := range p.stripes {
		s := &p.stripes[i]
		s.mu.Lock()
		s.seen = map[[38]byte]*counts{}
		s.mu.Unlock()
	}
}

var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

var yes, done = []byte(`{"vote":"yes"}`), []byte(`{}`)

// ServeHTTP implements http.Handler.
func (p *Participants) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/assent", contendedPath, "/bare":
		buf := bodies.Get().(*bytes.Buffer)
		defer bodies.Put(buf)
		buf.Reset()
		if _, err := buf.ReadFrom(http.MaxBytesReader(w, r.Body, 4<<20)); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer := yes
		if r.URL.Path != "/bare" {
			if r.URL.Path == contendedPath && bytes.Contains(buf.Bytes(), []byte(`"`+holdPayload+`"`)) {
				time.Sleep(holdTime) // a commit carries no payload
			}
			var ok bool
			if answer, ok = p.count(r.Header.Get("Idempotency-Key")); !ok {
				http.Error(w, "no idempotency key of the form transaction/branch/phase", http.StatusBadRequest)
				return
			}
		}
		w.Header()["Content-Type"] = jsonType
		_, _ = w.Write(answer)
	case "/hold":
		<-r.Context().Done() // until the caller gives up
	case "/audit":
		if err := json.NewEncoder(w).Encode(p.audit()); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	case "/reset":
		p.reset()
	default:
		http.NotFound(w, r)
	}
}

var jsonType = []string{"application/json"}

// count notes one call by its Idempotency-Key: transaction/branch/phase.
func (p *Participants) count(key string) ([]byte, bool) {
	at := strings.LastIndexByte(key, '/')
	if at < 37 || at > 38 {
		return nil, false
	}
	var id [38]byte
	copy(id[:], key[:at])
	s := &p.stripes[(uint(id[34])*31+uint(id[35]))%uint(len(p.stripes))]
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.seen[id]
	if c == nil {
		c = &counts{}
		s.seen[id] = c
	}
	switch key[at+1:] {
	case "prepare":
		c.prepared++
		return yes, true
	case "commit":
		c.committed++
	default:
		c.other++
	}
	return done, true
}

func (p *Participants) audit() Audit {
	var a Audit
	for i := range p.stripes {
		s := &p.stripes[i]
		s.mu.Lock()
		for id, c := range s.seen {
			a.Branches++
			if *c == (counts{prepared: 1, committed: 1}) {
				a.Once++
			} else {
				a.Wrong++
				a.Example = fmt.Sprintf("%s: prepared %d times, committed %d times, %d other calls", id, c.prepared, c.committed, c.other)
			}
		}
		s.mu.Unlock()
	}
	return a
}

// ServeParticipants serves on a free loopback port, writes its address as one
// line, and ends when its standard input does.
func ServeParticipants(out io.Writer, in io.Reader) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: NewParticipants(), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		_, _ = io.Copy(io.Discard, in)
		_ = srv.Close()
	}()
	if _, err := fmt.Fprintln(out, "http://"+ln.Addr().String()); err != nil {
		return err
	}
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// participants is the child process.
type participants struct {
	url    string
	cmd    *exec.Cmd
	stdin  io.Closer
	client *http.Client
}

func startParticipants(ctx context.Context, binary string) (*participants, error) {
	cmd := exec.Command(binary, "bench-participants")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start participants: %w", err)
	}
	p := &participants{cmd: cmd, stdin: stdin, client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}}
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(stdout).ReadString('\n')
		line <- strings.TrimSpace(text)
	}()
	select {
	case p.url = <-line:
	case <-ctx.Done():
	}
	if p.url == "" {
		p.stop()
		return nil, errors.Join(errors.New("the participants did not start"), ctx.Err())
	}
	return p, nil
}

func (p *participants) stop() {
	_ = p.stdin.Close()
	ended := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Signal(syscall.SIGKILL)
		<-ended
	}
}

func (p *participants) reset(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+"/reset", nil)
	if err != nil {
		return err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (p *participants) audit(ctx context.Context) (a Audit, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/audit", nil)
	if err != nil {
		return a, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	return a, json.NewDecoder(resp.Body).Decode(&a)
}
