package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/assent-tx/assent/participant"
)

// resource is the participant with a fast road for what is most common: a branch of
// plain INSERTs, UPDATEs and DELETEs that goes well is begun, executed, checked and
// prepared in one round trip. Whatever does not go well there is left to the SDK,
// which finds out what is true: the two use the same rows and the same names.
type resource struct {
	*participant.Participant
	pool    *pgxpool.Pool
	metrics *metrics
	texts   *texts
}

var _ participant.Resource = (*resource)(nil)

// Prepare implements participant.Resource.
func (r *resource) Prepare(ctx context.Context, c *participant.Call) (participant.Vote, error) {
	if script, ok := r.Script(c); ok {
		if work, ok := r.plainWork(c, &script); ok {
			if r.inOneTrip(ctx, &script, work) {
				r.Prepared(c)
				r.metrics.vote("yes")
				r.metrics.fast.Inc()
				return participant.Vote{Vote: "yes"}, nil
			}
			r.metrics.slow.Inc()
		}
	}
	return r.Participant.Prepare(ctx, c)
}

// Execute takes the calls that come before the prepare.
func (r *resource) Execute(ctx context.Context, c *participant.Call) (participant.Execution, error) {
	x, err := r.Participant.Execute(ctx, c)
	r.metrics.executed(&x, err)
	return x, err
}

// Finish implements participant.Resource.
func (r *resource) Finish(ctx context.Context, c *participant.Call) (participant.Outcome, error) {
	if sql, ok := r.CommitScript(c); ok && r.commit(ctx, sql) {
		return participant.OutcomeCommitted, nil
	}
	return r.Participant.Finish(ctx, c)
}

func (r *resource) commit(ctx context.Context, sql string) bool {
	conn, err := r.pool.Acquire(ctx)
	if err != nil {
		return false
	}
	defer conn.Release()
	t := newTrip()
	defer t.free()
	t.alone(sql)
	tag, err := t.run(ctx, conn.Conn().PgConn())
	return err == nil && tag == "COMMIT PREPARED"
}

// plainWork returns the statements of a call if they are all of the kind that the
// fast road takes - nothing returned, and expectations that the server can check -
// with the script's guard in one of them: one that has an expectation to check
// anyway, or the last.
func (r *resource) plainWork(c *participant.Call, script *participant.Script) ([]participant.Statement, bool) {
	var statements []statement
	for _, payload := range c.Operations {
		op, err := decode(payload)
		if err != nil {
			return nil, false
		}
		if statements == nil {
			statements = op.Statements
		} else {
			statements = append(statements, op.Statements...)
		}
	}
	guarded := slices.IndexFunc(statements, func(s statement) bool { return s.Expect != nil })
	if guarded < 0 {
		guarded = len(statements) - 1
	}
	work := make([]participant.Statement, 0, len(statements))
	for i := range statements {
		var guard *participant.Script
		if i == guarded {
			guard = script
		}
		s, ok := r.texts.plain(&statements[i], guard)
		if !ok {
			return nil, false
		}
		work = append(work, s)
	}
	return work, len(work) > 0
}

// form is what the text of a statement on the fast road depends on.
type form struct {
	sql     string
	args    int
	rows    int64 // that are expected; -1: any
	guarded bool
}

// texts are those of the fast road, made once for each form; "" is for statements that
// do not take it.
type texts struct {
	mu   sync.RWMutex
	made map[form]string
}

const (
	maxTexts     = 1024
	maxTextBytes = 8 << 10 // longer ones are made each time
)

