package participant

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// PostgreSQLPrepared is the dialect of PostgreSQL 13 or later for a service whose
// branches are held by the database itself, by a Preparer: the package ends its
// *sql.Tx with PREPARE TRANSACTION, and the branch with COMMIT PREPARED or
// ROLLBACK PREPARED. All that PostgreSQL says on drivers, server settings and
// isolation holds here too; beyond it the server needs max_prepared_transactions
// above 0, and the driver must take several statements in one Exec without
// arguments.
//
// The outcome row is the first write of the branch's own transaction and says
// "committed": nobody sees it before that is true. While the branch is prepared
// its row is invisible and locked, which has these consequences:
//
//   - The gid is assent:<cluster>:<transaction>:<branch>:<first 16 hex digits of
//     the digest>. Every call must name its cluster (ErrCluster otherwise), and the
//     database is bound to the first one it hears.
//   - A rollback writes its tombstone with an insert that waits for a prepare still
//     running, so that no prepare can come through behind it.
//   - Terms and tokens are checked against visible rows only; a prepared branch is
//     protected by its identity, its digest and the tombstone.
//   - The results of a prepared branch are repeated by the process that prepared
//     it, from a bounded memory; other processes repeat the vote without them.
//   - A prepared transaction that somebody ended by hand is not silently
//     confirmed: after ROLLBACK PREPARED a commit finds no row and is answered
//     "unknown", after COMMIT PREPARED a rollback is answered "committed".
//
// The database votes, too. A serialization failure or a deadlock is tried again a
// few times; then, and for a lock timeout or a constraint in the work (when the
// Preparer returns that error, wrapped or not), and for whatever makes the server
// refuse PREPARE TRANSACTION (deferred constraints, temporary tables, NOTIFY, no
// free slot of max_prepared_transactions), the vote is no.
//
// A Preparer must not end the transaction, use temporary tables, LISTEN, NOTIFY,
// cursors WITH HOLD, or SET without LOCAL.
func PostgreSQLPrepared() Dialect {
	d := PostgreSQL()
	d.name, d.prepared = "PostgreSQL with prepared transactions", true
	d.queries = func(wait time.Duration) queries { return postgresQueries(min(wait, duplicateWait), wait) }
	d.verdict = preparedVerdict
	d.check = checkPrepared
	d.checkTables = checkNothingReserved
	return d
}

const (
	// A prepared branch keeps its row locked. A call that meets the lock soon looks
	// whether this is why.
	duplicateWait     = 100 * time.Millisecond
	maxTriesToPrepare = 5  // of the work, at serialization failures; then the vote is no
	maxTriesToFinish  = 10 // of a branch that another session prepares or ends
)

// native holds branches as prepared transactions of PostgreSQL.
//
//	 prepare: INSERT row "committed"; work; PREPARE TRANSACTION ──► in pg_prepared_xacts
//	                      │                                             │          │
//	              COMMIT (one-phase)                          COMMIT PREPARED   ROLLBACK PREPARED
//	                      ▼                                             ▼          ▼
//	             row committed ◄────────────────────────────────────────┘     row rolled_back, inserted
//
//	A transaction leaves pg_prepared_xacts after its row has become visible, so who
//	looks there first and at the row then misses neither.
type native struct {
	p       *Participant
	cluster atomic.Pointer[string] // the database is bound to it; nil: not known yet
	held    memory
}

// prepare executes the branch and prepares it, or repeats its vote.
func (n *native) prepare(ctx context.Context, c *Call) (Vote, error) {
	if err := n.bind(ctx, c); err != nil {
		return Vote{}, err
	}
	if err := n.p.current(ctx, c); err != nil {
		return Vote{}, err
	}
	if n.held.has(c) { // most likely still prepared: do not wait for its row
		if v, found, err := n.repeat(ctx, c); err != nil || found {
			return v, err
		}
	}
	prepared := false
	var hold hold
	if !c.OnePhase {
		hold = func(ctx context.Context, tx *sql.Tx, mark string) error {
			err := prepareTransaction(ctx, tx, gidOf(c), mark)
			prepared = err == nil
			return err
		}
	}
	v, err := n.p.prepare(ctx, c, hold)
	if prepared {
		n.held.add(c, v.Results)
	}
	if errors.Is(err, errBranchBusy) {
		if again, found, look := n.repeat(ctx, c); look != nil || found {
			return again, look
		}
		// Another call is still at work, or has ended the branch just now: asked again.
	}
	return v, err
}

