package participant_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"

	_ "modernc.org/sqlite" // the driver is the service's choice

	"github.com/assent-tx/assent/participant"
)

// ledger is a service with accounts, as a test of everything and the example of
// reserve, confirm, cancel: money is set aside at prepare and moves at commit.
type ledger struct{}

const ledgerSchema = `
	CREATE TABLE IF NOT EXISTS account (name TEXT PRIMARY KEY, balance INTEGER NOT NULL, reserved INTEGER NOT NULL DEFAULT 0);
	CREATE TABLE IF NOT EXISTS reservation (txn TEXT, branch INTEGER, account TEXT, amount INTEGER);
	CREATE TABLE IF NOT EXISTS entry (txn TEXT, branch INTEGER, account TEXT, amount INTEGER);`

type posting struct {
	Account string `json:"account"`
	Amount  int64  `json:"amount"` // 0 asks for the balance
}

func (l ledger) Prepare(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
	var results []json.RawMessage
	readOnly := b.Executed == 0
	for _, op := range b.Operations[b.Executed:] {
		var p posting
		if err := json.Unmarshal(op, &p); err != nil {
			return nil, participant.No("not a posting: " + err.Error())
		}
		readOnly = readOnly && p.Amount == 0
		result, err := l.reserve(ctx, tx, b, p)
		if err != nil {
			return nil, err
		}
		results = append(results, result)
	}
	if readOnly {
		return results, participant.ReadOnly
	}
	return results, nil
}

func (l ledger) Execute(ctx context.Context, tx *sql.Tx, b participant.Branch) (json.RawMessage, error) {
	var p posting
	if err := json.Unmarshal(b.Operations[b.Executed], &p); err != nil {
		return nil, participant.No("not a posting: " + err.Error())
	}
	return l.reserve(ctx, tx, b, p)
}

func (ledger) reserve(ctx context.Context, tx *sql.Tx, b participant.Branch, p posting) (json.RawMessage, error) {
	if _, err := tx.ExecContext(ctx, `INSERT INTO account (name, balance) VALUES (?, 100) ON CONFLICT DO NOTHING`, p.Account); err != nil {
		return nil, err
	}
	var free int64
	if err := tx.QueryRowContext(ctx, `UPDATE account SET reserved = reserved + MAX(-?, 0) WHERE name = ? RETURNING balance - reserved`,
		p.Amount, p.Account).Scan(&free); err != nil {
		return nil, err
	}
	if free < 0 {
		return nil, participant.No("insufficient funds")
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO reservation VALUES (?, ?, ?, ?)`, b.Transaction, b.Number, p.Account, p.Amount); err != nil {
		return nil, err
	}
	return json.RawMessage(fmt.Sprintf(`{"free":%d}`, free)), nil
}

func (ledger) Commit(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	for _, op := range b.Operations {
		var p posting
		if err := json.Unmarshal(op, &p); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + ?, reserved = reserved - MAX(-?, 0) WHERE name = ?`, p.Amount, p.Amount, p.Account); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO entry SELECT * FROM reservation WHERE txn = ? AND branch = ?`, b.Transaction, b.Number); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM reservation WHERE txn = ? AND branch = ?`, b.Transaction, b.Number)
	return err
}

func (ledger) Rollback(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	for _, op := range b.Operations {
		var p posting
		if err := json.Unmarshal(op, &p); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE account SET reserved = reserved - MAX(-?, 0) WHERE name = ?`, p.Amount, p.Account); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM reservation WHERE txn = ? AND branch = ?`, b.Transaction, b.Number)
	return err
}

const durable = "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)"

// openLedger opens (or creates) a ledger's database.
func openLedger(t testing.TB, file string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+file+durable)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.Exec(ledgerSchema); err != nil {
		t.Fatal(err)
	}
	return db
}

func ledgerFile(t testing.TB) string { return filepath.Join(t.TempDir(), "ledger.db") }

// start makes a participant of db; change may alter its configuration.
func start(t testing.TB, db *sql.DB, change func(*participant.Config)) *participant.Participant {
	t.Helper()
	cfg := participant.Config{Service: "ledger", DB: db, Dialect: participant.SQLite(), Handler: ledger{}}
	if change != nil {
		change(&cfg)
	}
	p, err := participant.New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}
