package lock

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/assent-tx/assent/internal/txnid"
)

// matrix is the textbook's, on purpose not the package's tables: a row asks, a
// column holds.
const matrix = `
    IS IX S  SIX X  U
IS  y  y  y  y   n  y
IX  y  y  n  n   n  n
S   y  n  y  n   n  n
SIX y  n  n  n   n  n
X   n  n  n  n   n  n
U   y  n  y  n   n  n`

var together = func() (ok [modes][modes]bool) {
	for i, line := range strings.Split(strings.TrimSpace(matrix), "\n")[1:] {
		for j, cell := range strings.Fields(line)[1:] {
			ok[i][j] = cell == "y"
		}
	}
	return ok
}()

// model is the naive lock table: plain lists, and everything evaluated again
// from the first node and the first waiter after each step.
type model struct {
	holders map[string][]*modelSlot
	queues  map[string][]*modelSlot
	claims  map[txnid.ID]*modelClaim
	wound   bool
}

type modelClaim struct {
	owner txnid.ID
	at    uint64
	set   []Need
	next  int
	steps int  // extensions
	wants Mode // what it waits for
}

type modelSlot struct {
	c         *modelClaim
	mode      Mode
	overtaken int
	converts  bool
}

func newModel() *model {
	return &model{holders: map[string][]*modelSlot{}, queues: map[string][]*modelSlot{}, claims: map[txnid.ID]*modelClaim{}}
}

func (a *modelClaim) elder(b *modelClaim) bool {
	return a.at < b.at || a.at == b.at && a.owner.Less(b.owner)
}

func (m *model) keys() []string {
	all := map[string]bool{}
	for k := range m.holders {
		all[k] = true
	}
	for k := range m.queues {
		all[k] = true
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(all)), func(k string) bool {
		return len(m.holders[k])+len(m.queues[k]) == 0
	})
}

func (m *model) inTheWay(c *modelClaim, key string, mode Mode, ahead []*modelSlot) (ids []txnid.ID) {
	for _, s := range m.holders[key] {
		if s.c != c && !together[mode][s.mode] {
			ids = append(ids, s.c.owner)
		}
	}
	for _, s := range ahead {
		if !together[mode][s.mode] || !together[s.mode][mode] {
			ids = append(ids, s.c.owner)
		}
	}
	return ids
}

// lacks is what a claim that has grown must still ask for, seen from all holders.
func (m *model) lacks(c *modelClaim, need Need) (mode Mode, converts, needed bool) {
	cover := IS
	mode = need.Mode
	own := -1
	for key, holders := range m.holders {
		for _, s := range holders {
			switch {
			case s.c != c:
			case key == need.Key:
				own = int(s.mode)
			case strings.HasPrefix(need.Key, key+"/"):
				cover = Join(cover, s.mode)
			}
		}
	}
	if mode, needed = mode.below(cover); !needed {
		return 0, false, false
	}
	if own < 0 {
		return mode, false, true
	}
	mode = Join(Mode(own), mode)
	return mode, true, mode != Mode(own)
}

func (m *model) run(c *modelClaim) {
	for ; c.next < len(c.set); c.next++ {
		need, converts := c.set[c.next], false
		if c.steps > 0 {
			var needed bool
			if need.Mode, converts, needed = m.lacks(c, need); !needed {
				continue
			}
		}
		q := m.queues[need.Key]
		at := 0
		if converts {
			for at < len(q) && q[at].converts && !c.elder(q[at].c) {
				at++
			}
		} else {
			free := func(w Mode) bool { return together[need.Mode][w] && together[w][need.Mode] }
			for at = len(q); at > 0 && !q[at-1].converts && c.elder(q[at-1].c) && (m.wound || free(q[at-1].mode) || q[at-1].overtaken < 8); {
				at--
				if !m.wound && !free(q[at].mode) {
					q[at].overtaken++
				}
			}
		}
		s := &modelSlot{c: c, mode: need.Mode, converts: converts}
		if len(m.inTheWay(c, need.Key, need.Mode, q[:at])) > 0 {
			c.wants = need.Mode
			m.queues[need.Key] = slices.Insert(q, at, s)
			return
		}
		m.grant(need.Key, s)
	}
}