// prepareTransaction takes the transaction out of tx and makes it durable, in one
// round trip. PREPARE TRANSACTION answers in an aborted transaction, or with none
// open, without an error; so the statement before it must fail then, and the one
// after it must find what was prepared. BEGIN gives tx a transaction that its
// rollback can end, so that the connection goes back clean.
func prepareTransaction(ctx context.Context, tx *sql.Tx, gid, mark string) error {
	res, err := tx.ExecContext(ctx, `SELECT 1 / (pg_current_xact_id()::xid = '`+mark+`'::xid)::int; PREPARE TRANSACTION '`+gid+`'; BEGIN; `+
		`SELECT 1 FROM pg_prepared_xact() WHERE gid = '`+gid+`' AND transaction = '`+mark+`'::xid`)
	if err != nil {
		return &prepareError{err}
	}
	switch found, err := res.RowsAffected(); {
	case err != nil:
		return err
	case found != 1:
		return errors.New("the transaction was not prepared, or was ended at once")
	}
	return nil
}

// prepareError is an error of PREPARE TRANSACTION.
type prepareError struct{ error }

func (e *prepareError) Unwrap() error { return e.error }

// repeat answers a prepare of a branch that is prepared.
func (n *native) repeat(ctx context.Context, c *Call) (v Vote, found bool, err error) {
	gid, err := n.find(ctx, c)
	mismatch := c.Mismatch()
	switch {
	case err != nil || gid == "":
		return Vote{}, false, err
	case mismatch != "":
		return Vote{Vote: "no", Reason: mismatch}, true, nil
	case gid != gidOf(c):
		return Vote{Vote: "no", Reason: otherOperations}, true, nil
	case c.OnePhase:
		return Vote{}, true, fmt.Errorf("%w: the branch was prepared with one_phase=false", ErrStale)
	}
	if err := n.replicated(ctx); err != nil {
		return Vote{}, true, err
	}
	return Vote{Vote: "yes", Results: n.held.results(c)}, true, nil
}

// replicated returns when all that is in the log by now has reached the synchronous
// standbys, if there are to be any: a transaction is in pg_prepared_xacts before its PREPARE
// has waited for them, and a wait that a time limit has ended is a success with a warning.
func (n *native) replicated(ctx context.Context) error {
	// A row's lock is logged, so the commit of this waits; without standbys there is none.
	_, err := n.p.cfg.DB.ExecContext(ctx, `SELECT FROM assent_cluster WHERE current_setting('synchronous_standby_names') <> '' FOR KEY SHARE`)
	return err
}

// finish commits or rolls back the branch, or says what became of it.
func (n *native) finish(ctx context.Context, c *Call) (Outcome, error) {
	pause := firstPause
	for try := 1; ; try++ {
		outcome, err := n.finishOnce(ctx, c)
		switch {
		case err == nil:
			return outcome, nil
		case sqlState(err) == objectInUse: // another session is preparing or ending it
			err = fmt.Errorf("%w: %w", errBranchBusy, err)
		case !errors.Is(err, errBranchBusy):
			return "", err
		}
		if try == maxTriesToFinish {
			return "", err
		}
		if ended := rest(ctx, &pause); ended != nil {
			return "", fmt.Errorf("%w; last: %w", ended, err)
		}
	}
}

func (n *native) finishOnce(ctx context.Context, c *Call) (Outcome, error) {
	var ended bool
	var err error
	if gid := n.held.take(c); gid != "" {
		if ended, err = n.end(ctx, c.Phase, gid); err != nil {
			return "", err
		}
	}
	if !ended {
		gid, err := n.find(ctx, c)
		if err != nil {
			return "", err
		}
		if gid != "" {
			if ended, err = n.end(ctx, c.Phase, gid); err != nil {
				return "", err
			}
		}
	}
	if ended && c.Phase == PhaseCommit {
		return OutcomeCommitted, n.replicated(ctx)
	}
	// The row says how it ended; a rollback leaves its tombstone.
	var outcome Outcome
	err = n.p.transact(ctx, n.p.bookkeeping, func(tx *sql.Tx) (write bool, err error) {
		outcome, write, err = n.p.finishOther(ctx, tx, c)
		return write, err
	})
	return outcome, err
}

