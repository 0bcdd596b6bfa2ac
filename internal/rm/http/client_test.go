package rmhttp

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/rm"
)

func TestCallsArriveAsTheContractSays(t *testing.T) {
	type seen struct {
		path, key, trace, contentType string
		body                          map[string]any
	}
	got := make(chan seen, 4)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		v := seen{path: r.Method + " " + r.URL.Path, key: r.Header.Get("Idempotency-Key"), trace: r.Header.Get("traceparent"), contentType: r.Header.Get("Content-Type")}
		if err := json.NewDecoder(r.Body).Decode(&v.body); err != nil {
			t.Error(err)
		}
		got <- v
		fmt.Fprint(w, `{"vote":"yes","outcome":"prepared","executed":true,"results":[1,2]}`)
	})
	cl := newClient(t, Config{})
	for phase, want := range map[rm.Phase]rm.Kind{rm.Prepare: rm.Yes, rm.Execute: rm.Executed, rm.Commit: rm.Done, rm.Rollback: rm.Done, rm.Status: rm.Known} {
		c := call(phase)
		c.TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		r := ask(t, cl, c, at(s.URL))
		if r.Kind != want || !r.Sent || r.Took <= 0 {
			t.Errorf("%s: %+v", phase, r)
		}
		v := receive(t, got)
		key := c.Txn.String() + "/2/" + phase.String()
		if phase == rm.Execute {
			key += "/0"
		}
		if v.path != "POST /"+phase.String() || v.key != key || v.trace != c.TraceParent || v.contentType != "application/json" {
			t.Errorf("%s: %+v", phase, v)
		}
		if v.body["phase"] != phase.String() || v.body["transaction"] != c.Txn.String() || v.body["branch"] != 2.0 {
			t.Errorf("%s: %v", phase, v.body)
		}
		if _, has := v.body["operations"]; has != (phase == rm.Prepare || phase == rm.Execute) {
			t.Errorf("%s: operations sent: %v", phase, has)
		}
	}
}

// hostile participants: everything they do is an indefinite answer.
func TestHostileAnswersAreIndefinite(t *testing.T) {
	var target atomic.Int32
	elsewhere := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		target.Add(1)
		fmt.Fprint(w, `{"vote":"yes","outcome":"committed"}`)
	})
	hijack := func(write func(c net.Conn)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			write(c)
		}
	}
	for _, c := range []struct {
		name, reason string
		h            http.HandlerFunc
	}{
		{"10 MB", "over the limit", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"vote":"yes","outcome":"unknown","x":"`)
			junk := []byte(strings.Repeat("a", 1<<20))
			for range 10 {
				if _, err := w.Write(junk); err != nil {
					return // the client went away: the point
				}
			}
			fmt.Fprint(w, `"}`)
		}},
		{"redirect", "status 307", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}},
		{"moved", "status 301", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusMovedPermanently)
		}},
		{"error", "status 500: boom", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "boom", 500) }},
		{"closed at once", "closed", hijack(func(net.Conn) {})},
		{"half an answer", "closed", hijack(func(c net.Conn) {
			fmt.Fprint(c, "HTTP/1.1 409 Conflict\r\nContent-Length: 100\r\n\r\n{\"vote\":\"yes\"")
		})},
		{"not HTTP", "malformed", hijack(func(c net.Conn) { fmt.Fprint(c, "SSH-2.0-OpenSSH\r\n\r\n") })},
		{"endless header", "header", hijack(func(c net.Conn) {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\n")
			for range 1000 {
				if _, err := fmt.Fprintf(c, "X-Junk: %s\r\n", strings.Repeat("j", 1000)); err != nil {
					return
				}
			}
		})},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, c.h)
			cl := newClient(t, Config{})
			for _, phase := range []rm.Phase{rm.Prepare, rm.Status} {
				r := ask(t, cl, call(phase), at(s.URL))
				if r.Kind != rm.Indefinite || !r.Sent || !strings.Contains(r.Reason, c.reason) {
					t.Errorf("%s: %+v, want a reason with %q", phase, r, c.reason)
				}
				checkReason(t, r)
			}
		})
	}
	if n := target.Load(); n != 0 {
		t.Errorf("%d redirects were followed", n)
	}
}

func TestHangingAndSlowAnswersEndAtTheTimeout(t *testing.T) {
	release := make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/status" { // headers at once, the body never
			fmt.Fprint(w, `{"outcome":`)
			_ = http.NewResponseController(w).Flush()
		}
		<-release
	})
	t.Cleanup(func() { close(release) }) // before the server's own Close
	cl := newClient(t, Config{})
	e := at(s.URL)
	e.PrepareTimeout, e.FinishTimeout = 2*time.Second, 2*time.Second // time to connect and send
	answers := map[rm.Phase]chan rm.Result{}
	for i, phase := range []rm.Phase{rm.Prepare, rm.Commit, rm.Status} {
		c, answer := call(phase), make(chan rm.Result, 1)
		c.Branch = uint32(i) // none of them ends another
		cl.Call(c, e, func(r rm.Result) { answer <- r })
		answers[phase] = answer
	}
	for phase, answer := range answers {
		if r := receive(t, answer); r.Kind != rm.Indefinite || !r.Sent || !strings.Contains(r.Reason, "no answer within 2s") {
			t.Errorf("%s: %+v", phase, r)
		}
	}
}

