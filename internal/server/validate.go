package server

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txnid"
)

// This file is every check that needs no state: a request that passes is refused
// only for what the coordinator knows.

// submission checks a request and makes it the coordinator's. Payloads are
// compacted in place.
func (l *Limits) submission(b *SubmitBody, traceParent string) (node.Submission, error) {
	s := node.Submission{TraceParent: traceParent}
	if b.ID != nil {
		if err := checkID(*b.ID); err != nil {
			return s, err
		}
		s.ID = *b.ID
	}
	switch n := len(b.Operations); {
	case n == 0:
		return s, named(reason.New(reason.EmptyOperations, `name at least one: {"operations":[{"service":"...","payload":...}]}`,
			"the transaction has no operations"), "operations")
	case n > l.MaxOperations:
		s.Refusal = limited(reason.New(reason.TooManyOperations, "split the work, or put more of it into one payload",
			"the transaction has %d operations; at most %d are accepted", n, l.MaxOperations), "operations", l.MaxOperations)
	}
	var err error
	if s.Timeout, err = l.timeout(b.Timeout, "timeout"); err != nil {
		return s, err
	}
	if s.Wait, err = parseWait(b.Wait); err != nil {
		return s, err
	}
	keys := 0
	for i := range b.Operations {
		keys += len(b.Operations[i].Locks)
	}
	if keys > l.MaxKeys && s.Refusal == nil {
		s.Refusal = limited(reason.New(reason.TooManyKeys, "declare fewer: a key covers every key below it",
			"the transaction declares %d keys; at most %d are accepted", keys, l.MaxKeys), "operations", l.MaxKeys)
	}
	s.Operations = make([]node.Operation, len(b.Operations))
	for i := range b.Operations {
		if err := operation(&b.Operations[i], i, &s.Operations[i]); err != nil {
			return s, err
		}
	}
	return s, nil
}

func operation(b *OperationBody, i int, op *node.Operation) error {
	at := func(rest string) string { return "operations[" + strconv.Itoa(i) + "]" + rest }
	if err := checkServiceName(b.Service); err != nil {
		return inField(err, at(".service"))
	}
	op.Service = b.Service
	if len(b.Payload) == 0 {
		field := at(".payload")
		return named(reason.New(reason.InvalidField, "send any JSON value; null is one", "field %q is missing", field), field)
	}
	var err error
	if op.Payload, err = compactPayload(b.Payload, at(".payload")); err != nil {
		return err
	}
	if len(b.Locks) == 0 {
		return nil
	}
	op.Locks = make([]node.DeclaredLock, len(b.Locks))
	for j, l := range b.Locks {
		field := ".locks[" + strconv.Itoa(j) + "]"
		if op.Locks[j], err = declaredLock(l, at(field)); err != nil {
			return err
		}
	}
	return nil
}

func parseWait(s string) (node.WaitMode, error) {
	switch s {
	case "":
		return node.WaitDefault, nil
	case "decided":
		return node.WaitDecided, nil
	case "completed":
		return node.WaitCompleted, nil
	case "none":
		return node.WaitNone, nil
	}
	return 0, inField(notOneOf(s, "decided", "completed", "none"), "wait")
}

// txnMaxPartitions is the limit of shards, which a service's keys can be spread over.
const txnMaxPartitions = 1024

