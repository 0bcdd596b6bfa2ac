package server

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/assent-tx/assent/internal/reason"
)

var decodeOptions = json.RejectUnknownMembers(true)

// DecodeJSON decodes one JSON value into a type of wire.go, strictly: unknown and
// repeated fields, trailing data, invalid UTF-8 and wrong types are refused with a
// *reason.Error that names the field. Field names are case-sensitive.
func DecodeJSON(data []byte, into any) error {
	err := json.Unmarshal(data, into, decodeOptions)
	if err == nil {
		return nil
	}
	var semantic *json.SemanticError
	if errors.As(err, &semantic) {
		return semanticError(semantic)
	}
	return syntaxError(err)
}

func semanticError(err *json.SemanticError) error {
	field := fieldPath(err.JSONPointer)
	var known *reason.Error
	switch {
	case errors.As(err.Err, &known):
		known.Message = fmt.Sprintf("field %q: %s", field, known.Message)
		return named(known, field)
	case errors.Is(err.Err, json.ErrUnknownName):
		return named(reason.New(reason.UnknownField, "remove or rename it; field names are case-sensitive, docs/API.md lists them",
			"field %q is not known", field), field)
	case field == "":
		return reason.New(reason.InvalidJSON, "send one JSON object", "the body is %s where an object is expected", kindName(err.JSONKind))
	case errors.Is(err.Err, strconv.ErrRange):
		return named(reason.New(reason.InvalidField, "see docs/API.md for its limits", "field %q: %s is out of range", field, err.JSONValue), field)
	}
	want := wantedKind(err.GoType)
	code := reason.InvalidField
	if c, ok := codeOfField[err.JSONPointer.LastToken()]; ok {
		code = c
	}
	return named(reason.New(code, "write "+want, "field %q is %s where %s is expected", field, kindName(err.JSONKind), want), field)
}

// codeOfField gives a field of the wrong type the reason of its wrong values.
var codeOfField = map[string]reason.Code{
	"id": reason.InvalidID, "key": reason.InvalidKey,
	"prepare": reason.InvalidURL, "commit": reason.InvalidURL, "rollback": reason.InvalidURL, "status": reason.InvalidURL,
}

func syntaxError(err error) error {
	var syntax *jsontext.SyntacticError
	if !errors.As(err, &syntax) {
		return reason.New(reason.InvalidJSON, "send one JSON object", "the body is not JSON: %v", err)
	}
	field := fieldPath(syntax.JSONPointer)
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return named(reason.New(reason.InvalidJSON, "name every field once", "field %q stands twice", field), field)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return reason.New(reason.InvalidJSON, "send one complete JSON object", "the JSON ends too early, at byte %d", syntax.ByteOffset)
	}
	return named(reason.New(reason.InvalidJSON, "send one JSON object in UTF-8, and nothing behind it",
		"the body is not JSON: %v at byte %d", syntax.Err, syntax.ByteOffset), field)
}

// fieldPath spells a JSON pointer as people write it: operations[0].payload.
func fieldPath(p jsontext.Pointer) string {
	var b strings.Builder
	for token := range p.Tokens() {
		if _, err := strconv.Atoi(token); err == nil && b.Len() > 0 {
			b.WriteString("[" + token + "]")
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(token)
	}
	const maxBytes = 200 // it may be a name of any length that a client made up
	if b.Len() > maxBytes {
		return strings.ToValidUTF8(b.String()[:maxBytes], "") + "..."
	}
	return b.String()
}

func named(err *reason.Error, field string) *reason.Error {
	if field != "" {
		err.Details = map[string]string{"field": field}
	}
	return err
}

func kindName(k jsontext.Kind) string {
	switch k {
	case 'n':
		return "null"
	case 't', 'f':
		return "a boolean"
	case '"':
		return "a string"
	case '0':
		return "a number"
	case '{', '}':
		return "an object"
	case '[', ']':
		return "an array"
	}
	return "something else"
}

func wantedKind(t reflect.Type) string {
	if t == nil {
		return "another type"
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() { //nolint:exhaustive // the kinds that wire.go uses
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "a boolean"
	case reflect.Int, reflect.Int32, reflect.Int64:
		return "an integer"
	case reflect.Uint32, reflect.Uint64:
		return "an integer of 0 or more"
	case reflect.Slice:
		return "an array"
	case reflect.Struct:
		return "an object"
	}
	return "another type"
}

// compactPayload removes white space between the tokens, in place, so that equal
// requests have equal bytes; strings and numbers stay as they are written.
func compactPayload(payload []byte, field string) ([]byte, error) {
	v := jsontext.Value(payload)
	if err := v.Compact(jsontext.AllowDuplicateNames(false), jsontext.AllowInvalidUTF8(false)); err != nil {
		return nil, named(reason.New(reason.InvalidJSON, "send one JSON value in UTF-8 with every name once in its object",
			"field %q is not JSON: %v", field, err), field)
	}
	return v, nil
}
