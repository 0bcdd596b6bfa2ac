package rmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"
)

// env is one case at work.
type env struct {
	testing.TB
	suite *suite
}

// branch is one branch of one transaction and what is sent for it.
type branch struct {
	env        *env
	id         string
	number     uint32
	marker     string
	payloads   []json.RawMessage
	term       uint64
	token      string
	onePhase   bool
	forgotten  string
	executed   int            // payloads that are executed before the prepare, which carries the others
	first      int            // of the payloads that an execute carries
	last       int            // and the one behind them
	execution  string         // that later calls name
	overridden map[string]any // fields to send instead of the right ones; nil value: leave out
}

// newID is a UUIDv7 of the given time.
func newID(at time.Time) string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	ms := uint64(at.UnixMilli())
	binary.BigEndian.PutUint32(b[0:], uint32(ms>>16))
	binary.BigEndian.PutUint16(b[4:], uint16(ms))
	b[6] = 0x70 | b[6]&0x0f
	b[8] = 0x80 | b[8]&0x3f
	x := hex.EncodeToString(b[:])
	return x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:]
}

// floor is the least id of a time.
func floor(at time.Time) string {
	x := fmt.Sprintf("%012x", at.UnixMilli())
	return x[:8] + "-" + x[8:] + "-7000-8000-000000000000"
}

// branch makes a branch of a new transaction with one payload of each builder.
func (e *env) branch(builders ...func(string) json.RawMessage) *branch {
	return e.branchAt(time.Now(), builders...)
}

func (e *env) branchAt(at time.Time, builders ...func(string) json.RawMessage) *branch {
	id := newID(at)
	b := &branch{env: e, id: id, number: 1, marker: "m" + id[24:], term: 5, token: "00000005"}
	for _, build := range builders {
		var compact bytes.Buffer // as the coordinator sends it
		if err := json.Compact(&compact, build(b.marker)); err != nil {
			e.Fatalf("payload: %v", err)
		}
		b.payloads = append(b.payloads, compact.Bytes())
	}
	return b
}

// with returns a copy changed by f.
func (b *branch) with(f func(*branch)) *branch {
	c := *b
	c.overridden = make(map[string]any)
	f(&c)
	return &c
}

func digest(payloads []json.RawMessage) string {
	var d []byte
	for _, p := range payloads {
		sum := sha256.Sum256(append(append([]byte{}, d...), p...))
		d = sum[:]
	}
	return hex.EncodeToString(d)
}

