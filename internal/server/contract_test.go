package server

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/node"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

// ask sends one request to the REST side.
func ask(t testing.TB, s *Server, method, target, body string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	if ct := w.Header().Get("Content-Type"); ct != "application/json" {
		t.Fatalf("%s %s: Content-Type %q", method, target, ct)
	}
	return w
}

// told is an error as a client reads it.
type told struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	Details []struct {
		Type     string            `json:"@type"`
		Reason   string            `json:"reason"`
		Domain   string            `json:"domain"`
		Metadata map[string]string `json:"metadata"`
		State    string            `json:"state"`
		ID       string            `json:"id"`
		Links    []struct{ Description, URL string }
		Delay    string `json:"retryDelay"`
	} `json:"details"`
}

func readError(t testing.TB, w *httptest.ResponseRecorder) told {
	t.Helper()
	var e told
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
		t.Fatalf("the error is not JSON: %v\n%s", err, w.Body)
	}
	if len(e.Details) == 0 || e.Details[0].Type != "type.googleapis.com/google.rpc.ErrorInfo" || e.Details[0].Domain != "assent" {
		t.Fatalf("no ErrorInfo in %s", w.Body)
	}
	return e
}

// operations wraps one operation on service a.
func operations(op string) string { return `{"operations":[` + op + `]}` }

const goodPut = `{"http":{"prepare":"http://h/p","commit":"http://h/c","rollback":"https://h:8443/r"}}`

func withHTTP(rest string) string { return strings.TrimSuffix(goodPut, "}") + "," + rest + "}" }

