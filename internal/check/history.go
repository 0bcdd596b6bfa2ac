package check

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Status is what a client knows of a transaction's outcome.
type Status string

// Outcomes. Invoked marks the beginning in a history.
const (
	Invoked   Status = "invoke"
	Committed Status = "ok"
	Aborted   Status = "fail"
	Unknown   Status = "info"
)

// Mop is one operation on a list: an append, or a read with what it returned.
type Mop struct {
	Append bool    `json:"append,omitempty"`
	Key    string  `json:"key"`
	Value  int64   `json:"value,omitempty"` // appended; unique per key, and above 0
	List   []int64 `json:"list,omitempty"`  // read
}

// Event is a line of a history, in the order of time.
type Event struct {
	Process int    `json:"process"`
	Status  Status `json:"status"`
	Mops    []Mop  `json:"mops,omitempty"`
	ID      string `json:"id,omitempty"` // of the transaction at its coordinator, with Invoked; may be empty
}

// Txn is a transaction as its client saw it.
type Txn struct {
	ID       string // at its coordinator; may be empty
	Process  int
	Status   Status
	Mops     []Mop
	Invoked  int // place of its beginning in the history
	Answered int // of its end; endless if the outcome is unknown
}

const endless = int(^uint(0) >> 1)

// ErrHistory is wrapped by the errors of Pair: the history says nothing about the
// transactions, only about who recorded it.
var ErrHistory = errors.New("not a history")

// Pair makes transactions of events, and checks that they are a history: each process
// begins one at a time and ends what it began, and no value is appended to a key twice.
func Pair(events []Event) ([]Txn, error) {
	var txns []Txn
	open := map[int]int{}
	appended := map[version]bool{}
	for i, e := range events {
		at, begun := open[e.Process]
		switch {
		case e.Status == Invoked && begun:
			return nil, fmt.Errorf("%w: event %d: process %d begins while its last one is open", ErrHistory, i, e.Process)
		case e.Status == Invoked:
			open[e.Process] = len(txns)
			txns = append(txns, Txn{ID: e.ID, Process: e.Process, Status: Unknown, Mops: e.Mops, Invoked: i, Answered: endless})
			for _, m := range e.Mops {
				v := version{m.Key, m.Value}
				if m.Append && (m.Value <= 0 || appended[v]) {
					return nil, fmt.Errorf("%w: event %d: %d is appended to %s twice, or is not above 0", ErrHistory, i, m.Value, m.Key)
				}
				appended[v] = appended[v] || m.Append
			}
			continue
		case !begun:
			return nil, fmt.Errorf("%w: event %d: process %d ends what it did not begin", ErrHistory, i, e.Process)
		case e.Status != Committed && e.Status != Aborted && e.Status != Unknown:
			return nil, fmt.Errorf("%w: event %d: status %q", ErrHistory, i, e.Status)
		}
		delete(open, e.Process)
		t := &txns[at]
		if t.Status = e.Status; t.Status == Unknown {
			continue
		}
		t.Answered = i
		if t.Status == Committed {
			if !same(t.Mops, e.Mops) {
				return nil, fmt.Errorf("%w: event %d: process %d answers other operations than it asked for", ErrHistory, i, e.Process)
			}
			t.Mops = e.Mops
		}
	}
	return txns, nil
}

func same(asked, answered []Mop) bool {
	if len(asked) != len(answered) {
		return false
	}
	for i := range asked {
		if a, b := &asked[i], &answered[i]; a.Append != b.Append || a.Key != b.Key || a.Value != b.Value {
			return false
		}
	}
	return true
}

// Recorder writes a history down. It is safe for concurrent use: an answer is recorded
// after it came, and a beginning before it is sent, so real time is never overstated.
type Recorder struct {
	mu     sync.Mutex
	events []Event
}

// Begin records that a process begins a transaction; what its reads return is not
// known yet.
func (r *Recorder) Begin(process int, mops []Mop) { r.BeginAs(process, "", mops) }

// BeginAs is Begin of a transaction with an id, by which the coordinator's record of it
// can be found.
func (r *Recorder) BeginAs(process int, id string, mops []Mop) {
	r.add(Event{Process: process, Status: Invoked, Mops: bare(mops), ID: id})
}

// End records the outcome that a client was told, with what was read.
func (r *Recorder) End(process int, outcome Status, mops []Mop) {
	if outcome != Committed {
		mops = nil
	}
	r.add(Event{Process: process, Status: outcome, Mops: mops})
}

func (r *Recorder) add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// Events is what has been recorded.
func (r *Recorder) Events() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Event(nil), r.events...)
}

func bare(mops []Mop) []Mop {
	out := make([]Mop, len(mops))
	for i, m := range mops {
		out[i] = Mop{Append: m.Append, Key: m.Key, Value: m.Value}
	}
	return out
}

// maxLineBytes bounds one event of a file.
const maxLineBytes = 16 << 20

// Write writes a history as JSON, one event a line.
func Write(w io.Writer, events []Event) error {
	enc := json.NewEncoder(w)
	for i := range events {
		if err := enc.Encode(&events[i]); err != nil {
			return err
		}
	}
	return nil
}

// Read reads what Write wrote.
func Read(r io.Reader) ([]Event, error) {
	var events []Event
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLineBytes)
	for lines.Scan() {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrHistory, len(events)+1, err)
		}
		events = append(events, e)
	}
	return events, lines.Err()
}
