package check

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// parse reads a history in the notation of testdata/*.txt. A line is an event:
//
//	P begins  a:x=1 r:y           process P asks to append 1 to x and to read y
//	P ok      a:x=1 r:y=[2 3]     it was answered: committed
//	P fail                        aborted          P info   nobody knows
//	P does    a:x=1 r:y=[2 3]     both events, with nothing between them
//	expect    G1c G2-item         the kinds that Check must find; nothing: none
func parse(t testing.TB, text string) (events []Event, expect []string) {
	t.Helper()
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0] == "#":
			continue
		case words[0] == "expect":
			expect = append(expect, words[1:]...)
			continue
		}
		p, err := strconv.Atoi(words[0])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		mops := parseMops(t, strings.Join(words[2:], " "))
		switch words[1] {
		case "begins":
			events = append(events, Event{Process: p, Status: Invoked, Mops: bare(mops)})
		case "does":
			events = append(events, Event{Process: p, Status: Invoked, Mops: bare(mops)}, Event{Process: p, Status: Committed, Mops: mops})
		case "ok":
			events = append(events, Event{Process: p, Status: Committed, Mops: mops})
		case "fail", "info":
			events = append(events, Event{Process: p, Status: Status(words[1]), Mops: nil})
		default:
			t.Fatalf("%q", line)
		}
	}
	return events, expect
}

func parseMops(t testing.TB, text string) (mops []Mop) {
	t.Helper()
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimSpace(text) {
		end := strings.IndexByte(text, ' ')
		if open := strings.IndexByte(text, '['); open >= 0 && (end < 0 || open < end) {
			end = strings.IndexByte(text, ']') + 1
		}
		if end < 0 {
			end = len(text)
		}
		word := text[:end]
		text = text[end:]
		kind, rest, _ := strings.Cut(word, ":")
		key, value, _ := strings.Cut(rest, "=")
		m := Mop{Append: kind == "a", Key: key}
		if m.Append {
			v, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				t.Fatalf("%q: %v", word, err)
			}
			m.Value = v
		} else {
			for _, f := range strings.Fields(strings.Trim(value, "[]")) {
				v, err := strconv.ParseInt(f, 10, 64)
				if err != nil {
					t.Fatalf("%q: %v", word, err)
				}
				m.List = append(m.List, v)
			}
		}
		mops = append(mops, m)
	}
	return mops
}

func kinds(found []Anomaly) []string {
	var all []string
	for _, a := range found {
		if !slices.Contains(all, a.Kind) {
			all = append(all, a.Kind)
		}
	}
	slices.Sort(all)
	return all
}

// TestHistories: each file is a history and exactly what is wrong with it.
func TestHistories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d histories, %v", len(files), err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			events, expect := parse(t, string(text))
			txns, err := Pair(events)
			if err != nil {
				t.Fatal(err)
			}
			found := Check(txns, StrictSerializable)
			slices.Sort(expect)
			if got := kinds(found); !slices.Equal(got, expect) {
				t.Errorf("found %v, want %v", got, expect)
				for _, a := range found {
					t.Log(a.Kind, a.Text)
				}
			}
			for _, a := range found {
				for i, e := range a.Cycle {
					if e.To != a.Cycle[(i+1)%len(a.Cycle)].From {
						t.Errorf("%s: not a cycle: %v", a.Kind, a.Cycle)
					}
				}
				if len(a.Cycle) > 0 && (!strings.Contains(a.Text, "before") || !strings.Contains(DOT(a.Cycle), "->")) {
					t.Errorf("%s is told as %q", a.Kind, a.Text)
				}
			}
			// In and out again, and whatever the processes are called.
			var file bytes.Buffer
			if err := Write(&file, events); err != nil {
				t.Fatal(err)
			}
			back, err := Read(&file)
			if err != nil || len(back) != len(events) {
				t.Fatalf("%d of %d events, %v", len(back), len(events), err)
			}
			for i := range back {
				back[i].Process = 1000 - back[i].Process
			}
			if again, err := Pair(back); err != nil || !reflect.DeepEqual(kinds(Check(again, StrictSerializable)), kinds(found)) {
				t.Errorf("with other names: %v, %v", kinds(Check(again, StrictSerializable)), err)
			}
		})
	}
}

func TestPairRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"ends what did not begin":   "1 ok r:x=[]",
		"begins twice":              "1 begins r:x\n1 begins r:x",
		"appends twice":             "1 does a:x=1\n2 does a:x=1",
		"appends twice at once":     "1 does a:x=1 a:x=1",
		"appends nothing":           "1 does a:x=0",
		"answers another question":  "1 begins r:x\n1 ok r:y=[]",
		"answers more than asked":   "1 begins r:x\n1 ok r:x=[] r:y=[]",
		"an append became a read":   "1 begins a:x=1\n1 ok r:x=[]",
		"answered with another one": "1 begins a:x=1\n1 ok a:x=2",
	} {
		events, _ := parse(t, text)
		if _, err := Pair(events); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// ---- toy stores: what each lets through is known.

// toy runs transactions one operation at a time, in a random interleaving.
type toy struct {
	rng     *rand.Rand
	level   string
	data    map[string][]int64
	locks   map[string]map[int]bool // key: owners, true: exclusive
	history Recorder
	value   int64
}

type running struct {
	process int
	mops    []Mop
	next    int
	snap    map[string][]int64 // snapshot, or writes yet unseen
	base    map[string]int     // lengths when the snapshot was taken
	writes  map[string][]int64
	aborted bool
}

// run makes a history of n transactions.
func (y *toy) run(n int) []Event {
	y.data, y.locks = map[string][]int64{}, map[string]map[int]bool{}
	open := map[int]*running{}
	process := 0
	for n > 0 || len(open) > 0 {
		if n > 0 && len(open) < 6 {
			n--
			process++
			r := &running{process: process % 10_000, mops: y.mops(), writes: map[string][]int64{}, base: map[string]int{}}
			if y.level == "snapshot" || y.level == "stale" {
				r.snap = y.copy()
			}
			open[process] = r
			y.history.Begin(r.process, r.mops)
			continue
		}
		ids := make([]int, 0, len(open))
		for id := range open {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		id := ids[y.rng.IntN(len(ids))]
		r := open[id]
		if r.next < len(r.mops) && !r.aborted {
			y.step(id, r)
			continue
		}
		delete(open, id)
		y.finish(id, r)
	}
	return y.history.Events()
}

func (y *toy) mops() []Mop {
	var mops []Mop
	for n := 1 + y.rng.IntN(4); n > 0; n-- {
		m := Mop{Key: string(rune('a' + y.rng.IntN(3)))}
		if m.Append = y.rng.IntN(2) == 0; m.Append {
			y.value++
			m.Value = y.value
		}
		mops = append(mops, m)
	}
	return mops
}

func (y *toy) copy() map[string][]int64 {
	c := map[string][]int64{}
	for k, v := range y.data {
		c[k] = slices.Clone(v)
	}
	return c
}

// take locks a key, or reports that the transaction dies: no waiting, no deadlock.
func (y *toy) take(id int, key string, exclusive bool) bool {
	owners := y.locks[key]
	if owners == nil {
		owners = map[int]bool{}
		y.locks[key] = owners
	}
	for o, x := range owners {
		if o != id && (x || exclusive) {
			return false
		}
	}
	owners[id] = owners[id] || exclusive
	return true
}

func (y *toy) step(id int, r *running) {
	m := &r.mops[r.next]
	if y.level == "locking" && !y.take(id, m.Key, m.Append) {
		r.aborted = true
		return
	}
	r.next++
	switch y.level {
	case "dirty": // written in place, read in place
		if m.Append {
			y.data[m.Key] = append(y.data[m.Key], m.Value)
		} else {
			m.List = slices.Clone(y.data[m.Key])
		}
		return
	case "snapshot", "stale":
		if m.Append {
			r.writes[m.Key] = append(r.writes[m.Key], m.Value)
		} else {
			m.List = slices.Concat(r.snap[m.Key], r.writes[m.Key])
		}
	default: // locking and committed: writes at commit, reads of what is committed
		if m.Append {
			r.writes[m.Key] = append(r.writes[m.Key], m.Value)
		} else {
			m.List = slices.Concat(y.data[m.Key], r.writes[m.Key])
		}
	}
}

func (y *toy) finish(id int, r *running) {
	for _, owners := range y.locks {
		delete(owners, id)
	}
	fails := r.aborted || y.rng.IntN(20) == 0
	if y.level == "snapshot" { // first committer wins
		for key := range r.writes {
			fails = fails || len(y.data[key]) != len(r.snap[key])
		}
	}
	if y.level == "stale" { // serial, but as of a while ago
		for key := range y.data {
			fails = fails || len(r.writes) > 0 && len(y.data[key]) != len(r.snap[key])
		}
	}
	if fails {
		y.history.End(r.process, Aborted, nil)
		return
	}
	for key, values := range r.writes {
		if y.level == "losing" && y.rng.IntN(50) == 0 {
			continue
		}
		y.data[key] = append(y.data[key], values...)
	}
	outcome := Committed
	if y.rng.IntN(30) == 0 {
		outcome = Unknown
	}
	y.history.End(r.process, outcome, r.mops)
}

func convict(t *testing.T, level string, seed uint64, model Model) []string {
	t.Helper()
	y := &toy{rng: rand.New(rand.NewPCG(seed, 1)), level: level}
	txns, err := Pair(y.run(400))
	if err != nil {
		t.Fatal(err)
	}
	return kinds(Check(txns, model))
}

// TestToyStores: a checker that convicts the innocent, or acquits the guilty, is worth
// nothing.
func TestToyStores(t *testing.T) {
	for seed := range uint64(60) {
		if found := convict(t, "locking", seed, StrictSerializable); len(found) > 0 {
			t.Fatalf("two-phase locking, seed %d: %v", seed, found)
		}
	}
	for level, c := range map[string]struct {
		least  int // of 20 histories this many must be convicted
		always []string
		never  []string
	}{
		"dirty":     {20, []string{"G1a"}, nil},
		"committed": {20, []string{"G-single"}, []string{"G0", "G1a", "G1b", "G1c", "dirty-update"}},
		"snapshot":  {20, []string{"G2-item"}, []string{"G0", "G1a", "G1b", "G1c", "dirty-update", "lost-update", "G-single", "G-nonadjacent"}},
		"losing":    {20, nil, nil},
	} {
		guilty := 0
		counts := map[string]int{}
		for seed := range uint64(20) {
			found := convict(t, level, seed, Serializable)
			if len(found) > 0 {
				guilty++
			}
			for _, k := range found {
				counts[k]++
			}
		}
		if guilty < c.least {
			t.Errorf("%s: convicted %d of 20 times: %v", level, guilty, counts)
		}
		for _, k := range c.always {
			if counts[k] < 15 {
				t.Errorf("%s: %s only %d of 20 times: %v", level, k, counts[k], counts)
			}
		}
		for _, k := range c.never {
			if counts[k] > 0 {
				t.Errorf("%s: %s %d times: %v", level, k, counts[k], counts)
			}
		}
	}
}

// FuzzRead: whatever the bytes, an error or a verdict.
func FuzzRead(f *testing.F) {
	y := &toy{rng: rand.New(rand.NewPCG(1, 1)), level: "committed"}
	var file bytes.Buffer
	if err := Write(&file, y.run(10)); err != nil {
		f.Fatal(err)
	}
	f.Add(file.Bytes())
	f.Add([]byte(`{"process":1,"status":"invoke","mops":[{"key":"x"}]}` + "\n" + `{"process":1,"status":"ok","mops":[{"key":"x","list":[5,5]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		events, err := Read(bytes.NewReader(data))
		if err != nil {
			return
		}
		if txns, err := Pair(events); err == nil {
			_ = fmt.Sprint(Check(txns, StrictSerializable))
		}
	})
}

// large is a history of 20,000 transactions, in parts with keys of their own.
func large(t testing.TB, level string) []Txn {
	t.Helper()
	y := &toy{rng: rand.New(rand.NewPCG(1, 1)), level: level}
	// Keys grow with the history in the toy; a short list per key is what tests use.
	var events []Event
	for i := range 40 {
		part := y.run(500)
		y.history = Recorder{}
		for _, e := range part {
			for j := range e.Mops {
				e.Mops[j].Key += strconv.Itoa(i)
			}
			events = append(events, e)
		}
	}
	txns, err := Pair(events)
	if err != nil {
		t.Fatal(err)
	}
	return txns
}

// TestLarge: 20,000 transactions are checked within seconds (a loaded machine and the race
// detector get a minute), whether something is wrong
// or not.
func TestLarge(t *testing.T) {
	for level, guilty := range map[string]bool{"locking": false, "committed": true, "snapshot": true} {
		txns := large(t, level)
		began := time.Now()
		found := Check(txns, StrictSerializable)
		took := time.Since(began)
		t.Logf("%s: %d transactions in %v: %d anomalies", level, len(txns), took, len(found))
		if len(txns) < 20_000 || len(found) > 0 != guilty || took > time.Minute {
			t.Errorf("%s: %d transactions, %d anomalies, %v", level, len(txns), len(found), took)
		}
	}
}

// BenchmarkCheck is a history with nothing wrong.
func BenchmarkCheck(b *testing.B) {
	txns := large(b, "locking")
	for b.Loop() {
		if found := Check(txns, StrictSerializable); len(found) > 0 {
			b.Fatal(kinds(found))
		}
	}
	b.ReportMetric(float64(len(txns)), "transactions")
}
