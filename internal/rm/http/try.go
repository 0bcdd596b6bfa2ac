package rmhttp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/assent-tx/assent/internal/rm"
)

// target is where a phase of a service is asked for.
func target(p rm.Phase, e *rm.Endpoint) string {
	switch p {
	case rm.Prepare:
		return e.PrepareURL
	case rm.Commit:
		return e.CommitURL
	case rm.Rollback:
		return e.RollbackURL
	case rm.Status:
		return e.StatusURL
	case rm.Execute:
		return e.ExecuteURL
	}
	return ""
}

// try makes one request of the call (two, when a commit is answered "unknown")
// and decodes the answer. Its timeout counts from here: time in the queue is not
// the participant's.
func (cl *Client) try(j *job) rm.Result {
	began := time.Now()
	c, e := j.call, &j.end
	timeout, target := e.FinishTimeout, target(c.Phase, e)
	if c.Phase.Works() {
		timeout = e.PrepareTimeout
	}
	if target == "" {
		return rm.Result{Kind: rm.Indefinite, Reason: "the service has no " + c.Phase.String() + " URL"}
	}
	r := cl.ask(j, c.Phase, target, timeout, func(status int, body []byte) rm.Result {
		switch c.Phase {
		case rm.Prepare:
			return decodePrepare(status, body, e.ReadOnly, cl.cfg.MaxResults)
		case rm.Execute:
			return decodeExecute(status, body, len(c.Operations))
		case rm.Status:
			return decodeStatus(status, body)
		default:
			return decodeFinish(c.Phase, status, body)
		}
	})
	// "Unknown" to a commit is the gravest answer there is. A participant may say
	// it wrongly (a row not yet visible, a session still ending): ask before it is
	// believed.
	if c.Phase == rm.Commit && r.Kind == rm.Contradicts && r.Outcome == rm.OutcomeUnknown && e.StatusURL != "" {
		r = confirmUnknown(cl.ask(j, rm.Status, e.StatusURL, timeout, decodeStatus))
	}
	if r.Sent {
		r.Took = time.Since(began)
	}
	return r
}

// confirmUnknown turns the status answer that follows an "unknown" to a commit
// into the answer to the commit.
func confirmUnknown(status rm.Result) rm.Result {
	r := rm.Result{Sent: true} // the commit was
	switch {
	case status.Kind != rm.Known:
		r.Reason = printable("commit answered unknown, status: "+status.Reason, maxReasonBytes)
	case status.Outcome == rm.OutcomeCommitted:
		r.Kind = rm.Done
	case status.Outcome == rm.OutcomePrepared:
		r.Reason = "commit answered unknown, status answered prepared"
	default:
		r.Kind, r.Outcome = rm.Contradicts, status.Outcome
	}
	return r
}

// bodies of answers; decoding copies what it keeps.
var answerBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

const maxPooledBytes = 64 << 10

// ask sends one request and hands status and body to decode.
func (cl *Client) ask(j *job, phase rm.Phase, target string, timeout time.Duration, decode func(int, []byte) rm.Result) rm.Result {
	c := j.call
	u, err := cl.parseURL(target)
	if err != nil {
		return rm.Result{Reason: printable(fmt.Sprintf("%s URL: %v", phase, err), maxReasonBytes)}
	}
	if p := cl.local(u.Host); p != nil {
		return cl.askLocal(p, j.try.begin(timeout), c, phase, j.end.ReadOnly)
	}
	encoded := appendCall(make([]byte, 0, callSize(c, phase)), c, phase)
	open := func() io.ReadCloser { return io.NopCloser(bytes.NewReader(encoded)) }
	req := newRequest(u, c, phase, len(encoded))
	req.Body = open()
	buf := answerBuffers.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= maxPooledBytes {
			buf.Reset()
			answerBuffers.Put(buf)
		}
	}()
	status, cut, err := cl.answer(j.try.begin(timeout), req, open, buf)
	finished2xx := (phase == rm.Commit || phase == rm.Rollback) && status >= 200 && status <= 299
	switch {
	case err != nil:
		return rm.Result{Sent: !neverConnected(err), Reason: cl.describe(err, j, timeout)}
	case finished2xx: // the status line said it all
	case cut != nil:
		return rm.Result{Sent: true, Reason: printable(fmt.Sprintf("status %d, body: %s", status, cl.describe(cut, j, timeout)), maxReasonBytes)}
	case buf.Len() > cl.cfg.MaxResponseBytes:
		return rm.Result{Sent: true, Reason: fmt.Sprintf("status %d, answer over the limit of %d bytes", status, cl.cfg.MaxResponseBytes)}
	}
	r := decode(status, buf.Bytes())
	r.Sent = true
	return r
}

// answer sends the request and reads what comes back. The body is in buf as far as it came, at most
// one byte over the limit; cut says why it is not whole.
func (cl *Client) answer(a *attempt, req *http.Request, open func() io.ReadCloser, buf *bytes.Buffer) (status int, cut, err error) {
	resp, err := cl.pool.roundTrip(cl.ctx, a, req, open)
	if err != nil {
		return 0, nil, err
	}
	limit := int64(cl.cfg.MaxResponseBytes)
	n, cut := io.Copy(buf, io.LimitReader(resp.Body, limit+1))
	a.leave() // before the connection can serve another
	if cut == nil && n <= limit {
		resp.release()
	} else {
		resp.drop()
	}
	return resp.StatusCode, cut, nil
}

var (
	contentType = []string{"application/json"}
	userAgent   = []string{"assent-coordinator"}
)

// newRequest builds the request without the parsing and copying of
// http.NewRequest: URL and constant headers are shared and never changed.
func newRequest(u *url.URL, c *rm.Call, phase rm.Phase, bodyBytes int) *http.Request {
	key := make([]byte, 0, 64)
	key = c.Txn.Append(key)
	key = append(key, '/')
	key = strconv.AppendUint(key, uint64(c.Branch), 10)
	key = append(key, '/')
	key = append(key, phase.String()...)
	if phase == rm.Execute { // a branch has several
		key = append(key, '/')
		key = strconv.AppendUint(key, uint64(c.First), 10)
	}
	header := http.Header{
		"Content-Type":    contentType,
		"User-Agent":      userAgent,
		"Idempotency-Key": {string(key)},
	}
	if c.TraceParent != "" {
		header["Traceparent"] = []string{c.TraceParent}
	}
	return &http.Request{
		Method:        http.MethodPost,
		URL:           u,
		Host:          u.Host,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        header,
		ContentLength: int64(bodyBytes),
	}
}

// neverConnected reports whether the call certainly never left: no connection.
func neverConnected(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// describe says in a few words why no answer came.
func (cl *Client) describe(err error, j *job, timeout time.Duration) string {
	switch {
	case cl.ctx.Err() != nil:
		return "the coordinator is shutting down"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		if why := j.try.reason(); why != "" {
			return "given up: " + why
		}
		return "no answer within " + timeout.String()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed before the answer was complete"
	}
	return printable(err.Error(), maxExcerptBytes)
}