func TestRefusedConnectionIsKnownUnsent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	cl := newClient(t, Config{})
	r := ask(t, cl, call(rm.Prepare), at("http://"+l.Addr().String()))
	if r.Kind != rm.Indefinite || r.Sent || r.Took != 0 || !strings.Contains(r.Reason, "refused") {
		t.Errorf("%+v", r)
	}
	e := at("http://" + l.Addr().String())
	e.StatusURL = ""
	if r = ask(t, cl, call(rm.Status), e); r.Kind != rm.Indefinite || r.Sent {
		t.Errorf("no status URL: %+v", r)
	}
}

// A server may close an idle connection just as a call is written to it. That
// costs one replay on a new connection, not an indefinite answer; and a server
// that dies of the call does not get it again from every idle connection.
func TestBrokenIdleConnectionIsReplayedOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	const warm = 8
	var requests, breaking atomic.Int32
	var together sync.WaitGroup // the warm calls, so that each has its own connection
	together.Add(warm)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for br := bufio.NewReader(conn); ; {
					req, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, req.Body)
					if breaking.Load() > 0 {
						requests.Add(1)
						if breaking.Add(-1) >= 0 {
							return
						}
					} else {
						together.Done()
						together.Wait()
					}
					fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"vote\":\"yes\"}")
				}
			}()
		}
	}()
	cl := newClient(t, Config{})
	results := make(chan rm.Result, warm)
	for range warm {
		cl.Call(call(rm.Prepare), at("http://"+l.Addr().String()), func(r rm.Result) { results <- r })
	}
	for range warm {
		if r := receive(t, results); r.Kind != rm.Yes {
			t.Fatalf("%+v", r)
		}
	}
	breaking.Store(1000)
	if r := ask(t, cl, call(rm.Prepare), at("http://"+l.Addr().String())); r.Kind != rm.Indefinite || !r.Sent {
		t.Errorf("a participant that always breaks: %+v", r)
	}
	if n := requests.Load(); n != 2 {
		t.Errorf("one call was sent %d times, want 2", n)
	}
}

func TestUnknownOnCommitIsConfirmed(t *testing.T) {
	for status, want := range map[string]string{
		`200 {"outcome":"unknown"}`:     "contradicts unknown",
		`200 {"outcome":"rolled_back"}`: "contradicts rolled_back",
		`200 {"outcome":"committed"}`:   "done",
		`200 {"outcome":"prepared"}`:    "indefinite",
		`500 oops`:                      "indefinite",
		`200 rubbish`:                   "indefinite",
		``:                              "contradicts unknown", // no status URL
	} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/commit" {
				w.WriteHeader(404)
				fmt.Fprint(w, `{"outcome":"unknown"}`)
				return
			}
			var body struct{ Phase string }
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil || body.Phase != "status" {
				t.Errorf("%v, phase %q", err, body.Phase)
			}
			var code int
			_, _ = fmt.Sscan(status, &code)
			w.WriteHeader(code)
			fmt.Fprint(w, status[4:])
		})
		e := at(s.URL)
		if status == "" {
			e.StatusURL = ""
		}
		cl := newClient(t, Config{})
		if r := ask(t, cl, call(rm.Commit), e); show(r) != want || !r.Sent {
			t.Errorf("status %q: %+v, want %s", status, r, want)
		}
	}
}

func TestAddressGuard(t *testing.T) {
	for _, c := range []struct {
		address string
		allowed string
		ok      bool
	}{
		{"127.0.0.1:80", "", true},
		{"[::1]:80", "", true},
		{"10.0.0.1:80", "", true},
		{"169.254.169.254:80", "", false},
		{"[::ffff:169.254.169.254]:80", "", false},
		{"[64:ff9b::a9fe:a9fe]:80", "", false},
		{"[fe80::1%eth0]:80", "", false},
		{"0.0.0.0:80", "", false},
		{"[::]:80", "", false},
		{"224.0.0.1:80", "", false},
		{"10.1.2.3:80", "10.0.0.0/8", true},
		{"[::ffff:10.1.2.3]:80", "10.0.0.0/8", true},
		{"11.0.0.1:80", "10.0.0.0/8", false},
		{"127.0.0.1:80", "10.0.0.0/8", false},
		{"nonsense", "", false},
	} {
		if err := checkAddress(c.address, prefixes(t, c.allowed)); (err == nil) != c.ok {
			t.Errorf("%s in %q: %v", c.address, c.allowed, err)
		}
	}
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"vote":"yes"}`) })
	cl := newClient(t, Config{AllowedNetworks: prefixes(t, "10.0.0.0/8")})
	if r := ask(t, cl, call(rm.Prepare), at(s.URL)); r.Kind != rm.Indefinite || r.Sent || !strings.Contains(r.Reason, "outside the allowed networks") {
		t.Errorf("%+v", r)
	}
}
