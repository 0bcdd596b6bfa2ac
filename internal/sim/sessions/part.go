package sessions

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txnid"
)

// part is a participant: lists in a database, as the contract of docs/PARTICIPANTS.md
// has it. What is executed before prepare is gone when it restarts.
type part struct {
	w     *World
	name  string
	items map[string][]item // by key, in the order of their branches' work
	rows  map[txnid.ID]outcome
	open  map[txnid.ID]*branch
	terms map[txnid.ID]uint64 // the greatest of a branch's calls; kept with its row
	told  map[txnid.ID]bool   // branches with results that their client has
	lives int

	written, read map[string]fence
}

// OlderTerm is why a participant does not look at a call.
const OlderTerm = "of an older term"

// fence is the greatest token that a key was used with, and by whom.
type fence struct {
	token string
	by    txnid.ID
}

type item struct {
	value   int64
	txn     txnid.ID
	pending bool
}

type outcome uint8

const (
	prepared outcome = iota + 1
	committed
	rolledBack
)

// branch is an open local transaction.
type branch struct {
	name     string
	executed [][]byte
	digests  [][32]byte
	results  [][]byte
	items    []work
}

type work struct {
	key   string
	value int64
}

// payload is an operation.
type payload struct {
	Append bool   `json:"append,omitempty"`
	Key    string `json:"key"`
	Value  int64  `json:"value,omitempty"`
}

func newPart(w *World, name string) *part {
	return &part{w: w, name: name, items: map[string][]item{}, rows: map[txnid.ID]outcome{}, open: map[txnid.ID]*branch{}, terms: map[txnid.ID]uint64{}, told: map[txnid.ID]bool{}, written: map[string]fence{}, read: map[string]fence{}}
}

// fenced checks that of two that use a key in conflict the later has the greater token.
func (p *part) fenced(c *shard.Call, m *payload) {
	if p.w.opt.Trusting { // it is left to those who judge what clients were told
		return
	}
	after := []fence{p.written[m.Key]}
	if m.Append {
		after = append(after, p.read[m.Key])
	}
	for _, f := range after {
		if f.by != c.ID && f.token >= c.Token {
			p.w.Fail("%s: %s uses %s with token %s, after %s with %s", p.name, c.ID, m.Key, c.Token, f.by, f.token)
		}
	}
	used := p.read
	if m.Append {
		used = p.written
	}
	if used[m.Key].token < c.Token {
		used[m.Key] = fence{c.Token, c.ID}
	}
}

// sent checks a call that leaves: a branch whose results its client has is never opened
// anew, since it would be executed again behind the client's back.
func (p *part) sent(c *shard.Call) {
	if c.Phase == shard.PhaseExecute && !c.Opened && p.told[c.ID] {
		p.w.Fail("%s is asked to execute for %s as if it had not, and the client has the results", p.name, c.ID)
	}
}

func (p *part) serve(c *shard.Call) *shard.CallDone {
	d := &shard.CallDone{ID: c.ID, Branch: c.Branch, Phase: c.Phase, Attempt: c.Attempt, Term: c.Term}
	if p.w.Chance(p.w.opt.RestartPct) {
		p.open = map[txnid.ID]*branch{}
		p.lives++
		d.Answer, d.Reason = shard.Indefinite, "restarts"
		return d
	}
	if c.Term < p.terms[c.ID] {
		p.w.report.OldTerm++
		d.Answer, d.Reason = shard.Indefinite, OlderTerm
		return d
	}
	p.terms[c.ID] = c.Term
	row := p.rows[c.ID]
	switch c.Phase {
	case shard.PhaseExecute:
		p.execute(c, row, d)
	case shard.PhasePrepare:
		p.prepare(c, row, d)
	case shard.PhaseCommit:
		d.Answer = shard.Acknowledged
		switch row {
		case prepared:
			for key, list := range p.items { // order does not matter: each item is changed by itself
				for i := range list {
					if list[i].txn == c.ID {
						p.items[key][i].pending = false
					}
				}
			}
			p.rows[c.ID] = committed
		case committed:
		default:
			p.w.Fail("commit of %s at %s, which is not prepared", c.ID, p.name)
		}
	case shard.PhaseRollback:
		d.Answer = shard.Acknowledged
		if row == committed {
			p.w.Fail("rollback of %s at %s, which is committed", c.ID, p.name)
		}
		delete(p.open, c.ID)
		for key, list := range p.items {
			p.items[key] = slices.DeleteFunc(list, func(i item) bool { return i.txn == c.ID })
		}
		p.rows[c.ID] = rolledBack
	}
	return d
}

