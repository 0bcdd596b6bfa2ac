package postgres

import (
	"context"
	"errors"
	"strconv"
	"strings"

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
}

var _ participant.Resource = (*resource)(nil)

// Prepare implements participant.Resource.
func (r *resource) Prepare(ctx context.Context, c *participant.Call) (participant.Vote, error) {
	if script, ok := r.Script(c); ok {
		if work, ok := plainWork(c, &script); ok {
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
	return conn.Conn().PgConn().Exec(ctx, sql).Close() == nil
}

// plainWork returns the statements of a call if they are all of the kind that the
// fast road takes - nothing returned, and expectations that the server can check -
// with the script's guard in the last of them.
func plainWork(c *participant.Call, script *participant.Script) ([]participant.Statement, bool) {
	var statements []statement
	for _, payload := range c.Operations {
		op, err := decode(payload)
		if err != nil {
			return nil, false
		}
		statements = append(statements, op.Statements...)
	}
	work := make([]participant.Statement, 0, len(statements))
	for i := range statements {
		var guard *participant.Script
		if i == len(statements)-1 {
			guard = script
		}
		s, ok := plain(&statements[i], guard)
		if !ok {
			return nil, false
		}
		work = append(work, s)
	}
	return work, len(work) > 0
}

// plain is the statement as the fast road sends it. What must hold, the expectation
// and the script's guard, must hold before the transaction is prepared: afterwards a
// crash would leave a prepared branch that nobody has vouched for.
func plain(s *statement, script *participant.Script) (participant.Statement, bool) {
	out := participant.Statement{SQL: s.SQL}
	switch firstWord(s.SQL) {
	case "INSERT", "UPDATE", "DELETE":
	default:
		return out, false
	}
	if returning(s.SQL) {
		return out, false
	}
	for _, raw := range s.Args {
		arg, err := argument(raw)
		if err != nil {
			return out, false
		}
		text, isText := arg.(string)
		if !isText {
			out.Params = append(out.Params, nil)
		} else {
			out.Params = append(out.Params, []byte(text))
		}
	}
	if s.Expect == nil && script == nil {
		return out, true
	}
	if script != nil && names(s.SQL, len(s.Args)) {
		return out, false // a mistake, which must not find a parameter of the guard
	}
	with, holds, from := "assent_work AS ("+strings.TrimRight(s.SQL, "; \t\r\n"), "", ""
	if s.Expect != nil {
		with += "\nRETURNING 1"
		holds, from = "count(*) = "+strconv.FormatInt(*s.Expect.Rows, 10), " FROM assent_work"
	}
	with += "\n)"
	if script != nil {
		guard, probe, params := script.Guard(len(s.Args))
		out.Params = append(out.Params, params...)
		if holds != "" {
			holds += " AND "
		}
		holds += guard
		if probe != "" {
			with += ", " + probe
		}
	}
	out.SQL = "WITH " + with + " SELECT 1 / (" + holds + ")::int" + from
	return out, true
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
	names := make([]string, 0, len(work)+1)
	all := append([]participant.Statement{s.Insert}, work...)
	for i := range all {
		name, err := inSession(ctx, pg, all[i].SQL)
		if err != nil {
			return false // the SDK's road says what is wrong with it
		}
		names = append(names, name)
	}
	pipe := pg.StartPipeline(ctx)
	pipe.SendQueryParams(s.Begin, nil, nil, nil, nil)
	for i, st := range all {
		pipe.SendQueryPrepared(names[i], st.Params, nil, nil)
	}
	pipe.SendQueryParams(s.End, nil, nil, nil, nil)
	tag, err := lastTag(pipe)
	if err == nil && tag == "PREPARE TRANSACTION" {
		return true
	}
	if !pg.IsClosed() && pg.TxStatus() != 'I' {
		if err := pg.Exec(ctx, "ROLLBACK").Close(); err != nil {
			_ = pg.Close(context.WithoutCancel(ctx)) // not for anybody else; the server ends what it was at
		}
	}
	return false
}

// lastTag reads all answers of a pipeline and returns the last command's tag.
func lastTag(pipe *pgconn.Pipeline) (string, error) {
	if err := pipe.Sync(); err != nil {
		return "", errors.Join(err, pipe.Close())
	}
	tag := ""
	for {
		answer, err := pipe.GetResults()
		if err != nil {
			return "", errors.Join(err, pipe.Close())
		}
		switch answer := answer.(type) {
		case *pgconn.ResultReader:
			done, err := answer.Close()
			if err != nil {
				return "", errors.Join(err, pipe.Close())
			}
			tag = done.String()
		case *pgconn.PipelineSync:
			return tag, pipe.Close()
		default:
			return "", errors.Join(errors.New("the pipeline ended early"), pipe.Close())
		}
	}
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
	name := "assent_" + strconv.Itoa(len(known))
	if _, err := pg.Prepare(ctx, name, sql, nil); err != nil {
		return "", err
	}
	known[sql] = name
	return name, nil
}
