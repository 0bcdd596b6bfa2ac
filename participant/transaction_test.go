package participant_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/assent-tx/assent/participant"
)

// told serves the transaction of the request's context.
var told = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	tx, ok := participant.TransactionFromContext(r.Context())
	fmt.Fprint(w, tx, ok)
})

// A transaction goes from a client's context through a service to the next one.
func TestTransactionTravels(t *testing.T) {
	last := httptest.NewServer(participant.Middleware{}.Handler(told))
	t.Cleanup(last.Close)
	client := &http.Client{Transport: &participant.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	get := func(ctx context.Context, url, header string) string {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if header != "" {
			r.Header.Set(participant.TransactionHeader, header)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got := r.Header.Get(participant.TransactionHeader); got != header {
			t.Errorf("the caller's request was changed: %q", got)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	between := httptest.NewServer(participant.Middleware{}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, get(r.Context(), last.URL, ""))
	})))
	t.Cleanup(between.Close)
	tx, other := floorID(1)[:35]+"a", id(2) // with a letter, to be spelled otherwise
	ctx, err := participant.ContextWithTransaction(t.Context(), tx)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ctx          context.Context //nolint:containedctx // what is tested
		header, want string
	}{
		{ctx, "", tx + "true"},
		{ctx, other, other + "true"}, // said explicitly
		{t.Context(), "", "false"},
		{t.Context(), other, other + "true"},
	} {
		if got := get(c.ctx, between.URL, c.header); got != c.want {
			t.Errorf("header %q: %s, want %s", c.header, got, c.want)
		}
	}
	for _, bad := range []string{"", "1", strings.ToUpper(tx), tx + " ", tx[:35]} {
		if ctx, err := participant.ContextWithTransaction(t.Context(), bad); err == nil {
			t.Errorf("%q: %v", bad, ctx)
		}
	}
}

func TestMiddleware(t *testing.T) {
	tx := floorID(1)[:35] + "a" // with a letter, to be spelled otherwise
	var joined []string
	var fails error
	h := participant.Middleware{Enlist: func(ctx context.Context, transaction string) error {
		if in, ok := participant.TransactionFromContext(ctx); !ok || in != transaction {
			t.Errorf("enlisted %s in the context of %q", transaction, in)
		}
		joined = append(joined, transaction)
		return fails
	}}.Handler(told)
	ask := func(headers ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		for _, v := range headers {
			r.Header.Add(participant.TransactionHeader, v)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	if w := ask(); w.Code != 200 || w.Body.String() != "false" || len(joined) != 0 {
		t.Errorf("without: %d %s, joined %v", w.Code, w.Body, joined)
	}
	if w := ask(tx); w.Code != 200 || w.Body.String() != tx+"true" || len(joined) != 1 {
		t.Errorf("%d %s, joined %v", w.Code, w.Body, joined)
	}
	for _, bad := range [][]string{{""}, {"x"}, {strings.ToUpper(tx)}, {tx, tx}, {tx, id(2)}, {tx + "," + tx}} {
		if w := ask(bad...); w.Code != 400 || len(joined) != 1 {
			t.Errorf("%q: %d %s, joined %v", bad, w.Code, w.Body, joined)
		}
	}
	fails = errors.New("coordinator http://10.0.0.1 says no")
	if w := ask(tx); w.Code != 503 || strings.Contains(w.Body.String(), "10.0.0.1") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
