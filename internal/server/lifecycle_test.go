package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	assentv1 "github.com/assent-tx/assent/api/assent/v1"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
)

// waiting submits like a coordinator whose decision never comes: it answers the
// current state when the wait ends.
func waiting(entered chan<- struct{}) func(context.Context, node.Submission) (node.Transaction, error) {
	return func(ctx context.Context, _ node.Submission) (node.Transaction, error) {
		if entered != nil {
			entered <- struct{}{}
		}
		<-ctx.Done()
		return node.Transaction{ID: someID, State: "preparing"}, nil
	}
}

// serve runs s on loopback; stop waits until Serve has returned.
func serve(t *testing.T, s *Server) (httpURL, grpcAddr string) {
	t.Helper()
	hl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(hl, gl) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return "http://" + hl.Addr().String(), gl.Addr().String()
}

func newClient(t *testing.T) *http.Client {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

const someBody = `{"operations":[{"service":"a","payload":1}]}`

func TestWaitOutlivesTheRequest(t *testing.T) {
	s := newServer(t, &fake{submit: waiting(nil)}, Limits{})
	if w := ask(t, s, "POST", "/v1/transactions", someBody, TimeoutHeader, "20ms"); w.Code != 200 || !strings.Contains(w.Body.String(), `"preparing"`) {
		t.Errorf("REST: %d %s", w.Code, w.Body)
	}
	// Over gRPC the client ends its wait by itself: the server's ends before.
	const timeout, before = 20 * time.Second, 250 * time.Millisecond
	s = newServer(t, &fake{submit: func(ctx context.Context, _ node.Submission) (node.Transaction, error) {
		if end, ok := ctx.Deadline(); !ok || time.Until(end) > timeout-before {
			t.Errorf("gRPC: the wait ends in %v, %v; the client's in %v at most", time.Until(end), ok, timeout)
		}
		return node.Transaction{ID: someID, State: "preparing"}, nil
	}}, Limits{})
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	submitsPreparing(ctx, t, s)
}

// submitsPreparing submits over gRPC what is preparing when it is answered.
func submitsPreparing(ctx context.Context, t *testing.T, s *Server) {
	t.Helper()
	tx, err := assentv1.NewTransactionServiceClient(dial(t, s)).SubmitTransaction(ctx, &assentv1.SubmitTransactionRequest{
		Operations: []*assentv1.Operation{{Service: "a", Payload: []byte("1")}},
	})
	if err != nil || tx.GetState() != assentv1.TransactionState_TRANSACTION_STATE_PREPARING {
		t.Errorf("gRPC: %v, %v", tx, err)
	}
}

func TestDefaultDeadline(t *testing.T) {
	s := newServer(t, &fake{submit: waiting(nil)}, Limits{RequestTimeout: 20 * time.Millisecond})
	if w := ask(t, s, "POST", "/v1/transactions", someBody); w.Code != 200 || !strings.Contains(w.Body.String(), `"preparing"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	submitsPreparing(context.Background(), t, s) // without a deadline of the client's
}

// TestWaitOutlivesTheReadTimeout: the time limits of reading a body and of writing
// an answer do not bound the wait between them, and the connection stays in use.
func TestWaitOutlivesTheReadTimeout(t *testing.T) {
	s := newServer(t, &fake{submit: waiting(nil)}, Limits{ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second, RequestTimeout: 2750 * time.Millisecond})
	url, _ := serve(t, s)
	c := newClient(t)
	for range 2 {
		begin := time.Now()
		r, err := c.Post(url+"/v1/transactions", "application/json", strings.NewReader(someBody))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if r.StatusCode != 200 || !strings.Contains(string(body), `"preparing"`) {
			t.Fatalf("%d %s", r.StatusCode, body)
		}
		if took := time.Since(begin); took < 2400*time.Millisecond {
			t.Fatalf("the wait was cut short after %v", took)
		}
	}
}

func TestSlowBodyIsCutOff(t *testing.T) {
	s := newServer(t, &fake{}, Limits{ReadTimeout: 50 * time.Millisecond})
	url, _ := serve(t, s)
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(conn, "POST /v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.StatusCode != 400 {
		t.Errorf("got %d", r.StatusCode)
	}
}

func TestShutdownLetsRequestsFinishThenEndsTheirWaits(t *testing.T) {
	entered := make(chan struct{}, 2)
	s := newServer(t, &fake{ready: true, submit: waiting(entered)}, Limits{})
	url, grpcAddr := serve(t, s)
	c := newClient(t)
	answers := make(chan string, 2)
	go func() {
		r, err := c.Post(url+"/v1/transactions", "application/json", strings.NewReader(someBody))
		if err != nil {
			answers <- err.Error()
			return
		}
		body, _ := io.ReadAll(r.Body)
		_ = r.Body.Close()
		answers <- string(body)
	}()
	conn, err := grpc.NewClient(grpcAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx := testContext(t)
	go func() {
		tx, err := assentv1.NewTransactionServiceClient(conn).SubmitTransaction(ctx, &assentv1.SubmitTransactionRequest{
			Operations: []*assentv1.Operation{{Service: "a", Payload: []byte("1")}},
		})
		answers <- fmt.Sprint(tx.GetState(), err)
	}()
	<-entered
	<-entered
	patience, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Shutdown(patience) }()
	// While submissions wait, it says that it is about to end, takes no new work, and
	// answers what is asked.
	for {
		r, err := c.Get(url + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Body.Close()
		if r.StatusCode == http.StatusServiceUnavailable {
			break
		}
	}
	if r, err := c.Post(url+"/v1/transactions", "application/json", strings.NewReader(someBody)); err != nil || r.StatusCode != 503 || r.Header.Get("Retry-After") == "" {
		t.Errorf("new work while shutting down: %v %v", r, err)
	} else {
		_ = r.Body.Close()
	}
	if r, err := c.Get(url + "/v1/transactions/" + someID); err != nil || r.StatusCode != 200 {
		t.Errorf("a question while shutting down: %v %v", r, err)
	} else {
		_ = r.Body.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	for range 2 {
		if a := <-answers; !strings.Contains(strings.ToLower(a), "preparing") {
			t.Errorf("a waiting request was answered %q", a)
		}
	}
	if r, err := c.Get(url + "/readyz"); err == nil {
		_ = r.Body.Close()
		t.Error("the listener is still open")
	}
}

func TestOverload(t *testing.T) {
	entered := make(chan struct{})
	release := make(chan struct{})
	f := &fake{submit: func(context.Context, node.Submission) (node.Transaction, error) {
		entered <- struct{}{}
		<-release
		return node.Transaction{ID: someID, State: "committed"}, nil
	}}
	s := newServer(t, f, Limits{MaxRequestsInFlight: 1})
	done := make(chan int)
	go func() { done <- ask(t, s, "POST", "/v1/transactions", someBody).Code }()
	<-entered
	w := ask(t, s, "POST", "/v1/transactions", someBody)
	if e := readError(t, w); w.Code != 429 || e.Details[0].Reason != "OVERLOADED" || w.Header().Get("Retry-After") == "" {
		t.Errorf("a further submission: %d %s", w.Code, w.Body)
	}
	if w := ask(t, s, "GET", "/v1/transactions/"+someID, ""); w.Code != 200 {
		t.Errorf("a question while submissions are refused: %d %s", w.Code, w.Body)
	}
	close(release)
	if code := <-done; code != 200 {
		t.Errorf("the first: %d", code)
	}
	go func() { <-entered }()
	if w := ask(t, s, "POST", "/v1/transactions", someBody); w.Code != 200 {
		t.Errorf("a later one: %d %s", w.Code, w.Body)
	}
}

func TestBytesInFlightAreBounded(t *testing.T) {
	s := newServer(t, &fake{}, Limits{MaxRequestBytesInFlight: int64(len(someBody)) - 1})
	if w := ask(t, s, "POST", "/v1/transactions", someBody); w.Code != 429 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for _, kind := range []work{submission, step, query} { // others hold what may be held, and an eighth
		for _, bytes := range []int64{1, smallBytes + 1} {
			s.admission.bytes.Store(s.limits.MaxRequestBytesInFlight * 9 / 8)
			leave, err := s.admission.enter(kind, bytes)
			if refused := kind == submission || kind == step && bytes > smallBytes; (err != nil) != refused {
				t.Errorf("work of kind %d and %d bytes: %v", kind, bytes, err)
			}
			if err == nil {
				leave()
			}
			s.admission.bytes.Store(0)
		}
	}
	begun := fmt.Sprintf(`{"step":1,"operations":[{"service":"a","payload":%q}]}`, strings.Repeat("x", 2*smallBytes))
	if w := ask(t, s, "POST", "/v1/transactions/"+someID+"/operations", begun); w.Code != 429 {
		t.Errorf("a large step: %d %s", w.Code, w.Body)
	}
	if held := s.admission.bytes.Load(); held != 0 {
		t.Errorf("%d bytes stay counted", held)
	}
}

func TestErrorsOfTheCoordinator(t *testing.T) {
	overloaded := reason.New(reason.Overloaded, "later", "20000 transactions are open")
	overloaded.RetryAfterMs = 1500
	for _, c := range []struct {
		name       string
		err        error
		status     int
		reason     string
		retryAfter string
	}{
		{"overloaded", overloaded, 429, "OVERLOADED", "2"},
		{"wrapped", fmt.Errorf("submit: %w", overloaded), 429, "OVERLOADED", "2"},
		{"not ready", reason.New(reason.NotReady, "", "no leader"), 503, "NOT_READY", "1"},
		{"unknown outcome", reason.New(reason.OutcomeUnknown, "ask", "the log did not answer"), 504, "OUTCOME_UNKNOWN", ""},
		{"deadline", context.DeadlineExceeded, 504, "OUTCOME_UNKNOWN", ""},
		{"expired", reason.New(reason.IDExpired, "", "too old"), 410, "ID_EXPIRED", ""},
		{"conflict", reason.New(reason.IDConflict, "", "other body"), 409, "ID_CONFLICT", ""},
		{"unknown service", reason.New(reason.UnknownService, "register it", "no service a"), 400, "UNKNOWN_SERVICE", ""},
		{"a code of tomorrow", reason.New("BRAND_NEW", "", "x"), 500, "BRAND_NEW", ""},
		{"anything else", io.ErrUnexpectedEOF, 500, "INTERNAL", ""},
	} {
		f := &fake{submit: func(context.Context, node.Submission) (node.Transaction, error) { return node.Transaction{}, c.err }}
		w := ask(t, newServer(t, f, Limits{}), "POST", "/v1/transactions", someBody)
		if e := readError(t, w); w.Code != c.status || e.Details[0].Reason != c.reason || w.Header().Get("Retry-After") != c.retryAfter {
			t.Errorf("%s: %d, Retry-After %q, %s", c.name, w.Code, w.Header().Get("Retry-After"), w.Body)
		}
	}
	if overloaded.Details != nil || overloaded.RetryAfterMs != 1500 {
		t.Error("a shared error was changed")
	}
}

func TestOddBytesCostNoAnswer(t *testing.T) {
	odd := node.Transaction{ID: someID, State: "committing", Branches: []node.Branch{{
		ID: "1", Service: "a", State: "committing", LastError: "\xff\x00<script>", Results: [][]byte{[]byte(`{"x":1,"x":2}`)},
	}}}
	f := &fake{submit: func(context.Context, node.Submission) (node.Transaction, error) { return odd, nil }}
	s := newServer(t, f, Limits{})
	if w := ask(t, s, "POST", "/v1/transactions", someBody); w.Code != 200 || !strings.Contains(w.Body.String(), `{"x":1,"x":2}`) || w.Header().Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("REST: %d %s", w.Code, w.Body)
	}
	if _, err := assentv1.NewTransactionServiceClient(dial(t, s)).SubmitTransaction(testContext(t), &assentv1.SubmitTransactionRequest{
		Operations: []*assentv1.Operation{{Service: "a", Payload: []byte("1")}},
	}); err != nil {
		t.Errorf("gRPC: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	s := newServer(t, &fake{}, Limits{})
	ask(t, s, "POST", "/v1/transactions", someBody)
	ask(t, s, "POST", "/v1/transactions", `{}`)
	r := httptest.NewRequest("GET", "/metrics", nil)
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	for _, line := range []string{
		`assent_api_requests_total{code="OK",method="SubmitTransaction",protocol="rest"} 1`,
		`assent_api_requests_total{code="EMPTY_OPERATIONS",method="SubmitTransaction",protocol="rest"} 1`,
		`assent_api_request_seconds_count{method="SubmitTransaction",protocol="rest"} 2`,
		`assent_api_requests_in_flight 0`,
	} {
		if !strings.Contains(w.Body.String(), line) {
			t.Errorf("no line %s in\n%s", line, w.Body)
		}
	}
}
