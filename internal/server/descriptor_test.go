package server

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	assentv1 "github.com/assent-tx/assent/api/assent/v1"
)

// bodies are the JSON forms of the messages; those that differ by the fields of
// the path name them.
var bodies = map[string]struct {
	form   any
	inPath []string
}{
	"SubmitTransactionRequest":   {SubmitBody{}, nil},
	"RollbackTransactionRequest": {RollbackBody{}, []string{"id"}},
	"ResolveTransactionRequest":  {ResolveBody{}, []string{"id"}},
	"PutServiceRequest":          {PutServiceBody{}, []string{"name"}},
	"Operation":                  {OperationBody{}, nil},
	"Lock":                       {LockBody{}, nil},
	"HttpEndpoints":              {HTTPEndpoints{}, nil},
	"ServiceLimits":              {ServiceLimits{}, nil},
	"Transaction":                {Transaction{}, nil},
	"Abort":                      {Abort{}, nil},
	"Branch":                     {Branch{}, nil},
	"LockWait":                   {LockWait{}, nil},
	"Service":                    {Service{}, nil},
	"ListTransactionsResponse":   {TransactionList{}, nil},
	"ListServicesResponse":       {ServiceList{}, nil},
	"GetTransactionRequest":      {struct{}{}, []string{"id"}},
	"GetServiceRequest":          {struct{}{}, []string{"name"}},
	"DeleteServiceRequest":       {struct{}{}, []string{"name"}},

	"BeginTransactionRequest":     {BeginBody{}, nil},
	"EnlistOperationsRequest":     {EnlistBody{}, []string{"id"}},
	"EnlistOperationsResponse":    {EnlistAnswer{}, nil},
	"StepOperation":               {StepOperationBody{}, nil},
	"ServiceLock":                 {ServiceLockBody{}, nil},
	"AcquireLocksRequest":         {LocksBody{}, []string{"id"}},
	"CommitTransactionRequest":    {CommitBody{}, []string{"id"}},
	"HeartbeatTransactionRequest": {struct{}{}, []string{"id"}},
	"ListLocksResponse":           {LockList{}, nil},
	"LockInfo":                    {LockInfo{}, nil},
	"LockOwner":                   {LockOwner{}, nil},
	"ListDeadlocksRequest":        {struct{}{}, nil},
	"ListDeadlocksResponse":       {DeadlockList{}, nil},
	"Deadlock":                    {Deadlock{}, nil},
	"DeadlockWait":                {DeadlockWait{}, nil},
	"ListLocksRequest": {struct {
		Service   string `json:"service"`
		Key       string `json:"key"`
		Waited    bool   `json:"waited"`
		PageSize  int    `json:"page_size"`
		PageToken string `json:"page_token"`
	}{}, nil},
	"GetClusterRequest":    {struct{}{}, nil},
	"DrainNodeRequest":     {struct{}{}, []string{"name"}},
	"UndrainNodeRequest":   {struct{}{}, []string{"name"}},
	"RemoveNodeRequest":    {struct{}{}, []string{"name"}},
	"TransferShardRequest": {TransferBody{}, []string{"shard"}},
	"Cluster":              {Cluster{}, nil},
	"ClusterNode":          {ClusterNode{}, nil},
	"ShardPlacement":       {ShardPlacement{}, nil},
	"ListServicesRequest":  {struct{}{}, nil},
	"ListTransactionsRequest": {struct {
		State     string `json:"state"`
		Service   string `json:"service"`
		PageSize  int    `json:"page_size"`
		PageToken string `json:"page_token"`
	}{}, nil},
}

func jsonNames(form any) []string {
	names := []string{}
	t := reflect.TypeOf(form)
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func TestEveryMessageHasItsJSONNames(t *testing.T) {
	messages := assentv1.File_assent_v1_assent_proto.Messages()
	if messages.Len() != len(bodies) {
		t.Errorf("the proto file has %d messages, this test knows %d", messages.Len(), len(bodies))
	}
	for i := range messages.Len() {
		m := messages.Get(i)
		b, ok := bodies[string(m.Name())]
		if !ok {
			t.Errorf("message %s has no JSON form here", m.Name())
			continue
		}
		want := []string{}
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			if f.JSONName() != string(f.Name()) {
				t.Errorf("%s: json_name is %q; the contract writes field names as they are", f.FullName(), f.JSONName())
			}
			if !slices.Contains(b.inPath, f.JSONName()) {
				want = append(want, f.JSONName())
			}
		}
		slices.Sort(want)
		if got := jsonNames(b.form); !slices.Equal(got, want) {
			t.Errorf("%s: JSON names are %v, the proto file says %v", m.Name(), got, want)
		}
	}
}

