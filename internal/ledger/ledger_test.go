package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/assent-tx/assent/internal/pgtest"
	"github.com/assent-tx/assent/rm/rmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, dir, name string) *Ledger {
	t.Helper()
	l, err := Open(dir, name, 5, 1000, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Serve("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	return l
}

// conformsAccounts is one for each marker of the suite.
const conformsAccounts = 400

func TestConformance(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) {
		dir := t.TempDir()
		conforms(t, true, func() (*Ledger, error) { return Open(dir, "bank", conformsAccounts, 1000, nil) })
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		server := pgtest.Start(t)
		conforms(t, false, func() (*Ledger, error) {
			return OpenPostgreSQL(server.DSN("postgres"), "bank", conformsAccounts, 1000, nil)
		})
	})
}

func constantly(payload string) func(string) json.RawMessage {
	return func(string) json.RawMessage { return json.RawMessage(payload) }
}

func conforms(t *testing.T, oneOpen bool, open func() (*Ledger, error)) {
	var l *Ledger
	serve := func() error {
		var err error
		if l, err = open(); err != nil {
			return err
		}
		return l.Serve("127.0.0.1:0")
	}
	if err := serve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	var n atomic.Int64
	// Branches of two markers are open at once: they would wait for each other on one account.
	accounts := make(map[string]int64)
	account := func(marker string) int64 {
		if accounts[marker] == 0 {
			accounts[marker] = int64(len(accounts) + 1)
		}
		if accounts[marker] > conformsAccounts {
			t.Errorf("more than %d markers", conformsAccounts)
		}
		return accounts[marker]
	}
	posting := func(amount int64) func(string) json.RawMessage {
		return func(marker string) json.RawMessage {
			b, err := json.Marshal(Posting{Transfer: fmt.Sprintf("%s#%d", marker, n.Add(1)), Account: account(marker), Amount: amount})
			if err != nil {
				t.Error(err)
			}
			return b
		}
	}
	count := func(table string) func(context.Context, string) (int, error) {
		return func(ctx context.Context, marker string) (c int, err error) {
			err = l.db.QueryRowContext(ctx, l.sql(`SELECT COUNT(*) FROM `+table+` WHERE substr(transfer, 1, ?1) = ?2`), len(marker)+1, marker+"#").Scan(&c)
			return c, err
		}
	}
	rmtest.Run(t, rmtest.Target{
		Service: "bank", BaseURL: l.URL() + "/assent", OnePhase: true,
		Execute: true, OneOpen: oneOpen, ReadOnly: constantly(`{"op":"read","account":1}`),
		Succeed: posting(-1), Refuse: posting(-1_000_000), Results: posting(1),
		Observe: func(marker string) json.RawMessage {
			return fmt.Appendf(nil, `{"op":"read","account":%d}`, account(marker))
		},
		Effects: count("entry"), Reserved: count("hold"),
		Restart: func(context.Context) (string, error) {
			if err := l.Close(); err != nil {
				return "", err
			}
			err := serve()
			return l.URL() + "/assent", err
		},
	})
	// Of one book alone the audit can say that its accounts and entries agree.
	found, err := Audit(t.Context(), []*Ledger{l}, conformsAccounts, 1000, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if strings.Contains(string(f), "accounts hold") || strings.Contains(string(f), "holds are left") {
			t.Error(f)
		}
	}
}

// TestAuditBites damages two equal books in every way that the audit must notice.
func TestAuditBites(t *testing.T) {
	for name, damage := range map[string]string{
		"":                        `SELECT 1`,
		"on 1 of 2 ledgers":       `INSERT INTO entry (transfer, txn, account, amount) VALUES ('t9', 'x9', 1, 5); UPDATE account SET balance = balance + 5 WHERE id = 1`,
		"made or lost":            `UPDATE account SET balance = balance + 1 WHERE id = 1`,
		"holds are left":          `INSERT INTO hold (txn, branch, n, transfer, account, amount) VALUES ('x8', 1, 0, 't8', 1, 5)`,
		"booked 2 times":          `INSERT INTO entry (transfer, txn, account, amount) VALUES ('t1b', 'x1', 1, 0)`,
		"client was told aborted": `INSERT INTO entry (transfer, txn, account, amount) VALUES ('t2', 'x2', 1, 0)`,
		"is not booked":           `DELETE FROM entry WHERE txn = 'x1'`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			books := []*Ledger{open(t, dir, "a"), open(t, dir, "b")}
			for i, l := range books {
				defer l.Close()
				amount := 7 - 14*i
				for _, q := range []string{
					fmt.Sprintf(`INSERT INTO entry (transfer, txn, account, amount) VALUES ('t1', 'x1', 1, %d)`, amount),
					fmt.Sprintf(`UPDATE account SET balance = balance + %d WHERE id = 1`, amount),
				} {
					if _, err := l.db.Exec(q); err != nil {
						t.Fatal(err)
					}
				}
			}
			damaged := books[:1]
			if name == "is not booked" {
				damaged = books
			}
			for _, l := range damaged {
				if _, err := l.db.Exec(damage); err != nil {
					t.Fatal(err)
				}
			}
			found, err := Audit(t.Context(), books, 5, 1000, map[string]string{"x1": "committed", "x2": "aborted"})
			if err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprint(found)
			if name == "" && len(found) > 0 || !strings.Contains(text, name) {
				t.Fatalf("found %q", text)
			}
		})
	}
}
