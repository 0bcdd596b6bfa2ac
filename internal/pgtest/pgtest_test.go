package pgtest

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A transaction that is prepared outlives a crash, an immediate and a fast stop;
// one that is not does not.
func TestClusterKeepsWhatIsDurable(t *testing.T) {
	c := Start(t, "max_prepared_transactions = 7")
	ctx := t.Context()
	if got, err := c.Query(ctx, "postgres", "SHOW max_prepared_transactions"); got != "7" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if err := c.SQL(ctx, "postgres", "CREATE TABLE t (id int)", "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'one'"); err != nil {
		t.Fatal(err)
	}
	for _, end := range []func(){c.Kill, c.Stop, c.Shutdown} {
		end()
		if c.Running() || c.SQL(ctx, "postgres", "SELECT 1") == nil {
			t.Fatal("the server still runs")
		}
		if err := c.Restart(); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Query(ctx, "postgres", "SELECT gid FROM pg_prepared_xacts", "SELECT count(*) FROM t"); got != "one\n0" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if err := c.SQL(ctx, "postgres", "COMMIT PREPARED 'one'"); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Query(ctx, "postgres", "SELECT id FROM t"); got != "1" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if err := c.SQL(ctx, "postgres", "SELECT 1/0"); err == nil {
		t.Error("a failing statement went unnoticed")
	}
}
