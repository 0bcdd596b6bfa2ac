package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/assent-tx/assent/participant"
)

// Posting is the payload of a posting: what one transfer does to one account. Its
// result is {"account":…,"balance":…}, the balance with all that the branch did.
type Posting struct {
	Transfer string `json:"transfer"` // id of the transfer, unique in the book
	Account  int64  `json:"account"`
	Amount   int64  `json:"amount"` // negative: debit, refused if the balance does not cover it
}

// Operation is the payload of all others:
//
//	{"op":"read","account":7}           result {"account":7,"balance":100}
//	{"op":"append","key":"k","value":5} result null
//	{"op":"list","key":"k"}             result {"key":"k","values":[3,5]}
//
// Reads see what is committed and what their own branch did before. A list that was
// never appended to is empty.
type Operation struct {
	Op      string `json:"op"`
	Account int64  `json:"account,omitempty"`
	Key     string `json:"key,omitempty"`
	Value   int64  `json:"value,omitempty"`
}

// Balance is the result of a posting and of a read.
type Balance struct {
	Account int64 `json:"account"`
	Balance int64 `json:"balance"`
}

// List is the result of a list.
type List struct {
	Key    string  `json:"key"`
	Values []int64 `json:"values"` // in the order in which they were appended
}

// payload is any of them.
type payload struct {
	Operation
	Transfer string `json:"transfer"`
	Amount   int64  `json:"amount"`
}

func parse(op json.RawMessage) (*payload, error) {
	var p payload
	if err := json.Unmarshal(op, &p); err != nil {
		return nil, participant.No("not an operation: " + err.Error())
	}
	var bad string
	switch p.Op {
	case "":
		if p.Transfer == "" || p.Amount == 0 {
			bad = "not a posting: a transfer, an account and an amount are needed"
		}
	case "read":
	case "append", "list":
		if p.Key == "" {
			bad = p.Op + " needs a key"
		}
	default:
		bad = fmt.Sprintf("unknown op %q", p.Op)
	}
	if bad != "" {
		return nil, participant.No(bad)
	}
	return &p, nil
}

func (p *payload) writes() bool { return p.Op == "" || p.Op == "append" }

// Prepare implements participant.Handler: it reserves.
func (l *Ledger) Prepare(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
	var results []json.RawMessage
	writes := false
	for n, op := range b.Operations {
		p, err := parse(op)
		if err != nil {
			return nil, err
		}
		writes = writes || p.writes()
		if n < b.Executed {
			continue
		}
		result, err := l.do(ctx, tx, b, n, p)
		if err != nil {
			return nil, err
		}
		results = append(results, result)
	}
	if !writes {
		return results, participant.ReadOnly
	}
	return results, nil
}

// Execute implements participant.Executor.
func (l *Ledger) Execute(ctx context.Context, tx *sql.Tx, b participant.Branch) (json.RawMessage, error) {
	p, err := parse(b.Operations[b.Executed])
	if err != nil {
		return nil, err
	}
	return l.do(ctx, tx, b, b.Executed, p)
}