func (m *model) grant(key string, s *modelSlot) {
	if s.converts {
		m.holders[key] = slices.DeleteFunc(slices.Clone(m.holders[key]), func(o *modelSlot) bool { return o.c == s.c })
		s.converts = false
	}
	m.holders[key] = append(m.holders[key], s)
}

func (m *model) settle() (woken []txnid.ID) {
	for m.grantOne(&woken) {
	}
	return woken
}

func (m *model) grantOne(woken *[]txnid.ID) bool {
	for _, key := range m.keys() {
		for i, s := range m.queues[key] {
			if len(m.inTheWay(s.c, key, s.mode, m.queues[key][:i])) > 0 {
				continue
			}
			m.queues[key] = slices.Delete(slices.Clone(m.queues[key]), i, i+1)
			s.overtaken = 0
			m.grant(key, s)
			s.c.next++
			m.run(s.c)
			if s.c.next == len(s.c.set) {
				*woken = append(*woken, s.c.owner)
			}
			return true
		}
	}
	return false
}

func (m *model) claim(owner txnid.ID, at uint64, set []Need) bool {
	if len(set) == 0 {
		return true
	}
	c := &modelClaim{owner: owner, at: at, set: set}
	m.claims[owner] = c
	m.run(c)
	return c.next == len(set)
}

func (m *model) extend(owner txnid.ID, at uint64, set []Need) bool {
	c := m.claims[owner]
	if c == nil {
		return m.claim(owner, at, set)
	}
	c.set = append(c.set[:c.next:c.next], set...)
	c.steps++
	m.run(c)
	return c.next == len(c.set)
}

func (m *model) abandon(owner txnid.ID) []txnid.ID {
	c := m.claims[owner]
	for key, q := range m.queues {
		m.queues[key] = slices.DeleteFunc(slices.Clone(q), func(s *modelSlot) bool { return s.c == c })
	}
	c.set = c.set[:c.next]
	return m.settle()
}

func (m *model) leave(owner txnid.ID, gone func(key string) bool) []txnid.ID {
	for _, lists := range []map[string][]*modelSlot{m.holders, m.queues} {
		for key := range lists {
			if gone(key) {
				lists[key] = slices.DeleteFunc(slices.Clone(lists[key]), func(s *modelSlot) bool { return s.c.owner == owner })
			}
		}
	}
	return m.settle()
}

func (m *model) release(owner txnid.ID, service string) []txnid.ID {
	return m.leave(owner, func(key string) bool { return key == service || strings.HasPrefix(key, service+"/") })
}

func (m *model) drop(owner txnid.ID) []txnid.ID {
	delete(m.claims, owner)
	return m.leave(owner, func(string) bool { return true })
}

// String prints as Table.String does.
func (m *model) String() string {
	var b strings.Builder
	for _, key := range m.keys() {
		fmt.Fprintln(&b, key)
		for _, s := range m.holders[key] {
			fmt.Fprintf(&b, "  held    %-3s %s of %d ms\n", s.mode, s.c.owner, s.c.at)
		}
		for _, s := range m.queues[key] {
			fmt.Fprintf(&b, "  waiting %-3s %s of %d ms", s.mode, s.c.owner, s.c.at)
			if s.overtaken > 0 {
				fmt.Fprintf(&b, ", overtaken %d times", s.overtaken)
			}
			fmt.Fprintln(&b)
		}
	}
	return b.String()
}