func TestBadInput(t *testing.T) {
	manyOps := operations(strings.TrimSuffix(strings.Repeat(`{"service":"a","payload":1},`, 65), ","))
	manyKeys := operations(`{"service":"a","payload":1,"locks":[` + strings.TrimSuffix(strings.Repeat(`{"key":"k"},`, 257), ",") + `]}`)
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		reason, field            string
	}{
		{"no body", "POST", "/v1/transactions", ``, 400, "INVALID_JSON", ""},
		{"not JSON", "POST", "/v1/transactions", `{operations}`, 400, "INVALID_JSON", ""},
		{"cut off", "POST", "/v1/transactions", `{"operations":[`, 400, "INVALID_JSON", ""},
		{"trailing data", "POST", "/v1/transactions", operations(`{"service":"a","payload":1}`) + `{}`, 400, "INVALID_JSON", ""},
		{"an array", "POST", "/v1/transactions", `[]`, 400, "INVALID_JSON", ""},
		{"a string", "POST", "/v1/transactions", `"x"`, 400, "INVALID_JSON", ""},
		{"null", "POST", "/v1/transactions", `null`, 400, "EMPTY_OPERATIONS", "operations"},
		{"bad UTF-8", "POST", "/v1/transactions", operations("{\"service\":\"a\",\"payload\":\"\xff\"}"), 400, "INVALID_JSON", "operations[0].payload"},
		{"lone surrogate", "POST", "/v1/transactions", operations(`{"service":"a","payload":"\ud800"}`), 400, "INVALID_JSON", "operations[0].payload"},
		{"duplicate field", "POST", "/v1/transactions", `{"operations":[],"operations":[]}`, 400, "INVALID_JSON", "operations"},
		{"duplicate name in payload", "POST", "/v1/transactions", operations(`{"service":"a","payload":{"x":1,"x":2}}`), 400, "INVALID_JSON", "operations[0].payload.x"},
		{"unknown field", "POST", "/v1/transactions", `{"operation":[]}`, 400, "UNKNOWN_FIELD", "operation"},
		{"unknown field of other case", "POST", "/v1/transactions", `{"Operations":[]}`, 400, "UNKNOWN_FIELD", "Operations"},
		{"unknown field below", "POST", "/v1/transactions", operations(`{"service":"a","payload":1,"lock":[]}`), 400, "UNKNOWN_FIELD", "operations[0].lock"},
		{"unknown parameter", "POST", "/v1/transactions?wait=none", operations(`{"service":"a","payload":1}`), 400, "UNKNOWN_FIELD", "wait"},
		{"no operations", "POST", "/v1/transactions", `{}`, 400, "EMPTY_OPERATIONS", "operations"},
		{"empty operations", "POST", "/v1/transactions", `{"operations":[]}`, 400, "EMPTY_OPERATIONS", "operations"},
		{"operations of a wrong type", "POST", "/v1/transactions", `{"operations":{}}`, 400, "INVALID_FIELD", "operations"},
		{"too many operations", "POST", "/v1/transactions", manyOps, 400, "TOO_MANY_OPERATIONS", "operations"},
		{"too many keys", "POST", "/v1/transactions", manyKeys, 400, "TOO_MANY_KEYS", "operations"},
		{"no service", "POST", "/v1/transactions", operations(`{"payload":1}`), 400, "INVALID_SERVICE", "operations[0].service"},
		{"bad service", "POST", "/v1/transactions", operations(`{"service":"A b","payload":1}`), 400, "INVALID_SERVICE", "operations[0].service"},
		{"service of a wrong type", "POST", "/v1/transactions", operations(`{"service":7,"payload":1}`), 400, "INVALID_FIELD", "operations[0].service"},
		{"no payload", "POST", "/v1/transactions", operations(`{"service":"a"}`), 400, "INVALID_FIELD", "operations[0].payload"},
		{"bad id", "POST", "/v1/transactions", `{"id":"42","operations":[{"service":"a","payload":1}]}`, 400, "INVALID_ID", "id"},
		{"empty id", "POST", "/v1/transactions", `{"id":"","operations":[{"service":"a","payload":1}]}`, 400, "INVALID_ID", "id"},
		{"upper-case id", "POST", "/v1/transactions", `{"id":"` + strings.ToUpper(someID) + `","operations":[{"service":"a","payload":1}]}`, 400, "INVALID_ID", "id"},
		{"UUIDv4", "POST", "/v1/transactions", `{"id":"019aa1b2-c3d4-4e5f-8a6b-0123456789ab","operations":[{"service":"a","payload":1}]}`, 400, "INVALID_ID", "id"},
		{"id of a wrong type", "POST", "/v1/transactions", `{"id":42}`, 400, "INVALID_ID", "id"},
		{"bad timeout", "POST", "/v1/transactions", `{"timeout":"5","operations":[{"service":"a","payload":1}]}`, 400, "INVALID_DURATION", "timeout"},
		{"timeout of a wrong type", "POST", "/v1/transactions", `{"timeout":5}`, 400, "INVALID_DURATION", "timeout"},
		{"timeout zero", "POST", "/v1/transactions", `{"timeout":"0s","operations":[{"service":"a","payload":1}]}`, 400, "INVALID_DURATION", "timeout"},
		{"timeout too short", "POST", "/v1/transactions", `{"timeout":"9ms","operations":[{"service":"a","payload":1}]}`, 400, "INVALID_DURATION", "timeout"},
		{"timeout too long", "POST", "/v1/transactions", `{"timeout":"601s","operations":[{"service":"a","payload":1}]}`, 400, "INVALID_DURATION", "timeout"},
		{"negative timeout", "POST", "/v1/transactions", `{"timeout":"-1s","operations":[{"service":"a","payload":1}]}`, 400, "INVALID_DURATION", "timeout"},
		{"bad wait", "POST", "/v1/transactions", `{"wait":"forever","operations":[{"service":"a","payload":1}]}`, 400, "INVALID_FIELD", "wait"},
		{"empty key", "POST", "/v1/transactions", operations(`{"service":"a","payload":1,"locks":[{"key":""}]}`), 400, "INVALID_KEY", "operations[0].locks[0].key"},
		{"no key", "POST", "/v1/transactions", operations(`{"service":"a","payload":1,"locks":[{}]}`), 400, "INVALID_KEY", "operations[0].locks[0].key"},
		{"key of a wrong type", "POST", "/v1/transactions", operations(`{"service":"a","payload":1,"locks":[{"key":1}]}`), 400, "INVALID_KEY", "operations[0].locks[0].key"},
		{"dotted key", "POST", "/v1/transactions", operations(`{"service":"a","payload":1,"locks":[{"key":"a/../b"}]}`), 400, "INVALID_KEY", "operations[0].locks[0].key"},
		{"trailing slash", "POST", "/v1/transactions", operations(`{"service":"a","payload":1,"locks":[{"key":"a/"}]}`), 400, "INVALID_KEY", "operations[0].locks[0].key"},
		{"key not NFC", "POST", "/v1/transactions", operations(`{"service":"a","payload":1,"locks":[{"key":"e\u0301"}]}`), 400, "INVALID_KEY", "operations[0].locks[0].key"},
		{"long key", "POST", "/v1/transactions", operations(`{"service":"a","payload":1,"locks":[{"key":"` + strings.Repeat("k", 257) + `"}]}`), 400, "INVALID_KEY", "operations[0].locks[0].key"},
		{"deep key", "POST", "/v1/transactions", operations(`{"service":"a","payload":1,"locks":[{"key":"` + strings.Repeat("k/", 16) + `k"}]}`), 400, "INVALID_KEY", "operations[0].locks[0].key"},
		{"a range", "POST", "/v1/transactions", operations(`{"service":"a","payload":1,"locks":[{"key":"accounts/[100,200)"}]}`), 400, "INVALID_KEY", "operations[0].locks[0].key"},
		{"when in a submission", "POST", "/v1/transactions", operations(`{"service":"a","payload":1,"when":"now"}`), 400, "UNKNOWN_FIELD", "operations[0].when"},
		{"bad mode", "POST", "/v1/transactions", operations(`{"service":"a","payload":1,"locks":[{"key":"k","mode":"X"}]}`), 400, "INVALID_FIELD", "operations[0].locks[0].mode"},
		{"too large", "POST", "/v1/transactions", operations(`{"service":"a","payload":"` + strings.Repeat("x", 1<<20) + `"}`), 413, "REQUEST_TOO_LARGE", "body"},

		{"get by a bad id", "GET", "/v1/transactions/42", ``, 400, "INVALID_ID", "id"},
		{"get of an unknown id", "GET", "/v1/transactions/" + otherID, ``, 404, "NOT_FOUND", ""},
		{"list by a bad state", "GET", "/v1/transactions?state=done", ``, 400, "INVALID_FIELD", "state"},
		{"list by a bad service", "GET", "/v1/transactions?service=A", ``, 400, "INVALID_SERVICE", "service"},
		{"page of no size", "GET", "/v1/transactions?page_size=0", ``, 400, "INVALID_FIELD", "page_size"},
		{"page too large", "GET", "/v1/transactions?page_size=1001", ``, 400, "INVALID_FIELD", "page_size"},
		{"page size twice", "GET", "/v1/transactions?page_size=1&page_size=2", ``, 400, "INVALID_FIELD", "page_size"},
		{"bad query", "GET", "/v1/transactions?state=%zz", ``, 400, "INVALID_FIELD", ""},
		{"unknown list parameter", "GET", "/v1/transactions?limit=1", ``, 400, "UNKNOWN_FIELD", "limit"},
		{"rollback by a bad id", "POST", "/v1/transactions/42/rollback", ``, 400, "INVALID_ID", "id"},
		{"rollback with fields", "POST", "/v1/transactions/" + someID + "/rollback", `{"force":true}`, 400, "UNKNOWN_FIELD", "force"},
		{"resolve without body", "POST", "/v1/transactions/" + someID + "/resolve", ``, 400, "INVALID_JSON", ""},
		{"resolve without note", "POST", "/v1/transactions/" + someID + "/resolve", `{}`, 400, "INVALID_FIELD", "note"},
		{"resolve with a long note", "POST", "/v1/transactions/" + someID + "/resolve", `{"note":"` + strings.Repeat("x", 1025) + `"}`, 400, "INVALID_FIELD", "note"},
		{"resolve without hazard", "POST", "/v1/transactions/" + otherID + "/resolve", `{"note":"x"}`, 409, "NOT_A_HAZARD", ""},

		{"begin by a bad id", "POST", "/v1/transactions:begin", `{"id":"42"}`, 400, "INVALID_ID", "id"},
		{"begin of a bad retry", "POST", "/v1/transactions:begin", `{"retry_of":"42"}`, 400, "INVALID_ID", "retry_of"},
		{"begin with operations", "POST", "/v1/transactions:begin", `{"operations":[]}`, 400, "UNKNOWN_FIELD", "operations"},
		{"begin for too long", "POST", "/v1/transactions:begin", `{"timeout":"61m"}`, 400, "INVALID_DURATION", "timeout"},
		{"begin for too short", "POST", "/v1/transactions:begin", `{"timeout":"1ms"}`, 400, "INVALID_DURATION", "timeout"},
		{"idle too short", "POST", "/v1/transactions:begin", `{"idle_timeout":"99ms"}`, 400, "INVALID_DURATION", "idle_timeout"},
		{"idle too long", "POST", "/v1/transactions:begin", `{"idle_timeout":"11m"}`, 400, "INVALID_DURATION", "idle_timeout"},
		{"step by a bad id", "POST", "/v1/transactions/42/operations", `{"step":1}`, 400, "INVALID_ID", "id"},
		{"step without body", "POST", "/v1/transactions/" + someID + "/operations", ``, 400, "INVALID_JSON", ""},
		{"step without number", "POST", "/v1/transactions/" + someID + "/operations", `{"operations":[{"service":"a","payload":1}]}`, 400, "INVALID_FIELD", "step"},
		{"step of a huge number", "POST", "/v1/transactions/" + someID + "/operations", `{"step":2147483648,"operations":[{"service":"a","payload":1}]}`, 400, "INVALID_FIELD", "step"},
		{"step of a number and a key", "POST", "/v1/transactions/" + someID + "/operations", `{"step":1,"step_key":"k","operations":[{"service":"a","payload":1}]}`, 400, "INVALID_FIELD", "step_key"},
		{"step of an empty key", "POST", "/v1/transactions/" + someID + "/operations", `{"step_key":"","operations":[{"service":"a","payload":1}]}`, 400, "INVALID_FIELD", "step_key"},
		{"step of a key with a blank", "POST", "/v1/transactions/" + someID + "/operations", `{"step_key":"a b","operations":[{"service":"a","payload":1}]}`, 400, "INVALID_FIELD", "step_key"},
		{"step of a long key", "POST", "/v1/transactions/" + someID + "/locks", `{"step_key":"` + strings.Repeat("k", 129) + `","locks":[{"service":"a","key":"k"}]}`, 400, "INVALID_FIELD", "step_key"},
		{"step without operations", "POST", "/v1/transactions/" + someID + "/operations", `{"step":1}`, 400, "EMPTY_OPERATIONS", "operations"},
		{"step at a bad time", "POST", "/v1/transactions/" + someID + "/operations", `{"step":1,"operations":[{"service":"a","payload":1,"when":"later"}]}`, 400, "INVALID_FIELD", "operations[0].when"},
		{"step at a bad service", "POST", "/v1/transactions/" + someID + "/operations", `{"step":1,"operations":[{"service":"A","payload":1}]}`, 400, "INVALID_SERVICE", "operations[0].service"},
		{"step with a bad lock", "POST", "/v1/transactions/" + someID + "/operations", `{"step":1,"operations":[{"service":"a","payload":1}],"locks":[{"service":"a","key":"//"}]}`, 400, "INVALID_KEY", "locks[0].key"},
		{"step with too many operations", "POST", "/v1/transactions/" + someID + "/operations", `{"step":1,` + manyOps[1:], 400, "TOO_MANY_OPERATIONS", "operations"},
		{"step of an unknown transaction", "POST", "/v1/transactions/" + otherID + "/operations", `{"step":1,"operations":[{"service":"a","payload":1}]}`, 404, "NOT_FOUND", ""},
		{"no locks", "POST", "/v1/transactions/" + someID + "/locks", `{"step":1}`, 400, "EMPTY_OPERATIONS", "locks"},
		{"lock of a bad service", "POST", "/v1/transactions/" + someID + "/locks", `{"step":1,"locks":[{"service":"","key":"k"}]}`, 400, "INVALID_SERVICE", "locks[0].service"},
		{"lock in a bad mode", "POST", "/v1/transactions/" + someID + "/locks", `{"step":1,"locks":[{"service":"a","key":"k","mode":"U"}]}`, 400, "INVALID_FIELD", "locks[0].mode"},
		{"lock of a range", "POST", "/v1/transactions/" + someID + "/locks", `{"step":1,"locks":[{"service":"a","key":"k/(1,2]"}]}`, 400, "INVALID_KEY", "locks[0].key"},
		{"too many locks", "POST", "/v1/transactions/" + someID + "/locks", `{"step":1,"locks":[` + strings.TrimSuffix(strings.Repeat(`{"service":"a","key":"k"},`, 257), ",") + `]}`, 400, "TOO_MANY_KEYS", "locks"},
		{"commit by a bad id", "POST", "/v1/transactions/42/commit", ``, 400, "INVALID_ID", "id"},
		{"commit with a bad wait", "POST", "/v1/transactions/" + someID + "/commit", `{"wait":"long"}`, 400, "INVALID_FIELD", "wait"},
		{"commit of a step under way", "POST", "/v1/transactions/" + otherID + "/commit", ``, 409, "STEP_PENDING", ""},
		{"heartbeat by a bad id", "POST", "/v1/transactions/42/heartbeat", ``, 400, "INVALID_ID", "id"},
		{"heartbeat with fields", "POST", "/v1/transactions/" + someID + "/heartbeat", `{"x":1}`, 400, "UNKNOWN_FIELD", "x"},
		{"locks of a bad service", "GET", "/v1/locks?service=A", ``, 400, "INVALID_SERVICE", "service"},
		{"locks of a key alone", "GET", "/v1/locks?key=k", ``, 400, "INVALID_FIELD", "key"},
		{"locks of a bad key", "GET", "/v1/locks?service=a&key=a//b", ``, 400, "INVALID_KEY", "key"},
		{"locks waited for or not", "GET", "/v1/locks?waited=perhaps", ``, 400, "INVALID_FIELD", "waited"},
		{"locks of a page of nothing", "GET", "/v1/locks?page_token=!!", ``, 400, "INVALID_FIELD", "page_token"},
		{"locks of a page of no shard", "GET", "/v1/locks?page_token=a/j", ``, 400, "INVALID_FIELD", "page_token"},
		{"locks of a page of no key", "GET", "/v1/locks?page_token=a/", ``, 400, "INVALID_FIELD", "page_token"},
		{"locks on a page of no size", "GET", "/v1/locks?page_size=0", ``, 400, "INVALID_FIELD", "page_size"},
		{"deadlocks of one service", "GET", "/v1/deadlocks?service=a", ``, 400, "UNKNOWN_FIELD", "service"},

		{"bad service name", "PUT", "/v1/services/Ledger", goodPut, 400, "INVALID_SERVICE", "name"},
		{"service name that begins with a dot", "PUT", "/v1/services/.a", goodPut, 400, "INVALID_SERVICE", "name"},
		{"long service name", "PUT", "/v1/services/" + strings.Repeat("a", 64), goodPut, 400, "INVALID_SERVICE", "name"},
		{"registration without body", "PUT", "/v1/services/a", ``, 400, "INVALID_JSON", ""},
		{"registration without URLs", "PUT", "/v1/services/a", `{}`, 400, "INVALID_URL", "http.prepare"},
		{"no commit URL", "PUT", "/v1/services/a", `{"http":{"prepare":"http://h/p"}}`, 400, "INVALID_URL", "http.commit"},
		{"no rollback URL", "PUT", "/v1/services/a", `{"http":{"prepare":"http://h/p","commit":"http://h/c"}}`, 400, "INVALID_URL", "http.rollback"},
		{"URL of a wrong type", "PUT", "/v1/services/a", `{"http":{"prepare":1}}`, 400, "INVALID_URL", "http.prepare"},
		{"name in the body", "PUT", "/v1/services/a", withHTTP(`"name":"a"`), 400, "UNKNOWN_FIELD", "name"},
		{"unknown capability", "PUT", "/v1/services/a", withHTTP(`"capabilities":["tombstone","magic"]`), 400, "INVALID_SERVICE", "capabilities[1]"},
		{"no capability", "PUT", "/v1/services/a", withHTTP(`"capabilities":[]`), 400, "INVALID_SERVICE", "capabilities"},
		{"one_phase alone", "PUT", "/v1/services/a", withHTTP(`"capabilities":["one_phase"]`), 400, "INVALID_SERVICE", "capabilities"},
		{"one_phase without tombstone", "PUT", "/v1/services/a", withHTTP(`"capabilities":["one_phase","list_in_doubt"]`), 400, "INVALID_SERVICE", "capabilities"},
		{"read_only alone", "PUT", "/v1/services/a", withHTTP(`"capabilities":["read_only"]`), 400, "INVALID_SERVICE", "capabilities"},
		{"bad isolation", "PUT", "/v1/services/a", withHTTP(`"isolation":"none"`), 400, "INVALID_FIELD", "isolation"},
		{"require_keys of a wrong type", "PUT", "/v1/services/a", withHTTP(`"require_keys":"yes"`), 400, "INVALID_FIELD", "require_keys"},
		{"no calls at all", "PUT", "/v1/services/a", withHTTP(`"limits":{"max_in_flight":0}`), 400, "INVALID_FIELD", "limits.max_in_flight"},
		{"too many calls", "PUT", "/v1/services/a", withHTTP(`"limits":{"max_in_flight":10001}`), 400, "INVALID_FIELD", "limits.max_in_flight"},
		{"negative calls", "PUT", "/v1/services/a", withHTTP(`"limits":{"max_in_flight":-1}`), 400, "INVALID_FIELD", "limits.max_in_flight"},
		{"broken calls", "PUT", "/v1/services/a", withHTTP(`"limits":{"max_in_flight":1.5}`), 400, "INVALID_FIELD", "limits.max_in_flight"},
		{"endless calls", "PUT", "/v1/services/a", withHTTP(`"limits":{"max_in_flight":99999999999}`), 400, "INVALID_FIELD", "limits.max_in_flight"},
		{"bad prepare timeout", "PUT", "/v1/services/a", withHTTP(`"limits":{"prepare_timeout":"soon"}`), 400, "INVALID_DURATION", "limits.prepare_timeout"},
		{"short finish timeout", "PUT", "/v1/services/a", withHTTP(`"limits":{"finish_timeout":"1ms"}`), 400, "INVALID_DURATION", "limits.finish_timeout"},
		{"empty resource", "PUT", "/v1/services/a", withHTTP(`"resources":[""]`), 400, "INVALID_SERVICE", "resources[0]"},
		{"many resources", "PUT", "/v1/services/a", withHTTP(`"resources":[` + strings.Repeat(`"r",`, 64) + `"r"]`), 400, "INVALID_SERVICE", "resources"},
		{"get of an unknown service", "GET", "/v1/services/b", ``, 404, "NOT_FOUND", ""},
		{"get of a bad service name", "GET", "/v1/services/B", ``, 400, "INVALID_SERVICE", "name"},
		{"delete of an unknown service", "DELETE", "/v1/services/b", ``, 404, "NOT_FOUND", ""},
		{"delete of a bad service name", "DELETE", "/v1/services/B", ``, 400, "INVALID_SERVICE", "name"},

		{"drain of an unknown node", "POST", "/v1/cluster/nodes/n9:drain", ``, 404, "UNKNOWN_MEMBER", ""},
		{"drain of nobody", "POST", "/v1/cluster/nodes/:drain", ``, 400, "INVALID_MEMBER", "name"},
		{"drain with fields", "POST", "/v1/cluster/nodes/n2:drain", `{"force":true}`, 400, "UNKNOWN_FIELD", "force"},
		{"drain of a long name", "POST", "/v1/cluster/nodes/" + strings.Repeat("n", 129) + ":undrain", ``, 400, "INVALID_MEMBER", "name"},
		{"removal of the last node", "DELETE", "/v1/cluster/nodes/n1", ``, 409, "MEMBER_IN_USE", ""},
		{"transfer of no shard", "POST", "/v1/cluster/shards/one:transfer", ``, 400, "INVALID_FIELD", "shard"},
		{"transfer of a negative shard", "POST", "/v1/cluster/shards/-1:transfer", ``, 400, "INVALID_FIELD", "shard"},
		{"transfer to a long name", "POST", "/v1/cluster/shards/1:transfer", `{"to":"` + strings.Repeat("n", 129) + `"}`, 400, "INVALID_MEMBER", "to"},
		{"transfer with other fields", "POST", "/v1/cluster/shards/1:transfer", `{"node":"n2"}`, 400, "UNKNOWN_FIELD", "node"},
		{"cluster of a service", "GET", "/v1/cluster?service=a", ``, 400, "UNKNOWN_FIELD", "service"},
		{"unknown verb on a node", "POST", "/v1/cluster/nodes/n2:stop", ``, 405, "METHOD_NOT_ALLOWED", ""},
		{"no verb on a node", "POST", "/v1/cluster/nodes/n2", ``, 405, "METHOD_NOT_ALLOWED", ""},
		{"wrong method of a verb", "GET", "/v1/cluster/nodes/n2:drain", ``, 405, "METHOD_NOT_ALLOWED", ""},
		{"no verb on a shard", "POST", "/v1/cluster/shards/1", ``, 404, "NOT_FOUND", ""},
		{"unknown verb on a shard", "POST", "/v1/cluster/shards/1:move", ``, 404, "NOT_FOUND", ""},
		{"backup of a shard", "GET", "/v1/backup?shard=1", ``, 400, "UNKNOWN_FIELD", "shard"},
		{"wrong method of a backup", "POST", "/v1/backup", ``, 405, "METHOD_NOT_ALLOWED", ""},

		{"unknown path", "GET", "/v2/transactions", ``, 404, "NOT_FOUND", ""},
		{"unknown verb on a transaction", "POST", "/v1/transactions/" + someID + "/undo", ``, 404, "NOT_FOUND", ""},
		{"wrong method", "DELETE", "/v1/transactions", ``, 405, "METHOD_NOT_ALLOWED", ""},
		{"wrong method on a service", "POST", "/v1/services/a", `{}`, 405, "METHOD_NOT_ALLOWED", ""},
		{"wrong method on a page", "POST", "/metrics", ``, 405, "METHOD_NOT_ALLOWED", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fake{ready: true}
			s := newServer(t, f, Limits{})
			w := ask(t, s, c.method, c.path, c.body)
			e := readError(t, w)
			info := e.Details[0]
			if w.Code != c.status || info.Reason != c.reason || info.Metadata["field"] != c.field {
				t.Fatalf("got %d %s field %q, want %d %s field %q\n%s", w.Code, info.Reason, info.Metadata["field"], c.status, c.reason, c.field, w.Body)
			}
			if e.Message == "" || e.Code == 0 {
				t.Errorf("no code or message: %s", w.Body)
			}
			if w.Code == 400 && info.Metadata["hint"] == "" {
				t.Errorf("no hint: %s", w.Body)
			}
			if len(f.submits)+len(f.puts)+len(f.begins) != 0 || len(f.steps) != 0 && info.Reason != "NOT_FOUND" {
				t.Errorf("the refused request reached the coordinator")
			}
		})
	}
}

