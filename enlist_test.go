package assent_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assent-tx/assent"
	"github.com/assent-tx/assent/participant"
)

// crediting is a service that takes part in the transactions of those who call it: it
// adds its own operation, and its callers know nothing of its keys.
func crediting(t *testing.T, c *assent.Client) *httptest.Server {
	t.Helper()
	join := participant.Middleware{Enlist: func(ctx context.Context, id string) error {
		_, err := c.Enlist(ctx, id, "credit", assent.StepOperation{Operation: assent.Operation{
			Service: "bank-b", Payload: posting(id, 2, 5), Locks: []assent.Lock{assent.Exclusive("accounts/2")},
		}})
		return err
	}}
	web := httptest.NewServer(join.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, _ := participant.TransactionFromContext(r.Context())
		_, _ = fmt.Fprint(w, id)
	})))
	t.Cleanup(web.Close)
	return web
}

// call calls the service as a part of the transaction.
func call(ctx context.Context, t *testing.T, url, id string) error {
	t.Helper()
	ctx, err := participant.ContextWithTransaction(ctx, id)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	resp, err := (&http.Client{Transport: &participant.Transport{Base: base}}).Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

func TestEnlist(t *testing.T) {
	c := client(t, coordinator(t), nil)
	service := crediting(t, c)
	var id string
	if err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
		id = tx.ID()
		if err := tx.Defer(ctx, "bank-a", posting("t1", 1, -5), assent.Exclusive("accounts/1")); err != nil {
			return err
		}
		for range 2 { // the key makes the second call a repetition
			if err := call(ctx, t, service.URL, id); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if a, b := balance(t, c, "bank-a", 1), balance(t, c, "bank-b", 2); a != 95 || b != 105 {
		t.Errorf("balances %d and %d", a, b)
	}
	// Whoever comes after the commit is told so.
	_, err := c.Enlist(t.Context(), id, "late", assent.StepOperation{Operation: assent.Operation{Service: "bank-b", Payload: posting("late", 2, 5), Locks: []assent.Lock{assent.Exclusive("accounts/2")}}})
	var refused *assent.Error
	if !errors.As(err, &refused) || refused.Reason != assent.ReasonAlreadyDecided {
		t.Errorf("after the commit: %v", err)
	}
	if err := call(t.Context(), t, service.URL, id); err == nil || !strings.HasPrefix(err.Error(), "409 ") {
		t.Errorf("a call after the commit: %v", err)
	}
	// And after an abort.
	err = c.Run(t.Context(), func(_ context.Context, tx *assent.Tx) error {
		id = tx.ID()
		return errTooLittle
	})
	if !errors.Is(err, errTooLittle) {
		t.Fatal(err)
	}
	_, err = c.Enlist(t.Context(), id, "late", assent.StepOperation{Operation: assent.Operation{Service: "bank-b", Payload: posting("late", 2, 5), Locks: []assent.Lock{assent.Exclusive("accounts/2")}}})
	var aborted *assent.AbortedError
	if !errors.As(err, &aborted) || aborted.ID != id || aborted.Reason != assent.ReasonClientRollback {
		t.Errorf("after the abort: %v", err)
	}
	if err := call(t.Context(), t, service.URL, id); err == nil || !strings.HasPrefix(err.Error(), "409 ") {
		t.Errorf("a call after the abort: %v", err)
	}
}

// TestRunVictimUnseen: the function learns only by a failing service that its transaction
// gave way to an elder; it is tried again all the same.
func TestRunVictimUnseen(t *testing.T) {
	c := client(t, coordinator(t), nil)
	service := crediting(t, c)
	tries := 0
	err := c.Run(t.Context(), func(ctx context.Context, elder *assent.Tx) error {
		time.Sleep(10 * time.Millisecond) // the ages differ
		return c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
			if tries++; tries == 1 {
				if err := tx.Lock(ctx, assent.Exclusive("k").Of("bank-a")); err != nil {
					return err
				}
				if err := elder.Lock(ctx, assent.Exclusive("k").Of("bank-a")); err != nil {
					return err
				}
			}
			return call(ctx, t, service.URL, tx.ID())
		})
	})
	if err != nil || tries != 2 {
		t.Errorf("%v after %d tries", err, tries)
	}
	if b := balance(t, c, "bank-b", 2); b != 105 {
		t.Errorf("balance %d", b)
	}
}

// TestManyOperationsOfOneBranch: the steps of a transaction may bring more operations to
// one service than one step may have.
func TestManyOperationsOfOneBranch(t *testing.T) {
	c := client(t, coordinator(t), nil)
	err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
		for i := range 300 {
			if err := tx.Defer(ctx, "bank-a", posting(fmt.Sprint("m", i), 1, 1), assent.Exclusive("accounts/1")); err != nil {
				return err
			}
		}
		return nil
	}, assent.WithTimeout(2*time.Minute), assent.WithTries(1))
	if err != nil {
		t.Error(err)
	}
}