// compare asks table and model everything that can be asked.
func (m *model) compare(t *rapid.T, table *Table) {
	if err := table.Check(); err != nil {
		t.Fatalf("Check: %v\n%s", err, table)
	}
	if got, want := table.String(), m.String(); got != want {
		t.Fatalf("the table is\n%s\nthe model\n%s", got, want)
	}
	waiters := 0
	for _, owner := range slices.SortedFunc(maps.Keys(m.claims), compareID) {
		c := m.claims[owner]
		granted := c.next == len(c.set)
		if table.Granted(owner) != granted || !table.Has(owner) {
			t.Fatalf("%s: Granted %v, Has %v, model %v", owner, table.Granted(owner), table.Has(owner), granted)
		}
		need, blockers, waits := table.Waiting(owner, 1<<30)
		if waits == granted {
			t.Fatalf("%s: waits %v, granted %v", owner, waits, granted)
		}
		if !granted {
			waiters++
			want := Need{Key: c.set[c.next].Key, Mode: c.wants}
			q := m.queues[want.Key]
			place := slices.IndexFunc(q, func(s *modelSlot) bool { return s.c == c })
			ids := m.inTheWay(c, want.Key, want.Mode, q[:place])
			if need != want || !slices.Equal(blockers, ids) {
				t.Fatalf("%s waits for %v because of %v; model: %v, %v", owner, need, blockers, want, ids)
			}
			if _, some, _ := table.Waiting(owner, 2); !slices.Equal(some, ids[:min(2, len(ids))]) {
				t.Fatalf("%s: the first two in the way are %v, want the start of %v", owner, some, ids)
			}
		}
		for _, service := range []string{"a", "a-b", "c", "none"} {
			want := false
			for key, holders := range m.holders {
				if Service(key) == service && len(m.queues[key]) > 0 {
					want = want || slices.ContainsFunc(holders, func(s *modelSlot) bool { return s.c == c })
				}
			}
			if got := table.Contended(owner, service); got != want {
				t.Fatalf("Contended(%s, %s) = %v\n%s", owner, service, got, table)
			}
		}
	}
	if table.Nodes() != len(m.keys()) || table.Len() != len(m.claims) || table.Waiters() != waiters {
		t.Fatalf("counts %d nodes, %d claims, %d waiters; model %d, %d, %d",
			table.Nodes(), table.Len(), table.Waiters(), len(m.keys()), len(m.claims), waiters)
	}
}

// settleCycles makes the youngest of each cycle give way, in one of the two ways, in
// table and model; afterwards there is no cycle.
func (m *model) settleCycles(t *rapid.T, table *Table, o *overtaking) (found int) {
	for cycle := table.NextCycle(); cycle != nil; cycle = table.NextCycle() {
		found++
		youngest := m.claims[cycle[0].Owner]
		for i, w := range cycle {
			need, behind, ok := table.Waiting(w.Owner, 1<<30)
			if !ok || need.Key != w.Key || need.Mode != w.Mode || !slices.Contains(behind, w.For) || w.For != cycle[(i+1)%len(cycle)].Owner {
				t.Fatalf("%v is no cycle of\n%s", cycle, table)
			}
			if c := m.claims[w.Owner]; youngest.elder(c) {
				youngest = c
			}
		}
		victim := table.Victim(cycle)
		if victim != youngest.owner {
			t.Fatalf("the victim of %v is %s, the youngest %s", cycle, victim, youngest.owner)
		}
		if youngest.steps > 0 {
			o.abandons(table, victim)
			if got, want := table.Abandon(victim, nil), m.abandon(victim); !slices.Equal(got, want) {
				t.Fatalf("%s gave up, which woke %v, in the model %v", victim, got, want)
			}
		} else {
			o.leaves(victim)
			set := youngest.set
			granted, got := table.Restart(victim, nil)
			want := m.drop(victim)
			if again := m.claim(victim, youngest.at, set); again != granted || !slices.Equal(got, want) {
				t.Fatalf("%s restarted: granted %v, woke %v; in the model %v, %v", victim, granted, got, again, want)
			}
		}
		if found > 1000 {
			t.Fatalf("cycles without end\n%s", table)
		}
		m.compare(t, table)
	}
	noCycle(t, table)
	return found
}

