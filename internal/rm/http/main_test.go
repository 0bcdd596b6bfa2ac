package rmhttp

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/assent-tx/assent/internal/rm"
	"github.com/assent-tx/assent/internal/txnid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const deadline = 20 * time.Second // for what must happen; never reached by a passing test

// newClient is closed, and with it every call ended, before the test's servers are.
func newClient(t testing.TB, cfg Config) *Client {
	t.Helper()
	cl := New(cfg)
	t.Cleanup(cl.Close)
	return cl
}

func serve(t testing.TB, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// at is an endpoint with generous timeouts below url.
func at(url string) rm.Endpoint {
	return rm.Endpoint{
		PrepareURL: url + "/prepare", CommitURL: url + "/commit", RollbackURL: url + "/rollback", StatusURL: url + "/status", ExecuteURL: url + "/execute",
		ReadOnly: true, OnePhase: true, MaxInFlight: 16, PrepareTimeout: deadline, FinishTimeout: deadline,
	}
}

func call(phase rm.Phase) *rm.Call {
	c := &rm.Call{
		Phase: phase, Cluster: "00112233445566778899aabbccddeeff", Service: "ledger", Txn: txnid.New(1764000000000, [10]byte{1, 2, 3}),
		Branch: 2, Attempt: 3, Term: 4, Shards: 1, Token: "0001",
	}
	if phase.Works() {
		c.Operations = [][]byte{[]byte(`{"amount":5}`), []byte(`"x"`)}
	}
	return c
}

func ofBranch(branch uint32, phase rm.Phase) *rm.Call {
	c := call(phase)
	c.Branch = branch
	return c
}

// ask runs one call to its end.
func ask(t testing.TB, cl *Client, c *rm.Call, e rm.Endpoint) rm.Result {
	t.Helper()
	got := make(chan rm.Result, 1)
	cl.Call(c, e, func(r rm.Result) { got <- r })
	return receive(t, got)
}

func receive[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(deadline):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}