func TestBadURLs(t *testing.T) {
	s := newServer(t, &fake{}, Limits{})
	for name, url := range map[string]string{
		"relative": "/prepare", "no scheme": "host/prepare", "file": "file:///etc/passwd", "ftp": "ftp://h/p", "upper-case script": "JavaScript:alert(1)",
		"no host": "http:///p", "port only": "http://:80/p", "opaque": "http:h", "user": "http://u@h/p", "password": "http://u:secret@h/p",
		"fragment": "http://h/p#x", "empty fragment": "http://h/p#", "bad port": "http://h:99999/p", "port zero": "http://h:0/p",
		"control character": "http://h/\\u0001", "space in host": "http://h h/p", "long": "http://h/" + strings.Repeat("x", 2048), "bad escape": "http://h/%zz",
	} {
		w := ask(t, s, "PUT", "/v1/services/a", `{"http":{"prepare":"`+url+`","commit":"http://h/c","rollback":"http://h/r"}}`)
		if e := readError(t, w); w.Code != 400 || e.Details[0].Reason != "INVALID_URL" || e.Details[0].Metadata["field"] != "http.prepare" {
			t.Errorf("%s: got %d %s", name, w.Code, w.Body)
		}
		if strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%s: the answer repeats a password: %s", name, w.Body)
		}
	}
}

