package participant

import (
	"strconv"
	"time"
)

// Script is a branch's local transaction as statements, for an agent that sends
// them together with the work in one round trip:
//
//	Begin   Insert   Guard   (the work)   End
//
// All on one session, in this order, each only if those before it succeeded. If
// every one succeeds and the command tag of End is "PREPARE TRANSACTION", the branch
// is prepared: call Prepared, and vote yes. In every other case - an error, a broken
// connection, another tag - nothing is known: end the session's transaction and call
// Prepare, which finds out what is true and goes on from there.
type Script struct {
	Begin  string
	Insert Statement // the outcome row; fails if there is one
	Guard  Statement // fails if the transaction is forgotten
	End    string
}

// Statement is SQL, the same for every branch, with its parameters in text form;
// nil is NULL.
type Statement struct {
	SQL    string
	Params [][]byte
}

// Script returns the statements for a prepare with PostgreSQLPrepared; false if the
// call is one for Prepare alone: the first of its cluster, one-phase, with
// operations that do not match, or of a branch or transaction that is known here.
func (p *Participant) Script(c *Call) (Script, bool) {
	if p.native == nil || c.OnePhase || c.Shards == 0 || !validID(c.Transaction) || c.Mismatch() != "" {
		return Script{}, false
	}
	bound := p.native.cluster.Load()
	if bound == nil || c.Cluster != *bound || p.native.held.has(c) {
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
	branch := number(int64(c.Branch))
	return Script{
		Begin: p.scripts.begin,
		Insert: Statement{p.scripts.insert, [][]byte{
			[]byte(c.Transaction), branch, []byte(stateCommitted), []byte(c.Digest), number(int64(c.Count)), []byte("false"),
			[]byte(c.Token), number(int64(c.Term)), number(int64(randA(c.Transaction))), nil, nil, []byte(""), number(time.Now().UnixMilli()),
		}},
		Guard: Statement{p.scripts.guard, [][]byte{number(int64(c.Shards)), number(int64(c.Shard)), []byte(c.Transaction)}},
		End:   "PREPARE TRANSACTION '" + gidOf(c) + "'",
	}, true
}

// Prepared notes that a Script has prepared the branch.
func (p *Participant) Prepared(c *Call) { p.native.held.add(c, nil) }

// scripts are the texts of the statements of a Script.
type scripts struct{ begin, insert, guard string }

func (p *Participant) makeScripts() scripts {
	wait := p.cfg.LockTimeout
	return scripts{
		begin:  "BEGIN ISOLATION LEVEL " + p.cfg.Isolation.String(),
		insert: `WITH outcome AS (` + postgresQueries(min(wait, duplicateWait), wait).insert + `) SELECT 1 / count(*) FROM outcome`,
		// The same look as readForgotten, with the same probe.
		guard: `WITH probe AS (INSERT INTO assent_watermark (shards, shard, forgotten) VALUES (0, 0, '') ON CONFLICT DO NOTHING)
			SELECT 1 / CASE WHEN $3::text COLLATE "C" < w.forgotten THEN 0 ELSE 1 END
			FROM ` + setLockTimeout(wait) + ` LEFT JOIN assent_watermark w ON w.shards = $1::bigint AND w.shard = $2::bigint`,
	}
}
