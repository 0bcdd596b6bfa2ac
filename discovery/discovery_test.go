package discovery_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/assent-tx/assent/discovery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeNode answers like a coordinator's node, and how a test wants it.
type fakeNode struct {
	*httptest.Server
	name string

	mu      sync.Mutex
	view    map[string]any                 // of /v1/cluster; nil: 404
	refuse  string                         // body of a 503, for everything but /v1/cluster
	hang    chan struct{}                  // not nil: nothing is answered until it is closed
	slow    chan struct{}                  // likewise, but /readyz and /v1/cluster are
	counted map[string]int                 // requests by path
	hosts   []string                       // Host headers seen
	answer  func(http.ResponseWriter) bool // nil, or answers
}

func node(t *testing.T, name string) *fakeNode {
	t.Helper()
	n := &fakeNode{name: name, counted: map[string]int{}}
	n.Server = httptest.NewServer(n)
	t.Cleanup(n.kill)
	return n
}

func (n *fakeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	n.counted[r.URL.Path]++
	n.hosts = append(n.hosts, r.Host)
	view, refuse, hang, slow, answer := n.view, n.refuse, n.hang, n.slow, n.answer
	n.mu.Unlock()
	if hang != nil {
		wait(r, hang)
		return
	}
	switch {
	case r.URL.Path == "/v1/cluster" && view == nil:
		w.WriteHeader(http.StatusNotFound)
	case r.URL.Path == "/v1/cluster":
		body, err := json.Marshal(view)
		if err != nil {
			panic(err)
		}
		_, _ = w.Write(body)
	case refuse != "":
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, refuse)
	case r.URL.Path == "/readyz":
	case answer != nil && answer(w):
	default:
		if slow != nil {
			wait(r, slow)
		}
		_, _ = io.WriteString(w, n.name)
	}
}

func wait(r *http.Request, until chan struct{}) {
	_, _ = io.Copy(io.Discard, r.Body) // or a client that goes is not noticed
	select {
	case <-until:
	case <-r.Context().Done():
	}
}

func (n *fakeNode) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

func (n *fakeNode) kill() {
	n.CloseClientConnections()
	n.Close()
}

func (n *fakeNode) asked(path string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.counted[path]
}

// member describes a node in a view; state is "up" and so on.
type member struct {
	id, url, state string
}

// cluster is a view: leaders by shard, all of one term.
func cluster(id string, term int, members []member, leaders ...string) map[string]any {
	var nodes, placement []map[string]any
	for _, m := range members {
		nodes = append(nodes, map[string]any{"id": m.id, "name": m.id, "http": m.url, "state": m.state, "level": 9, "future": true})
	}
	for i, l := range leaders {
		placement = append(placement, map[string]any{"shard": i, "leader": l, "term": term, "voters": []string{}})
	}
	return map[string]any{"cluster": id, "incarnation": 1, "node": "x", "shards": len(leaders), "nodes": nodes, "placement": placement}
}

