package server

import (
	"context"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
)

// TimeoutHeader bounds how long a request waits for its answer: a Go duration.
const TimeoutHeader = "Assent-Timeout"

// route is one REST method; name is that of the RPC with the same annotation.
type route struct {
	name    string
	method  string
	pattern string
	work    work
	query   []string // parameters that it takes
	serve   func(s *Server, ctx context.Context, r *request) (any, error)
}

// request is a decoded frame around the routes.
type request struct {
	*http.Request
	body  []byte
	query url.Values
}

var routes = []route{
	{name: "SubmitTransaction", method: http.MethodPost, pattern: "/v1/transactions", work: submission, serve: submitTransaction},
	{name: "BeginTransaction", method: http.MethodPost, pattern: "/v1/transactions:begin", work: submission, serve: beginTransaction},
	{name: "EnlistOperations", method: http.MethodPost, pattern: "/v1/transactions/{id}/operations", work: step, serve: enlistOperations},
	{name: "AcquireLocks", method: http.MethodPost, pattern: "/v1/transactions/{id}/locks", work: step, serve: acquireLocks},
	{name: "CommitTransaction", method: http.MethodPost, pattern: "/v1/transactions/{id}/commit", serve: commitTransaction},
	{name: "HeartbeatTransaction", method: http.MethodPost, pattern: "/v1/transactions/{id}/heartbeat", serve: heartbeatTransaction},
	{
		name: "ListLocks", method: http.MethodGet, pattern: "/v1/locks", serve: listLocks,
		query: []string{"service", "key", "waited", "page_size", "page_token"},
	},
	{name: "ListDeadlocks", method: http.MethodGet, pattern: "/v1/deadlocks", serve: listDeadlocks},
	{name: "GetTransaction", method: http.MethodGet, pattern: "/v1/transactions/{id}", serve: getTransaction},
	{
		name: "ListTransactions", method: http.MethodGet, pattern: "/v1/transactions", serve: listTransactions,
		query: []string{"state", "service", "page_size", "page_token"},
	},
	{name: "RollbackTransaction", method: http.MethodPost, pattern: "/v1/transactions/{id}/rollback", serve: rollbackTransaction},
	{name: "ResolveTransaction", method: http.MethodPost, pattern: "/v1/transactions/{id}/resolve", serve: resolveTransaction},
	{name: "PutService", method: http.MethodPut, pattern: "/v1/services/{name}", serve: putService},
	{name: "GetService", method: http.MethodGet, pattern: "/v1/services/{name}", serve: getService},
	{name: "ListServices", method: http.MethodGet, pattern: "/v1/services", serve: listServices},
	{name: "DeleteService", method: http.MethodDelete, pattern: "/v1/services/{name}", serve: deleteService},
	{name: "GetCluster", method: http.MethodGet, pattern: "/v1/cluster", serve: getCluster},
	{name: "DrainNode", method: http.MethodPost, pattern: "/v1/cluster/nodes/{name}:drain", serve: drainNode},
	{name: "UndrainNode", method: http.MethodPost, pattern: "/v1/cluster/nodes/{name}:undrain", serve: undrainNode},
	{name: "RemoveNode", method: http.MethodDelete, pattern: "/v1/cluster/nodes/{name}", serve: removeNode},
	{name: "TransferShard", method: http.MethodPost, pattern: "/v1/cluster/shards/{shard}:transfer", serve: transferShard},
}

func submitTransaction(s *Server, ctx context.Context, r *request) (any, error) {
	var b SubmitBody
	if err := r.decode(&b); err != nil {
		return nil, err
	}
	sub, err := s.limits.submission(&b, traceParent(r.Header.Get("Traceparent")))
	if err != nil {
		return nil, err
	}
	return transactionAnswer(s.coordinator.Submit(ctx, sub))
}

func getTransaction(s *Server, ctx context.Context, r *request) (any, error) {
	id := r.PathValue("id")
	if err := checkID(id); err != nil {
		return nil, err
	}
	return transactionAnswer(s.coordinator.Transaction(ctx, id))
}

