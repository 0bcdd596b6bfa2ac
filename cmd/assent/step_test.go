package main

import (
	"strings"
	"testing"
)

const (
	interactiveTx = `{"id":"` + someID + `","state":"active","branches":[],"interactive":true}`
	stepAnswer    = `{"transaction":` + interactiveTx + `,"results":[{"balance":7},null]}`
	victimTx      = `{"id":"` + someID + `","state":"aborted","abort":{"reason":"DEADLOCK","message":"x waits"},"branches":[],"interactive":true}`
	someLocks     = `{"locks":[{"service":"a","shard":0,"holders":[{"transaction":"` + someID + `","mode":"IX","age":"2026-11-23T15:54:45.361Z"}],"waiters":[]},
		{"service":"a","key":"k","shard":0,"holders":[],"waiters":[{"transaction":"` + someID + `","mode":"U","since":"2026-11-23T15:54:45.361Z"}]}],"next_page_token":"a/k"}`
	someDeadlocks = `{"deadlocks":[{"at":"2026-11-23T15:54:45.361Z","shard":0,"victim":"` + someID + `","restarted":true,"cycle":[{"transaction":"x","service":"a","key":"k","mode":"X","waits_for":"y"}]}]}`
)

// TestSteps: what the commands of interactive transactions send and show.
func TestSteps(t *testing.T) {
	for _, c := range []struct {
		name    string
		args    string
		answer  answer
		code    int
		request string // the beginning of it
		out     string // part of it
	}{
		{
			"begin", "txn begin --id " + someID + " --timeout 30s --idle-timeout 1s --retry-of " + someID,
			answer{200, interactiveTx},
			0,
			`POST /v1/transactions:begin {"id":"` + someID + `","timeout":"30s","idle_timeout":"1s","retry_of":"` + someID + `"}`, someID + "\n",
		},
		{"begin again", "txn begin --retry-of " + someID, answer{200, interactiveTx}, 0, `POST /v1/transactions:begin {"id":"`, someID + "\n"},
		{"begin without id", "txn begin", answer{200, interactiveTx}, 0, `POST /v1/transactions:begin {"id":"0`, someID + "\n"},
		{
			"now", "txn step " + someID + ` 3 --op a={"n":1} --op b=null --now --lock a=k --shared b=l --update b=m`,
			answer{200, stepAnswer},
			0,
			`POST /v1/transactions/` + someID + `/operations {"step":3,"operations":[{"service":"a","payload":{"n":1},"when":"now"},{"service":"b","payload":null,"when":"now"}],"locks":[{"service":"a","key":"k","mode":"exclusive"},{"service":"b","key":"l","mode":"shared"},{"service":"b","key":"m","mode":"update"}]}`,
			"{\"balance\":7}\nnull\n",
		},
		{"at commit", "txn step " + someID + ` 3 --op a=1`, answer{200, stepAnswer}, 0, `POST /v1/transactions/` + someID + `/operations {"step":3,"operations":[{"service":"a","payload":1}]}`, "active"},
		{"locks alone", "txn step " + someID + " 1 --lock a=k", answer{200, interactiveTx}, 0, `POST /v1/transactions/` + someID + `/locks {"step":1,"locks":[{"service":"a","key":"k","mode":"exclusive"}]}`, "active"},
		{"victim", "txn step " + someID + " 1 --lock a=k", answer{200, victimTx}, 1, "POST", "DEADLOCK"},
		{"victim with operations", "txn step " + someID + " 1 --op a=1 --now", answer{200, `{"transaction":` + victimTx + `}`}, 1, "POST", ""},
		{"commit", "txn commit " + someID + " --wait completed", answer{200, committedTx}, 0, `POST /v1/transactions/` + someID + `/commit {"wait":"completed"}`, "committed"},
		{"commit of a victim", "txn commit " + someID, answer{200, victimTx}, 1, "POST", "DEADLOCK"},
		{"nothing to execute now", "txn step " + someID + " 1 --lock a=k --now", answer{}, 2, "", ""},
		{"bad lock", "txn step " + someID + " 1 --lock a", answer{}, 2, "", ""},
		{"bad operation", "txn step " + someID + " 1 --op a={", answer{}, 2, "", ""},
		{"locks", "locks --service a --key k --waited --page-size 7", answer{200, someLocks}, 0, "GET /v1/locks?key=k&page_size=7&service=a&waited=true", "(all of it)"},
		{"no locks", "locks", answer{200, `{"locks":[]}`}, 0, "GET /v1/locks?page_size=100", "no such locks"},
		{"deadlocks", "deadlocks", answer{200, someDeadlocks}, 0, "GET /v1/deadlocks", "x waits for a/k (X) behind y"},
		{"no deadlocks", "deadlocks", answer{200, `{"deadlocks":[]}`}, 0, "GET", "no deadlocks"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, url := startFake(t, c.answer)
			code, out, errText := assent(t, "", append(strings.Fields(c.args), "--url", url)...)
			if code != c.code || !strings.Contains(out, c.out) {
				t.Errorf("exit code %d, want %d:\n%s%s", code, c.code, out, errText)
			}
			if c.request == "" && len(f.requests) > 0 || c.request != "" && (len(f.requests) != 1 || !strings.HasPrefix(f.requests[0], c.request)) {
				t.Errorf("requests %q\nwant     %s", f.requests, c.request)
			}
			if c.code == 1 && !strings.Contains(errText, "aborted") {
				t.Errorf("the abort is told as %q", errText)
			}
		})
	}
}

// TestRetryFindsItsRecord: an id that the command makes has its home where the first try's
// record is, which has the age.
func TestRetryFindsItsRecord(t *testing.T) {
	f, url := startFake(t, answer{200, interactiveTx}, answer{200, interactiveTx})
	for range 2 { // a random id has that home with a chance of 1 in 4,096
		if code, _, errText := assent(t, "", "txn", "begin", "--retry-of", someID, "--url", url); code != 0 {
			t.Fatal(errText)
		}
	}
	for _, r := range f.requests {
		_, id, _ := strings.Cut(r, `"id":"`)
		if id[15:18] != someID[15:18] || id[:13] == someID[:13] {
			t.Errorf("the retry of %s: %s", someID, r)
		}
	}
}