// settleWounds makes those give way who may, until no elder waits for one of them.
func (m *model) settleWounds(t *rapid.T, table *Table, o *overtaking, may func(txnid.ID) bool, aborted func(txnid.ID)) (found, cycles int) {
	pairs := map[[2]txnid.ID]bool{}
	for {
		cycles += m.settleCycles(t, table, o)
		w, ok := table.NextWound(may)
		if !ok {
			if len(table.looks) > 0 {
				t.Fatalf("%d looks are left", len(table.looks))
			}
			break
		}
		found++
		need, behind, waits := table.Waiting(w.Owner, 1<<30)
		elder, younger := m.claims[w.Owner], m.claims[w.For]
		if !waits || need.Key != w.Key || need.Mode != w.Mode || !slices.Contains(behind, w.For) || !elder.elder(younger) || !may(w.For) {
			t.Fatalf("%v is no wait of an elder in\n%s", w, table)
		}
		if younger.steps > 0 {
			o.abandons(table, w.For)
			aborted(w.For)
			var got, want []txnid.ID
			if !table.Granted(w.For) {
				got, want = table.Abandon(w.For, nil), m.abandon(w.For)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%s gave way, which woke %v, in the model %v", w.For, got, want)
			}
		} else {
			o.leaves(w.For)
			set := younger.set
			granted, got := table.Restart(w.For, nil)
			want := m.drop(w.For)
			if again := m.claim(w.For, younger.at, set); again != granted || !slices.Equal(got, want) {
				t.Fatalf("%s restarted: granted %v, woke %v; in the model %v, %v", w.For, granted, got, again, want)
			}
		}
		if pair := [2]txnid.ID{w.Owner, w.For}; pairs[pair] {
			t.Fatalf("%s was to give way to %s twice at once\n%s", w.For, w.Owner, table)
		} else {
			pairs[pair] = true
		}
		m.compare(t, table)
	}
	for _, c := range m.claims { // order does not matter: each is checked
		_, behind, _ := table.Waiting(c.owner, 1<<30)
		for _, b := range behind {
			if m.wound && c.elder(m.claims[b]) && may(b) {
				t.Fatalf("%s waits for %s, which is younger and may give way\n%s", c.owner, b, table)
			}
		}
	}
	return found, cycles
}

func compareID(a, b txnid.ID) int { return bytes.Compare(a[:], b[:]) }

// noCycle walks the whole wait-for graph.
func noCycle(t *rapid.T, table *Table) {
	const walking, done = 1, 2
	seen := map[txnid.ID]int{}
	var walk func(id txnid.ID)
	walk = func(id txnid.ID) {
		if seen[id] == walking {
			t.Fatalf("a cycle through %s\n%s", id, table)
		}
		if seen[id] == done {
			return
		}
		seen[id] = walking
		_, blockers, waits := table.Waiting(id, 1<<30)
		if waits && len(blockers) == 0 {
			t.Fatalf("%s waits for nobody\n%s", id, table)
		}
		for _, b := range blockers {
			walk(b)
		}
		seen[id] = done
	}
	for _, id := range table.sortedOwners() {
		walk(id)
	}
}

// overtaking watches, from outside, who is granted past whom.
type overtaking struct {
	step    int
	free    bool           // elders pass without bound
	arrival map[string]int // by node and owner: step of the first sight
	passed  map[string]int // by node and owner: incompatible grants past it
	held    map[string]bool
}

// leaves: an owner gives up its places.
func (o *overtaking) leaves(owner txnid.ID) {
	for _, m := range []map[string]int{o.arrival, o.passed} {
		maps.DeleteFunc(m, func(name string, _ int) bool { return strings.HasSuffix(name, owner.String()) })
	}
}

// abandons: an owner gives up the place that it waits at; elsewhere it stays.
func (o *overtaking) abandons(table *Table, owner txnid.ID) {
	if need, _, waits := table.Waiting(owner, 0); waits {
		name := need.Key + " " + owner.String()
		delete(o.arrival, name)
		delete(o.passed, name)
	}
}

func (o *overtaking) watch(t *rapid.T, table *Table) {
	o.step++
	for _, key := range table.sortedKeys() {
		n := table.nodes[key]
		name := func(s *slot) string { return key + " " + s.claim.owner.String() }
		arrive := func(s *slot) int {
			if o.arrival[name(s)] == 0 {
				o.arrival[name(s)] = o.step
			}
			return o.arrival[name(s)]
		}
		for w := n.queue.head; w != nil; w = w.next {
			arrive(w)
		}
		for h := n.holders.head; h != nil; h = h.next {
			if o.held[name(h)] {
				continue
			}
			o.held[name(h)] = true
			for w := n.queue.head; w != nil; w = w.next {
				if arrive(w) >= arrive(h) || together[w.mode][h.mode] {
					continue
				}
				if !h.claim.elder(w.claim) {
					t.Fatalf("%s was granted %q past its elder %s\n%s", h.claim.owner, key, w.claim.owner, table)
				}
				if o.passed[name(w)]++; o.passed[name(w)] > 8 && !o.free {
					t.Fatalf("%d grants of %q went past %s", o.passed[name(w)], key, w.claim.owner)
				}
			}
		}
	}
}

// world is the size and the temper of one run.
type world struct {
	paths []string
	modes []Mode
	eager int // of 4 steps this many are claims
	aging bool
	steps bool // claims grow by steps, or give up waiting
}