// serviceSpec checks a registration and makes it the coordinator's.
func (l *Limits) serviceSpec(name string, b *PutServiceBody) (node.ServiceSpec, error) {
	s := node.ServiceSpec{
		Name: name, PrepareURL: b.HTTP.Prepare, CommitURL: b.HTTP.Commit, RollbackURL: b.HTTP.Rollback, StatusURL: b.HTTP.Status, ExecuteURL: b.HTTP.Execute,
		Resources: b.Resources, Capabilities: b.Capabilities, Isolation: b.Isolation, RequireKeys: b.RequireKeys, LockPartitions: b.LockPartitions,
	}
	if b.LockPartitions > txnMaxPartitions {
		return s, inField(limited(reason.New(reason.InvalidService, "name at most as many as there are shards", "%d partitions; at most %d are accepted", b.LockPartitions, txnMaxPartitions),
			"lock_partitions", txnMaxPartitions), "lock_partitions")
	}
	if err := checkServiceName(name); err != nil {
		return s, inField(err, "name")
	}
	for _, u := range []struct {
		field, url string
		optional   bool
	}{
		{"http.prepare", s.PrepareURL, false},
		{"http.commit", s.CommitURL, false},
		{"http.rollback", s.RollbackURL, false},
		{"http.status", s.StatusURL, true},
		{"http.execute", s.ExecuteURL, true},
	} {
		if u.url == "" && u.optional {
			continue
		}
		if err := l.checkURL(u.url); err != nil {
			return s, inField(err, u.field)
		}
	}
	if len(s.Resources) > l.MaxResources {
		return s, limited(reason.New(reason.InvalidService, "name fewer", "%d resources; at most %d are accepted", len(s.Resources), l.MaxResources),
			"resources", l.MaxResources)
	}
	for i, r := range s.Resources {
		if r == "" || len(r) > l.MaxResourceBytes {
			return s, inField(reason.New(reason.InvalidService, "name it in 1 to "+strconv.Itoa(l.MaxResourceBytes)+" bytes", "it has %d bytes", len(r)),
				"resources["+strconv.Itoa(i)+"]")
		}
	}
	if err := checkCapabilities(s.Capabilities); err != nil {
		return s, err
	}
	switch s.Isolation {
	case "", "coordinator", "participant":
	default:
		return s, inField(notOneOf(s.Isolation, "coordinator", "participant"), "isolation")
	}
	return s, l.serviceLimits(&b.Limits, &s)
}

func (l *Limits) serviceLimits(b *ServiceLimits, s *node.ServiceSpec) error {
	if n := b.MaxInFlight; n != nil {
		if *n < 1 || int64(*n) > int64(l.MaxServiceInFlight) {
			return inField(reason.New(reason.InvalidField, fmt.Sprintf("1 to %d", l.MaxServiceInFlight), "%d is out of range", *n), "limits.max_in_flight")
		}
		s.MaxInFlight = int(*n)
	}
	var err error
	if s.PrepareTimeout, err = l.timeout(b.PrepareTimeout, "limits.prepare_timeout"); err != nil {
		return err
	}
	s.FinishTimeout, err = l.timeout(b.FinishTimeout, "limits.finish_timeout")
	return err
}

// checkCapabilities refuses what no participant can hold to. Nil is the default.
func checkCapabilities(names []string) error {
	const field = "capabilities"
	if names == nil {
		return nil
	}
	tombstone, listInDoubt, onePhase := false, false, false
	for i, name := range names {
		switch name {
		case "tombstone":
			tombstone = true
		case "list_in_doubt":
			listInDoubt = true
		case "one_phase":
			onePhase = true
		case "read_only":
		default:
			err := notOneOf(name, "one_phase", "read_only", "list_in_doubt", "tombstone")
			err.Code = reason.InvalidService
			return inField(err, field+"["+strconv.Itoa(i)+"]")
		}
	}
	switch {
	case onePhase && !tombstone:
		return inField(reason.New(reason.InvalidService, `add "tombstone"`,
			"one_phase needs tombstone: its refusal must be durable"), field)
	case !tombstone && !listInDoubt:
		return inField(reason.New(reason.InvalidService, `add "tombstone" or "list_in_doubt", or leave the field out (then: tombstone)`,
			"a participant must keep tombstones or list its in-doubt branches"), field)
	}
	return nil
}

// timeout checks a duration that may be absent; absent is zero.
func (l *Limits) timeout(d Duration, field string) (time.Duration, error) {
	if !d.Set {
		return 0, nil
	}
	if d.Duration < l.MinTimeout || d.Duration > l.MaxTimeout {
		return 0, inField(reason.New(reason.InvalidDuration, fmt.Sprintf("%v to %v", l.MinTimeout, l.MaxTimeout), "%v is out of range", d.Duration), field)
	}
	return d.Duration, nil
}

