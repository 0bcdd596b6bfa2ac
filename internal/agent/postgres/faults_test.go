package postgres

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/assent-tx/assent/participant"
)

// cutter is a TCP proxy that breaks the connection after so many bytes went to the
// server.
type cutter struct {
	net.Listener
	to    string
	after atomic.Int64
	wg    sync.WaitGroup
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Listener: l, to: to}
	c.after.Store(1 << 60)
	c.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.wg.Go(func() { c.pass(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); c.wg.Wait() })
	return c
}

func (c *cutter) pass(from net.Conn) {
	defer from.Close()
	to, err := net.Dial("tcp", c.to)
	if err != nil {
		return
	}
	defer to.Close()
	var both sync.WaitGroup
	both.Go(func() {
		defer from.Close()
		buf := make([]byte, 1<<16)
		for {
			n, err := to.Read(buf)
			if n > 0 && c.after.Load() > 0 { // after the cut nothing comes back
				_, _ = from.Write(buf[:n])
			}
			if err != nil || c.after.Load() <= 0 {
				return
			}
		}
	})
	buf := make([]byte, 16) // small pieces: a cut is anywhere
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if c.after.Add(-int64(n)) <= 0 {
				_, _ = to.Write(buf[:n])
				break
			}
			_, _ = to.Write(buf[:n])
		}
		if err != nil {
			break
		}
	}
	from.Close()
	to.Close()
	both.Wait()
}

// Wherever the connection breaks, the branch is prepared or it is not, a repeated
// call finds out which, and the effect is there once or never.
func lostConnections(t *testing.T, b *bed) {
	dsn := b.database(t)
	db := open(t, dsn)
	proxy := newCutter(t, fmt.Sprintf("127.0.0.1:%d", b.Port))
	through := strings.Replace(dsn, fmt.Sprint(":", b.Port, "/"), fmt.Sprint(":", proxy.Addr().(*net.TCPAddr).Port, "/"), 1)
	a := start(t, through, func(c *Config) { c.MaxConns = 2 })
	warm := newID()
	vote(t, a, prepareCall(warm, op(`{"sql":"INSERT INTO effect (marker) VALUES ('warm')"}`)), "yes", "")
	finish(t, a, warm, participant.PhaseRollback, participant.OutcomeRolledBack)
	cuts, lost := 0, 0
	for after := int64(1); ; after += 29 {
		id := newID()
		c := prepareCall(id, op(`{"sql":"INSERT INTO effect (marker) VALUES ($1)","args":["`+id+`"],"expect":{"rows":1}}`))
		phase, outcome := participant.PhaseCommit, participant.OutcomeCommitted
		if cuts%3 == 2 {
			phase, outcome = participant.PhaseRollback, participant.OutcomeRolledBack
		}
		proxy.after.Store(after)
		var err error
		for end := time.Now().Add(deadline); time.Now().Before(end); {
			var v participant.Vote
			if v, err = a.Resource().Prepare(t.Context(), c); err == nil {
				if v.Vote != "yes" {
					t.Fatalf("cut after %d bytes: %+v", after, v)
				}
				break
			}
			lost++
			proxy.after.Store(1 << 60)
		}
		for end := time.Now().Add(deadline); err == nil && time.Now().Before(end); {
			var o participant.Outcome
			if o, err = a.Resource().Finish(t.Context(), finishCall(id, phase)); err == nil {
				if o != outcome {
					t.Fatalf("cut after %d bytes: %s ended as %s", after, phase, o)
				}
				break
			}
			lost++
			err = nil
			proxy.after.Store(1 << 60)
		}
		if err != nil {
			t.Fatalf("cut after %d bytes: %v", after, err)
		}
		want := 0
		if phase == participant.PhaseCommit {
			want = 1
		}
		if n := ask[int](t, db, `SELECT count(*) FROM effect WHERE marker = $1`, id); n != want {
			t.Fatalf("cut after %d bytes: %d effects after %s", after, n, phase)
		}
		cuts++
		if proxy.after.Load() > 0 && proxy.after.Load() < 1<<59 { // it got through uncut
			break
		}
	}
	if lost < 10 || prepared(t, db) != 0 {
		t.Errorf("%d of %d cuts were felt, %d transactions are left prepared", lost, cuts, prepared(t, db))
	}
}

// The server is killed between prepare and its end: what was prepared is there.
func crashes(t *testing.T, b *bed) {
	dsn := b.database(t)
	a, db := start(t, dsn, nil), open(t, dsn)
	vote(t, a, prepareCall(newID(), op(`{"sql":"UPDATE account SET note = 'bound' WHERE id = 10"}`)), "yes", "")
	for i, end := range []func(){b.Kill, b.Stop, b.Shutdown} {
		committed, rolled := newID(), newID()
		vote(t, a, prepareCall(committed, op(take5)), "yes", "")
		vote(t, a, prepareCall(rolled, op(`{"sql":"UPDATE account SET balance = 0 WHERE id = 2"}`)), "yes", "")
		end()
		if _, err := a.Resource().Prepare(t.Context(), prepareCall(newID(), op(take5))); err == nil {
			t.Error("a vote without a server")
		}
		if err := b.Restart(); err != nil {
			t.Fatal(err)
		}
		if i == 1 { // the agent was restarted as well
			a.Close()
			a = start(t, dsn, nil)
		}
		eventually(t, func() error {
			v, err := a.Resource().Prepare(t.Context(), prepareCall(committed, op(take5)))
			if err == nil && v.Vote != "yes" {
				err = fmt.Errorf("voted %+v", v)
			}
			return err
		})
		finish(t, a, committed, participant.PhaseCommit, participant.OutcomeCommitted)
		finish(t, a, rolled, participant.PhaseRollback, participant.OutcomeRolledBack)
		eventually(t, func() error { return db.PingContext(t.Context()) })
		if got := ask[string](t, db, `SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account WHERE id < 3`); got != fmt.Sprint(95-5*i, " 100") {
			t.Errorf("round %d: %s", i, got)
		}
	}
}
