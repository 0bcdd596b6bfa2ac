package postgres

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/assent-tx/assent/participant"
)

// SQLSTATEs and classes with a meaning of their own.
const (
	readOnlyTransaction = "25006"
	serialization       = "40001"
	deadlock            = "40P01"
	lockNotAvailable    = "55P03"
)

// worker executes operations; it implements participant.Preparer and
// participant.Executor.
type worker struct{ metrics *metrics }

var _ interface {
	participant.Preparer
	participant.Executor
} = (*worker)(nil)

// Prepare runs the statements. What the server says against one is a vote no;
// what may be the connection's fault, or may go well next time, is returned as it
// is, and the SDK decides.
func (w *worker) Prepare(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
	results, err := w.prepare(ctx, tx, b)
	w.metrics.voted(err)
	return results, err
}

func (w *worker) prepare(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
	operations := make([]*operation, len(b.Operations))
	queries := true
	for i, payload := range b.Operations {
		op, err := decode(payload)
		if err != nil {
			return nil, no("payload", "operations[%d]: %v", i, err)
		}
		operations[i] = op
		queries = queries && op.looksLikeQuery()
	}
	if queries && b.Executed > 0 {
		wrote, err := executedWrote(ctx, tx)
		if err != nil {
			return nil, err
		}
		queries = !wrote
	}
	if queries {
		results, only, err := w.readOnly(ctx, tx, operations, b.Executed)
		switch {
		case err != nil:
			return nil, w.verdict(ctx, tx, err)
		case only:
			return told(results), participant.ReadOnly
		}
	}
	results, err := w.run(ctx, tx, operations, b.Executed)
	if err != nil {
		return nil, w.verdict(ctx, tx, err)
	}
	return told(results), nil
}

// Execute runs the statements of the last operation, and says as Prepare does what
// the server holds against them.
func (w *worker) Execute(ctx context.Context, tx *sql.Tx, b participant.Branch) (json.RawMessage, error) {
	op, err := decode(b.Operations[b.Executed])
	if err != nil {
		return nil, no("payload", "operations[%d]: %v", b.Executed, err)
	}
	operations := make([]*operation, b.Executed+1)
	operations[b.Executed] = op
	if op.looksLikeQuery() {
		results, only, err := w.readOnly(ctx, tx, operations, b.Executed)
		switch {
		case err != nil:
			return nil, w.verdict(ctx, tx, err)
		case only:
			// From here on the transaction may write again.
			if _, err := tx.ExecContext(ctx, `RELEASE SAVEPOINT assent_read`); err != nil {
				return nil, err
			}
			return results[0].encoded, nil
		}
		if _, err := tx.ExecContext(ctx, `SELECT set_config('`+wroteSetting+`', 'on', true)`); err != nil {
			return nil, err
		}
	}
	results, err := w.run(ctx, tx, operations, b.Executed)
	if err != nil {
		return nil, w.verdict(ctx, tx, err)
	}
	return results[0].encoded, nil
}

// wroteSetting is on in a local transaction in which something was executed that
// looked like a query and wrote. It ends with that transaction.
const wroteSetting = "assent.executed_wrote"

func executedWrote(ctx context.Context, tx *sql.Tx) (bool, error) {
	var set sql.NullString
	err := tx.QueryRowContext(ctx, `SELECT current_setting('`+wroteSetting+`', true)`).Scan(&set)
	return set.String == "on", err
}

// readOnly runs operations from the first on where nothing can be written: the server
// decides whether they only read. If they do not, nothing has happened.
func (w *worker) readOnly(ctx context.Context, tx *sql.Tx, operations []*operation, first int) (results []operationResult, only bool, err error) {
	if _, err := tx.ExecContext(ctx, `SAVEPOINT assent_read; SET LOCAL transaction_read_only = on; SELECT set_config('assent.writers', `+writers+`, true)`); err != nil {
		return nil, false, err
	}
	wrote := false
	if results, err = w.run(ctx, tx, operations, first); err == nil {
		err = tx.QueryRowContext(ctx, `SELECT current_setting('assent.writers') <> `+writers).Scan(&wrote)
	}
	if wrote || sqlState(err) == readOnlyTransaction {
		_, err = tx.ExecContext(ctx, `ROLLBACK TO SAVEPOINT assent_read`)
		return nil, false, err
	}
	return results, err == nil, err
}

