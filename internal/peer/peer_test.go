package peer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// book is where members are found.
type book struct {
	mu sync.Mutex
	at map[string]string
}

func (b *book) set(member, address string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at[member] = address
}

func (b *book) get(member string) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.at[member]
	return a, ok
}

func port(t *testing.T, b *book, member, cluster string, config *tls.Config) *Port {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := New(l, Config{Self: member, Cluster: func() string { return cluster }, Address: b.get, TLS: config})
	p.Handle(map[string]Handler{
		"echo": func(_ context.Context, from Caller, body []byte) ([]byte, error) {
			who := from.Member
			if from.Stranger {
				who += " (stranger)"
			}
			return append([]byte(who+": "), body...), nil
		},
		"wait": func(ctx context.Context, _ Caller, _ []byte) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		"fail": func(context.Context, Caller, []byte) ([]byte, error) { return nil, errors.New("broken") },
	})
	b.set(member, l.Addr().String())
	t.Cleanup(p.Close)
	return p
}

func TestCalls(t *testing.T) {
	b := &book{at: map[string]string{}}
	one, two := port(t, b, "n1@1", "c", nil), port(t, b, "n2@2", "c", nil)
	one.Serve()
	two.Serve()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for range 3 {
		if got, err := one.Call(ctx, "n2@2", "echo", []byte("hi")); err != nil || string(got) != "n1@1: hi" {
			t.Fatal(string(got), err)
		}
	}
	if _, err := one.Call(ctx, "n2@2", "fail", nil); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "broken") {
		t.Error(err)
	}
	if _, err := one.Call(ctx, "n3@3", "echo", nil); !errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
	if _, err := one.Call(ctx, "n2@2", "other", nil); !errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
	big := make([]byte, 8<<20)
	if got, err := one.Call(ctx, "n2@2", "echo", big); err != nil || len(got) != len(big)+6 {
		t.Error(len(got), err)
	}
	// A caller that gives up, and a member that goes and comes back elsewhere.
	short, end := context.WithTimeout(ctx, 20*time.Millisecond)
	if _, err := one.Call(short, "n2@2", "wait", nil); !errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
	end()
	two.Close()
	if _, err := one.Call(ctx, "n2@2", "echo", nil); !errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
	port(t, b, "n2@2", "c", nil).Serve()
	for {
		if _, err := one.Call(ctx, "n2@2", "echo", nil); err == nil {
			break
		} else if ctx.Err() != nil {
			t.Fatal("it is not found at its new address: ", err)
		}
	}
}

func TestStrangers(t *testing.T) {
	b := &book{at: map[string]string{}}
	member, other, fresh := port(t, b, "n1@1", "c", nil), port(t, b, "x1@1", "d", nil), port(t, b, "n9@9", "", nil)
	for _, p := range []*Port{member, other, fresh} {
		p.Serve()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	at, _ := b.get("n1@1")
	if got, err := fresh.CallAddress(ctx, at, "echo", []byte("join")); err != nil || string(got) != "n9@9 (stranger): join" {
		t.Error(string(got), err)
	}
	if _, err := other.CallAddress(ctx, at, "echo", nil); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "cluster") {
		t.Error(err)
	}
	b.set("n2@2", at) // somebody else listens there
	if _, err := member.Call(ctx, "n2@2", "echo", nil); err == nil || !strings.Contains(err.Error(), "this is member n1@1") {
		t.Error(err)
	}
	member.Listener(0)
	if _, err := fresh.Dial("n1@1", 0, time.Second); !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
}

// TestBecomesMember: a node that had no cluster when it was called has one later, and its
// callers are no strangers any more.
func TestBecomesMember(t *testing.T) {
	b := &book{at: map[string]string{}}
	var mu sync.Mutex
	cluster := ""
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	young := New(l, Config{Self: "n2@2", Address: b.get, Cluster: func() string {
		mu.Lock()
		defer mu.Unlock()
		return cluster
	}})
	young.Handle(map[string]Handler{"known": func(_ context.Context, from Caller, _ []byte) ([]byte, error) {
		if from.Stranger {
			return []byte("no"), nil
		}
		return []byte("yes"), nil
	}})
	b.set("n2@2", l.Addr().String())
	t.Cleanup(young.Close)
	young.Serve()
	one := port(t, b, "n1@1", "c", nil)
	one.Serve()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, want := range []string{"no", "yes"} {
		if got, err := one.Call(ctx, "n2@2", "known", nil); err != nil || string(got) != want {
			t.Error(string(got), err, want)
		}
		mu.Lock()
		cluster = "c"
		mu.Unlock()
	}
}

func TestShards(t *testing.T) {
	b := &book{at: map[string]string{}}
	one, two := port(t, b, "n1@1", "c", nil), port(t, b, "n2@2", "c", nil)
	l := two.Listener(7)
	one.Serve()
	two.Serve()
	if _, err := one.Dial("n2@2", 8, time.Second); !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
	c, err := one.Dial("n2@2", 7, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	there, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("log")); err != nil {
		t.Fatal(err)
	}
	var got [3]byte
	if _, err := io.ReadFull(there, got[:]); err != nil || string(got[:]) != "log" {
		t.Error(got, err)
	}
	two.Close()
	if _, err := c.Read(got[:]); err == nil {
		t.Error("a closed port's connection is open")
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// TestRubbish: who speaks another protocol is turned away, and holds up nobody.
func TestRubbish(t *testing.T) {
	b := &book{at: map[string]string{}}
	one := port(t, b, "n1@1", "c", nil)
	one.Serve()
	for _, text := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", magic + "\xff\xff\xff\xff", magic + "\x00\x00\x00\x02{]", magic + "\x00\x00\x00\x02{}"} {
		c, err := net.Dial("tcp", one.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Error(err)
		}
		_ = c.Close()
	}
}

// authority makes certificates.
func authority(t *testing.T) (pool *x509.CertPool, issue func(name string) tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(root)
	return pool, func(name string) tls.Certificate {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}, root, &own.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: own}
	}
}

func TestTLS(t *testing.T) {
	b := &book{at: map[string]string{}}
	pool, issue := authority(t)
	_, forge := authority(t)
	config := func(c tls.Certificate) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{c}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}
	}
	one, two := port(t, b, "n1@1", "c", config(issue("n1"))), port(t, b, "n2@2", "c", config(issue("n2")))
	bad, plain := port(t, b, "n3@3", "c", config(forge("n3"))), port(t, b, "n4@4", "c", nil)
	for _, p := range []*Port{one, two, bad, plain} {
		p.Serve()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if got, err := one.Call(ctx, "n2@2", "echo", []byte("hi")); err != nil || string(got) != "n1@1: hi" {
		t.Error(string(got), err)
	}
	for _, p := range []*Port{bad, plain} {
		if _, err := p.Call(ctx, "n1@1", "echo", nil); !errors.Is(err, ErrUnreachable) {
			t.Error(err)
		}
	}
	if _, err := one.Call(ctx, "n3@3", "echo", nil); !errors.Is(err, ErrUnreachable) {
		t.Error("a node with another authority's certificate is believed: ", err)
	}
}
