package assent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/assent-tx/assent"
	"github.com/assent-tx/assent/participant"
)

// A transfer that looks before it leaps: what it reads stays true until it commits.
func ExampleClient_Run() {
	client, err := assent.New(assent.Config{}) // ASSENT_ENDPOINTS, or http://127.0.0.1:7070
	if err != nil {
		panic(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = client.Run(ctx, func(ctx context.Context, tx *assent.Tx) error {
		result, err := tx.Now(ctx, "bank-a", map[string]any{"op": "read", "account": 1}, assent.Update("accounts/1"))
		if err != nil {
			return err
		}
		var account struct{ Balance int }
		if err := json.Unmarshal(result, &account); err != nil {
			return err
		}
		if account.Balance < 30 {
			return fmt.Errorf("only %d left", account.Balance) // rolls back
		}
		if err := tx.Defer(ctx, "bank-a", map[string]any{"transfer": tx.ID(), "account": 1, "amount": -30}, assent.Exclusive("accounts/1")); err != nil {
			return err
		}
		return tx.Defer(ctx, "bank-b", map[string]any{"transfer": tx.ID(), "account": 7, "amount": 30}, assent.Exclusive("accounts/7"))
	})
	var unknown *assent.UnknownOutcomeError
	if errors.As(err, &unknown) {
		fmt.Printf("ask for %s later\n", unknown.ID)
	}
}

// Everything in one request, with an id of the caller's own: it may be sent again.
func ExampleClient_Submit() {
	client, err := assent.New(assent.Config{Endpoints: []string{"http://127.0.0.1:7070"}})
	if err != nil {
		panic(err)
	}
	defer client.Close()
	_, err = client.Submit(context.Background(), assent.Submission{
		ID: assent.NewID(),
		Operations: []assent.Operation{
			{Service: "bank-a", Payload: map[string]any{"transfer": "t1", "account": 1, "amount": -30}, Locks: []assent.Lock{assent.Exclusive("accounts/1")}},
			{Service: "bank-b", Payload: map[string]any{"transfer": "t1", "account": 7, "amount": 30}, Locks: []assent.Lock{assent.Exclusive("accounts/7")}},
		},
	})
	var aborted *assent.AbortedError
	if errors.As(err, &aborted) {
		fmt.Printf("not done: %s\n", aborted.Reason)
	}
}

// A service that takes part in the transactions of its callers: each call adds one
// operation, and the callers know nothing of its keys. They use a participant.Transport
// with participant.ContextWithTransaction(ctx, tx.ID()).
func ExampleClient_Enlist() {
	client, err := assent.New(assent.Config{})
	if err != nil {
		panic(err)
	}
	defer client.Close()
	join := participant.Middleware{Enlist: func(ctx context.Context, transaction string) error {
		_, err := client.Enlist(ctx, transaction, "loyalty/point", assent.StepOperation{Operation: assent.Operation{
			Service: "bank-b", Payload: map[string]any{"transfer": transaction, "account": 2, "amount": 1}, Locks: []assent.Lock{assent.Exclusive("accounts/2")},
		}})
		return err
	}}
	http.Handle("/points", join.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		transaction, _ := participant.TransactionFromContext(r.Context())
		_, _ = fmt.Fprintf(w, "one point more, if %s commits\n", transaction)
	})))
}
