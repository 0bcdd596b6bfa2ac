// Package placement decides what a cluster should do next, so that every shard has its
// voters on nodes that stay, replicas and leaders are spread evenly, and little moves.
//
//	view (who is there, where replicas are, what is wanted) -> Next -> steps
//	steps are executed, in any order, or fail -> a new view -> Next -> ... -> no steps: settled
//
// A step is one change of one shard, and there is at most one for each shard. Whatever
// becomes of it, the next view shows: nothing is remembered between two calls, so the
// node that executes the steps may die at any point and another goes on.
//
// Why not the obvious way:
//   - A target computed anew from nothing (a hash ring, round robin) moves much when little
//     has changed. What is wanted is recorded, and only what is wrong with it changes.
//   - Removing first and adding then is one step less, and a shard with a voter less
//     meanwhile. Voters are added first, as learners that catch up, and removed after.
//   - Leaders that are even between any two nodes that share a shard need not be even: four
//     nodes in a row may lead 4, 3, 2, 1. A shard is handed down such a row as a whole.
//   - Two voters need both to be up, as one needs one: a shard grows from one to three.
//   - A node that is down is not replaced: it comes back, most of the time. An operator, or
//     who acts for one, says that it is gone.
package placement

import (
	"cmp"
	"slices"
)

// Member is a node.
type Member struct {
	ID       string
	Up       bool // heard lately
	Draining bool // leads nothing, and gets nothing new; keeps its replicas
	Gone     bool // is to hold nothing: removed by an operator
}

// Shard is where a shard is now, and where it is to be.
type Shard struct {
	ID       uint32
	Voters   []string // in order, as all lists here
	Learners []string // receive the log and have no vote
	CaughtUp []string // of both: have nearly everything
	Leader   string   // empty: not known
	Want     []string // voters that are wanted, as recorded; nil: nothing is
}

// View is a cluster at one moment.
type View struct {
	Members  []Member
	Shards   []Shard
	Replicas int    // voters of a shard, odd
	Registry uint32 // every member that does not vote in this shard follows it
}

// Step is one of the types below, and no other.
type Step interface{ step() }

// Place records which voters are wanted.
type Place struct {
	Shard  uint32
	Voters []string
}

// AddLearner takes in a replica that catches up.
type AddLearner struct {
	Shard  uint32
	Member string
}

// Promote gives a learner its vote.
type Promote struct {
	Shard  uint32
	Member string
}

// Remove takes a replica out.
type Remove struct {
	Shard  uint32
	Member string
}

// Transfer asks a voter to lead.
type Transfer struct {
	Shard uint32
	To    string
}

func (Place) step()      {}
func (AddLearner) step() {}
func (Promote) step()    {}
func (Remove) step()     {}
func (Transfer) step()   {}

// plan is the work of one call.
type plan struct {
	v       View
	members map[string]Member
	wanted  map[string]int // shards in which a member is wanted
	leading map[string]int // shards that a member leads
	steps   []Step
}

// Next returns what to do now; nothing if the cluster is settled, or has to wait for
// somebody. Members and shards come in order of ids.
func Next(v View) []Step {
	p := &plan{v: v, members: map[string]Member{}, wanted: map[string]int{}, leading: map[string]int{}}
	for _, m := range v.Members {
		p.members[m.ID] = m
	}
	busy := map[uint32]bool{} // has its step
	for i := range v.Shards {
		s := &v.Shards[i]
		for _, id := range s.wants() {
			p.wanted[id]++
		}
		if s.Leader != "" {
			p.leading[s.Leader]++
		}
	}
	settled := true
	for i := range v.Shards {
		s := &v.Shards[i]
		if want := p.repair(s); s.Want == nil || !slices.Equal(want, s.Want) {
			p.add(Place{s.ID, want})
			busy[s.ID], settled = true, false
			continue
		}
		if step := p.converge(s); step != nil {
			p.add(step)
			busy[s.ID], settled = true, false
		} else if !slices.Equal(s.Voters, s.Want) {
			busy[s.ID] = true
			// It waits. For who is down that may be long, and the others need not wait for it.
			settled = settled && len(s.Voters) <= len(s.Want) &&
				!slices.ContainsFunc(without(s.Want, s.Voters), func(id string) bool { return p.members[id].Up })
		}
	}
	if settled {
		p.spread(busy)
	}
	p.lead(busy)
	return p.steps
}

func (p *plan) add(s Step) { p.steps = append(p.steps, s) }

func (s *Shard) wants() []string {
	if s.Want == nil {
		return s.Voters
	}
	return s.Want
}

