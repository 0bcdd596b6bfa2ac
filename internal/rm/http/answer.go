package rmhttp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// answer is what the contract knows of an answer's body. A nil field was absent.
type answer struct {
	vote, outcome, reason, message, execution *string
	executed, retryable                       *bool
	results                                   [][]byte // raw; they alias the body
}

// parseAnswer reads a JSON object strictly in what it knows and ignores the rest:
// names are compared exactly, a known field of another type is an error, and so
// is one given twice with values that differ, but for results. encoding/json would take "Vote"
// for a vote, and of a "no" and a "yes" the last.
func parseAnswer(body []byte) (answer, error) {
	var a answer
	if !json.Valid(body) {
		return a, errors.New("not valid JSON")
	}
	return a, eachMember(body, func(name, value []byte) error {
		switch string(name) {
		case "vote":
			return once(&a.vote, "vote", value)
		case "outcome":
			return once(&a.outcome, "outcome", value)
		case "reason":
			return once(&a.reason, "reason", value)
		case "message":
			return once(&a.message, "message", value)
		case "execution":
			return once(&a.execution, "execution", value)
		case "executed":
			return onceBool(&a.executed, "executed", value)
		case "retryable":
			return onceBool(&a.retryable, "retryable", value)
		case "results":
			if value[0] != '[' {
				return errors.New("results: not a list")
			}
			a.results = nil
			eachElement(value, func(v []byte) { a.results = append(a.results, v) })
		}
		return nil
	})
}

// once sets *field to the string in value; null counts as absent.
func once(field **string, name string, value []byte) error {
	if string(value) == "null" {
		return nil
	}
	if value[0] != '"' {
		return fmt.Errorf("%s: not a string", name)
	}
	s := unquote(value)
	if *field != nil && **field != s {
		return fmt.Errorf("%s: given twice, differing", name)
	}
	*field = &s
	return nil
}

// onceBool is once for a boolean.
func onceBool(field **bool, name string, value []byte) error {
	var b bool
	switch string(value) {
	case "null":
		return nil
	case "true":
		b = true
	case "false":
	default:
		return fmt.Errorf("%s: not true or false", name)
	}
	if *field != nil && **field != b {
		return fmt.Errorf("%s: given twice, differing", name)
	}
	*field = &b
	return nil
}

// eachMember calls f with every name and raw value of the object in valid JSON.
func eachMember(valid []byte, f func(name, value []byte) error) error {
	at := skipSpace(valid, 0)
	if valid[at] != '{' {
		return errors.New("not a JSON object")
	}
	for at = skipSpace(valid, at+1); valid[at] != '}'; {
		end := valueEnd(valid, at)
		name := valid[at+1 : end-1]
		if bytes.IndexByte(name, '\\') >= 0 {
			name = []byte(unquote(valid[at:end]))
		}
		at = skipSpace(valid, skipSpace(valid, end)+1) // past the colon
		end = valueEnd(valid, at)
		if err := f(name, valid[at:end]); err != nil {
			return err
		}
		if at = skipSpace(valid, end); valid[at] == ',' {
			at = skipSpace(valid, at+1)
		}
	}
	return nil
}

// eachElement calls f with every raw element of a valid JSON list.
func eachElement(list []byte, f func(value []byte)) {
	for at := skipSpace(list, 1); list[at] != ']'; {
		end := valueEnd(list, at)
		f(list[at:end])
		if at = skipSpace(list, end); list[at] == ',' {
			at = skipSpace(list, at+1)
		}
	}
}

func skipSpace(b []byte, at int) int {
	for at < len(b) && (b[at] == ' ' || b[at] == '\t' || b[at] == '\n' || b[at] == '\r') {
		at++
	}
	return at
}

// valueEnd is the index behind the value that begins at at, in valid JSON.
func valueEnd(b []byte, at int) int {
	depth, inString := 0, false
	for ; at < len(b); at++ {
		switch c := b[at]; {
		case inString:
			if c == '\\' {
				at++
			} else if c == '"' {
				inString = false
				if depth == 0 {
					return at + 1
				}
			}
		case c == '"':
			inString = true
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth == 0 { // the end of what a literal stands in
				return at
			}
			if depth--; depth == 0 {
				return at + 1
			}
		case depth == 0 && (c == ',' || c == ':' || c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			return at
		}
	}
	return at
}

// unquote is the text of a valid JSON string.
func unquote(quoted []byte) string {
	inner := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(inner, '\\') < 0 && utf8.Valid(inner) {
		return string(inner)
	}
	var s string
	_ = json.Unmarshal(quoted, &s) // valid: it cannot fail
	return s
}
