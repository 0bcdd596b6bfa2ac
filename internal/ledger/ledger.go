// Package ledger is a small bank for demonstrations and crash tests: account
// books on SQLite or PostgreSQL that take part in transactions through the public SDK, a load
// of transfers between two of them, and an audit that trusts neither.
//
// It works by reserve, confirm, cancel: prepare takes the money out of a debited
// account's balance and writes a hold; commit turns the hold into an entry;
// rollback gives the money back.
package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	_ "modernc.org/sqlite"             // the driver "sqlite"

	"github.com/assent-tx/assent/participant"
)

// Posting is the payload of an operation: what one transfer does to one account.
type Posting struct {
	Transfer string `json:"transfer"` // id of the transfer, unique in the book
	Account  int64  `json:"account"`
	Amount   int64  `json:"amount"` // negative: debit, refused if the balance does not cover it
}

// Ledger is one account book and its participant.
type Ledger struct {
	name string
	db   *sql.DB
	sql  func(string) string // from ?1 to the database's placeholders
	part *participant.Participant
	srv  *http.Server
	url  string
}

const schema = `
CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0));
CREATE TABLE IF NOT EXISTS hold    (txn TEXT NOT NULL, branch INTEGER NOT NULL, n INTEGER NOT NULL, transfer TEXT NOT NULL UNIQUE,
                                    account INTEGER NOT NULL, amount INTEGER NOT NULL, PRIMARY KEY (txn, branch, n));
CREATE TABLE IF NOT EXISTS entry   (transfer TEXT PRIMARY KEY, txn TEXT NOT NULL, account INTEGER NOT NULL, amount INTEGER NOT NULL);
`

// Open opens or creates the book dir/name.db with accounts 1 to accounts, each
// holding balance when it is new. A nil logger says nothing.
func Open(dir, name string, accounts int, balance int64, logger *slog.Logger) (*Ledger, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	file := url.URL{Path: filepath.Join(dir, name+".db")} // its characters must not be read as a query or fragment
	dsn := "file:" + file.EscapedPath() + "?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(5000)&_txlock=immediate"
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("open ledger %s: %w", name, err)
	}
	// One writer at a time is SQLite's rule; a queue here is kinder than busy errors.
	db.SetMaxOpenConns(1)
	l := &Ledger{name: name, db: db, sql: func(q string) string { return q }}
	return l.open(schema, participant.SQLite(), accounts, balance, logger)
}

// maxPostgresConns bounds the connections of one book.
const maxPostgresConns = 32

// OpenPostgreSQL is Open for a PostgreSQL database, which holds this one book.
func OpenPostgreSQL(dsn, name string, accounts int, balance int64, logger *slog.Logger) (*Ledger, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return nil, fmt.Errorf("open ledger %s: %w", name, err)
	}
	db.SetMaxOpenConns(maxPostgresConns)
	db.SetMaxIdleConns(maxPostgresConns)
	l := &Ledger{name: name, db: db, sql: func(q string) string { return strings.ReplaceAll(q, "?", "$") }}
	return l.open(strings.ReplaceAll(schema, "INTEGER", "BIGINT"), participant.PostgreSQL(), accounts, balance, logger)
}

// open makes tables, accounts and participant; on an error it closes the database.
func (l *Ledger) open(schema string, dialect participant.Dialect, accounts int, balance int64, logger *slog.Logger) (*Ledger, error) {
	err := l.create(schema, accounts, balance)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create ledger %s: %w", l.name, err), l.db.Close())
	}
	l.part, err = participant.New(context.Background(), participant.Config{Service: l.name, DB: l.db, Dialect: dialect, Handler: l, Logger: logger})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("participant %s: %w", l.name, err), l.db.Close())
	}
	return l, nil
}

