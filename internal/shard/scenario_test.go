package shard

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

const epochMs = 1_750_000_000_000

// TestScenarios runs testdata/scenario/*; `go test -run Scenarios -rewrite` writes
// what the shard does now. Every directive prints what it made Ready: entries by
// txn.Describe, calls, replies and notices, and when the next Tick is due if that
// has changed. Proposals wait in a queue until commit or lose. Transactions are t1,
// t2, ...: the id of tN was made N ms after the epoch. Requests are numbered 1, 2, ...
//
//	config [retained=N] [retention=MS] [open=N] [waiting=N] [appends=N] [pending=BYTES] [wakeups=N]
//	                              a new shard with other limits, before anything else
//	lead [term=T]                 the next term, or T      follow
//	commit [n=N]                  the N eldest proposals (1) are applied; all=true: until none is left
//	stale                         the eldest proposal is appended in a later term: needs a lead before
//	lose                          all proposals are lost
//	submit tN a b [X|S key]... [one-phase] [wait=completed|none] [body=N] [timeout=MS]
//	rollback tN                   get tN                   resolve tN
//	cancel REQUEST tN|SERVICE     put-service NAME [one_phase]   delete-service NAME
//	answer tN BRANCH KIND [attempt=N]
//	                              the answer to the branch's last call: yes, no, read_only, ok,
//	                              unknown, committed, rolled_back, lost (indefinite)
//	after MS                      time passes, then a Tick
//	wake                          time passes until the Tick that is due
//	crash                         a new shard replays the log; snapshot=true: from a snapshot
//	print                         state and memory
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/scenario", func(t *testing.T, path string) {
		s := newScenario(scenarioDefaults())
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			before := s.wakeUs
			s.out.Reset()
			s.run(t, d)
			if err := s.sh.State().Check(); err != nil {
				d.Fatalf(t, "%v", err)
			}
			if s.wakeUs != before && s.wakeUs != 0 {
				fmt.Fprintf(&s.out, "tick due in %s ms\n", strconv.FormatFloat(float64(s.wakeUs-s.nowUs)/1000, 'f', -1, 64))
			}
			if s.out.Len() == 0 {
				return "nothing\n"
			}
			return s.short(s.out.String())
		})
	})
}

type scenario struct {
	cfg      Config
	sh       *Shard
	term     uint64
	nowUs    int64
	wakeUs   int64
	log      [][2]any // term, entry
	proposed [][]byte
	calls    map[string]Call // the last one of each branch
	token    Token
	out      strings.Builder
}

// scenarioDefaults have every entry go at once, so that one step shows all it does.
func scenarioDefaults() Config {
	cfg := DefaultConfig()
	cfg.OverlapCommands = 0
	return cfg
}

func newScenario(cfg Config) *scenario {
	cfg.Node = "n"
	cfg.ForgetCheckIntervalUs, cfg.HashCheckIntervalUs = 3_600_000_000, 0
	return &scenario{cfg: cfg, sh: New(cfg), calls: map[string]Call{}}
}

func testID(n int) txnid.ID {
	return txnid.New(epochMs+uint64(n), [10]byte{9: byte(n)})
}

func (s *scenario) short(text string) string {
	for n := range 128 {
		text = strings.ReplaceAll(text, testID(n).String(), "t"+strconv.Itoa(n))
	}
	return text
}

func (s *scenario) time() Time {
	return Time{MonoUs: s.nowUs, WallMs: epochMs + uint64(s.nowUs/1000)}
}

func (s *scenario) step(ev Event) {
	s.sh.Step(s.time(), ev)
	s.act()
}

func (s *scenario) act() {
	rd := s.sh.Ready()
	for _, entry := range rd.Entries {
		s.proposed = append(s.proposed, entry)
		lines, err := txn.Describe(entry)
		if err != nil {
			lines = []string{err.Error()}
		}
		fmt.Fprintf(&s.out, "propose [%s]\n", strings.Join(lines, "; "))
	}
	for i := range rd.Calls {
		c := &rd.Calls[i]
		s.calls[fmt.Sprintf("%s/%d", c.ID, c.Branch)] = *c
		fmt.Fprintf(&s.out, "call %s %s/%d at %s, attempt %d of term %d", c.Phase, c.ID, c.Branch, c.Service, c.Attempt, c.Term)
		if c.OnePhase {
			s.out.WriteString(", one phase")
		}
		if !c.Forgotten.IsZero() {
			fmt.Fprintf(&s.out, ", forgotten below %d ms", int64(c.Forgotten.UnixMs())-epochMs)
		}
		fmt.Fprintln(&s.out)
	}
	for i := range rd.Replies {
		s.out.WriteString(replyText(&rd.Replies[i]))
	}
	for i := range rd.Notices {
		s.out.WriteString(noticeText(&rd.Notices[i]))
	}
	s.wakeUs = rd.WakeAtUs
	s.sh.Advance()
}

