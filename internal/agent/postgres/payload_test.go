package postgres

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/assent-tx/assent/participant"
)

func FuzzDecode(f *testing.F) {
	f.Add([]byte(op(take5)))
	f.Add([]byte(op(`{"sql":"/* x */ -- y\nSELECT 1","args":[null,"a",1.5,true,{"a":[]}],"expect":{"rows":0}}`)))
	f.Add([]byte(`{"statements":[{"sql":"a","args":[`))
	f.Add([]byte(` { "statements" : [ {"expect":{"rows":-1},"args":["\u0000é\ud800",-0,1e9,false, null],"sql":"\"x\" \n"} , {} ] } `))
	f.Add([]byte(`{"statements":[],"statements":[{"args":[],"args":[1],"sql":"","expect":{}}]}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		var scanned, decoded operation
		if scan(payload, &scanned) {
			dec := json.NewDecoder(bytes.NewReader(payload))
			dec.DisallowUnknownFields()
			err := dec.Decode(&decoded)
			if _, end := dec.Token(); err != nil || !errors.Is(end, io.EOF) {
				t.Fatalf("%q was scanned: %v, %v", payload, err, end)
			}
			if got, want := mustJSON(t, scanned), mustJSON(t, decoded); got != want {
				t.Fatalf("%q: scanned %s, decoded %s", payload, got, want)
			}
		}
		o, err := decode(payload)
		if err != nil {
			return
		}
		for i := range o.Statements {
			s := &o.Statements[i]
			for _, raw := range s.Args {
				value, err := argument(raw)
				var text any
				_ = json.Unmarshal(raw, &text)
				if want, isText := text.(string); isText && err == nil && want != string(value) || (text == nil) != (value == nil) && err == nil {
					t.Errorf("%s became %q", raw, value)
				}
			}
			_, _ = new(texts).plain(s, nil)
			_, _ = new(texts).plain(s, &participant.Script{})
			if word := transactionControl(s.SQL); word != "" {
				t.Errorf("%q passed with %s", s.SQL, word)
			}
		}
	})
}

// mustJSON is v as JSON without what makes no difference: an empty list is none.
func mustJSON(t *testing.T, v operation) string {
	t.Helper()
	for i := range v.Statements {
		if len(v.Statements[i].Args) == 0 {
			v.Statements[i].Args = nil
		}
	}
	if len(v.Statements) == 0 {
		v.Statements = nil
	}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
