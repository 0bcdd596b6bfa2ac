package server

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/assent-tx/assent/internal/reason"
)

// decodeFuzz checks of one body: no panic, every refusal has a reason and a
// message, and what is accepted is accepted again, as the same, in its own spelling.
func decodeFuzz[B any](f *testing.F, seeds ...string) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var first B
		if err := DecodeJSON(data, &first); err != nil {
			var e *reason.Error
			if !errors.As(err, &e) || e.Message == "" || e.Hint == "" {
				t.Fatalf("refused without a reason: %v", err)
			}
			if wireCodes[e.Code].http != 400 {
				t.Fatalf("refused with %s", e.Code)
			}
			return
		}
		text, err := EncodeJSON(&first)
		if err != nil {
			t.Fatalf("accepted %q, but it cannot be written: %v", data, err)
		}
		var second B
		if err := DecodeJSON(text, &second); err != nil {
			t.Fatalf("accepted %q, but not %q: %v", data, text, err)
		}
		again, err := EncodeJSON(&second)
		if err != nil || !bytes.Equal(text, again) {
			t.Fatalf("%q became %q, then %q (%v)", data, text, again, err)
		}
	})
}

func FuzzSubmitBody(f *testing.F) {
	decodeFuzz[SubmitBody](f, someBody, `{"id":"`+someID+`","timeout":"5s","wait":"none"}`, `{"operations":[{"service":"a","payload":{"x":[1e400,"\u0000"]},"locks":[{"key":"a/b","mode":"shared"}]}]}`)
}

func FuzzPutServiceBody(f *testing.F) {
	decodeFuzz[PutServiceBody](f, goodPut, withHTTP(`"capabilities":["one_phase"],"limits":{"max_in_flight":1,"prepare_timeout":"1s"},"resources":["x"]`))
}

func FuzzResolveBody(f *testing.F) { decodeFuzz[ResolveBody](f, `{"note":"x"}`, `{"note":null}`) }

func FuzzRollbackBody(f *testing.F) { decodeFuzz[RollbackBody](f, `{}`, `{"x":1}`, `[]`) }

// FuzzSubmission goes on to the checks: a payload that passes is the same JSON,
// compact, and compacting it again changes nothing.
func FuzzSubmission(f *testing.F) {
	f.Add([]byte(someBody))
	f.Add([]byte(`{"operations":[{"service":"a","payload": { "n" : 9007199254740993 , "s":" \" " } }]}`))
	limits := DefaultLimits()
	f.Fuzz(func(t *testing.T, data []byte) {
		var b SubmitBody
		if DecodeJSON(data, &b) != nil {
			return
		}
		s, err := limits.submission(&b, "")
		if err != nil {
			var e *reason.Error
			if !errors.As(err, &e) || e.Message == "" {
				t.Fatalf("refused without a reason: %v", err)
			}
			return
		}
		for _, op := range s.Operations {
			again, err := compactPayload(bytes.Clone(op.Payload), "payload")
			if err != nil || !reflect.DeepEqual(again, op.Payload) {
				t.Fatalf("payload %q compacts to %q (%v)", op.Payload, again, err)
			}
			if len(op.Payload) == 0 || len(op.Payload) > len(data) {
				t.Fatalf("payload of %d bytes from a body of %d", len(op.Payload), len(data))
			}
		}
	})
}
