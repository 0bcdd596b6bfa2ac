package ledger

import (
	"context"
	"fmt"
)

// Finding is one thing that an audit found wrong.
type Finding string

// Audit compares the books with each other and with what clients were told. It
// must run when nothing is in flight. told maps a transaction's id to the state
// that its client was told.
func Audit(ctx context.Context, books []*Ledger, accounts int, balance int64, told map[string]string) ([]Finding, error) {
	var found []Finding
	bad := func(format string, args ...any) { found = append(found, Finding(fmt.Sprintf(format, args...))) }

	seen := map[string]map[string]int{} // transaction -> book -> entries
	var total int64
	for _, l := range books {
		var sum, moved, holds int64
		if err := l.db.QueryRowContext(ctx, `SELECT COALESCE(SUM(balance), 0) FROM account`).Scan(&sum); err != nil {
			return nil, fmt.Errorf("audit %s: %w", l.name, err)
		}
		if err := l.db.QueryRowContext(ctx, `SELECT COALESCE(SUM(amount), 0) FROM entry`).Scan(&moved); err != nil {
			return nil, fmt.Errorf("audit %s: %w", l.name, err)
		}
		if err := l.db.QueryRowContext(ctx, `SELECT COUNT(*) FROM hold`).Scan(&holds); err != nil {
			return nil, fmt.Errorf("audit %s: %w", l.name, err)
		}
		if holds > 0 {
			bad("%s: %d holds are left: branches in doubt", l.name, holds)
		}
		if want := int64(accounts)*balance + moved; sum != want {
			bad("%s: accounts hold %d, entries say %d", l.name, sum, want)
		}
		total += sum
		if err := l.entries(ctx, seen); err != nil {
			return nil, err
		}
	}
	if want := int64(len(books)) * int64(accounts) * balance; total != want {
		bad("money was made or lost: %d, at the start %d", total, want)
	}
	for txn, in := range seen {
		if len(in) != len(books) {
			bad("transaction %s is on %d of %d ledgers", txn, len(in), len(books))
		}
		for name, n := range in {
			if n != 1 {
				bad("transaction %s was booked %d times on %s", txn, n, name)
			}
		}
		if state := told[txn]; state == "aborted" || state == "aborting" {
			bad("transaction %s is booked, but its client was told %s", txn, state)
		}
	}
	for txn, state := range told {
		if (state == "committed" || state == "committing") && seen[txn] == nil {
			bad("transaction %s is not booked, but its client was told %s", txn, state)
		}
	}
	return found, nil
}

func (l *Ledger) entries(ctx context.Context, seen map[string]map[string]int) error {
	rows, err := l.db.QueryContext(ctx, `SELECT txn FROM entry`)
	if err != nil {
		return fmt.Errorf("audit %s: %w", l.name, err)
	}
	defer rows.Close()
	for rows.Next() {
		var txn string
		if err := rows.Scan(&txn); err != nil {
			return fmt.Errorf("audit %s: %w", l.name, err)
		}
		if seen[txn] == nil {
			seen[txn] = map[string]int{}
		}
		seen[txn][l.name]++
	}
	return rows.Err()
}