func TestEveryAnnotationIsARoute(t *testing.T) {
	annotated := map[string]string{} // "VERB path" -> RPC
	services := assentv1.File_assent_v1_assent_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			rule, ok := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
			if !ok || rule == nil {
				t.Errorf("%s has no HTTP annotation", m.FullName())
				continue
			}
			verb, path := verbOf(rule)
			annotated[verb+" "+path] = string(m.Name())
			checkParameters(t, m, verb, path, rule.GetBody())
		}
	}
	served := map[string]string{}
	for _, rt := range routes {
		served[rt.method+" "+rt.pattern] = rt.name
	}
	if !maps.Equal(annotated, served) {
		t.Errorf("the proto file has %v\nREST serves       %v", annotated, served)
	}
}

func verbOf(r *annotations.HttpRule) (verb, path string) {
	switch p := r.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		return "GET", p.Get
	case *annotations.HttpRule_Put:
		return "PUT", p.Put
	case *annotations.HttpRule_Post:
		return "POST", p.Post
	case *annotations.HttpRule_Delete:
		return "DELETE", p.Delete
	}
	return "", ""
}

// checkParameters: what is neither in the path nor in a body is a query parameter.
func checkParameters(t *testing.T, m protoreflect.MethodDescriptor, verb, path, body string) {
	t.Helper()
	if body == "*" {
		return
	}
	var want []string
	for i := range m.Input().Fields().Len() {
		name := m.Input().Fields().Get(i).JSONName()
		if !strings.Contains(path, "{"+name+"}") {
			want = append(want, name)
		}
	}
	for _, rt := range routes {
		if rt.method == verb && rt.pattern == path && !slices.Equal(rt.query, want) {
			t.Errorf("%s takes parameters %v, the proto file says %v", m.Name(), rt.query, want)
		}
	}
}

// constants reads the string constants of one type from Go source files.
func constants(t *testing.T, pattern, typeName string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no source in %s: %v", pattern, err)
	}
	found := map[string]string{}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != typeName {
				return true
			}
			for i, ident := range spec.Names {
				value, err := strconv.Unquote(spec.Values[i].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				found[ident.Name] = value
			}
			return true
		})
	}
	return found
}

func TestEveryReasonHasItsStatusAndItsConstant(t *testing.T) {
	codes := constants(t, "../reason/*.go", "Code")
	public := constants(t, "../../api/assent/v1/reasons.go", "Reason")
	if len(codes) < 30 {
		t.Fatalf("found only %d codes", len(codes))
	}
	known := map[string]bool{}
	for code := range wireCodes {
		known[string(code)] = true
	}
	for name, value := range codes {
		if !known[value] {
			t.Errorf("reason.%s (%s) has no status in wireCodes", name, value)
		}
		if public["Reason"+name] != value {
			t.Errorf("reason.%s is %q, assentv1.Reason%s is %q", name, value, name, public["Reason"+name])
		}
	}
	if len(public) != len(codes) || len(known) != len(codes) {
		t.Errorf("%d codes, %d of them public, %d with a status", len(codes), len(public), len(known))
	}
	for code, w := range wireCodes {
		if w.grpc.String() == "Aborted" {
			t.Errorf("%s is told as Aborted, which a client may read as the transaction's outcome", code)
		}
	}
}

func TestEveryReasonIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/API.md")
	if err != nil {
		t.Fatal(err)
	}
	for code, w := range wireCodes {
		row := "| `" + string(code) + "` |"
		if w != abortReason || code == "INTERNAL" {
			row += " " + strconv.Itoa(w.http) + " |"
		}
		if !strings.Contains(string(doc), row) {
			t.Errorf("docs/API.md has no row %q", row)
		}
	}
}
