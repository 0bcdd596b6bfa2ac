package participant

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// The states of an outcome row; see the package comment.
const (
	statePrepared   = "prepared"
	stateCommitted  = "committed"
	stateRolledBack = "rolled_back"
	stateReadOnly   = "read_only"
	stateRefused    = "refused"
)

// row is an outcome row.
type row struct {
	state, digest, token string
	opCount              int
	onePhase             bool
	term                 uint64
	operations           []json.RawMessage
	results              []json.RawMessage
	reason               string
}

// queries are the statements of a participant, in its database's spelling.
type queries struct {
	insert, read, lock, finish, touch, vote, settle, inDoubt,
	readForgotten, insertForgotten, raiseForgotten, page, remove string
}

// plainQueries are the statements with ? for each argument, for a database that
// runs one write transaction at a time.
func plainQueries() queries {
	return queries{
		insert: `INSERT INTO assent_outcome
			(txn, branch, state, digest, op_count, one_phase, token, term, home, operations, results, reason, updated_ms)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING ''`,
		read: readQuery,
		lock: readQuery,
		// The move out of prepared, and the lock on the row, in one statement.
		finish: finishQuery(""),
		touch:  `UPDATE assent_outcome SET state = ?, term = ?, token = ?, updated_ms = ? WHERE txn = ? AND branch = ?`,
		vote:   `UPDATE assent_outcome SET state = ?, results = ?, reason = ? WHERE txn = ? AND branch = ?`,
		settle: `UPDATE assent_outcome SET state = ?, digest = ?, op_count = ?, one_phase = ?, token = ?, term = ?,
			operations = ?, results = ?, reason = '', updated_ms = ? WHERE txn = ? AND branch = ?`,
		inDoubt: `SELECT txn, branch, updated_ms FROM assent_outcome
			WHERE state = 'prepared' AND (txn > ? OR (txn = ? AND branch > ?)) ORDER BY txn, branch LIMIT ?`,
		readForgotten:   `SELECT forgotten FROM assent_watermark WHERE shards = ? AND shard = ?`,
		insertForgotten: `INSERT INTO assent_watermark (shards, shard, forgotten) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`,
		raiseForgotten:  `UPDATE assent_watermark SET forgotten = ? WHERE shards = ? AND shard = ? AND forgotten < ?`,
		page:            `SELECT txn FROM assent_outcome WHERE txn > ? AND txn < ? ORDER BY txn LIMIT 1 OFFSET ?`,
		remove: `DELETE FROM assent_outcome
			WHERE txn > ? AND txn <= ? AND txn < ? AND home % ? = ? AND state <> 'prepared'`,
	}
}

// finishQuery has from between SET and WHERE.
func finishQuery(from string) string {
	return `UPDATE assent_outcome
		SET state = ?, term = ?, token = CASE WHEN token < ? THEN ? ELSE token END, updated_ms = ? ` + from + `
		WHERE txn = ? AND branch = ? AND state = 'prepared' AND term <= ? AND (token <= ? OR ? = '')
		RETURNING operations`
}

const readQuery = `SELECT state, digest, op_count, one_phase, token, term, operations, results, reason
	FROM assent_outcome WHERE txn = ? AND branch = ?`

var (
	// errBranchBusy: another call, or a prepared transaction, holds the branch's row.
	errBranchBusy = fmt.Errorf("%w: another call works on this branch", ErrOverloaded)
	// errRaced: two looks at one branch were overtaken by another call. The local
	// transaction did nothing and is run again.
	errRaced = errors.New("the branch changed meanwhile")
)

