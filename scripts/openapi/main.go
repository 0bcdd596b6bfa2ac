// Command openapi turns the document that protoc-gen-openapiv3 makes of the proto
// file into the one that is true of the REST API, where it differs from the
// canonical JSON mapping: payloads and results are any JSON, enum values are
// written in lower case without their prefix, and counters that stay small are numbers.
//
//	openapi generated.json published.json
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

func main() {
	if len(os.Args) != 3 {
		fail(fmt.Errorf("want two file names, have %d", len(os.Args)-1))
	}
	raw, err := os.ReadFile(os.Args[1])
	if err != nil {
		fail(err)
	}
	doc := map[string]any{}
	if err := json.Unmarshal(raw, &doc); err != nil {
		fail(err)
	}
	anyJSON, enums := rewrite(doc)
	if anyJSON == 0 || enums == 0 {
		fail(fmt.Errorf("found %d byte fields and %d enums to rewrite in %s: has the generator changed?", anyJSON, enums, os.Args[1]))
	}
	for schema, field := range map[string]string{"assent.v1.Cluster": "incarnation", "assent.v1.ShardPlacement": "term"} {
		if err := number(doc, schema, field); err != nil {
			fail(err)
		}
	}
	doc["info"] = map[string]any{
		"title":       "Assent",
		"version":     "v1",
		"description": "Atomic transactions over registered services. Limits, reasons and examples: docs/API.md.",
		"license":     map[string]any{"name": "Apache-2.0", "identifier": "Apache-2.0"},
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		fail(err)
	}
	if err := os.WriteFile(os.Args[2], out.Bytes(), 0o644); err != nil {
		fail(err)
	}
}

// number makes a 64-bit field a number: the canonical mapping says a string.
func number(doc map[string]any, schema, field string) error {
	at := doc
	for _, name := range []string{"components", "schemas", schema, "properties", field} {
		next, ok := at[name].(map[string]any)
		if !ok {
			return fmt.Errorf("no %s of %s in the document", field, schema)
		}
		at = next
	}
	at["type"] = "integer"
	return nil
}

// rewrite walks the document and counts what it changed.
func rewrite(node any) (anyJSON, enums int) {
	switch v := node.(type) {
	case map[string]any:
		if v["type"] == "string" && v["format"] == "byte" {
			delete(v, "type")
			delete(v, "format")
			anyJSON++
		}
		if values, ok := v["enum"].([]any); ok {
			v["enum"] = restNames(values)
			enums++
		}
		for _, child := range v {
			a, e := rewrite(child)
			anyJSON, enums = anyJSON+a, enums+e
		}
	case []any:
		for _, child := range v {
			a, e := rewrite(child)
			anyJSON, enums = anyJSON+a, enums+e
		}
	}
	return anyJSON, enums
}

// restNames drops the zero value, whose REST form is an absent field.
func restNames(values []any) []any {
	prefix, ok := strings.CutSuffix(fmt.Sprint(values[0]), "UNSPECIFIED")
	if !ok {
		fail(fmt.Errorf("enum %v does not begin with its UNSPECIFIED value", values))
	}
	var names []any
	for _, value := range values[1:] {
		names = append(names, strings.ToLower(strings.TrimPrefix(fmt.Sprint(value), prefix)))
	}
	return names
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "openapi:", err)
	os.Exit(1)
}