// do reserves what operation n of the branch writes, or reads.
func (l *Ledger) do(ctx context.Context, tx *sql.Tx, b participant.Branch, n int, p *payload) (json.RawMessage, error) {
	var result any
	var err error
	switch p.Op {
	case "append":
		_, err = tx.ExecContext(ctx, l.sql(`INSERT INTO pending (txn, branch, n, list, value) VALUES (?1, ?2, ?3, ?4, ?5)`),
			b.Transaction, b.Number, n, p.Key, p.Value)
	case "list":
		result, err = l.list(ctx, tx, b, p.Key)
	case "read":
		result, err = l.read(ctx, tx, b, p.Account)
	default:
		if err = l.post(ctx, tx, b, n, p); err == nil {
			result, err = l.read(ctx, tx, b, p.Account)
		}
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(result)
}

func (l *Ledger) post(ctx context.Context, tx *sql.Tx, b participant.Branch, n int, p *payload) error {
	// Commit may not fail, so what it will write must be possible now.
	var booked bool
	if err := tx.QueryRowContext(ctx, l.sql(`SELECT EXISTS (SELECT 1 FROM entry WHERE transfer = ?1) OR EXISTS (SELECT 1 FROM hold WHERE transfer = ?1)`),
		p.Transfer).Scan(&booked); err != nil {
		return err
	}
	if booked {
		return participant.No(fmt.Sprintf("transfer %q is booked already", p.Transfer))
	}
	take := min(p.Amount, 0) // a credit is booked at commit, when it is certain
	res, err := tx.ExecContext(ctx, l.sql(`UPDATE account SET balance = balance + ?1 WHERE id = ?2 AND balance + ?1 >= 0`), take, p.Account)
	if err != nil {
		return err
	}
	if changed, err := res.RowsAffected(); err != nil {
		return err
	} else if changed == 0 {
		return participant.No(fmt.Sprintf("account %d does not exist or does not hold %d", p.Account, -p.Amount))
	}
	_, err = tx.ExecContext(ctx, l.sql(`INSERT INTO hold (txn, branch, n, transfer, account, amount) VALUES (?1, ?2, ?3, ?4, ?5, ?6)`),
		b.Transaction, b.Number, n, p.Transfer, p.Account, p.Amount)
	return err
}

// read is the balance with the branch's own credits, which are not booked yet.
func (l *Ledger) read(ctx context.Context, tx *sql.Tx, b participant.Branch, account int64) (*Balance, error) {
	r := &Balance{Account: account}
	err := tx.QueryRowContext(ctx, l.sql(`SELECT balance + (SELECT COALESCE(SUM(amount), 0) FROM hold WHERE txn = ?1 AND branch = ?2 AND account = ?3 AND amount > 0)
		FROM account WHERE id = ?3`), b.Transaction, b.Number, account).Scan(&r.Balance)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, participant.No(fmt.Sprintf("account %d does not exist", account))
	}
	return r, err
}

// list is the list with what the branch itself appended, behind what is committed.
func (l *Ledger) list(ctx context.Context, tx *sql.Tx, b participant.Branch, key string) (*List, error) {
	rows, err := tx.QueryContext(ctx, l.sql(`SELECT 0, n, value FROM element WHERE list = ?1
		UNION ALL SELECT 1, n, value FROM pending WHERE txn = ?2 AND branch = ?3 AND list = ?1 ORDER BY 1, 2`), key, b.Transaction, b.Number)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	r := &List{Key: key, Values: []int64{}}
	for rows.Next() {
		var mine, n, value int64
		if err := rows.Scan(&mine, &n, &value); err != nil {
			return nil, err
		}
		r.Values = append(r.Values, value)
	}
	return r, rows.Err()
}

// Commit implements participant.Handler: it confirms.
func (l *Ledger) Commit(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	postings, appends := kinds(b)
	if postings {
		if _, err := tx.ExecContext(ctx, l.sql(`INSERT INTO entry (transfer, txn, account, amount)
			SELECT transfer, txn, account, amount FROM hold WHERE txn = ?1 AND branch = ?2`), b.Transaction, b.Number); err != nil {
			return err
		}
		if err := l.settle(ctx, tx, b, 1); err != nil {
			return err
		}
	}
	if !appends {
		return nil
	}
	// n grows by the place in the branch, behind all that the list holds.
	if _, err := tx.ExecContext(ctx, l.sql(`INSERT INTO element (list, n, value)
		SELECT list, n + 1 + COALESCE((SELECT MAX(e.n) FROM element e WHERE e.list = p.list), 0), value
		FROM pending p WHERE txn = ?1 AND branch = ?2`), b.Transaction, b.Number); err != nil {
		return err
	}
	return l.dropPending(ctx, tx, b)
}

// Rollback implements participant.Handler: it cancels.
func (l *Ledger) Rollback(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	postings, appends := kinds(b)
	if postings {
		if err := l.settle(ctx, tx, b, -1); err != nil {
			return err
		}
	}
	if !appends {
		return nil
	}
	return l.dropPending(ctx, tx, b)
}

// kinds tells which of its writes a branch has.
func kinds(b participant.Branch) (postings, appends bool) {
	is := func(op string) func(json.RawMessage) bool {
		return func(raw json.RawMessage) bool {
			p, err := parse(raw)
			return err == nil && p.Op == op
		}
	}
	return slices.ContainsFunc(b.Operations, is("")), slices.ContainsFunc(b.Operations, is("append"))
}

func (l *Ledger) dropPending(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	_, err := tx.ExecContext(ctx, l.sql(`DELETE FROM pending WHERE txn = ?1 AND branch = ?2`), b.Transaction, b.Number)
	return err
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
