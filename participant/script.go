package participant

import (
	"database/sql"
	"strconv"
	"time"
)

// Script is a branch's local transaction as statements, for an agent that sends
// them together with the work in one round trip:
//
//	Begin   Insert   (the work)   End
//
// All on one session whose lock_timeout is set, in this order, each only if those
// before it succeeded; and Guard must hold in a statement behind Insert, the work's
// last for example. If every one succeeds and the command tag of End is "PREPARE
// TRANSACTION", the branch is prepared: call Prepared, and vote yes. In every other
// case - an error, a broken connection, another tag - nothing is known: end the
// session's transaction and call Prepare, which finds out what is true and goes on
// from there.
type Script struct {
	Begin  string
	Insert Statement // the outcome row; fails if there is one
	End    string

	guard [][]byte
	probe string
}

// Statement is SQL, the same for every branch, with its parameters in text form;
// nil is NULL.
type Statement struct {
	SQL    string
	Params [][]byte
}

// Guard is a boolean expression with its parameters, numbered behind the first n of
// the statement that it will stand in: false once the transaction is forgotten.
// probe is a further term for the statement's WITH, or empty.
func (s *Script) Guard(n int) (expression, probe string, params [][]byte) {
	number := func(i int) string { return "$" + strconv.Itoa(n+i) }
	return `NOT EXISTS (SELECT FROM assent_watermark w WHERE w.shards = ` + number(1) + `::bigint AND w.shard = ` + number(2) +
		`::bigint AND ` + number(3) + `::text COLLATE "C" < w.forgotten)`, s.probe, s.guard
}

// Script returns the statements for a prepare with PostgreSQLPrepared; false if the
// call is one for Prepare alone: the first of its cluster or incarnation, one-phase, with
// operations that do not match or were executed before, or of a branch or transaction that is known here.
func (p *Participant) Script(c *Call) (Script, bool) {
	if p.native == nil || c.OnePhase || c.Executed > 0 || c.Shards == 0 || c.Mismatch() != "" || !p.native.serves(c) || !p.surelyCurrent(c) || p.native.held.has(c) {
		return Script{}, false
	}
	p.forget.note(c)
	p.forget.mu.Lock()
	below := c.Transaction < p.forget.seen[home{c.Shard, c.Shards}]
	p.forget.mu.Unlock()
	if below {
		return Script{}, false
	}
	number := func(n int64) []byte { return strconv.AppendInt(nil, n, 10) }
	return Script{
		Begin: p.scripts.begin,
		Insert: Statement{insertScript, [][]byte{
			[]byte(c.Transaction), number(int64(c.Branch)), []byte(stateCommitted), []byte(c.Digest), number(int64(c.Count)), []byte("false"),
			[]byte(c.Token), number(int64(c.Term)), number(int64(randA(c.Transaction))), nil, nil, []byte(""), number(time.Now().UnixMilli()),
		}},
		End:   "PREPARE TRANSACTION '" + gidOf(c) + "'",
		guard: [][]byte{number(int64(c.Shards)), number(int64(c.Shard)), []byte(c.Transaction)},
		probe: p.scripts.probe,
	}, true
}

// serves reports whether the call is certainly of the cluster that this database is
// bound to.
func (n *native) serves(c *Call) bool {
	bound := n.cluster.Load()
	return bound != nil && c.Cluster == *bound && validID(c.Transaction)
}

// Prepared notes that a Script has prepared the branch.
func (p *Participant) Prepared(c *Call) { p.native.held.add(c, nil) }

// CommitScript returns the one statement that commits a branch which this process has
// prepared, as a call of Finish asks for; false if Finish must look for it. If the
// statement succeeds, OutcomeCommitted is true; in every other case call Finish.
func (p *Participant) CommitScript(c *Call) (string, bool) {
	if p.native == nil || c.Phase != PhaseCommit || !p.native.serves(c) || !p.surelyCurrent(c) {
		return "", false
	}
	p.forget.note(c)
	gid := p.native.held.take(c)
	if gid == "" {
		return "", false
	}
	return endStatement(c.Phase, gid), true
}

const insertScript = `INSERT INTO assent_outcome
	(txn, branch, state, digest, op_count, one_phase, token, term, home, operations, results, reason, updated_ms)
	VALUES ($1::text, $2::bigint, $3::text, $4::text, $5::bigint, $6::boolean, $7::text, $8::bigint, $9::bigint, $10::bytea, $11::bytea, $12::text, $13::bigint)`

// scripts are what the statements of a Script take from the configuration.
type scripts struct{ begin, probe string }

func (p *Participant) makeScripts() scripts {
	s := scripts{begin: "BEGIN ISOLATION LEVEL " + p.cfg.Isolation.String()}
	if p.cfg.Isolation > sql.LevelReadCommitted {
		// One snapshot serves all statements: the same probe as readForgotten's refuses
		// the transaction if the watermark was raised behind it.
		s.probe = `assent_probe AS (INSERT INTO assent_watermark (shards, shard, forgotten) VALUES (0, 0, '') ON CONFLICT DO NOTHING)`
	}
	return s
}
