package participant

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"path"
	"strconv"
	"time"
)

// Limits bound what the HTTP binding takes on. Zero values take the defaults.
type Limits struct {
	MaxBodyBytes   int64         // of one call. Default 20 MiB, which the most that a coordinator sends fits in
	MaxOperations  int           // of one call. Default 65,536, as many as a transaction may have
	MaxInFlight    int           // prepares, and besides them as many executes and as many other calls, served at once; further ones are answered 503. Default 64
	CallTimeout    time.Duration // of the work for one call. Default 10s
	MaxInDoubtPage int           // branches in one in-doubt page. Default 1,000
}

// maxOperations of a transaction: the coordinator's limit.
const maxOperations = 1 << 16

func (l Limits) withDefaults() Limits {
	if l.MaxBodyBytes <= 0 {
		l.MaxBodyBytes = 20 << 20
	}
	if l.MaxOperations <= 0 {
		l.MaxOperations = maxOperations
	}
	if l.MaxInFlight <= 0 {
		l.MaxInFlight = 64
	}
	if l.CallTimeout <= 0 {
		l.CallTimeout = 10 * time.Second
	}
	if l.MaxInDoubtPage <= 0 {
		l.MaxInDoubtPage = 1000
	}
	return l
}

// NewHandler serves a Resource over HTTP as the given service: POST to a path
// that ends in /prepare, /commit, /rollback, /status or /execute, and GET /in-doubt.
// It can be mounted below any path. A nil logger is slog's default.
//
// It authenticates nobody: put it behind whatever the service's own callers pass.
func NewHandler(service string, r Resource, l Limits, log *slog.Logger) http.Handler {
	l = l.withDefaults()
	if log == nil {
		log = slog.Default()
	}
	return &binding{
		service: service, resource: r, limits: l, log: log,
		// Three limits: a flood of prepares must not shut out the calls that end branches,
		// nor executes, which may wait for the rows of an open branch, its prepare.
		executes: make(chan struct{}, l.MaxInFlight),
		prepares: make(chan struct{}, l.MaxInFlight),
		others:   make(chan struct{}, l.MaxInFlight),
	}
}

type binding struct {
	service                    string
	resource                   Resource
	limits                     Limits
	log                        *slog.Logger
	executes, prepares, others chan struct{}
}

// executing is a Resource that executes before prepare.
type executing interface {
	Execute(ctx context.Context, c *Call) (Execution, error)
}

func (h *binding) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route := path.Base(r.URL.Path)
	method, slots := http.MethodPost, h.others
	switch route {
	case "prepare":
		slots = h.prepares
	case "execute":
		slots = h.executes
	case "commit", "rollback", "status":
	case "in-doubt":
		method = http.MethodGet
	default:
		// Not 404 with an outcome: this says nothing about any branch.
		fail(w, http.StatusNotFound, "no such path: want prepare, commit, rollback, status, execute or in-doubt")
		return
	}
	if r.Method != method {
		w.Header().Set("Allow", method)
		fail(w, http.StatusMethodNotAllowed, "method "+r.Method+" is not allowed here")
		return
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	default:
		h.answerError(w, route, nil, fmt.Errorf("%w: %d calls in flight", ErrOverloaded, cap(slots)))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.limits.CallTimeout)
	defer cancel()
	if route == "in-doubt" {
		h.inDoubt(ctx, w, r)
		return
	}
	if c := h.readCall(w, r, Phase(route)); c != nil {
		h.call(ctx, w, c)
	}
}

// readCall answers what is malformed itself, and then returns nil.
func (h *binding) readCall(w http.ResponseWriter, r *http.Request, phase Phase) *Call {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		fail(w, http.StatusUnsupportedMediaType, "Content-Type is not application/json")
		return nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.limits.MaxBodyBytes))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			fail(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("body over the limit of %d bytes", tooLarge.Limit))
			return nil
		}
		fail(w, http.StatusBadRequest, "body: "+err.Error())
		return nil
	}
	c, err := parseCall(body, h.limits.MaxOperations)
	switch {
	case err != nil:
		fail(w, http.StatusBadRequest, err.Error())
	case c.Phase != phase:
		fail(w, http.StatusBadRequest, fmt.Sprintf("phase: %q, but this is the path of %s", clip(string(c.Phase), 32), phase))
	case c.Service != h.service:
		fail(w, http.StatusMisdirectedRequest, fmt.Sprintf("service: %q, but this is %q", clip(c.Service, 128), h.service))
	default:
		return c
	}
	return nil
}

type outcomeBody struct {
	Outcome Outcome `json:"outcome"`
}

