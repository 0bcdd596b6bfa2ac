// Package assent is the Go client of the Assent transaction coordinator: atomic,
// serializable transactions over services and databases that know nothing of each
// other.
//
// Run runs a function as a transaction, step by step; what it reads through the
// transaction stays true until the commit. Submit sends one as a whole.
//
//	client, err := assent.New(assent.Config{})
//	...
//	err = client.Run(ctx, func(ctx context.Context, tx *assent.Tx) error {
//		balance, err := tx.Now(ctx, "bank-a", map[string]any{"op": "read", "account": 1}, assent.Update("accounts/1"))
//		...
//		return tx.Defer(ctx, "bank-b", posting, assent.Exclusive("accounts/7"))
//	})
//
// Every request carries an id or a step number, so the client repeats it freely: after
// a broken connection, a restart of the coordinator, an answer that never came. A
// transaction that lost a deadlock, or a lock's time-out, is tried again and keeps its
// age, so it cannot starve. What is left for the caller are three errors: *Error (the
// request is wrong), *AbortedError (it did not happen), *UnknownOutcomeError (nobody
// could say in time; ask later with the id).
package assent
