package rmhttp

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/assent-tx/assent/internal/rm"
)

// testCertificate is valid for 127.0.0.1, ::1 and example.com, and its own authority.
func testCertificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s.TLS.Certificates[0], roots
}

// corked holds back what is written until it is told how many bytes may go.
type corked struct {
	net.Conn
	held bytes.Buffer
	cork bool
}

func (c *corked) Write(p []byte) (int, error) {
	if c.cork {
		return c.held.Write(p)
	}
	return c.Conn.Write(p)
}

// release sends all but the last keep bytes of what is held, in one segment if they fit.
func (c *corked) release(t *testing.T, keep int) {
	if _, err := c.Conn.Write(c.held.Next(c.held.Len() - keep)); err != nil {
		t.Error(err)
	}
}

// padded is an answer with a vote and at least n bytes of body.
func padded(vote string, n int) string {
	body := `{"vote":"` + vote + `","pad":"` + strings.Repeat("x", n) + `"}`
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// A participant, or a proxy before several, that answers once too often is not
// believed to answer the next call: whatever the sizes, and however much of the
// answer to nobody has come when the next call is made.
func TestAnswersToNobodyAnswerNothing(t *testing.T) {
	certificate, roots := testCertificate(t)
	for _, secure := range []bool{false, true} {
		for _, pad := range []int{0, 400, 2000, 3900, 4000, 4070, 5000, 8000, 20_000, 40_000} {
			for _, oneRecord := range []bool{false, true} {
				for _, late := range []int{0, 1, 30, 200} { // bytes that come only after the next call
					if oneRecord && (!secure || late > 0) { // without records; the answer would not be whole
						continue
					}
					name := fmt.Sprintf("tls=%t/pad=%d/together=%t/late=%d", secure, pad, oneRecord, late)
					t.Run(name, func(t *testing.T) {
						answerTooMany(t, secure, certificate, roots, pad, oneRecord, late)
					})
				}
			}
		}
	}
}

func answerTooMany(t *testing.T, secure bool, certificate tls.Certificate, roots *x509.CertPool, pad int, oneRecord bool, late int) {
	var served atomic.Int32
	url := connections(t, func(n int, c net.Conn, _ *bufio.Reader) {
		cork := &corked{Conn: c}
		c = cork
		if secure {
			c = tls.Server(cork, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
		}
		for br := bufio.NewReader(c); request(br); {
			served.Add(1)
			if n > 1 {
				fmt.Fprint(c, padded("yes", pad))
				continue
			}
			cork.cork = true
			right, wrong := padded("yes", pad), padded("no", 200)
			if oneRecord {
				fmt.Fprint(c, right+wrong)
			} else {
				fmt.Fprint(c, right)
				fmt.Fprint(c, wrong)
			}
			cork.release(t, late)
			cork.cork = false
			if !request(br) {
				return
			}
			cork.release(t, 0)
			_, _ = io.Copy(io.Discard, br)
		}
	})
	if secure {
		url = strings.Replace(url, "http:", "https:", 1)
	}
	cl := newClient(t, Config{TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}})
	for i := range 3 {
		if r := ask(t, cl, call(rm.Prepare), at(url)); r.Kind != rm.Yes {
			t.Fatalf("call %d: %+v", i, r)
		}
	}
	if n := served.Load(); n != 3 {
		t.Errorf("%d calls came for 3", n)
	}
}