func replyText(r *Reply) string {
	text := fmt.Sprintf("reply %d:", r.Token)
	if r.Err != nil {
		text += fmt.Sprintf(" %s (%s)", r.Err.Code, r.Err.Message)
	}
	if v := r.View; v != nil {
		text += fmt.Sprintf(" %s %s", v.Txn.ID, v.Txn.Status)
		if v.Txn.Abort != nil {
			text += fmt.Sprintf(" (%s: %s)", v.Txn.Abort.Reason, v.Txn.Abort.Message)
		}
		for i := range v.Branches {
			text += fmt.Sprintf(" [%s %s", v.Txn.Branches[i].Service, v.Txn.Branches[i].Fate)
			if b := &v.Branches[i]; b.Vote != Indefinite {
				text += " " + b.Vote.String()
			}
			text += "]"
		}
		if v.WaitKey != "" {
			text += fmt.Sprintf(" waits for %s %s behind %v", v.WaitMode, v.WaitKey, v.WaitsFor)
		}
		if v.Repeated {
			text += " repeated"
		}
	}
	if v := r.Service; v != nil {
		text += fmt.Sprintf(" service %s generation=%d open=%d removed=%t", v.Service.Name, v.Service.Generation, v.Open, v.Removed)
	}
	return text + "\n"
}

func noticeText(n *Notice) string {
	switch n.Kind {
	case NoticeLeading:
		return fmt.Sprintf("notice: leads, %d open\n", n.N)
	case NoticeFollowing:
		return "notice: follows\n"
	case NoticeRetry:
		return fmt.Sprintf("notice: retry %s of %s at %s, failure %d: %s\n", n.Phase, n.ID, n.Service, n.N, n.Text)
	case NoticeHazard:
		return fmt.Sprintf("notice: hazard %s at %s: %s\n", n.ID, n.Service, n.Text)
	case NoticeStaleEntry:
		return "notice: stale entry\n"
	case NoticeIgnored:
		return fmt.Sprintf("notice: decision ignored %s\n", n.ID)
	case NoticeEnded:
		return fmt.Sprintf("notice: ended %s, committed=%t\n", n.ID, n.Committed)
	case NoticeBlocked:
		return fmt.Sprintf("notice: blocked %s\n", n.ID)
	case NoticeService:
		return fmt.Sprintf("notice: service %s %s\n", n.Service, n.Text)
	}
	return ""
}

func (s *scenario) commit() {
	entry := s.proposed[0]
	s.proposed = s.proposed[1:]
	s.apply(entry)
}

func (s *scenario) apply(entry []byte) {
	s.log = append(s.log, [2]any{s.term, entry})
	if err := s.sh.Apply(s.time(), uint64(len(s.log)), s.term, entry); err != nil {
		fmt.Fprintf(&s.out, "halts: %v\n", err)
	}
	s.act()
}

