// Package ledger is a small bank for demonstrations and crash tests: account
// books on SQLite or PostgreSQL that take part in transactions through the public SDK, a load
// of transfers between two of them, and an audit that trusts neither.
//
// It works by reserve, confirm, cancel: prepare takes the money out of a debited
// account's balance and writes a hold; commit turns the hold into an entry;
// rollback gives the money back. Lists that are appended to stand beside the
// accounts; see Operation. All operations may be executed before the prepare.
package ledger

import (
	"context"
	"database/sql"
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
CREATE TABLE IF NOT EXISTS element (list TEXT NOT NULL, n INTEGER NOT NULL, value INTEGER NOT NULL, PRIMARY KEY (list, n));
CREATE TABLE IF NOT EXISTS pending (txn TEXT NOT NULL, branch INTEGER NOT NULL, n INTEGER NOT NULL, list TEXT NOT NULL, value INTEGER NOT NULL,
                                    PRIMARY KEY (txn, branch, n));
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
	// The participant queues the writers; the others read while a branch is open.
	db.SetMaxOpenConns(maxSQLiteConns)
	l := &Ledger{name: name, db: db, sql: func(q string) string { return q }}
	return l.open(schema, participant.SQLite(), accounts, balance, logger)
}

// Connections of one book.
const (
	maxSQLiteConns   = 4
	maxPostgresConns = 32
)

// openIdle leaves time for people who type the steps of a transaction into a shell; what
// programs leave open is ended by the coordinator's limits before that.
const openIdle = 5 * time.Minute

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
	l.part, err = participant.New(context.Background(), participant.Config{Service: l.name, DB: l.db, Dialect: dialect, Handler: l, Logger: logger, OpenIdle: openIdle})
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

// RegisterAt is Register for a book that is reached at another URL than its own.
func (l *Ledger) RegisterAt(ctx context.Context, coordinator, url string) error {
	return l.part.Register(ctx, coordinator, url+"/assent")
}
