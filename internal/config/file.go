package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"
)

// maxFileBytes bounds a configuration file.
const maxFileBytes = 1 << 20

// file is a configuration file as a resolver of flags.
type file struct {
	path   string
	values map[string]setting
	agents *yaml.Node // the section of that name; nil: none
}

type setting struct {
	text string
	line int
}

// readFile reads a YAML file whose keys must all be names of flags.
func readFile(path string, flags []*kong.Flag) (*file, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	raw, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	if len(raw) > maxFileBytes {
		return nil, fmt.Errorf("--config: %s is larger than %d bytes: is it a configuration?", path, maxFileBytes)
	}
	values, section, err := settings(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var known []string
	for _, flag := range flags {
		if flag.Name != "help" && flag.Name != "config" {
			known = append(known, flag.Name)
		}
	}
	for name, v := range values {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("%s:%d: %q is not a setting; did you mean %q? (assent serve --help lists them)", path, v.line, name, nearest(name, known))
		}
	}
	return &file{path: path, values: values, agents: section}, nil
}

// settings reads a flat YAML mapping of scalars; a list stands for a repeated flag.
// The section "agents" alone is deeper, and returned as it is.
func settings(raw []byte) (map[string]setting, *yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, nil, errors.New("more than one document: keep the first")
	}
	top := doc.Content[0]
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return nil, nil, nil
	}
	if top.Kind != yaml.MappingNode {
		return nil, nil, fmt.Errorf("line %d: write one setting a line, such as \"data: /var/lib/assent\"", top.Line)
	}
	values := map[string]setting{}
	var section *yaml.Node
	for i := 0; i+1 < len(top.Content); i += 2 {
		name, node := top.Content[i], top.Content[i+1]
		if earlier, twice := values[name.Value]; twice {
			return nil, nil, fmt.Errorf("line %d: %q stands in line %d already", name.Line, name.Value, earlier.line)
		}
		if name.Value == "agents" && section == nil {
			section = node
			continue
		}
		text, err := scalar(name.Value, node)
		if err != nil {
			return nil, nil, err
		}
		values[name.Value] = setting{text: text, line: name.Line}
	}
	return values, section, nil
}

func scalar(name string, node *yaml.Node) (string, error) {
	switch {
	case node.Kind == yaml.ScalarNode && node.Tag == "!!null":
		return "", fmt.Errorf("line %d: %q has no value", node.Line, name)
	case node.Kind == yaml.ScalarNode:
		return node.Value, nil
	case node.Kind == yaml.SequenceNode:
		var parts []string
		for _, n := range node.Content {
			if n.Kind != yaml.ScalarNode {
				return "", fmt.Errorf("line %d: %q holds more than plain values", n.Line, name)
			}
			parts = append(parts, n.Value)
		}
		return strings.Join(parts, ","), nil
	}
	return "", fmt.Errorf("line %d: %q must be one plain value", node.Line, name)
}

// Validate is part of kong.Resolver; readFile has checked the names.
func (f *file) Validate(*kong.Application) error { return nil }

// Resolve returns the file's value unless the environment has one. It is parsed
// here once to name its place in the file when it is bad.
func (f *file) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	v, ok := f.values[flag.Name]
	if !ok {
		return nil, nil //nolint:nilnil // kong's way to say that there is none
	}
	for _, name := range flag.Envs {
		if _, set := os.LookupEnv(name); set {
			return nil, nil //nolint:nilnil // as above
		}
	}
	scratch := reflect.New(flag.Target.Type()).Elem()
	if err := flag.Parse(kong.Scan().PushTyped(v.text, kong.FlagValueToken), scratch); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", f.path, v.line, err)
	}
	return v.text, nil
}

// nearest is the candidate with the fewest edits from name.
func nearest(name string, candidates []string) string {
	best, least := "", 1<<30
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	for _, c := range candidates {
		if d := edits(name, c); d < least {
			best, least = c, d
		}
	}
	return best
}

// edits is the Levenshtein distance of two short texts.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
