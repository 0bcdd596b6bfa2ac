package rmhttp

import (
	"encoding/hex"
	"strconv"
	"unicode/utf8"

	"github.com/assent-tx/assent/internal/rm"
)

// appendCall appends the JSON body of a call. phase is the caller's, since a
// commit that is answered "unknown" is followed by a status question.
func appendCall(dst []byte, c *rm.Call, phase rm.Phase) []byte {
	dst = append(dst, `{"transaction":"`...)
	dst = c.Txn.Append(dst)
	dst = append(dst, `","cluster":"`...)
	dst = append(dst, c.Cluster...) // hexadecimal digits
	dst = append(dst, `","branch":`...)
	dst = strconv.AppendUint(dst, uint64(c.Branch), 10)
	dst = append(dst, `,"service":`...)
	dst = appendString(dst, c.Service)
	dst = append(dst, `,"phase":"`...)
	dst = append(dst, phase.String()...)
	dst = append(dst, `","attempt":`...)
	dst = strconv.AppendUint(dst, uint64(c.Attempt), 10)
	dst = append(dst, `,"term":`...)
	dst = strconv.AppendUint(dst, c.Term, 10)
	dst = append(dst, `,"token":`...)
	dst = appendString(dst, c.Token)
	if !c.Forgotten.IsZero() {
		dst = append(dst, `,"forgotten_below":"`...)
		dst = c.Forgotten.Append(dst)
		dst = append(dst, '"')
	}
	dst = append(dst, `,"shard":`...)
	dst = strconv.AppendUint(dst, uint64(c.Shard), 10)
	dst = append(dst, `,"shards":`...)
	dst = strconv.AppendUint(dst, uint64(c.Shards), 10)
	if phase == rm.Execute {
		dst = append(dst, `,"first":`...)
		dst = strconv.AppendUint(dst, uint64(c.First), 10)
		if c.Opened {
			dst = append(dst, `,"opened":true`...)
		}
	}
	if phase.Works() {
		dst = append(dst, `,"operations":[`...)
		for i, payload := range c.Operations {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(dst, `{"payload":`...)
			dst = append(dst, payload...) // exactly these bytes: the digest is over them
			dst = append(dst, '}')
		}
		dst = append(dst, `],"count":`...)
		dst = strconv.AppendInt(dst, int64(len(c.Operations)), 10)
		dst = append(dst, `,"digest":"`...)
		dst = hex.AppendEncode(dst, c.Digest[:])
		dst = append(dst, '"')
		if phase == rm.Prepare && c.Executed > 0 {
			dst = append(dst, `,"executed":`...)
			dst = strconv.AppendUint(dst, uint64(c.Executed), 10)
		}
		if c.Execution != "" {
			dst = append(dst, `,"execution":`...)
			dst = appendString(dst, c.Execution)
		}
		if c.OnePhase {
			dst = append(dst, `,"one_phase":true`...)
		}
	}
	return append(dst, '}')
}

// callSize is at least the length of appendCall's result when nothing is escaped.
func callSize(c *rm.Call, phase rm.Phase) int {
	n := 370 + len(c.Service) + len(c.Token)
	if phase.Works() {
		n += 240
		for _, payload := range c.Operations {
			n += len(payload) + len(`{"payload":},`)
		}
	}
	return n
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string; bytes that are not UTF-8 become U+FFFD.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		b := s[i]
		switch {
		case b == '"' || b == '\\':
			dst = append(dst, '\\', b)
		case b < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[b>>4], hexDigits[b&15])
		case b < utf8.RuneSelf:
			dst = append(dst, b)
		default:
			r, size := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += size
			continue
		}
		i++
	}
	return append(dst, '"')
}