func listTransactions(s *Server, ctx context.Context, r *request) (any, error) {
	q := node.ListQuery{State: r.query.Get("state"), Service: r.query.Get("service"), PageToken: r.query.Get("page_token")}
	if text := r.query.Get("page_size"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, inField(reason.New(reason.InvalidField, "1 to "+strconv.Itoa(s.limits.MaxPageSize), "%.40q is no page size", text), "page_size")
		}
		q.PageSize = n
	}
	q, err := s.limits.listQuery(q)
	if err != nil {
		return nil, err
	}
	page, err := s.coordinator.Transactions(ctx, q)
	if err != nil {
		return nil, err
	}
	return pageJSON(&page), nil
}

func rollbackTransaction(s *Server, ctx context.Context, r *request) (any, error) {
	id := r.PathValue("id")
	if err := checkID(id); err != nil {
		return nil, err
	}
	if len(r.body) > 0 {
		if err := r.decode(&RollbackBody{}); err != nil {
			return nil, err
		}
	}
	return transactionAnswer(s.coordinator.Rollback(ctx, id))
}

func resolveTransaction(s *Server, ctx context.Context, r *request) (any, error) {
	id := r.PathValue("id")
	if err := checkID(id); err != nil {
		return nil, err
	}
	var b ResolveBody
	if err := r.decode(&b); err != nil {
		return nil, err
	}
	if err := s.limits.checkNote(b.Note); err != nil {
		return nil, err
	}
	return transactionAnswer(s.coordinator.Resolve(ctx, id, b.Note))
}

func putService(s *Server, ctx context.Context, r *request) (any, error) {
	var b PutServiceBody
	if err := r.decode(&b); err != nil {
		return nil, err
	}
	spec, err := s.limits.serviceSpec(r.PathValue("name"), &b)
	if err != nil {
		return nil, err
	}
	return serviceAnswer(s.coordinator.PutService(ctx, spec))
}

func getService(s *Server, ctx context.Context, r *request) (any, error) {
	name := r.PathValue("name")
	if err := checkServiceName(name); err != nil {
		return nil, inField(err, "name")
	}
	return serviceAnswer(s.coordinator.Service(ctx, name))
}

func listServices(s *Server, ctx context.Context, _ *request) (any, error) {
	list, err := s.coordinator.Services(ctx)
	if err != nil {
		return nil, err
	}
	return servicesJSON(list), nil
}

func deleteService(s *Server, ctx context.Context, r *request) (any, error) {
	name := r.PathValue("name")
	if err := checkServiceName(name); err != nil {
		return nil, inField(err, "name")
	}
	return serviceAnswer(s.coordinator.DeleteService(ctx, name))
}

func transactionAnswer(t node.Transaction, err error) (any, error) {
	if err != nil {
		return nil, withTransaction(&t, err)
	}
	answer := transactionJSON(&t)
	return &answer, nil
}

func serviceAnswer(v node.Service, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	answer := serviceJSON(&v)
	return &answer, nil
}

// handler frames a route: limits, body, deadline, answer, meters.
func (s *Server) handler(rt route) http.Handler {
	m := s.meters.of("rest", rt.name)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		answer, err := s.answer(&rt, w, r)
		if err != nil {
			p := problemOf(err)
			s.refuse(w, r, &p)
			m.done(begin, &p)
			return
		}
		s.write(w, r, http.StatusOK, answer)
		m.done(begin, nil)
	})
}

func (s *Server) answer(rt *route, w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.crossOrigin.Check(r); err != nil {
		return nil, reason.New(reason.CrossOrigin, "call the API from a program, or from a page of the same origin", "a web page of another origin sent this request")
	}
	size := r.ContentLength
	if size < 0 || size > int64(s.limits.MaxRequestBytes) {
		size = int64(s.limits.MaxRequestBytes)
	}
	leave, err := s.admission.enter(rt.work, size)
	if err != nil {
		return nil, err
	}
	defer leave()
	asked, err := s.askedTimeout(r)
	if err != nil {
		return nil, err
	}
	req := &request{Request: r}
	if req.query, err = readQuery(r.URL.RawQuery, rt.query); err != nil {
		return nil, err
	}
	if rt.method == http.MethodPost || rt.method == http.MethodPut {
		if req.body, err = s.readBody(w, r); err != nil {
			return nil, err
		}
	}
	// The body is there. From here on the connection may be silent for as long as
	// the wait lasts; the answer's own time begins when it is written.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // not supported by every ResponseWriter
	ctx, cancel := s.limits.deadline(r.Context(), asked)
	defer cancel()
	ctx, forwarding := node.WithForwarding(ctx)
	answer, err := rt.serve(s, ctx, req)
	if to := forwarding.To(); to != "" {
		w.Header()[ForwardedHeader] = []string{to}
	}
	return answer, err
}

