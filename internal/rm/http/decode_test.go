package rmhttp

import (
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/assent-tx/assent/internal/rm"
)

// show is a result in one line.
func show(r rm.Result) string {
	s := r.Kind.String()
	if r.Kind == rm.Contradicts || r.Kind == rm.Known {
		s += " " + r.Outcome.String()
	}
	if r.Kind == rm.No || r.Kind == rm.Refused {
		s += " " + r.Reason
	}
	if r.Message != "" {
		s += ": " + r.Message
	}
	if r.Retryable {
		s += " (retryable)"
	}
	for _, v := range r.Results {
		s += " " + string(v)
	}
	return s
}

func TestPrepareAnswers(t *testing.T) {
	for _, c := range []struct {
		status     int
		body, want string
	}{
		{200, `{"vote":"yes"}`, "yes"},
		{200, ` {"vote":"yes","results":[ {"a": 1}, "b c" ,null]} ` + "\n", `yes {"a":1} "b c" null`},
		{200, `{"vote":"read_only","results":[7]}`, "read_only 7"},
		{200, `{"vote":"no","reason":"too\npoor"}`, "no too.poor"},
		{200, `{"vote":"no"}`, "no the participant gave no reason"},
		{200, `{"extra":{"vote":"no"},"vote":"yes","more":[1,[2]]}`, "yes"},
		{200, `{"vote":"yes","vote":"yes"}`, "yes"},
		{409, `{"vote":"no","reason":"closed"}`, "no closed"},
		{409, `{"reason":"closed"}`, "indefinite"},
		{409, `<html>`, "indefinite"},
		{409, `{"vote":"no"}`, "no the participant answered 409"},
		{409, `{"vote":"yes"}`, "indefinite"},
		{409, ``, "indefinite"},

		{200, `{"vote":"no","vote":"yes"}`, "indefinite"},
		{200, `{"Vote":"yes"}`, "indefinite"},
		{200, `{"vote":"YES"}`, "indefinite"},
		{200, `{"vote":true}`, "indefinite"},
		{200, `{"vote":null}`, "indefinite"},
		{200, `{"vote":"maybe"}`, "indefinite"},
		{200, `{"vote":"yes","results":{}}`, "indefinite"},
		{200, `{"vote":"yes","results":[1,2,3,4]}`, "indefinite"},
		{200, `{"vote":"no","reason":1}`, "indefinite"},
		{200, `{"vote":"yes"`, "indefinite"},
		{200, `{"vote":"yes"}{}`, "indefinite"},
		{200, `{"vote":"yes"}}`, "indefinite"},
		{200, `["yes"]`, "indefinite"},
		{200, `yes`, "indefinite"},
		{200, ``, "indefinite"},
		{201, `{"vote":"yes"}`, "indefinite"},
		{204, ``, "indefinite"},
		{302, `{"vote":"yes"}`, "indefinite"},
		{404, `{"vote":"no"}`, "indefinite"},
		{500, `{"vote":"no"}`, "indefinite"},
	} {
		if got := show(decodePrepare(c.status, []byte(c.body), true, 3)); got != c.want {
			t.Errorf("%d %s: %s, want %s", c.status, c.body, got, c.want)
		}
	}
	r := decodePrepare(200, []byte(`{"vote":"read_only"}`), false, 3)
	if r.Kind != rm.No || !strings.HasPrefix(r.Reason, "protocol:") {
		t.Errorf("read_only without the capability: %s", show(r))
	}
}

func TestFinishAnswers(t *testing.T) {
	for _, c := range []struct {
		status           int
		body             string
		commit, rollback string
	}{
		{200, ``, "done", "done"},
		{204, ``, "done", "done"},
		{202, `rubbish`, "done", "done"},
		{404, `{"outcome":"unknown"}`, "contradicts unknown", "done"},
		{409, `{"outcome":"unknown"}`, "contradicts unknown", "done"},
		{409, `{"outcome":"committed"}`, "done", "contradicts committed"},
		{409, `{"outcome":"rolled_back"}`, "contradicts rolled_back", "done"},
		{409, `{"outcome":"prepared"}`, "indefinite", "indefinite"},
		{409, `{"outcome":"COMMITTED"}`, "indefinite", "indefinite"},
		{404, `not found`, "indefinite", "indefinite"},
		{404, ``, "indefinite", "indefinite"},
		{409, `{}`, "indefinite", "indefinite"},
		{302, `{"outcome":"committed"}`, "indefinite", "indefinite"},
		{500, `{"outcome":"committed"}`, "indefinite", "indefinite"},
		{410, `{"outcome":"committed"}`, "indefinite", "indefinite"},
	} {
		if got := show(decodeFinish(rm.Commit, c.status, []byte(c.body))); got != c.commit {
			t.Errorf("commit %d %s: %s, want %s", c.status, c.body, got, c.commit)
		}
		if got := show(decodeFinish(rm.Rollback, c.status, []byte(c.body))); got != c.rollback {
			t.Errorf("rollback %d %s: %s, want %s", c.status, c.body, got, c.rollback)
		}
	}
}

