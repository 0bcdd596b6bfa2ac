package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/assent-tx/assent/participant"
)

// The server takes some functions that write for reads: a branch of them is none.
func writesByFunctions(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, nil), open(t, dsn)
	do(t, db, `CREATE FUNCTION made() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM pg_largeobject_metadata'`)
	want := 0
	for _, onePhase := range []bool{false, true} {
		for _, sql := range []string{`SELECT lo_from_bytea(0, 'abc')`, `SELECT pg_logical_emit_message(true, 'outbox', 'placed')`} {
			if strings.Contains(sql, "lo_") {
				want++
			}
			c := prepareCall(newID(), op(`{"sql":"`+sql+`"}`))
			c.OnePhase = onePhase
			vote(t, a, c, "yes", "")
			finish(t, a, c.Transaction, participant.PhaseCommit, participant.OutcomeCommitted)
			if got := ask[int](t, db, `SELECT made()`); got != want {
				t.Errorf("%s, one phase %t: %d large objects, want %d", sql, onePhase, got, want)
			}
		}
	}
	id, step := newID(), op(`{"sql":"SELECT lo_from_bytea(0, 'abc')"}`)
	if x, err := a.Resource().(*resource).Execute(t.Context(), executeCall(id, step)); err != nil || !x.Executed { //nolint:forcetypeassert // it is
		t.Fatal(x, err)
	}
	vote(t, a, prepareRest(id, 1, step), "yes", "")
	finish(t, a, id, participant.PhaseCommit, participant.OutcomeCommitted)
	if got := ask[int](t, db, `SELECT made()`); got != want+1 {
		t.Errorf("executed: %d large objects, want %d", got, want+1)
	}
	vote(t, a, prepareCall(newID(), op(`{"sql":"SELECT made()"}`)), "read_only", "")
}

func becomes(t *testing.T, what string, so func() bool) {
	t.Helper()
	eventually(t, func() error {
		if so() {
			return nil
		}
		return errors.New("not yet: " + what)
	})
}

// What a session would keep for the transactions that it serves next is refused.
func TestOutlives(t *testing.T) {
	for sql, refused := range map[string]bool{
		`SELECT pg_notify('c', 'x')`:                                            true,
		`SELECT pg_advisory_lock(7)`:                                            true,
		`SELECT Pg_Try_Advisory_Lock_Shared (7)`:                                true,
		`SELECT pg_advisory_xact_lock(7)`:                                       false,
		`SELECT set_config('search_path', 'other', false)`:                      true,
		`SELECT set_config('a.b', $1, $2)`:                                      true,
		`SELECT set_config('a.b', $1, true)`:                                    false,
		`SELECT SET_CONFIG ( 'a.b', 'it''s (this), false', TRUE )`:              false,
		`SELECT set_config('a', 'b', true), pg_catalog.set_config('a','b','f')`: true,
		`UPDATE account SET balance = balance - 1 WHERE id = 1`:                 false,
	} {
		payload, err := json.Marshal(map[string]any{"statements": []map[string]string{{"sql": sql}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(payload); (err != nil) != refused {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// With synchronous replication nobody is told of a yes or a commit that no standby has,
// also when the call is repeated, and when a time limit has ended the wait.
func standby(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, func(c *Config) { c.StatementTimeout = time.Second }), open(t, dsn)
	vote(t, a, prepareCall(newID(), op(take5)), "yes", "") // from now on by the fast road
	old := prepareCall(newID(), op(`{"sql":"UPDATE account SET balance = 7 WHERE id = 2"}`))
	vote(t, a, old, "yes", "")
	set := func(how, want string) {
		do(t, db, `ALTER SYSTEM `+how)
		do(t, db, `SELECT pg_reload_conf()`)
		becomes(t, "the setting", func() bool { return ask[string](t, db, `SHOW synchronous_standby_names`) == want })
	}
	set(`SET synchronous_standby_names = 'nobody'`, "nobody")
	defer set(`RESET synchronous_standby_names`, "")
	all, end := context.WithTimeout(t.Context(), time.Minute)
	defer end()
	c := prepareCall(newID(), op(`{"sql":"UPDATE account SET balance = 7 WHERE id = 3"}`))
	var first sync.WaitGroup
	first.Go(func() {
		if v, err := a.Resource().Prepare(all, c); err == nil {
			t.Errorf("the first prepare: %+v", v)
		}
	})
	becomes(t, "it waits", func() bool {
		return ask[int](t, db, `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`) > 0 && prepared(t, db) == 3
	})
	for range 2 {
		short, cancel := context.WithTimeout(all, 1500*time.Millisecond)
		if v, err := a.Resource().Prepare(short, c); err == nil {
			t.Errorf("a duplicate: %+v", v)
		}
		cancel()
		short, cancel = context.WithTimeout(all, 3*time.Second) // longer than a statement may take
		if o, err := a.Resource().Finish(short, finishCall(old.Transaction, participant.PhaseCommit)); err == nil {
			t.Errorf("the commit: %s", o)
		}
		cancel()
	}
	end()
	first.Wait()
}

// A server that ends an idle session has not refused the branch: its work is lost.
func idleSessionEnded(t *testing.T, b *bed) {
	dsn := b.database(t)
	a := start(t, dsn+"&options=-c%20idle_in_transaction_session_timeout%3D300", nil)
	db := open(t, dsn)
	id, steps := newID(), []string{op(take5), op(take5)}
	if x, err := a.Resource().(*resource).Execute(t.Context(), executeCall(id, steps[0])); err != nil || !x.Executed { //nolint:forcetypeassert // it is
		t.Fatal(x, err)
	}
	becomes(t, "the session is gone", func() bool {
		return ask[int](t, db, `SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'`) == 0
	})
	v, err := a.Resource().Prepare(t.Context(), prepareRest(id, 1, steps...))
	if err != nil || v.Vote != "no" || !strings.Contains(v.Reason, "EXECUTION_LOST") {
		t.Errorf("%+v, %v", v, err)
	}
}

// pooler lends server sessions for a transaction each, and does not know named statements.
type pooler struct {
	net.Listener
	servers []*pgconn.HijackedConn
	mu      []sync.Mutex
	next    atomic.Int32 // which one is lent
}

func newPooler(t *testing.T, dsn string, n int) *pooler {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &pooler{Listener: l, mu: make([]sync.Mutex, n)}
	for range n {
		c, err := pgconn.Connect(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		h, err := c.Hijack()
		if err != nil {
			t.Fatal(err)
		}
		p.servers = append(p.servers, h)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
		for _, h := range p.servers {
			_ = h.Conn.Close()
		}
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				p.serve(c)
			})
		}
	})
	return p
}

func (p *pooler) serve(c net.Conn) {
	client := pgproto3.NewBackend(c, c)
	for {
		m, err := client.ReceiveStartupMessage()
		if err != nil {
			return
		}
		if _, ok := m.(*pgproto3.StartupMessage); ok {
			break
		}
		if _, err := c.Write([]byte("N")); err != nil { // no TLS
			return
		}
	}
	client.Send(&pgproto3.AuthenticationOk{})
	for k, v := range p.servers[0].ParameterStatuses {
		client.Send(&pgproto3.ParameterStatus{Name: k, Value: v})
	}
	client.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{0, 0, 0, 1}})
	client.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if client.Flush() != nil {
		return
	}
	for p.transaction(client) {
	}
}

