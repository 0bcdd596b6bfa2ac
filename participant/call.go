package participant

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Phase is what the coordinator asks for.
type Phase string

// The phases of the participant contract.
const (
	PhasePrepare  Phase = "prepare"
	PhaseCommit   Phase = "commit"
	PhaseRollback Phase = "rollback"
	PhaseStatus   Phase = "status"
	PhaseExecute  Phase = "execute"
)

// Call is one message of the coordinator, checked for form.
type Call struct {
	Phase          Phase
	Cluster        string // the coordinator's, 32 hexadecimal digits; empty: not given
	Transaction    string
	Branch         uint32
	Service        string
	Attempt, Term  uint64
	Token          string
	ForgottenBelow string            // empty: not given
	Shard, Shards  uint32            // Shards is 0 when not given
	Operations     []json.RawMessage // of this call
	Count          int               // of Operations
	Digest         string            // hex; of what was executed before, and Operations
	OnePhase       bool
	First          int    // execute: operations of the branch that were executed before this call
	Executed       int    // prepare: operations of the branch that were executed before
	Execution      string // names the open local transaction that they were executed in; empty: not given
	Opened         bool   // execute: results of the branch may have been told, so it must not be begun anew
}

// Mismatch says why the call's operations are not those its count and digest
// name, or is empty. A participant votes no on a mismatch. Where operations were
// executed before, only who executed them can check the digest.
func (c *Call) Mismatch() string {
	switch {
	case c.Count != len(c.Operations):
		return fmt.Sprintf("count is %d, but there are %d operations", c.Count, len(c.Operations))
	case c.First+c.Executed == 0 && c.Digest != Digest(c.Operations):
		return "digest does not match the operations"
	}
	return ""
}

// Digest is the digest of payloads as a call carries it: d0 is empty, di is
// SHA-256(d(i-1) || payload i), in hex.
func Digest(payloads []json.RawMessage) string {
	var d []byte
	for _, p := range payloads {
		d = digestOn(d, p)
	}
	return hex.EncodeToString(d)
}

// digestOn is the digest d, of the payloads before, with one more.
func digestOn(d []byte, payload json.RawMessage) []byte {
	h := sha256.New()
	h.Write(d)
	h.Write(payload)
	return h.Sum(nil)
}

// Vote is the answer to a prepare.
type Vote struct {
	Vote    string            // "yes", "no" or "read_only"
	Reason  string            // of a no
	Results []json.RawMessage // of a yes or read_only
}

// Outcome is what durably became of a branch.
type Outcome string

// The outcomes of the participant contract.
const (
	OutcomeUnknown    Outcome = "unknown"
	OutcomePrepared   Outcome = "prepared"
	OutcomeCommitted  Outcome = "committed"
	OutcomeRolledBack Outcome = "rolled_back"
)

// InDoubt is a branch that is prepared and waits for its decision.
type InDoubt struct {
	Transaction string `json:"transaction"`
	Branch      uint32 `json:"branch"`
	SinceMs     int64  `json:"since_ms"` // Unix time of its prepare, in milliseconds
}

// Resource keeps branches and their outcomes. Participant is the one for the
// databases that have a Dialect; others may stand behind the same HTTP binding. Methods are called concurrently.
//
// An error that wraps ErrStale is answered 412, ErrOverloaded 503, ErrCluster
// 421, any other 500: none of them is a definite answer, and nothing may have changed.
//
// A Resource that also has Execute(ctx, *Call) (Execution, error) takes calls of
// PhaseExecute.
type Resource interface {
	// Prepare executes and votes; the vote is durable when it returns.
	Prepare(ctx context.Context, c *Call) (Vote, error)
	// Finish commits or rolls back (c.Phase) and returns what is durably true
	// then: the outcome asked for, or the one that contradicts it.
	Finish(ctx context.Context, c *Call) (Outcome, error)
	// Status returns the durable outcome and writes nothing.
	Status(ctx context.Context, c *Call) (Outcome, error)
	// InDoubt lists prepared branches above (transaction, branch), in order.
	InDoubt(ctx context.Context, transaction string, branch uint32, limit int) ([]InDoubt, error)
}

// Errors of a Resource with a meaning of their own.
var (
	// ErrStale is a call older than one already seen for its branch, or of a coordinator
	// that one restored from a backup has replaced.
	ErrStale = errors.New("stale call")
	// ErrOverloaded is a call refused by a limit, to be made again later.
	ErrOverloaded = errors.New("overloaded")
	// ErrCluster is a call of a coordinator that this database does not serve.
	ErrCluster = errors.New("call of another coordinator cluster")
)

const (
	maxTokenBytes     = 512
	maxShards         = 4096 // the home shard is in 12 bits of the id
	maxExecutionBytes = 64
	// maxExecuted bounds the operations of one branch that are executed before its
	// prepare.
	maxExecuted = 1024
)

