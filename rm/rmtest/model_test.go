package rmtest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"sync"
	"time"
)

// model is a participant in plain Go, written from the contract without the SDK:
// the control of the suite, and with one of the bugs below its prey.
type model struct {
	bug string

	mu     sync.Mutex
	rows   map[string]*modelRow // durable
	counts map[string]int       // durable: committed effects by marker
	holds  map[string]int       // durable: reservations by marker
	below  string               // forgotten_below
	open   map[string]*modelOpen

	working map[string]chan struct{} // by key: the call that works without the lock
}

// modelOpen is what a branch has executed; not durable.
type modelOpen struct {
	term     uint64
	id       string
	payloads []json.RawMessage
	results  []json.RawMessage
	markers  []string
	snapshot map[string]int
}

type modelRow struct {
	state, digest, token string
	count                int
	onePhase             bool
	term                 uint64
	markers              []string
	executed             int
	results              []json.RawMessage
	hidden               bool // the results show again when the branch is committed
}

type modelCall struct {
	Transaction, Service, Phase, Token, Digest string
	Branch                                     uint32
	Attempt, Term                              uint64
	ForgottenBelow                             string `json:"forgotten_below"`
	OnePhase                                   bool   `json:"one_phase"`
	Count                                      int
	First                                      *int
	Executed                                   int
	Execution                                  string
	Opened                                     bool
	Operations                                 []struct {
		Payload json.RawMessage
	}
}

func newModel(bug string) *model {
	return &model{bug: bug, rows: map[string]*modelRow{}, counts: map[string]int{}, holds: map[string]int{}, open: map[string]*modelOpen{}, working: map[string]chan struct{}{}}
}

// work leaves the lock until a duplicate of the call has come as far, or none comes.
func (m *model) work(key string) {
	if first := m.working[key]; first != nil {
		delete(m.working, key)
		close(first)
		return
	}
	duplicate := make(chan struct{})
	m.working[key] = duplicate
	m.mu.Unlock()
	select {
	case <-duplicate:
	case <-time.After(10 * time.Second):
	}
	m.mu.Lock()
	if m.working[key] == duplicate {
		delete(m.working, key)
	}
}

type modelAnswer struct {
	status int
	body   map[string]any
}

func vote(v string, results []json.RawMessage) modelAnswer {
	body := map[string]any{"vote": v}
	if len(results) > 0 {
		body["results"] = results
	}
	return modelAnswer{200, body}
}

func outcome(status int, o string) modelAnswer {
	return modelAnswer{status, map[string]any{"outcome": o}}
}

func (m *model) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 2<<20))
	var c modelCall
	if err == nil {
		_, err = io.Copy(io.Discard, r.Body) // the server lingers over a body that was not read
	}
	if err == nil {
		err = json.Unmarshal(body, &c)
	}
	if m.bug == "votes yes to rubbish" && err != nil {
		writeAnswer(w, vote("yes", nil))
		return
	}
	phase := path.Base(r.URL.Path)
	if err != nil || len(c.Transaction) != 36 || c.Transaction[14] != '7' || slices.ContainsFunc([]byte(c.Transaction), func(b byte) bool { return b >= 'A' && b <= 'Z' }) ||
		c.Branch == 0 || c.Phase != phase || phase == "prepare" && len(c.Operations) == 0 && c.Executed == 0 ||
		phase == "execute" && m.bug != "executes rubbish" && (len(c.Operations) == 0 || c.First == nil || *c.First < 0) {
		http.Error(w, "malformed", http.StatusBadRequest)
		return
	}
	for _, op := range c.Operations {
		if op.Payload == nil {
			http.Error(w, "malformed", http.StatusBadRequest)
			return
		}
	}
	writeAnswer(w, m.answer(&c, phase))
}

func writeAnswer(w http.ResponseWriter, a modelAnswer) {
	w.WriteHeader(a.status)
	if err := json.NewEncoder(w).Encode(a.body); err != nil {
		panic(err)
	}
}