// size is the number of voters that a shard is to have.
func (p *plan) size(now int) int {
	staying := 0
	for _, m := range p.v.Members {
		if !m.Gone {
			staying++
		}
	}
	switch {
	case staying >= p.v.Replicas:
		return p.v.Replicas
	case staying%2 == 1:
		return staying
	}
	// An even number of voters survives no more failures than one less, but one voter
	// less is one copy less: of what a shard has, nothing is given up.
	return max(1, min(max(now, staying-1), staying))
}

// repair is what a shard should want: what it wants, without who is gone, in the right
// number.
func (p *plan) repair(s *Shard) []string {
	now := s.wants()
	size := p.size(len(now))
	want := slices.DeleteFunc(slices.Clone(now), func(id string) bool {
		m, ok := p.members[id]
		return !ok || m.Gone
	})
	for len(want) > size { // the fullest member first; of those that lead, the last
		i := p.pick(want, func(a, b string) int {
			return cmp.Or(compareBool(a == s.Leader, b == s.Leader), -cmp.Compare(p.wanted[a], p.wanted[b]))
		})
		p.wanted[want[i]]--
		want = slices.Delete(want, i, i+1)
	}
	for len(want) < size {
		id := p.emptiest(func(id string) bool { return !slices.Contains(want, id) }, s)
		if id == "" {
			break // nobody that could take it is up
		}
		p.wanted[id]++
		want = append(want, id)
	}
	if n := len(want); n > len(now) && n < size && n%2 == 0 { // a majority of two is both: wait for the third
		p.wanted[want[n-1]]--
		want = want[:n-1]
	}
	slices.Sort(want)
	if len(want) == 0 || len(want) < len(now) && len(want) < size {
		return now // rather who is gone than nobody
	}
	return want
}

// emptiest is the member that may get something new and has least; of equals one that
// has a replica of the shard already.
func (p *plan) emptiest(ok func(string) bool, s *Shard) string {
	var free []string
	for _, m := range p.v.Members {
		if m.Up && !m.Draining && !m.Gone && ok(m.ID) {
			free = append(free, m.ID)
		}
	}
	if len(free) == 0 {
		return ""
	}
	has := func(id string) bool { return slices.Contains(s.Voters, id) }
	return free[p.pick(free, func(a, b string) int {
		return cmp.Or(cmp.Compare(p.wanted[a], p.wanted[b]), -compareBool(has(a), has(b)))
	})]
}

