package participant_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/assent-tx/assent/participant"
	"github.com/assent-tx/assent/rm/rmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func payload(amount int) func(string) json.RawMessage {
	return func(marker string) json.RawMessage {
		return fmt.Appendf(nil, `{"account":%q,"amount":%d}`, marker, amount)
	}
}

// ledgerTarget is the suite's view of a ledger, wherever it is served.
func ledgerTarget(db func() *sql.DB, url string) rmtest.Target {
	count := func(table string) func(context.Context, string) (int, error) {
		return func(ctx context.Context, marker string) (n int, err error) {
			err = db().QueryRowContext(ctx, `SELECT COUNT(*) FROM `+table+` WHERE account = ?`, marker).Scan(&n)
			return n, err
		}
	}
	return rmtest.Target{
		Service: "ledger", BaseURL: url,
		Succeed: payload(-1), Results: payload(-2), Refuse: payload(-1000), ReadOnly: payload(0),
		Effects: count("entry"), Reserved: count("reservation"),
		OnePhase: true, Execute: true, OneOpen: true,
	}
}

func TestConformsOnSQLite(t *testing.T) {
	file := ledgerFile(t)
	var db *sql.DB
	var p *participant.Participant
	var server *httptest.Server
	open := func() string {
		db = openLedger(t, file)
		p = start(t, db, nil)
		server = httptest.NewServer(p.Handler())
		return server.URL
	}
	stop := func() {
		server.CloseClientConnections()
		server.Close()
		p.Close()
		db.Close()
	}
	url := open()
	t.Cleanup(func() { stop() })
	target := ledgerTarget(func() *sql.DB { return db }, url)
	target.Restart = func(context.Context) (string, error) {
		stop()
		return open(), nil
	}
	rmtest.Run(t, target)
}

// Several processes may serve one database: here two participants that share
// nothing else, asked in turn.
func TestConformsWithTwoProcessesOnOneDatabase(t *testing.T) {
	file := ledgerFile(t)
	db := openLedger(t, file)
	handlers := []http.Handler{start(t, db, nil).Handler(), start(t, openLedger(t, file), nil).Handler()}
	var turn atomic.Uint32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers[turn.Add(1)%2].ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	target := ledgerTarget(func() *sql.DB { return db }, server.URL)
	target.Execute = false // an open branch lives in one process
	rmtest.Run(t, target)
}