func (t *texts) get(f *form, script *participant.Script) string {
	t.mu.RLock()
	text, ok := t.made[*f]
	t.mu.RUnlock()
	if ok {
		return text
	}
	if text = f.text(script); len(f.sql) > maxTextBytes {
		return text
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.made == nil || len(t.made) >= maxTexts { // texts with values in them: begin anew
		t.made = make(map[form]string)
	}
	own := *f
	own.sql = strings.Clone(f.sql)
	t.made[own] = text
	return text
}

// plain is the statement as the fast road sends it. What must hold, the expectation
// and the script's guard, must hold before the transaction is prepared: afterwards a
// crash would leave a prepared branch that nobody has vouched for.
func (t *texts) plain(s *statement, script *participant.Script) (out participant.Statement, ok bool) {
	f := form{sql: s.SQL, args: len(s.Args), rows: -1, guarded: script != nil}
	if s.Expect != nil {
		f.rows = *s.Expect.Rows
	}
	if out.SQL = t.get(&f, script); out.SQL == "" {
		return out, false
	}
	var guard [][]byte
	if script != nil {
		_, _, guard = script.Guard(len(s.Args))
	}
	out.Params = make([][]byte, 0, len(s.Args)+len(guard))
	for _, raw := range s.Args {
		value, err := argument(raw)
		if err != nil {
			return out, false
		}
		out.Params = append(out.Params, value)
	}
	out.Params = append(out.Params, guard...)
	return out, true
}

// text is the statement with what must hold around it, or "".
func (f *form) text(script *participant.Script) string {
	switch firstWord(f.sql) {
	case "INSERT", "UPDATE", "DELETE":
	default:
		return ""
	}
	if returning(f.sql) {
		return ""
	}
	if f.rows < 0 && !f.guarded {
		return f.sql
	}
	if f.guarded && names(f.sql, f.args) {
		return "" // a mistake, which must not find a parameter of the guard
	}
	with, holds, from := "assent_work AS ("+strings.TrimRight(f.sql, "; \t\r\n"), "", ""
	if f.rows >= 0 {
		with += "\nRETURNING 1"
		holds, from = "count(*) = "+strconv.FormatInt(f.rows, 10), " FROM assent_work"
	}
	with += "\n)"
	if f.guarded {
		guard, probe, _ := script.Guard(f.args)
		if holds != "" {
			holds += " AND "
		}
		holds += guard
		if probe != "" {
			with += ", " + probe
		}
	}
	return "WITH " + with + " SELECT 1 / (" + holds + ")::int" + from
}

// names reports whether the text may name a parameter behind the first n.
func names(sql string, n int) bool {
	for {
		_, rest, found := strings.Cut(sql, "$")
		if !found {
			return false
		}
		digits := 0
		for digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9' {
			digits++
		}
		if number, err := strconv.Atoi(rest[:digits]); digits > 0 && (err != nil || number > n) {
			return true
		}
		sql = rest
	}
}

// maxSessionStatements are kept prepared in one session of the database.
const maxSessionStatements = 256

// inOneTrip sends everything at once and reports whether the branch is prepared.
func (r *resource) inOneTrip(ctx context.Context, s *participant.Script, work []participant.Statement) bool {
	conn, err := r.pool.Acquire(ctx)
	if err != nil {
		return false
	}
	defer conn.Release()
	pg := conn.Conn().PgConn()
	t := newTrip()
	defer t.free()
	add := func(st *participant.Statement) bool {
		name, err := inSession(ctx, pg, st.SQL)
		if err != nil {
			return false // the SDK's road says what is wrong with it
		}
		t.prepared(name, st.Params)
		return true
	}
	if !add(&participant.Statement{SQL: s.Begin}) || !add(&s.Insert) {
		return false
	}
	for i := range work {
		if !add(&work[i]) {
			return false
		}
	}
	t.once(s.End)
	t.end()
	tag, err := t.run(ctx, pg)
	if err == nil && tag == "PREPARE TRANSACTION" {
		return true
	}
	if !pg.IsClosed() && pg.TxStatus() != 'I' {
		if err := pg.Exec(ctx, "ROLLBACK").Close(); err != nil {
			drop(pg) // not for anybody else
		}
	}
	return false
}

// sessionStatements is the key of a session's prepared statements, by their text.
const sessionStatements = "assent statements"

// inSession returns the name of a statement in this session; the first use of a text
// takes a round trip of its own.
func inSession(ctx context.Context, pg *pgconn.PgConn, sql string) (string, error) {
	known, _ := pg.CustomData()[sessionStatements].(map[string]string)
	if known == nil {
		known = make(map[string]string)
		pg.CustomData()[sessionStatements] = known
	}
	if name, ok := known[sql]; ok {
		return name, nil
	}
	if len(known) >= maxSessionStatements { // texts with values in them: begin anew
		for text, name := range known { // the driver has others in the session, so not all at once
			if err := pg.Deallocate(ctx, name); err != nil {
				return "", err
			}
			delete(known, text)
		}
	}
	digest := sha256.Sum256([]byte(sql)) // a pooler may have lent the server's session to another process
	name := "assent_" + hex.EncodeToString(digest[:16])
	if _, err := pg.Prepare(ctx, name, sql, nil); err != nil {
		return "", err
	}
	known[sql] = name
	return name, nil
}
