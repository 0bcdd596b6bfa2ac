package bench

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/assent-tx/assent/internal/replog"
)

// floorLog is a log whose machine does nothing: what appends cost by themselves.
type floorLog struct {
	log   *replog.Log
	group replog.Group
}

type nothing struct{}

func (nothing) Apply([]replog.Entry) error         { return nil }
func (nothing) Snapshot() (replog.Snapshot, error) { return nothing{}, nil }
func (nothing) Restore(r io.Reader) error          { _, err := io.Copy(io.Discard, r); return err }
func (nothing) Persist(w io.Writer) error          { _, err := w.Write([]byte("nothing")); return err }
func (nothing) Release()                           {}

func openFloorLog(dir string) (*floorLog, error) {
	log, err := replog.Open(replog.Config{Dir: dir, NodeID: "floor", Machines: []replog.Machine{nothing{}}})
	if err != nil {
		return nil, err
	}
	f := &floorLog{log: log, group: log.Group(0)}
	deadline := time.After(10 * time.Second)
	for {
		select {
		case l := <-f.group.Leadership():
			if l.Leading {
				return f, nil
			}
		case <-deadline:
			return nil, errors.Join(errors.New("the floor's log has no leader"), log.Close())
		}
	}
}

func (f *floorLog) close() { _ = f.log.Close() }

// appends measures the rate with as many appends in flight as a shard has, and
// the median time of one alone.
func (f *floorLog) appends(ctx context.Context, bytes int, duration time.Duration) (rate float64, alone time.Duration, err error) {
	const inFlight = 3
	data := make([]byte, max(bytes, 64))
	slots := make(chan error, inFlight)
	for range inFlight {
		slots <- nil
	}
	n := 0
	start := time.Now()
	for time.Since(start) < duration/2 && ctx.Err() == nil {
		if err := <-slots; err != nil {
			return 0, 0, err
		}
		n++
		f.group.Propose(slices.Clone(data), func(err error) { slots <- err })
	}
	for range inFlight {
		if err := <-slots; err != nil {
			return 0, 0, err
		}
	}
	rate = float64(n) / time.Since(start).Seconds()

	var took []time.Duration
	for start = time.Now(); time.Since(start) < duration/2 && ctx.Err() == nil; {
		began := time.Now()
		f.group.Propose(slices.Clone(data), func(err error) { slots <- err })
		if err := <-slots; err != nil {
			return 0, 0, err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return rate, quantile(took, 0.5), ctx.Err()
}
