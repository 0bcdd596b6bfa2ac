package sessions

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/assent-tx/assent/internal/check"
	"github.com/assent-tx/assent/internal/check/linear"
	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// user is one client: it begins a transaction, takes its steps, and commits; what gets
// no answer is asked again with the same words.
type user struct {
	w       *World
	process int
	busy    bool

	id      txnid.ID
	retryOf txnid.ID
	mops    []check.Mop
	modes   []lock.Mode
	where   []int // service of each mop
	now     []bool
	whole   []bool // the operation locks its whole service, in all its partitions
	step    int
	results [][]byte
	tries   int
	salt    int
}

// maxTries of one request; then its outcome is unknown to the client.
const maxTries = 40

func (u *user) next() {
	w := u.w
	if w.budget <= 0 {
		return
	}
	w.budget--
	u.retryOf = txnid.ID{}
	u.begin(nil)
}

// begin begins a transaction: the same work as one that was aborted, or new work.
func (u *user) begin(again []check.Mop) {
	w := u.w
	u.busy = true
	u.id = w.newID(u.retryOf)
	u.mops, u.modes, u.where, u.now, u.whole = nil, nil, nil, nil, nil
	n := len(again)
	if again == nil {
		n = 1 + w.rng.IntN(4)
	}
	for i := range n {
		var m check.Mop
		if again != nil {
			m = again[i]
		} else {
			m = check.Mop{Append: w.rng.IntN(2) == 0, Key: fmt.Sprintf("s%d/k%d", w.rng.IntN(w.opt.Services), w.rng.IntN(w.opt.Keys))}
		}
		m.List = nil
		mode := lock.S
		if m.Append {
			w.values++
			m.Value, mode = w.values, lock.X
		} else if w.rng.IntN(3) == 0 {
			mode = lock.U
		}
		whole := w.rng.IntN(15) == 0
		if whole && mode == lock.U { // with a key to write below it that becomes SIX, which others may read under
			mode = lock.S
		}
		u.mops = append(u.mops, m)
		u.modes = append(u.modes, mode)
		u.whole = append(u.whole, whole)
		u.where = append(u.where, int(m.Key[1]-'0'))
		u.now = append(u.now, !m.Append || w.rng.IntN(2) == 0)
	}
	for i := range u.mops { // what runs with prepare runs after the rest: not where it would be seen
		for j := i + 1; j < n; j++ {
			u.now[i] = u.now[i] || u.mops[j].Key == u.mops[i].Key
		}
	}
	u.step, u.results, u.tries = 0, make([][]byte, n), 0
	w.history.BeginAs(u.process, u.id.String(), u.mops)
	if w.rng.IntN(3) == 0 {
		u.submit()
		return
	}
	u.open()
}

// touchAll reads every list in one transaction, or appends to every one.
func (u *user) touchAll(appends bool) {
	var mops []check.Mop
	for s := range u.w.opt.Services {
		for k := range u.w.opt.Keys {
			mops = append(mops, check.Mop{Append: appends, Key: fmt.Sprintf("s%d/k%d", s, k)})
		}
	}
	u.begin(mops)
}

// key is what the user locks for an operation.
func (u *user) key(i int) string {
	if u.w.opt.LocksOff {
		u.salt++
		return u.mops[i].Key + "/" + strconv.Itoa(u.process) + "-" + strconv.Itoa(u.salt)
	}
	if u.whole[i] {
		u.w.report.Whole++
		return lock.Service(u.mops[i].Key)
	}
	return u.mops[i].Key
}

func (u *user) payload(i int) []byte {
	m := &u.mops[i]
	return fmt.Appendf(nil, `{"append":%t,"key":%q,"value":%d}`, m.Append, m.Key, m.Value)
}

// acquire records that a lock is asked for, whatever is locked instead.
func (u *user) acquire(i int) (granted func()) {
	mode := map[lock.Mode]linear.Mode{lock.S: linear.Shared, lock.U: linear.Update, lock.X: linear.Exclusive}[u.modes[i]]
	return u.w.locks.Acquire(u.id.String(), u.mops[i].Key, mode)
}

func (u *user) service(i int) string { return u.w.parts[u.where[i]].name }

// again asks once more, or gives up not knowing.
func (u *user) again(ask func()) {
	if u.tries++; u.tries > maxTries {
		u.end(check.Unknown)
		return
	}
	u.w.At(1_000+u.w.UpTo(50_000), ask)
}

// ---- as a whole

