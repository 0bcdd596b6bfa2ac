package server

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/assent-tx/assent/internal/node"
)

// discard answers at once and keeps nothing.
type discard struct{ Coordinator }

func (discard) Submit(_ context.Context, s node.Submission) (node.Transaction, error) {
	return node.Transaction{ID: s.ID, State: "committed", Began: someTime, Branches: []node.Branch{
		{ID: "1", Service: "bank-a", State: "committed", Vote: "yes", Operations: 1},
		{ID: "2", Service: "bank-b", State: "committed", Vote: "yes", Operations: 1},
	}}, nil
}

// BenchmarkSubmit is the API's own work for one submission: decode, check, answer.
func BenchmarkSubmit(b *testing.B) {
	s := newServer(b, &fake{}, Limits{})
	s.coordinator = discard{s.coordinator}
	body := `{"id":"` + someID + `","operations":[{"service":"bank-a","payload":{"transfer":"t1","account":1,"amount":-30},"locks":[{"key":"accounts/1"}]},` +
		`{"service":"bank-b","payload":{"transfer":"t1","account":7,"amount":30},"locks":[{"key":"accounts/7"}]}],"timeout":"5s"}`
	h := s.Handler()
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest(http.MethodPost, "/v1/transactions", strings.NewReader(body))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			b.Fatal(w.Body)
		}
	}
}
