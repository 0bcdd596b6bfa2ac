package exhaust

import (
	"crypto/sha256"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
)

// Result counts what a search has seen.
type Result struct {
	States      int
	Transitions int
	Depth       int // of the farthest state, in choices
	Ends        int // states in which nothing can happen any more
}

// ViolationError is a sequence of choices that breaks what must hold; no shorter one does.
type ViolationError struct {
	Config  string
	Choices []string
	Text    string
}

func (v *ViolationError) Error() string {
	return fmt.Sprintf("%s: %s\nafter %d choices:\n  %s", v.Config, v.Text, len(v.Choices), strings.Join(v.Choices, "\n  "))
}

// found is a state by the choice that led to it first.
type found struct {
	from  int32
	depth int32
	by    choice
}

// Search visits every state of a configuration; the error is a *ViolationError.
func Search(cfg *Config) (Result, error) {
	var res Result
	w, _ := reach(cfg, nil)
	states := []found{{from: -1}}
	seen := map[[16]byte]struct{}{w.fingerprint(): {}}
	var path []choice
	for at := 0; at < len(states); at++ {
		path = path[:0]
		for i := at; states[i].from >= 0; i = int(states[i].from) {
			path = append(path, states[i].by)
		}
		slices.Reverse(path)
		w, err := reach(cfg, path)
		if err != nil {
			return res, explain(cfg, path, err)
		}
		here := w.fingerprint()
		moved := false
		for _, ch := range w.choices() {
			if w == nil {
				if w, err = reach(cfg, path); err != nil {
					return res, explain(cfg, path, err)
				}
			}
			if err := try(w, &ch); err != nil {
				return res, explain(cfg, append(path, ch), err)
			}
			res.Transitions++
			next := w.fingerprint()
			w = nil
			if next == here {
				continue
			}
			moved = true
			if _, ok := seen[next]; !ok {
				seen[next] = struct{}{}
				states = append(states, found{from: int32(at), depth: states[at].depth + 1, by: ch})
			}
		}
		if !moved {
			res.Ends++
			w, err := reach(cfg, path)
			if err == nil {
				err = guard(w.rests)
			}
			if err != nil {
				return res, explain(cfg, path, err)
			}
		}
		res.Depth = int(states[at].depth)
	}
	res.States = len(states)
	return res, nil
}

// reach replays a path.
func reach(cfg *Config, path []choice) (w *world, err error) {
	err = guard(func() {
		w = newWorld(cfg)
		for i := range path {
			w.take(&path[i])
		}
	})
	return w, err
}

// try takes a choice that has not been taken in this state before.
func try(w *world, ch *choice) error {
	return guard(func() {
		w.fresh = true
		w.take(ch)
	})
}

// guard turns the model's failures and the core's panics into errors.
func guard(f func()) (err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case violation:
			err = p
		default: // the core panicked
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	f()
	return nil
}

// explain makes a violation out of the path that led to it.
func explain(cfg *Config, path []choice, cause error) error {
	v := &ViolationError{Config: cfg.Name, Text: cause.Error()}
	w, _ := reach(cfg, nil)
	for _, ch := range path {
		v.Choices = append(v.Choices, w.explain(ch))
		if guard(func() { w.take(&ch) }) != nil {
			break
		}
	}
	return v
}

// fingerprint is equal for states that print alike.
func (w *world) fingerprint() [16]byte {
	b := make([]byte, 0, 8192)
	b = fmt.Appendln(b, w.left, w.raftTerm, w.leader, w.facts, w.rows, w.defects)
	b = append(b, w.tip.String()...)
	for i, n := range w.nodes {
		if n == nil || !n.claims {
			continue // a follower is a function of the log
		}
		b = fmt.Appendln(b, "node", i, n.led)
		b = append(b, n.sh.String()...)
		for _, entry := range n.inFlight {
			b = fmt.Appendln(b, "in flight", w.entryText(entry))
		}
		for _, e := range w.log[n.applied:] {
			b = fmt.Appendln(b, "to apply", e.term, w.entryText(e.data))
		}
		if i == w.leader {
			for t := range w.ids {
				b = fmt.Appendln(b, "expired", n.nowUs >= w.deadlineUs(t))
			}
		}
	}
	for _, entry := range w.stale {
		b = fmt.Appendln(b, "stale", w.entryText(entry))
	}
	var calls []string
	for _, c := range w.calls {
		calls = append(calls, fmt.Sprintln(c.text(), c.from, c.opened, c.inNetwork, c.answered, c.answer, c.OnePhase, c.Token))
	}
	slices.Sort(calls)
	for _, c := range calls {
		b = append(b, c...)
	}
	for i := range w.requests {
		if q := &w.requests[i]; q.node >= 0 {
			b = fmt.Appendln(b, *q)
		} else {
			b = fmt.Appendln(b, q.kind, q.txn)
		}
	}
	sum := sha256.Sum256(b)
	return [16]byte(sum[:16])
}
