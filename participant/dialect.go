package participant

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Dialect is what differs between databases. SQLite, PostgreSQL and
// PostgreSQLPrepared make one.
type Dialect struct {
	name         string
	schema       []string
	singleWriter bool // one write transaction at a time: queue in the process instead of polling for the lock
	prepared     bool // branches are held by the database's own prepared transactions

	queries     func(lockTimeout time.Duration) queries
	options     func(level sql.IsolationLevel) *sql.TxOptions
	list        func(encoded []byte) any                    // as an argument; nil is NULL
	retryable   func(err error) bool                        // the transaction did nothing and may succeed when run again
	lockTimeout func(err error) bool                        // a wait for a lock ended without it
	verdict     func(err error) (reason string)             // why an error of a prepare is a vote no; empty: it is none
	probe       string                                      // a statement that fails in a transaction that cannot commit; may be empty
	check       func(ctx context.Context, db *sql.DB) error // refuses a configuration that would lose votes
	checkTables func(ctx context.Context, db *sql.DB) error // refuses what the tables say; may be nil
}

// SQLite is the dialect of SQLite 3.35 or later, with any driver that takes
// ordinary placeholders. A yes must survive a power loss, so New refuses a
// database that is not in WAL mode with synchronous FULL. With
// modernc.org/sqlite: "file:ledger.db?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(5000)".
//
// Every local transaction begins with a write, so an ordinary deferred BEGIN
// takes the write lock before it reads and never fails for a stale snapshot.
func SQLite() Dialect {
	return Dialect{
		name:         "sqlite",
		singleWriter: true,
		queries:      func(time.Duration) queries { return plainQueries() },
		options:      func(sql.IsolationLevel) *sql.TxOptions { return nil }, // there is only one
		list: func(encoded []byte) any {
			if encoded == nil {
				return nil
			}
			return string(encoded) // a blob in a TEXT column would stay one
		},
		retryable:   sqliteBusy,
		lockTimeout: func(error) bool { return false },
		verdict:     func(error) string { return "" },
		check:       checkSQLite,
		schema: []string{
			`CREATE TABLE IF NOT EXISTS assent_outcome (
				txn        TEXT    NOT NULL,
				branch     INTEGER NOT NULL,
				state      TEXT    NOT NULL CHECK (state IN ('prepared','committed','rolled_back','read_only','refused')),
				digest     TEXT    NOT NULL,
				op_count   INTEGER NOT NULL,
				one_phase  INTEGER NOT NULL,
				token      TEXT    NOT NULL,
				term       INTEGER NOT NULL,
				home       INTEGER NOT NULL,
				operations TEXT,
				results    TEXT,
				reason     TEXT,
				updated_ms INTEGER NOT NULL,
				PRIMARY KEY (txn, branch)
			)`,
			`CREATE TABLE IF NOT EXISTS assent_watermark (
				shards    INTEGER NOT NULL,
				shard     INTEGER NOT NULL,
				forgotten TEXT    NOT NULL,
				PRIMARY KEY (shards, shard)
			)`,
		},
	}
}

// sqliteBusy knows SQLITE_BUSY and SQLITE_LOCKED without importing a driver.
func sqliteBusy(err error) bool {
	var coded interface{ Code() int }
	if errors.As(err, &coded) {
		primary := coded.Code() & 0xff
		return primary == 5 || primary == 6
	}
	return err != nil && (strings.Contains(err.Error(), "database is locked") || strings.Contains(err.Error(), "database table is locked"))
}

func checkSQLite(ctx context.Context, db *sql.DB) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	var journal string
	var synchronous int
	if err := conn.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&journal); err != nil {
		return err
	}
	if err := conn.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&synchronous); err != nil {
		return err
	}
	const fullSync = 2
	if !strings.EqualFold(journal, "wal") || synchronous < fullSync {
		return fmt.Errorf("SQLite has journal_mode=%s, synchronous=%d: a vote could be lost in a power failure; open it with journal_mode=WAL and synchronous=FULL (2)", journal, synchronous)
	}
	return nil
}
