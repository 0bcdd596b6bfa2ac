package rmhttp

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/rm"
)

const yesAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"vote\":\"yes\"}"

// connections serves every connection with script, which is told the connection's
// number, from 1, and returns the base URL.
func connections(t *testing.T, script func(n int, c net.Conn, br *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				script(n, c, bufio.NewReader(c))
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

// request reads one whole request; false at the connection's end.
func request(br *bufio.Reader) bool {
	req, err := http.ReadRequest(br)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, req.Body)
	return err == nil
}

func open(cl *Client) (open, idle int) {
	cl.pool.mu.Lock()
	defer cl.pool.mu.Unlock()
	for _, list := range cl.pool.idle {
		idle += len(list)
	}
	return len(cl.pool.open), idle
}

func TestConnectionsAreReused(t *testing.T) {
	var last atomic.Int32
	url := connections(t, func(n int, c net.Conn, br *bufio.Reader) {
		last.Store(int32(n))
		for i := 0; request(br); i++ {
			if i%2 == 0 {
				fmt.Fprint(c, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"+yesAnswer)
			} else {
				fmt.Fprint(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{\"vote\"\r\n7\r\n:\"yes\"}\r\n0\r\nTrailer: x\r\n\r\n")
			}
		}
	})
	cl := newClient(t, Config{})
	for i := range 20 {
		if r := ask(t, cl, call(rm.Prepare), at(url)); r.Kind != rm.Yes {
			t.Fatalf("call %d: %+v", i, r)
		}
	}
	if n := last.Load(); n != 1 {
		t.Errorf("20 calls one after the other took %d connections", n)
	}
}

// What makes a connection unfit for another request, after a good answer.
func TestConnectionsThatAreNotReused(t *testing.T) {
	for name, script := range map[string]func(c net.Conn){
		"it says close":      func(c net.Conn) { fmt.Fprint(c, strings.Replace(yesAnswer, "\r\n", "\r\nConnection: close\r\n", 1)) },
		"HTTP/1.0":           func(c net.Conn) { fmt.Fprint(c, strings.Replace(yesAnswer, "1.1", "1.0", 1)) },
		"no length":          func(c net.Conn) { fmt.Fprint(c, "HTTP/1.1 200 OK\r\n\r\n{\"vote\":\"yes\"}"); c.Close() },
		"an answer too many": func(c net.Conn) { fmt.Fprint(c, yesAnswer+strings.Replace(yesAnswer, "yes", "no!", 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			var last atomic.Int32
			url := connections(t, func(n int, c net.Conn, br *bufio.Reader) {
				last.Store(int32(n))
				if request(br) {
					script(c)
					request(br)
				}
			})
			cl := newClient(t, Config{})
			for i := range 3 {
				if r := ask(t, cl, call(rm.Prepare), at(url)); r.Kind != rm.Yes {
					t.Fatalf("call %d: %+v", i, r)
				}
			}
			if n := last.Load(); n != 3 {
				t.Errorf("3 calls took %d connections", n)
			}
			if n, _ := open(cl); n != 0 {
				t.Errorf("%d connections are kept", n)
			}
		})
	}
}

// A participant that says something on an idle connection - a 408 before it closes
// it, or worse an answer to nobody - is not believed to answer the next call.
func TestUnsolicitedBytesAnswerNothing(t *testing.T) {
	said := make(chan struct{})
	url := connections(t, func(n int, c net.Conn, br *bufio.Reader) {
		for request(br) {
			fmt.Fprint(c, yesAnswer)
			if n == 1 {
				<-said
				fmt.Fprint(c, strings.Replace(yesAnswer, "yes", "no!", 1))
				said <- struct{}{}
			}
		}
	})
	cl := newClient(t, Config{})
	if r := ask(t, cl, call(rm.Prepare), at(url)); r.Kind != rm.Yes {
		t.Fatalf("%+v", r)
	}
	for end := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) { // the worker gives it back after the answer was told
		if _, idle := open(cl); idle == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the connection is not kept")
		}
	}
	said <- struct{}{}
	<-said
	if r := ask(t, cl, call(rm.Prepare), at(url)); r.Kind != rm.Yes {
		t.Errorf("%+v", r)
	}
}

// A participant that refuses a large call without reading it is heard.
func TestEarlyRefusalIsHeard(t *testing.T) {
	url := connections(t, func(_ int, c net.Conn, br *bufio.Reader) {
		if _, err := http.ReadRequest(br); err == nil {
			fmt.Fprint(c, "HTTP/1.1 409 Conflict\r\nContent-Length: 13\r\n\r\n{\"vote\":\"no\"}")
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, br)
		}
	})
	cl := newClient(t, Config{})
	c := call(rm.Prepare)
	c.Operations = [][]byte{[]byte(`"` + strings.Repeat("x", 4<<20) + `"`)}
	if r := ask(t, cl, c, at(url)); r.Kind != rm.No {
		t.Errorf("%+v", r)
	}
}

func TestIdleConnectionsAreSwept(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"vote":"yes"}`) })
	cl := newClient(t, Config{IdleConnTimeout: 20 * time.Millisecond})
	results := make(chan rm.Result, 8)
	for range 8 {
		cl.Call(call(rm.Prepare), at(s.URL), func(r rm.Result) { results <- r })
	}
	for range 8 {
		if r := receive(t, results); r.Kind != rm.Yes {
			t.Fatalf("%+v", r)
		}
	}
	for end := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
		if n, idle := open(cl); n == 0 && idle == 0 {
			break
		} else if time.Now().After(end) {
			t.Fatalf("%d connections are open, %d idle", n, idle)
		}
	}
	if r := ask(t, cl, call(rm.Prepare), at(s.URL)); r.Kind != rm.Yes {
		t.Errorf("after the sweep: %+v", r)
	}
}

func TestIdleConnectionsAreBounded(t *testing.T) {
	all := make(chan struct{}, 8)
	release := make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		all <- struct{}{}
		<-release
		fmt.Fprint(w, `{"vote":"yes"}`)
	})
	cl := newClient(t, Config{MaxIdleConns: 3})
	results := make(chan rm.Result, 8)
	for range 8 {
		cl.Call(call(rm.Prepare), at(s.URL), func(r rm.Result) { results <- r })
	}
	for range 8 {
		receive(t, all)
	}
	close(release)
	for range 8 {
		receive(t, results)
	}
	for end := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
		if n, idle := open(cl); n == 3 && idle == 3 {
			break
		} else if time.Now().After(end) {
			t.Fatalf("%d connections are open, %d idle, want 3", n, idle)
		}
	}
}

func TestTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || r.ProtoMajor != 1 {
			t.Errorf("%s, TLS %v", r.Proto, r.TLS != nil)
		}
		fmt.Fprint(w, `{"vote":"yes"}`)
	}))
	var fresh atomic.Int32
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			fresh.Add(1)
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())

	cl := newClient(t, Config{TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}})
	for i := range 5 {
		if r := ask(t, cl, call(rm.Prepare), at(s.URL)); r.Kind != rm.Yes {
			t.Fatalf("call %d: %+v", i, r)
		}
	}
	if n := fresh.Load(); n != 1 {
		t.Errorf("5 calls took %d connections", n)
	}
	strict := newClient(t, Config{}) // does not know the test's authority
	if r := ask(t, strict, call(rm.Prepare), at(s.URL)); r.Kind != rm.Indefinite || r.Sent || !strings.Contains(r.Reason, "TLS") {
		t.Errorf("an unknown authority: %+v", r)
	}
	// Plain HTTP spoken to a TLS port, and the other way round.
	if r := ask(t, cl, call(rm.Prepare), at(strings.Replace(s.URL, "https", "http", 1))); r.Kind != rm.Indefinite {
		t.Errorf("%+v", r)
	}
	plain := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("a request came through") })
	if r := ask(t, cl, call(rm.Prepare), at(strings.Replace(plain.URL, "http", "https", 1))); r.Kind != rm.Indefinite || r.Sent {
		t.Errorf("%+v", r)
	}
}

func TestHostNames(t *testing.T) {
	for host, want := range map[string]string{"ledger.internal": "ledger.internal", "bücher.example": "xn--bcher-kva.example", "::1": "::1"} {
		if got, err := asciiHost(host); err != nil || got != want {
			t.Errorf("%s: %q, %v", host, got, err)
		}
	}
	cl := newClient(t, Config{})
	if r := ask(t, cl, call(rm.Prepare), at("http://\u00ad.invalid")); r.Kind != rm.Indefinite || r.Sent {
		t.Errorf("%+v", r)
	}
}

// Neither a trace context nor a service's name reaches the header's structure.
func TestHeadersCannotBeInjected(t *testing.T) {
	got := make(chan http.Header, 1)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header
		fmt.Fprint(w, `{"vote":"yes"}`)
	})
	c := call(rm.Prepare)
	c.TraceParent = "00-x\r\nX-Evil: 1"
	if r := ask(t, newClient(t, Config{}), c, at(s.URL)); r.Kind == rm.Yes {
		if h := receive(t, got); h.Get("X-Evil") != "" {
			t.Errorf("%v", h)
		}
	}
}
