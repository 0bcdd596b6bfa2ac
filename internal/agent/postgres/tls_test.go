package postgres

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/pgtest"
	"github.com/assent-tx/assent/participant"
)

// The agent's sessions are encrypted, and a server that cannot show who it is gets
// nothing: neither the password nor a branch.
func TestTLS(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	c := pgtest.Start(t)
	serve := func(names ...string) {
		t.Helper()
		cert, key := ours.issue(t, names...)
		if err := errors.Join(c.Provide("server.crt", cert), c.Provide("server.key", key)); err != nil {
			t.Fatal(err)
		}
		if err := c.SQL(t.Context(), "postgres", "ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error { return presents(t.Context(), c, cert) }) // reloading takes a moment
	}
	if err := c.Provide("pg_hba.conf", []byte("hostssl all app 127.0.0.1/32 scram-sha-256\nhost all postgres 127.0.0.1/32 trust\n")); err != nil {
		t.Fatal(err)
	}
	serve("127.0.0.1")
	if err := c.SQL(t.Context(), "postgres", "CREATE ROLE app LOGIN PASSWORD 's3cret'", "CREATE DATABASE bank OWNER app"); err != nil {
		t.Fatal(err)
	}
	if err := c.SQL(t.Context(), "bank", "SET ROLE app; CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL); INSERT INTO account VALUES (1, 100), (2, 100)"); err != nil {
		t.Fatal(err)
	}
	dsn := func(mode, roots string) string {
		return fmt.Sprintf("postgres://app:s3cret@127.0.0.1:%d/bank?sslmode=%s&sslrootcert=%s", c.Port, mode, roots)
	}
	refused := func(dsn, want string) {
		t.Helper()
		a, err := Open(t.Context(), Config{Service: "bank", DSN: dsn, CoordinatorURL: "http://127.0.0.1:1", BaseURL: "http://127.0.0.1:2", Logger: slog.New(slog.DiscardHandler)})
		if err == nil {
			a.Close()
			t.Fatalf("accepted; want %q", want)
		}
		if text := err.Error(); !strings.Contains(text, want) || strings.Contains(text, "s3cret") || strings.Contains(text, dsn) {
			t.Errorf("want %q: %v", want, err)
		}
	}

	refused(dsn("verify-full", others.file), "certificate signed by unknown authority")
	refused(dsn("verify-ca", others.file), "certificate")
	refused(dsn("disable", ours.file), "no pg_hba.conf entry")
	refused(dsn("verify-full", filepath.Join(t.TempDir(), "absent.pem")), "absent.pem: no such file")

	a := start(t, dsn("verify-full", ours.file), func(c *Config) { c.LockTimeout, c.StatementTimeout = 20*time.Second, 20*time.Second })
	db := open(t, c.DSN("bank"))
	first := newID()
	vote(t, a, prepareCall(first, op(`{"sql":"UPDATE account SET balance = balance - 5 WHERE id = 1","expect":{"rows":1}}`)), "yes", "") // binds the database
	again := newID()
	vote(t, a, prepareCall(again, op(`{"sql":"UPDATE account SET balance = balance - 5 WHERE id = 2","expect":{"rows":1}}`)), "yes", "") // in one trip
	finish(t, a, again, participant.PhaseCommit, participant.OutcomeCommitted)
	if got := ask[string](t, db, `SELECT count(*) > 0 AND bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'assent agent bank'`); got != "true" {
		t.Errorf("all sessions are encrypted: %s", got)
	}

	// A call that nobody waits for any more leaves its session, here too.
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := a.Resource().Prepare(ctx, prepareCall(newID(), op(`{"sql":"UPDATE account SET balance = balance - 1 WHERE id = 1"}`)))
		gone <- err
	}()
	waits := func(want int) func() error {
		return func() error {
			if n := ask[int](t, db, `SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event_type = 'Lock'`); n != want {
				return fmt.Errorf("%d sessions wait for a row, want %d", n, want)
			}
			return nil
		}
	}
	eventually(t, waits(1))
	cancel()
	if err := <-gone; err == nil {
		t.Error("a call that was given up has an answer")
	}
	eventually(t, waits(0))
	finish(t, a, first, participant.PhaseCommit, participant.OutcomeCommitted)

	// The server's certificate is renewed for another name.
	serve("db.example")
	refused(dsn("verify-full", ours.file), "127.0.0.1")
	start(t, dsn("verify-ca", ours.file), nil)
}

// presents reports whether the server shows the certificate to new sessions.
func presents(ctx context.Context, c *pgtest.Cluster, cert []byte) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", c.Port))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	request := []byte{0, 0, 0, 8, 4, 210, 22, 47} // SSLRequest
	if _, err := conn.Write(request); err != nil {
		return err
	}
	answer := make([]byte, 1)
	if _, err := conn.Read(answer); err != nil || answer[0] != 'S' {
		return fmt.Errorf("the server answers %q to a request for TLS: %w", answer, err)
	}
	client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it is looked at below
	if err := client.HandshakeContext(ctx); err != nil {
		return err
	}
	shown := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: client.ConnectionState().PeerCertificates[0].Raw})
	if !bytes.Equal(shown, cert) {
		return errors.New("the server shows another certificate")
	}
	return nil
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its own certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a test's authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, file: filepath.Join(t.TempDir(), "ca.pem")}
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// issue returns a certificate for a server of these names and its key, in PEM.
func (a *authority) issue(t *testing.T, names ...string) (certificate, private []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
}
