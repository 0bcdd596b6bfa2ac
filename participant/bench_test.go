package participant_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"sync"
	"testing"

	"github.com/assent-tx/assent/participant"
)

// BenchmarkBranch is prepare and commit of one branch with a one-row handler, on
// SQLite with a sync per local transaction.
func BenchmarkBranch(b *testing.B) {
	ctx := context.Background()
	p := start(b, openLedger(b, ledgerFile(b)), with(handler{
		prepare: func(ctx context.Context, tx *sql.Tx, br participant.Branch) ([]json.RawMessage, error) {
			_, err := tx.ExecContext(ctx, `INSERT INTO entry VALUES (?, 1, 'x', 1)`, br.Transaction)
			return nil, err
		},
	}))
	const callers = 16
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for n := i; n < b.N; n += callers {
				c := prepareCall(id(int64(n)), `{"amount":1}`)
				if v, err := p.Prepare(ctx, c); err != nil || v.Vote != "yes" {
					b.Error(v, err)
				}
				if o, err := p.Finish(ctx, finishCall(c.Transaction, participant.PhaseCommit)); err != nil || o != participant.OutcomeCommitted {
					b.Error(o, err)
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "branches/s")
}
