package participant_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/assent-tx/assent/internal/pgtest"
	"github.com/assent-tx/assent/participant"
)

// BenchmarkPostgreSQL is prepare and commit of one branch with an insert, by 16
// callers, both ways and at two levels, and with the work executed before; and below it the same statements by hand,
// without rows, checks or votes.
func BenchmarkPostgreSQL(b *testing.B) {
	s := &postgres{Cluster: pgtest.Start(b)}
	insert := func(ctx context.Context, tx *sql.Tx, br participant.Branch) ([]json.RawMessage, error) {
		_, err := tx.ExecContext(ctx, `INSERT INTO entry VALUES ($1, 1, 'x', 1)`, br.Transaction)
		return nil, err
	}
	for _, way := range []string{"reserve", "prepare"} {
		for _, level := range []sql.IsolationLevel{sql.LevelSerializable, sql.LevelReadCommitted} {
			b.Run(way+"/"+level.String(), func(b *testing.B) {
				p := start(b, openPostgres(b, s.database(b)), func(c *participant.Config) {
					doing(way, insert)(c)
					c.Isolation = level
				})
				var no atomic.Int64
				byCallers(b, func(n int) error {
					c := of(prepareCall(id(int64(n)), `{"amount":1}`))
					v, err := p.Prepare(b.Context(), c)
					phase := participant.PhaseCommit
					if v.Vote == "no" {
						no.Add(1)
						phase = participant.PhaseRollback
					}
					if err != nil {
						return err
					}
					_, err = p.Finish(b.Context(), of(finishCall(c.Transaction, phase)))
					return err
				})
				b.ReportMetric(100*float64(no.Load())/float64(b.N), "%no")
			})
		}
	}
	for _, way := range []string{"reserve", "prepare"} {
		b.Run(way+"/executed before", func(b *testing.B) { // the same work by execute, and an empty prepare
			put := text(putEntry, "x")
			p := start(b, openPostgres(b, s.database(b)), func(c *participant.Config) {
				executing(way)(c)
				c.Isolation, c.MaxOpenBranches = sql.LevelReadCommitted, 16
			})
			byCallers(b, func(n int) error {
				tx := id(int64(n))
				if x, err := p.Execute(b.Context(), of(executeCall(tx, 0, put))); err != nil || !x.Executed {
					return fmt.Errorf("%+v: %w", x, err)
				}
				if v, err := p.Prepare(b.Context(), of(prepareRest(tx, 1, put))); err != nil || v.Vote != "yes" {
					return fmt.Errorf("%+v: %w", v, err)
				}
				_, err := p.Finish(b.Context(), of(finishCall(tx, participant.PhaseCommit)))
				return err
			})
		})
	}
	b.Run("by hand", func(b *testing.B) {
		db := openPostgres(b, s.database(b))
		byCallers(b, func(n int) error {
			name := id(int64(n))
			tx, err := db.BeginTx(b.Context(), nil)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(`INSERT INTO entry VALUES ($1, 1, 'x', 1)`, name); err != nil {
				return err
			}
			if _, err := tx.Exec(`PREPARE TRANSACTION '` + name + `'; BEGIN`); err != nil {
				return err
			}
			if err := tx.Rollback(); err != nil {
				return err
			}
			_, err = db.Exec(`COMMIT PREPARED '` + name + `'`)
			return err
		})
	})
}

func byCallers(b *testing.B, do func(n int) error) {
	const callers = 16
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for n := i; n < b.N; n += callers {
				if err := do(n); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "branches/s")
}
