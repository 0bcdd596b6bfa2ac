package rmtest

import (
	"encoding/json"
	"strings"
)

const executionLost = "EXECUTION_LOST"

func executes(t *Target) bool { return t.Execute }

// step is an execute of the payloads from first up to last.
func (b *branch) step(first, last int) *branch {
	return b.with(func(b *branch) { b.first, b.last = first, last })
}

// execute executes further payloads of the branch, and from then on the prepare
// carries those behind them.
func (b *branch) execute(n int) answer {
	b.env.Helper()
	a := b.step(b.executed, b.executed+n).expect("execute", "executed")
	if len(a.parsed.Results) != n {
		b.env.Fatalf("%d operations were executed with %d results: %s", n, len(a.parsed.Results), a)
	}
	b.executed += n
	b.execution = a.parsed.Execution
	return a
}

// refused expects a refusal with one of the reasons; none: any.
func (b *branch) refused(reasons ...string) {
	b.env.Helper()
	b.env.checkRefused(b.call("execute"), reasons...)
}

func (e *env) checkRefused(a answer, reasons ...string) {
	e.Helper()
	e.check(a, "execute", "refused")
	got := a.parsed.Reason
	if got == "" {
		e.Fatalf("refused without a reason: %s", a)
	}
	for _, reason := range reasons {
		if got == reason {
			return
		}
	}
	if len(reasons) > 0 {
		e.Fatalf("refused with reason %q, want %q", got, reasons)
	}
}

// lost expects a vote no because the executed work is not here.
func (b *branch) lost() {
	b.env.Helper()
	b.checkLost(b.call("prepare"))
}

func (b *branch) checkLost(a answer) {
	b.env.Helper()
	b.env.check(a, "prepare", "no")
	if !strings.HasPrefix(a.parsed.Reason, executionLost) {
		b.env.Fatalf("prepare was answered %s; the reason must begin with %s", a, executionLost)
	}
}

