// Package lists is a service with one SQLite database for tests: named lists that
// transactions append to and read, at once or with prepare. What every transaction
// has read tells whether they were serializable (internal/check).
package lists

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite" // the driver

	"github.com/assent-tx/assent/participant"
)

// Operation is a payload: append a value to a list, or read one.
type Operation struct {
	Op    string `json:"op"` // append or read
	Key   string `json:"key"`
	Value int64  `json:"value,omitempty"`
}

// Service is the service.
type Service struct {
	name string
	db   *sql.DB
	part *participant.Participant
	srv  *http.Server
	url  string
}

// A value is pending from its execution to the commit of its branch: seen by its own
// branch alone.
const schema = `CREATE TABLE IF NOT EXISTS item (
	n       INTEGER PRIMARY KEY AUTOINCREMENT,
	key     TEXT NOT NULL,
	value   INTEGER NOT NULL,
	txn     TEXT NOT NULL,
	branch  INTEGER NOT NULL,
	pending INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS item_key ON item (key);
CREATE INDEX IF NOT EXISTS item_pending ON item (txn, branch) WHERE pending = 1;`

// Open opens the service's database in a directory; a nil logger discards.
func Open(dir, name string, logger *slog.Logger) (*Service, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	file := url.URL{Path: filepath.Join(dir, name+".db")}
	db, err := sql.Open("sqlite", "file:"+file.EscapedPath()+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(5000)&_txlock=immediate")
	if err != nil {
		return nil, fmt.Errorf("open lists %s: %w", name, err)
	}
	s := &Service{name: name, db: db}
	if _, err = db.Exec(schema); err == nil {
		s.part, err = participant.New(context.Background(), participant.Config{Service: name, DB: db, Dialect: participant.SQLite(), Handler: s, Logger: logger})
	}
	if err != nil {
		_ = db.Close() // nothing was written
		return nil, fmt.Errorf("lists %s: %w", name, err)
	}
	return s, nil
}

// Execute implements participant.Executor.
func (s *Service) Execute(ctx context.Context, tx *sql.Tx, b participant.Branch) (json.RawMessage, error) {
	return s.do(ctx, tx, b, b.Operations[b.Executed])
}

// Prepare implements participant.Handler.
func (s *Service) Prepare(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
	var results []json.RawMessage
	for _, op := range b.Operations[b.Executed:] {
		result, err := s.do(ctx, tx, b, op)
		if err != nil {
			return nil, err
		}
		results = append(results, result)
	}
	return results, nil
}

func (s *Service) do(ctx context.Context, tx *sql.Tx, b participant.Branch, payload json.RawMessage) (json.RawMessage, error) {
	var op Operation
	if err := json.Unmarshal(payload, &op); err != nil || op.Key == "" {
		return nil, participant.No("not an operation on a list")
	}
	switch op.Op {
	case "append":
		_, err := tx.ExecContext(ctx, `INSERT INTO item (key, value, txn, branch, pending) VALUES (?, ?, ?, ?, 1)`, op.Key, op.Value, b.Transaction, b.Number)
		return json.RawMessage("null"), err
	case "read":
		values, err := read(ctx, tx, op.Key, b.Transaction)
		if err != nil {
			return nil, err
		}
		return json.Marshal(values)
	}
	return nil, participant.No(fmt.Sprintf("no operation %q", op.Op))
}

type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// read is a list as a transaction sees it: what is committed, and its own.
func read(ctx context.Context, q querier, key, txn string) ([]int64, error) {
	rows, err := q.QueryContext(ctx, `SELECT value FROM item WHERE key = ? AND (pending = 0 OR txn = ?) ORDER BY n`, key, txn)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	values := []int64{}
	for rows.Next() {
		var v int64
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, rows.Err()
}

// Commit implements participant.Handler.
func (s *Service) Commit(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	_, err := tx.ExecContext(ctx, `UPDATE item SET pending = 0 WHERE txn = ? AND branch = ? AND pending = 1`, b.Transaction, b.Number)
	return err
}

// Rollback implements participant.Handler.
func (s *Service) Rollback(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM item WHERE txn = ? AND branch = ? AND pending = 1`, b.Transaction, b.Number)
	return err
}

// List is a list as it is now, for an audit. Pending values are left out; pending tells
// how many there are in the whole database.
func (s *Service) List(ctx context.Context, key string) (values []int64, pending int, err error) {
	if values, err = read(ctx, s.db, key, ""); err != nil {
		return nil, 0, err
	}
	err = s.db.QueryRowContext(ctx, `SELECT count(*) FROM item WHERE pending = 1`).Scan(&pending)
	return values, pending, err
}

// Serve serves the participant on a loopback address ("127.0.0.1:0": a free port).
func (s *Service) Serve(listen string) error {
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("lists %s: %w", s.name, err)
	}
	mux := http.NewServeMux()
	mux.Handle("/assent/", http.StripPrefix("/assent", s.part.Handler()))
	s.srv = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	s.url = "http://" + ln.Addr().String()
	go func() { _ = s.srv.Serve(ln) }()
	return nil
}

// URL is the base of the participant's endpoints.
func (s *Service) URL() string { return s.url + "/assent" }

// Register registers the service at a coordinator, trying again until ctx ends.
func (s *Service) Register(ctx context.Context, coordinator string) error {
	return s.part.Register(ctx, coordinator, s.URL())
}

// Close stops serving and closes the database.
func (s *Service) Close() error {
	if s.srv != nil {
		_ = s.srv.Close() // its connections are of no use any more
	}
	s.part.Close()
	return s.db.Close()
}