func TestBodiesThatAreNotJSON(t *testing.T) {
	s := newServer(t, &fake{}, Limits{})
	good := operations(`{"service":"a","payload":1}`)
	for _, c := range []struct {
		header, value string
		status        int
	}{
		{"Content-Type", "application/json", 200},
		{"Content-Type", "application/json; charset=utf-8", 200},
		{"Content-Type", "application/x-www-form-urlencoded", 200}, // what curl -d sends
		{"Content-Type", "multipart/form-data; boundary=x", 415},
		{"Content-Type", "text/plain", 415},
		{"Content-Type", ";", 415},
		{"Content-Encoding", "identity", 200},
		{"Content-Encoding", "gzip", 415},
		{"Sec-Fetch-Site", "cross-site", 403},
		{"Sec-Fetch-Site", "none", 200},
		{"Origin", "https://evil.example", 403},
		{TimeoutHeader, "5s", 200},
		{TimeoutHeader, "5", 400},
		{TimeoutHeader, "0s", 400},
		{TimeoutHeader, "11m", 400},
	} {
		if w := ask(t, s, "POST", "/v1/transactions", good, c.header, c.value); w.Code != c.status {
			t.Errorf("%s: %s: got %d, want %d: %s", c.header, c.value, w.Code, c.status, w.Body)
		}
	}
	if w := ask(t, s, "POST", "/v1/transactions", good); w.Code != 200 {
		t.Errorf("no Content-Type: got %d: %s", w.Code, w.Body)
	}
}

