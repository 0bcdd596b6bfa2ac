package rmtest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func payload(do string) func(string) json.RawMessage {
	return func(marker string) json.RawMessage { return fmt.Appendf(nil, `{"do":%q,"marker":%q}`, do, marker) }
}

// modelTarget serves a model with a bug (or none) on a real listener.
func modelTarget(t *testing.T, bug string) Target {
	t.Helper()
	m := newModel(bug)
	server := serveModel(m)
	t.Cleanup(func() { server.Close() })
	count := func(of *map[string]int) func(context.Context, string) (int, error) {
		return func(_ context.Context, marker string) (int, error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			return (*of)[marker], nil
		}
	}
	return Target{
		Service: "model", BaseURL: server.URL,
		Succeed: payload("add"), Refuse: payload("refuse"), ReadOnly: payload("read"), Results: payload("result"), Observe: payload("observe"),
		Effects: count(&m.counts), Reserved: count(&m.holds),
		Restart: func(context.Context) (string, error) {
			server.Close()
			m.restart()
			server = httptest.NewServer(m)
			return server.URL, nil
		},
		OnePhase:    true,
		Execute:     true,
		StepTimeout: 20 * time.Second,
	}
}

func TestModelConforms(t *testing.T) { Run(t, modelTarget(t, "")) }

// recorder is a testing.TB that remembers a failure instead of passing it on.
type recorder struct {
	testing.TB
	mu       sync.Mutex
	failures []string
}

func (r *recorder) Helper() {}
func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// failing runs the suite against a target and returns the cases that failed, with why.
func failing(t *testing.T, target Target) map[string]string { return failingOf(t, cases, target) }

func failingOf(t *testing.T, cases []conformance, target Target) map[string]string {
	t.Helper()
	s := newSuite(target)
	failed := make(map[string]string)
	for _, c := range cases {
		if !c.applies(&s.target) {
			continue
		}
		r := &recorder{TB: t}
		end := make(chan struct{})
		go func() {
			defer close(end)
			c.run(&env{TB: r, suite: s})
		}()
		<-end
		if len(r.failures) > 0 {
			failed[c.name] = r.failures[0]
		}
	}
	s.client.CloseIdleConnections()
	return failed
}

