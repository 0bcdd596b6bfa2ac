package rmhttp

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// FuzzAnswerScanner compares the scanner with encoding/json.
func FuzzAnswerScanner(f *testing.F) {
	for _, s := range []string{
		`{}`, ` { "a" : 1 , "b":[ ] } `, `{"a":{"b":[1,{"c":"}"}]},"\u0076ote":"yes"}`, `{"a":"\\\"","b":-1.5e3}`,
		`{"results":[1, "a,]" ,{"x":[2]},null , true]}`, `[1]`, `"s"`, `1`, `{"":""}`, `{"a":1,"a":2}`, "{\"a\":\"\xff\"}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, err := parseAnswer(body); err == nil && !json.Valid(body) {
			t.Fatalf("%q: %v", body, err)
		}
		if !json.Valid(body) {
			return
		}
		got := map[string]json.RawMessage{}
		err := eachMember(body, func(name, value []byte) error {
			got[string(bytes.ToValidUTF8(name, []byte("\uFFFD")))] = value
			return nil
		})
		isObject := body[skipSpace(body, 0)] == '{'
		if (err == nil) != isObject {
			t.Fatalf("%q: %v", body, err)
		}
		if !isObject {
			return
		}
		if !bytes.Contains(body, []byte{0xff}) && !bytes.Contains(body, []byte(`\u`)) {
			var want map[string]json.RawMessage
			if err := json.Unmarshal(body, &want); err != nil {
				t.Fatal(err)
			}
			for name, value := range want {
				if g, ok := got[name]; (!ok || !bytes.Equal(g, value)) && !strings.ContainsRune(name, 0xFFFD) {
					t.Fatalf("%q: %q is %q, want %q", body, name, g, value)
				}
			}
		}
		for _, value := range got {
			if !json.Valid(value) {
				t.Fatalf("%q: value %q", body, value)
			}
			if value[0] != '[' {
				continue
			}
			var elements []json.RawMessage
			if err := json.Unmarshal(value, &elements); err != nil {
				t.Fatal(err)
			}
			i := 0
			eachElement(value, func(v []byte) {
				if i >= len(elements) || !bytes.Equal(v, elements[i]) {
					t.Fatalf("%q: element %d is %q", value, i, v)
				}
				i++
			})
			if i != len(elements) {
				t.Fatalf("%q: %d elements, want %d", value, i, len(elements))
			}
		}
	})
}