// end ends a prepared transaction, and reports false if there is none (any more).
func (n *native) end(ctx context.Context, phase Phase, gid string) (bool, error) {
	_, err := n.p.cfg.DB.ExecContext(ctx, endStatement(phase, gid))
	switch {
	case err == nil:
		return true, nil
	case sqlState(err) == undefinedObject:
		return false, nil
	}
	return false, fmt.Errorf("%s prepared transaction: %w", phase, err)
}

func endStatement(phase Phase, gid string) string {
	if phase == PhaseRollback {
		return "ROLLBACK PREPARED '" + gid + "'"
	}
	return "COMMIT PREPARED '" + gid + "'"
}

// find returns the gid of the branch's prepared transaction, "" if there is none.
func (n *native) find(ctx context.Context, c *Call) (string, error) {
	if err := n.bind(ctx, c); err != nil {
		return "", err
	}
	list, err := n.list(ctx, branchPrefix(c))
	if err != nil || len(list) == 0 {
		return "", err
	}
	return list[0].gid, nil
}

// inDoubt lists prepared branches, as Resource says.
func (n *native) inDoubt(ctx context.Context, transaction string, branch uint32, limit int) ([]InDoubt, error) {
	var cluster string
	err := n.p.cfg.DB.QueryRowContext(ctx, `SELECT cluster FROM assent_cluster`).Scan(&cluster)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil // nobody has called yet
	case err != nil:
		return nil, fmt.Errorf("list in doubt: %w", err)
	}
	all, err := n.list(ctx, gidPrefix+cluster+":")
	if err != nil {
		return nil, err
	}
	var list []InDoubt
	for _, held := range all {
		if held.Transaction > transaction || held.Transaction == transaction && held.Branch > branch {
			list = append(list, held.InDoubt)
		}
	}
	slices.SortFunc(list, func(a, b InDoubt) int {
		return cmp.Or(cmp.Compare(a.Transaction, b.Transaction), cmp.Compare(a.Branch, b.Branch))
	})
	return list[:min(limit, len(list))], nil
}

type heldBranch struct {
	InDoubt
	gid string
}

// list returns this database's prepared transactions whose gid is ours and begins
// with prefix. There are at most max_prepared_transactions.
func (n *native) list(ctx context.Context, prefix string) ([]heldBranch, error) {
	rows, err := n.p.cfg.DB.QueryContext(ctx, `SELECT gid, (extract(epoch FROM prepared) * 1000)::bigint FROM pg_prepared_xacts
		WHERE database = current_database() AND starts_with(gid, $1)`, prefix)
	if err != nil {
		return nil, fmt.Errorf("look for prepared transactions: %w", err)
	}
	defer rows.Close()
	var list []heldBranch
	for rows.Next() {
		var h heldBranch
		if err := rows.Scan(&h.gid, &h.SinceMs); err != nil {
			return nil, fmt.Errorf("look for prepared transactions: %w", err)
		}
		var ours bool
		if h.Transaction, h.Branch, ours = parseGID(h.gid); ours {
			list = append(list, h)
		}
	}
	return list, rows.Err()
}

// bind refuses the calls of any cluster but the first that called.
func (n *native) bind(ctx context.Context, c *Call) error {
	switch {
	case !validID(c.Transaction): // it will stand in a statement
		return fmt.Errorf("%q is not a transaction id", clip(c.Transaction, 64))
	case !validCluster(c.Cluster):
		return fmt.Errorf("%w: the call names no cluster", ErrCluster)
	}
	bound := n.cluster.Load()
	if bound == nil {
		var cluster string
		err := n.p.transact(ctx, n.p.bookkeeping, func(tx *sql.Tx) (bool, error) {
			if _, err := tx.ExecContext(ctx, `INSERT INTO assent_cluster (cluster) VALUES ($1) ON CONFLICT DO NOTHING`, c.Cluster); err != nil {
				return false, err
			}
			return true, tx.QueryRowContext(ctx, `SELECT cluster FROM assent_cluster`).Scan(&cluster)
		})
		if err != nil {
			return fmt.Errorf("bind the database to its cluster: %w", err)
		}
		bound = &cluster
		n.cluster.Store(bound)
	}
	if c.Cluster != *bound {
		return fmt.Errorf("%w: this database serves %s, the call is of %s", ErrCluster, *bound, c.Cluster)
	}
	return nil
}