// Every participant broken in one way is caught, by the case that names the demand;
// and a case that no broken participant fails would not be a test.
func TestSuiteBites(t *testing.T) {
	var mu sync.Mutex
	caught := make(map[string]bool)
	t.Cleanup(func() { // after the parallel subtests
		for _, name := range Cases(modelTarget(t, "")) {
			if !caught[name] {
				t.Errorf("no broken participant fails %q", name)
			}
		}
	})
	for bug, want := range map[string]string{
		"applies at execute":               "executed and deferred operations commit together",
		"begins anew what was opened":      "a restart between execute and prepare loses nothing silently",
		"executes after rollback":          "a branch that has ended executes nothing",
		"executes before it locks":         "concurrent executes execute once",
		"executes for an older term":       "an older term does not execute",
		"executes repeats again":           "a repeated execute gets the same results",
		"executes rubbish":                 "malformed executes change nothing",
		"forgets executed results":         "a repeated execute gets the same results",
		"goes on after a refused execute":  "a refused operation refuses the branch",
		"ignores gaps":                     "an execute behind a gap is refused",
		"ignores the digest of an execute": "the digest of an execute is checked",
		"ignores the execution":            "an execute of another open transaction is refused",
		"ignores what was executed":        "prepare votes no for what was not executed here",
		"loses executed work":              "executed and deferred operations commit together",
		"no to what was executed before":   "a yes for executed work survives a restart",
		"one open branch for all":          "several branches are open at once",
		"reads from an old snapshot":       "an executed operation sees what was committed before it",
		"yes to what it has not executed":  "a restart between execute and prepare loses nothing silently",

		"one-phase leaves executed work prepared":        "one-phase commits executed work",
		"rollback of an open branch leaves no tombstone": "rollback ends an open branch",

		"applies at prepare":               "rollback applies nothing",
		"applies one operation only":       "commit applies once",
		"applies twice":                    "repeated calls get the same answer",
		"checks before it locks":           "concurrent duplicates execute once",
		"commit of rolled back is success": "the first end holds",
		"commits after rollback":           "the first end holds",
		"commits in-doubt at restart":      "a yes survives a restart",
		"deletes rolled back rows":         "prepare after rollback votes no",
		"executes every prepare":           "repeated calls get the same answer",
		"forgets newer terms":              "an older term is refused",
		"forgets prepared at restart":      "a yes survives a restart",
		"forgets refusals at restart":      "no is sticky",
		"forgets results at restart":       "results are repeated",
		"forgets terms at restart":         "an older term is refused",
		"forgets the first results":        "results are repeated",
		"forgets tombstones at restart":    "rollback before prepare leaves a tombstone",
		"hides results at restart":         "results are repeated",
		"ignores forgotten_below":          "forgotten transactions are refused",
		"ignores other work":               "other work under the same identity is refused",
		"ignores terms":                    "an older term is refused",
		"ignores the count":                "digest and count are checked",
		"ignores the digest":               "digest and count are checked",
		"ignores tokens":                   "a stale fencing token is refused",
		"keeps no row of a no":             "no is sticky when its cause is gone",
		"keeps reservations":               "commit applies once",
		"keeps work of a no":               "no is sticky",
		"keyed by attempt":                 "an older term is refused",
		"loses results":                    "results are repeated",
		"no after commit":                  "prepare after commit repeats yes",
		"no is not sticky":                 "no is sticky when its cause is gone",
		"no tombstone":                     "rollback before prepare leaves a tombstone",
		"one row per transaction":          "branches of one transaction are apart",
		"one-phase stays prepared":         "one-phase prepare commits",
		"read_only revived":                "read_only ends in phase one",
		"rollback always answers ok":       "the first end holds",
		"rollback keeps reservations":      "rollback applies nothing",
		"rolls back a committed branch":    "the first end holds",
		"rolls back in-doubt at restart":   "a yes survives a restart",
		"status always prepared":           "status tells and writes nothing",
		"status leaves a tombstone":        "status tells and writes nothing",
		"unknown commit is success":        "commit of an unknown branch is not success",
		"votes yes for read_only once":     "read_only ends in phase one",
		"votes yes to rubbish":             "malformed calls change nothing",
		"yes after rollback":               "prepare after rollback votes no",
	} {
		t.Run(bug, func(t *testing.T) {
			t.Parallel()      // each mostly waits for connections to close
			part := baseCases // a bug shows in the part of the contract that it breaks
			if slices.ContainsFunc(executeCases, func(c conformance) bool { return c.name == want }) {
				part = executeCases
			}
			if strings.HasSuffix(bug, "before it locks") { // other cases have no duplicates, for which it waits
				part = slices.DeleteFunc(slices.Clone(part), func(c conformance) bool { return c.name != want })
			}
			failed := failingOf(t, part, modelTarget(t, bug))
			if _, ok := failed[want]; !ok {
				t.Errorf("not caught by %q; caught by: %v", want, failed)
			}
			mu.Lock()
			defer mu.Unlock()
			for name := range failed {
				caught[name] = true
			}
		})
	}
}

func TestCasesFollowTheTarget(t *testing.T) {
	full := Cases(modelTarget(t, ""))
	poor := modelTarget(t, "")
	poor.Execute, poor.OnePhase, poor.NoTerms, poor.NoTokens, poor.NoForget, poor.NoStatus = false, false, true, true, true, true
	poor.ReadOnly, poor.Results, poor.Restart = nil, nil, nil
	least := Cases(poor)
	for _, name := range full {
		executes := slices.ContainsFunc(executeCases, func(c conformance) bool { return c.name == name })
		optional := executes || strings.HasPrefix(name, "one-phase") || slices.Contains([]string{
			"an older term is refused", "a stale fencing token is refused", "a yes survives a restart", "status tells and writes nothing",
			"results are repeated", "read_only ends in phase one", "forgotten transactions are refused",
		}, name)
		if optional == slices.Contains(least, name) {
			t.Errorf("%q: run for the poorest target: %v", name, !optional)
		}
	}
	Run(t, poor)
}

// Where the results of prepared branches may be lost by a restart, this is all that
// may be lost.
func TestVolatileResults(t *testing.T) {
	volatile := func(bug string) Target {
		target := modelTarget(t, bug)
		target.VolatileResults = true
		return target
	}
	Run(t, volatile("hides results at restart"))
	for _, bug := range []string{"loses results", "forgets results at restart", "forgets the first results"} {
		if failed := failing(t, volatile(bug)); failed["results are repeated"] == "" {
			t.Errorf("%s: not caught; caught by: %v", bug, failed)
		}
	}
}