func TestBodyOfUnknownLength(t *testing.T) {
	s := newServer(t, &fake{}, Limits{MaxRequestBytes: 100})
	send := func(body string) int {
		r := httptest.NewRequest("POST", "/v1/transactions", strings.NewReader(body))
		r.ContentLength = -1
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		return w.Code
	}
	if got := send(operations(`{"service":"a","payload":1}`)); got != 200 {
		t.Errorf("a short one: %d", got)
	}
	if got := send(operations(`{"service":"a","payload":"` + strings.Repeat("x", 100) + `"}`)); got != 413 {
		t.Errorf("a long one: %d", got)
	}
}

func TestSubmissionIsPassedOn(t *testing.T) {
	f := &fake{}
	s := newServer(t, f, Limits{})
	trace := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	body := `{"id":"` + someID + `", "operations" : [
		{"service":"a","payload": { "n" : 12345678901234567890.10, "big":9007199254740993, "s":"\u00e9 <" } ,
		 "locks":[{"key":"accounts/42","mode":"shared"},{"key":"accounts/43"},{"key":"x","mode":"exclusive"}]},
		{"service":"b.c_d-9","payload":null}], "timeout":"1m30s", "wait":"completed"}`
	if w := ask(t, s, "POST", "/v1/transactions", body, "Traceparent", trace); w.Code != 200 {
		t.Fatalf("got %d: %s", w.Code, w.Body)
	}
	want := node.Submission{
		ID: someID, Timeout: 90 * time.Second, Wait: node.WaitCompleted, TraceParent: trace,
		Operations: []node.Operation{
			{
				Service: "a", Payload: []byte(`{"n":12345678901234567890.10,"big":9007199254740993,"s":"\u00e9 <"}`),
				Locks: []node.DeclaredLock{{Key: "accounts/42", Mode: node.Shared}, {Key: "accounts/43"}, {Key: "x"}},
			},
			{Service: "b.c_d-9", Payload: []byte(`null`)},
		},
	}
	if !reflect.DeepEqual(f.submits, []node.Submission{want}) {
		t.Errorf("got  %+v\nwant %+v", f.submits, want)
	}

	f.submits = nil
	if w := ask(t, s, "POST", "/v1/transactions", operations(`{"service":"a","payload":[]}`), "Traceparent", "nonsense"); w.Code != 200 {
		t.Fatalf("got %d: %s", w.Code, w.Body)
	}
	want = node.Submission{Operations: []node.Operation{{Service: "a", Payload: []byte(`[]`)}}}
	if !reflect.DeepEqual(f.submits, []node.Submission{want}) {
		t.Errorf("got  %+v\nwant %+v", f.submits, want)
	}
}

