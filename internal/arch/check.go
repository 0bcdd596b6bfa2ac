package arch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// goList is what is needed of a package that the go command lists.
type goList struct {
	ImportPath string
	Dir        string
	Export     string // file with the package's compiled types
	GoFiles    []string
}

// list builds and lists the packages and all they depend on.
func list(ctx context.Context, root string, packages ...string) (map[string]goList, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles", "--"}, packages...)...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, stderr.Bytes())
	}
	listed := map[string]goList{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goList
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return listed, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		listed[p.ImportPath] = p
	}
}

// check parses and type-checks one package from its files, with its imports as
// the go command compiled them.
func check(path string, files []string, listed map[string]goList) (*Checked, error) {
	c := &Checked{Fset: token.NewFileSet(), Info: &types.Info{
		Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{},
	}}
	for _, name := range files {
		f, err := parser.ParseFile(c.Fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("parse: %w", err)
		}
		c.Files = append(c.Files, f)
	}
	compiled := importer.ForCompiler(c.Fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(listed[path].Export)
	})
	if _, err := (&types.Config{Importer: compiled}).Check(path, c.Fset, c.Files, c.Info); err != nil {
		return nil, fmt.Errorf("type check: %w", err)
	}
	return c, nil
}

// checkListed is check of a package of the module as the go command builds it.
func checkListed(path string, listed map[string]goList) (*Checked, error) {
	p, ok := listed[path]
	if !ok {
		return nil, fmt.Errorf("package %s is not listed", path)
	}
	files := make([]string, 0, len(p.GoFiles))
	for _, name := range p.GoFiles {
		files = append(files, filepath.Join(p.Dir, name))
	}
	return check(path, files, listed)
}
