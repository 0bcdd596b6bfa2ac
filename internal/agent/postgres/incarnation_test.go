package postgres

import (
	"errors"
	"testing"

	"github.com/assent-tx/assent/internal/pgtest"
	"github.com/assent-tx/assent/participant"
)

// TestOlderIncarnation: once a restored cluster has called, the one that it replaces changes nothing any more: on
// the fast road neither.
func TestOlderIncarnation(t *testing.T) {
	b := &bed{Cluster: pgtest.Start(t)}
	dsn := b.database(t)
	a, db := start(t, dsn, nil), open(t, dsn)
	as := func(c *participant.Call, incarnation string) *participant.Call {
		c.Token = incarnation + "-0000000000000001-0000000000000001"
		return c
	}
	work := op(`{"sql":"UPDATE account SET balance = balance - 1 WHERE id = 1"}`)
	vote(t, a, as(prepareCall(newID(), work, op(`{"sql":"SELECT 1"}`)), "00000001"), "yes", "") // binds the database to the cluster
	held := newID()
	vote(t, a, as(prepareCall(held, op(`{"sql":"UPDATE account SET balance = balance - 1 WHERE id = 2"}`)), "00000001"), "yes", "")
	// The restored cluster calls, on the road of the SDK.
	if _, err := a.Resource().Finish(t.Context(), as(finishCall(newID(), participant.PhaseRollback), "00000002")); err != nil {
		t.Fatal(err)
	}
	late := newID()
	v, err := a.Resource().Prepare(t.Context(), as(prepareCall(late, op(`{"sql":"UPDATE account SET balance = balance - 1 WHERE id = 3"}`)), "00000001"))
	if !errors.Is(err, participant.ErrStale) {
		t.Errorf("prepare of the replaced cluster: %+v, %v", v, err)
	}
	o, err := a.Resource().Finish(t.Context(), as(finishCall(held, participant.PhaseCommit), "00000001"))
	if !errors.Is(err, participant.ErrStale) {
		t.Errorf("commit of the replaced cluster: %s, %v; balance %d", o, err, ask[int](t, db, `SELECT balance FROM account WHERE id = 2`))
	}
	// And whether a call on the fast road alone makes the new incarnation known.
	c := start(t, b.database(t), nil)
	vote(t, c, as(prepareCall(newID(), work, op(`{"sql":"SELECT 1"}`)), "00000001"), "yes", "")
	vote(t, c, as(prepareCall(newID(), op(`{"sql":"UPDATE account SET balance = balance - 1 WHERE id = 4"}`)), "00000002"), "yes", "")
	if o, err := c.Resource().Finish(t.Context(), as(finishCall(newID(), participant.PhaseRollback), "00000001")); !errors.Is(err, participant.ErrStale) {
		t.Errorf("rollback of the replaced cluster, after a prepare of the restored one: %s, %v", o, err)
	}
}