func TestRegistrationIsPassedOn(t *testing.T) {
	f := &fake{}
	s := newServer(t, f, Limits{})
	body := `{"http":{"prepare":"http://127.0.0.1:9001/p?x=1","commit":"https://[::1]:8443/c","rollback":"http://h/r","status":"http://h/s"},
		"resources":["accounts"],"capabilities":["one_phase","read_only","tombstone"],"isolation":"participant","require_keys":true,
		"limits":{"max_in_flight":64,"prepare_timeout":"3s","finish_timeout":"250ms"}}`
	if w := ask(t, s, "PUT", "/v1/services/ledger-a", body); w.Code != 200 {
		t.Fatalf("got %d: %s", w.Code, w.Body)
	}
	if w := ask(t, s, "PUT", "/v1/services/b", goodPut); w.Code != 200 {
		t.Fatalf("got %d: %s", w.Code, w.Body)
	}
	want := []node.ServiceSpec{
		{
			Name: "ledger-a", PrepareURL: "http://127.0.0.1:9001/p?x=1", CommitURL: "https://[::1]:8443/c", RollbackURL: "http://h/r", StatusURL: "http://h/s",
			Resources: []string{"accounts"}, Capabilities: []string{"one_phase", "read_only", "tombstone"}, Isolation: "participant", RequireKeys: true,
			MaxInFlight: 64, PrepareTimeout: 3 * time.Second, FinishTimeout: 250 * time.Millisecond,
		},
		{Name: "b", PrepareURL: "http://h/p", CommitURL: "http://h/c", RollbackURL: "https://h:8443/r"},
	}
	if !reflect.DeepEqual(f.puts, want) {
		t.Errorf("got  %+v\nwant %+v", f.puts, want)
	}
}

