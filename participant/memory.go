package participant

import (
	"container/list"
	"encoding/json"
	"sync"
)

// Limits of a memory.
const (
	maxHeldBranches     = 65_536
	maxHeldResultsBytes = 64 << 20
)

// memory remembers the branches that this process prepared: their gids, which
// saves a look for them, and their results, which nobody else can see. It is only a
// hint: the oldest are dropped at its limits.
type memory struct {
	mu       sync.Mutex
	branches map[branchKey]*list.Element
	byAge    list.List // of *remembered, the oldest first
	bytes    int       // of all results
}

type branchKey struct {
	transaction string
	branch      uint32
}

type remembered struct {
	key     branchKey
	gid     string
	results []json.RawMessage
	bytes   int
}

func keyOf(c *Call) branchKey { return branchKey{c.Transaction, c.Branch} }

func (m *memory) add(c *Call, results []json.RawMessage) {
	r := &remembered{key: keyOf(c), gid: gidOf(c), results: results}
	for _, result := range results {
		r.bytes += len(result)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.branches == nil {
		m.branches = make(map[branchKey]*list.Element)
	}
	if old := m.branches[r.key]; old != nil {
		m.drop(old)
	}
	m.branches[r.key] = m.byAge.PushBack(r)
	m.bytes += r.bytes
	for len(m.branches) > maxHeldBranches || m.bytes > maxHeldResultsBytes {
		m.drop(m.byAge.Front())
	}
}

func (m *memory) drop(e *list.Element) {
	r := m.byAge.Remove(e).(*remembered) //nolint:forcetypeassert // nothing else is put in
	delete(m.branches, r.key)
	m.bytes -= r.bytes
}

func (m *memory) has(c *Call) bool { return m.get(c) != nil }

func (m *memory) results(c *Call) []json.RawMessage {
	if r := m.get(c); r != nil {
		return r.results
	}
	return nil
}

func (m *memory) get(c *Call) *remembered {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.branches[keyOf(c)]; e != nil {
		return e.Value.(*remembered) //nolint:forcetypeassert // as above
	}
	return nil
}

// take forgets the branch and returns its gid, "" if it was not remembered.
func (m *memory) take(c *Call) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.branches[keyOf(c)]
	if e == nil {
		return ""
	}
	gid := e.Value.(*remembered).gid //nolint:forcetypeassert // as above
	m.drop(e)
	return gid
}