func (s *scenario) run(t *testing.T, d *datadriven.TestData) {
	arg := func(i int) string {
		if i < len(d.CmdArgs) {
			return d.CmdArgs[i].Key
		}
		return ""
	}
	id := func(text string) txnid.ID {
		n, err := strconv.Atoi(strings.TrimPrefix(text, "t"))
		if err != nil {
			return txnid.ID{}
		}
		return testID(n)
	}
	next := func() Token { s.token++; return s.token }
	switch d.Cmd {
	case "config":
		cfg := scenarioDefaults()
		for name, field := range map[string]*int{
			"retained": &cfg.RetainedTransactions, "open": &cfg.MaxOpenTransactions, "waiting": &cfg.MaxWaitingRequests,
			"appends": &cfg.MaxAppendsInFlight, "overlap": &cfg.OverlapCommands, "pending": &cfg.MaxPendingBytes, "wakeups": &cfg.RecoveryWakeups, "batch": &cfg.ForgetBatch,
		} {
			d.MaybeScanArgs(t, name, field)
		}
		d.MaybeScanArgs(t, "retention", &cfg.RetentionMs)
		d.MaybeScanArgs(t, "lockwait", &cfg.MaxLockWaitUs)
		*s = *newScenario(cfg)
	case "lead":
		s.term++
		d.MaybeScanArgs(t, "term", &s.term)
		s.step(&Lead{Term: s.term})
	case "space":
		s.step(&Space{Low: arg(0) == "low"})
	case "follow":
		s.step(&Follow{})
	case "commit":
		n := 1
		d.MaybeScanArgs(t, "n", &n)
		if d.HasArg("all") {
			n = 100
		}
		for ; n > 0 && len(s.proposed) > 0; n-- {
			s.commit()
		}
	case "stale":
		entry := s.proposed[0]
		s.proposed = s.proposed[1:]
		s.apply(entry)
	case "lose":
		s.proposed = nil
	case "submit":
		s.submit(t, d, id(arg(0)), next())
	case "rollback":
		s.step(&Rollback{Token: next(), ID: id(arg(0))})
	case "get":
		s.step(&Get{Token: next(), ID: id(arg(0))})
	case "resolve":
		s.step(&Resolve{Token: next(), ID: id(arg(0)), Note: "note"})
	case "cancel":
		n, _ := strconv.Atoi(arg(0))
		s.step(&Cancel{Token: Token(n), ID: id(arg(1)), Name: arg(1)})
	case "put-service":
		v := &txn.Service{Name: arg(0), Capabilities: txn.Tombstone}
		if d.HasArg("one_phase") {
			v.Capabilities |= txn.OnePhase
		}
		s.step(&PutService{Token: next(), Service: v})
	case "delete-service":
		s.step(&DeleteService{Token: next(), Name: arg(0)})
	case "answer":
		c, ok := s.calls[id(arg(0)).String()+"/"+arg(1)]
		if !ok {
			d.Fatalf(t, "no call of %s/%s", arg(0), arg(1))
		}
		ev := &CallDone{ID: c.ID, Branch: c.Branch, Phase: c.Phase, Attempt: c.Attempt, Term: c.Term}
		d.MaybeScanArgs(t, "attempt", &ev.Attempt)
		kind, ok := map[string]AnswerKind{
			"yes": VoteYes, "no": VoteNo, "read_only": VoteReadOnly, "ok": Acknowledged, "unknown": SaysUnknown,
			"committed": SaysCommitted, "rolled_back": SaysRolledBack, "lost": Indefinite,
		}[arg(2)]
		if !ok {
			d.Fatalf(t, "answer %q", arg(2))
		}
		if ev.Answer = kind; kind == Indefinite || kind == VoteNo {
			ev.Reason = "says " + arg(2)
		}
		s.step(ev)
	case "after":
		ms, _ := strconv.ParseInt(arg(0), 10, 64)
		s.nowUs += ms * 1000
		s.step(&Tick{})
	case "wake":
		s.nowUs = s.wakeUs
		s.step(&Tick{})
	case "crash":
		s.crash(t, d)
	case "print":
		s.out.WriteString(s.sh.String())
	default:
		d.Fatalf(t, "unknown command %q", d.Cmd)
	}
}

func (s *scenario) crash(t *testing.T, d *datadriven.TestData) {
	old := s.sh
	s.sh, s.proposed, s.wakeUs = New(s.cfg), nil, 0
	if d.HasArg("snapshot") {
		var snapshot []byte
		_ = old.State().Capture().Write(func(b []byte) error {
			snapshot = append(snapshot, b...)
			return nil
		})
		if err := s.sh.Restore(snapshot); err != nil {
			d.Fatalf(t, "%v", err)
		}
		return
	}
	for i, e := range s.log {
		if err := s.sh.Apply(s.time(), uint64(i+1), e[0].(uint64), e[1].([]byte)); err != nil {
			d.Fatalf(t, "%v", err)
		}
	}
	if s.sh.State().Hash() != old.State().Hash() {
		d.Fatalf(t, "the log makes another state when it is replayed")
	}
	s.act()
}

func (s *scenario) submit(t *testing.T, d *datadriven.TestData, id txnid.ID, token Token) {
	b := txn.Begin{ID: id, Digest: [32]byte{1}, TimeoutMs: 1000}
	ev := &Submit{Token: token, ID: id, Wait: WaitDecided}
	var needs []lock.Need
	for i := 1; i < len(d.CmdArgs); i++ {
		name := d.CmdArgs[i].Key
		switch {
		case name == "one-phase":
			b.OnePhase = true
		case name == "X" || name == "S":
			i++
			needs = append(needs, lock.Need{Key: d.CmdArgs[i].Key, Mode: map[string]lock.Mode{"S": lock.S, "X": lock.X}[name]})
		case name == "wait":
			ev.Wait = map[string]WaitMode{"completed": WaitCompleted, "none": WaitNone}[d.CmdArgs[i].Vals[0]]
		case name == "body":
			var n int
			d.ScanArgs(t, "body", &n)
			b.Digest[0] = byte(n)
		case name == "timeout":
			var ms int
			d.ScanArgs(t, "timeout", &ms)
			b.TimeoutMs = uint32(ms)
		default:
			generation := uint64(1)
			if v := s.sh.State().Service(name); v != nil {
				generation = v.Generation
			}
			b.Branches = append(b.Branches, txn.BeginBranch{Service: name, Generation: generation, Ops: [][]byte{[]byte(`{}`)}})
		}
	}
	b.Locks = lock.Fold(needs)
	ev.Digest, ev.Begin = b.Digest, txn.AppendBegin(nil, &b)
	s.step(ev)
}
