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
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/assent-tx/assent/internal/rm"
)

// try makes one request of the call (two, when a commit is answered "unknown")
// and decodes the answer. Its timeout counts from here: time in the queue is not
// the participant's.
func (cl *Client) try(c *rm.Call, e rm.Endpoint) rm.Result {
	began := time.Now()
	timeout, target := e.FinishTimeout, ""
	switch c.Phase {
	case rm.Prepare:
		timeout, target = e.PrepareTimeout, e.PrepareURL
	case rm.Commit:
		target = e.CommitURL
	case rm.Rollback:
		target = e.RollbackURL
	case rm.Status:
		target = e.StatusURL
	}
	if target == "" {
		return rm.Result{Kind: rm.Indefinite, Reason: "the service has no " + c.Phase.String() + " URL"}
	}
	r := cl.ask(c, c.Phase, target, timeout, func(status int, body []byte) rm.Result {
		switch c.Phase {
		case rm.Prepare:
			return decodePrepare(status, body, e.ReadOnly, cl.cfg.MaxResults)
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
		r = confirmUnknown(cl.ask(c, rm.Status, e.StatusURL, timeout, decodeStatus))
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
func (cl *Client) ask(c *rm.Call, phase rm.Phase, target string, timeout time.Duration, decode func(int, []byte) rm.Result) rm.Result {
	u, err := cl.parseURL(target)
	if err != nil {
		return rm.Result{Reason: printable(fmt.Sprintf("%s URL: %v", phase, err), maxReasonBytes)}
	}
	ctx, cancel := context.WithTimeout(cl.ctx, timeout)
	defer cancel()
	body := &callBody{encoded: appendCall(make([]byte, 0, callSize(c, phase)), c, phase)}
	resp, err := cl.transport.RoundTrip(newRequest(ctx, u, c, phase, body))
	if err != nil {
		return rm.Result{Sent: !neverConnected(err), Reason: cl.describe(err, timeout)}
	}
	defer resp.Body.Close()

	buf := answerBuffers.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= maxPooledBytes {
			buf.Reset()
			answerBuffers.Put(buf)
		}
	}()
	n, err := io.Copy(buf, io.LimitReader(resp.Body, int64(cl.cfg.MaxResponseBytes)+1))
	finished2xx := (phase == rm.Commit || phase == rm.Rollback) && resp.StatusCode >= 200 && resp.StatusCode <= 299
	switch {
	case finished2xx: // the status line said it all
		err = nil
	case err != nil:
		return rm.Result{Sent: true, Reason: printable(fmt.Sprintf("status %d, body: %s", resp.StatusCode, cl.describe(err, timeout)), maxReasonBytes)}
	case n > int64(cl.cfg.MaxResponseBytes):
		return rm.Result{Sent: true, Reason: fmt.Sprintf("status %d, answer over the limit of %d bytes", resp.StatusCode, cl.cfg.MaxResponseBytes)}
	}
	r := decode(resp.StatusCode, buf.Bytes())
	r.Sent = true
	return r
}

var (
	contentType = []string{"application/json"}
	userAgent   = []string{"assent-coordinator"}
)

// newRequest builds the request without the parsing and copying of
// http.NewRequest: URL and constant headers are shared and never changed.
func newRequest(ctx context.Context, u *url.URL, c *rm.Call, phase rm.Phase, body *callBody) *http.Request {
	key := make([]byte, 0, 64)
	key = c.Txn.Append(key)
	key = append(key, '/')
	key = strconv.AppendUint(key, uint64(c.Branch), 10)
	key = append(key, '/')
	key = append(key, phase.String()...)
	header := http.Header{
		"Content-Type":    contentType,
		"User-Agent":      userAgent,
		"Idempotency-Key": {string(key)},
	}
	if c.TraceParent != "" {
		header["Traceparent"] = []string{c.TraceParent}
	}
	req := &http.Request{
		Method:        http.MethodPost,
		URL:           u,
		Host:          u.Host,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        header,
		Body:          body.open(),
		ContentLength: int64(len(body.encoded)),
		GetBody:       body.replay,
	}
	return req.WithContext(ctx)
}

// callBody is the encoded call.
//
// net/http sends a request again by itself when it has an Idempotency-Key, a
// GetBody, and the reused connection broke before an answer. That is wanted once:
// a server that closed an idle keep-alive connection would otherwise cost a whole
// backoff, and a doubled call is normal by contract. It is not wanted for every
// idle connection in turn, which a participant that dies of a request would see
// as a burst of it: the second replay is refused.
type callBody struct {
	encoded  []byte
	replayed atomic.Bool
}

var errReplayed = errors.New("the connection broke twice")

// open returns a reader that net/http knows to be in memory: it then writes header
// and body at once. With any other reader it flushes the header first, which costs
// a packet, and a system call at each end.
func (b *callBody) open() io.ReadCloser { return io.NopCloser(bytes.NewReader(b.encoded)) }

func (b *callBody) replay() (io.ReadCloser, error) {
	if b.replayed.Swap(true) {
		return nil, errReplayed
	}
	return b.open(), nil
}

// neverConnected reports whether the call certainly never left: no connection.
func neverConnected(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// describe says in a few words why no answer came.
func (cl *Client) describe(err error, timeout time.Duration) string {
	switch {
	case cl.ctx.Err() != nil:
		return "the coordinator is shutting down"
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer within " + timeout.String()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed before the answer was complete"
	}
	return printable(err.Error(), maxExcerptBytes)
}