func (h *binding) call(ctx context.Context, w http.ResponseWriter, c *Call) {
	switch c.Phase {
	case PhasePrepare:
		v, err := h.resource.Prepare(ctx, c)
		if err != nil {
			h.answerError(w, string(c.Phase), c, err)
			return
		}
		reply(w, http.StatusOK, struct {
			Vote    string            `json:"vote"`
			Reason  string            `json:"reason,omitempty"`
			Results []json.RawMessage `json:"results,omitempty"`
		}{v.Vote, v.Reason, v.Results})
	case PhaseExecute:
		h.execute(ctx, w, c)
	case PhaseStatus:
		o, err := h.resource.Status(ctx, c)
		if err != nil {
			h.answerError(w, string(c.Phase), c, err)
			return
		}
		reply(w, http.StatusOK, outcomeBody{o})
	default:
		o, err := h.resource.Finish(ctx, c)
		if err != nil {
			h.answerError(w, string(c.Phase), c, err)
			return
		}
		wanted, status := OutcomeCommitted, http.StatusConflict
		if c.Phase == PhaseRollback {
			wanted = OutcomeRolledBack
		}
		switch o {
		case wanted:
			status = http.StatusOK
		case OutcomeUnknown:
			status = http.StatusNotFound
		default: // it contradicts
		}
		reply(w, status, outcomeBody{o})
	}
}

func (h *binding) execute(ctx context.Context, w http.ResponseWriter, c *Call) {
	r, can := h.resource.(executing)
	x, err := Execution{Reason: ReasonExecuteUnsupported, Message: unsupportedMessage}, error(nil)
	if can {
		x, err = r.Execute(ctx, c)
	}
	switch {
	case err != nil:
		h.answerError(w, string(c.Phase), c, err)
	case x.Executed:
		reply(w, http.StatusOK, struct {
			Executed  bool              `json:"executed"`
			Execution string            `json:"execution,omitempty"`
			Results   []json.RawMessage `json:"results"`
		}{true, x.ID, x.Results})
	default:
		reply(w, http.StatusOK, struct {
			Executed  bool   `json:"executed"`
			Reason    string `json:"reason"`
			Message   string `json:"message,omitempty"`
			Retryable bool   `json:"retryable,omitempty"`
		}{false, x.Reason, x.Message, x.Retryable})
	}
}

// inDoubt answers {"branches":[…],"next":"…"?}; next is the ?after of the next page.
func (h *binding) inDoubt(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	limit := h.limits.MaxInDoubtPage
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			fail(w, http.StatusBadRequest, "limit: not a number above 0")
			return
		}
		limit = min(n, limit)
	}
	var transaction string
	var branch uint32
	if after := q.Get("after"); after != "" {
		dir, number := path.Split(after)
		n, err := strconv.ParseUint(number, 10, 32)
		if transaction = path.Clean(dir); err != nil || !validID(transaction) {
			fail(w, http.StatusBadRequest, "after: not transaction/branch")
			return
		}
		branch = uint32(n)
	}
	list, err := h.resource.InDoubt(ctx, transaction, branch, limit)
	if err != nil {
		h.answerError(w, "in-doubt", nil, err)
		return
	}
	page := struct {
		Branches []InDoubt `json:"branches"`
		Next     string    `json:"next,omitempty"`
	}{Branches: list}
	if list == nil {
		page.Branches = []InDoubt{}
	}
	if len(list) == limit {
		last := list[len(list)-1]
		page.Next = fmt.Sprintf("%s/%d", last.Transaction, last.Branch)
	}
	reply(w, http.StatusOK, page)
}

func (h *binding) answerError(w http.ResponseWriter, route string, c *Call, err error) {
	var id string
	if c != nil {
		id = fmt.Sprintf("%s/%d", c.Transaction, c.Branch)
	}
	switch {
	case errors.Is(err, ErrStale):
		fail(w, http.StatusPreconditionFailed, err.Error())
	case errors.Is(err, ErrOverloaded):
		h.log.Debug("participant call put off", "service", h.service, "call", route, "branch", id, "error", err)
		w.Header().Set("Retry-After", "1")
		fail(w, http.StatusServiceUnavailable, err.Error())
	case errors.Is(err, ErrCluster):
		h.log.Error("participant call refused", "service", h.service, "call", route, "branch", id, "error", err)
		fail(w, http.StatusMisdirectedRequest, err.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		h.log.Warn("participant call not done in time", "service", h.service, "call", route, "branch", id, "error", err)
		fail(w, http.StatusServiceUnavailable, "not done in time")
	default:
		// The cause may hold what no other process should see: it stays in the log.
		h.log.Error("participant call failed", "service", h.service, "call", route, "branch", id, "error", err)
		fail(w, http.StatusInternalServerError, "internal error, see the participant's log")
	}
}

func fail(w http.ResponseWriter, status int, message string) {
	reply(w, status, struct {
		Error string `json:"error"`
	}{message})
}

func reply(w http.ResponseWriter, status int, v any) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)              // results grow sixfold by it, over what the coordinator reads
	if err := enc.Encode(v); err != nil { // results that are not JSON, from a Handler
		buf.Reset()
		status = http.StatusInternalServerError
		buf.WriteString(`{"error":"the answer is not valid JSON"}`)
	}
	body := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // a caller that went away asks again
}
