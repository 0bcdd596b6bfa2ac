package participant_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/assent-tx/assent/participant"
)

// race runs branches with executes, prepares and rollbacks that come twice, late and
// together, and ends each as its vote says: of each branch all is there, or nothing.
func race(t *testing.T, p *participant.Participant, db *sql.DB, count string, branches int) {
	var committed, rolledBack int
	var mu sync.Mutex
	wants := make(map[string]int) // effects by transaction
	var wg sync.WaitGroup
	for n := range branches {
		wg.Go(func() {
			tx, all := id(int64(n)), []string{`"a"`, `"b"`, `"c"`}
			// again calls until the answer is definite.
			again := func(call func(ctx context.Context) error) {
				for end, limit := time.Now().Add(deadline), 20; ; limit = min(limit+limit/4, 2000) { // on a slow machine no call is done in 20 ms
					ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Duration(1+rand.IntN(limit))*time.Millisecond)
					err := call(ctx)
					cancel()
					if err == nil {
						return
					}
					if time.Now().After(end) {
						t.Error(err)
						return
					}
				}
			}
			rollback := func() {
				again(func(ctx context.Context) error {
					_, err := p.Finish(ctx, of(finishCall(tx, participant.PhaseRollback)))
					return err
				})
			}
			var early sync.WaitGroup
			mayCommit := n%4 > 0
			if !mayCommit {
				early.Go(func() {
					time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond) // anywhere in what follows
					rollback()
				})
			}
			executed := 0
			for step := range 2 {
				var twice sync.WaitGroup
				done := make([]bool, 2)
				for i := range done {
					twice.Go(func() {
						again(func(ctx context.Context) error {
							x, err := p.Execute(ctx, of(executeCall(tx, step, all[:step+1]...)))
							done[i] = x.Executed
							return err
						})
					})
				}
				twice.Wait()
				if done[0] != done[1] && mayCommit {
					t.Errorf("%s: %v", tx, done)
				}
				if !done[0] && !done[1] {
					break
				}
				executed++
			}
			votes := make([]string, 2)
			var twice sync.WaitGroup
			for i := range votes {
				twice.Go(func() {
					again(func(ctx context.Context) error {
						v, err := p.Prepare(ctx, of(prepareRest(tx, executed, all[:max(executed+1, 1)]...)))
						votes[i] = v.Vote
						return err
					})
				})
			}
			twice.Wait()
			want := 0
			if mayCommit && votes[0] == "yes" && votes[1] == "yes" {
				again(func(ctx context.Context) error {
					o, err := p.Finish(ctx, of(finishCall(tx, participant.PhaseCommit)))
					if err == nil && o != participant.OutcomeCommitted {
						t.Errorf("%s: commit after two yes: %s", tx, o)
					}
					return err
				})
				want = executed + 1
			} else {
				if votes[0] != votes[1] && mayCommit {
					t.Errorf("%s: voted %v", tx, votes)
				}
				early.Wait()
				rollback()
			}
			early.Wait()
			mu.Lock()
			defer mu.Unlock()
			wants[tx] = want
		})
	}
	wg.Wait()
	for tx, want := range wants {
		if got := one(t, db, count, tx); got != want {
			t.Errorf("%s: %d effects, want %d", tx, got, want)
		}
		if want > 0 {
			committed++
		} else {
			rolledBack++
		}
	}
	if open := p.OpenBranches(); open != 0 || committed < branches/4 || rolledBack == 0 {
		t.Errorf("%d committed, %d rolled back, %d open", committed, rolledBack, open)
	}
}

func TestExecuteRaces(t *testing.T) {
	db := openLedger(t, ledgerFile(t))
	e := scripted(func(ctx context.Context, tx *sql.Tx, b participant.Branch, word string) (json.RawMessage, error) {
		return json.RawMessage(fmt.Sprintf("%q", word)), entry(ctx, tx, b, word)
	})
	e.rollback = func(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM entry WHERE txn = ?`, b.Transaction)
		return err
	}
	p := start(t, db, with(e))
	race(t, p, db, `SELECT count(*) FROM entry WHERE txn = ?`, 40)
}

func executeRaces(t *testing.T, s *postgres) {
	eachWay(t, func(t *testing.T, way string) {
		dsn := s.database(t)
		db := openPostgres(t, dsn)
		db.SetMaxOpenConns(40)
		e := scripted(func(ctx context.Context, tx *sql.Tx, b participant.Branch, word string) (json.RawMessage, error) {
			return json.RawMessage(fmt.Sprintf("%q", word)), entry(ctx, tx, b, word)
		})
		e.rollback = func(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
			_, err := tx.ExecContext(ctx, `DELETE FROM entry WHERE txn = $1`, b.Transaction)
			return err
		}
		p := start(t, db, func(c *participant.Config) {
			if c.Dialect, c.Handler = participant.PostgreSQL(), e; way == "prepare" {
				c.Dialect, c.Handler, c.Preparer = participant.PostgreSQLPrepared(), nil, e
			}
			c.Isolation, c.LockTimeout = sql.LevelReadCommitted, 200*time.Millisecond
		})
		race(t, p, openPostgres(t, dsn), `SELECT count(*) FROM entry WHERE txn = $1`, 60)
	})
}