func (p *pooler) transaction(client *pgproto3.Backend) bool {
	m, err := client.Receive()
	if err != nil {
		return false
	}
	lent := p.next.Load()
	p.mu[lent].Lock()
	defer p.mu[lent].Unlock()
	server := p.servers[lent].Frontend
	for ; err == nil; m, err = client.Receive() {
		switch m.(type) {
		case *pgproto3.Terminate:
			return false
		case *pgproto3.Sync, *pgproto3.Query:
		default:
			server.Send(m)
			continue
		}
		server.Send(m)
		if server.Flush() != nil {
			return false
		}
		for {
			answer, err := server.Receive()
			if err != nil {
				return false
			}
			client.Send(answer)
			ready, ok := answer.(*pgproto3.ReadyForQuery)
			if !ok {
				continue
			}
			if client.Flush() != nil {
				return false
			}
			if ready.TxStatus == 'I' {
				return true
			}
			break
		}
	}
	return false
}

// A session behind a pooler may have been another process's before: what that has prepared
// there is never taken for one's own statement.
func behindPooler(t *testing.T, b *bed) {
	dsn := b.database(t)
	db := open(t, dsn)
	p := newPooler(t, dsn, 2)
	through, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	through.Host = p.Addr().String()
	run := func(a *Agent, statement string) {
		t.Helper()
		id := newID()
		vote(t, a, prepareCall(id, op(statement)), "yes", "")
		finish(t, a, id, participant.PhaseCommit, participant.OutcomeCommitted)
	}
	two := func(c *Config) { c.MaxConns = 2 }
	const debit = `{"sql":"UPDATE account SET balance = balance - $1 WHERE id = $2","args":[30,1],"expect":{"rows":1}}`
	const credit = `{"sql":"UPDATE account SET balance = balance + $1 WHERE id = $2","args":[30,2],"expect":{"rows":1}}`
	one := start(t, through.String(), two)
	run(one, debit)
	run(one, debit)
	p.next.Store(1)
	other := start(t, through.String(), two)
	run(other, credit)
	run(other, credit)
	run(one, debit)
	if got := ask[int](t, db, `SELECT balance FROM account WHERE id = 1`); got != 10 {
		t.Errorf("after three debits of 30 the account holds %d", got)
	}
	if got := ask[int](t, db, `SELECT balance FROM account WHERE id = 2`); got != 160 {
		t.Errorf("after two credits of 30 the other holds %d", got)
	}
}
