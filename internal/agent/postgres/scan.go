package postgres

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf8"
)

// scan reads a payload written in the usual way, which is most of them, without
// reflection and without copies. False says nothing about the payload: it is for
// encoding/json then, which returns the same where scan returns true.
func scan(payload []byte, op *operation) bool {
	s := scanner{rest: payload}
	ok := s.object(func(key string) bool {
		return key == "statements" && op.Statements == nil && s.array(func() bool {
			op.Statements = append(op.Statements, statement{})
			return s.statement(&op.Statements[len(op.Statements)-1])
		})
	})
	s.space()
	return ok && len(s.rest) == 0
}

func (s *scanner) statement(st *statement) bool {
	var sql bool
	return s.object(func(key string) bool {
		switch key {
		case "sql":
			if sql {
				return false
			}
			sql = true
			return s.text(&st.SQL)
		case "args":
			return st.Args == nil && s.array(func() bool {
				raw, ok := s.value()
				st.Args = append(st.Args, raw)
				return ok
			})
		case "expect":
			if st.Expect != nil {
				return false
			}
			st.Expect = new(expectation)
			return s.object(func(key string) bool {
				if key != "rows" || st.Expect.Rows != nil {
					return false
				}
				raw, ok := s.value()
				if !ok {
					return false
				}
				n, err := strconv.ParseInt(string(raw), 10, 64)
				st.Expect.Rows = &n
				return err == nil
			})
		}
		return false
	})
}

// scanner is what is left of a text.
type scanner struct{ rest []byte }

func (s *scanner) space() {
	for len(s.rest) > 0 && (s.rest[0] == ' ' || s.rest[0] == '\n' || s.rest[0] == '\t' || s.rest[0] == '\r') {
		s.rest = s.rest[1:]
	}
}

// take reads one byte if it is c.
func (s *scanner) take(c byte) bool {
	s.space()
	if len(s.rest) == 0 || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

// list reads what stands between open and end, item by item.
func (s *scanner) list(open, end byte, item func() bool) bool {
	if !s.take(open) {
		return false
	}
	if s.take(end) {
		return true
	}
	for item() {
		if s.take(end) {
			return true
		}
		if !s.take(',') {
			return false
		}
	}
	return false
}

func (s *scanner) array(item func() bool) bool { return s.list('[', ']', item) }

func (s *scanner) object(member func(key string) bool) bool {
	return s.list('{', '}', func() bool {
		raw, ok := s.quoted()
		return ok && literal(raw) && s.take(':') && member(string(raw))
	})
}

// quoted reads a string and returns what stands between its quotes.
func (s *scanner) quoted() ([]byte, bool) {
	if !s.take('"') {
		return nil, false
	}
	for i := 0; i < len(s.rest); i++ {
		switch s.rest[i] {
		case '"':
			raw := s.rest[:i]
			s.rest = s.rest[i+1:]
			return raw, true
		case '\\':
			i++
		}
	}
	return nil, false
}

func (s *scanner) text(into *string) bool {
	s.space()
	from := s.rest
	raw, ok := s.quoted()
	if !ok {
		return false
	}
	if literal(raw) {
		*into = string(raw)
		return true
	}
	return json.Unmarshal(from[:len(raw)+2], into) == nil
}

// value reads any value, and returns it as it is written.
func (s *scanner) value() (json.RawMessage, bool) {
	s.space()
	from := s.rest
	if len(from) == 0 {
		return nil, false
	}
	switch from[0] {
	case '"':
		raw, ok := s.quoted()
		if !ok {
			return nil, false
		}
		whole := from[: len(raw)+2 : len(raw)+2]
		return whole, literal(raw) || json.Valid(whole)
	case '{', '[':
		return nil, false // seldom
	}
	end := bytes.IndexAny(from, ",]} \n\t\r")
	if end <= 0 {
		return nil, false
	}
	s.rest = from[end:]
	return from[:end:end], json.Valid(from[:end])
}

// literal reports whether a string between its quotes is what it stands for.
func literal(raw []byte) bool {
	for _, c := range raw {
		if c < ' ' || c == '\\' || c >= utf8.RuneSelf {
			return c >= utf8.RuneSelf && literalUnicode(raw)
		}
	}
	return true
}

func literalUnicode(raw []byte) bool {
	return utf8.Valid(raw) && bytes.IndexFunc(raw, func(r rune) bool { return r < ' ' || r == '\\' }) < 0
}
