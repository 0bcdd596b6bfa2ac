package participant

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// TransactionHeader carries the id of a transaction in calls between services that
// do not go through the coordinator. It grants nothing: whoever it reaches still
// decides by its own means who may call.
const TransactionHeader = "Assent-Transaction"

type transactionKey struct{}

// ContextWithTransaction returns a context that belongs to a transaction, and says
// so to the calls of a Transport. An id that is not a UUIDv7 in canonical spelling
// is an error.
func ContextWithTransaction(ctx context.Context, id string) (context.Context, error) {
	if !validID(id) {
		return nil, fmt.Errorf("participant: %q is not a UUIDv7 in canonical text", clip(id, 64))
	}
	return context.WithValue(ctx, transactionKey{}, id), nil
}

// TransactionFromContext returns the id of the context's transaction, and false if
// it belongs to none.
func TransactionFromContext(ctx context.Context) (id string, ok bool) {
	id, ok = ctx.Value(transactionKey{}).(string)
	return id, ok
}

// Transport adds the transaction of a request's context to the request, unless it
// names one already. Use it in clients of your own services alone: it tells the id
// to whomever is called.
type Transport struct {
	Base http.RoundTripper // nil: http.DefaultTransport
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	base := t.Base
	if base == nil {
		base = http.DefaultTransport
	}
	if id, ok := TransactionFromContext(r.Context()); ok && r.Header.Get(TransactionHeader) == "" {
		r = r.Clone(r.Context())
		r.Header.Set(TransactionHeader, id)
	}
	return base.RoundTrip(r)
}

// Middleware is the server's side: it makes the transaction that a request names
// that of its context.
type Middleware struct {
	// Enlist, if set, is called for each request with a transaction, before the
	// service. It is where a service adds itself to the transaction, by the
	// coordinator's API: the request is served only if that has succeeded. On an
	// error the request is not served; the error is not told. The answer is 503 with
	// Retry-After, or 409 if something in the error's chain has a method
	// Permanent() bool that says so, as refusals and aborts of the Go client have.
	Enlist func(ctx context.Context, transaction string) error
}

// Handler serves next in the transaction that the request names. A header that is
// not an id, or is there more than once, is answered 400; a request without one is
// served as it is.
func (m Middleware) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		named := r.Header.Values(TransactionHeader)
		if len(named) == 0 {
			next.ServeHTTP(w, r)
			return
		}
		if len(named) > 1 {
			fail(w, http.StatusBadRequest, TransactionHeader+" is given more than once")
			return
		}
		ctx, err := ContextWithTransaction(r.Context(), named[0])
		if err != nil {
			fail(w, http.StatusBadRequest, TransactionHeader+" is not the id of a transaction")
			return
		}
		if m.Enlist != nil {
			if err := m.Enlist(ctx, named[0]); err != nil {
				var e interface{ Permanent() bool }
				if errors.As(err, &e) && e.Permanent() {
					fail(w, http.StatusConflict, "the transaction takes nobody in any more, or not this service")
					return
				}
				w.Header().Set("Retry-After", "1")
				fail(w, http.StatusServiceUnavailable, "the service could not join the transaction")
				return
			}
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