// body is the call as the contract says.
func (b *branch) body(phase string) []byte {
	fields := map[string]any{
		"transaction": b.id, "cluster": b.env.suite.target.Cluster, "branch": b.number, "service": b.env.suite.target.Service, "phase": phase,
		"attempt": 1, "term": b.term, "token": b.token, "shard": 0, "shards": 1,
	}
	if b.forgotten != "" {
		fields["forgotten_below"] = b.forgotten
	}
	if phase == "prepare" || phase == "execute" {
		first, last := b.executed, len(b.payloads)
		if phase == "execute" {
			first, last = b.first, b.last
			fields["first"] = first
		}
		operations := make([]map[string]json.RawMessage, last-first)
		for i, p := range b.payloads[first:last] {
			operations[i] = map[string]json.RawMessage{"payload": p}
		}
		fields["operations"], fields["count"], fields["digest"] = operations, len(operations), digest(b.payloads[:last])
		if b.execution != "" {
			fields["execution"] = b.execution
		}
		if phase == "prepare" && b.executed > 0 {
			fields["executed"] = b.executed
		}
		if phase == "prepare" && b.onePhase {
			fields["one_phase"] = true
		}
	}
	for name, value := range b.overridden {
		if value == nil {
			delete(fields, name)
			continue
		}
		fields[name] = value
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // payload bytes are digested as they are
	if err := enc.Encode(fields); err != nil {
		b.env.Fatalf("encode %s: %v", phase, err)
	}
	return buf.Bytes()
}

// answer is what came back.
type answer struct {
	status int
	body   string
	parsed struct {
		Vote, Reason, Outcome, Execution string
		Executed                         *bool
		Results                          []json.RawMessage
	}
	err error
}

func (a answer) String() string {
	if a.err != nil {
		return a.err.Error()
	}
	return fmt.Sprintf("%d %s", a.status, bytes.TrimSpace([]byte(a.body)))
}

const maxAnswerBytes = 1 << 20

// call makes one call; it may be used from any goroutine.
func (b *branch) call(phase string) answer {
	return b.env.post(phase, b.body(phase), b.key(phase))
}

func (b *branch) key(phase string) string {
	key := fmt.Sprintf("%s/%d/%s", b.id, b.number, phase)
	if phase == "execute" {
		key += fmt.Sprint("/", b.first)
	}
	return key
}

func (e *env) post(phase string, body []byte, key string) answer {
	ctx, cancel := context.WithTimeout(context.Background(), e.suite.target.StepTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.suite.base+"/"+phase, bytes.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	resp, err := e.suite.client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	a := answer{status: resp.StatusCode, body: string(raw), err: err}
	_ = json.Unmarshal(raw, &a.parsed) // what is missing fails the expectation
	return a
}

// kind is the answer in one word: yes, no, read_only (prepare), executed, refused
// (execute), done, unknown, committed, rolled_back (finish: a contradiction), prepared (status),
// or indefinite.
func (a answer) kind(phase string) string {
	switch {
	case a.err != nil:
		return "indefinite"
	case phase == "prepare":
		switch v := a.parsed.Vote; {
		case a.status == http.StatusConflict:
			return "no"
		case a.status == http.StatusOK && (v == "yes" || v == "no" || v == "read_only"):
			return v
		}
	case phase == "execute":
		switch x := a.parsed.Executed; {
		case a.status != http.StatusOK || x == nil:
		case *x:
			return "executed"
		default:
			return "refused"
		}
	case phase == "status":
		if o := a.parsed.Outcome; a.status == http.StatusOK && (o == "unknown" || o == "prepared" || o == "committed" || o == "rolled_back") {
			return o
		}
	case a.status >= 200 && a.status <= 299:
		return "done"
	case a.status == http.StatusNotFound || a.status == http.StatusConflict:
		o := a.parsed.Outcome
		switch {
		case phase == "commit" && o == "committed", phase == "rollback" && (o == "rolled_back" || o == "unknown"):
			return "done"
		case o == "unknown" || o == "committed" || o == "rolled_back":
			return o
		}
	}
	return "indefinite"
}

// expect makes a call that must be answered with one of the kinds.
func (b *branch) expect(phase string, kinds ...string) answer {
	b.env.Helper()
	a := b.call(phase)
	b.env.check(a, phase, kinds...)
	return a
}

func (e *env) check(a answer, phase string, kinds ...string) {
	e.Helper()
	got := a.kind(phase)
	for _, k := range kinds {
		if got == k {
			return
		}
	}
	e.Fatalf("%s was answered %s, which is %q; want %q", phase, a, got, kinds)
}

// status asks what is durable, where the participant can be asked.
func (b *branch) status(outcomes ...string) {
	b.env.Helper()
	if !b.env.suite.target.NoStatus {
		b.expect("status", outcomes...)
	}
}

// effects checks what is committed, and that nothing is reserved any more.
func (b *branch) effects(want int) {
	b.env.Helper()
	b.count("effects", b.env.suite.target.Effects, want)
	b.reserved(0)
}

func (b *branch) reserved(want int) {
	b.env.Helper()
	if f := b.env.suite.target.Reserved; f != nil {
		b.count("reservations", f, want)
	}
}

func (b *branch) count(what string, f func(context.Context, string) (int, error), want int) {
	b.env.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), b.env.suite.target.StepTimeout)
	defer cancel()
	got, err := f(ctx, b.marker)
	if err != nil {
		b.env.Fatalf("count %s: %v", what, err)
	}
	if got != want {
		b.env.Fatalf("%d %s of the branch, want %d", got, what, want)
	}
}

// restart restarts the participant, where that is possible.
func (e *env) restart() {
	e.Helper()
	if e.suite.target.Restart == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 6*e.suite.target.StepTimeout)
	defer cancel()
	base, err := e.suite.target.Restart(ctx)
	if err != nil {
		e.Fatalf("restart: %v", err)
	}
	e.suite.base = base
	e.suite.client.CloseIdleConnections()
}

// together makes n calls at once and returns their kinds with their counts; calls
// answered indefinitely are made again, as the coordinator would.
func (b *branch) together(n int, phase string) map[string]int {
	const maxTries = 200
	answers := make(chan string, n)
	body, key := b.body(phase), b.key(phase)
	for range n {
		go func() {
			kind := "indefinite"
			for try := 0; kind == "indefinite" && try < maxTries; try++ {
				kind = b.env.post(phase, body, key).kind(phase)
			}
			answers <- kind
		}()
	}
	kinds := make(map[string]int)
	for range n {
		kinds[<-answers]++
	}
	return kinds
}

func (b *branch) expectTogether(n int, phase, kind string) {
	b.env.Helper()
	if got := b.together(n, phase); got[kind] != n {
		b.env.Fatalf("%d concurrent %s calls were answered %v; want all %q", n, phase, got, kind)
	}
}