// ForwardedHeader names the node that executed a request, if it was another one.
const ForwardedHeader = "Assent-Forwarded"

func (s *Server) askedTimeout(r *http.Request) (time.Duration, error) {
	text := r.Header.Get(TimeoutHeader)
	if text == "" {
		return 0, nil
	}
	var d Duration
	if err := d.parse(text); err != nil {
		return 0, inField(err, TimeoutHeader)
	}
	return s.limits.timeout(d, TimeoutHeader)
}

// readQuery refuses what the route does not take.
func readQuery(raw string, takes []string) (url.Values, error) {
	if raw == "" {
		return nil, nil
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, reason.New(reason.InvalidField, "write name=value, joined by '&'", "the query cannot be parsed: %v", err)
	}
	for name, v := range values {
		switch {
		case !slices.Contains(takes, name):
			hint := "this route takes no parameters"
			if len(takes) > 0 {
				hint = "use: " + strings.Join(takes, ", ")
			}
			return nil, named(reason.New(reason.UnknownField, hint, "parameter %.60q is not known", name), fieldName(name))
		case len(v) > 1:
			return nil, named(reason.New(reason.InvalidField, "name it once", "parameter %q stands %d times", name, len(v)), name)
		}
	}
	return values, nil
}

func fieldName(name string) string { return name[:min(len(name), 60)] }

// maxRefusedBytes of a body that is too large are read and thrown away.
const maxRefusedBytes = 16 << 20

func (s *Server) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength == 0 {
		return nil, nil
	}
	if ct := r.Header.Get("Content-Type"); ct != "" {
		// A form is what curl -d says of any body. What is not JSON is refused by the
		// decoder, and a form of another site by the cross-origin check.
		if media, _, err := mime.ParseMediaType(ct); err != nil || media != "application/json" && media != "application/x-www-form-urlencoded" {
			return nil, reason.New(reason.UnsupportedContent, "send the header Content-Type: application/json (curl: --json, or -H)",
				"the body's Content-Type is %.80q", ct)
		}
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, reason.New(reason.UnsupportedContent, "send the body as it is", "the body's Content-Encoding is %.80q", enc)
	}
	limit := s.limits.MaxRequestBytes
	tooLarge := func() error {
		return limited(reason.New(reason.RequestTooLarge, "send less, or raise --max-request-bytes", "the body is larger than %d bytes", limit), "body", limit)
	}
	var body []byte
	var err error
	over := r.ContentLength > int64(limit)
	switch {
	case over:
	case r.ContentLength > 0:
		body = make([]byte, r.ContentLength)
		_, err = io.ReadFull(r.Body, body)
	default:
		body, err = io.ReadAll(io.LimitReader(r.Body, int64(limit)+1))
		over = len(body) > limit
	}
	switch {
	case over:
		// A client that is still sending when its connection is closed may never see
		// the answer.
		_, _ = io.CopyN(io.Discard, r.Body, maxRefusedBytes)
		w.Header().Set("Connection", "close")
		return nil, tooLarge()
	case err != nil:
		return nil, reason.New(reason.InvalidJSON, "send the whole body, within "+s.limits.ReadTimeout.String(), "the body cannot be read: %v", err)
	}
	return body, nil
}

func (r *request) decode(into any) error {
	if len(r.body) == 0 {
		return reason.New(reason.InvalidJSON, "send one JSON object", "the body is empty")
	}
	return DecodeJSON(r.body, into)
}

// refuse answers an error.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, p *problem) {
	if p.err.Code == reason.Internal {
		s.log.Error("internal error", "method", r.Method, "path", r.URL.Path, "error", p.err.Message)
	}
	body, err := p.statusJSON()
	if err != nil {
		s.log.Error("answer cannot be encoded", "path", r.URL.Path, "error", err)
		body = &Status{Code: int32(p.code.grpc), Message: p.err.Message}
	}
	if after := p.retryAfter(); after != "" {
		w.Header().Set("Retry-After", after)
	}
	s.write(w, r, p.code.http, body)
}

