package rmhttp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/assent-tx/assent/internal/rm"
)

// Limits of what an answer may put into a Result.
const (
	maxReasonBytes    = 1024 // of a participant's reason for a no
	maxExcerptBytes   = 200  // of an answer that was not understood
	maxExecutionBytes = 64   // of a participant's name for an open local transaction
)

// decodePrepare is what an answer to prepare means.
func decodePrepare(status int, body []byte, mayReadOnly bool, maxResults int) rm.Result {
	a, err := parseAnswer(body)
	if status == http.StatusConflict {
		if err != nil || a.vote == nil || *a.vote != "no" { // of a proxy, say: the participant may have committed in one phase
			return indefinite("answer 409 to prepare has no vote", body)
		}
		reason := "the participant answered 409"
		if a.reason != nil {
			reason = printable(*a.reason, maxReasonBytes)
		}
		return rm.Result{Kind: rm.No, Reason: reason}
	}
	switch {
	case status != http.StatusOK:
		return unexpectedStatus(status, body)
	case err != nil:
		return indefinite("answer to prepare not understood: "+err.Error(), body)
	case a.vote == nil:
		return indefinite("answer to prepare has no vote", body)
	}
	r, known := voted(*a.vote, a.reason, mayReadOnly)
	switch {
	case !known:
		return indefinite("answer to prepare has an unknown vote", body)
	case r.Kind == rm.No:
		return r
	case len(a.results) > maxResults:
		return tooManyResults(len(a.results), maxResults)
	}
	if r.Results, err = compacted(a.results); err != nil {
		return indefinite("answer to prepare has results that are not JSON", body)
	}
	return r
}

// compacted copies raw results out of the body.
func compacted(raw [][]byte) ([][]byte, error) {
	var out [][]byte
	for _, value := range raw {
		var b bytes.Buffer
		if err := json.Compact(&b, value); err != nil { // cannot be: it was parsed
			return nil, err
		}
		out = append(out, b.Bytes())
	}
	return out, nil
}

// decodeExecute is what an answer to execute means. There must be one result for
// each operation: with fewer, nobody could tell whose they are.
func decodeExecute(status int, body []byte, operations int) rm.Result {
	if status != http.StatusOK {
		return unexpectedStatus(status, body)
	}
	a, err := parseAnswer(body)
	switch {
	case err != nil:
		return indefinite("answer to execute not understood: "+err.Error(), body)
	case a.executed == nil:
		return indefinite("answer to execute does not say whether it was executed", body)
	case !*a.executed:
		r := rm.Result{Kind: rm.Refused, Reason: rm.ExecutionRefused, Retryable: a.retryable != nil && *a.retryable}
		if a.reason != nil {
			r.Reason = printable(*a.reason, maxReasonBytes)
		}
		if a.message != nil {
			r.Message = printable(*a.message, maxReasonBytes)
		}
		return r
	case len(a.results) != operations:
		return indefinite(fmt.Sprintf("answer to execute has %d results for %d operations", len(a.results), operations), body)
	}
	r := rm.Result{Kind: rm.Executed}
	if a.execution != nil {
		if r.Execution = *a.execution; len(r.Execution) > maxExecutionBytes || !utf8.ValidString(r.Execution) {
			return indefinite(fmt.Sprintf("answer to execute has an execution that is no text of at most %d bytes", maxExecutionBytes), body)
		}
	}
	if r.Results, err = compacted(a.results); err != nil {
		return indefinite("answer to execute has results that are not JSON", body)
	}
	return r
}

// voted is what a vote means; a nil reason was not given.
func voted(vote string, reason *string, mayReadOnly bool) (r rm.Result, known bool) {
	switch {
	case vote == "no" && reason == nil:
		return rm.Result{Kind: rm.No, Reason: "the participant gave no reason"}, true
	case vote == "no":
		return rm.Result{Kind: rm.No, Reason: printable(*reason, maxReasonBytes)}, true
	case vote == "yes":
		return rm.Result{Kind: rm.Yes}, true
	case vote == "read_only" && mayReadOnly:
		return rm.Result{Kind: rm.ReadOnly}, true
	case vote == "read_only":
		return rm.Result{Kind: rm.No, Reason: "protocol: voted read_only, but the service is not registered with the capability read_only"}, true
	}
	return rm.Result{}, false
}

func tooManyResults(n, limit int) rm.Result {
	return rm.Result{Kind: rm.Indefinite, Reason: fmt.Sprintf("answer to prepare has %d results, more than the limit of %d", n, limit)}
}

// decodeFinish is what an answer to commit or rollback means.
func decodeFinish(phase rm.Phase, status int, body []byte) rm.Result {
	switch {
	case status >= 200 && status <= 299:
		return rm.Result{Kind: rm.Done}
	case status != http.StatusNotFound && status != http.StatusConflict:
		return unexpectedStatus(status, body)
	}
	outcome, err := parseOutcome(body)
	if err != nil {
		return indefinite(fmt.Sprintf("status %d without an outcome (%v)", status, err), body)
	}
	if outcome == rm.OutcomePrepared {
		return indefinite("still prepared", body) // neither done nor a contradiction
	}
	return finished(phase, outcome)
}

// finished is what an outcome other than prepared means as the answer to commit or
// rollback.
func finished(phase rm.Phase, outcome rm.Outcome) rm.Result {
	agrees := outcome == rm.OutcomeCommitted
	if phase == rm.Rollback {
		agrees = outcome == rm.OutcomeRolledBack || outcome == rm.OutcomeUnknown
	}
	if agrees {
		return rm.Result{Kind: rm.Done}
	}
	return rm.Result{Kind: rm.Contradicts, Outcome: outcome}
}

// decodeStatus is what an answer to a status question means.
func decodeStatus(status int, body []byte) rm.Result {
	if status != http.StatusOK {
		return unexpectedStatus(status, body)
	}
	outcome, err := parseOutcome(body)
	if err != nil {
		return indefinite("answer to status not understood: "+err.Error(), body)
	}
	return rm.Result{Kind: rm.Known, Outcome: outcome}
}

func parseOutcome(body []byte) (rm.Outcome, error) {
	a, err := parseAnswer(body)
	if err != nil {
		return 0, err
	}
	if a.outcome == nil {
		return 0, errors.New("no outcome")
	}
	outcome, ok := rm.ParseOutcome(*a.outcome)
	if !ok {
		return 0, errors.New("unknown outcome")
	}
	return outcome, nil
}

func unexpectedStatus(status int, body []byte) rm.Result {
	return indefinite(fmt.Sprintf("status %d", status), body)
}

func indefinite(what string, body []byte) rm.Result {
	if len(body) > 0 {
		what += ": " + printable(string(body[:min(len(body), maxExcerptBytes)]), maxExcerptBytes)
	}
	return rm.Result{Kind: rm.Indefinite, Reason: printable(what, maxReasonBytes)}
}

// printable is s as one line of at most limit bytes, for logs and consoles.
func printable(s string, limit int) string {
	var b strings.Builder
	for _, r := range s {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			r = '.'
		}
		if b.Len()+utf8.RuneLen(r) > limit {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}