func TestStatusAnswers(t *testing.T) {
	for body, want := range map[string]string{
		`{"outcome":"unknown"}`:                           "known unknown",
		`{"outcome":"prepared","vote":"yes"}`:             "known prepared",
		`{"outcome":"committed"}`:                         "known committed",
		`{"outcome":"rolled_back"}`:                       "known rolled_back",
		`{"outcome":"done"}`:                              "indefinite",
		`{"outcome":"committed","outcome":"rolled_back"}`: "indefinite",
		`{}`: "indefinite",
		``:   "indefinite",
	} {
		if got := show(decodeStatus(200, []byte(body))); got != want {
			t.Errorf("%s: %s, want %s", body, got, want)
		}
	}
	if got := show(decodeStatus(404, []byte(`{"outcome":"unknown"}`))); got != "indefinite" {
		t.Errorf("404: %s", got)
	}
}

func TestReasonsAreBoundedAndPrintable(t *testing.T) {
	long := strings.Repeat("\x00\xff\u202e√é", 2000)
	for _, r := range []rm.Result{
		decodePrepare(http.StatusConflict, fmt.Appendf(nil, `{"reason":%q}`, strings.Repeat("√", 3000)), true, 1),
		decodePrepare(http.StatusInternalServerError, []byte(long), true, 1),
		decodeFinish(rm.Commit, http.StatusConflict, []byte(long)),
		decodeStatus(http.StatusOK, []byte(long)),
	} {
		checkReason(t, r)
		if r.Reason == "" {
			t.Errorf("%s without a reason", r.Kind)
		}
	}
}

func checkReason(t *testing.T, r rm.Result) {
	t.Helper()
	if len(r.Reason) > 1024 || !utf8.ValidString(r.Reason) {
		t.Errorf("reason of %d bytes: %q", len(r.Reason), r.Reason)
	}
	for _, c := range r.Reason {
		if c < 0x20 || c == 0x7f || c == '\u202e' {
			t.Errorf("reason with %q", c)
		}
	}
}

func TestExecuteAnswers(t *testing.T) {
	for _, c := range []struct {
		status     int
		body, want string
	}{
		{200, `{"executed":true,"results":[{"a": 1},null]}`, `executed {"a":1} null`},
		{200, `{"executed":true,"execution":"x1","results":[1,2]}`, "executed 1 2"},
		{200, `{"executed":false,"reason":"EXECUTION_LOST","message":"gone\n","retryable":true}`, "refused EXECUTION_LOST: gone. (retryable)"},
		{200, `{"executed":false,"results":[1]}`, "refused EXECUTION_REFUSED"},
		{200, `{"executed":false,"reason":"X","retryable":null,"vote":"yes"}`, "refused X"},

		{200, `{"executed":true}`, "indefinite"},
		{200, `{"executed":true,"results":[1]}`, "indefinite"},
		{200, `{"executed":true,"results":[1,2,3]}`, "indefinite"},
		{200, `{"executed":true,"results":[1,2],"execution":7}`, "indefinite"},
		{200, `{"executed":true,"results":[1,2],"execution":"` + strings.Repeat("x", 65) + `"}`, "indefinite"},
		{200, `{"executed":true,"executed":false,"results":[1,2]}`, "indefinite"},
		{200, `{"Executed":true,"results":[1,2]}`, "indefinite"},
		{200, `{"executed":"true","results":[1,2]}`, "indefinite"},
		{200, `{"executed":null,"results":[1,2]}`, "indefinite"},
		{200, `{"vote":"yes","results":[1,2]}`, "indefinite"},
		{200, ``, "indefinite"},
		{201, `{"executed":true,"results":[1,2]}`, "indefinite"},
		{409, `{"executed":false,"reason":"X"}`, "indefinite"},
		{404, `{"executed":false,"reason":"X"}`, "indefinite"},
		{500, `{"executed":true,"results":[1,2]}`, "indefinite"},
	} {
		if r := decodeExecute(c.status, []byte(c.body), 2); show(r) != c.want {
			t.Errorf("%d %s: %s (%s), want %s", c.status, c.body, show(r), r.Reason, c.want)
		}
	}
	if r := decodeExecute(200, []byte(`{"executed":true,"execution":"x1","results":[1]}`), 1); r.Execution != "x1" || r.Lost() {
		t.Errorf("%+v", r)
	}
	if r := decodeExecute(200, []byte(`{"executed":false,"reason":"EXECUTION_LOST"}`), 1); !r.Lost() {
		t.Errorf("%+v", r)
	}
}

