package postgres

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// Limits of one operation.
const (
	maxStatements     = 64
	maxStatementBytes = 64 << 10
	maxArguments      = 1000
	maxResultRows     = 1000      // of one statement
	maxResultBytes    = 256 << 10 // of one operation, as JSON
)

// operation is the payload of an operation.
type operation struct {
	Statements []statement `json:"statements"`
}

func (op *operation) looksLikeQuery() bool {
	return !slices.ContainsFunc(op.Statements, func(s statement) bool { return !looksLikeQuery(s.SQL) })
}

// statement is one SQL statement with values for $1, $2, …
type statement struct {
	SQL    string            `json:"sql"`
	Args   []json.RawMessage `json:"args"`
	Expect *expectation      `json:"expect"`
}

// expectation must hold, or the branch votes no.
type expectation struct {
	Rows *int64 `json:"rows"` // changed or returned
}

// decode checks the form of a payload; its errors are for whoever wrote it. What it
// returns shares the payload's bytes.
func decode(payload []byte) (*operation, error) {
	op := new(operation)
	if !scan(payload, op) {
		*op = operation{}
		dec := json.NewDecoder(bytes.NewReader(payload))
		dec.DisallowUnknownFields()
		if err := dec.Decode(op); err != nil {
			return nil, fmt.Errorf(`the payload is not {"statements":[{"sql":"…","args":[…],"expect":{"rows":1}}]}: %w`, err)
		}
		if _, err := dec.Token(); !errors.Is(err, io.EOF) {
			return nil, errors.New("the payload holds more than one JSON value")
		}
	}
	if n := len(op.Statements); n == 0 || n > maxStatements {
		return nil, fmt.Errorf("%d statements; 1 to %d are accepted", n, maxStatements)
	}
	for i := range op.Statements {
		s := &op.Statements[i]
		switch {
		case strings.TrimSpace(s.SQL) == "":
			return nil, fmt.Errorf("statements[%d].sql is empty", i)
		case len(s.SQL) > maxStatementBytes:
			return nil, fmt.Errorf("statements[%d].sql has %d bytes; at most %d are accepted", i, len(s.SQL), maxStatementBytes)
		case strings.ContainsRune(s.SQL, 0):
			return nil, fmt.Errorf("statements[%d].sql holds a NUL", i)
		case len(s.Args) > maxArguments:
			return nil, fmt.Errorf("statements[%d] has %d args; at most %d are accepted", i, len(s.Args), maxArguments)
		case s.Expect != nil && (s.Expect.Rows == nil || *s.Expect.Rows < 0):
			return nil, fmt.Errorf("statements[%d].expect: name the rows, 0 or more", i)
		}
		if word := transactionControl(s.SQL); word != "" {
			return nil, fmt.Errorf("statements[%d]: %s is not for a statement: the agent begins and ends the transaction", i, word)
		}
		if why := outlives(s.SQL); why != "" {
			return nil, fmt.Errorf("statements[%d]: %s", i, why)
		}
	}
	return op, nil
}

// transactionControl returns the first word of a statement that would end or change
// the branch's local transaction, or "". The server refuses several statements in
// one, so the first word decides.
func transactionControl(sql string) string {
	switch word := firstWord(sql); word {
	case "BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE", "PREPARE", "EXECUTE", "DEALLOCATE",
		"SET", "RESET", "DISCARD", "LISTEN", "UNLISTEN", "NOTIFY", "DECLARE", "FETCH", "MOVE", "CLOSE", "COPY", "VACUUM", "DO", "CALL":
		return word
	}
	return ""
}

var (
	setConfig      = regexp.MustCompile(`(?i)\bset_config\s*\(`)
	setConfigLocal = regexp.MustCompile(`(?i)\bset_config\s*\((?:[^()']|'(?:[^']|'')*')*,\s*true\s*\)`)
)

// outlives says what a statement's text calls that a session keeps when the branch is
// prepared, or "": sessions serve other transactions next. PREPARE TRANSACTION refuses what
// has notified, and a branch that seems to read only is not prepared.
func outlives(sql string) string {
	switch {
	case !mayOutlive(sql):
	case hasWord(sql, "PG_NOTIFY"):
		return "pg_notify: a transaction that notifies cannot be prepared"
	case hasWord(sql, "PG_ADVISORY_LOCK", "PG_ADVISORY_LOCK_SHARED", "PG_TRY_ADVISORY_LOCK", "PG_TRY_ADVISORY_LOCK_SHARED"):
		return "the session would keep the advisory lock: use the function of the same name with _xact_"
	case hasWord(sql, "SET_CONFIG") && len(setConfig.FindAllStringIndex(sql, -1)) != len(setConfigLocal.FindAllStringIndex(sql, -1)):
		return "the session would keep what set_config sets: write true as its last argument"
	}
	return ""
}

// mayOutlive reports whether a text has "pg_" or "set_" at all, at the cost of a glance.
func mayOutlive(sql string) bool {
	for at := 0; ; at++ {
		next := strings.IndexByte(sql[at:], '_')
		if next < 0 {
			return false
		}
		at += next
		if at >= 2 && strings.EqualFold(sql[at-2:at], "pg") || at >= 3 && strings.EqualFold(sql[at-3:at], "set") {
			return true
		}
	}
}

// firstWord is the first key word of a statement in upper case, behind comments.
func firstWord(sql string) string {
	for {
		sql = strings.TrimLeft(sql, " \t\r\n\f\v(")
		switch {
		case strings.HasPrefix(sql, "--"):
			_, rest, _ := strings.Cut(sql, "\n")
			sql = rest
			continue
		case strings.HasPrefix(sql, "/*"):
			sql = afterComment(sql)
			continue
		}
		end := strings.IndexFunc(sql, func(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '_' })
		if end < 0 {
			end = len(sql)
		}
		return strings.ToUpper(sql[:end])
	}
}

// afterComment is what follows a block comment; PostgreSQL nests them.
func afterComment(sql string) string {
	depth := 0
	for i := 0; i+1 < len(sql); i++ {
		switch sql[i : i+2] {
		case "/*":
			depth++
			i++
		case "*/":
			depth--
			i++
			if depth == 0 {
				return sql[i+1:]
			}
		}
	}
	return ""
}

// argument is a JSON value as a parameter in text form: the server knows its type. Nil
// is NULL.
func argument(raw json.RawMessage) ([]byte, error) {
	switch raw[0] {
	case 'n':
		return nil, nil
	case '"':
		if inner := raw[1 : len(raw)-1]; literal(inner) {
			return inner, nil
		}
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			return nil, err
		}
		if strings.ContainsRune(s, 0) {
			return nil, errors.New("a NUL cannot be stored as text")
		}
		return append([]byte{}, s...), nil // an empty text is not NULL
	default: // numbers as they are written, true and false, objects and arrays as JSON
		return raw, nil
	}
}