// writers is how many have written of the transaction and its subtransactions. The server's
// read-only mode lets functions pass that write no table: large objects, messages in the log.
const writers = `(SELECT CASE WHEN txid_current_if_assigned() IS NULL THEN '0'
	ELSE (SELECT count(*)::text FROM pg_locks WHERE locktype = 'transactionid' AND pid = pg_backend_pid() AND granted) END)`

// operationResult is the encoded result of an operation.
type operationResult struct {
	encoded json.RawMessage
	rows    bool
}

// run runs operations from the first on.
func (w *worker) run(ctx context.Context, tx *sql.Tx, operations []*operation, first int) ([]operationResult, error) {
	results := make([]operationResult, 0, len(operations)-first)
	for i, op := range operations[first:] {
		out := result{Statements: make([]statementResult, len(op.Statements))}
		bytes, rows := 0, false
		for j := range op.Statements {
			r := &out.Statements[j]
			if err := w.statement(ctx, tx, &op.Statements[j], r, maxResultBytes-bytes); err != nil {
				return nil, &statementError{operation: first + i, statement: j, err: err}
			}
			bytes += r.bytes
			rows = rows || r.Rows != nil
		}
		encoded, err := json.Marshal(out)
		if err != nil {
			return nil, err
		}
		results = append(results, operationResult{encoded, rows})
	}
	return results, nil
}

// told are the results of a vote: none if no statement returned rows, since there is
// nothing to tell then that an expectation would not.
func told(results []operationResult) []json.RawMessage {
	if !slices.ContainsFunc(results, func(r operationResult) bool { return r.rows }) {
		return nil
	}
	list := make([]json.RawMessage, len(results))
	for i, r := range results {
		list[i] = r.encoded
	}
	return list
}

// result is what an operation returns to the client.
type result struct {
	Statements []statementResult `json:"statements"`
}

type statementResult struct {
	RowCount int64             `json:"row_count"` // changed or returned
	Rows     []json.RawMessage `json:"rows,omitempty"`
	bytes    int
}

// statementError says which statement failed.
type statementError struct {
	operation, statement int
	err                  error
}

func (e *statementError) Error() string {
	return fmt.Sprintf("operations[%d].statements[%d]: %v", e.operation, e.statement, e.err)
}

func (e *statementError) Unwrap() error { return e.err }

// refusedError is a refusal of the agent's own.
type refusedError struct{ class, text string }

func (e *refusedError) Error() string { return e.text }

func (w *worker) statement(ctx context.Context, tx *sql.Tx, s *statement, r *statementResult, maxBytes int) error {
	args := make([]any, len(s.Args))
	for i, raw := range s.Args {
		value, err := argument(raw)
		switch {
		case err != nil:
			return &refusedError{"payload", fmt.Sprintf("args[%d]: %v", i, err)}
		case value != nil:
			args[i] = string(value)
		}
	}
	// Prepared, because the server then refuses several statements in one text, a
	// COMMIT among them: without arguments the driver would send the text as it is.
	stmt, err := tx.PrepareContext(ctx, s.SQL)
	if err != nil {
		return err
	}
	defer stmt.Close()
	if looksLikeQuery(s.SQL) || returning(s.SQL) {
		if err := w.query(ctx, stmt, args, r, maxBytes); err != nil {
			return err
		}
	} else {
		done, err := stmt.ExecContext(ctx, args...)
		if err != nil {
			return err
		}
		if r.RowCount, err = done.RowsAffected(); err != nil {
			return err
		}
	}
	if s.Expect != nil && r.RowCount != *s.Expect.Rows {
		return &refusedError{"expectation", fmt.Sprintf("expected %d rows, got %d", *s.Expect.Rows, r.RowCount)}
	}
	return nil
}