func (u *user) submit() {
	b := &txn.Begin{ID: u.id, Digest: [32]byte{1}, TimeoutMs: 2_000}
	var needs []lock.Need
	var granted []func()
	at := map[string]int{}
	u.w.locks.End(u.id.String()) // first: it may end as soon as it has them
	for i := range u.mops {
		name := u.service(i)
		if _, ok := at[name]; !ok {
			at[name] = len(b.Branches)
			b.Branches = append(b.Branches, txn.BeginBranch{Service: name})
		}
		b.Branches[at[name]].Ops = append(b.Branches[at[name]].Ops, u.payload(i))
		needs = append(needs, lock.Need{Key: u.key(i), Mode: u.modes[i]})
		granted = append(granted, u.acquire(i))
	}
	var ask func()
	ask = func() {
		by := map[string]registration{}
		for i := range b.Branches {
			v := &b.Branches[i]
			by[v.Service] = u.w.registration(v.Service)
			v.Generation = by[v.Service].generation
		}
		b.Locks, b.Foreign = u.w.split(u.id, needs, by)
		begin := txn.AppendBegin(nil, b)
		u.w.cluster.Ask(u.id, func(t shard.Token) shard.Event {
			return &shard.Submit{Token: t, ID: u.id, Digest: b.Digest, Begin: begin, Locks: b.Locks, Wait: shard.WaitCompleted}
		}, func(r *shard.Reply) {
			switch {
			case r == nil || r.View == nil || r.Err != nil || !r.View.Txn.Status.Ended():
				u.again(ask)
			case r.View.Txn.Abort != nil:
				u.aborted(r.View)
			default:
				for _, yes := range granted {
					yes()
				}
				u.w.locks.Ended(u.id.String(), true)
				// Results are best effort: without them the reads are not known.
				taken := map[int]int{}
				for i := range u.mops {
					br := at[u.service(i)]
					results := r.View.Branches[br].Results
					if len(results) <= taken[br] {
						u.end(check.Unknown)
						return
					}
					u.results[i] = results[taken[br]]
					taken[br]++
				}
				u.committed()
			}
		})
	}
	ask()
}

// ---- step by step

func (u *user) open() {
	open := txn.AppendOpen(nil, &txn.Open{ID: u.id, Digest: [32]byte{2}, TimeoutMs: 20_000, IdleMs: 3_000, RetryOf: u.retryOf})
	var ask func()
	ask = func() {
		u.w.cluster.Ask(u.id, func(t shard.Token) shard.Event {
			return &shard.Submit{Token: t, ID: u.id, Digest: [32]byte{2}, Begin: open, Wait: shard.WaitNone}
		}, func(r *shard.Reply) {
			switch {
			case r == nil || r.Err != nil:
				u.again(ask)
			case r.View.Txn.Status.Decided():
				u.decided(r.View)
			default:
				u.tries = 0
				u.take()
			}
		})
	}
	ask()
}

// take takes the next step: one to three operations.
func (u *user) take() {
	w := u.w
	if u.step >= len(u.mops) {
		u.seal()
		return
	}
	if w.Chance(w.opt.SilentPct) { // this client dies
		u.end(check.Unknown)
		return
	}
	first := u.step
	n := 1 + w.rng.IntN(min(3, len(u.mops)-first))
	u.step += n
	if w.registrar != nil && w.rng.IntN(2) == 0 { // the locks first, in a step of their own
		u.enlist(first, n, true, func(*shard.View) { w.At(w.UpTo(50_000), func() { u.operate(first, n) }) })
		return
	}
	u.operate(first, n)
}

func (u *user) operate(first, n int) {
	w := u.w
	u.enlist(first, n, false, func(v *shard.View) {
		for i, result := range v.StepResults {
			if u.now[first+i] != (result != nil) {
				w.Fail("step %d of %s: results %s", first+1, u.id, v.StepResults)
			}
			u.results[first+i] = result
			if result != nil {
				w.parts[u.where[first+i]].told[u.id] = true
			}
		}
		w.At(w.UpTo(5_000), u.take)
	})
}

// locksFirst is added to the number of a step that has only the locks of another.
const locksFirst = 1000