func FuzzExecuteAnswer(f *testing.F) {
	seedAnswers(f)
	for _, body := range []string{`{"executed":true,"results":[1,null],"execution":"e"}`, `{"executed":false,"reason":"X","message":"y","retryable":true}`} {
		f.Add(200, []byte(body))
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		r := decodeExecute(status, body, 2)
		checkReason(t, r)
		switch {
		case r.Kind == rm.Indefinite:
		case status != 200, r.Kind != rm.Executed && r.Kind != rm.Refused, r.Kind == rm.Executed && len(r.Results) != 2,
			len(r.Execution) > maxExecutionBytes, len(r.Message) > maxReasonBytes:
			t.Fatalf("%+v from %d %q", r, status, body)
		}
	})
}

func seedAnswers(f *testing.F) {
	for _, body := range []string{
		``, `{}`, `{"vote":"yes"}`, `{"vote":"no","reason":"x"}`, `{"vote":"read_only","results":[1,{"a":[]}]}`,
		`{"outcome":"committed"}`, `{"outcome":"unknown"} `, `{"vote":"yes"`, `[[[[`, `{"vote":"yes","vote":"no"}`, "\xff\x00",
		`{"results":[1e999],"vote":"yes"}`,
	} {
		f.Add(200, []byte(body))
		f.Add(409, []byte(body))
	}
}

func FuzzPrepareAnswer(f *testing.F) {
	seedAnswers(f)
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		r := decodePrepare(status, body, true, 4)
		checkReason(t, r)
		switch r.Kind {
		case rm.Yes, rm.ReadOnly:
			if status != 200 || len(r.Results) > 4 {
				t.Fatalf("%s from %d %q", show(r), status, body)
			}
		case rm.No:
			if (status != 200 && status != 409) || r.Reason == "" && status == 200 && !strings.Contains(string(body), `reason`) {
				t.Fatalf("%s from %d %q", show(r), status, body)
			}
		case rm.Indefinite:
		default:
			t.Fatalf("%s from %d %q", show(r), status, body)
		}
		if again := decodePrepare(status, body, true, 4); !reflect.DeepEqual(r, again) {
			t.Fatalf("%v, then %v", r, again)
		}
	})
}

func FuzzFinishAnswer(f *testing.F) {
	seedAnswers(f)
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		for _, phase := range []rm.Phase{rm.Commit, rm.Rollback} {
			r := decodeFinish(phase, status, body)
			checkReason(t, r)
			ok := map[rm.Kind]bool{rm.Done: true, rm.Contradicts: status == 404 || status == 409, rm.Indefinite: status < 200 || status > 299}
			if !ok[r.Kind] {
				t.Fatalf("%s %s from %d %q", phase, show(r), status, body)
			}
			if r.Kind == rm.Contradicts && (phase == rm.Commit) == (r.Outcome == rm.OutcomeCommitted) {
				t.Fatalf("%s %s agrees", phase, show(r))
			}
		}
	})
}

func FuzzStatusAnswer(f *testing.F) {
	seedAnswers(f)
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		r := decodeStatus(status, body)
		checkReason(t, r)
		if r.Kind != rm.Indefinite && (r.Kind != rm.Known || status != 200) {
			t.Fatalf("%s from %d %q", show(r), status, body)
		}
	})
}