func (w *worker) query(ctx context.Context, stmt *sql.Stmt, args []any, r *statementResult, maxBytes int) error {
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	columns, err := rows.ColumnTypes()
	if err != nil {
		return err
	}
	values := make([]sql.NullString, len(columns))
	into := make([]any, len(columns))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return &refusedError{"result", fmt.Sprintf("a row cannot be read: %v", err)}
		}
		row := encodeRow(columns, values)
		r.RowCount++
		r.bytes += len(row)
		if r.RowCount > maxResultRows || r.bytes > maxBytes {
			return &refusedError{"result", fmt.Sprintf("it returns more than %d rows or %d bytes", maxResultRows, maxResultBytes)}
		}
		r.Rows = append(r.Rows, row)
	}
	return rows.Err()
}

// encodeRow writes a row as a JSON object in the order of its columns: numbers,
// booleans and JSON as such, everything else as text.
func encodeRow(columns []*sql.ColumnType, values []sql.NullString) json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, c := range columns {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(quote(c.Name()))
		b.WriteByte(':')
		b.Write(encodeValue(c.DatabaseTypeName(), values[i]))
	}
	b.WriteByte('}')
	return b.Bytes()
}

func encodeValue(kind string, v sql.NullString) []byte {
	if !v.Valid {
		return []byte("null")
	}
	switch kind {
	case "BYTEA": // as the server writes it
		return quote(`\x` + hex.EncodeToString([]byte(v.String)))
	case "INT2", "INT4", "INT8", "FLOAT4", "FLOAT8", "NUMERIC", "BOOL", "JSON", "JSONB":
		if json.Valid([]byte(v.String)) { // NaN and Infinity are not
			return []byte(v.String)
		}
	}
	return quote(v.String)
}

func quote(text string) []byte {
	quoted, err := json.Marshal(text)
	if err != nil {
		panic(err) // every string can be written
	}
	return quoted
}

// looksLikeQuery reports whether a statement begins as one that only reads.
func looksLikeQuery(text string) bool {
	switch firstWord(text) {
	case "SELECT", "VALUES", "TABLE", "SHOW":
		return true
	case "WITH":
		return !hasWord(text, "INSERT", "UPDATE", "DELETE", "MERGE")
	}
	return false
}

func returning(text string) bool { return hasWord(text, "RETURNING") }

// hasWord looks for words anywhere, in texts and comments too: a wrong yes costs
// nothing but a look at the result.
func hasWord(text string, words ...string) bool {
	return slices.ContainsFunc(strings.FieldsFunc(strings.ToUpper(text), func(r rune) bool {
		return (r < 'A' || r > 'Z') && r != '_'
	}), func(w string) bool { return slices.Contains(words, w) })
}

func sqlState(err error) string {
	var server *pgconn.PgError
	if errors.As(err, &server) {
		return server.Code
	}
	return ""
}

// verdict turns what stopped the statements into a vote no, or leaves it to the
// SDK: serialization failures and deadlocks are run again there, and errors that
// are not the server's word on the statement are no vote.
func (w *worker) verdict(ctx context.Context, tx *sql.Tx, err error) error {
	var own *refusedError
	if errors.As(err, &own) {
		return no(own.class, "%v", err)
	}
	var server *pgconn.PgError
	if !errors.As(err, &server) {
		if _, broken := tx.ExecContext(ctx, `SELECT 1`); broken != nil {
			return err
		}
		return no("statement", "%v", err) // the driver's word on it: another number of arguments, say
	}
	switch {
	case server.Code == serialization, server.Code == deadlock:
		return err
	case server.Code == "25P03", server.Code == "25P04": // the server has ended the session: idle, or open too long
		return err
	case server.Code == lockNotAvailable:
		return conflict("lock_timeout", "%s, retryable: %v", server.Code, err)
	case server.Code == "57014":
		return conflict("statement_timeout", "%s, retryable: %v", server.Code, err)
	}
	for _, class := range []string{"08", "57", "58", "F0", "XX"} { // the connection or the server, not the statement
		if strings.HasPrefix(server.Code, class) {
			return err
		}
	}
	return no("statement", "%v", err)
}

// classedError is a refusal with its class for the metrics.
type classedError struct {
	class string
	error
}

func (e *classedError) Unwrap() error { return e.error }

func no(class, format string, args ...any) error {
	return &classedError{class, participant.No(fmt.Sprintf(format, args...))}
}

func conflict(class, format string, args ...any) error {
	return &classedError{class, participant.Conflict(fmt.Sprintf(format, args...))}
}
