package participant_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/assent-tx/assent/participant"
)

const (
	eraCluster     = "00112233445566778899aabbccddeeff"
	strangeCluster = "ff112233445566778899aabbccddeeff"
)

// asOf makes a call one of a cluster and its incarnation.
func asOf(c *participant.Call, cluster, incarnation string) *participant.Call {
	c.Cluster, c.Token = cluster, incarnation+"-0000000000000001-0000000000000001"
	return c
}

// Once a restored cluster has called, the one that it replaces is refused, in whatever it
// asks, by the process that heard it and by those that are called for the first time then.
func TestOlderIncarnationIsRefused(t *testing.T) {
	ctx := t.Context()
	file := ledgerFile(t)
	db := openLedger(t, file)
	p := start(t, db, with(handler{}))
	prepare := func(p *participant.Participant, incarnation string) error {
		_, err := p.Prepare(ctx, asOf(prepareCall(id(1000), `1`), eraCluster, incarnation))
		return err
	}
	if err := prepare(p, "00000001"); err != nil {
		t.Fatal(err)
	}
	before := id(2000)
	if _, err := p.Prepare(ctx, asOf(prepareCall(before, `1`), eraCluster, "00000001")); err != nil {
		t.Fatal(err)
	}
	for _, incarnation := range []string{"00000002", "00000010", "00000010"} {
		if err := prepare(p, incarnation); err != nil {
			t.Fatal(incarnation, err)
		}
	}
	q := start(t, openLedger(t, file), with(handler{}))
	for what, p := range map[string]*participant.Participant{"the process that heard it": p, "another process": q} {
		for _, incarnation := range []string{"00000001", "00000002", "0000000f"} {
			if err := prepare(p, incarnation); !errors.Is(err, participant.ErrStale) || !strings.Contains(err.Error(), "00000010") {
				t.Errorf("%s: prepare of %s: %v", what, incarnation, err)
			}
		}
		for _, phase := range []participant.Phase{participant.PhaseCommit, participant.PhaseRollback} {
			if o, err := p.Finish(ctx, asOf(finishCall(before, phase), eraCluster, "00000001")); !errors.Is(err, participant.ErrStale) {
				t.Errorf("%s: %s: %s, %v", what, phase, o, err)
			}
		}
		if o, err := p.Status(ctx, finishCall(before, participant.PhaseStatus)); o != participant.OutcomePrepared || err != nil {
			t.Errorf("%s: %s, %v", what, o, err)
		}
		// Another cluster, and tokens that are not a coordinator's, are not concerned.
		if _, err := p.Prepare(ctx, asOf(prepareCall(id(3000), `1`), strangeCluster, "00000001")); err != nil {
			t.Error(what, err)
		}
		for _, token := range []string{"", "1", "000001-1", "0000000G-1", "00000001"} {
			c := prepareCall(id(4000), `1`)
			c.Cluster, c.Token = eraCluster, token
			if _, err := p.Prepare(ctx, c); err != nil {
				t.Errorf("%s: token %q: %v", what, token, err)
			}
		}
	}
	// What was prepared for the old one is ended by the new one.
	if o, err := p.Finish(ctx, asOf(finishCall(before, participant.PhaseRollback), eraCluster, "00000010")); o != participant.OutcomeRolledBack || err != nil {
		t.Error(o, err)
	}
}
