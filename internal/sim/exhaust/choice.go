package exhaust

import (
	"fmt"
	"strings"

	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
)

// choice is one thing that can happen next.
type choice struct {
	kind    choiceKind
	a, b, c int8
}

type choiceKind uint8

const (
	commitNext  choiceKind = iota + 1 // the leader's eldest proposal commits
	submit                            // a: transaction, b: node
	submitAgain                       // likewise
	submitOther                       // likewise
	rollback                          // likewise
	get                               // likewise
	cancel                            // a: request
	deliver                           // a: call, b: vote if asked for the first time, c: 1 keeps the request
	answer                            // a: call
	giveUp                            // a: call
	tick                              // the leader's next short timer
	deadline                          // a: transaction
	crash                             // a: how many proposals survive
	depose                            // likewise
	relead                            // a: lostKind
	late                              // a: stale entry
	follow                            // a: node
	applyOld                          // a: node
	defect                            // a: transaction, b: branch, c: outcome
)

type lostKind = int8

const (
	lostNone lostKind = iota
	lostFirst
	lostAll
)

// choices lists all that can happen next, in a fixed order.
func (w *world) choices() (list []choice) {
	add := func(kind choiceKind, a, b, c int) {
		list = append(list, choice{kind, int8(a), int8(b), int8(c)})
	}
	l := w.nodes[w.leader]
	if len(l.inFlight) > 0 {
		add(commitNext, 0, 0, 0)
	}
	for i, n := range w.nodes {
		if n == nil || !n.claims || !n.led {
			continue
		}
		for t := range w.ids {
			sent := w.sent(t)
			if !sent && (t == 0 || w.sent(t-1)) {
				add(submit, t, i, 0)
			}
			if sent && w.left.Resubmits > 0 {
				add(submitAgain, t, i, 0)
			}
			if w.left.Conflicts > 0 {
				add(submitOther, t, i, 0)
			}
			if w.left.Rollbacks > 0 {
				add(rollback, t, i, 0)
			}
			if w.left.Gets > 0 {
				add(get, t, i, 0)
			}
		}
	}
	if w.left.Cancels > 0 {
		for r := range w.requests {
			if w.requests[r].node >= 0 {
				add(cancel, r, 0, 0)
			}
		}
	}
	for k, c := range w.calls {
		w.callChoices(k, c, add)
	}
	if l.wakeUs > 0 && l.wakeUs <= l.nowUs+shortUs {
		add(tick, 0, 0, 0)
	}
	for t, id := range w.ids {
		rec := l.sh.State().Get(id)
		if w.left.Deadlines > 0 && l.led && rec != nil && !rec.Status.Decided() && l.nowUs < w.deadlineUs(t) {
			add(deadline, t, 0, 0)
		}
	}
	for kept := 0; kept <= len(l.inFlight); kept++ {
		if w.left.Crashes > 0 {
			add(crash, kept, 0, 0)
		}
		if w.left.Depose > 0 {
			add(depose, kept, 0, 0)
		}
	}
	if w.left.Relead > 0 {
		add(relead, int(lostNone), 0, 0)
		if len(l.inFlight) > 1 {
			add(relead, int(lostFirst), 0, 0)
		}
		if len(l.inFlight) > 0 {
			add(relead, int(lostAll), 0, 0)
		}
	}
	if w.left.Late > 0 {
		for k := range w.stale {
			add(late, k, 0, 0)
		}
	}
	if n := w.nodes[1-w.leader]; n != nil && n.claims {
		add(follow, 1-w.leader, 0, 0)
		if n.applied < len(w.log) {
			add(applyOld, 1-w.leader, 0, 0)
		}
	}
	for t := range w.rows {
		for b := range w.rows[t] {
			if w.left.Unilateral > 0 && w.rows[t][b].outcome == prepared {
				for _, to := range []outcome{nothing, committed, rolledBack} {
					add(defect, t, b, int(to))
				}
			}
		}
	}
	return list
}

func (w *world) callChoices(k int, c *call, add func(choiceKind, int, int, int)) {
	if c.inNetwork {
		votes := []shard.AnswerKind{shard.Indefinite}
		if c.Phase == shard.PhasePrepare && w.rows[c.txn][c.Branch].vote == shard.Indefinite && w.rows[c.txn][c.Branch].outcome == nothing {
			votes = w.cfg.Work[c.txn].Branches[c.Branch].Votes
		}
		for _, v := range votes {
			add(deliver, k, int(v), 0)
			if w.left.Doubles > 0 {
				add(deliver, k, int(v), 1)
			}
		}
	}
	if c.from >= 0 && c.answered {
		add(answer, k, 0, 0)
	}
	if c.from >= 0 && w.left.Timeouts > 0 {
		add(giveUp, k, 0, 0)
	}
}

func (w *world) sent(t int) bool {
	for i := range w.requests {
		if w.requests[i].txn == t && w.requests[i].kind == submits {
			return true
		}
	}
	return false
}

func (w *world) deadlineUs(t int) int64 {
	us := int64(deadlineMs * 1000)
	for range t {
		us *= 10
	}
	return w.nodes[w.leader].startUs[t] + us
}

