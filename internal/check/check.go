package check

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Model is what a history is held to.
type Model uint8

// Models.
const (
	StrictSerializable Model = iota // serializable in an order that agrees with real time
	Serializable
)

// Anomaly is one way in which a history breaks its model.
type Anomaly struct {
	Kind  string // as in the package comment
	Text  string // for people
	Cycle []Edge // of cycles
}

// maxAnomalies of one kind are told.
const maxAnomalies = 20

// Check returns what is wrong with the transactions, worst first; nothing if they obey
// the model.
func Check(txns []Txn, model Model) []Anomaly {
	c := &checker{txns: txns, writer: map[version]int{}, last: map[version]bool{}, keys: map[string]*list{}, counts: map[string]int{}, seen: make([]bool, len(txns))}
	c.index()
	c.within()
	c.lists()
	c.reads()
	if model == StrictSerializable {
		c.quiet()
	}
	c.updates()
	if len(c.found) == 0 || !c.blind {
		c.cycles(model)
	}
	return c.found
}

// version is a key behind the append of a value.
type version struct {
	key   string
	value int64
}

// list is what is known of a key.
type list struct {
	order   []int64 // of the longest read
	reads   []read
	unread  []int // transactions whose append nobody has read, ascending
	appends []int // all that appended, ascending
}

// read is what a transaction saw of a key before it appended to it itself.
type read struct {
	txn  int
	list []int64
}

type checker struct {
	txns   []Txn
	writer map[version]int
	last   map[version]bool // the last append of its transaction to the key
	keys   map[string]*list
	names  []string // of keys, ascending
	found  []Anomaly
	counts map[string]int
	seen   []bool // transactions of which an append was read
	blind  bool   // the order of versions is not known
}

func (c *checker) report(kind, format string, args ...any) {
	if c.counts[kind]++; c.counts[kind] <= maxAnomalies {
		c.found = append(c.found, Anomaly{Kind: kind, Text: fmt.Sprintf(format, args...)})
	}
}

// name is how a transaction is told.
func (c *checker) name(i int) string {
	t := &c.txns[i]
	var b strings.Builder
	fmt.Fprintf(&b, "T%d(process %d", i, t.Process)
	if t.Status == Unknown {
		b.WriteString(", outcome unknown")
	}
	b.WriteByte(')')
	return b.String()
}

func (c *checker) key(name string) *list {
	k := c.keys[name]
	if k == nil {
		k = &list{}
		c.keys[name] = k
		c.names = append(c.names, name)
	}
	return k
}

// index finds the writer of every version.
func (c *checker) index() {
	for i := range c.txns {
		latest := map[string]int64{}
		for _, m := range c.txns[i].Mops {
			k := c.key(m.Key)
			if !m.Append {
				continue
			}
			c.writer[version{m.Key, m.Value}] = i
			latest[m.Key] = m.Value
			if n := len(k.appends); n == 0 || k.appends[n-1] != i {
				k.appends = append(k.appends, i)
			}
		}
		for key, v := range latest { // order does not matter: each sets its own
			c.last[version{key, v}] = true
		}
	}
	slices.Sort(c.names)
}

// within checks that a transaction agrees with itself, and finds what it read of
// others.
func (c *checker) within() {
	for i := range c.txns {
		t := &c.txns[i]
		if t.Status != Committed {
			continue
		}
		known, own := map[string][]int64{}, map[string][]int64{}
		for _, m := range t.Mops {
			before, seen := known[m.Key]
			mine := own[m.Key]
			switch {
			case m.Append:
				own[m.Key] = append(mine, m.Value)
				if seen {
					known[m.Key] = append(slices.Clone(before), m.Value)
				}
				continue
			case seen && !slices.Equal(before, m.List):
				c.report("internal", "%s read %s as %v, where it must be %v by what the transaction itself read and appended before", c.name(i), m.Key, m.List, before)
			case !seen && !endsWith(m.List, mine):
				c.report("internal", "%s read %s as %v after it appended %v itself", c.name(i), m.Key, m.List, mine)
			case !seen:
				k := c.key(m.Key)
				others := m.List[:len(m.List)-len(mine)]
				if slices.ContainsFunc(others, func(v int64) bool { w, ok := c.writer[version{m.Key, v}]; return ok && w == i }) {
					c.report("internal", "%s read %s as %v, with what it appended only later", c.name(i), m.Key, m.List)
				}
				k.reads = append(k.reads, read{i, others})
				if len(m.List) > len(k.order) {
					k.order = m.List
				}
			}
			known[m.Key] = m.List
		}
	}
}

func endsWith(list, tail []int64) bool {
	return len(list) >= len(tail) && slices.Equal(list[len(list)-len(tail):], tail)
}