func checkID(id string) error {
	if _, err := txnid.Parse(id); err != nil {
		return named(reason.New(reason.InvalidID, "make ids as UUIDv7 (RFC 9562) and write them in lower case", "%.60q: %v", id, err), "id")
	}
	return nil
}

const maxServiceNameBytes = 63

func checkServiceName(name string) error {
	ok := name != "" && len(name) <= maxServiceNameBytes
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || i > 0 && (c == '.' || c == '_' || c == '-')
	}
	if !ok {
		return reason.New(reason.InvalidService, "1 to 63 characters: a-z, 0-9, '.', '_' and '-', the first a letter or digit", "%.80q is not a service name", name)
	}
	return nil
}

func (l *Limits) checkURL(raw string) error {
	bad := func(format string, args ...any) error {
		return reason.New(reason.InvalidURL, "write an absolute URL: http://host:port/path or https://host/path", format, args...)
	}
	if raw == "" {
		return bad("it is missing")
	}
	if len(raw) > l.MaxURLBytes {
		return bad("it has %d bytes; at most %d are accepted", len(raw), l.MaxURLBytes)
	}
	u, err := url.Parse(raw)
	var parse *url.Error
	switch {
	case errors.As(err, &parse):
		return bad("%v", parse.Err) // not the URL itself: it may hold a password
	case err != nil:
		return bad("it cannot be parsed")
	case u.User != nil:
		return bad("it has user information, which would be stored and shown")
	case u.Scheme != "http" && u.Scheme != "https":
		return bad("%.200q is not http or https", raw)
	case u.Opaque != "" || u.Hostname() == "":
		return bad("%.200q has no host", raw)
	case strings.Contains(raw, "#"):
		return bad("%.200q has a fragment", raw)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return bad("%.200q has no valid port", raw)
		}
	}
	return nil
}

// listQuery checks what selects a page. pageSize zero is absent.
func (l *Limits) listQuery(q node.ListQuery) (node.ListQuery, error) {
	switch q.State {
	case "", "active", "preparing", "committing", "committed", "aborting", "aborted", "in_doubt", "hazard":
	default:
		return q, inField(notOneOf(q.State, "active", "preparing", "committing", "committed", "aborting", "aborted", "in_doubt", "hazard"), "state")
	}
	if q.Service != "" {
		if err := checkServiceName(q.Service); err != nil {
			return q, inField(err, "service")
		}
	}
	if q.PageSize < 0 || q.PageSize > l.MaxPageSize {
		return q, inField(reason.New(reason.InvalidField, fmt.Sprintf("1 to %d", l.MaxPageSize), "%d is out of range", q.PageSize), "page_size")
	}
	return q, nil
}

func (l *Limits) checkNote(note string) error {
	if note == "" || len(note) > l.MaxNoteBytes {
		return inField(reason.New(reason.InvalidField, fmt.Sprintf("say what was found and done, in 1 to %d bytes", l.MaxNoteBytes), "it has %d bytes", len(note)), "note")
	}
	return nil
}

func notOneOf(value string, names ...string) *reason.Error {
	return reason.New(reason.InvalidField, "use one of: "+strings.Join(names, ", "), "%.60q is not known", value)
}

// inField names the field in the message and for programs.
func inField(err error, field string) error {
	var e *reason.Error
	if errors.As(err, &e) {
		e.Message = fmt.Sprintf("field %q: %s", field, e.Message)
		return named(e, field)
	}
	return err
}

func limited(err *reason.Error, field string, limit int) *reason.Error {
	err.Details = map[string]string{"field": field, "limit": strconv.Itoa(limit)}
	return err
}

// traceParent passes on a W3C traceparent; one in bad spelling is dropped, as the
// standard asks.
func traceParent(s string) string {
	if len(s) != 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" {
		return ""
	}
	for i := range len(s) {
		c := s[i]
		if i != 2 && i != 35 && i != 52 && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return ""
		}
	}
	return s
}