// executeCases are the demands on a participant with an execute endpoint.
var executeCases = []conformance{
	{name: "executed and deferred operations commit together", needs: executes, run: func(e *env) {
		target := &e.suite.target
		b := e.branch(target.Succeed, target.Succeed, target.Succeed, target.Succeed)
		b.execute(1)
		b.execute(2)
		b.count("effects", target.Effects, 0)
		b.status("unknown")
		b.expect("prepare", "yes")
		b.count("effects", target.Effects, 0)
		b.status("prepared")
		b.expect("commit", "done")
		b.effects(4)
		b.status("committed")
		all := e.branch(target.Succeed, target.Succeed)
		all.execute(2)
		all.expect("prepare", "yes") // with no operation of its own
		all.expect("commit", "done")
		all.effects(2)
		undone := e.branch(target.Succeed, target.Succeed)
		undone.execute(1)
		undone.expect("prepare", "yes")
		undone.expect("rollback", "done")
		undone.effects(0)
	}},
	{name: "a repeated execute gets the same results", needs: executes, run: func(e *env) {
		op := e.suite.target.Succeed
		if e.suite.target.Results != nil {
			op = e.suite.target.Results
		}
		b := e.branch(op, op, e.suite.target.Succeed)
		first := b.execute(1)
		if e.suite.target.Results != nil && compact(first.parsed.Results) == "null " {
			e.Fatalf("an operation with a result was executed without one: %s", first)
		}
		again := func(a answer, from, to int) {
			e.Helper()
			r := b.step(from, to)
			r.overridden["attempt"] = 2
			if got := r.expect("execute", "executed"); compact(got.parsed.Results) != compact(a.parsed.Results) {
				e.Fatalf("a repeat was answered %s, the first time %s", got, a)
			}
		}
		again(first, 0, 1)
		second := b.execute(1)
		again(second, 1, 2)
		again(first, 0, 1)
		b.expect("prepare", "yes")
		b.expect("commit", "done")
		b.effects(3)
	}},
	{name: "concurrent executes execute once", needs: executes, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		b.step(0, 1).expectTogether(duplicates, "execute", "executed")
		b.executed = 1
		b.step(1, 2).expectTogether(duplicates, "execute", "executed")
		b.executed = 2
		b.expectTogether(duplicates, "prepare", "yes")
		b.expect("commit", "done")
		b.effects(2)
	}},
	{name: "an execute behind a gap is refused", needs: executes, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed, e.suite.target.Succeed, e.suite.target.Succeed)
		b.step(1, 2).refused(executionLost)
		b.with(func(b *branch) { b.executed = 2 }).expect("prepare", "no")
		b.expect("rollback", "done")
		b.effects(0)
		c := e.branch(e.suite.target.Succeed, e.suite.target.Succeed, e.suite.target.Succeed)
		c.execute(1)
		c.step(2, 3).refused(executionLost)
		c.expect("prepare", "no") // a refusal is for the whole branch
		c.expect("rollback", "done")
		c.effects(0)
	}},
	{name: "the digest of an execute is checked", needs: executes, run: func(e *env) {
		other := digest(e.branch(e.suite.target.Succeed, e.suite.target.Succeed).payloads)
		for first := range 2 {
			b := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
			if first == 1 {
				b.execute(1)
			}
			bad := b.step(first, first+1)
			bad.overridden["digest"] = other
			bad.refused()
			b.expect("rollback", "done")
			b.effects(0)
		}
		b := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		b.execute(1)
		inItsPlace := b.with(func(b *branch) { b.payloads = []json.RawMessage{e.suite.target.Succeed(b.marker + "-other")} })
		inItsPlace.step(0, 1).refused()
		b.expect("rollback", "done")
		b.effects(0)
	}},
	{name: "a branch that has ended executes nothing", needs: executes, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		b.expect("rollback", "done") // overtakes
		for range 2 {
			b.step(0, 1).refused()
			b.step(1, 2).refused()
			b.with(func(b *branch) { b.executed = 1 }).expect("prepare", "no")
			e.restart()
		}
		b.effects(0)
		c := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		c.execute(1)
		c.expect("prepare", "yes")
		c.step(0, 1).refused()
		c.step(1, 2).refused()
		c.expect("commit", "done")
		c.step(0, 1).refused()
		c.effects(2)
	}},
	{name: "rollback ends an open branch", needs: executes, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		b.execute(1)
		b.expect("rollback", "done")
		b.status("rolled_back")
		b.effects(0)
		b.step(0, 1).refused()
		b.step(1, 2).refused()
		b.expect("prepare", "no")
		e.restart()
		b.step(0, 1).refused()
		b.expect("prepare", "no")
		b.expect("rollback", "done")
		b.effects(0)
		free := e.branch(e.suite.target.Succeed).with(func(free *branch) { free.payloads = []json.RawMessage{e.suite.target.Succeed(free.marker)} })
		free.execute(1) // what it held is free
		free.expect("prepare", "yes")
		free.expect("commit", "done")
		free.effects(1)
	}},
	{name: "execute racing rollback never stays open", needs: executes, run: func(e *env) {
		for range 10 {
			b := e.branch(e.suite.target.Succeed)
			answers := make(chan map[string]int, 1)
			go func() { answers <- b.step(0, 1).together(4, "execute") }()
			b.expectTogether(4, "rollback", "done")
			<-answers // executed or refused: both are right, before or after the rollback
			b.step(0, 1).refused()
			b.with(func(b *branch) { b.executed = 1 }).expect("prepare", "no")
			b.status("rolled_back")
			b.effects(0)
		}
	}},
	{name: "a restart between execute and prepare loses nothing silently", needs: func(t *Target) bool { return t.Execute && t.Restart != nil }, run: func(e *env) {
		for deferred := range 2 {
			b := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
			b.execute(2 - deferred)
			e.restart()
			a := b.call("prepare")
			if a.kind("prepare") == "yes" { // it was not lost
				b.expect("commit", "done")
				b.effects(2)
				continue
			}
			b.checkLost(a)
			b.status("rolled_back")
			b.expect("rollback", "done")
			b.effects(0)
		}
		o := e.branch(e.suite.target.Succeed)
		o.execute(1)
		opened := o.step(0, 1)
		opened.execution, opened.overridden["opened"] = "", true
		opened.expect("execute", "executed")
		e.restart()
		if a := opened.call("execute"); a.kind("execute") != "executed" || a.parsed.Execution != o.execution {
			e.checkRefused(a, executionLost)
		}
		o.expect("rollback", "done")
		o.effects(0)
		b := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		b.execute(1)
		e.restart()
		if a := b.step(1, 2).call("execute"); a.kind("execute") != "executed" {
			e.checkRefused(a, executionLost)
			b.expect("prepare", "no")
			b.effects(0)
		}
		b.expect("rollback", "done")
		b.effects(0)
	}},
	{name: "prepare votes no for what was not executed here", needs: executes, run: func(e *env) {
		for name, change := range map[string]func(b *branch){
			"fewer were executed":  func(b *branch) { b.executed = 2 },
			"more were executed":   func(b *branch) { b.executed, b.payloads = 1, append(b.payloads[:1:1], b.payloads[2]) },
			"others were executed": func(b *branch) { b.payloads = append([]json.RawMessage{b.payloads[2]}, b.payloads[1:]...) },
			"none is said to be":   func(b *branch) { b.executed = 0 },
			"another transaction":  func(b *branch) { b.execution = "another" },
		} {
			b := e.branch(e.suite.target.Succeed, e.suite.target.Succeed, func(marker string) json.RawMessage { return e.suite.target.Succeed(marker + "-other") })
			b.execute(1)
			if name == "more were executed" {
				b.execute(1)
			}
			if b.execution == "" && name == "another transaction" {
				b.expect("rollback", "done")
				continue // it does not name them
			}
			b.with(change).expect("prepare", "no")
			b.expect("prepare", "no") // durable
			b.expect("rollback", "done")
			b.effects(0)
		}
		never := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		never.executed = 1
		never.lost()
		never.status("rolled_back")
		never.expect("rollback", "done")
		never.effects(0)
	}},
	{name: "an execute of another open transaction is refused", needs: executes, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		if b.execute(1); b.execution != "" { // who names none cannot be asked
			stranger := b.step(1, 2)
			stranger.execution = "another"
			stranger.refused(executionLost)
		}
		b.expect("rollback", "done")
		b.effects(0)
	}},
	{name: "several branches are open at once", needs: func(t *Target) bool { return t.Execute && !t.OneOpen }, run: func(e *env) {
		one, two := e.branch(e.suite.target.Succeed, e.suite.target.Succeed), e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		one.execute(1)
		two.execute(1)
		one.execute(1)
		two.execute(1)
		two.expect("rollback", "done")
		one.expect("prepare", "yes")
		one.expect("commit", "done")
		one.effects(2)
		two.effects(0)
		sibling := one.with(func(b *branch) {
			b.number, b.executed, b.execution, b.marker = 2, 0, "", b.marker+"-2"
			b.payloads = []json.RawMessage{e.suite.target.Succeed(b.marker)}
		})
		sibling.execute(1)
		sibling.expect("rollback", "done")
		sibling.effects(0)
	}},
	// Keys are locked step by step: what an operation reads may have been committed since
	// the branch was opened, before its key was granted.
	{name: "an executed operation sees what was committed before it", needs: func(t *Target) bool { return t.Execute && !t.OneOpen && t.Observe != nil }, run: func(e *env) {
		writer := e.branch(e.suite.target.Succeed)
		observe := func(string) json.RawMessage { return e.suite.target.Observe(writer.marker) }
		reader := e.branch(observe, observe, observe)
		seen := compact(reader.execute(1).parsed.Results)
		if same := compact(reader.execute(1).parsed.Results); same != seen {
			e.Fatalf("Observe returned %s and then %s, and nothing was committed meanwhile", seen, same)
		}
		writer.expect("prepare", "yes")
		writer.expect("commit", "done")
		if old := compact(reader.execute(1).parsed.Results); old == seen {
			e.Fatalf("an operation executed after the commit of another branch returned %s, as before it: its local transaction reads from an older snapshot", old)
		}
		reader.expect("rollback", "done")
	}},
	{name: "a refused operation refuses the branch", needs: executes, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed, e.suite.target.Refuse)
		b.execute(1)
		b.step(1, 2).refused()
		b.step(1, 2).refused()
		b.expect("prepare", "no")
		e.restart()
		b.step(0, 1).refused()
		b.expect("prepare", "no")
		b.expect("rollback", "done")
		b.effects(0)
		first := e.branch(e.suite.target.Refuse)
		first.step(0, 1).refused()
		first.with(func(b *branch) { b.payloads = []json.RawMessage{e.suite.target.Succeed(b.marker)} }).step(0, 1).refused()
		first.expect("rollback", "done")
		first.effects(0)
		deferred := e.branch(e.suite.target.Succeed, e.suite.target.Refuse)
		deferred.execute(1)
		deferred.expect("prepare", "no")
		deferred.expect("rollback", "done")
		deferred.effects(0)
	}},
	{name: "a yes for executed work survives a restart", needs: executes, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		b.execute(1)
		for range 2 {
			b.expect("prepare", "yes")
		}
		e.restart()
		b.expect("prepare", "yes") // the open transaction is gone, and not needed
		b.with(func(b *branch) { b.payloads = b.payloads[:1] }).expect("prepare", "no")
		b.expect("commit", "done")
		b.expect("prepare", "yes")
		b.expect("commit", "done")
		b.effects(2)
	}},
	{name: "an older term does not execute", needs: func(t *Target) bool { return t.Execute && !t.NoTerms }, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		b.execute(1)
		newer := b.with(func(b *branch) { b.term++ })
		newer.execute(1) // a new leader goes on
		b.step(0, 1).expect("execute", "indefinite")
		for _, phase := range []string{"prepare", "rollback"} {
			b.with(func(b *branch) { b.executed = 2 }).expect(phase, "indefinite")
		}
		newer.expect("prepare", "yes")
		newer.expect("commit", "done")
		newer.effects(2)
	}},
	{name: "one-phase commits executed work", needs: func(t *Target) bool { return t.Execute && t.OnePhase }, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		b.onePhase = true
		b.execute(1)
		b.expect("prepare", "yes")
		b.effects(2)
		b.status("committed")
		e.restart()
		b.expect("prepare", "yes")
		b.effects(2)
		never := e.branch(e.suite.target.Succeed, e.suite.target.Succeed)
		never.onePhase, never.executed = true, 1
		never.expect("prepare", "no")
		never.expect("prepare", "no")
		never.effects(0)
	}},
	{name: "malformed executes change nothing", needs: executes, run: func(e *env) {
		b := e.branch(e.suite.target.Succeed)
		for name, change := range map[string]map[string]any{
			"no first":            {"first": nil},
			"first is negative":   {"first": -1},
			"first is text":       {"first": "0"},
			"no operations":       {"operations": nil},
			"operations is empty": {"operations": []any{}},
			"payload missing":     {"operations": []map[string]any{{}}},
			"no transaction":      {"transaction": nil},
			"phase is another":    {"phase": "prepare"},
		} {
			bad := b.step(0, 1)
			bad.overridden = change
			if a := bad.call("execute"); a.kind("execute") != "indefinite" {
				e.Fatalf("%s: execute was answered %s", name, a)
			}
			b.status("unknown")
		}
		b.execute(1)
		b.expect("prepare", "yes")
		b.expect("rollback", "done")
		b.effects(0)
	}},
}