var worlds = []world{
	{paths: []string{"a", "a/x", "a/y", "a/x/1", "a/x/2", "a-b", "a-b/x", "c/x", "c/x/1"}, modes: []Mode{S, X, IS, IX, SIX}, eager: 2},
	{paths: []string{"a/x", "a/y", "c/x", "c/y"}, modes: []Mode{S, X}, eager: 2},
	{paths: []string{"a/x", "a-b/x"}, modes: []Mode{S, X, X}, eager: 3, aging: true},
	{paths: []string{"a"}, modes: []Mode{IS, IX, S, SIX, X, U}, eager: 3},
	{paths: []string{"a/x", "a/y", "c/x"}, modes: []Mode{S, X, U}, eager: 2, steps: true},
	{paths: []string{"a", "a/x", "a/x/1", "a/x/2", "a-b/x", "c"}, modes: []Mode{S, X, U, IS, IX, SIX}, eager: 2, steps: true},
	{paths: []string{"a/x"}, modes: []Mode{S, U, X}, eager: 2, steps: true},
}

func TestTableDoesWhatTheModelDoes(t *testing.T) {
	cycles, wounds := 0, 0
	for range 20 { // until both were met: most batches meet many
		modelled(t, &cycles, &wounds)
		if cycles > 0 && wounds > 0 || t.Failed() {
			return
		}
	}
	t.Error("no cycle, or no elder behind a younger, was ever met")
}

func modelled(t *testing.T, cycles, wounds *int) {
	t.Helper()
	rapid.Check(t, func(t *rapid.T) {
		w := worlds[rapid.IntRange(0, len(worlds)-1).Draw(t, "world")]
		table, m := NewTable(), newModel()
		released, sealed := map[txnid.ID]bool{}, map[txnid.ID]bool{}
		from := rapid.SampledFrom([]int{0, 0, 20, 1000}).Draw(t, "wound") // the step that turns wound-wait on
		may := func(id txnid.ID) bool { return !released[id] && !sealed[id] }
		settle := func(o *overtaking) {
			w, c := m.settleWounds(t, table, o, may, func(id txnid.ID) { sealed[id] = true })
			*wounds += w
			*cycles += c
		}
		o := &overtaking{arrival: map[string]int{}, passed: map[string]int{}, held: map[string]bool{}}
		steps := rapid.IntRange(1, 80).Draw(t, "steps")
		for i := range steps {
			if i == from {
				m.wound, o.free = true, true
				table.WoundWait()
				settle(o)
				o.watch(t, table)
			}
			owners := slices.SortedFunc(maps.Keys(m.claims), compareID)
			switch kind := rapid.IntRange(0, 3).Draw(t, "kind"); {
			case kind < w.eager || len(owners) == 0:
				owner := txnid.New(uint64(i), [10]byte{9: rapid.Byte().Draw(t, "id")})
				needs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Need {
					return Need{Key: rapid.SampledFrom(w.paths).Draw(t, "key"), Mode: rapid.SampledFrom(w.modes).Draw(t, "mode")}
				}), 0, 4).Draw(t, "needs")
				at := uint64(rapid.IntRange(0, 5).Draw(t, "at"))
				if w.aging {
					at = uint64(1000 - i) // everybody is elder than who came before
				}
				set := Fold(needs)
				if i := rapid.IntRange(0, 2*len(owners)).Draw(t, "grow"); w.steps && i < len(owners) && table.Granted(owners[i]) && may(owners[i]) {
					if got, want := table.Extend(owners[i], 0, set), m.extend(owners[i], 0, set); got != want {
						t.Fatalf("extension of %s by %v granted %v, model %v", owners[i], set, got, want)
					}
					break
				}
				if got, want := table.Claim(owner, at, set), m.claim(owner, at, set); got != want {
					t.Fatalf("claim of %v granted %v, model %v", set, got, want)
				}
			case rapid.IntRange(0, 9).Draw(t, "seal") == 0:
				if owner := rapid.SampledFrom(owners).Draw(t, "sealed"); table.Granted(owner) {
					sealed[owner] = true
				}
			case rapid.IntRange(0, 9).Draw(t, "restart") == 0:
				restored := NewTable()
				snapshot := table.AppendSnapshot(nil)
				rest, err := restored.Restore(SnapshotVersion, append(slices.Clone(snapshot), "next"...))
				if err != nil || string(rest) != "next" || !bytes.Equal(restored.AppendSnapshot(nil), snapshot) {
					t.Fatalf("restored %x with %q left, error %v, from %x", restored.AppendSnapshot(nil), rest, err, snapshot)
				}
				if table = restored; m.wound {
					table.WoundWait()
				}
			default:
				owner := rapid.SampledFrom(owners).Draw(t, "owner")
				service := rapid.SampledFrom([]string{"", "a", "a-b", "c"}).Draw(t, "service")
				var got, want []txnid.ID
				switch {
				case w.steps && !table.Granted(owner) && service != "":
					o.abandons(table, owner)
					got, want = table.Abandon(owner, nil), m.abandon(owner)
				case service == "" || !table.Granted(owner):
					got, want = table.Drop(owner, nil), m.drop(owner)
				default:
					released[owner] = true
					got, want = table.Release(owner, service, nil), m.release(owner, service)
				}
				if !slices.Equal(got, want) {
					t.Fatalf("%s left %q, which woke %v, in the model %v", owner, service, got, want)
				}
			}
			m.compare(t, table)
			settle(o)
			o.watch(t, table)
		}
		// Everybody who waits is served when those before leave, and nothing remains.
		for table.Len() > 0 {
			owners := table.sortedOwners()
			i := slices.IndexFunc(owners, table.Granted)
			if i < 0 {
				t.Fatalf("everybody waits\n%s", table)
			}
			if got, want := table.Drop(owners[i], nil), m.drop(owners[i]); !slices.Equal(got, want) {
				t.Fatalf("%s left, which woke %v, in the model %v", owners[i], got, want)
			}
			m.compare(t, table)
			settle(o)
			o.watch(t, table)
		}
		if table.Nodes() != 0 || table.String() != "" {
			t.Fatalf("all have left, this remains:\n%s", table)
		}
	})
}