func (l *Ledger) create(schema string, accounts int, balance int64) error {
	tx, err := l.db.Begin()
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // no-op after Commit
	if _, err := tx.Exec(schema); err != nil {
		return err
	}
	for i := 1; i <= accounts; i++ {
		if _, err := tx.Exec(l.sql(`INSERT INTO account (id, balance) VALUES (?1, ?2) ON CONFLICT (id) DO NOTHING`), i, balance); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// Prepare implements participant.Handler: it reserves.
func (l *Ledger) Prepare(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
	var results []json.RawMessage
	for n, op := range b.Operations {
		var p Posting
		if err := json.Unmarshal(op, &p); err != nil || p.Transfer == "" || p.Amount == 0 {
			return nil, participant.No("not a posting: a transfer, an account and an amount are needed")
		}
		// Commit may not fail, so what it will write must be possible now.
		var booked bool
		if err := tx.QueryRowContext(ctx, l.sql(`SELECT EXISTS (SELECT 1 FROM entry WHERE transfer = ?1) OR EXISTS (SELECT 1 FROM hold WHERE transfer = ?1)`),
			p.Transfer).Scan(&booked); err != nil {
			return nil, err
		}
		if booked {
			return nil, participant.No(fmt.Sprintf("transfer %q is booked already", p.Transfer))
		}
		take := min(p.Amount, 0) // a credit is booked at commit, when it is certain
		res, err := tx.ExecContext(ctx, l.sql(`UPDATE account SET balance = balance + ?1 WHERE id = ?2 AND balance + ?1 >= 0`), take, p.Account)
		if err != nil {
			return nil, err
		}
		if changed, err := res.RowsAffected(); err != nil {
			return nil, err
		} else if changed == 0 {
			return nil, participant.No(fmt.Sprintf("account %d does not exist or does not hold %d", p.Account, -p.Amount))
		}
		if _, err := tx.ExecContext(ctx, l.sql(`INSERT INTO hold (txn, branch, n, transfer, account, amount) VALUES (?1, ?2, ?3, ?4, ?5, ?6)`),
			b.Transaction, b.Number, n, p.Transfer, p.Account, p.Amount); err != nil {
			return nil, err
		}
		var balance int64
		if err := tx.QueryRowContext(ctx, l.sql(`SELECT balance FROM account WHERE id = ?1`), p.Account).Scan(&balance); err != nil {
			return nil, err
		}
		results = append(results, fmt.Appendf(nil, `{"account":%d,"balance":%d}`, p.Account, balance+max(p.Amount, 0)))
	}
	return results, nil
}

// Commit implements participant.Handler: it confirms.
func (l *Ledger) Commit(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	if _, err := tx.ExecContext(ctx, l.sql(`INSERT INTO entry (transfer, txn, account, amount)
		SELECT transfer, txn, account, amount FROM hold WHERE txn = ?1 AND branch = ?2`), b.Transaction, b.Number); err != nil {
		return err
	}
	return l.settle(ctx, tx, b, 1)
}

// Rollback implements participant.Handler: it cancels.
func (l *Ledger) Rollback(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	return l.settle(ctx, tx, b, -1)
}

// settle books what prepare left open - credits of a commit (sign 1), debits of a
// rollback (sign -1) - and removes the holds.
func (l *Ledger) settle(ctx context.Context, tx *sql.Tx, b participant.Branch, sign int64) error {
	if _, err := tx.ExecContext(ctx, l.sql(`UPDATE account SET balance = balance + h.sum
		FROM (SELECT account, SUM(CASE WHEN amount * ?1 > 0 THEN amount * ?1 ELSE 0 END) AS sum FROM hold WHERE txn = ?2 AND branch = ?3 GROUP BY account) AS h
		WHERE account.id = h.account`), sign, b.Transaction, b.Number); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, l.sql(`DELETE FROM hold WHERE txn = ?1 AND branch = ?2`), b.Transaction, b.Number)
	return err
}

// Serve serves the participant, and the book for people, on a loopback address
// ("127.0.0.1:0": a free port).
func (l *Ledger) Serve(listen string) error {
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("ledger %s: %w", l.name, err)
	}
	mux := http.NewServeMux()
	mux.Handle("/assent/", http.StripPrefix("/assent", l.part.Handler()))
	mux.HandleFunc("GET /accounts/{id}", l.account)
	l.srv = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	l.url = "http://" + ln.Addr().String()
	go func() { _ = l.srv.Serve(ln) }()
	return nil
}

// URL is where Serve listens.
func (l *Ledger) URL() string { return l.url }

func (l *Ledger) account(w http.ResponseWriter, r *http.Request) {
	var balance int64
	err := l.db.QueryRowContext(r.Context(), l.sql(`SELECT balance FROM account WHERE id = ?1`), r.PathValue("id")).Scan(&balance)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		http.Error(w, "no such account", http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, "{\"ledger\":%q,\"account\":%s,\"balance\":%d}\n", l.name, r.PathValue("id"), balance)
	}
}

// Close stops serving and closes the book.
func (l *Ledger) Close() error {
	var err error
	if l.srv != nil {
		err = l.srv.Close()
	}
	l.part.Close()
	return errors.Join(err, l.db.Close())
}

// Register registers the book at a coordinator, trying again until ctx ends.
func (l *Ledger) Register(ctx context.Context, coordinator string) error {
	return l.part.Register(ctx, coordinator, l.url+"/assent")
}
