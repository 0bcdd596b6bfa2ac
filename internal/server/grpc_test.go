package server

import (
	"context"
	"encoding/json"
	"net"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	assentv1 "github.com/assent-tx/assent/api/assent/v1"
	"github.com/assent-tx/assent/internal/node"
)

// dial serves gRPC on a pipe and connects to it.
func dial(t *testing.T, s *Server) *grpc.ClientConn {
	t.Helper()
	pipe := bufconn.Listen(1 << 16)
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(pipe) }()
	c, err := grpc.NewClient("passthrough:///assent", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		s.grpc.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return c
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// restForm brings the canonical JSON of a message to the REST form: it tests the
// four differences that the proto file names, and that there is no fifth.
func restForm(t *testing.T, m proto.Message) any {
	t.Helper()
	raw, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// normal makes JSON of both protocols comparable: absent and empty are the same,
// enum values lose their prefix, times and durations are read, byte strings decoded.
func normal(key string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, child := range v {
			if n := normal(k, child); n != nil && !reflect.ValueOf(n).IsZero() {
				out[k] = n
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = normal(key, v[i])
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case string:
		switch key {
		case "timeout", "prepare_timeout", "finish_timeout", "idle_timeout":
			d, err := time.ParseDuration(v)
			if err != nil {
				return err.Error()
			}
			return d.String()
		case "began_at", "granted_at", "decided_at", "ended_at", "registered_at", "updated_at", "age", "since", "at":
			at, err := time.Parse(time.RFC3339Nano, v)
			if err != nil {
				return err.Error()
			}
			return at.UTC().String()
		case "incarnation", "term": // numbers in REST
			n, err := strconv.ParseFloat(v, 64)
			if err != nil {
				return err.Error()
			}
			return n
		case "state", "vote", "hazard", "isolation", "capabilities":
			for _, prefix := range []string{"TRANSACTION_STATE_", "BRANCH_STATE_", "SERVICE_STATE_", "NODE_STATE_", "VOTE_", "OUTCOME_", "ISOLATION_", "CAPABILITY_"} {
				if rest, ok := strings.CutPrefix(v, prefix); ok {
					return strings.ToLower(rest)
				}
			}
		}
	}
	return v
}

func TestBothProtocolsAnswerTheSame(t *testing.T) {
	s := newServer(t, &fake{ready: true}, Limits{})
	ctx := testContext(t)
	conn := dial(t, s)
	transactions, registry := assentv1.NewTransactionServiceClient(conn), assentv1.NewRegistryServiceClient(conn)
	same := func(name string, m proto.Message, err error, method, path, body string) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		// Results are bytes here and raw JSON there: compared apart.
		if tx, ok := m.(*assentv1.Transaction); ok {
			for _, b := range tx.GetBranches() {
				b.Results = nil
			}
		}
		if list, ok := m.(*assentv1.ListTransactionsResponse); ok {
			for _, tx := range list.GetTransactions() {
				for _, b := range tx.GetBranches() {
					b.Results = nil
				}
			}
		}
		var rest any
		if err := json.Unmarshal(ask(t, s, method, path, body).Body.Bytes(), &rest); err != nil {
			t.Fatal(err)
		}
		dropResults(rest)
		if got, want := normal("", rest), normal("", restForm(t, m)); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: REST answers\n%v\ngRPC answers\n%v", name, got, want)
		}
	}
	tx, err := transactions.GetTransaction(ctx, &assentv1.GetTransactionRequest{Id: someID})
	if err == nil && string(tx.GetBranches()[0].GetResults()[0]) != `{"balance":9007199254740993}` {
		t.Errorf("results: %q", tx.GetBranches()[0].GetResults())
	}
	same("get", tx, err, "GET", "/v1/transactions/"+someID, "")
	list, err := transactions.ListTransactions(ctx, &assentv1.ListTransactionsRequest{PageSize: 3})
	same("list", list, err, "GET", "/v1/transactions?page_size=3", "")
	tx, err = transactions.RollbackTransaction(ctx, &assentv1.RollbackTransactionRequest{Id: otherID})
	same("rollback", tx, err, "POST", "/v1/transactions/"+otherID+"/rollback", "{}")
	tx, err = transactions.ResolveTransaction(ctx, &assentv1.ResolveTransactionRequest{Id: someID, Note: "x"})
	same("resolve", tx, err, "POST", "/v1/transactions/"+someID+"/resolve", `{"note":"x"}`)
	tx, err = transactions.SubmitTransaction(ctx, &assentv1.SubmitTransactionRequest{Operations: []*assentv1.Operation{{Service: "a", Payload: []byte("1")}}})
	same("submit", tx, err, "POST", "/v1/transactions", operations(`{"service":"a","payload":1}`))
	svc, err := registry.GetService(ctx, &assentv1.GetServiceRequest{Name: "ledger-a"})
	same("get service", svc, err, "GET", "/v1/services/ledger-a", "")
	all, err := registry.ListServices(ctx, &assentv1.ListServicesRequest{})
	same("list services", all, err, "GET", "/v1/services", "")
	svc, err = registry.DeleteService(ctx, &assentv1.DeleteServiceRequest{Name: "ledger-a"})
	same("delete service", svc, err, "DELETE", "/v1/services/ledger-a", "")
	svc, err = registry.PutService(ctx, &assentv1.PutServiceRequest{Name: "a", Http: &assentv1.HttpEndpoints{Prepare: "http://h/p", Commit: "http://h/c", Rollback: "https://h:8443/r"}})
	same("put service", svc, err, "PUT", "/v1/services/a", goodPut)

	tx, err = transactions.BeginTransaction(ctx, &assentv1.BeginTransactionRequest{Id: someID, Timeout: durationpb.New(30 * time.Second), IdleTimeout: durationpb.New(time.Second)})
	same("begin", tx, err, "POST", "/v1/transactions:begin", `{"id":"`+someID+`","timeout":"30s","idle_timeout":"1s"}`)
	tx, err = transactions.AcquireLocks(ctx, &assentv1.AcquireLocksRequest{Id: someID, Step: 2, Locks: []*assentv1.ServiceLock{{Service: "a", Key: "k"}}})
	same("locks", tx, err, "POST", "/v1/transactions/"+someID+"/locks", `{"step":2,"locks":[{"service":"a","key":"k"}]}`)
	tx, err = transactions.AcquireLocks(ctx, &assentv1.AcquireLocksRequest{Id: someID, StepKey: "k", Locks: []*assentv1.ServiceLock{{Service: "a", Key: "k"}}})
	same("locks by key", tx, err, "POST", "/v1/transactions/"+someID+"/locks", `{"step_key":"k","locks":[{"service":"a","key":"k"}]}`)
	tx, err = transactions.CommitTransaction(ctx, &assentv1.CommitTransactionRequest{Id: someID})
	same("commit", tx, err, "POST", "/v1/transactions/"+someID+"/commit", "{}")
	tx, err = transactions.HeartbeatTransaction(ctx, &assentv1.HeartbeatTransactionRequest{Id: someID})
	same("heartbeat", tx, err, "POST", "/v1/transactions/"+someID+"/heartbeat", "{}")
	locks, err := transactions.ListLocks(ctx, &assentv1.ListLocksRequest{})
	same("list locks", locks, err, "GET", "/v1/locks", "")
	cycles, err := transactions.ListDeadlocks(ctx, &assentv1.ListDeadlocksRequest{})
	same("list deadlocks", cycles, err, "GET", "/v1/deadlocks", "")
	cluster, err := assentv1.NewClusterServiceClient(conn).GetCluster(ctx, &assentv1.GetClusterRequest{})
	same("cluster", cluster, err, "GET", "/v1/cluster", "")
}

func dropResults(v any) {
	switch v := v.(type) {
	case map[string]any:
		delete(v, "results")
		for _, child := range v {
			dropResults(child)
		}
	case []any:
		for _, child := range v {
			dropResults(child)
		}
	}
}

func TestBothProtocolsAskTheSame(t *testing.T) {
	f := &fake{}
	s := newServer(t, f, Limits{})
	conn := dial(t, s)
	trace := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	ctx := metadata.AppendToOutgoingContext(testContext(t), "traceparent", trace)
	if _, err := assentv1.NewTransactionServiceClient(conn).SubmitTransaction(ctx, &assentv1.SubmitTransactionRequest{
		Id: someID, Timeout: durationpb.New(90 * time.Second), Wait: assentv1.WaitMode_WAIT_MODE_COMPLETED,
		Operations: []*assentv1.Operation{
			{Service: "a", Payload: []byte(` { "n" : 9007199254740993 } `), Locks: []*assentv1.Lock{{Key: "k", Mode: assentv1.LockMode_LOCK_MODE_SHARED}, {Key: "l"}}},
			{Service: "b", Payload: []byte(`null`)},
		},
	}); err != nil {
		t.Fatal(err)
	}
	body := `{"id":"` + someID + `","timeout":"90s","wait":"completed","operations":[
		{"service":"a","payload":{"n":9007199254740993},"locks":[{"key":"k","mode":"shared"},{"key":"l"}]},{"service":"b","payload":null}]}`
	if w := ask(t, s, "POST", "/v1/transactions", body, "Traceparent", trace); w.Code != 200 {
		t.Fatal(w.Body)
	}
	if !reflect.DeepEqual(f.submits[0], f.submits[1]) {
		t.Errorf("gRPC %+v\nREST %+v", f.submits[0], f.submits[1])
	}

	if _, err := assentv1.NewRegistryServiceClient(conn).PutService(ctx, &assentv1.PutServiceRequest{
		Name: "a", Http: &assentv1.HttpEndpoints{Prepare: "http://h/p", Commit: "http://h/c", Rollback: "http://h/r", Status: "http://h/s"},
		Resources: []string{"x"}, Capabilities: []assentv1.Capability{assentv1.Capability_CAPABILITY_LIST_IN_DOUBT, assentv1.Capability_CAPABILITY_READ_ONLY},
		Isolation: assentv1.Isolation_ISOLATION_PARTICIPANT, RequireKeys: true,
		Limits: &assentv1.ServiceLimits{MaxInFlight: 9, PrepareTimeout: durationpb.New(time.Second), FinishTimeout: durationpb.New(2 * time.Second)},
	}); err != nil {
		t.Fatal(err)
	}
	if w := ask(t, s, "PUT", "/v1/services/a", `{"http":{"prepare":"http://h/p","commit":"http://h/c","rollback":"http://h/r","status":"http://h/s"},"resources":["x"],
		"capabilities":["list_in_doubt","read_only"],"isolation":"participant","require_keys":true,"limits":{"max_in_flight":9,"prepare_timeout":"1s","finish_timeout":"2s"}}`); w.Code != 200 {
		t.Fatal(w.Body)
	}
	if !reflect.DeepEqual(f.puts[0], f.puts[1]) {
		t.Errorf("gRPC %+v\nREST %+v", f.puts[0], f.puts[1])
	}
}

func TestGRPCRefusals(t *testing.T) {
	f := &fake{rollback: func(_ context.Context, id string) (node.Transaction, error) { return committed(id) }}
	s := newServer(t, f, Limits{MaxRequestBytes: 2000})
	conn := dial(t, s)
	c, reg := assentv1.NewTransactionServiceClient(conn), assentv1.NewRegistryServiceClient(conn)
	ctx := testContext(t)
	submit := func(ops ...*assentv1.Operation) error {
		_, err := c.SubmitTransaction(ctx, &assentv1.SubmitTransactionRequest{Operations: ops})
		return err
	}
	put := func(change func(*assentv1.PutServiceRequest)) error {
		r := &assentv1.PutServiceRequest{Name: "a", Http: &assentv1.HttpEndpoints{Prepare: "http://h/p", Commit: "http://h/c", Rollback: "http://h/r"}}
		change(r)
		_, err := reg.PutService(ctx, r)
		return err
	}
	unknown := &assentv1.Operation{Service: "a", Payload: []byte("1")}
	unknown.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	_, badID := c.GetTransaction(ctx, &assentv1.GetTransactionRequest{Id: "x"})
	_, notFound := c.GetTransaction(ctx, &assentv1.GetTransactionRequest{Id: otherID})
	_, rolledBack := c.RollbackTransaction(ctx, &assentv1.RollbackTransactionRequest{Id: someID})
	_, badState := c.ListTransactions(ctx, &assentv1.ListTransactionsRequest{State: "x"})
	_, badNote := c.ResolveTransaction(ctx, &assentv1.ResolveTransactionRequest{Id: someID})
	_, badWait := c.SubmitTransaction(ctx, &assentv1.SubmitTransactionRequest{Wait: 77})
	_, badTimeout := c.SubmitTransaction(ctx, &assentv1.SubmitTransactionRequest{Timeout: &durationpb.Duration{Seconds: 1, Nanos: -1}})
	_, badName := reg.DeleteService(ctx, &assentv1.DeleteServiceRequest{Name: "A"})
	for _, c := range []struct {
		name          string
		err           error
		code          codes.Code
		reason, field string
	}{
		{"no operations", submit(), codes.InvalidArgument, "EMPTY_OPERATIONS", "operations"},
		{"payload not JSON", submit(&assentv1.Operation{Service: "a", Payload: []byte("{x}")}), codes.InvalidArgument, "INVALID_JSON", "operations[0].payload"},
		{"two payloads in one", submit(&assentv1.Operation{Service: "a", Payload: []byte("1 2")}), codes.InvalidArgument, "INVALID_JSON", "operations[0].payload"},
		{"duplicate name", submit(&assentv1.Operation{Service: "a", Payload: []byte(`{"x":1,"x":2}`)}), codes.InvalidArgument, "INVALID_JSON", "operations[0].payload"},
		{"no payload", submit(&assentv1.Operation{Service: "a"}), codes.InvalidArgument, "INVALID_FIELD", "operations[0].payload"},
		{"unknown field", submit(unknown), codes.InvalidArgument, "UNKNOWN_FIELD", ""},
		{"bad mode", submit(&assentv1.Operation{Service: "a", Payload: []byte("1"), Locks: []*assentv1.Lock{{Key: "k", Mode: 9}}}), codes.InvalidArgument, "INVALID_FIELD", "operations[0].locks[0].mode"},
		{"too large", submit(&assentv1.Operation{Service: "a", Payload: []byte(`"` + strings.Repeat("x", 2000) + `"`)}), codes.InvalidArgument, "REQUEST_TOO_LARGE", "message"},
		{"bad wait", badWait, codes.InvalidArgument, "INVALID_FIELD", "wait"},
		{"bad timeout", badTimeout, codes.InvalidArgument, "INVALID_DURATION", "timeout"},
		{"bad id", badID, codes.InvalidArgument, "INVALID_ID", "id"},
		{"not found", notFound, codes.NotFound, "NOT_FOUND", ""},
		{"committed", rolledBack, codes.FailedPrecondition, "ALREADY_COMMITTED", ""},
		{"bad state", badState, codes.InvalidArgument, "INVALID_FIELD", "state"},
		{"no note", badNote, codes.InvalidArgument, "INVALID_FIELD", "note"},
		{"bad service", badName, codes.InvalidArgument, "INVALID_SERVICE", "name"},
		{"bad capability", put(func(r *assentv1.PutServiceRequest) { r.Capabilities = []assentv1.Capability{42} }), codes.InvalidArgument, "INVALID_FIELD", "capabilities[0]"},
		{"no capability", put(func(r *assentv1.PutServiceRequest) { r.Capabilities = []assentv1.Capability{0} }), codes.InvalidArgument, "INVALID_SERVICE", "capabilities[0]"},
		{"no endpoints", put(func(r *assentv1.PutServiceRequest) { r.Http = nil }), codes.InvalidArgument, "INVALID_URL", "http.prepare"},
		{"many calls", put(func(r *assentv1.PutServiceRequest) { r.Limits = &assentv1.ServiceLimits{MaxInFlight: 10_001} }), codes.InvalidArgument, "INVALID_FIELD", "limits.max_in_flight"},
	} {
		st := status.Convert(c.err)
		var info *errdetails.ErrorInfo
		for _, d := range st.Details() {
			if i, ok := d.(*errdetails.ErrorInfo); ok {
				info = i
			}
		}
		if st.Code() != c.code || info.GetReason() != c.reason || info.GetMetadata()["field"] != c.field || info.GetDomain() != "assent" {
			t.Errorf("%s: got %v with %v", c.name, c.err, info)
		}
	}
	var about *assentv1.Transaction
	for _, d := range status.Convert(rolledBack).Details() {
		if tx, ok := d.(*assentv1.Transaction); ok {
			about = tx
		}
	}
	if about.GetState() != assentv1.TransactionState_TRANSACTION_STATE_COMMITTED || about.GetId() != someID {
		t.Errorf("the refused rollback tells of %v", about)
	}
	if len(f.submits)+len(f.puts) != 0 {
		t.Errorf("a refused request reached the coordinator")
	}
}

func TestGRPCHealthAndReflection(t *testing.T) {
	f := &fake{ready: true}
	s := newServer(t, f, Limits{})
	conn := dial(t, s)
	ctx := testContext(t)
	health := healthpb.NewHealthClient(conn)
	for service, want := range map[string]codes.Code{"": codes.OK, "assent.v1.TransactionService": codes.OK, "x": codes.NotFound} {
		r, err := health.Check(ctx, &healthpb.HealthCheckRequest{Service: service})
		if status.Code(err) != want || err == nil && r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", service, r, err)
		}
	}
	watch, err := health.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := watch.Recv(); err != nil || r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("watch: %v, %v", r, err)
	}
	s.admission.draining.Store(true)
	if r, err := watch.Recv(); err != nil || r.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Fatalf("watch: %v, %v", r, err)
	}
	if _, err := watch.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the watch of a draining server goes on: %v", err)
	}

	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if text := r.String(); !strings.Contains(text, "assent.v1.TransactionService") || !strings.Contains(text, "assent.v1.RegistryService") {
		t.Errorf("reflection lists %s", text)
	}
	_ = stream.CloseSend()
}
