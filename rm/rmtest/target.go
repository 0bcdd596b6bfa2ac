// Package rmtest is the conformance suite of the participant contract. Every
// participant, whether written with the SDK or without it, in whatever language,
// can be run against it over HTTP:
//
//	func TestConformance(t *testing.T) {
//		rmtest.Run(t, rmtest.Target{Service: "ledger-a", BaseURL: url, …})
//	}
//
// The suite is written against the contract alone: it shares no code with the
// coordinator or the SDK. It makes its own transactions and effects and can run
// against a participant that holds other data.
package rmtest

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Target is the participant under test. Fields without "optional" are required.
type Target struct {
	Service string // its name, sent in every call

	// BaseURL is where /prepare, /commit, /rollback and /status are, and /execute if it
	// has one.
	BaseURL string
	Client  *http.Client // optional
	Cluster string       // optional: the coordinator cluster that calls, 32 hexadecimal digits

	// Succeed builds a payload whose effect is counted under marker once it is
	// committed. Two payloads of one marker in one branch are two effects. Payloads of
	// different markers must not wait for each other (one row of both, say): their
	// branches are open at once, unless OneOpen.
	Succeed func(marker string) json.RawMessage
	// Refuse builds a payload that is voted no, and would have an effect under
	// marker if it were not.
	Refuse func(marker string) json.RawMessage
	// ReadOnly builds a payload that is voted read_only; nil: never voted.
	ReadOnly func(marker string) json.RawMessage
	// Results builds a payload that is voted yes with at least one result; nil:
	// results are never returned.
	Results func(marker string) json.RawMessage
	// Observe builds a payload that is executed and returns something that changes when a
	// Succeed with that marker is committed: a count, say; nil: what is executed reads nothing.
	Observe func(marker string) json.RawMessage
	// Effects counts the committed effects under marker; Reserved what is
	// reserved but not committed. Reserved is optional.
	Effects, Reserved func(ctx context.Context, marker string) (int, error)

	// Restart ends the participant without warning and starts it again on the same
	// data, and returns its base URL. Optional, but a participant that was never
	// restarted is not tested.
	Restart func(ctx context.Context) (baseURL string, err error)

	OnePhase bool // it is registered with one_phase
	Execute  bool // it is registered with an execute endpoint; it executes Succeed, Refuse and Results
	OneOpen  bool // only one branch can be open at a time (SQLite); others wait for its end
	// What a participant may leave out if it is idempotent and keeps tombstones.
	NoTerms  bool // it does not check terms
	NoTokens bool // it does not check fencing tokens
	NoForget bool // it keeps every outcome for ever, or forgets by other means
	NoStatus bool // it has no status URL
	// VolatileResults: a restart loses the results of branches that are prepared.
	// Until the commit a duplicate may then be voted yes without them; from the
	// commit on they must be the first ones again.
	VolatileResults bool

	StepTimeout time.Duration // of one call. Default 10s
}

// Run runs the whole suite, each case as a subtest.
func Run(t *testing.T, target Target) {
	t.Helper()
	if target.Service == "" || target.BaseURL == "" || target.Succeed == nil || target.Refuse == nil || target.Effects == nil {
		t.Fatal("rmtest: Service, BaseURL, Succeed, Refuse and Effects are required")
	}
	s := newSuite(target)
	var left []string
	for _, c := range cases {
		if !c.applies(&s.target) {
			left = append(left, c.name)
		}
	}
	t.Logf("rmtest: %d of %d cases; the target declares no need of: %q", len(cases)-len(left), len(cases), left)
	for _, c := range cases {
		if c.applies(&s.target) {
			t.Run(c.name, func(t *testing.T) { c.run(&env{TB: t, suite: s}) })
		}
	}
}

// Cases names the cases that apply to a target: what Run will run.
func Cases(target Target) []string {
	var names []string
	for _, c := range cases {
		if c.applies(&target) {
			names = append(names, c.name)
		}
	}
	return names
}

// suite is shared by the cases; a restart may move the participant.
type suite struct {
	target Target
	client *http.Client
	base   string
}

func newSuite(target Target) *suite {
	if target.StepTimeout <= 0 {
		target.StepTimeout = 10 * time.Second
	}
	if target.Cluster == "" {
		// Always the same, for participants that bind their data to the first cluster they hear.
		target.Cluster = "c0ffee00c0ffee00c0ffee00c0ffee00"
	}
	client := target.Client
	if client == nil {
		client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return &suite{target: target, client: client, base: strings.TrimRight(target.BaseURL, "/")}
}

// conformance is one case. needs is nil for what every participant must do.
type conformance struct {
	name  string
	needs func(t *Target) bool
	run   func(e *env)
}

func (c conformance) applies(t *Target) bool { return c.needs == nil || c.needs(t) }
