package rmtest

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"
)

const duplicates = 32

func onePhase(t *Target) bool { return t.OnePhase }

// cases is the suite. Each case is one demand of the contract, and says in its
// name what a participant that fails it does not do.
var cases = slices.Concat(baseCases, executeCases)

// baseCases are the demands of the phases that every participant has.
var baseCases = []conformance{
	{name: "commit applies once", run: func(e *env) {
		b := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		b.expect("prepare", "yes")
		b.count("effects", e.suite.target.Effects, 0)
		b.reserved(2)
		b.status("prepared")
		b.expect("commit", "done")
		b.effects(2)
		b.status("committed")
	}},
	{name: "rollback applies nothing", run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		b.expect("prepare", "yes")
		b.expect("rollback", "done")
		b.effects(0)
		b.status("rolled_back")
	}},
	{name: "repeated calls get the same answer", run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		for range 3 {
			b.expect("prepare", "yes")
		}
		b.reserved(1)
		for range 3 {
			b.expect("commit", "done")
		}
		b.effects(1)
		r := e.branch(e.suite.target.Succeed)
		r.expect("prepare", "yes")
		for range 3 {
			r.expect("rollback", "done")
		}
		r.effects(0)
	}},
	{name: "concurrent duplicates execute once", run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		b.expectTogether(duplicates, "prepare", "yes")
		b.reserved(1)
		b.expectTogether(duplicates, "commit", "done")
		b.effects(1)
		r := e.branch(e.suite.target.Succeed)
		r.expect("prepare", "yes")
		r.expectTogether(duplicates, "rollback", "done")
		r.effects(0)
	}},
	{name: "prepare racing rollback never stays prepared", run: func(e *env) {
		for range 10 {
			b := e.branch(e.suite.target.Succeed)
			votes := make(chan map[string]int, 1)
			go func() { votes <- b.together(4, "prepare") }()
			b.expectTogether(4, "rollback", "done")
			<-votes // yes or no: both are right, before or after the rollback
			b.expect("prepare", "no")
			b.status("rolled_back")
			b.effects(0)
		}
	}},
	{name: "rollback before prepare leaves a tombstone", run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		b.expect("rollback", "done")
		b.status("rolled_back")
		b.expect("prepare", "no")
		e.restart()
		b.expect("prepare", "no")
		b.expect("rollback", "done")
		b.effects(0)
	}},
	{name: "prepare after rollback votes no", run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		b.expect("prepare", "yes")
		b.expect("rollback", "done")
		b.expect("prepare", "no")
		b.effects(0)
		b.expect("commit", "rolled_back")
		b.effects(0)
	}},
	{name: "prepare after commit repeats yes", run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		b.expect("prepare", "yes")
		b.expect("commit", "done")
		b.expect("prepare", "yes")
		b.effects(1)
		b.expect("commit", "done")
		b.effects(1)
		b.status("committed")
	}},
	{name: "commit of an unknown branch is not success", run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		b.expect("commit", "unknown")
		b.status("unknown")
		b.expect("prepare", "yes") // the question wrote nothing
		b.expect("rollback", "done")
		b.effects(0)
	}},
	{name: "the first end holds", run: func(e *env) {
		c := e.branch(e.suite.target.Succeed)
		c.expect("prepare", "yes")
		c.expect("commit", "done")
		c.expect("rollback", "committed")
		c.status("committed")
		c.effects(1)
		r := e.branch(e.suite.target.Succeed)
		r.expect("prepare", "yes")
		r.expect("rollback", "done")
		r.expect("commit", "rolled_back")
		r.status("rolled_back")
		r.effects(0)
		t := e.branch(e.suite.target.Succeed) // never prepared
		t.expect("rollback", "done")
		t.expect("commit", "rolled_back")
		t.effects(0)
	}},
	{name: "no is sticky", run: func(e *env) {
		b := e.branch(e.suite.target.Succeed, e.suite.target.Refuse)
		b.expect("prepare", "no")
		b.expect("prepare", "no")
		e.restart()
		b.status("rolled_back") // before the next prepare could refuse afresh
		b.expect("prepare", "no")
		b.expect("commit", "rolled_back")
		b.expect("rollback", "done")
		b.effects(0) // also of the operation before the refused one
	}},
	{name: "no is sticky when its cause is gone", run: func(e *env) {
		b := e.branch(e.suite.target.Refuse)
		b.expect("prepare", "no")
		good := b.with(func(b *branch) { b.payloads = []json.RawMessage{e.suite.target.Succeed(b.marker)} })
		good.expect("prepare", "no")
		good.effects(0)
	}},
	{name: "digest and count are checked", run: func(e *env) {
		other := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		for name, value := range map[string]any{
			"digest":     digest(other.payloads),
			"count":      7,
			"operations": []map[string]json.RawMessage{},
		} {
			b := e.branch(e.suite.target.Succeed)
			bad := b.with(func(b *branch) { b.overridden[name] = value })
			bad.expect("prepare", "no", "indefinite")
			b.expect("rollback", "done")
			b.effects(0)
		}
		// A body that lost an operation on its way must not be voted for.
		lost := other.with(func(b *branch) {
			b.overridden["operations"] = []map[string]json.RawMessage{{"payload": other.payloads[0]}}
		})
		lost.expect("prepare", "no")
		lost.effects(0)
	}},
	{name: "other work under the same identity is refused", run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		b.expect("prepare", "yes")
		b.with(func(b *branch) { b.payloads = append(b.payloads[:1:1], e.suite.target.Succeed(b.marker)) }).expect("prepare", "no")
		b.reserved(1)
		b.expect("commit", "done")
		b.effects(1)
	}},
	{name: "branches of one transaction are apart", run: func(e *env) {
		one := e.branch(e.suite.target.Succeed)
		two := one.with(func(b *branch) { b.number, b.marker = 2, b.marker+"-2" })
		two.payloads = []json.RawMessage{e.suite.target.Succeed(two.marker)}
		one.expect("prepare", "yes")
		two.expect("prepare", "yes")
		one.expect("commit", "done")
		two.expect("rollback", "done")
		one.effects(1)
		two.effects(0)
	}},
	{name: "an older term is refused", needs: func(t *Target) bool { return !t.NoTerms }, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		older := b.with(func(b *branch) { b.term-- })
		b.expect("prepare", "yes")
		for _, phase := range []string{"prepare", "commit", "rollback"} {
			older.expect(phase, "indefinite")
		}
		b.status("prepared")
		newer := b.with(func(b *branch) { b.term++ })
		newer.expect("prepare", "yes") // a new leader asks again, and has been seen by that
		e.restart()
		b.expect("rollback", "indefinite")
		newer.status("prepared")
		newer.expect("commit", "done")
		b.effects(1)
		older.expect("prepare", "indefinite", "yes")
		older.expect("rollback", "indefinite", "committed")
		t := e.branch(e.suite.target.Succeed)
		t.expect("rollback", "done")
		t.with(func(b *branch) { b.term-- }).expect("prepare", "indefinite", "no")
		t.effects(0)
	}},
	{name: "a stale fencing token is refused", needs: func(t *Target) bool { return !t.NoTokens }, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		stale := b.with(func(b *branch) { b.token = "00000004" })
		b.expect("prepare", "yes")
		for _, phase := range []string{"prepare", "commit", "rollback"} {
			stale.expect(phase, "indefinite")
		}
		b.status("prepared")
		b.with(func(b *branch) { b.token = "" }).expect("prepare", "yes") // claims no grant
		b.expect("commit", "done")
		b.effects(1)
	}},
	{name: "a yes survives a restart", needs: func(t *Target) bool { return t.Restart != nil }, run: func(e *env) {
		c, r := e.branch(e.suite.target.Succeed), e.branch(e.suite.target.Succeed)
		c.expect("prepare", "yes")
		r.expect("prepare", "yes")
		e.restart()
		c.status("prepared")
		c.expect("prepare", "yes")
		c.reserved(1)
		c.expect("commit", "done")
		r.expect("rollback", "done")
		c.effects(1)
		r.effects(0)
		e.restart()
		c.effects(1)
		r.effects(0)
		c.expect("commit", "done")
		c.expect("rollback", "committed")
		r.expect("prepare", "no")
		r.expect("commit", "rolled_back")
		c.effects(1)
	}},
	{name: "status tells and writes nothing", needs: func(t *Target) bool { return !t.NoStatus }, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		for range 3 {
			b.expect("status", "unknown")
		}
		b.expect("prepare", "yes")
		b.expect("status", "prepared")
		b.expect("commit", "done")
		b.expect("status", "committed")
		r := e.branch(e.suite.target.Refuse)
		r.expect("prepare", "no")
		r.expect("status", "rolled_back")
		t := e.branch(e.suite.target.Succeed)
		t.expect("rollback", "done")
		t.expect("status", "rolled_back")
	}},
	{name: "results are repeated", needs: func(t *Target) bool { return t.Results != nil }, run: func(e *env) {
		b := e.branch(e.suite.target.Results)
		first := b.expect("prepare", "yes").parsed.Results
		if len(first) == 0 {
			e.Fatalf("no results with the first yes")
		}
		same := func(when string) {
			e.Helper()
			again := b.expect("prepare", "yes").parsed.Results
			if want, got := compact(first), compact(again); want != got {
				e.Fatalf("results %s: %s, first %s", when, got, want)
			}
		}
		same("of a duplicate")
		e.restart()
		if !e.suite.target.VolatileResults || len(b.expect("prepare", "yes").parsed.Results) > 0 {
			same("after a restart")
		}
		b.expect("commit", "done")
		same("after the commit")
	}},
	{name: "read_only ends in phase one", needs: func(t *Target) bool { return t.ReadOnly != nil }, run: func(e *env) {
		b := e.branch(e.suite.target.ReadOnly)
		b.expect("prepare", "read_only")
		b.expect("prepare", "read_only")
		e.restart()
		b.expect("prepare", "read_only")
		b.effects(0)
		b.status("prepared", "committed", "unknown")
		b.expect("rollback", "done") // of a transaction that aborts; a late prepare must not revive it
		b.expect("prepare", "no")
		c := e.branch(e.suite.target.ReadOnly)
		c.expect("prepare", "read_only")
		c.expect("commit", "done") // sent by no coordinator, yet no contradiction
		c.effects(0)
	}},
	{name: "one-phase prepare commits", needs: onePhase, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		b.onePhase = true
		b.expect("prepare", "yes")
		b.effects(1)
		b.status("committed")
		b.expect("prepare", "yes")
		e.restart()
		b.expect("prepare", "yes")
		b.effects(1)
		b.expect("commit", "done")
		b.expect("rollback", "committed")
		b.effects(1)
	}},
	{name: "one-phase duplicates execute once", needs: onePhase, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		b.onePhase = true
		b.expectTogether(duplicates, "prepare", "yes")
		b.effects(1)
	}},
	{name: "one-phase refusal is durable", needs: onePhase, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed, e.suite.target.Refuse)
		b.onePhase = true
		b.expect("prepare", "no")
		e.restart()
		b.status("rolled_back")
		good := b.with(func(b *branch) { b.payloads = b.payloads[:1] })
		good.expect("prepare", "no")
		b.effects(0)
		t := e.branch(e.suite.target.Succeed)
		t.onePhase = true
		t.expect("rollback", "done")
		t.expect("prepare", "no")
		t.effects(0)
	}},
	{name: "forgotten transactions are refused", needs: func(t *Target) bool { return !t.NoForget }, run: func(e *env) {
		// Long before the other cases' ids, so that their rows stay.
		past := time.Now().Add(-2 * time.Hour)
		never := e.branchAt(past, e.suite.target.Succeed)
		ended := e.branchAt(past, e.suite.target.Succeed)
		inDoubt := e.branchAt(past, e.suite.target.Succeed)
		tombstone := e.branchAt(past, e.suite.target.Succeed)
		ended.expect("prepare", "yes")
		ended.expect("commit", "done")
		tombstone.expect("rollback", "done")
		inDoubt.expect("prepare", "yes")
		herald := e.branch(e.suite.target.Succeed)
		herald.forgotten = floor(past.Add(time.Hour))
		herald.expect("prepare", "yes")
		herald.expect("rollback", "done")
		for range 2 {
			for _, b := range []*branch{never, tombstone} {
				b.expect("prepare", "no")
				b.effects(0)
			}
			if got := ended.call("prepare").kind("prepare"); got == "indefinite" || got == "read_only" {
				e.Fatalf("prepare of a committed, forgotten branch: %s", got)
			}
			ended.effects(1)
			inDoubt.status("prepared") // whatever the coordinator says: a yes has no expiry
		}
		inDoubt.expect("commit", "done")
		inDoubt.effects(1)
		later := e.branchAt(past.Add(2*time.Hour), e.suite.target.Succeed)
		later.expect("prepare", "yes")
		later.expect("commit", "done")
		later.effects(1)
	}},
	{name: "malformed calls change nothing", run: malformed},
	{name: "unknown fields are tolerated", run: func(e *env) {
		b := e.branch(e.suite.target.Succeed).with(func(b *branch) {
			b.overridden["added_later"] = map[string]any{"a": []int{1}}
		})
		b.expect("prepare", "yes")
		b.expect("commit", "done")
		b.effects(1)
	}},
	{name: "an early cancelled call leaves no trace that binds", run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		body := b.body("prepare")
		// Half a body, then the end of the connection.
		req, err := http.NewRequest(http.MethodPost, e.suite.base+"/prepare", struct{ *bytes.Reader }{bytes.NewReader(body[:len(body)/2])})
		if err != nil {
			e.Fatalf("%v", err)
		}
		req.ContentLength = int64(len(body))
		req.Header.Set("Content-Type", "application/json")
		if resp, err := e.suite.client.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode < 400 || resp.StatusCode == http.StatusConflict {
				e.Fatalf("half a body was answered %d", resp.StatusCode)
			}
		}
		b.status("unknown")
		b.expect("prepare", "yes")
		b.expect("commit", "done")
		b.effects(1)
	}},
}