// Two tables with the same snapshot answer the same to whatever follows.
func TestRestoredTableGoesOnAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := worlds[rapid.IntRange(0, len(worlds)-1).Draw(t, "world")]
		one, two := NewTable(), NewTable()
		at := rapid.IntRange(0, 40).Draw(t, "restart")
		for i := range 60 {
			if i == at {
				if _, err := two.Restore(SnapshotVersion, one.AppendSnapshot(nil)); err != nil {
					t.Fatal(err)
				}
			}
			tables := []*Table{one}
			if i >= at {
				tables = append(tables, two)
			}
			owner := txnid.Floor(uint64(rapid.IntRange(0, 9).Draw(t, "owner")))
			need := Need{Key: rapid.SampledFrom(w.paths).Draw(t, "key"), Mode: rapid.SampledFrom(w.modes).Draw(t, "mode")}
			age := uint64(rapid.IntRange(0, 5).Draw(t, "age"))
			drop := rapid.Bool().Draw(t, "drop")
			grow := w.steps && rapid.Bool().Draw(t, "grow")
			var answers []string
			for _, table := range tables {
				switch {
				case grow && table.Granted(owner):
					answers = append(answers, fmt.Sprint(table.Extend(owner, age, Fold([]Need{need}))))
				case grow && table.Has(owner):
					answers = append(answers, fmt.Sprint(table.Abandon(owner, nil)))
				case !table.Has(owner):
					answers = append(answers, fmt.Sprint(table.Claim(owner, age, Fold([]Need{need, {Key: "c/x", Mode: X}}))))
				case drop || !table.Granted(owner):
					answers = append(answers, fmt.Sprint(table.Drop(owner, nil)))
				default:
					answers = append(answers, fmt.Sprint(table.Release(owner, Service(need.Key), nil)))
				}
			}
			for i, table := range tables {
				for cycle := table.NextCycle(); cycle != nil; cycle = table.NextCycle() {
					answers[i] += fmt.Sprint(cycle, table.Drop(table.Victim(cycle), nil))
				}
			}
			if i < at {
				continue
			}
			if answers[0] != answers[1] {
				t.Fatalf("step %d: %s, restored %s", i, answers[0], answers[1])
			}
			if !bytes.Equal(one.AppendSnapshot(nil), two.AppendSnapshot(nil)) {
				t.Fatalf("step %d: the snapshots differ\n%s\nrestored\n%s", i, one, two)
			}
		}
	})
}