const (
	gidPrefix      = "assent:"
	gidDigestBytes = 16 // hex digits of the digest in a gid
)

// branchPrefix is the gid without the digest, which commit and rollback do not carry.
func branchPrefix(c *Call) string {
	return gidPrefix + c.Cluster + ":" + c.Transaction + ":" + strconv.FormatUint(uint64(c.Branch), 10) + ":"
}

func gidOf(c *Call) string { return branchPrefix(c) + c.Digest[:min(gidDigestBytes, len(c.Digest))] }

// parseGID takes a gid apart, and accepts only what gidOf can have made: it is
// quoted into statements.
func parseGID(gid string) (transaction string, branch uint32, ours bool) {
	parts := strings.Split(gid, ":")
	if len(parts) != 5 || parts[0]+":" != gidPrefix || !validCluster(parts[1]) || !validID(parts[2]) {
		return "", 0, false
	}
	number, err := strconv.ParseUint(parts[3], 10, 32)
	if err != nil || strconv.FormatUint(number, 10) != parts[3] || len(parts[4]) != gidDigestBytes || strings.Trim(parts[4], "0123456789abcdef") != "" {
		return "", 0, false
	}
	return parts[2], uint32(number), true
}

// preparedVerdict is why an error of a prepare is a vote no, or empty.
func preparedVerdict(err error) string {
	if reason := postgresVerdict(err); reason != "" {
		return reason
	}
	state := sqlState(err)
	var preparing *prepareError
	if errors.As(err, &preparing) {
		switch {
		case state == outOfSlots:
			return "the database holds as many prepared transactions as max_prepared_transactions allows"
		case state != "" && state != idleTimeout && !slices.ContainsFunc(connectionClasses, func(class string) bool { return strings.HasPrefix(state, class) }):
			return serverMessage(err)
		}
		return ""
	}
	if postgresRetryable(err) || state == lockNotAvailable || strings.HasPrefix(state, integrityClass) {
		return serverMessage(err)
	}
	return ""
}

// connectionClasses are of errors after which a transaction may be prepared all
// the same: lost connections, a server that stops, and what is broken inside it.
var connectionClasses = []string{"08", "57", "58", "F0", "XX"}

func checkPrepared(ctx context.Context, db *sql.DB) error {
	if err := checkPostgres(ctx, db); err != nil {
		return err
	}
	var slots int
	if err := db.QueryRowContext(ctx, `SELECT current_setting('max_prepared_transactions')::int`).Scan(&slots); err != nil {
		return fmt.Errorf("ask the PostgreSQL server for max_prepared_transactions: %w", err)
	}
	if slots == 0 {
		return errors.New("PostgreSQL has max_prepared_transactions = 0: set it to the number of branches that may be open at once, " +
			"for example ALTER SYSTEM SET max_prepared_transactions = 100, and restart the server")
	}
	res, err := db.ExecContext(ctx, `SELECT 1; SELECT 1 UNION ALL SELECT 2`)
	if err == nil {
		var rows int64
		if rows, err = res.RowsAffected(); err == nil && rows != 2 {
			err = fmt.Errorf("%d rows, want 2", rows)
		}
	}
	if err != nil {
		return fmt.Errorf("the driver does not take several statements in one Exec: use github.com/jackc/pgx/v5/stdlib or github.com/lib/pq: %w", err)
	}
	return nil
}

// checkNothingReserved refuses a database with branches that only a Handler can end.
func checkNothingReserved(ctx context.Context, db *sql.DB) error {
	var reserved bool
	if err := db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM assent_outcome WHERE state = 'prepared')`).Scan(&reserved); err != nil {
		return fmt.Errorf("look for reserved branches: %w", err)
	}
	if reserved {
		return errors.New("branches in this database wait for the Commit or Rollback of a Handler: run the service with PostgreSQL() until they have ended")
	}
	return nil
}
