// Package participant makes a Go service a participant of Assent transactions.
//
// The service implements Handler on its own database (Preparer: see below): Prepare reserves, Commit
// confirms, Rollback cancels. The package does what every participant must do
// and few get right: one execution per branch under duplicates (also from several
// processes), votes that survive a crash, tombstones, ordering, digest and token
// checks. It keeps one outcome row per branch in the service's database and
// writes it first, in the same local transaction as the work, so that row and
// work are both there or both not.
//
//	            prepare: yes                  commit
//	 (no row) ───────────────► prepared ───────────────► committed
//	   │ │ │                       │ rollback                ▲
//	   │ │ │  rollback             ▼                         │
//	   │ │ └─────────────────► rolled_back ◄──┐ rollback     │
//	   │ │    prepare: read_only              │              │
//	   │ ├─────────────────► read_only ───────┘              │
//	   │ │    prepare: no                                    │
//	   │ └─────────────────► refused                         │
//	   │      one-phase prepare: yes                         │
//	   └─────────────────────────────────────────────────────┘
//
//	prepare   in prepared or committed repeats the vote and the results, in
//	          rolled_back or refused votes no, in read_only repeats read_only
//	commit    without a row: 404 {"outcome":"unknown"}, nothing is written;
//	          in rolled_back or refused: 409 {"outcome":"rolled_back"}
//	rollback  without a row writes rolled_back, the tombstone; in committed:
//	          409 {"outcome":"committed"}
//	status    reads, never writes
//
// prepared has no expiry: only the coordinator's commit or rollback ends it.
// Rows that ended are deleted once the coordinator says that it has forgotten
// their transactions (forgotten_below).
//
// A call with a lower term than the highest seen for its branch, or with an older
// fencing token, is answered 412 and changes nothing. (On prepare a 409 would be
// a no, which a stale message may not say.)
//
// A service that implements Executor also executes operations before the prepare, so
// that an interactive client sees their results: in a local transaction that stays
// open between the calls. Its outcome row keeps others out, but nothing of it is
// durable: a branch whose open transaction was lost votes no.
//
//	           execute               prepare: yes
//	(no row) ──────────► (open) ─────────────────────► prepared, committed
//	                        │ rollback, refusal,
//	                        │ idle limit, restart
//	                        └──────────────────► rolled_back, refused, (no row)
//
// The database is SQLite or PostgreSQL. On PostgreSQL there is a second way: with
// PostgreSQLPrepared the service implements Preparer alone, works on the real rows
// as in any local transaction, and the database holds what it did from PREPARE
// TRANSACTION to COMMIT PREPARED or ROLLBACK PREPARED. The outcomes and answers
// are the same; "prepared" is then no row, but a prepared transaction.
//
//	                         PostgreSQL, Handler        PostgreSQLPrepared, Preparer
//	service writes           Prepare, Commit, Rollback  Prepare
//	from prepare to commit   the service's reservation  the rows are locked by the server
//	others read meanwhile    what the service shows     the state before
//	server needs             nothing                    max_prepared_transactions
//	coordinator away long    reservations stay          locks stay, and hold back VACUUM
//
// Middleware and Transport carry a transaction's id between services that call each
// other.
//
// Layers: Handler or Preparer is the service's work on a *sql.Tx; Participant keeps
// outcome rows around it; NewHandler is the HTTP binding over any Resource, for
// participants that keep their outcomes elsewhere.
package participant
