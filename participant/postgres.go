package participant

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// PostgreSQL is the dialect of PostgreSQL 13 or later for a service that reserves,
// confirms and cancels, by a Handler. It needs a database/sql driver with $n
// placeholders whose errors have SQLState() string: github.com/jackc/pgx/v5/stdlib
// and github.com/lib/pq do.
//
// New refuses a server that would lose votes: a standby, fsync off, or
// synchronous_commit off for this role. Local transactions run at
// Config.Isolation and are run again when the server ends them for a
// serialization failure or a deadlock. A wait for a lock over Config.LockTimeout
// is not a vote: the call is answered 503 and asked again. A deferred constraint
// that fails at the commit of a prepare is a vote no.
func PostgreSQL() Dialect {
	return Dialect{
		name:        "PostgreSQL",
		schema:      []string{postgresSchema},
		queries:     func(wait time.Duration) queries { return postgresQueries(wait, wait) },
		options:     func(level sql.IsolationLevel) *sql.TxOptions { return &sql.TxOptions{Isolation: level} },
		list:        postgresList,
		retryable:   postgresRetryable,
		lockTimeout: func(err error) bool { return sqlState(err) == lockNotAvailable },
		verdict:     postgresVerdict,
		probe:       `SELECT 1`,
		check:       checkPostgres,
		checkTables: checkNothingPrepared,
	}
}

// SQLSTATEs that decide something here.
const (
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	lockNotAvailable     = "55P03"
	abortedTransaction   = "25P02"
	idleTimeout          = "25P03"
	outOfSlots           = "53200"
	objectInUse          = "55000"
	undefinedObject      = "42704"
	integrityClass       = "23"
)

// sqlState is the server's code of an error, "" if the server did not say it.
func sqlState(err error) string {
	var coded interface{ SQLState() string }
	if errors.As(err, &coded) {
		return coded.SQLState()
	}
	return ""
}

// serverMessage is what the server said, without what the service put around it.
func serverMessage(err error) string {
	var coded interface {
		error
		SQLState() string
	}
	if errors.As(err, &coded) {
		return coded.Error()
	}
	return ""
}

// postgresVerdict is why an error of a prepare is a vote no, or empty.
func postgresVerdict(err error) string {
	var failed *commitError
	switch state := sqlState(err); {
	case state == abortedTransaction:
		return "the work's transaction was aborted by an error that the service did not return"
	case errors.As(err, &failed) && strings.HasPrefix(state, integrityClass):
		return serverMessage(err) // a deferred constraint
	}
	return ""
}

func postgresRetryable(err error) bool {
	state := sqlState(err)
	return state == serializationFailure || state == deadlockDetected
}

// postgresList takes the bytes as they are: text would refuse what JSON allows.
func postgresList(encoded []byte) any {
	if encoded == nil {
		return nil
	}
	return encoded
}

// postgresSchema creates what is missing. The look comes first, since a role that
// may not create tables may still use those that are there; the lock, since
// several processes may come at once. Text is compared by its bytes, whatever the
// database's collation.
//
// The row (0, 0) of assent_watermark changes whenever a watermark rises; see
// readForgotten.
const postgresSchema = `DO $$
BEGIN
	IF to_regclass('assent_outcome') IS NOT NULL AND to_regclass('assent_watermark') IS NOT NULL
			AND to_regclass('assent_cluster') IS NOT NULL THEN
		RETURN;
	END IF;
	PERFORM pg_advisory_xact_lock(hashtext('assent_outcome'));
	CREATE TABLE IF NOT EXISTS assent_outcome (
		txn        TEXT COLLATE "C" NOT NULL,
		branch     BIGINT           NOT NULL,
		state      TEXT             NOT NULL,
		digest     TEXT             NOT NULL,
		op_count   BIGINT           NOT NULL,
		one_phase  BOOLEAN          NOT NULL,
		token      TEXT COLLATE "C" NOT NULL,
		term       BIGINT           NOT NULL,
		home       BIGINT           NOT NULL,
		operations BYTEA,
		results    BYTEA,
		reason     TEXT,
		updated_ms BIGINT           NOT NULL,
		PRIMARY KEY (txn, branch)
	);
	CREATE TABLE IF NOT EXISTS assent_watermark (
		shards    BIGINT           NOT NULL,
		shard     BIGINT           NOT NULL,
		forgotten TEXT COLLATE "C" NOT NULL,
		PRIMARY KEY (shards, shard)
	);
	INSERT INTO assent_watermark VALUES (0, 0, '') ON CONFLICT DO NOTHING;
	CREATE TABLE IF NOT EXISTS assent_cluster (
		one     BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one),
		cluster TEXT NOT NULL
	);
END $$`

