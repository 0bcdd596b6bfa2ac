package arch

import (
	"flag"
	"go/ast"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root can point at another checkout.
var root = flag.String("root", "../..", "root of the module to check")

func report(t *testing.T, found []Finding) {
	t.Helper()
	for _, f := range found {
		t.Error(f)
	}
}

func TestArchitecture(t *testing.T) {
	tree, err := Parse(*root)
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Dirs) < 10 || tree.Dirs["internal/arch"] == nil {
		t.Fatalf("only %d packages below %s: not the module's root?", len(tree.Dirs), *root)
	}
	t.Run("imports", func(t *testing.T) { report(t, Imports(tree, Table, Libraries)) })
	t.Run("clock", func(t *testing.T) { report(t, Clock(tree, Table)) })
	t.Run("names", func(t *testing.T) { report(t, Names(tree)) })
	t.Run("comments", func(t *testing.T) { report(t, Comments(tree)) })
	t.Run("skips", func(t *testing.T) { report(t, Skips(tree)) })
	t.Run("notes", func(t *testing.T) { report(t, Notes(tree)) })
}

func TestGoMod(t *testing.T) {
	cmd := exec.Command("go", "mod", "edit", "-json")
	cmd.Dir = *root
	mod, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	report(t, Replaces(mod))
}

// The pure ring is checked with types, to know what is a map or a channel.
func TestPureRing(t *testing.T) {
	var pure []string
	for dir, p := range Table {
		if p.Ring == Pure {
			pure = append(pure, Module+"/"+dir)
		}
	}
	slices.Sort(pure)
	listed, err := list(t.Context(), *root, pure...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pure {
		t.Run(strings.TrimPrefix(p, Module+"/"), func(t *testing.T) {
			c, err := checkListed(p, listed)
			if err != nil {
				t.Fatal(err)
			}
			report(t, Purity(c))
			report(t, MapOrder(c))
		})
	}
}

// The table itself must not open the rings.
func TestTableKeepsTheRings(t *testing.T) {
	for dir, p := range Table {
		for _, to := range p.Imports {
			target, ok := Table[to]
			switch {
			case to == "...":
				if dir != "cmd/assent" {
					t.Errorf("%s may import everything", dir)
				}
			case !ok:
				t.Errorf("%s may import %s, which is not in the table", dir, to)
			case p.Ring == Pure && target.Ring != Pure && to != "internal/mutant":
				t.Errorf("%s is pure and may import %s, which is not", dir, to)
			case p.Ring == Public && target.Ring != Public:
				t.Errorf("%s is public and may import %s, which is not", dir, to)
			case strings.HasPrefix(to, "cmd/"):
				t.Errorf("%s may import a command, %s", dir, to)
			}
		}
		if slices.Contains(p.Imports, "internal/server") || slices.Contains(p.Imports, "internal/sim") && !under(dir, "internal/sim") {
			t.Errorf("%s may import the server or the simulator", dir)
		}
	}
	for _, p := range pureImports {
		for _, bad := range []string{"time", "context", "sync", "os", "io", "net", "math/rand", "crypto/rand", "runtime", "log", "unsafe", "reflect"} {
			if under(p, bad) {
				t.Errorf("the pure ring may import %s", p)
			}
		}
	}
}

// The rules bite: testdata/tree breaks each of them, and what is expected stands
// in comments there.
func TestRulesBite(t *testing.T) {
	tree, err := Parse("testdata/tree")
	if err != nil {
		t.Fatal(err)
	}
	var found []Finding
	found = append(found, Imports(tree, Table, Libraries)...)
	found = append(found, Clock(tree, Table)...)
	found = append(found, Names(tree)...)
	found = append(found, Comments(tree)...)
	found = append(found, Skips(tree)...)
	found = append(found, Notes(tree)...)
	var files []*ast.File
	tree.each(true, func(f *File) { files = append(files, f.AST) })
	expect(t, tree.Fset, files, found)
}

func TestPureRulesBite(t *testing.T) {
	listed, err := list(t.Context(), *root, "maps", "slices", "sort", "strings")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/pure/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	c, err := check("fixture", files, listed)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, c.Fset, c.Files, append(Purity(c), MapOrder(c)...))
}

func TestReplacesBite(t *testing.T) {
	if found := Replaces([]byte(`{"Module":{"Path":"` + Module + `"},"Replace":[{"Old":{"Path":"a"}}],"Exclude":[{"Path":"b"}]}`)); len(found) != 2 {
		t.Error(found)
	}
	if found := Replaces([]byte(`{"Module":{"Path":"other"}}`)); len(found) != 1 {
		t.Error(found)
	}
	if found := Replaces([]byte(`{`)); len(found) != 1 {
		t.Error(found)
	}
}

func TestBrokenSourceIsAnError(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.go"), []byte("package x\nfunc {"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(dir); err == nil {
		t.Error("parsed")
	}
	if _, err := Parse(filepath.Join(dir, "none")); err == nil {
		t.Error("a directory that is not there was parsed")
	}
	if _, err := list(t.Context(), *root, "./no/such/package"); err == nil {
		t.Error("a package that is not there was listed")
	}
	if _, err := checkListed("none", nil); err == nil {
		t.Error("a package that is not there was checked")
	}
}

var wants = regexp.MustCompile(`// want((?: "[^"]*")+)`)

// expect compares findings with the comments `// want "text" "text"`: each text
// is a regular expression for one finding of its line.
func expect(t *testing.T, fset *token.FileSet, files []*ast.File, found []Finding) {
	t.Helper()
	type line struct {
		file string
		line int
	}
	wanted := map[line][]string{}
	for _, f := range files {
		for _, group := range f.Comments {
			for _, c := range group.List {
				m := wants.FindStringSubmatch(c.Text)
				if m == nil {
					continue
				}
				p := fset.Position(c.Pos())
				at := line{p.Filename, p.Line}
				wanted[at] = append(wanted[at], strings.Split(strings.Trim(m[1], ` "`), `" "`)...)
			}
		}
	}
	if len(wanted) == 0 {
		t.Fatal("the fixtures expect nothing")
	}
	for _, f := range found {
		at := line{f.Pos.Filename, f.Pos.Line}
		i := slices.IndexFunc(wanted[at], func(text string) bool { return regexp.MustCompile(text).MatchString(f.Text) })
		if i < 0 {
			t.Errorf("not expected: %s", f)
			continue
		}
		wanted[at] = slices.Delete(wanted[at], i, i+1)
	}
	for at, texts := range wanted {
		for _, text := range texts {
			t.Errorf("%s:%d: nothing found that matches %q", at.file, at.line, text)
		}
	}
}