// take performs a choice.
func (w *world) take(ch *choice) {
	a, b := int(ch.a), int(ch.b)
	switch ch.kind {
	case commitNext:
		w.commit()
	case submit:
		w.send(submits, a, b)
	case submitAgain:
		w.left.Resubmits--
		w.send(submits, a, b)
	case submitOther:
		w.left.Conflicts--
		w.send(conflicts, a, b)
	case rollback:
		w.left.Rollbacks--
		w.send(rollsBack, a, b)
	case get:
		w.left.Gets--
		w.send(gets, a, b)
	case cancel:
		w.left.Cancels--
		q := &w.requests[a]
		q.cancelled = true
		w.step(q.node, &shard.Cancel{Token: q.token, ID: w.ids[q.txn]})
		w.unless(w.requests[a].node < 0, "a request was given up, but not answered")
	case deliver:
		w.left.Doubles -= int(ch.c)
		w.deliver(w.calls[a], shard.AnswerKind(ch.b), ch.c == 1)
	case answer:
		c := w.calls[a]
		w.done(c, c.answer, "")
	case giveUp:
		w.left.Timeouts--
		w.done(w.calls[a], shard.Indefinite, "timeout")
	case tick:
		w.tick(&ch.c)
	case deadline:
		w.left.Deadlines--
		w.nodes[w.leader].nowUs = w.deadlineUs(a)
		w.step(w.leader, &shard.Tick{})
	case crash:
		w.left.Crashes--
		w.handOver(a, true)
	case depose:
		w.left.Depose--
		w.handOver(a, false)
	case relead:
		w.left.Relead--
		w.relead(ch.a)
	case late:
		w.left.Late--
		entry := w.stale[a]
		w.stale = append(w.stale[:a:a], w.stale[a+1:]...)
		w.appendLog(entry)
		w.catchUp(w.leader)
	case follow:
		w.nodes[a].claims = false
		w.step(a, &shard.Follow{})
	case applyOld:
		w.apply(a)
	case defect:
		w.left.Unilateral--
		w.unilateral(a, b, outcome(ch.c))
	}
	w.holds()
}

// send lets a client ask a node.
func (w *world) send(kind requestKind, t, node int) {
	f := &w.facts[t]
	q := request{
		token: shard.Token(len(w.requests) + 1), kind: kind, txn: t, node: node,
		known: f.begun || f.decision != undecided, decided: f.decision != undecided,
	}
	w.requests = append(w.requests, q)
	switch kind {
	case submits, conflicts:
		cmd, digest := w.begin(t, q.variant())
		w.step(node, &shard.Submit{Token: q.token, ID: w.ids[t], Digest: digest, Begin: cmd, Wait: w.cfg.Work[t].Wait})
	case rollsBack:
		w.step(node, &shard.Rollback{Token: q.token, ID: w.ids[t]})
	case gets:
		w.step(node, &shard.Get{Token: q.token, ID: w.ids[t]})
	}
}

// done reports a call's one answer to the node that made it.
func (w *world) done(c *call, a shard.AnswerKind, why string) {
	i := c.from
	c.from, c.answered = -1, false
	w.sweep()
	w.step(i, &shard.CallDone{ID: c.ID, Branch: c.Branch, Phase: c.Phase, Attempt: c.Attempt, Term: c.Term, Answer: a, Reason: why})
}

// explain says what a choice would do, for people.
func (w *world) explain(ch choice) string {
	name := [...]string{
		commitNext: "commit", submit: "submit", submitAgain: "submit again", submitOther: "submit another body of", rollback: "roll back", get: "get",
		cancel: "cancel request", deliver: "deliver", answer: "answer", giveUp: "give up", tick: "tick", deadline: "deadline of", crash: "leader crashes,", depose: "leader is deposed,",
		relead: "leader starts over,", late: "late entry", follow: "follow", applyOld: "deposed node applies", defect: "participant breaks the contract:",
	}[ch.kind]
	a, b := int(ch.a), int(ch.b)
	switch ch.kind {
	case commitNext:
		return name + " " + w.entryText(w.nodes[w.leader].inFlight[0])
	case submit, submitAgain, submitOther, rollback, get:
		return fmt.Sprintf("%s t%d at node %d (request %d)", name, a+1, b, len(w.requests)+1)
	case cancel:
		return fmt.Sprintf("%s %d", name, w.requests[a].token)
	case deliver, answer, giveUp:
		text := name + " " + w.calls[a].text()
		if shard.AnswerKind(ch.b) != shard.Indefinite {
			text += " => " + shard.AnswerKind(ch.b).String()
		}
		if ch.kind == answer {
			text += " => " + w.calls[a].answer.String()
		}
		if ch.c == 1 {
			text += ", and keep it in the network"
		}
		return text
	case deadline:
		return fmt.Sprintf("%s t%d", name, a+1)
	case crash, depose:
		return fmt.Sprintf("%s %d of %d proposals survive", name, a, len(w.nodes[w.leader].inFlight))
	case relead:
		return name + " of its proposals " + [...]string{"none is lost", "the first is lost", "all are lost"}[a]
	case late:
		return name + " " + w.entryText(w.stale[a])
	case follow:
		return fmt.Sprintf("tell node %d to follow", a)
	case applyOld:
		n := w.nodes[a]
		return name + " " + w.entryText(w.log[n.applied].data)
	case defect:
		return fmt.Sprintf("%s branch %d of t%d becomes %s", name, b+1, a+1, outcomeNames[ch.c])
	case tick:
	}
	return name
}

func (c *call) text() string {
	return fmt.Sprintf("%s t%d/%d #%d of term %d", c.Phase, c.txn+1, c.Branch+1, c.Attempt, c.Term)
}

// entryText describes an entry, transactions by their short names.
func (w *world) entryText(entry []byte) string {
	lines, err := txn.Describe(entry)
	if err != nil {
		return err.Error()
	}
	computed, _, _ := txn.Header(entry)
	text := strings.Join(lines, "; ")
	for t, id := range w.ids {
		text = strings.ReplaceAll(text, id.String(), fmt.Sprintf("t%d", t+1))
	}
	return fmt.Sprintf("[%s] of term %d", text, computed)
}
