package bench

import (
	"context"
	"crypto/rand"
	"strconv"
	"strings"
	"time"

	"github.com/assent-tx/assent/internal/txnid"
)

// workload is what the transactions do, and to whom.
type workload interface {
	// before readies what must be there before the coordinator starts, and returns
	// further flags for it.
	before(ctx context.Context, dir string) (serveFlags []string, err error)
	// start makes the participants ready; they are registered when it returns.
	start(ctx context.Context, b *run) error
	// operation appends the payload of the branch at a service, as JSON, and the
	// key that it locks. id names the transaction.
	operation(dst *strings.Builder, branch int, id string) (key string)
	// floor measures, for a time, what a transaction cannot do without.
	floor(ctx context.Context, b *run, perTxn use, duration time.Duration) (floor, error)
	// audit fails unless every one of the transactions since the last reset took
	// effect exactly once everywhere; it waits for the last to finish.
	audit(ctx context.Context, transactions int) error
	reset(ctx context.Context) error
	cpuUs() (float64, error) // processor time of the participants' processes
	stop()
}

// floor is one measurement of it.
type floor struct {
	txnRate    float64
	callRate   float64
	appendRate float64
	callTook   []time.Duration
	appendTook time.Duration
}

func newID() txnid.ID {
	var random [10]byte
	_, _ = rand.Read(random[:]) // never fails: it ends the process instead
	return txnid.New(uint64(time.Now().UnixMilli()), random)
}

// submission is one transaction: its id and an operation for each service.
func (b *run) submission(of txnid.ID) string {
	id := of.String()
	var s strings.Builder
	s.Grow(256 + b.cfg.Branches*(192+b.cfg.Payload+64*b.cfg.Keys))
	s.WriteString(`{"id":"`)
	s.WriteString(id)
	s.WriteString(`","operations":[`)
	for i := range b.cfg.Branches {
		if i > 0 {
			s.WriteByte(',')
		}
		s.WriteString(`{"service":"`)
		s.WriteString(service(i))
		s.WriteString(`","payload":`)
		key := b.work.operation(&s, i, id)
		for k := range b.cfg.Keys {
			if k == 0 {
				s.WriteString(`,"locks":[`)
			} else {
				s.WriteByte(',')
			}
			s.WriteString(`{"key":"`)
			s.WriteString(key)
			if k > 0 {
				s.WriteByte('-')
				s.WriteString(strconv.Itoa(k))
			}
			s.WriteString(`"}`)
		}
		if b.cfg.Keys > 0 {
			s.WriteByte(']')
		}
		s.WriteByte('}')
	}
	s.WriteString(`]}`)
	return s.String()
}
