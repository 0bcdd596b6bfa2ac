package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/assent-tx/assent/internal/serveproc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// assent runs one command line in this process.
func assent(t *testing.T, stdin string, args ...string) (code int, out, errText string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	code = run(ctx, args, &streams{strings.NewReader(stdin), &stdout, &stderr})
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	return code, stdout.String(), stderr.String()
}

// fakeAPI answers every request with one status and body, and records them; not those
// that a client makes beside its own when an answer takes long.
type fakeAPI struct {
	mu       sync.Mutex
	requests []string // METHOD path?query body
	answers  []answer // one after the other; the last one stays
}

type answer struct {
	status int
	body   string
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/readyz" {
		return
	}
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.URL.RequestURI(), body)))
	a := f.answers[0]
	if len(f.answers) > 1 {
		f.answers = f.answers[1:]
	}
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, a.body)
}

func startFake(t *testing.T, answers ...answer) (*fakeAPI, string) {
	t.Helper()
	f := &fakeAPI{answers: answers}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return f, s.URL
}

func refusedBy(reason, hint string) string {
	return fmt.Sprintf(`{"code":3,"message":"something is wrong","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":%q,"domain":"assent","metadata":{"hint":%q}}]}`, reason, hint)
}

const (
	someID      = "019aa1b2-c3d4-7e5f-8a6b-0123456789ab"
	committedTx = `{"id":"` + someID + `","state":"committed","branches":[{"id":"1","service":"a","state":"committed","vote":"yes","operations":1,"attempts":1,"results":[{"n":9007199254740993}]}],"began_at":"2026-11-23T15:54:45.361Z","new_field":1}`
	abortedTx   = `{"id":"` + someID + `","state":"aborting","abort":{"reason":"VOTED_NO","message":"no \u001b[31mfunds","service":"a"},"branches":[{"id":"1","service":"a","state":"refused","vote":"no","operations":1}]}`
	activeTx    = `{"id":"` + someID + `","state":"active","branches":[],"waits_for":{"key":"a/k","mode":"X","for":["x"]}}`
	aService    = `{"name":"a","http":{"prepare":"http://h/p","commit":"http://h/c","rollback":"http://h/r"},"capabilities":["tombstone"],"isolation":"coordinator","require_keys":false,"limits":{"max_in_flight":128,"prepare_timeout":"3s","finish_timeout":"10s"},"generation":"3","state":"active","open_transactions":2}`
)

const aCluster = `{"cluster":"00112233445566778899aabbccddeeff","incarnation":2,"node":"n1","shards":2,"nodes":[` +
	`{"id":"n1@1","name":"n1","peer":"p1:1","http":"http://h1","grpc":"g1:1","state":"up","draining":false,"level":2},` +
	`{"id":"n2@2","name":"n2","peer":"p2:1","http":"http://h2","state":"down","draining":true,"level":2},` +
	`{"id":"n3@3","name":"n3","peer":"p3:1","state":"leaving","draining":false,"level":2}],"placement":[` +
	`{"shard":0,"leader":"n1@1","term":7,"voters":["n1@1","n2@2"],"learners":["n3@3"]},{"shard":1,"leader":"","term":0,"voters":["n1@1"],"learners":[]}]}`

// With --wait a command asks until it is done, or its time is over.
func TestClusterWait(t *testing.T) {
	gone := strings.Replace(aCluster, `,{"id":"n3@3","name":"n3","peer":"p3:1","state":"leaving","draining":false,"level":2}`, "", 1)
	f, url := startFake(t, answer{200, aCluster}, answer{200, aCluster}, answer{503, refusedBy("NOT_READY", "")}, answer{200, gone})
	code, out, errText := assent(t, "", "cluster", "remove", "n3", "--wait", "--url", url)
	if code != 0 || len(f.requests) != 4 || f.requests[1] != "GET /v1/cluster" || strings.Contains(out, "goes on by itself") {
		t.Errorf("exit code %d, asked %q\n%s%s", code, f.requests, out, errText)
	}
	_, url = startFake(t, answer{200, aCluster})
	if code, _, errText := assent(t, "", "cluster", "drain", "n1", "--wait", "--within", "1ms", "--url", url); code != 3 || !strings.Contains(errText, "it leads shards 0") {
		t.Errorf("exit code %d\n%s", code, errText)
	}
}