// holding runs do while an older transaction holds accounts/2 of bank-b; do may end that.
func holding(t *testing.T, c *assent.Client, do func(release func())) {
	t.Helper()
	holds, released := make(chan struct{}), make(chan struct{})
	var once sync.Once
	release := func() { once.Do(func() { close(released) }) }
	defer release()
	var holder sync.WaitGroup
	defer holder.Wait()
	failed := make(chan error, 1)
	holder.Go(func() {
		failed <- c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
			if err := tx.Lock(ctx, assent.Exclusive("accounts/2").Of("bank-b")); err != nil {
				return err
			}
			close(holds)
			<-released
			return nil
		}, assent.WithTries(1))
	})
	select {
	case <-holds:
	case err := <-failed:
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond) // it is older
	do(release)
	release()
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

// joining is a service that adds a point to account 2 of bank-b, within a time if there is one.
func joining(t *testing.T, c *assent.Client, within time.Duration) (web *httptest.Server, served *atomic.Int64) {
	t.Helper()
	served = new(atomic.Int64)
	join := participant.Middleware{Enlist: func(ctx context.Context, id string) error {
		if within > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, within)
			defer cancel()
		}
		_, err := c.Enlist(ctx, id, "point", assent.StepOperation{Operation: assent.Operation{
			Service: "bank-b", Payload: posting(id, 2, 5), Locks: []assent.Lock{assent.Exclusive("accounts/2")},
		}})
		return err
	}}
	web = httptest.NewServer(join.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served.Add(1) })))
	t.Cleanup(web.Close)
	return web, served
}

// TestEnlistUnanswered: a service that did not join, for all that it knows, is not in what
// its caller commits without it.
func TestEnlistUnanswered(t *testing.T) {
	url := coordinator(t)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	var rolledBack atomic.Bool
	c := client(t, url, roundTripper(func(req *http.Request) (*http.Response, error) {
		resp, err := transport.RoundTrip(req)
		if strings.HasSuffix(req.URL.Path, "/rollback") && err == nil && resp.StatusCode == http.StatusOK {
			rolledBack.Store(true)
		}
		return resp, err
	}))
	web, served := joining(t, c, 100*time.Millisecond)
	for try := 1; !rolledBack.Load(); try++ { // which is given up after a second, where the machine stands still
		if try > 5 {
			t.Fatal("nothing was rolled back")
		}
		holding(t, c, func(release func()) {
			err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
				defer release()
				if err := tx.Defer(ctx, "bank-a", posting(tx.ID(), 1, -5), assent.Exclusive("accounts/1")); err != nil {
					return err
				}
				if err := call(ctx, t, web.URL, tx.ID()); err == nil || !strings.HasPrefix(err.Error(), "503 ") {
					t.Errorf("the service: %v", err)
				}
				return nil // without the point, then
			}, assent.WithTries(1))
			if rolledBack.Load() && err == nil || served.Load() > 0 {
				t.Errorf("who could not join has taken part: %v, served %d times", err, served.Load())
			}
		})
	}
}

// TestEnlistAgain: who calls the service gives up and calls again, as clients do that time
// each try: the transaction takes it in, once.
func TestEnlistAgain(t *testing.T) {
	c := client(t, coordinator(t), nil)
	web, served := joining(t, c, 0)
	holding(t, c, func(release func()) {
		err := c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
			hasty, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			if err := call(hasty, t, web.URL, tx.ID()); err == nil {
				t.Error("it joined while its key was held")
			}
			release()
			return call(ctx, t, web.URL, tx.ID())
		}, assent.WithTries(1))
		if err != nil || served.Load() != 1 {
			t.Errorf("%v, served %d times", err, served.Load())
		}
	})
	if b := balance(t, c, "bank-b", 2); b != 105 {
		t.Errorf("balance %d", b)
	}
}

// TestRunVictimBesideAnothersAbort: the function's own error holds the abort of another
// transaction, and this one gave way to an elder: it is tried again.
func TestRunVictimBesideAnothersAbort(t *testing.T) {
	c := client(t, coordinator(t), nil)
	tries := 0
	err := c.Run(t.Context(), func(ctx context.Context, elder *assent.Tx) error {
		time.Sleep(2 * time.Millisecond) // the ages differ
		return c.Run(t.Context(), func(ctx context.Context, tx *assent.Tx) error {
			if tries++; tries > 1 {
				return nil
			}
			if err := tx.Lock(ctx, assent.Exclusive("k").Of("bank-a")); err != nil {
				return err
			}
			if err := elder.Lock(ctx, assent.Exclusive("k").Of("bank-a")); err != nil { // tx gives way
				return err
			}
			_, err := c.Submit(ctx, assent.Submission{Operations: []assent.Operation{{
				Service: "bank-b", Payload: posting("no", 1, -500), Locks: []assent.Lock{assent.Exclusive("accounts/1")},
			}}})
			return fmt.Errorf("a transaction besides: %w", err) // VOTED_NO
		})
	})
	if err != nil || tries != 2 {
		t.Errorf("%v after %d tries", err, tries)
	}
}
