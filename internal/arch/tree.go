package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Finding is one violation.
type Finding struct {
	Pos  token.Position // zero: the module as a whole
	Text string
}

func (f Finding) String() string {
	if f.Pos.Filename == "" {
		return f.Text
	}
	return f.Pos.String() + ": " + f.Text
}

// Tree is the module's source, parsed, whatever its build tags.
type Tree struct {
	Fset *token.FileSet
	Dirs map[string][]*File // by directory relative to the module's root
}

// File is one source file.
type File struct {
	Dir       string
	Test      bool // a _test.go file
	Generated bool
	AST       *ast.File
}

// Parse reads every package below root, except testdata and hidden directories.
func Parse(root string) (*Tree, error) {
	t := &Tree{Fset: token.NewFileSet(), Dirs: map[string][]*File{}}
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := entry.Name()
		if entry.IsDir() && name != root && (base == "testdata" || base == "vendor" || base[0] == '.' || base[0] == '_') {
			return filepath.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(base, ".go") || base[0] == '.' || base[0] == '_' {
			return nil
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read source: %w", err)
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return fmt.Errorf("read source: %w", err)
		}
		rel = filepath.ToSlash(rel)
		f, err := parser.ParseFile(t.Fset, rel, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return fmt.Errorf("parse: %w", err)
		}
		dir := path.Dir(rel)
		t.Dirs[dir] = append(t.Dirs[dir], &File{
			Dir: dir, Test: strings.HasSuffix(base, "_test.go"), Generated: ast.IsGenerated(f), AST: f,
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// sorted is the directories in order, so that findings come in one order.
func (t *Tree) sorted() []string {
	dirs := make([]string, 0, len(t.Dirs))
	for dir := range t.Dirs {
		dirs = append(dirs, dir)
	}
	slices.Sort(dirs)
	return dirs
}

func (t *Tree) finding(at token.Pos, format string, args ...any) Finding {
	return Finding{Pos: t.Fset.Position(at), Text: fmt.Sprintf(format, args...)}
}

// each calls check for every file, or for those outside tests only.
func (t *Tree) each(tests bool, check func(*File)) {
	for _, dir := range t.sorted() {
		for _, f := range t.Dirs[dir] {
			if tests || !f.Test {
				check(f)
			}
		}
	}
}

// importPath is the path of an import; the parser has seen that it is a string.
func importPath(spec *ast.ImportSpec) string {
	p, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		return spec.Path.Value
	}
	return p
}

// selectors calls found for each use pkg.Name of an imported package.
func selectors(f *ast.File, found func(at token.Pos, pkg, name string)) {
	local := map[string]string{} // name in the file -> path
	for _, spec := range f.Imports {
		p := importPath(spec)
		name := path.Base(p)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		local[name] = p
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && local[x.Name] != "" {
				found(sel.Pos(), local[x.Name], sel.Sel.Name)
			}
		}
		return true
	})
}

func under(p, prefix string) bool { return p == prefix || strings.HasPrefix(p, prefix+"/") }