// postgresQueries are the statements for PostgreSQL. insertWait bounds the insert's
// wait for another transaction that wrote the branch's row, workWait every wait
// after it. Both are set by the statements themselves, which costs no round trip.
func postgresQueries(insertWait, workWait time.Duration) queries {
	q := plainQueries()
	q.insert = `INSERT INTO assent_outcome
		(txn, branch, state, digest, op_count, one_phase, token, term, home, operations, results, reason, updated_ms)
		SELECT ?::text, ?::bigint, ?::text, ?::text, ?::bigint, ?::boolean, ?::text, ?::bigint, ?::bigint, ?::bytea, ?::bytea, ?::text, ?::bigint
		FROM ` + setLockTimeout(insertWait) + `
		ON CONFLICT DO NOTHING RETURNING pg_current_xact_id()::xid::text`
	q.finish = finishQuery("FROM " + setLockTimeout(workWait))
	// Without the lock, a duplicate could write back what it read before the branch moved on.
	q.lock = readQuery + ` FOR UPDATE`
	// The look for the row and this one must not both be older than a deletion. At
	// read committed this statement sees what is committed by now. At the levels
	// above its snapshot is that of the first statement, and the insert fails with a
	// serialization failure if (0, 0) has a newer version than the snapshot has.
	q.readForgotten = `WITH probe AS (INSERT INTO assent_watermark (shards, shard, forgotten) VALUES (0, 0, '') ON CONFLICT DO NOTHING)
		SELECT w.forgotten FROM ` + setLockTimeout(workWait) + ` LEFT JOIN assent_watermark w ON w.shards = ? AND w.shard = ?`
	q.raiseForgotten = `UPDATE assent_watermark SET forgotten = ?
		WHERE (shards = ? AND shard = ? AND forgotten < ?) OR (shards = 0 AND shard = 0)`
	for _, query := range []*string{
		&q.insert, &q.read, &q.lock, &q.finish, &q.touch, &q.vote, &q.settle, &q.inDoubt,
		&q.readForgotten, &q.insertForgotten, &q.raiseForgotten, &q.page, &q.remove,
	} {
		*query = numbered(*query)
	}
	return q
}

// setLockTimeout is an item of a FROM that bounds the waits from there on, until
// the end of the local transaction.
func setLockTimeout(wait time.Duration) string {
	return fmt.Sprintf("set_config('lock_timeout', '%dms', true)", max(wait.Milliseconds(), 1)) // 0 would be no bound
}

// numbered writes $1, $2, … for each ?.
func numbered(query string) string {
	parts := strings.Split(query, "?")
	var b strings.Builder
	for i, part := range parts {
		if i > 0 {
			b.WriteString("$" + strconv.Itoa(i))
		}
		b.WriteString(part)
	}
	return b.String()
}

const oldestPostgres = 130000 // pg_current_xact_id

func checkPostgres(ctx context.Context, db *sql.DB) error {
	var version int
	var versionText, fsync, synchronousCommit, readOnly string
	var standby bool
	err := db.QueryRowContext(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),
		current_setting('fsync'), current_setting('synchronous_commit'), current_setting('default_transaction_read_only')`).
		Scan(&version, &versionText, &standby, &fsync, &synchronousCommit, &readOnly)
	switch {
	case err != nil:
		return fmt.Errorf("ask the PostgreSQL server for its settings: %w", err)
	case version < oldestPostgres:
		return fmt.Errorf("PostgreSQL %s is too old: 13 or later is needed", versionText)
	case standby:
		return errors.New("the PostgreSQL server is a standby: connect to the primary (with several hosts in the DSN, add target_session_attrs=read-write)")
	case fsync != "on":
		return errors.New("PostgreSQL runs with fsync=off: a vote could be lost in a power failure; set fsync = on in postgresql.conf and reload")
	case synchronousCommit == "off":
		return errors.New("PostgreSQL has synchronous_commit=off for this role and database: a vote could be lost in a power failure; " +
			"set it to on (ALTER ROLE … SET synchronous_commit = on, or in the DSN)")
	case readOnly != "off":
		return errors.New("PostgreSQL has default_transaction_read_only=on for this role and database: set it to off")
	}
	return nil
}

// checkNothingPrepared refuses to reserve, confirm and cancel in a database where
// branches are still prepared the other way: they would be taken for unknown.
func checkNothingPrepared(ctx context.Context, db *sql.DB) error {
	var n int
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM pg_prepared_xacts, assent_cluster
		WHERE database = current_database() AND starts_with(gid, 'assent:' || cluster || ':')`).Scan(&n); err != nil {
		return fmt.Errorf("look for prepared transactions: %w", err)
	}
	if n > 0 {
		return fmt.Errorf("%d branches are prepared in this database by PostgreSQLPrepared: run the service with it until they have ended", n)
	}
	return nil
}
