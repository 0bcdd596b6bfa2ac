package arch

import (
	"go/ast"
	"go/token"
	"go/types"
	"strings"
)

// Checked is a package with its types.
type Checked struct {
	Fset  *token.FileSet
	Files []*ast.File
	Info  *types.Info
}

func (c *Checked) finding(at token.Pos, text string) Finding {
	return Finding{Pos: c.Fset.Position(at), Text: text}
}

// Purity finds goroutines and channels in whatever form: statements, types,
// operations, and calls that give one.
func Purity(c *Checked) (found []Finding) {
	for _, f := range c.Files {
		ast.Inspect(f, func(n ast.Node) bool {
			bad := ""
			switch n := n.(type) {
			case *ast.GoStmt:
				bad = "go statement"
			case *ast.SelectStmt:
				bad = "select statement"
			case *ast.SendStmt:
				bad = "send on a channel"
			case *ast.ChanType:
				bad = "channel type"
			case *ast.UnaryExpr:
				if n.Op == token.ARROW {
					bad = "receive from a channel"
				}
			case *ast.RangeStmt:
				if has[*types.Chan](c.Info.TypeOf(n.X)) {
					bad = "range over a channel"
				}
			}
			if bad != "" {
				found = append(found, c.finding(n.Pos(), bad+" in the pure ring"))
			}
			return true
		})
	}
	return found
}

// OrderMark begins the comment, on the line of a loop over a map or the one
// before, that says why the order cannot show.
const OrderMark = "// order does not matter: "

// orderFree are the functions of maps whose result or effect has no order.
var orderFree = map[string]bool{"Clone": true, "Copy": true, "Equal": true, "EqualFunc": true, "Insert": true, "Collect": true}

// MapOrder finds loops over maps whose order may show. Allowed are: collecting
// into a slice that the very next statement sorts; maps.Keys and the like as the
// argument of slices.Sorted, SortedFunc or SortedStableFunc; and what carries
// OrderMark with a reason.
func MapOrder(c *Checked) (found []Finding) {
	for _, f := range c.Files {
		marked := map[int]bool{} // lines that a mark covers
		for _, group := range f.Comments {
			for _, comment := range group.List {
				if reason, ok := strings.CutPrefix(comment.Text, OrderMark); ok && strings.TrimSpace(reason) != "" {
					line := c.Fset.Position(comment.Pos()).Line
					marked[line] = true
					marked[c.Fset.Position(group.End()).Line+1] = true
				}
			}
		}
		report := func(at token.Pos, text string) {
			if !marked[c.Fset.Position(at).Line] {
				found = append(found, c.finding(at, text))
			}
		}
		sorted := map[ast.Expr]bool{} // arguments of sorting calls
		after := map[ast.Stmt]ast.Stmt{}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BlockStmt:
				follow(after, n.List)
			case *ast.CaseClause:
				follow(after, n.Body)
			case *ast.CallExpr:
				if pkg, name := c.callee(n); pkg == "slices" && strings.HasPrefix(name, "Sorted") && len(n.Args) > 0 {
					sorted[n.Args[0]] = true
				}
				if pkg, name := c.callee(n); pkg == "maps" && !orderFree[name] && !sorted[n] {
					report(n.Pos(), "maps."+name+" in map order: hand it to slices.Sorted, or say why the order does not matter")
				}
			case *ast.RangeStmt:
				if has[*types.Map](c.Info.TypeOf(n.X)) && n.Key != nil && !c.collectsAndSorts(n, after[n]) {
					report(n.Pos(), "range over a map: collect the keys and sort them in the next statement, or say why the order does not matter")
				}
			}
			return true
		})
	}
	return found
}

func follow(after map[ast.Stmt]ast.Stmt, list []ast.Stmt) {
	for i := 1; i < len(list); i++ {
		after[list[i-1]] = list[i]
	}
}

// callee is the package and the name of a called package function.
func (c *Checked) callee(call *ast.CallExpr) (pkg, name string) {
	fun := ast.Unparen(call.Fun)
	switch inst := fun.(type) {
	case *ast.IndexExpr:
		fun = inst.X
	case *ast.IndexListExpr:
		fun = inst.X
	}
	if sel, ok := fun.(*ast.SelectorExpr); ok {
		if fn, ok := c.Info.Uses[sel.Sel].(*types.Func); ok && fn.Pkg() != nil && fn.Signature().Recv() == nil {
			return fn.Pkg().Path(), fn.Name()
		}
	}
	return "", ""
}

// collectsAndSorts: the body is one `x = append(x, ...)`, perhaps under one if,
// and next sorts x.
func (c *Checked) collectsAndSorts(loop *ast.RangeStmt, next ast.Stmt) bool {
	body := loop.Body.List
	if len(body) == 1 {
		if filter, ok := body[0].(*ast.IfStmt); ok && filter.Init == nil && filter.Else == nil {
			body = filter.Body.List
		}
	}
	if len(body) != 1 {
		return false
	}
	assign, ok := body[0].(*ast.AssignStmt)
	if !ok || assign.Tok != token.ASSIGN || len(assign.Lhs) != 1 || len(assign.Rhs) != 1 {
		return false
	}
	call, ok := assign.Rhs[0].(*ast.CallExpr)
	if !ok || len(call.Args) < 2 {
		return false
	}
	fun, ok := call.Fun.(*ast.Ident)
	if !ok || c.Info.Uses[fun] != types.Universe.Lookup("append") {
		return false
	}
	into := types.ExprString(assign.Lhs[0])
	if types.ExprString(call.Args[0]) != into {
		return false
	}
	stmt, ok := next.(*ast.ExprStmt)
	if !ok {
		return false
	}
	sorting, ok := stmt.X.(*ast.CallExpr)
	if !ok || len(sorting.Args) == 0 || types.ExprString(sorting.Args[0]) != into {
		return false
	}
	switch pkg, name := c.callee(sorting); pkg {
	case "slices":
		return name == "Sort" || name == "SortFunc" || name == "SortStableFunc"
	case "sort":
		return name == "Slice" || name == "SliceStable" || name == "Strings" || name == "Ints"
	}
	return false
}

// has reports whether a type is, or as a type parameter may be, a T.
func has[T types.Type](t types.Type) bool {
	if t == nil {
		return false
	}
	if param, ok := types.Unalias(t).(*types.TypeParam); ok {
		constraint, ok := param.Constraint().Underlying().(*types.Interface)
		if !ok {
			return false
		}
		for i := range constraint.NumEmbeddeds() {
			switch e := constraint.EmbeddedType(i).(type) {
			case *types.Union:
				for j := range e.Len() {
					if has[T](e.Term(j).Type()) {
						return true
					}
				}
			default:
				if has[T](e) {
					return true
				}
			}
		}
		return false
	}
	_, ok := t.Underlying().(T)
	return ok
}
