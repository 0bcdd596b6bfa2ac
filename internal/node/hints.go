package node

import (
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/assent-tx/assent/internal/txnid"
)

// hintEvery is how often operations without keys at one service are worth a line.
const hintEvery = time.Minute

// hints tells of operations that lock a whole service because they declare no keys.
type hints struct {
	mu   sync.Mutex
	last map[string]time.Time // by service that is registered
}

func (h *hints) due(service string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if last, told := h.last[service]; told && now.Sub(last) < hintEvery {
		return false
	}
	if h.last == nil {
		h.last = map[string]time.Time{}
	}
	h.last[service] = now
	return true
}

func (h *hints) forget(service string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.last, service)
}

// place is where an operation stands, for people.
type place struct {
	id    txnid.ID
	step  *Step // nil: of a transaction in one request
	index int   // in its list
}

func (p place) String() string { return "operations[" + strconv.Itoa(p.index) + "]" }

// undeclared counts an operation without keys, and names it now and then.
func (n *Node) undeclared(service string, at place) {
	n.metrics.undeclared(service)
	if !n.hints.due(service) {
		return
	}
	attrs := []any{slog.String("service", service), slog.String("transaction", at.id.String()), slog.String("operation", at.String())}
	switch {
	case at.step == nil:
	case at.step.Key != "":
		attrs = append(attrs, slog.String("step", at.step.Key))
	default:
		attrs = append(attrs, slog.Uint64("step", uint64(at.step.Number)))
	}
	n.log.Info("an operation without keys locks its whole service; declare the keys that it uses under \"locks\" to let others run beside it", attrs...)
}
