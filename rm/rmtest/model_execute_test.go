package rmtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"
)

func refusal(reason string) modelAnswer {
	return modelAnswer{200, map[string]any{"executed": false, "reason": reason}}
}

func executed(id string, results []json.RawMessage) modelAnswer {
	return modelAnswer{200, map[string]any{"executed": true, "execution": id, "results": results}}
}

// execute is the phase of that name, from the contract.
func (m *model) execute(c *modelCall, key, openKey string, row *modelRow, open *modelOpen) modelAnswer {
	if row != nil && (m.bug != "executes after rollback" || row.state != "rolled_back") {
		return refusal("BRANCH_ENDED")
	}
	payloads, first := make([]json.RawMessage, len(c.Operations)), 0
	for i, op := range c.Operations {
		payloads[i] = op.Payload
	}
	if c.First != nil {
		first = *c.First
	}
	refuse := func(reason string) modelAnswer {
		if m.bug == "goes on after a refused execute" {
			return refusal(reason)
		}
		delete(m.open, openKey)
		m.rows[key] = &modelRow{state: "refused", term: c.Term}
		return refusal(reason)
	}
	if open == nil {
		if first > 0 && m.bug != "ignores gaps" || c.Opened && m.bug != "begins anew what was opened" {
			return refuse(executionLost)
		}
		if m.bug == "executes before it locks" {
			m.work(openKey)
			if m.open[openKey] != nil { // another was faster; the work was done all the same
				m.open[openKey].markers = append(m.open[openKey].markers, markers(payloads)...)
				return executed(m.open[openKey].id, m.open[openKey].results)
			}
		}
		open = &modelOpen{term: c.Term, id: fmt.Sprint("x", len(m.open), time.Now().UnixNano())}
		m.open[openKey] = open
	}
	n, last := len(open.payloads), first+len(payloads)
	switch {
	case c.Execution != "" && c.Execution != open.id && m.bug != "ignores the execution":
		return refuse(executionLost)
	case first > n && m.bug != "ignores gaps":
		return refuse(executionLost)
	case first < n && last <= n && m.bug != "executes repeats again":
		if digest(open.payloads[:last]) != c.Digest && m.bug != "ignores the digest of an execute" {
			return refuse("EXECUTION_MISMATCH")
		}
		if m.bug == "forgets executed results" {
			return executed(open.id, make([]json.RawMessage, len(payloads)))
		}
		return executed(open.id, open.results[first:last])
	case digest(append(open.payloads[:n:n], payloads...)) != c.Digest && m.bug != "ignores the digest of an execute" && m.bug != "ignores gaps" && m.bug != "executes repeats again":
		return refuse("EXECUTION_MISMATCH")
	}
	results := make([]json.RawMessage, len(payloads))
	for i, p := range payloads {
		var op struct{ Do, Marker string }
		_ = json.Unmarshal(p, &op)
		switch op.Do {
		case "refuse":
			return refuse("EXECUTION_REFUSED")
		case "result":
			results[i] = json.RawMessage(`{"of":"` + op.Marker + `"}`)
		case "observe":
			counts := m.counts
			if m.bug == "reads from an old snapshot" {
				if open.snapshot == nil {
					open.snapshot = maps.Clone(m.counts)
				}
				counts = open.snapshot
			}
			results[i] = fmt.Appendf(nil, `{"effects":%d}`, counts[op.Marker])
		}
		if m.bug == "applies at execute" {
			m.counts[op.Marker]++
		}
	}
	open.payloads, open.results = append(open.payloads, payloads...), append(open.results, results...)
	open.markers = append(open.markers, markers(payloads)...)
	return executed(open.id, results)
}

func markers(payloads []json.RawMessage) (list []string) {
	for _, p := range payloads {
		var op struct{ Marker string }
		_ = json.Unmarshal(p, &op)
		list = append(list, op.Marker)
	}
	return list
}

// prepareOpen is a prepare of a branch that has executed something, here or not.
func (m *model) prepareOpen(c *modelCall, key, openKey string, open *modelOpen) modelAnswer {
	delete(m.open, openKey)
	row := &modelRow{state: "prepared", digest: c.Digest, count: c.Executed + c.Count, executed: c.Executed, term: c.Term, token: c.Token, onePhase: c.OnePhase}
	m.rows[key] = row
	no := func() modelAnswer {
		row.state = "refused"
		return modelAnswer{200, map[string]any{"vote": "no", "reason": executionLost + ": not here"}}
	}
	if open == nil {
		if m.bug != "yes to what it has not executed" {
			return no()
		}
		open = &modelOpen{}
	}
	var deferred []json.RawMessage
	for _, op := range c.Operations {
		deferred = append(deferred, op.Payload)
		var parsed struct{ Do string }
		if _ = json.Unmarshal(op.Payload, &parsed); parsed.Do == "refuse" {
			row.state = "refused"
			return vote("no", nil)
		}
	}
	same := len(open.payloads) == c.Executed && digest(append(open.payloads[:len(open.payloads):len(open.payloads)], deferred...)) == c.Digest &&
		(c.Execution == "" || c.Execution == open.id)
	if !same && m.bug != "ignores what was executed" && m.bug != "yes to what it has not executed" && m.bug != "executes repeats again" && m.bug != "executes before it locks" {
		return no()
	}
	row.markers = append(open.markers, markers(deferred)...)
	if m.bug == "loses executed work" {
		row.markers = markers(deferred)
	}
	for _, mark := range row.markers {
		m.holds[mark]++
	}
	if c.OnePhase && m.bug != "one-phase leaves executed work prepared" {
		m.apply(row)
	}
	return vote("yes", nil)
}