// insertRow writes a row unless one is there, and reports whether it did. It is
// the first statement of its transaction: the database's own uniqueness makes one
// of all concurrent duplicates the owner, and lets the others wait for its end.
// mark is the database's name of the local transaction, if it has one.
func (p *Participant) insertRow(ctx context.Context, tx *sql.Tx, c *Call, r row) (mark string, inserted bool, err error) {
	operations, err := encodeList(r.operations)
	if err != nil {
		return "", false, err
	}
	results, err := encodeList(r.results)
	if err != nil {
		return "", false, err
	}
	list := p.cfg.Dialect.list
	err = tx.QueryRowContext(ctx, p.queries.insert, c.Transaction, c.Branch, r.state, r.digest, r.opCount, r.onePhase,
		r.token, int64(r.term), randA(c.Transaction), list(operations), list(results), r.reason, time.Now().UnixMilli()).Scan(&mark)
	switch {
	case err == nil:
		return mark, true, nil
	case errors.Is(err, sql.ErrNoRows):
		return "", false, nil
	case p.cfg.Dialect.lockTimeout(err):
		return "", false, fmt.Errorf("%w: %w", errBranchBusy, err)
	}
	return "", false, fmt.Errorf("insert outcome row: %w", err)
}

// newRow is the first row of a prepare.
func newRow(c *Call, state string) row {
	return row{
		state: state, digest: c.Digest, opCount: c.Executed + c.Count, onePhase: c.OnePhase,
		token: c.Token, term: c.Term, operations: c.Operations,
	}
}

type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// readRow returns nil if there is no row. query is queries.read, or in a
// transaction that may write the row queries.lock.
func (p *Participant) readRow(ctx context.Context, q querier, query string, c *Call) (*row, error) {
	var r row
	var operations, results []byte
	var reason sql.NullString
	var term int64
	err := q.QueryRowContext(ctx, query, c.Transaction, c.Branch).
		Scan(&r.state, &r.digest, &r.opCount, &r.onePhase, &r.token, &term, &operations, &results, &reason)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil //nolint:nilnil // no row is an answer
	case err != nil:
		return nil, fmt.Errorf("read outcome row: %w", err)
	}
	switch r.state {
	case statePrepared, stateCommitted, stateRolledBack, stateReadOnly, stateRefused:
	default: // of a newer version, or of somebody else: nothing is concluded from it
		return nil, fmt.Errorf("outcome row of %s/%d: unknown state %q", c.Transaction, c.Branch, clip(r.state, 32))
	}
	r.term, r.reason = uint64(term), reason.String
	if r.operations, err = decodeList(operations); err != nil {
		return nil, err
	}
	if r.results, err = decodeList(results); err != nil {
		return nil, err
	}
	return &r, nil
}

// admit refuses a call older than one the row has seen, and otherwise brings the
// row to state and to the highest term and token.
func (p *Participant) admit(ctx context.Context, tx *sql.Tx, c *Call, r *row, state string) error {
	if err := r.stale(c); err != nil {
		return err
	}
	token := max(r.token, c.Token)
	if state == r.state && c.Term == r.term && token == r.token {
		return nil
	}
	if _, err := tx.ExecContext(ctx, p.queries.touch, state, int64(c.Term), token, time.Now().UnixMilli(), c.Transaction, c.Branch); err != nil {
		return fmt.Errorf("update outcome row: %w", err)
	}
	return nil
}

func (r *row) stale(c *Call) error {
	switch {
	case c.Term < r.term:
		return fmt.Errorf("%w: term %d, but %d was seen", ErrStale, c.Term, r.term)
	case c.Token != "" && c.Token < r.token: // no token claims no grant
		return fmt.Errorf("%w: the fencing token is older than the one seen", ErrStale)
	}
	return nil
}

// encodeList is nil for an empty list.
func encodeList(list []json.RawMessage) ([]byte, error) {
	if len(list) == 0 {
		return nil, nil
	}
	// Not json.Marshal, which would rewrite the elements: a handler is to see the
	// same bytes in every phase.
	b := []byte{'['}
	for i, v := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, v...)
	}
	b = append(b, ']')
	if !json.Valid(b) {
		return nil, errors.New("a result is not valid JSON")
	}
	return b, nil
}

func decodeList(encoded []byte) ([]json.RawMessage, error) {
	if encoded == nil {
		return nil, nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(encoded, &list); err != nil {
		return nil, fmt.Errorf("outcome row: %w", err)
	}
	return list, nil
}