func (m *model) answer(c *modelCall, phase string) modelAnswer {
	key := fmt.Sprintf("%s/%d", c.Transaction, c.Branch)
	if m.bug == "one row per transaction" {
		key = c.Transaction
	}
	if m.bug == "keyed by attempt" {
		key += fmt.Sprint("/", c.Term)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.below = max(m.below, c.ForgottenBelow)
	row := m.rows[key]
	if phase == "status" {
		return m.status(c, key, row)
	}
	if row != nil && c.Term < row.term && m.bug != "ignores terms" || row != nil && c.Token != "" && c.Token < row.token && m.bug != "ignores tokens" {
		return modelAnswer{http.StatusPreconditionFailed, nil}
	}
	if row != nil && m.bug != "forgets newer terms" {
		row.term, row.token = max(row.term, c.Term), max(row.token, c.Token)
	}
	openKey := key
	if m.bug == "one open branch for all" {
		openKey = "all"
	}
	open := m.open[openKey]
	if open != nil && c.Term < open.term && m.bug != "executes for an older term" {
		return modelAnswer{http.StatusPreconditionFailed, nil}
	}
	if open != nil {
		open.term = max(open.term, c.Term)
	}
	switch {
	case phase == "execute":
		return m.execute(c, key, openKey, row, open)
	case phase == "prepare" && row == nil && (open != nil || c.Executed > 0):
		return m.prepareOpen(c, key, openKey, open)
	case phase == "rollback" && open != nil:
		delete(m.open, openKey)
		if m.bug == "rollback of an open branch leaves no tombstone" {
			return outcome(200, "rolled_back")
		}
	}
	switch phase {
	case "prepare":
		return m.prepare(c, key, row)
	case "commit":
		return m.commit(c, row)
	default:
		return m.rollback(c, key, row)
	}
}

func (m *model) status(c *modelCall, key string, row *modelRow) modelAnswer {
	switch {
	case row == nil:
		if m.bug == "status leaves a tombstone" {
			m.rows[key] = &modelRow{state: "rolled_back", term: c.Term}
		}
		return outcome(200, "unknown")
	case m.bug == "status always prepared":
		return outcome(200, "prepared")
	case row.state == "read_only":
		return outcome(200, "prepared")
	case row.state == "refused":
		return outcome(200, "rolled_back")
	}
	return outcome(200, row.state)
}

func (m *model) prepare(c *modelCall, key string, row *modelRow) modelAnswer {
	payloads := make([]json.RawMessage, len(c.Operations))
	for i, op := range c.Operations {
		payloads[i] = op.Payload
	}
	var mismatch bool
	if m.bug != "ignores the digest" {
		mismatch = digest(payloads) != c.Digest
	}
	if m.bug != "ignores the count" {
		mismatch = mismatch || len(payloads) != c.Count
	}
	if m.bug == "ignores the digest" && len(payloads) != c.Count { // nothing is left to notice a lost operation
		mismatch = false
	}
	if row != nil && m.bug != "executes every prepare" {
		switch {
		case row.state == "rolled_back" && m.bug == "yes after rollback" && len(row.markers) > 0:
		case row.state == "rolled_back":
			return vote("no", nil)
		case row.state == "refused":
			if m.bug != "no is not sticky" {
				return vote("no", nil)
			}
		case row.executed > 0 && m.bug == "no to what was executed before":
			return vote("no", nil)
		case row.executed > 0 && c.Digest == row.digest && c.Executed+c.Count == row.count: // as below
			return vote("yes", row.results)
		case mismatch, m.bug != "ignores other work" && (row.digest != c.Digest || row.count != c.Count):
			return vote("no", nil)
		case row.state == "read_only":
			return vote("read_only", row.results)
		case m.bug == "no after commit" && row.state == "committed":
			return vote("no", nil)
		case m.bug == "loses results", row.hidden && row.state == "prepared":
			return vote("yes", nil)
		default:
			return vote("yes", row.results)
		}
	}
	if m.bug == "checks before it locks" {
		m.work(key)
	}
	if c.Transaction < m.below && m.bug != "ignores forgotten_below" {
		return vote("no", nil)
	}
	row = &modelRow{state: "prepared", digest: c.Digest, count: c.Count, term: c.Term, token: c.Token, onePhase: c.OnePhase}
	if m.bug != "keeps no row of a no" {
		m.rows[key] = row
	}
	if mismatch {
		row.state = "refused"
		return vote("no", nil)
	}
	for _, p := range payloads {
		var op struct{ Do, Marker string }
		_ = json.Unmarshal(p, &op)
		switch op.Do {
		case "refuse":
			row.state = "refused"
			if m.bug == "keeps work of a no" && len(row.markers) > 0 {
				m.counts[row.markers[0]]++
			}
			return vote("no", nil)
		case "read":
			if m.bug != "votes yes for read_only once" {
				row.state = "read_only"
			}
			row.results = append(row.results, json.RawMessage(`1`))
			return vote("read_only", row.results)
		case "result":
			row.results = append(row.results, json.RawMessage(`{"of":"`+op.Marker+`"}`))
		}
		row.markers = append(row.markers, op.Marker)
	}
	if m.bug == "keeps no row of a no" {
		m.rows[key] = row
	}
	for _, mark := range row.markers {
		if m.bug == "applies at prepare" {
			m.counts[mark]++
		} else {
			m.holds[mark]++
		}
	}
	if c.OnePhase && m.bug != "one-phase stays prepared" {
		m.apply(row)
	}
	if m.bug == "forgets the first results" {
		return vote("yes", nil)
	}
	return vote("yes", row.results)
}

func (m *model) apply(row *modelRow) {
	for i, mark := range row.markers {
		if m.bug == "applies one operation only" && i > 0 {
			m.holds[mark]--
			continue
		}
		if m.bug != "keeps reservations" {
			m.holds[mark]--
		}
		if m.bug != "applies at prepare" {
			m.counts[mark]++
		}
	}
	row.state = "committed"
}

func (m *model) commit(c *modelCall, row *modelRow) modelAnswer {
	switch {
	case row == nil && m.bug == "unknown commit is success":
		return outcome(200, "committed")
	case row == nil:
		return outcome(404, "unknown")
	case row.state == "committed" && m.bug == "applies twice":
		m.apply(row)
	case row.state == "prepared":
		m.apply(row)
	case row.state == "rolled_back" || row.state == "refused":
		switch {
		case m.bug == "commits after rollback":
			row.state = "prepared"
			m.apply(row)
		case m.bug == "commit of rolled back is success":
		default:
			return outcome(409, "rolled_back")
		}
	}
	return outcome(200, "committed")
}

func (m *model) rollback(c *modelCall, key string, row *modelRow) modelAnswer {
	switch {
	case row == nil:
		if m.bug != "no tombstone" {
			m.rows[key] = &modelRow{state: "rolled_back", term: c.Term, token: c.Token}
		}
	case row.state == "committed" && m.bug == "rolls back a committed branch":
		for _, mark := range row.markers {
			m.counts[mark]--
		}
		row.state = "rolled_back"
	case row.state == "committed" && m.bug == "rollback always answers ok":
	case row.state == "committed":
		return outcome(409, "committed")
	case row.state == "prepared":
		if m.bug != "rollback keeps reservations" {
			for _, mark := range row.markers {
				m.holds[mark]--
			}
		}
		row.state = "rolled_back"
		if m.bug == "deletes rolled back rows" {
			delete(m.rows, key)
		}
	default:
		if m.bug == "read_only revived" && row.state == "read_only" {
			break
		}
		row.state = "rolled_back"
	}
	return outcome(200, "rolled_back")
}

// restart loses what is not durable; with some bugs, what should be.
func (m *model) restart() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.open)
	switch m.bug {
	case "forgets prepared at restart":
		for key, row := range m.rows {
			if row.state == "prepared" {
				delete(m.rows, key)
			}
		}
	case "forgets tombstones at restart":
		for key, row := range m.rows {
			if row.state == "rolled_back" && len(row.markers) == 0 {
				delete(m.rows, key)
			}
		}
	case "forgets refusals at restart":
		for key, row := range m.rows {
			if row.state == "refused" {
				delete(m.rows, key)
			}
		}
	case "rolls back in-doubt at restart":
		for _, row := range m.rows {
			if row.state == "prepared" {
				row.state = "rolled_back"
			}
		}
	case "commits in-doubt at restart":
		for _, row := range m.rows {
			if row.state == "prepared" {
				m.apply(row)
			}
		}
	case "forgets results at restart":
		for _, row := range m.rows {
			row.results = nil
		}
	case "hides results at restart":
		for _, row := range m.rows {
			row.hidden = true
		}
	case "forgets terms at restart":
		for _, row := range m.rows {
			row.term = 0
		}
	}
}

func serveModel(m *model) *httptest.Server { return httptest.NewServer(m) }
