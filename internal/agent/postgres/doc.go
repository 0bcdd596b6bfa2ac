// Package postgres dresses a PostgreSQL database as a participant: operations are
// SQL statements, and a branch is a prepared transaction.
//
//	prepare ──► participant SDK ──► outcome row, statements (work.go), PREPARE TRANSACTION
//	execute ──► SDK ──► outcome row, statements, in a local transaction that stays open until the prepare
//	commit, rollback ──► SDK ──► COMMIT PREPARED, ROLLBACK PREPARED, tombstone
//	upkeep (register.go)    the registration is put again when it is missing or another
//	sweep (sweep.go)        prepared transactions that nobody ends: ask the coordinator, then end them
//
// Votes, duplicates, order and recovery are the SDK's (participant.PostgreSQLPrepared).
package postgres