func (p *part) execute(c *shard.Call, row outcome, d *shard.CallDone) {
	b := p.open[c.ID]
	n := 0
	if b != nil {
		n = len(b.executed)
	}
	first, last := int(c.First), int(c.First)+len(c.Operations)
	switch {
	case row != 0:
		d.Answer, d.Reason = shard.Refused, "ended"
		return
	case b == nil && (first > 0 || c.Opened) || b != nil && c.Execution != "" && c.Execution != b.name || first > n:
		d.Answer = shard.Lost
		p.rows[c.ID] = rolledBack // a refusal ends the branch
		delete(p.open, c.ID)
		return
	case b != nil && first < n && last <= n:
		if b.digests[last-1] != c.Digest {
			p.w.Fail("%s is asked to repeat other operations of %s", p.name, c.ID)
		}
		d.Answer, d.Results, d.Execution = shard.Executed, b.results[first:last], b.name
		return
	case first < n:
		p.w.Fail("%s is asked for operations %d to %d of %s, where %d are executed", p.name, first, last, c.ID, n)
	}
	if b == nil {
		b = &branch{name: string(rune('A'+p.lives%26)) + c.ID.String()[30:]}
		p.open[c.ID] = b
	}
	for _, op := range c.Operations {
		var before [32]byte
		if len(b.digests) > 0 {
			before = b.digests[len(b.digests)-1]
		}
		b.digests = append(b.digests, chain(before, len(b.executed), op))
		b.executed = append(b.executed, op)
		b.results = append(b.results, p.run(c, b, op))
	}
	if b.digests[len(b.digests)-1] != c.Digest {
		p.w.Fail("%s got a digest of other operations of %s", p.name, c.ID)
	}
	d.Answer, d.Results, d.Execution = shard.Executed, b.results[first:last], b.name
}

func chain(before [32]byte, n int, op []byte) [32]byte {
	if n == 0 {
		return sha256.Sum256(op)
	}
	return sha256.Sum256(append(before[:], op...))
}

// run does one operation in a branch: reads see what is committed, and its own.
func (p *part) run(c *shard.Call, b *branch, op []byte) []byte {
	var m payload
	if err := json.Unmarshal(op, &m); err != nil {
		p.w.Fail("%v", err)
	}
	p.fenced(c, &m)
	if m.Append {
		b.items = append(b.items, work{m.Key, m.Value})
		return []byte("null")
	}
	list := []int64{}
	for _, i := range p.items[m.Key] {
		if !i.pending {
			list = append(list, i.value)
		}
	}
	for _, i := range b.items {
		if i.key == m.Key {
			list = append(list, i.value)
		}
	}
	return fmt.Append(nil, strings.ReplaceAll(fmt.Sprint(list), " ", ","))
}

func (p *part) prepare(c *shard.Call, row outcome, d *shard.CallDone) {
	switch row {
	case prepared, committed:
		d.Answer = shard.VoteYes
		return
	case rolledBack:
		d.Answer, d.Reason = shard.VoteNo, "ended"
		return
	}
	b := p.open[c.ID]
	if b == nil {
		b = &branch{}
	}
	if len(b.executed) != int(c.Executed) || c.Execution != "" && c.Execution != b.name {
		d.Answer = shard.Lost
		p.rows[c.ID] = rolledBack
		delete(p.open, c.ID)
		return
	}
	if p.w.Chance(p.w.opt.NoPct) {
		d.Answer, d.Reason = shard.VoteNo, "does not want to"
		p.rows[c.ID] = rolledBack
		delete(p.open, c.ID)
		return
	}
	for _, op := range c.Operations {
		d.Results = append(d.Results, p.run(c, b, op))
	}
	for _, i := range b.items {
		p.items[i.key] = append(p.items[i.key], item{i.value, c.ID, true})
	}
	delete(p.open, c.ID)
	p.rows[c.ID] = prepared
	d.Answer = shard.VoteYes
}

// audit: what is there was committed, once, and nothing is in doubt.
func (p *part) audit() {
	for id := range p.open { // order does not matter: there must be none
		p.w.Fail("%s: the local transaction of %s is still open", p.name, id)
	}
	seen := map[int64]bool{}
	for key, list := range p.items { // order does not matter: every item is checked
		for _, i := range list {
			switch {
			case i.pending:
				p.w.Fail("%s: %d in %s is still pending", p.name, i.value, key)
			case seen[i.value]:
				p.w.Fail("%s: %d is there twice", p.name, i.value)
			case !p.w.cluster.Committed(i.txn):
				p.w.Fail("%s: %d is of %s, which is not committed", p.name, i.value, i.txn)
			}
			seen[i.value] = true
		}
	}
}