func (s *Server) write(w http.ResponseWriter, r *http.Request, code int, answer any) {
	data, err := EncodeJSON(answer)
	if err != nil {
		// A participant's results that are not JSON were refused when they came.
		s.log.Error("answer cannot be encoded", "path", r.URL.Path, "error", err)
		code, data = http.StatusInternalServerError, []byte(`{"code":13,"message":"the answer cannot be encoded; see the coordinator's log","details":[]}`)
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.limits.WriteTimeout)) // not supported by every ResponseWriter
	h := w.Header()
	h["Content-Type"] = jsonContentType
	h["X-Content-Type-Options"] = noSniff
	h["Cache-Control"] = noStore
	h["Content-Length"] = []string{strconv.Itoa(len(data) + 1)}
	w.WriteHeader(code)
	_, _ = w.Write(append(data, '\n')) // the client is gone: nobody left to tell
}

var (
	jsonContentType = []string{"application/json"}
	noSniff         = []string{"nosniff"}
	noStore         = []string{"no-store"}
)

// newMux routes /v1 and the operator's pages; whatever else is refused in the
// shape of every other error.
func (s *Server) newMux() http.Handler {
	mux := http.NewServeMux()
	resources := map[string]*resource{} // by pattern, verbs cut off
	add := func(method, pattern string, h http.Handler) {
		base, verb, found := strings.Cut(pattern, "}:")
		if found {
			base += "}"
		} else {
			base = pattern
		}
		r := resources[base]
		if r == nil {
			r = newResource(base)
			resources[base] = r
			mux.HandleFunc(base, func(w http.ResponseWriter, req *http.Request) { s.serveResource(r, w, req) })
		}
		r.add(verb, method, h)
	}
	for _, rt := range routes {
		add(rt.method, rt.pattern, s.handler(rt))
	}
	for pattern, h := range map[string]http.Handler{
		"/healthz": http.HandlerFunc(s.healthz),
		"/readyz":  http.HandlerFunc(s.readyz),
		"/metrics": s.metricsPage(),
		backupPath: s.backupHandler(),
	} {
		add(http.MethodGet, pattern, h)
	}
	mux.HandleFunc("/", s.noSuchPath)
	return mux
}

func (s *Server) noSuchPath(w http.ResponseWriter, r *http.Request) {
	p := problemOf(reason.New(reason.NotFound, "the API is below /v1; docs/API.md lists its paths", "no such path: %.200s", r.URL.Path))
	s.refuse(w, r, &p)
}

// resource is what is served at one pattern: methods, by the verb that may stand
// behind the last segment: POST /v1/cluster/nodes/n1:drain.
type resource struct {
	last  string // name of the wildcard that a verb stands behind
	verbs map[string]map[string]http.Handler
}

func newResource(pattern string) *resource {
	last := ""
	if strings.HasSuffix(pattern, "}") {
		last = pattern[strings.LastIndexByte(pattern, '{')+1 : len(pattern)-1]
	}
	return &resource{last: last, verbs: map[string]map[string]http.Handler{}}
}

func (r *resource) add(verb, method string, h http.Handler) {
	if r.verbs[verb] == nil {
		r.verbs[verb] = map[string]http.Handler{}
	}
	r.verbs[verb][method] = h
	if method == http.MethodGet {
		r.verbs[verb][http.MethodHead] = h
	}
}

func (s *Server) serveResource(rs *resource, w http.ResponseWriter, r *http.Request) {
	methods := rs.verbs[""]
	if i := strings.LastIndexByte(r.PathValue(rs.last), ':'); rs.last != "" && i >= 0 {
		value := r.PathValue(rs.last)
		if m := rs.verbs[value[i+1:]]; m != nil && i+1 < len(value) {
			methods = m
			r.SetPathValue(rs.last, value[:i])
		}
	}
	if methods == nil {
		s.noSuchPath(w, r)
		return
	}
	if h := methods[r.Method]; h != nil {
		h.ServeHTTP(w, r)
		return
	}
	var allowed []string
	for m := range methods {
		if m != http.MethodHead {
			allowed = append(allowed, m)
		}
	}
	slices.Sort(allowed)
	allow := strings.Join(allowed, ", ")
	w.Header().Set("Allow", allow)
	p := problemOf(reason.New(reason.MethodNotAllowed, "use "+allow, "%s is not a method of %.200s", r.Method, r.URL.Path))
	s.refuse(w, r, &p)
}
