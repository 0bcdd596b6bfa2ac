package arch

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
)

// Imports checks every import outside tests against the table, and that every
// package stands in it.
func Imports(t *Tree, table map[string]Package, libraries map[string][]string) (found []Finding) {
	for _, dir := range t.sorted() {
		if _, ok := table[dir]; !ok {
			found = append(found, t.finding(t.Dirs[dir][0].AST.Package,
				"package %s is not in the table of internal/arch: add it with its ring and what it may import", dir))
		}
	}
	t.each(false, func(f *File) {
		row, ok := table[f.Dir]
		if !ok {
			return
		}
		for _, spec := range f.AST.Imports {
			p := importPath(spec)
			if spec.Name != nil && spec.Name.Name == "." {
				found = append(found, t.finding(spec.Pos(), "dot import of %s hides where names come from", p))
			}
			ours, isOurs := strings.CutPrefix(p, Module+"/")
			if p == Module {
				ours, isOurs = ".", true
			}
			if !isOurs {
				found = append(found, t.library(f, spec, p, row.Ring, libraries)...)
				continue
			}
			if !slices.Contains(row.Imports, ours) && !slices.Contains(row.Imports, "...") {
				found = append(found, t.finding(spec.Pos(), "%s may not import %s: see the table of internal/arch", f.Dir, ours))
			}
		}
	})
	return found
}

func (t *Tree) library(f *File, spec *ast.ImportSpec, p string, ring Ring, libraries map[string][]string) (found []Finding) {
	if ring == Pure && !slices.Contains(pureImports, p) {
		return []Finding{t.finding(spec.Pos(), "the pure ring may not import %s: its inputs are values, time and randomness included", p)}
	}
	for prefix, dirs := range libraries {
		if under(p, prefix) && !slices.Contains(dirs, f.Dir) {
			found = append(found, t.finding(spec.Pos(), "%s may not import %s; it belongs to %s", f.Dir, p, strings.Join(dirs, ", ")))
		}
	}
	return found
}

// Clock finds uses of the real clock outside the edges.
func Clock(t *Tree, table map[string]Package) (found []Finding) {
	t.each(false, func(f *File) {
		ring := table[f.Dir].Ring
		if ring == Edge || ring == Public && !slices.Contains(clockFree, f.Dir) {
			return
		}
		selectors(f.AST, func(at token.Pos, pkg, name string) {
			if slices.Contains(clock[pkg], name) {
				found = append(found, t.finding(at, "%s.%s outside the edges: take the time as a value", pkg, name))
			}
		})
	})
	return found
}

// Names refuses package names that say nothing, and directories so named.
func Names(t *Tree) (found []Finding) {
	for _, dir := range t.sorted() {
		name := strings.TrimSuffix(t.Dirs[dir][0].AST.Name.Name, "_test")
		if slices.Contains(badNames, name) || slices.Contains(badNames, path.Base(dir)) {
			found = append(found, t.finding(t.Dirs[dir][0].AST.Package, "package %s in %s: name it after what it owns", name, dir))
		}
	}
	return found
}

// Comments requires a package comment in every package, also of tests alone.
func Comments(t *Tree) (found []Finding) {
	for _, dir := range t.sorted() {
		files := t.Dirs[dir]
		if !slices.ContainsFunc(files, func(f *File) bool { return f.AST.Doc != nil && strings.TrimSpace(f.AST.Doc.Text()) != "" }) {
			found = append(found, t.finding(files[0].AST.Package, "package %s has no package comment", dir))
		}
	}
	return found
}

// Skips finds tests that give themselves up: what a test needs is installed, or
// the test fails.
func Skips(t *Tree) (found []Finding) {
	t.each(true, func(f *File) {
		if !f.Test && !slices.ContainsFunc(f.AST.Imports, func(s *ast.ImportSpec) bool { return importPath(s) == "testing" }) {
			return
		}
		ast.Inspect(f.AST, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
				found = append(found, t.finding(call.Pos(), "a test may not skip itself: let it fail and say what is missing"))
			}
			return true
		})
		selectors(f.AST, func(at token.Pos, pkg, name string) {
			if pkg == "testing" && name == "Short" {
				found = append(found, t.finding(at, "testing.Short skips in disguise: bound the test by a flag with a default"))
			}
		})
	})
	return found
}

// Notes finds work that was put off in a comment.
func Notes(t *Tree) (found []Finding) {
	t.each(true, func(f *File) {
		if f.Generated {
			return
		}
		for _, group := range f.AST.Comments {
			for _, c := range group.List {
				text := strings.TrimLeft(c.Text, "/* \t")
				for _, word := range []string{"TODO", "FIXME", "XXX", "HACK"} {
					if strings.HasPrefix(text, word) {
						found = append(found, t.finding(c.Pos(), "%s: do it, or open an issue", word))
					}
				}
			}
		}
	})
	return found
}

// Replaces refuses a go.mod that users of the module would not get: a replace or
// exclude directive counts in the main module alone. It takes the output of
// `go mod edit -json`.
func Replaces(mod []byte) (found []Finding) {
	var m struct {
		Module           struct{ Path string }
		Replace, Exclude []json.RawMessage
	}
	if err := json.Unmarshal(mod, &m); err != nil {
		return []Finding{{Text: fmt.Sprintf("go.mod: %v", err)}}
	}
	if m.Module.Path != Module {
		found = append(found, Finding{Text: fmt.Sprintf("go.mod is of %q, not of %q", m.Module.Path, Module)})
	}
	for _, r := range append(m.Replace, m.Exclude...) {
		found = append(found, Finding{Text: fmt.Sprintf("go.mod: no replace or exclude directive: %s", r)})
	}
	return found
}
