package lock

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Limits on a key, relative to its service.
const (
	MaxKeyBytes    = 256
	MaxKeySegments = 16
)

// What can be wrong with a key.
var (
	ErrKeyEmpty    = errors.New("empty")
	ErrKeyTooLong  = fmt.Errorf("longer than %d bytes", MaxKeyBytes)
	ErrKeyTooDeep  = fmt.Errorf("more than %d segments", MaxKeySegments)
	ErrKeyNotUTF8  = errors.New("not UTF-8")
	ErrKeyNotNFC   = errors.New("not in Unicode normalization form C")
	ErrKeyControl  = errors.New("control character")
	ErrKeySegment  = errors.New(`empty, "." or ".." segment`)
	ErrKeyBoundary = errors.New("leading or trailing slash")
	ErrKeyRange    = errors.New("a range; lock the segment above it, or split keys into segments of the ranges that you need")
)

// KeyError says what is wrong with a key and where; it wraps one of the above.
type KeyError struct {
	Key  string
	Byte int // offset of the first fault
	Err  error
}

// Error quotes at most the first 64 bytes of the key.
func (e *KeyError) Error() string {
	const quoted = 64
	key, more := e.Key, ""
	if len(key) > quoted {
		key, more = key[:quoted], "..."
	}
	return fmt.Sprintf("lock key %q%s: %v at byte %d", key, more, e.Err, e.Byte)
}

// Unwrap is what is wrong, without the key.
func (e *KeyError) Unwrap() error { return e.Err }

// CheckKey returns a *KeyError unless the key has the one spelling that is
// allowed: segments divided by '/', UTF-8 in form C without control characters,
// no empty, "." or ".." segment, at most MaxKeyBytes and MaxKeySegments. It
// guards the edge; replicated code does not call it, since what is normal
// depends on a Unicode version.
func CheckKey(key string) error {
	bad := func(at int, err error) error { return &KeyError{Key: key, Byte: at, Err: err} }
	switch {
	case key == "":
		return bad(0, ErrKeyEmpty)
	case len(key) > MaxKeyBytes:
		return bad(MaxKeyBytes, ErrKeyTooLong)
	case key[0] == '/':
		return bad(0, ErrKeyBoundary)
	case key[len(key)-1] == '/':
		return bad(len(key)-1, ErrKeyBoundary)
	}
	for i, r := range key {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(key[i:]); size == 1 {
				return bad(i, ErrKeyNotUTF8)
			}
		}
		if unicode.IsControl(r) {
			return bad(i, ErrKeyControl)
		}
	}
	for start, segments := 0, 1; ; segments++ {
		if segments > MaxKeySegments {
			return bad(start, ErrKeyTooDeep)
		}
		segment, rest, more := strings.Cut(key[start:], "/")
		if segment == "" || segment == "." || segment == ".." {
			return bad(start, ErrKeySegment)
		}
		if !more {
			if isRange(segment) {
				return bad(start, ErrKeyRange)
			}
			break
		}
		start = len(key) - len(rest)
	}
	if n := norm.NFC.QuickSpanString(key); n < len(key) && !norm.NFC.IsNormalString(key) {
		return bad(n, ErrKeyNotNFC)
	}
	return nil
}

// isRange: "[100,200)" and its like are kept for ranges, which there are none of: see
// the package comment.
func isRange(segment string) bool {
	first, last := segment[0], segment[len(segment)-1]
	return (first == '[' || first == '(') && (last == ']' || last == ')') && strings.Contains(segment, ",")
}

// Service is the first segment of a node's path.
func Service(key string) string {
	service, _, _ := strings.Cut(key, "/")
	return service
}

// parent is the path of the node above; the service itself has none.
func parent(key string) (string, bool) {
	i := strings.LastIndexByte(key, '/')
	if i < 0 {
		return "", false
	}
	return key[:i], true
}
