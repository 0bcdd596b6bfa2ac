package shard

import (
	"fmt"
	"strings"

	"github.com/assent-tx/assent/internal/txn"
)

// String prints the replicated state and the leader's memory for people, in a
// fixed order. Times are left out: two shards that print alike behave alike but
// for when their timers fire.
func (s *Shard) String() string {
	var b strings.Builder
	b.WriteString(s.st.String())
	if !s.leading {
		fmt.Fprintf(&b, "follows (term %d)\n", s.term)
		return b.String()
	}
	fmt.Fprintf(&b, "leads term %d; %d appends in flight, %d lazy acknowledgements, %d requests wait\n", s.term, len(s.inFlight), s.lazyCount, s.waiting)
	for _, id := range sortedIDs(s.runs) {
		r := s.runs[id]
		fmt.Fprintf(&b, "run %s votes=%d", id, r.votes)
		if r.deciding {
			b.WriteString(" deciding")
		}
		for i := range r.branches {
			br := &r.branches[i]
			fmt.Fprintf(&b, " [%d", i+1)
			if br.phase != 0 {
				fmt.Fprintf(&b, " %s #%d", br.phase, br.attempt)
			}
			if br.calling {
				b.WriteString(" calling")
			}
			if br.retryAtUs != 0 {
				fmt.Fprintf(&b, " backoff(%d)", br.failures)
			}
			if br.acked {
				b.WriteString(" acked")
			}
			if br.vote != Indefinite {
				fmt.Fprintf(&b, " voted %s", br.vote)
			}
			b.WriteByte(']')
		}
		for _, w := range r.waiters {
			fmt.Fprintf(&b, " wait(%d)", w.kind)
		}
		b.WriteByte('\n')
	}
	for _, id := range sortedIDs(s.pending) {
		fmt.Fprintf(&b, "pending %s: %d requests\n", id, len(s.pending[id]))
	}
	for _, entry := range s.sealed {
		printCommands(&b, "to propose", entry)
	}
	printCommands(&b, "to propose", s.open)
	if len(s.lazy) > 0 {
		printCommands(&b, "lazy", append(make([]byte, txn.HeaderBytes), s.lazy...))
	}
	return b.String()
}

// printCommands prints the commands of an entry that has not been proposed.
func printCommands(b *strings.Builder, what string, entry []byte) {
	if len(entry) < txn.HeaderBytes {
		return
	}
	entry = append([]byte(nil), entry...)
	txn.PutHeader(entry, 0, 0)
	lines, err := txn.Describe(entry)
	if err != nil {
		lines = append(lines, err.Error())
	}
	for _, line := range lines {
		fmt.Fprintf(b, "%s: %s\n", what, line)
	}
}