// pick is the index of the first least one.
func (p *plan) pick(list []string, compare func(a, b string) int) int {
	best := 0
	for i := range list {
		if compare(list[i], list[best]) < 0 {
			best = i
		}
	}
	return best
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// converge is the next step from where a shard is to what it wants; nil: none is needed,
// or it has to wait.
func (p *plan) converge(s *Shard) Step {
	if s.Leader == "" {
		return nil
	}
	missing, extra := without(s.Want, s.Voters), without(s.Voters, s.Want)
	if len(s.Voters) > len(s.Want) { // what is wanted has changed on the way: one out before the next comes in
		if step := p.shrink(s, extra); step != nil {
			return step
		}
	}
	for _, id := range missing {
		switch {
		case !p.members[id].Up:
		case !slices.Contains(s.Learners, id):
			return AddLearner{s.ID, id}
		case slices.Contains(s.CaughtUp, id) && p.survives(append(slices.Clone(s.Voters), id)):
			return Promote{s.ID, id}
		}
	}
	if s.ID == p.v.Registry { // whoever waits, the others can follow
		for _, m := range p.v.Members {
			if m.Up && !m.Gone && !slices.Contains(s.Voters, m.ID) && !slices.Contains(s.Learners, m.ID) {
				return AddLearner{s.ID, m.ID}
			}
		}
	}
	if len(missing) == 0 && len(extra) > 0 {
		return p.shrink(s, extra)
	}
	for _, id := range s.Learners {
		if m, ok := p.members[id]; !ok || m.Gone || s.ID != p.v.Registry && !slices.Contains(s.Want, id) {
			return Remove{s.ID, id}
		}
	}
	return nil
}

// shrink removes a voter too many: one that is down first, the leader last, after another
// has taken over.
func (p *plan) shrink(s *Shard, extra []string) Step {
	id := extra[p.pick(extra, func(a, b string) int {
		return cmp.Or(compareBool(a == s.Leader, b == s.Leader), compareBool(p.members[a].Up, p.members[b].Up))
	})]
	if id == s.Leader {
		if to := p.successor(s); to != "" {
			p.leading[to]++
			p.leading[s.Leader]--
			return Transfer{s.ID, to}
		}
		return nil
	}
	if !p.survives(without(s.Voters, []string{id})) {
		return nil
	}
	return Remove{s.ID, id}
}

// survives reports whether a majority of voters is up.
func (p *plan) survives(voters []string) bool {
	up := 0
	for _, id := range voters {
		if p.members[id].Up {
			up++
		}
	}
	return 2*up > len(voters)
}

// successors are the wanted voters that could take a shard over.
func (p *plan) successors(s *Shard) (able []string) {
	for _, id := range s.Voters {
		if m := p.members[id]; id != s.Leader && m.Up && !m.Draining && !m.Gone && slices.Contains(s.Want, id) && slices.Contains(s.CaughtUp, id) {
			able = append(able, id)
		}
	}
	return able
}

// successor is the one of them that leads least.
func (p *plan) successor(s *Shard) string {
	able := p.successors(s)
	if len(able) == 0 {
		return ""
	}
	return able[p.pick(able, func(a, b string) int { return cmp.Compare(p.leading[a], p.leading[b]) })]
}

// spread moves shards from the fullest members to the emptiest, until they differ by no
// more than one.
func (p *plan) spread(busy map[uint32]bool) {
	for range p.v.Shards {
		var able []string
		for _, m := range p.v.Members {
			if m.Up && !m.Draining && !m.Gone {
				able = append(able, m.ID)
			}
		}
		if len(able) < 2 {
			return
		}
		least := able[p.pick(able, func(a, b string) int { return cmp.Compare(p.wanted[a], p.wanted[b]) })]
		if !p.move(busy, able, least) {
			return
		}
	}
}

// move gives a member something of another that has at least two more.
func (p *plan) move(busy map[uint32]bool, able []string, to string) bool {
	slices.SortStableFunc(able, func(a, b string) int { return -cmp.Compare(p.wanted[a], p.wanted[b]) })
	for _, from := range able {
		if p.wanted[from] < p.wanted[to]+2 {
			return false
		}
		var give *Shard // one that the other does not lead, if there is one
		for i := range p.v.Shards {
			s := &p.v.Shards[i]
			if busy[s.ID] || !slices.Contains(s.Want, from) || slices.Contains(s.Want, to) {
				continue
			}
			if give == nil || give.Leader == from && s.Leader != from {
				give = s
			}
		}
		if give == nil {
			continue
		}
		want := append(without(give.Want, []string{from}), to)
		slices.Sort(want)
		p.wanted[from]--
		p.wanted[to]++
		busy[give.ID] = true
		p.add(Place{give.ID, want})
		return true
	}
	return false
}

// lead moves leaders off members that are not to lead, and then from those that lead most
// to those that lead least.
func (p *plan) lead(busy map[uint32]bool) {
	for i := range p.v.Shards {
		s := &p.v.Shards[i]
		if m := p.members[s.Leader]; !busy[s.ID] && s.Leader != "" && (m.Draining || m.Gone) {
			if to := p.successor(s); to != "" {
				p.transfer(busy, s, to)
			}
		}
	}
	for range p.v.Shards {
		hops := p.relieve(busy)
		if hops == nil {
			return
		}
		for _, h := range hops {
			p.transfer(busy, h.shard, h.to)
		}
	}
}

func (p *plan) transfer(busy map[uint32]bool, s *Shard, to string) {
	p.leading[to]++
	p.leading[s.Leader]--
	busy[s.ID] = true
	p.add(Transfer{s.ID, to})
}

// hop is a leader's move.
type hop struct {
	shard *Shard
	to    string
}

// relieve finds the moves that take a shard from a member to one that leads at least two
// fewer. They need not have a shard in common: one hands over to another, that one another
// shard to the next. Without such chains every pair can be even and the whole be not.
func (p *plan) relieve(busy map[uint32]bool) []hop {
	var from []string
	for _, m := range p.v.Members {
		if m.Up && !m.Draining && !m.Gone {
			from = append(from, m.ID)
		}
	}
	slices.SortStableFunc(from, func(a, b string) int { return -cmp.Compare(p.leading[a], p.leading[b]) })
	for _, id := range from {
		if p.leading[id] < p.leading[from[len(from)-1]]+2 {
			break
		}
		if hops := p.chain(busy, id); hops != nil {
			return hops
		}
	}
	return nil
}

// chain is the shortest of them from one member.
func (p *plan) chain(busy map[uint32]bool, from string) []hop {
	came := map[string]hop{from: {}}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		for i := range p.v.Shards {
			s := &p.v.Shards[i]
			if busy[s.ID] || s.Leader != at {
				continue
			}
			for _, to := range p.successors(s) {
				if _, seen := came[to]; seen {
					continue
				}
				came[to] = hop{s, to}
				if p.leading[to]+2 > p.leading[from] {
					queue = append(queue, to)
					continue
				}
				var hops []hop
				for h := came[to]; h.shard != nil; h = came[h.shard.Leader] {
					hops = append(hops, h)
				}
				return hops
			}
		}
	}
	return nil
}

// without is a without what is in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(id string) bool { return slices.Contains(b, id) })
}