// parseCall decodes and checks a body. Fields it does not know are ignored, so
// that a newer coordinator can speak to an older participant.
func parseCall(body []byte, maxOperations int) (*Call, error) {
	var w struct {
		Cluster        string  `json:"cluster"`
		Transaction    string  `json:"transaction"`
		Branch         uint32  `json:"branch"`
		Service        string  `json:"service"`
		Phase          Phase   `json:"phase"`
		Attempt        uint64  `json:"attempt"`
		Term           uint64  `json:"term"`
		Token          string  `json:"token"`
		ForgottenBelow string  `json:"forgotten_below"`
		Shard          *uint32 `json:"shard"`
		Shards         *uint32 `json:"shards"`
		Operations     []struct {
			Payload json.RawMessage `json:"payload"`
		} `json:"operations"`
		Count    *int   `json:"count"`
		Digest   string `json:"digest"`
		OnePhase bool   `json:"one_phase"`

		First     *int   `json:"first"`
		Executed  int    `json:"executed"`
		Execution string `json:"execution"`
		Opened    bool   `json:"opened"`
	}
	if err := json.Unmarshal(body, &w); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	c := &Call{
		Phase: w.Phase, Cluster: w.Cluster, Transaction: w.Transaction, Branch: w.Branch, Service: w.Service,
		Attempt: w.Attempt, Term: w.Term, Token: w.Token, ForgottenBelow: w.ForgottenBelow,
		Digest: w.Digest, OnePhase: w.OnePhase,
	}
	switch {
	case !validID(c.Transaction):
		return nil, fmt.Errorf("transaction: %q is not a UUIDv7 in canonical text", clip(c.Transaction, 64))
	case c.Cluster != "" && !validCluster(c.Cluster):
		return nil, fmt.Errorf("cluster: %q is not 32 hexadecimal digits", clip(c.Cluster, 64))
	case c.Branch == 0:
		return nil, errors.New("branch: missing or 0")
	case c.Service == "":
		return nil, errors.New("service: missing")
	case len(c.Token) > maxTokenBytes:
		return nil, fmt.Errorf("token: longer than %d bytes", maxTokenBytes)
	case c.ForgottenBelow != "" && !validID(c.ForgottenBelow):
		return nil, fmt.Errorf("forgotten_below: %q is not a UUIDv7 in canonical text", clip(c.ForgottenBelow, 64))
	case (w.Shard == nil) != (w.Shards == nil):
		return nil, errors.New("shard, shards: one without the other")
	}
	if w.Shards != nil {
		c.Shard, c.Shards = *w.Shard, *w.Shards
		if c.Shards == 0 || c.Shards > maxShards || c.Shard != randA(c.Transaction)%c.Shards {
			return nil, fmt.Errorf("shard: %d of %d is not the home of %s", c.Shard, c.Shards, c.Transaction)
		}
	}
	switch c.Phase {
	case PhasePrepare:
		c.Executed = w.Executed
	case PhaseExecute:
		if w.First == nil {
			return nil, errors.New("first: missing")
		}
		c.First, c.Opened = *w.First, w.Opened
	default:
		return c, nil
	}
	c.Execution = w.Execution
	switch {
	case c.First < 0 || c.First > maxExecuted:
		return nil, fmt.Errorf("first: not a number from 0 to %d", maxExecuted)
	case c.Executed < 0 || c.Executed > maxExecuted:
		return nil, fmt.Errorf("executed: not a number from 0 to %d", maxExecuted)
	case len(c.Execution) > maxExecutionBytes:
		return nil, fmt.Errorf("execution: longer than %d bytes", maxExecutionBytes)
	case len(w.Operations) == 0 && c.Executed == 0:
		return nil, errors.New("operations: missing or empty")
	case len(w.Operations) > maxOperations:
		return nil, fmt.Errorf("operations: %d, more than the limit of %d", len(w.Operations), maxOperations)
	case w.Count == nil && c.Phase == PhasePrepare:
		return nil, errors.New("count: missing")
	case len(c.Digest) != 2*sha256.Size:
		return nil, fmt.Errorf("digest: not %d hex digits", 2*sha256.Size)
	}
	if c.Count = len(w.Operations); w.Count != nil {
		c.Count = *w.Count
	}
	c.Operations = make([]json.RawMessage, len(w.Operations))
	for i, op := range w.Operations {
		if op.Payload == nil {
			return nil, fmt.Errorf("operations[%d].payload: missing", i)
		}
		c.Operations[i] = op.Payload
	}
	return c, nil
}

// validID reports whether s is a UUIDv7 in canonical spelling.
func validID(s string) bool {
	if len(s) != 36 || s[14] != '7' || !strings.Contains("89ab", s[19:20]) {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case (c < '0' || c > '9') && (c < 'a' || c > 'f'):
			return false
		}
	}
	return true
}

func validCluster(s string) bool {
	return len(s) == 32 && strings.Trim(s, "0123456789abcdef") == ""
}

// randA is the 12 bits of a valid id that name its home: modulo the shard count.
func randA(id string) uint32 {
	b, _ := hex.DecodeString("0" + id[15:18])
	return uint32(b[0])<<8 | uint32(b[1])
}

// clip cuts s to at most limit bytes of valid UTF-8.
func clip(s string, limit int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}
