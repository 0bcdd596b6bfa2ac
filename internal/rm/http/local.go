package rmhttp

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"time"
)

// Serve makes calls to host (as it stands in the URLs: "127.0.0.1:7201") go to a
// handler of this process: the same requests and answers, without a connection. A
// nil handler ends that for the calls that follow. It is for participants that the
// coordinator's process hosts; AllowedNetworks does not concern them.
func (cl *Client) Serve(host string, h http.Handler) {
	cl.urlMu.Lock()
	defer cl.urlMu.Unlock()
	if h == nil {
		delete(cl.here, host)
		return
	}
	cl.here[host] = h
}

// handler is who answers for a host in this process; nil: nobody.
func (cl *Client) handler(host string) http.Handler {
	cl.urlMu.RLock()
	defer cl.urlMu.RUnlock()
	return cl.here[host]
}

// recorder is the answer of a handler of this process. It keeps no more than limit
// bytes and one: that one shows that there were too many.
type recorder struct {
	header http.Header
	status int
	limit  int
	body   *bytes.Buffer
}

func (w *recorder) Header() http.Header { return w.header }

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

func (w *recorder) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	w.body.Write(p[:min(len(p), w.limit+1-w.body.Len())])
	return len(p), nil
}

// hereDeadline is the deadline of a call to a handler of this process.
type hereDeadline struct{ *time.Timer }

// SetDeadline implements deadliner.
func (d hereDeadline) SetDeadline(t time.Time) error {
	d.Reset(time.Until(t))
	return nil
}

// answerHere asks a handler of this process. At the attempt's deadline its context
// ends; a handler that does not heed that is waited for all the same, since whatever
// it does may still happen.
func (cl *Client) answerHere(h http.Handler, a *attempt, req *http.Request, body *bytes.Buffer) (status int, err error) {
	ctx, cancel := context.WithCancel(cl.ctx)
	defer cancel()
	timer := time.AfterFunc(time.Until(a.until()), cancel)
	defer timer.Stop()
	if err := a.take(hereDeadline{timer}); err != nil {
		return 0, err
	}
	defer a.leave() // before the timer is stopped: nobody starts it again
	defer func() {
		if p := recover(); p != nil { // as net/http's server has it
			err = fmt.Errorf("the handler panicked: %v", p)
		}
	}()
	w := &recorder{header: http.Header{}, limit: cl.cfg.MaxResponseBytes, body: body}
	h.ServeHTTP(w, req.WithContext(ctx))
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.status, nil
}
