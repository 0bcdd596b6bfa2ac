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

type queries struct {
	insert, read, finish, touch, vote, inDoubt,
	readForgotten, insertForgotten, raiseForgotten, page, remove string
}

func newQueries(rebind func(string) string) queries {
	return queries{
		insert: rebind(`INSERT INTO assent_outcome
			(txn, branch, state, digest, op_count, one_phase, token, term, home, operations, results, reason, updated_ms)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`),
		read: rebind(`SELECT state, digest, op_count, one_phase, token, term, operations, results, reason
			FROM assent_outcome WHERE txn = ? AND branch = ?`),
		// The move out of prepared, and the lock on the row, in one statement.
		finish: rebind(`UPDATE assent_outcome
			SET state = ?, term = ?, token = CASE WHEN token < ? THEN ? ELSE token END, updated_ms = ?
			WHERE txn = ? AND branch = ? AND state = 'prepared' AND term <= ? AND (token <= ? OR ? = '')
			RETURNING operations`),
		touch: rebind(`UPDATE assent_outcome SET state = ?, term = ?, token = ?, updated_ms = ? WHERE txn = ? AND branch = ?`),
		vote:  rebind(`UPDATE assent_outcome SET state = ?, results = ?, reason = ? WHERE txn = ? AND branch = ?`),
		inDoubt: rebind(`SELECT txn, branch, updated_ms FROM assent_outcome
			WHERE state = 'prepared' AND (txn > ? OR (txn = ? AND branch > ?)) ORDER BY txn, branch LIMIT ?`),
		readForgotten:   rebind(`SELECT forgotten FROM assent_watermark WHERE shards = ? AND shard = ?`),
		insertForgotten: rebind(`INSERT INTO assent_watermark (shards, shard, forgotten) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`),
		raiseForgotten:  rebind(`UPDATE assent_watermark SET forgotten = ? WHERE shards = ? AND shard = ? AND forgotten < ?`),
		page:            rebind(`SELECT txn FROM assent_outcome WHERE txn > ? AND txn < ? ORDER BY txn LIMIT 1 OFFSET ?`),
		remove: rebind(`DELETE FROM assent_outcome
			WHERE txn > ? AND txn <= ? AND txn < ? AND home % ? = ? AND state <> 'prepared'`),
	}
}

// insertRow writes a row unless one is there, and reports whether it did. It is
// the first statement of its transaction: the database's own uniqueness makes one
// of all concurrent duplicates the owner, and lets the others wait for its end.
func (p *Participant) insertRow(ctx context.Context, tx *sql.Tx, c *Call, r row) (bool, error) {
	operations, err := encodeList(r.operations)
	if err != nil {
		return false, err
	}
	results, err := encodeList(r.results)
	if err != nil {
		return false, err
	}
	res, err := tx.ExecContext(ctx, p.queries.insert, c.Transaction, c.Branch, r.state, r.digest, r.opCount, r.onePhase,
		r.token, int64(r.term), randA(c.Transaction), operations, results, r.reason, time.Now().UnixMilli())
	if err != nil {
		return false, fmt.Errorf("insert outcome row: %w", err)
	}
	n, err := res.RowsAffected()
	return n == 1, err
}

// newRow is the first row of a prepare.
func newRow(c *Call, state string) row {
	return row{
		state: state, digest: c.Digest, opCount: c.Count, onePhase: c.OnePhase,
		token: c.Token, term: c.Term, operations: c.Operations,
	}
}

type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// readRow returns nil if there is no row.
func (p *Participant) readRow(ctx context.Context, q querier, c *Call) (*row, error) {
	var r row
	var operations, results, reason sql.NullString
	var term int64
	err := q.QueryRowContext(ctx, p.queries.read, c.Transaction, c.Branch).
		Scan(&r.state, &r.digest, &r.opCount, &r.onePhase, &r.token, &term, &operations, &results, &reason)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil //nolint:nilnil // no row is an answer
	case err != nil:
		return nil, fmt.Errorf("read outcome row: %w", err)
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

func encodeList(list []json.RawMessage) (sql.NullString, error) {
	if len(list) == 0 {
		return sql.NullString{}, nil
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
		return sql.NullString{}, errors.New("a result is not valid JSON")
	}
	return sql.NullString{String: string(b), Valid: true}, nil
}

func decodeList(s sql.NullString) ([]json.RawMessage, error) {
	if !s.Valid {
		return nil, nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal([]byte(s.String), &list); err != nil {
		return nil, fmt.Errorf("outcome row: %w", err)
	}
	return list, nil
}