func TestListQueryIsPassedOn(t *testing.T) {
	f := &fake{}
	s := newServer(t, f, Limits{})
	if w := ask(t, s, "GET", "/v1/transactions?state=in_doubt&service=a&page_size=7&page_token="+someID, ""); w.Code != 200 {
		t.Fatalf("got %d: %s", w.Code, w.Body)
	}
	want := []node.ListQuery{{State: "in_doubt", Service: "a", PageSize: 7, PageToken: someID}}
	if !reflect.DeepEqual(f.queries, want) {
		t.Errorf("got %+v", f.queries)
	}
}

func TestStepsArePassedOn(t *testing.T) {
	f := &fake{}
	s := newServer(t, f, Limits{})
	for _, r := range [][2]string{
		{"/v1/transactions:begin", `{"id":"` + someID + `","timeout":"1h","idle_timeout":"100ms","retry_of":"` + otherID + `"}`},
		{"/v1/transactions:begin", ``},
		{"/v1/transactions/" + someID + "/operations", `{"step":2147483647,"operations":[{"service":"a","payload":{"x": 1},"locks":[{"key":"k","mode":"update"}],"when":"now"},
			{"service":"b","payload":null,"when":"prepare"}],"locks":[{"service":"b","key":"l","mode":"shared"}]}`},
		{"/v1/transactions/" + someID + "/locks", `{"step":1,"locks":[{"service":"b","key":"l"}]}`},
		{"/v1/transactions/" + someID + "/operations", `{"step_key":"k!~","operations":[{"service":"a","payload":1}]}`},
		{"/v1/transactions/" + someID + "/locks", `{"step_key":"` + strings.Repeat("k", 128) + `","locks":[{"service":"b","key":"l"}]}`},
		{"/v1/transactions/" + someID + "/commit", ``},
		{"/v1/transactions/" + someID + "/commit", `{"wait":"completed"}`},
		{"/v1/transactions/" + someID + "/heartbeat", `{}`},
	} {
		if w := ask(t, s, "POST", r[0], r[1], "Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"); w.Code != 200 {
			t.Fatalf("%s: got %d: %s", r[0], w.Code, w.Body)
		}
	}
	if w := ask(t, s, "GET", "/v1/locks?service=a&key=k&waited=true&page_size=7&page_token=a/j+0", ""); w.Code != 200 {
		t.Fatalf("got %d: %s", w.Code, w.Body)
	}
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, c := range []struct{ got, want any }{
		{f.begins, []node.Beginning{{ID: someID, Timeout: time.Hour, IdleTimeout: 100 * time.Millisecond, RetryOf: otherID, TraceParent: trace}, {TraceParent: trace}}},
		{f.steps, []node.Step{
			{
				Number: 1<<31 - 1, Operations: []node.StepOperation{
					{Operation: node.Operation{Service: "a", Payload: []byte(`{"x":1}`), Locks: []node.DeclaredLock{{Key: "k", Mode: node.Update}}}, Now: true},
					{Operation: node.Operation{Service: "b", Payload: []byte(`null`)}},
				},
				Locks: []node.ServiceLock{{Service: "b", DeclaredLock: node.DeclaredLock{Key: "l", Mode: node.Shared}}},
			},
			{Number: 1, Locks: []node.ServiceLock{{Service: "b", DeclaredLock: node.DeclaredLock{Key: "l"}}}},
			{Key: "k!~", Operations: []node.StepOperation{{Operation: node.Operation{Service: "a", Payload: []byte(`1`)}}}, Locks: []node.ServiceLock{}},
			{Key: strings.Repeat("k", 128), Locks: []node.ServiceLock{{Service: "b", DeclaredLock: node.DeclaredLock{Key: "l"}}}},
		}},
		{f.commits, []node.WaitMode{node.WaitDefault, node.WaitCompleted}},
		{f.lockQueries, []node.LockQuery{{Service: "a", Key: "k", Waited: true, PageSize: 7, PageToken: "a/j 0"}}},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("got  %+v\nwant %+v", c.got, c.want)
		}
	}
}