// malformed calls must be answered indefinitely (a 4xx that is no vote and no
// outcome) and must not touch the branch they seem to name.
func malformed(e *env) {
	for name, change := range map[string]map[string]any{
		"no transaction":      {"transaction": nil},
		"transaction no uuid": {"transaction": "1"},
		"uuid of version 4":   {"transaction": "0195b6a0-0000-4000-8000-000000000000"},
		"upper-case id":       {"transaction": strings.ToUpper(newID(time.Now()))},
		"branch is text":      {"branch": "one"},
		"branch is negative":  {"branch": -1},
		"phase is another":    {"phase": "rollback"},
		"payload missing":     {"operations": []map[string]any{{}}},
		"operations no list":  {"operations": "x"},
		"term is text":        {"term": "five"},
	} {
		b := e.branch(e.suite.target.Succeed)
		bad := b.with(func(b *branch) { b.overridden = change })
		if a := bad.call("prepare"); a.kind("prepare") != "indefinite" {
			e.Fatalf("%s: prepare was answered %s", name, a)
		}
		b.status("unknown")
		b.effects(0)
	}
	b := e.branch(e.suite.target.Succeed)
	good := b.body("prepare")
	for name, body := range map[string][]byte{
		"empty":         {},
		"not JSON":      []byte("prepare, please"),
		"a list":        []byte(`[` + string(good) + `]`),
		"null":          []byte(`null`),
		"cut off":       good[:len(good)-5],
		"trailing data": append(append([]byte{}, good...), `{"transaction":1}`...),
		"deeply nested": []byte(strings.Repeat("[", 100_000)),
		"64 MiB":        append(bytes.Repeat([]byte(" "), 64<<20), good...), // a coordinator sends 20 MiB at most
	} {
		if a := e.post("prepare", body, b.id+"/1/prepare"); a.kind("prepare") != "indefinite" {
			e.Fatalf("%s: prepare was answered %s", name, a)
		}
		b.status("unknown")
	}
	for _, phase := range []string{"commit", "rollback"} {
		if a := e.post(phase, []byte(`{}`), "x"); a.kind(phase) != "indefinite" {
			e.Fatalf("%s with an empty object was answered %s", phase, a)
		}
	}
	b.expect("prepare", "yes")
	b.expect("rollback", "done")
	b.effects(0)
}

func compact(results []json.RawMessage) string {
	var b bytes.Buffer
	for _, r := range results {
		if err := json.Compact(&b, r); err != nil {
			return err.Error()
		}
		b.WriteByte(' ')
	}
	return b.String()
}