// enlist takes one step, until it has its locks.
func (u *user) enlist(first, n int, locksOnly bool, granted func(*shard.View)) {
	w := u.w
	c := &txn.Enlist{ID: u.id, Step: uint32(first + 1), Digest: [32]byte{3, byte(first)}}
	var needs []lock.Need
	var told []func()
	at := map[string]uint32{}
	var services []string
	for i := first; i < first+n; i++ {
		name := u.service(i)
		if _, ok := at[name]; !ok {
			at[name] = uint32(len(services))
			services = append(services, name)
			c.Branches = append(c.Branches, txn.EnlistBranch{Service: name})
		}
		c.Ops = append(c.Ops, txn.EnlistOp{Branch: at[name], Now: u.now[i], Payload: u.payload(i)})
		needs = append(needs, lock.Need{Key: u.key(i), Mode: u.modes[i]})
		told = append(told, u.acquire(i))
	}
	if locksOnly {
		c.Step += locksFirst
		c.Digest[0]++
		c.Branches, c.Ops = nil, nil
	}
	var ask func()
	ask = func() {
		by := map[string]registration{}
		var of []shard.Registration
		for i, name := range services {
			by[name] = w.registration(name)
			if locksOnly {
				of = append(of, shard.Registration{Service: name, Generation: by[name].generation})
			} else {
				c.Branches[i].Generation = by[name].generation
			}
		}
		c.Locks, c.Foreign = w.split(u.id, needs, by)
		enlist := txn.AppendEnlist(nil, c)
		w.cluster.Ask(u.id, func(t shard.Token) shard.Event {
			return &shard.Enlist{Token: t, ID: u.id, Step: c.Step, Digest: c.Digest, Enlist: enlist, Locks: c.Locks, LocksOf: of}
		}, func(r *shard.Reply) {
			switch {
			case r == nil:
				u.again(ask)
			case r.Err != nil && r.Err.Code == reason.NotFound:
				w.Fail("step of %s: %v", u.id, r.Err)
			case r.Err != nil && (r.Err.Code == reason.ServiceDraining || r.Err.Code == reason.UnknownService) && u.tries > movedTries:
				u.rollback() // what it holds may be what the removal waits for
			case r.Err != nil:
				u.again(ask)
			case r.View.Txn.Status.Decided():
				u.decided(r.View)
			default:
				for _, yes := range told {
					yes()
				}
				u.tries = 0
				granted(r.View)
			}
		})
	}
	ask()
}

// movedTries of a step at a service that is being removed, or was a moment ago.
const movedTries = 5

// rollback ends the transaction; the same work is tried again.
func (u *user) rollback() {
	var ask func()
	ask = func() {
		u.w.cluster.Ask(u.id, func(t shard.Token) shard.Event { return &shard.Rollback{Token: t, ID: u.id} }, func(r *shard.Reply) {
			switch {
			case r == nil || r.Err != nil:
				u.again(ask)
			case !r.View.Txn.Status.Decided():
				u.w.Fail("rollback of %s is answered with %s", u.id, r.View.Txn.Status)
			default:
				u.decided(r.View)
			}
		})
	}
	ask()
}

func (u *user) seal() {
	u.w.locks.End(u.id.String())
	var ask func()
	ask = func() {
		u.w.cluster.Ask(u.id, func(t shard.Token) shard.Event { return &shard.Seal{Token: t, ID: u.id, Wait: shard.WaitDecided} }, func(r *shard.Reply) {
			switch {
			case r == nil || r.Err != nil:
				u.again(ask)
			case !r.View.Txn.Status.Decided():
				u.w.Fail("commit of %s is answered with %s", u.id, r.View.Txn.Status)
			default:
				u.decided(r.View)
			}
		})
	}
	ask()
}

func (u *user) decided(v *shard.View) {
	if v.Txn.Abort != nil {
		u.aborted(v)
		return
	}
	u.w.locks.Ended(u.id.String(), true)
	u.committed()
}

// aborted tries the same work again where that can help, and keeps its age.
func (u *user) aborted(v *shard.View) {
	u.w.history.End(u.process, check.Aborted, nil)
	u.w.locks.Ended(u.id.String(), false)
	switch v.Txn.Abort.Reason {
	case reason.Deadlock, reason.Wounded, reason.LockTimeout, reason.TooManyWaiters, reason.ExecutionLost, reason.VotedNo, reason.ClientRollback:
		if v.Txn.Interactive {
			u.retryOf = u.id
		}
		mops := u.mops
		u.w.At(u.w.UpTo(20_000), func() { u.begin(mops) })
		return
	}
	u.rest()
}

// committed records what was read. Appends that ran with prepare have no result.
func (u *user) committed() {
	for i := range u.mops {
		m := &u.mops[i]
		if m.Append {
			continue
		}
		if err := json.Unmarshal(u.results[i], &m.List); err != nil {
			u.w.Fail("read of %s by %s: %s", m.Key, u.id, u.results[i])
		}
	}
	u.end(check.Committed)
}

func (u *user) end(outcome check.Status) {
	u.w.history.End(u.process, outcome, u.mops)
	if outcome == check.Unknown {
		u.process += 1000 // who does not know what became of his work is somebody new
	}
	u.rest()
}

func (u *user) rest() {
	u.busy = false
	u.w.At(u.w.UpTo(10_000), u.next)
}
