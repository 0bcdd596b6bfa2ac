package rmhttp

import (
	"context"
	"fmt"
	"time"

	"github.com/assent-tx/assent/internal/rm"
)

// Local is a participant in the coordinator's own process. An error is no definite
// answer; its text is told as the reason. A context that ends means that nobody waits
// any more: the call may still take effect.
type Local interface {
	Prepare(ctx context.Context, c *rm.Call) (vote, reason string, results [][]byte, err error)
	Finish(ctx context.Context, c *rm.Call) (rm.Outcome, error) // c.Phase says how
	Status(ctx context.Context, c *rm.Call) (rm.Outcome, error)
	Execute(ctx context.Context, c *rm.Call) (rm.Result, error) // rm.Executed or rm.Refused, with what belongs to it
}

// Serve makes calls to a host, as it stands in the URLs ("127.0.0.1:7201"), go to a
// participant of this process instead of over a connection. Nil ends that for the
// calls that follow. AllowedNetworks does not concern them.
func (cl *Client) Serve(host string, p Local) {
	cl.urlMu.Lock()
	defer cl.urlMu.Unlock()
	if p == nil {
		delete(cl.here, host)
		return
	}
	cl.here[host] = p
}

// local is the participant of this process at a host; nil: none.
func (cl *Client) local(host string) Local {
	cl.urlMu.RLock()
	defer cl.urlMu.RUnlock()
	return cl.here[host]
}

// localDeadline is the deadline of a call to a participant of this process.
type localDeadline struct{ *time.Timer }

// SetDeadline implements deadliner.
func (d localDeadline) SetDeadline(t time.Time) error {
	d.Reset(time.Until(t))
	return nil
}

// askLocal asks a participant of this process. At the attempt's deadline its context
// ends; one that does not heed that is waited for all the same, since whatever it does
// may still happen.
func (cl *Client) askLocal(p Local, a *attempt, c *rm.Call, phase rm.Phase, mayReadOnly bool) (r rm.Result) {
	ctx, cancel := context.WithCancel(cl.ctx)
	defer cancel()
	timer := time.AfterFunc(time.Until(a.until()), cancel)
	defer timer.Stop()
	_ = a.take(localDeadline{timer}) // cannot fail
	defer a.leave()                  // before the timer is stopped: nobody starts it again
	defer func() {
		if v := recover(); v != nil { // as a server would have it
			r = rm.Result{Reason: printable(fmt.Sprintf("the participant panicked: %v", v), maxReasonBytes)}
		}
		r.Sent = true
	}()
	if phase == rm.Prepare {
		vote, reason, results, err := p.Prepare(ctx, c)
		if err != nil {
			return rm.Result{Reason: printable(err.Error(), maxReasonBytes)}
		}
		r, known := voted(vote, &reason, mayReadOnly)
		switch {
		case !known:
			return rm.Result{Reason: printable(fmt.Sprintf("unknown vote %q", vote), maxReasonBytes)}
		case r.Kind == rm.No:
			return r
		case len(results) > cl.cfg.MaxResults:
			return tooManyResults(len(results), cl.cfg.MaxResults)
		}
		if cl.overLimit(results) {
			return rm.Result{Reason: fmt.Sprintf("results over the limit of %d bytes", cl.cfg.MaxResponseBytes)}
		}
		r.Results = results
		return r
	}
	if phase == rm.Execute {
		r, err := p.Execute(ctx, c)
		if err != nil {
			return rm.Result{Reason: printable(err.Error(), maxReasonBytes)}
		}
		return cl.executedLocally(&r, len(c.Operations))
	}
	ask := p.Status
	if phase != rm.Status {
		ask = p.Finish
	}
	outcome, err := ask(ctx, c)
	switch {
	case err != nil:
		return rm.Result{Reason: printable(err.Error(), maxReasonBytes)}
	case phase == rm.Status:
		return rm.Result{Kind: rm.Known, Outcome: outcome}
	case outcome == rm.OutcomePrepared:
		return rm.Result{Reason: "still prepared"}
	}
	return finished(phase, outcome)
}

// executedLocally holds an answer to execute to what it is held to over HTTP.
func (cl *Client) executedLocally(r *rm.Result, operations int) rm.Result {
	switch {
	case r.Kind == rm.Refused:
		return rm.Result{Kind: rm.Refused, Reason: printable(r.Reason, maxReasonBytes), Message: printable(r.Message, maxReasonBytes), Retryable: r.Retryable}
	case r.Kind != rm.Executed:
		return rm.Result{Reason: fmt.Sprintf("execute was answered %s", r.Kind)}
	case len(r.Results) != operations:
		return rm.Result{Reason: fmt.Sprintf("execute was answered with %d results for %d operations", len(r.Results), operations)}
	case cl.overLimit(r.Results):
		return rm.Result{Reason: fmt.Sprintf("results over the limit of %d bytes", cl.cfg.MaxResponseBytes)}
	}
	return rm.Result{Kind: rm.Executed, Results: r.Results, Execution: r.Execution}
}

func (cl *Client) overLimit(results [][]byte) bool {
	size := 0
	for _, v := range results {
		size += len(v)
	}
	return size > cl.cfg.MaxResponseBytes
}
