package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// httpWorkload is services that answer at once, in a process of their own. Its
// floor is the bare calls and the bare appends that a transaction needs.
type httpWorkload struct {
	cfg   Config
	path  string // of the participants, see there
	parts *participants
	log   *floorLog
}

func (w *httpWorkload) before(context.Context, string) ([]string, error) { return nil, nil }

func (w *httpWorkload) start(ctx context.Context, b *run) (err error) {
	if w.parts, err = startParticipants(ctx, w.cfg.Binary); err != nil {
		return err
	}
	if w.log, err = openFloorLog(b.dir + "/floor"); err != nil {
		return err
	}
	for i := range w.cfg.Branches { // each a service of its own
		if err := b.register(ctx, service(i), w.parts.url+w.path, 1024); err != nil {
			return err
		}
	}
	return nil
}

func (w *httpWorkload) stop() {
	if w.parts != nil {
		w.parts.stop()
	}
	if w.log != nil {
		w.log.close()
	}
}

func (w *httpWorkload) cpuUs() (float64, error) { return cpuUs(w.parts.cmd.Process.Pid) }

func (w *httpWorkload) reset(ctx context.Context) error { return w.parts.reset(ctx) }

// operation uses a key that nobody else does.
func (w *httpWorkload) operation(dst *strings.Builder, _ int, id string) string {
	dst.WriteByte('"')
	for range w.cfg.Payload {
		dst.WriteByte('x')
	}
	dst.WriteByte('"')
	return "k/" + id
}

func (w *httpWorkload) floor(ctx context.Context, b *run, perTxn use, duration time.Duration) (floor, error) {
	calls, err := w.bareCalls(ctx, b, duration*2/3)
	if err != nil {
		return floor{}, err
	}
	f := floor{callRate: calls.rate(), callTook: calls.took}
	if f.appendRate, f.appendTook, err = w.log.appends(ctx, int(perTxn.bytes/max(perTxn.appends, 1e-9)), duration/3); err != nil {
		return floor{}, err
	}
	// Calls need the processors and appends the disk: side by side at best.
	f.txnRate = 1 / max(float64(w.callsPerTxn())/f.callRate, perTxn.appends/f.appendRate)
	return f, nil
}

func (w *httpWorkload) callsPerTxn() int { return 1 + 2*w.cfg.Branches }

// bareCalls sends the bodies of a transaction's calls - one submission, and for
// every branch a prepare and a commit - to a handler that reads and answers.
func (w *httpWorkload) bareCalls(ctx context.Context, b *run, duration time.Duration) (sample, error) {
	const call = `{"transaction":"01a20917-6642-7b1d-9424-f813609991db","cluster":"3f9a60d2c1b84e7f9a0c5d1e2b3f4a5b","branch":1,"service":"bench-0","phase":"commit","attempt":1,"term":1,"token":"00000001-0000000000000001-0000000000000001","shard":0,"shards":1}`
	prepare := call[:len(call)-1] + `,"operations":[{"payload":"` + strings.Repeat("x", w.cfg.Payload) + `"}],"count":1,"digest":"` + strings.Repeat("0", 64) + `"}`
	var n atomic.Uint64
	each := uint64(w.callsPerTxn())
	return b.inParallel(ctx, duration, func(c *client) error {
		body := call
		switch k := n.Add(1) % each; {
		case k == 0:
			body = b.submission(newID())
		case k <= uint64(w.cfg.Branches):
			body = prepare
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.parts.url+"/bare", strings.NewReader(body))
		if err != nil {
			return err
		}
		req.Header["Content-Type"] = jsonType
		status, answer, err := b.do(req, &c.buf)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("bare call: status %d: %s", status, answer)
		}
		return err
	})
}

// audit waits until every branch has been asked both things once.
func (w *httpWorkload) audit(ctx context.Context, transactions int) error {
	want := transactions * w.cfg.Branches
	return audited(ctx, func() error {
		a, err := w.parts.audit(ctx)
		if err == nil && (a.Once != want || a.Wrong != 0) {
			err = fmt.Errorf("%d of %d branches were prepared and committed exactly once, %d were not (%s)", a.Once, want, a.Wrong, a.Example)
		}
		return err
	})
}

// errAudit: a transaction did not take effect exactly once everywhere.
var errAudit = errors.New("audit")

// audited is eventually for an audit.
func audited(ctx context.Context, check func() error) error {
	if err := eventually(ctx, check); err != nil {
		return fmt.Errorf("%w: %w", errAudit, err)
	}
	return nil
}

// eventually waits until check is content; its last complaint is the error.
func eventually(ctx context.Context, check func() error) error {
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := check()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}