// TestAnswers compares whole answers with testdata.
func TestAnswers(t *testing.T) {
	f := &fake{ready: true}
	f.rollback = func(_ context.Context, id string) (node.Transaction, error) { return committed(id) }
	s := newServer(t, f, Limits{})
	for _, c := range []struct {
		file, method, path, body string
		status                   int
	}{
		{"transaction.json", "GET", "/v1/transactions/" + someID, "", 200},
		{"transactions.json", "GET", "/v1/transactions", "", 200},
		{"submitted.json", "POST", "/v1/transactions", operations(`{"service":"a","payload":1}`), 200},
		{"resolved.json", "POST", "/v1/transactions/" + someID + "/resolve", `{"note":"booked back by hand"}`, 200},
		{"rollback_committed.json", "POST", "/v1/transactions/" + someID + "/rollback", "", 409},
		{"service.json", "GET", "/v1/services/ledger-a", "", 200},
		{"services.json", "GET", "/v1/services", "", 200},
		{"service_put.json", "PUT", "/v1/services/a", goodPut, 200},
		{"service_deleted.json", "DELETE", "/v1/services/ledger-a", "", 200},
		{"not_found.json", "GET", "/v1/transactions/" + otherID, "", 404},
		{"unknown_field.json", "POST", "/v1/transactions", `{"operation":[]}`, 400},
		{"begun.json", "POST", "/v1/transactions:begin", `{"id":"` + someID + `","timeout":"30s","idle_timeout":"1s","retry_of":"` + otherID + `"}`, 200},
		{"step.json", "POST", "/v1/transactions/" + someID + "/operations", `{"step":1,"operations":[{"service":"a","payload":1,"when":"now"},{"service":"b","payload":2}]}`, 200},
		{"locked.json", "POST", "/v1/transactions/" + someID + "/locks", `{"step":2,"locks":[{"service":"a","key":"k"}]}`, 200},
		{"sealed.json", "POST", "/v1/transactions/" + someID + "/commit", "", 200},
		{"locks.json", "GET", "/v1/locks", "", 200},
		{"deadlocks.json", "GET", "/v1/deadlocks", "", 200},
		{"cluster.json", "GET", "/v1/cluster", "", 200},
		{"cluster.json", "POST", "/v1/cluster/nodes/n2:drain", "", 200},
		{"cluster.json", "POST", "/v1/cluster/nodes/n2@0f3a0002:undrain", "{}", 200},
		{"cluster.json", "DELETE", "/v1/cluster/nodes/n3", "", 200},
		{"cluster.json", "POST", "/v1/cluster/shards/1:transfer", `{"to":"n2"}`, 200},
		{"cluster.json", "POST", "/v1/cluster/shards/1:transfer", "", 200},
		{"healthz.json", "GET", "/healthz", "", 200},
		{"readyz.json", "GET", "/readyz", "", 200},
	} {
		w := ask(t, s, c.method, c.path, c.body)
		if w.Code != c.status {
			t.Errorf("%s: got %d: %s", c.file, w.Code, w.Body)
			continue
		}
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, w.Body.Bytes(), "", "  "); err != nil {
			t.Errorf("%s: %v", c.file, err)
			continue
		}
		file := filepath.Join("testdata", c.file)
		if *update {
			if err := os.WriteFile(file, pretty.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(pretty.Bytes(), want) {
			t.Errorf("%s: got\n%s\nwant\n%s", c.file, pretty.Bytes(), want)
		}
	}
}

func TestNotReady(t *testing.T) {
	s := newServer(t, &fake{}, Limits{})
	w := ask(t, s, "GET", "/readyz", "")
	if e := readError(t, w); w.Code != http.StatusServiceUnavailable || e.Details[0].Reason != "NOT_READY" || !strings.Contains(e.Message, "no leader") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	if w.Header().Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", w.Header().Get("Retry-After"))
	}
	if w := ask(t, s, "GET", "/healthz", ""); w.Code != 200 {
		t.Errorf("healthz: %d %s", w.Code, w.Body)
	}
}

func TestReadyUntilDrained(t *testing.T) {
	s := newServer(t, &fake{ready: true}, Limits{})
	if w := ask(t, s, "GET", "/readyz", ""); w.Code != 200 {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	s.admission.draining.Store(true)
	if w := ask(t, s, "GET", "/readyz", ""); w.Code != 503 || !strings.Contains(w.Body.String(), "shutting down") {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
}