func TestCommands(t *testing.T) {
	file := filepath.Join(t.TempDir(), "request.json")
	if err := os.WriteFile(file, []byte(`{"id":"`+someID+`","operations":[{"service":"a","payload":9007199254740993}],"wait":"none"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, args, stdin string
		answer            answer
		request           string // in the request
		code              int
		out               []string // in standard output or error
	}{
		{
			name: "submit by flags", args: `txn submit --id ` + someID + ` --op a={"x":[1,2]} --op b=null --op a=3 --lock a=k/1 --shared b=k/2 --timeout 5s --wait completed`,
			answer:  answer{200, committedTx},
			request: `POST /v1/transactions {"id":"` + someID + `","operations":[{"service":"a","payload":{"x":[1,2]},"locks":[{"key":"k/1","mode":"exclusive"}]},{"service":"b","payload":null,"locks":[{"key":"k/2","mode":"shared"}]},{"service":"a","payload":3}],"timeout":"5s","wait":"completed"}`,
			out:     []string{"committed", someID, `{"n":9007199254740993}`},
		},
		{
			name: "submit a file", args: `txn submit ` + file, answer: answer{200, activeTx},
			request: `{"id":"` + someID + `","operations":[{"service":"a","payload":9007199254740993}],"wait":"none"}`, out: []string{"a/k"},
		},
		{name: "submit standard input", args: `txn submit -`, stdin: `{"operations":[{"service":"a","payload":{}}]}`, answer: answer{200, committedTx}, request: `{"id":"01`},
		{name: "submit, aborted", args: `txn submit --op a=1`, answer: answer{200, abortedTx}, code: 1, out: []string{"the transaction aborted: VOTED_NO by a", `"no \x1b[31mfunds"`}},
		{name: "submit, not decided", args: `txn submit --op a=1`, answer: answer{200, activeTx}, code: 3, out: []string{"not decided yet: assent txn get " + someID}},
		{name: "submit, unknown", args: `txn submit --op a=1 --id ` + someID, answer: answer{504, refusedBy("OUTCOME_UNKNOWN", "ask")}, code: 3, out: []string{"repeat it safely with --id " + someID}},
		{name: "submit, refused", args: `txn submit --op a=1`, answer: answer{400, refusedBy("UNKNOWN_SERVICE", "register it")}, code: 4, out: []string{"UNKNOWN_SERVICE: something is wrong", "register it"}},
		{name: "submit, other server", args: `txn submit --op a=1 --retry-for 0s`, answer: answer{502, "<html>"}, code: 3, out: []string{"is it a coordinator"}},
		{name: "submit as JSON", args: `txn submit --op a=1 -o json`, answer: answer{200, committedTx}, out: []string{committedTx}},
		{name: "get", args: `txn get ` + someID, answer: answer{200, abortedTx}, request: `GET /v1/transactions/` + someID, out: []string{"refused", "VOTED_NO"}},
		{name: "get, not found", args: `txn get ` + someID, answer: answer{404, refusedBy("NOT_FOUND", "")}, code: 4, out: []string{"NOT_FOUND"}},
		{name: "locks", args: "locks --page-size 7", answer: answer{200, `{"locks":[{"service":"a","key":"k"}],"next_page_token":"a/it's $x 2"}`}, request: "GET /v1/locks?page_size=7", out: []string{`--page-token 'a/it'\''s $x 2'`}},
		{name: "list", args: `txn list --state in_doubt --service a --page-size 7 --page-token x`, answer: answer{200, `{"transactions":[` + abortedTx + `],"next_page_token":"y"}`}, request: `GET /v1/transactions?page_size=7&page_token=x&service=a&state=in_doubt`, out: []string{someID, "--page-token y"}},
		{name: "list nothing", args: `txn list`, answer: answer{200, `{"transactions":[]}`}, out: []string{"no such transactions"}},
		{name: "rollback", args: `txn rollback ` + someID, answer: answer{200, abortedTx}, request: `POST /v1/transactions/` + someID + `/rollback`, out: []string{"aborting"}},
		{name: "rollback, too late", args: `txn rollback ` + someID, answer: answer{409, refusedBy("ALREADY_COMMITTED", "")}, code: 4, out: []string{"ALREADY_COMMITTED"}},
		{name: "resolve", args: `txn resolve ` + someID + ` --note done`, answer: answer{200, committedTx}, request: `/resolve {"note":"done"}`},
		{name: "resolve, nothing open", args: `txn resolve ` + someID + ` --note done`, answer: answer{409, refusedBy("NOT_A_HAZARD", "")}, code: 4, out: []string{"assent txn get " + someID}},
		{name: "put by base", args: `service put a --base http://h/ --max-in-flight 3 --capability tombstone,one_phase --require-keys --prepare-timeout 1s`, answer: answer{200, aService}, request: `PUT /v1/services/a {"http":{"prepare":"http://h/prepare","commit":"http://h/commit","rollback":"http://h/rollback","status":"http://h/status"},"capabilities":["tombstone","one_phase"],"require_keys":true,"limits":{"max_in_flight":3,"prepare_timeout":"1s"}}`, out: []string{"http://h/p", "128 calls"}},
		{name: "put by URLs", args: `service put a --prepare http://h/p --commit http://h/c --rollback http://h/r`, answer: answer{200, aService}, request: `PUT /v1/services/a {"http":{"prepare":"http://h/p","commit":"http://h/c","rollback":"http://h/r"}}`},
		{name: "service get", args: `service get a`, answer: answer{200, aService}, request: `GET /v1/services/a`, out: []string{"GENERATION", "2 open transactions"}},
		{name: "service list", args: `service list`, answer: answer{200, `{"services":[` + aService + `]}`}, request: `GET /v1/services`, out: []string{"NAME", "http://h/p"}},
		{name: "no services", args: `service list`, answer: answer{200, `{"services":[]}`}, out: []string{"assent service put"}},
		{name: "service delete", args: `service delete a`, answer: answer{200, strings.Replace(aService, `"state":"active"`, `"state":"removed"`, 1)}, request: `DELETE /v1/services/a`, out: []string{"a is removed"}},
		{name: "service delete, draining", args: `service delete a`, answer: answer{200, strings.Replace(aService, `"state":"active"`, `"state":"draining"`, 1)}, code: 3, out: []string{"waits for 2 open transactions"}},
		{
			name: "cluster status", args: `cluster status`, answer: answer{200, aCluster}, request: `GET /v1/cluster`,
			out: []string{"incarnation 2, as n1 sees it", "n1    up              0      0,1       http://h1", "n2    down, draining  -      0         http://h2", "0      n1            7     n1,n2   n3", "1      (none known)  0     n1      -"},
		},
		{name: "cluster status as JSON", args: `cluster status -o json`, answer: answer{200, aCluster}, out: []string{aCluster}},
		{name: "cluster status of an old version", args: `cluster status`, answer: answer{404, refusedBy("NOT_FOUND", "")}, code: 4, out: []string{"NOT_FOUND"}},
		{name: "cluster drain", args: `cluster drain n1`, answer: answer{200, aCluster}, request: `POST /v1/cluster/nodes/n1:drain`, out: []string{"n1 is draining, and goes on by itself: it leads shards 0"}},
		{name: "cluster drain, no such node", args: `cluster drain n9`, answer: answer{404, refusedBy("UNKNOWN_MEMBER", "see assent cluster status")}, code: 4, out: []string{"UNKNOWN_MEMBER"}},
		{name: "cluster drain, done", args: `cluster drain n2 --wait`, answer: answer{200, aCluster}, request: `POST /v1/cluster/nodes/n2:drain`, out: []string{"NODE"}},
		{name: "cluster drain as JSON", args: `cluster drain n1 -o json`, answer: answer{200, aCluster}, out: []string{aCluster}},
		{name: "cluster undrain", args: `cluster undrain n2@2`, answer: answer{200, aCluster}, request: `POST /v1/cluster/nodes/n2@2:undrain`, out: []string{"NODE"}},
		{name: "cluster remove", args: `cluster remove n3`, answer: answer{200, aCluster}, request: `DELETE /v1/cluster/nodes/n3`, out: []string{"n3 is being removed, and goes on by itself: it has replicas of shards (0)"}},
		{name: "cluster remove, the last", args: `cluster remove n1`, answer: answer{409, refusedBy("MEMBER_IN_USE", "let another join")}, code: 4, out: []string{"let another join"}},
		{name: "cluster transfer", args: `cluster transfer 1 --to n2`, answer: answer{200, aCluster}, request: `POST /v1/cluster/shards/1:transfer {"to":"n2"}`, out: []string{"SHARD"}},
		{name: "cluster transfer to any", args: `cluster transfer 0`, answer: answer{200, aCluster}, request: `POST /v1/cluster/shards/0:transfer {}`},
		{name: "cluster add", args: `cluster add`, answer: answer{200, aCluster}, request: `GET /v1/cluster`, out: []string{"assent serve --node n4 --data DIR", "--join p1:1"}},
		{name: "cluster add by name", args: `cluster add east`, answer: answer{200, aCluster}, out: []string{"--node east "}},
		{name: "cluster add of a known name", args: `cluster add n3`, answer: answer{200, aCluster}, code: 4, out: []string{"assent cluster remove n3"}},
		{name: "cluster add to a node alone", args: `cluster add`, answer: answer{200, strings.ReplaceAll(aCluster, `"peer":"p1:1",`, "")}, code: 4, out: []string{"start n1 with --peer"}},
		{name: "rubbish", args: `service list`, answer: answer{200, `[`}, code: 3, out: []string{"cannot be read"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, url := startFake(t, c.answer)
			t.Setenv("ASSENT_URL", url)
			code, out, errText := assent(t, c.stdin, strings.Fields(c.args)...)
			if code != c.code {
				t.Fatalf("exit code %d, want %d\n%s%s", code, c.code, out, errText)
			}
			if len(f.requests) != 1 || !strings.Contains(f.requests[0], c.request) {
				t.Errorf("asked %q, want %q", f.requests, c.request)
			}
			for _, text := range c.out {
				if !strings.Contains(out+errText, text) {
					t.Errorf("%q is not in:\n%s%s", text, out, errText)
				}
			}
			if code != 0 && errText == "" {
				t.Error("it failed without a word")
			}
		})
	}
}

func TestUsage(t *testing.T) {
	t.Setenv("ASSENT_URL", "http://127.0.0.1:1")
	for _, c := range []struct{ name, args, want string }{
		{"unknown command", "serf", "did you mean"},
		{"unknown flag", "txn get --idd x", "assent txn get --help"},
		{"no data", "serve", "--data"},
		{"no operation", "txn submit", "--op SERVICE="},
		{"file and operation", "txn submit x.json --op a=1", "not both"},
		{"no such file", "txn submit /nowhere.json", "/nowhere.json"},
		{"operation without payload", "txn submit --op a", "write SERVICE=JSON"},
		{"operation not JSON", "txn submit --op a={x}", "write SERVICE=JSON"},
		{"lock without operation", "txn submit --op a=1 --lock b=k", "no --op names service"},
		{"lock without key", "txn submit --op a=1 --lock a", "write SERVICE=KEY"},
		{"put without URLs", "service put a --prepare http://h/p", "--base"},
		{"bad URL", "txn list --url localhost:7070", "write http://host:port"},
		{"bad wait", "txn list --request-wait 1ms", "--request-wait is 1ms"},
		{"bad output", "txn list -o yaml", "--output"},
		{"contention elsewhere", "bench --contention --url http://127.0.0.1:1", "leave out --url"},
		{"resolve without note", "txn resolve " + someID, "--note"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, errText := assent(t, "", strings.Fields(c.args)...)
			if code != exitUsage || !strings.Contains(errText, c.want) {
				t.Errorf("exit code %d, want 2 and %q\n%s%s", code, c.want, out, errText)
			}
		})
	}
	if code, _, errText := assent(t, `{"operation":[]}`, "txn", "submit", "-"); code != exitUsage || !strings.Contains(errText, `"operation" is not known`) {
		t.Errorf("a bad body: exit code %d\n%s", code, errText)
	}
}

func TestRetriesWithTheSameID(t *testing.T) {
	f, url := startFake(t, answer{503, refusedBy("NOT_READY", "")}, answer{429, refusedBy("OVERLOADED", "")}, answer{200, committedTx})
	code, out, errText := assent(t, "", "txn", "submit", "--url", url, "--op", "a=1", "--retry-for", "20s")
	if code != 0 || len(f.requests) != 3 || f.requests[0] != f.requests[1] || f.requests[1] != f.requests[2] {
		t.Errorf("exit code %d after %q\n%s%s", code, f.requests, out, errText)
	}
}

// TestSeveralNodes: whichever answers will do, by flag and by environment.
func TestSeveralNodes(t *testing.T) {
	f, url := startFake(t, answer{200, committedTx}, answer{200, committedTx})
	code, out, errText := assent(t, "", "txn", "get", "--url", "http://127.0.0.1:1, "+url, "--retry-for", "0s", someID)
	if code != 0 {
		t.Errorf("exit code %d\n%s%s", code, out, errText)
	}
	t.Setenv("ASSENT_URL", "http://127.0.0.1:2")
	t.Setenv("ASSENT_ENDPOINTS", "http://127.0.0.1:1,"+url)
	if code, out, errText = assent(t, "", "txn", "get", "--retry-for", "0s", someID); code != 0 || len(f.requests) != 2 {
		t.Errorf("exit code %d after %q\n%s%s", code, f.requests, out, errText)
	}
}

func TestNobodyThere(t *testing.T) {
	code, _, errText := assent(t, "", "txn", "submit", "--url", "http://127.0.0.1:1", "--op", "a=1", "--retry-for", "100ms", "--id", someID)
	for _, want := range []string{"no answer from http://127.0.0.1:1", "assent serve --data", "--id " + someID} {
		if code != exitUnknown || !strings.Contains(errText, want) {
			t.Errorf("exit code %d, %q is not in:\n%s", code, want, errText)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"serve", "--help"}, {"txn", "submit", "--help"}, {"service", "put", "--help"}, {"demo", "--help"}, {"version"}} {
		code, out, errText := assent(t, "", args...)
		if code != 0 || out == "" || errText != "" {
			t.Errorf("%v: exit code %d\n%s%s", args, code, out, errText)
		}
	}
	code, out, _ := assent(t, "", "version", "-o", "json")
	var v map[string]string
	if err := json.Unmarshal([]byte(out), &v); code != 0 || err != nil || v["version"] == "" || v["go"] == "" {
		t.Errorf("version: %d, %v, %s", code, err, out)
	}
}

// logBuffer may be read while the process writes.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestServe runs a real coordinator in this process: it recovers what it knew,
// refuses a second process on its data and address, and ends when asked to.
func TestServe(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	for round := range 2 {
		address, err := serveproc.FreeAddress()
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("ASSENT_URL", "http://"+address)
		ctx, cancel := context.WithCancel(context.Background())
		logged := &logBuffer{}
		done := make(chan int, 1)
		go func() {
			done <- run(ctx, []string{"serve", "--data", data, "--http", address, "--grpc", "127.0.0.1:0", "--log-format", "json"}, &streams{strings.NewReader(""), io.Discard, logged})
		}()
		if round == 0 {
			if code, out, errText := assent(t, "", "service", "put", "a", "--base", "http://127.0.0.1:1", "--retry-for", "30s"); code != 0 {
				t.Fatalf("put: %d\n%s%s\n%s", code, out, errText, logged)
			}
			if code, _, errText := assent(t, "", "serve", "--data", t.TempDir(), "--http", address); code != exitFailed || !strings.Contains(errText, "another process listens there") {
				t.Errorf("an address in use: %d\n%s", code, errText)
			}
			if code, _, errText := assent(t, "", "serve", "--data", data, "--http", "127.0.0.1:0", "--grpc", ""); code != exitFailed || !strings.Contains(errText, data) {
				t.Errorf("a directory in use: %d\n%s", code, errText)
			}
		}
		if code, out, errText := assent(t, "", "service", "get", "a", "--retry-for", "30s"); code != 0 || !strings.Contains(out, "http://127.0.0.1:1/prepare") {
			t.Errorf("round %d: %d\n%s%s", round, code, out, errText)
		}
		// Nobody listens at port 1: the transaction times out, and is told as aborted.
		if code, out, errText := assent(t, "", "txn", "submit", "--op", "a=1", "--timeout", "100ms"); code != exitFailed || !strings.Contains(errText, "TIMEOUT") {
			t.Errorf("round %d, submit: %d\n%s%s", round, code, out, errText)
		}
		cancel()
		if code := <-done; code != 0 {
			t.Fatalf("serve ended with %d:\n%s", code, logged)
		}
		if !strings.Contains(logged.String(), `"msg":"ended"`) {
			t.Errorf("no word at the end:\n%s", logged)
		}
	}
	// Who is to speak to other nodes does not begin a cluster of its own by mistake, nor
	// leave the one it has.
	for flags, want := range map[string]string{"--peer 127.0.0.1:0": "--join", "--data " + data + " --peer 127.0.0.1:0 --join 127.0.0.1:1": "a cluster of its own"} {
		args := append([]string{"serve", "--data", t.TempDir(), "--http", "127.0.0.1:0", "--grpc", ""}, strings.Fields(flags)...)
		if code, _, errText := assent(t, "", args...); code != exitFailed || !strings.Contains(errText, want) {
			t.Errorf("%s: %d\n%s", flags, code, errText)
		}
	}
}