// lists checks the reads of each key against each other, and against what was appended.
// A transaction of unknown outcome of which one append was read has made all of them.
func (c *checker) lists() {
	for _, name := range c.names {
		for _, v := range c.keys[name].order {
			if w, ok := c.writer[version{name, v}]; ok {
				c.seen[w] = true
			}
		}
	}
	for _, name := range c.names {
		k := c.keys[name]
		for _, r := range k.reads {
			seen := map[int64]bool{}
			for _, v := range r.list {
				if seen[v] {
					c.report("duplicate", "%s read %d twice in %s: %v", c.name(r.txn), v, name, r.list)
					c.blind = true
				}
				seen[v] = true
			}
			if len(r.list) > len(k.order) || !slices.Equal(r.list, k.order[:len(r.list)]) {
				c.report("incompatible-order", "%s read %s as %v, others as %v: neither is the beginning of the other", c.name(r.txn), name, r.list, k.order)
				c.blind = true
			}
		}
		at := make(map[int64]int, len(k.order))
		for i, v := range k.order {
			at[v] = i
			w, ok := c.writer[version{name, v}]
			if !ok {
				c.report("garbage", "%s holds %d, which nobody appended", name, v)
				c.blind = true
				continue
			}
			if c.txns[w].Status == Aborted && i+1 < len(k.order) {
				c.report("dirty-update", "%s holds %d of the aborted %s, and %d was appended behind it", name, v, c.name(w), k.order[i+1])
			}
		}
		for _, w := range k.appends {
			switch {
			case c.txns[w].Status == Aborted || c.txns[w].Status == Unknown && !c.seen[w]:
			case !c.readIn(w, name, at):
				k.unread = append(k.unread, w)
			default:
				c.whole(w, name, at)
			}
		}
	}
}

// whole checks that what a transaction appended to a key stands there as it was appended.
// Only the end may be missing, and only at the end of what was read.
func (c *checker) whole(txn int, name string, at map[int64]int) {
	last := -1
	for _, m := range c.txns[txn].Mops {
		if !m.Append || m.Key != name {
			continue
		}
		i, there := at[m.Value]
		switch {
		case !there && last == len(at)-1:
			return
		case !there:
			c.report("lost-append", "%s appended %d to %s, where others of its appends are read without it", c.name(txn), m.Value, name)
			return
		case i < last:
			c.report("incompatible-order", "%s appended %d to %s after what stands behind it", c.name(txn), m.Value, name)
			return
		}
		last = i
	}
}

func (c *checker) readIn(txn int, key string, at map[int64]int) bool {
	for _, m := range c.txns[txn].Mops {
		if _, there := at[m.Value]; m.Append && m.Key == key && there {
			return true
		}
	}
	return false
}

// reads finds reads of what was never, or not yet, there.
func (c *checker) reads() {
	for _, name := range c.names {
		for _, r := range c.keys[name].reads {
			for i, v := range r.list {
				w, ok := c.writer[version{name, v}]
				switch {
				case !ok || w == r.txn:
				case c.txns[w].Status == Aborted:
					c.report("G1a", "%s read %d in %s, which the aborted %s appended", c.name(r.txn), v, name, c.name(w))
				case i == len(r.list)-1 && !c.last[version{name, v}]:
					c.report("G1b", "%s read %s up to %d, but %s appended more to it: an intermediate state", c.name(r.txn), name, v, c.name(w))
				}
			}
		}
	}
}

// quiet finds appends that were answered and are gone: a read that began when every
// append to its key had its answer must show them all.
func (c *checker) quiet() {
	for _, name := range c.names {
		k := c.keys[name]
		end := -1
		for _, w := range k.appends {
			if c.txns[w].Status != Aborted {
				end = max(end, c.txns[w].Answered)
			}
		}
		if end == endless {
			continue
		}
		for _, r := range k.reads {
			if c.txns[r.txn].Invoked < end {
				continue
			}
			in := map[int64]bool{}
			for _, v := range r.list {
				in[v] = true
			}
			for _, w := range k.appends {
				for _, m := range c.txns[w].Mops {
					if m.Append && m.Key == name && c.txns[w].Status == Committed && w != r.txn && !in[m.Value] {
						c.report("lost-append", "%s was answered that it appended %d to %s; %s read the list when all was quiet: %v", c.name(w), m.Value, name, c.name(r.txn), r.list)
					}
				}
			}
			break // one such read tells
		}
	}
}

// updates finds two transactions that both read one version of a key and appended to it.
func (c *checker) updates() {
	for _, name := range c.names {
		k := c.keys[name]
		by := map[int]int{} // length of what was read: the transaction that then appended
		for _, r := range k.reads {
			if _, appends := slices.BinarySearch(k.appends, r.txn); !appends {
				continue
			}
			if other, ok := by[len(r.list)]; ok {
				c.report("lost-update", "%s and %s both read %s as %v and appended to it", c.name(other), c.name(r.txn), name, r.list)
				continue
			}
			by[len(r.list)] = r.txn
		}
	}
}

// worst sorts anomalies: those that a weaker isolation forbids come first.
func worst(found []Anomaly) {
	rank := func(kind string) int {
		for i, k := range []string{"garbage", "duplicate", "incompatible-order", "internal", "G0", "G1a", "G1b", "dirty-update", "G1c", "lost-append", "lost-update", "G-single", "G-nonadjacent", "G2-item"} {
			if strings.HasPrefix(kind, k) {
				return i
			}
		}
		return 99
	}
	slices.SortStableFunc(found, func(a, b Anomaly) int { return cmp.Compare(rank(a.Kind), rank(b.Kind)) })
}