func nodes(t *testing.T, cfg discovery.Config) *discovery.Nodes {
	t.Helper()
	n, err := discovery.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// id is of a transaction at home in a shard, of up to 4096.
func id(shard int) string { return fmt.Sprintf("0197b0c4-8000-7%03x-8000-000000000001", shard) }

// ask returns who answered, "" if nobody did.
func ask(t *testing.T, n *discovery.Nodes, key string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	answer, err := n.Do(ctx, &discovery.Request{Key: key, Method: http.MethodPost, Path: "/v1/x", Body: []byte(`{}`)})
	if err != nil || answer.Status != http.StatusOK {
		return ""
	}
	return string(answer.Body)
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("not reached: ", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestLeaders: members and leaders are learned from one node, requests go to the leader of
// their home, changes are followed, and what was configured may vanish altogether.
func TestLeaders(t *testing.T) {
	a, b, c := node(t, "a"), node(t, "b"), node(t, "c")
	three := []member{{"a", a.URL, "up"}, {"b", b.URL, "up"}, {"c", c.URL, "up"}, {"dumb", "", "up"}}
	for _, n := range []*fakeNode{a, b, c} {
		n.view = cluster("1f", 5, three, "b", "c")
	}
	n := nodes(t, discovery.Config{Endpoints: []string{a.URL}})
	if got := ask(t, n, id(0)); got != "a" {
		t.Errorf("the first request was not sent at once: %q", got)
	}
	await(t, "the leaders are known", func() bool { return ask(t, n, id(0)) == "b" && ask(t, n, id(1)) == "c" && ask(t, n, id(7)) == "c" })
	if got := ask(t, n, ""); got != "a" {
		t.Errorf("a request without a home went to %s", got)
	}
	if len(n.URLs()) != 3 {
		t.Error(n.URLs())
	}
	// The leader of 0 dies: no request fails, and the next leader is found.
	for _, n := range []*fakeNode{a, c} {
		n.set(func() { n.view = cluster("1f", 6, []member{three[0], {"b", b.URL, "down"}, three[2]}, "c", "c") })
	}
	b.kill()
	if got := ask(t, n, id(0)); got == "" {
		t.Error("the request failed with its leader")
	}
	await(t, "the next leader", func() bool { return ask(t, n, id(0)) == "c" })
	// What an isolated node believes of an earlier term does not count.
	a.set(func() { a.view = cluster("1f", 5, three, "a", "a") })
	c.set(func() { c.refuse = `{"message":"m","details":[{"reason":"NOT_READY"}]}` })
	seen := a.asked("/v1/cluster")
	await(t, "it is asked", func() bool { return ask(t, n, id(0)) == "a" && a.asked("/v1/cluster") > seen })
	c.set(func() { c.refuse = "" })
	await(t, "the later leader is back", func() bool { return ask(t, n, id(0)) == "c" })
	// Every node is replaced.
	d, e := node(t, "d"), node(t, "e")
	for _, n := range []*fakeNode{a, c, d, e} {
		n.set(func() { n.view = cluster("1f", 7, []member{{"d", d.URL, "up"}, {"e", e.URL, "up"}}, "d", "e") })
	}
	c.set(func() { c.refuse = `{"message":"m","details":[{"reason":"NOT_READY"}]}` }) // so it is asked now, not in half a minute
	await(t, "the new members", func() bool { return ask(t, n, id(0)) == "d" && ask(t, n, id(1)) == "e" })
	a.kill()
	c.kill()
	for i := range 10 {
		if got := ask(t, n, id(i)); got != "d" && got != "e" {
			t.Errorf("%q", got)
		}
	}
	if got := ask(t, n, ""); got != "d" && got != "e" {
		t.Errorf("%q", got)
	}
}

// TestLeadMoves: a lead that moves while nobody fails is noticed by the first answer that was
// handed on.
func TestLeadMoves(t *testing.T) {
	a, b := node(t, "a"), node(t, "b")
	both := []member{{"a", a.URL, "up"}, {"b", b.URL, "up"}}
	for _, of := range []*fakeNode{a, b} {
		of.view = cluster("1f", 5, both, "a")
	}
	n := nodes(t, discovery.Config{Endpoints: []string{b.URL}})
	await(t, "the leader is known", func() bool { return ask(t, n, id(0)) == "a" })
	for _, of := range []*fakeNode{a, b} {
		of.set(func() { of.view = cluster("1f", 6, both, "b") })
	}
	a.set(func() {
		a.answer = func(w http.ResponseWriter) bool {
			w.Header().Set("Assent-Forwarded", "b")
			_, _ = io.WriteString(w, "a, by b")
			return true
		}
	})
	if got := ask(t, n, id(0)); got != "a, by b" {
		t.Fatalf("the answer is %q", got)
	}
	await(t, "the next leader is known", func() bool { return ask(t, n, id(0)) == "b" })
}

// TestHalfKnown: a node that has just been founded does not know yet where clients reach the
// others. It is asked again soon, and so its death does not leave the client alone.
func TestHalfKnown(t *testing.T) {
	a, b := node(t, "a"), node(t, "b")
	a.view = cluster("1f", 5, []member{{"a", a.URL, "up"}, {"b", "", "up"}}, "a")
	n := nodes(t, discovery.Config{Endpoints: []string{a.URL}})
	await(t, "the cluster is learned", func() bool { return ask(t, n, id(0)) == "a" && len(n.URLs()) == 1 && a.asked("/v1/cluster") > 0 })
	for _, of := range []*fakeNode{a, b} {
		of.set(func() { of.view = cluster("1f", 5, []member{{"a", a.URL, "up"}, {"b", b.URL, "up"}}, "a") })
	}
	began := time.Now()
	await(t, "the second node is known", func() bool { return ask(t, n, id(0)) == "a" && len(n.URLs()) == 2 })
	t.Log("known after", time.Since(began).Round(time.Millisecond))
	a.kill()
	if got := ask(t, n, id(0)); got != "b" {
		t.Errorf("the request went to %q", got)
	}
}

// TestHint: a refusal names the leader, which is asked at once, known or not.
func TestHint(t *testing.T) {
	a, b, c := node(t, "a"), node(t, "b"), node(t, "c")
	a.refuse = fmt.Sprintf(`{"message":"m","details":[{"reason":"NOT_READY","metadata":{"leader":"c","leader_http":%q}}]}`, c.URL)
	n := nodes(t, discovery.Config{Endpoints: []string{a.URL, b.URL}})
	if got := ask(t, n, id(0)); got != "c" {
		t.Errorf("%q answered", got)
	}
	for range 3 {
		if got := ask(t, n, id(0)); got != "c" {
			t.Errorf("%q answered", got)
		}
	}
	if a.asked("/v1/x") != 1 {
		t.Error("who is not ready was asked again")
	}
}

// TestOldCoordinator has no /v1/cluster: the configured nodes are used.
func TestOldCoordinator(t *testing.T) {
	a, b := node(t, "a"), node(t, "b")
	n := nodes(t, discovery.Config{Endpoints: []string{a.URL + "/ , " + b.URL}})
	for range 50 {
		if got := ask(t, n, id(0)); got != "a" {
			t.Fatalf("%q answered", got)
		}
	}
	await(t, "it was asked for its members", func() bool { return a.asked("/v1/cluster") == 1 })
	a.kill()
	for range 50 {
		if got := ask(t, n, id(0)); got != "b" {
			t.Fatalf("%q answered", got)
		}
	}
	if got := fmt.Sprint(n.URLs()); got != fmt.Sprint([]string{a.URL, b.URL}) {
		t.Error(got)
	}
}

// TestAllFail: the last refusal is told, or the last error; whoever is back first is found
// soon.
func TestAllFail(t *testing.T) {
	a, b := node(t, "a"), node(t, "b")
	refusal := `{"message":"no leader","details":[{"reason":"NOT_READY"}]}`
	a.refuse = refusal
	b.kill()
	n := nodes(t, discovery.Config{Endpoints: []string{a.URL, b.URL}})
	r := &discovery.Request{Method: http.MethodGet, Path: "/v1/x"}
	if answer, err := n.Do(t.Context(), r); err != nil || answer.Status != 503 || string(answer.Body) != refusal {
		t.Errorf("%+v, %v", answer, err)
	}
	await(t, "both take turns", func() bool {
		_, err := n.Do(t.Context(), r)
		return err != nil
	})
	a.set(func() { a.refuse = "" })
	await(t, "it is back", func() bool { return ask(t, n, "") == "a" })
	// Neither is a limit that is reached everywhere a reason to go on.
	a.set(func() { a.refuse = `{"message":"m","details":[{"reason":"UPGRADE_PENDING"}]}` })
	if answer, err := n.Do(t.Context(), r); err != nil || answer.Status != 503 {
		t.Errorf("%+v, %v", answer, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Do(ctx, r); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	n.Close()
	if _, err := n.Do(t.Context(), r); !errors.Is(err, discovery.ErrClosed) {
		t.Error(err)
	}
}

// TestSilence: a node that takes requests and says no word costs two seconds once, and one
// that only takes its time is waited for.
func TestSilence(t *testing.T) {
	a, b := node(t, "a"), node(t, "b")
	a.hang = make(chan struct{})
	n := nodes(t, discovery.Config{Endpoints: []string{a.URL, b.URL}})
	if got := ask(t, n, ""); got != "b" { // within the time of ask
		t.Errorf("%q answered", got)
	}
	for range 20 {
		if got := ask(t, n, ""); got != "b" {
			t.Fatalf("%q answered", got)
		}
	}
	if a.asked("/v1/x") != 1 {
		t.Error("the silent one was asked again")
	}
	slow := make(chan struct{})
	b.set(func() { b.slow = slow })
	looked := b.asked("/readyz")
	answered := make(chan string, 1)
	go func() { answered <- ask(t, n, "") }()
	await(t, "it was looked at twice", func() bool { return b.asked("/readyz") >= looked+2 })
	close(slow)
	if got := <-answered; got != "b" {
		t.Errorf("%q answered", got)
	}
	close(a.hang)
	a.set(func() { a.hang = nil })
	b.kill()
	await(t, "the silent one is back", func() bool { return ask(t, n, "") == "a" })
}

// TestDeadHost: a connection that is never made costs the time-out of dialling, once.
func TestDeadHost(t *testing.T) {
	// A listener whose queue is full takes no connection: the kernel drops what knocks.
	dead := full(t)
	a := node(t, "a")
	n := nodes(t, discovery.Config{Endpoints: []string{"http://" + dead, a.URL}})
	// All in the time of ask, in which it could be paid for nine times.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for i := range 20 {
		answer, err := n.Do(ctx, &discovery.Request{Method: http.MethodPost, Path: "/v1/x", Body: []byte(`{}`)})
		if err != nil || string(answer.Body) != "a" {
			t.Fatalf("%d: %+v, %v", i, answer, err)
		}
	}
}

// TestNames: each address of a name is a node, the name stays what they are called, and new
// addresses are found when the old ones fail.
func TestNames(t *testing.T) {
	a, b := node(t, "a"), node(t, "b")
	// Both on one port, at two addresses of loopback.
	_, port, _ := net.SplitHostPort(a.Listener.Addr().String())
	second := listen(t, "127.0.0.2:"+port, b)
	third := listen(t, "127.0.0.3:"+port, node(t, "c"))
	var mu sync.Mutex
	addresses := []string{"127.0.0.1", "127.0.0.2"}
	var err error
	asked := 0
	n := nodes(t, discovery.Config{Endpoints: []string{"http://coordinator.test:" + port}, Resolve: func(_ context.Context, host string) ([]string, error) {
		mu.Lock()
		defer mu.Unlock()
		if asked++; host != "coordinator.test" {
			t.Errorf("%q is resolved", host)
		}
		return slices.Clone(addresses), err
	}})
	if got := ask(t, n, ""); got != "a" || asked != 1 {
		t.Errorf("%q answered, %d look-ups", got, asked)
	}
	a.kill()
	if got := ask(t, n, ""); got != "b" {
		t.Errorf("%q answered", got)
	}
	b.set(func() {
		if b.hosts[0] != "coordinator.test:"+port {
			t.Errorf("it was called %q", b.hosts[0])
		}
	})
	// The resolver fails, then knows another address alone.
	mu.Lock()
	err = errors.New("no resolver")
	mu.Unlock()
	second()
	if got := ask(t, n, ""); got != "" {
		t.Errorf("%q answered", got)
	}
	mu.Lock()
	addresses, err = []string{"127.0.0.3"}, nil
	mu.Unlock()
	await(t, "the new address", func() bool { return ask(t, n, "") == "c" })
	third()

	fails := nodes(t, discovery.Config{Endpoints: []string{"http://coordinator.test"}, Resolve: func(context.Context, string) ([]string, error) { return nil, nil }})
	if _, err := fails.Do(t.Context(), &discovery.Request{Method: "GET", Path: "/"}); err == nil || !strings.Contains(err.Error(), "coordinator.test") {
		t.Error(err)
	}
}

// TestTLS: the name that was resolved is the one that the certificate has to name.
func TestTLS(t *testing.T) {
	secure := httptest.NewUnstartedServer(&fakeNode{name: "s", counted: map[string]int{}})
	secure.StartTLS()
	defer secure.Close()
	_, port, _ := net.SplitHostPort(secure.Listener.Addr().String())
	resolve := func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	config := secure.Client().Transport.(*http.Transport).TLSClientConfig
	for host, want := range map[string]string{"example.com": "s", "coordinator.test": ""} { // example.com is what httptest certifies
		n := nodes(t, discovery.Config{Endpoints: []string{"https://" + host + ":" + port}, Resolve: resolve, TLS: config})
		if got := ask(t, n, ""); got != want {
			t.Errorf("%s: %q", host, got)
		}
	}
	n := nodes(t, discovery.Config{Endpoints: []string{secure.URL}, HTTPClient: secure.Client()})
	if got := ask(t, n, ""); got != "s" {
		t.Errorf("with a client of the caller's: %q", got)
	}
}

// TestFile is read again when what it named has failed.
func TestFile(t *testing.T) {
	a, b := node(t, "a"), node(t, "b")
	path := filepath.Join(t.TempDir(), "endpoints")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write("# the first\n\n" + a.URL + " # in rack 1\n")
	n := nodes(t, discovery.Config{File: path})
	if got := ask(t, n, ""); got != "a" {
		t.Fatalf("%q answered", got)
	}
	write("not a URL\n")
	a.kill()
	if got := ask(t, n, ""); got != "" {
		t.Errorf("%q answered", got)
	}
	write(b.URL + "\n")
	await(t, "the file is read again", func() bool { return ask(t, n, "") == "b" })
	if !strings.Contains(n.String(), path) {
		t.Error(n)
	}
}

// TestStranger: an address of a former member that now belongs to another cluster is left,
// while a configured one is believed.
func TestStranger(t *testing.T) {
	a, b, x := node(t, "a"), node(t, "b"), node(t, "x")
	a.view = cluster("1f", 5, []member{{"a", a.URL, "up"}, {"b", b.URL, "up"}}, "b")
	b.view = cluster("2e", 9, []member{{"x", x.URL, "up"}}, "x")
	x.view = b.view
	n := nodes(t, discovery.Config{Endpoints: []string{a.URL}})
	await(t, "b is known", func() bool { return ask(t, n, id(0)) == "b" })
	a.set(func() { a.refuse, a.view = `{"message":"m"}`, cluster("1f", 6, []member{{"a", a.URL, "up"}}, "") })
	await(t, "b is found out", func() bool {
		ask(t, n, "")
		return !slices.Contains(n.URLs(), b.URL) && ask(t, n, "") == ""
	})
	if x.asked("/v1/x") != 0 {
		t.Error("the other cluster was asked")
	}
	a.set(func() { a.refuse, a.view = "", cluster("2e", 9, []member{{"x", x.URL, "up"}}, "x") })
	await(t, "a is believed", func() bool { return ask(t, n, id(0)) == "x" })
}

// TestRestored: a cluster that was restored is the same one, and its terms begin anew; a node
// that was left behind is not believed.
func TestRestored(t *testing.T) {
	a, b := node(t, "a"), node(t, "b")
	two := []member{{"a", a.URL, "up"}, {"b", b.URL, "up"}}
	before := cluster("1f", 50, two, "b")
	after := cluster("1f", 1, two, "a")
	after["incarnation"] = 2
	a.view, b.view = before, before
	n := nodes(t, discovery.Config{Endpoints: []string{"http://127.0.0.1:1", a.URL}})
	await(t, "b is known", func() bool { return ask(t, n, id(0)) == "b" })
	a.set(func() { a.view = after })
	b.set(func() { b.view, b.refuse = after, `{"message":"m"}` })
	await(t, "a leads", func() bool { return ask(t, n, id(0)) == "a" })
	b.set(func() { b.refuse = "" })
	a.set(func() { a.view, a.refuse = before, `{"message":"m"}` })
	seen := a.asked("/v1/cluster") + b.asked("/v1/cluster")
	await(t, "who is there is asked again", func() bool {
		return ask(t, n, id(0)) == "b" && a.asked("/v1/cluster")+b.asked("/v1/cluster") > seen
	})
	a.set(func() { a.refuse = "" })
	await(t, "a leads still", func() bool { return ask(t, n, id(0)) == "a" })
}

// TestNonsense: views of no use change nothing.
func TestNonsense(t *testing.T) {
	a := node(t, "a")
	n := nodes(t, discovery.Config{Endpoints: []string{a.URL}})
	good := cluster("1f", 5, []member{{"a", a.URL, "up"}}, "a")
	for key, value := range map[string]any{"cluster": "", "shards": 5000, "nodes": []any{}, "placement": "x"} {
		view := maps.Clone(good)
		view[key] = value
		seen := a.asked("/v1/cluster")
		a.set(func() { a.view = view })
		await(t, "it is asked", func() bool { return ask(t, n, id(0)) == "a" && a.asked("/v1/cluster") > seen })
	}
	strange := cluster("1f", 5, []member{{"a", "ftp://a", "up"}, {"b", ":", "up"}}, "a", "nobody")
	strange["placement"] = append(strange["placement"].([]map[string]any), map[string]any{"shard": -1, "leader": "a"}, map[string]any{"shard": 2, "leader": "a"})
	a.set(func() { a.view = strange })
	seen := a.asked("/v1/cluster")
	await(t, "it is taken", func() bool { return ask(t, n, id(1)) == "a" && a.asked("/v1/cluster") > seen })
	for _, key := range []string{"", "x", id(0)[:35], strings.Replace(id(0), "7000", "7zzz", 1)} {
		if got := ask(t, n, key); got != "a" {
			t.Errorf("%q: %q", key, got)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Setenv(discovery.EnvEndpoints, "")
	t.Setenv(discovery.EnvURL, "")
	t.Setenv(discovery.EnvFile, "")
	if n := nodes(t, discovery.Config{}); n.String() != discovery.DefaultEndpoint {
		t.Error(n)
	}
	t.Setenv(discovery.EnvURL, "http://u:secret@h:1, http://h:2")
	if n := nodes(t, discovery.Config{}); n.String() != "http://u:xxxxx@h:1, http://h:2" {
		t.Error(n)
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("http://h:9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(discovery.EnvFile, file)
	if n := nodes(t, discovery.Config{}); n.String() != "those in "+file {
		t.Error(n)
	}
	t.Setenv(discovery.EnvEndpoints, "http://h:3,")
	if n := nodes(t, discovery.Config{}); n.String() != "http://h:3, those in "+file {
		t.Error(n)
	}
	if n := nodes(t, discovery.Config{Endpoints: []string{"http://h:4"}}); n.String() != "http://h:4" {
		t.Error(n)
	}
	for _, bad := range []string{"h:7070", "ftp://h", "http://", ":", "http://h?x=1", "http://h:1,nothing"} {
		if _, err := discovery.New(discovery.Config{Endpoints: []string{bad}}); err == nil {
			t.Errorf("%q was taken", bad)
		}
		if discovery.Check(bad) == nil {
			t.Errorf("%q is well", bad)
		}
	}
	if discovery.Check(" , ") == nil || discovery.Check("http://h:1, https://h") != nil {
		t.Error("lists are not checked well")
	}
	for name, text := range map[string]string{"empty": "# nothing\n", "bad": "x\n", "large": strings.Repeat("#", 1<<17)} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := discovery.New(discovery.Config{File: path}); err == nil {
			t.Errorf("the %s file was taken", name)
		}
	}
	if _, err := discovery.New(discovery.Config{File: "/nowhere/at/all"}); err == nil {
		t.Error("a file that is not there was taken")
	}
}

// TestTooLarge: an answer over the limit is an error that does not blame the node.
func TestTooLarge(t *testing.T) {
	a := node(t, "a")
	n := nodes(t, discovery.Config{Endpoints: []string{a.URL}})
	if _, err := n.Do(t.Context(), &discovery.Request{Method: "GET", Path: "/v1/x", MaxBytes: 0}); err != nil {
		t.Error(err)
	}
	a.set(func() { a.name = "a long one" })
	if _, err := n.Do(t.Context(), &discovery.Request{Method: "GET", Path: "/v1/x", MaxBytes: 4}); !errors.Is(err, discovery.ErrTooLarge) {
		t.Error(err)
	}
	if a.asked("/v1/x") != 2 {
		t.Error("it was asked again")
	}
}

// TestStorm: many at once, while nodes die and come back, and Close in the middle.
func TestStorm(t *testing.T) {
	a, b := node(t, "a"), node(t, "b")
	view := cluster("1f", 5, []member{{"a", a.URL, "up"}, {"b", b.URL, "up"}}, "a", "b")
	a.view, b.view = view, view
	n := nodes(t, discovery.Config{Endpoints: []string{a.URL}})
	await(t, "both are known", func() bool { return ask(t, n, id(1)) == "b" })
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 100 {
				if got := ask(t, n, id(i+j)); got == "" {
					t.Errorf("no answer to %d/%d", i, j)
				}
			}
		})
	}
	all.Go(func() {
		for range 20 {
			a.set(func() { a.refuse = `{"message":"m"}` })
			time.Sleep(2 * time.Millisecond) // let it refuse some
			a.set(func() { a.refuse = "" })
		}
	})
	all.Wait()
	closing := make(chan struct{})
	slow := make(chan struct{})
	a.set(func() { a.slow = slow })
	b.set(func() { b.slow = slow })
	seen := a.asked("/v1/x") + b.asked("/v1/x")
	go func() { defer close(closing); _ = ask(t, n, "") }()
	await(t, "it is under way", func() bool { return a.asked("/v1/x")+b.asked("/v1/x") > seen })
	n.Close()
	close(slow)
	<-closing
}

// listen serves a node at a further address; the function it returns ends that.
func listen(t *testing.T, address string, n *fakeNode) (stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: n, ReadHeaderTimeout: time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			_ = s.Close()
			<-done
		})
	}
	t.Cleanup(stop)
	return stop
}
