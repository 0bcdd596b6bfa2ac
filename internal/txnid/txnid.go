// Package txnid is the identity of a transaction: a UUIDv7 (RFC 9562).
//
// Its 48-bit millisecond timestamp orders ids against the watermark below which
// an id is expired, and its 12 rand_a bits name the transaction's home shard, so
// that every request on an id reaches the same shard whatever its body says.
package txnid

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
)

// ID is a UUIDv7 in network byte order: comparing bytes compares timestamps first.
type ID [16]byte

// ErrInvalid is returned for text that is not a UUIDv7 in canonical spelling.
var ErrInvalid = errors.New("not a UUIDv7 in canonical text (36 lower-case characters, version 7, variant 10)")

// New builds an id from a Unix time in milliseconds (48 bits used) and ten random bytes.
func New(unixMs uint64, random [10]byte) ID {
	var id ID
	id[0] = byte(unixMs >> 40)
	id[1] = byte(unixMs >> 32)
	binary.BigEndian.PutUint32(id[2:6], uint32(unixMs))
	copy(id[6:], random[:])
	id[6] = 0x70 | id[6]&0x0f
	id[8] = 0x80 | id[8]&0x3f
	return id
}

// At is the id with a home in that shard: rand_a is changed as little as that takes.
func (id ID) At(shard, shards uint32) ID {
	a := uint32(id[6]&0x0f)<<8 | uint32(id[7])
	if a = a - a%shards + shard; a > 0xfff {
		a -= shards
	}
	id[6], id[7] = 0x70|byte(a>>8), byte(a)
	return id
}

// Beside is the id with the home of another, however many shards there are.
func (id ID) Beside(other ID) ID {
	const all = 1 << 12
	return id.At(other.Shard(all), all)
}

// Floor is the least id of a millisecond: every id with an earlier timestamp is below it.
func Floor(unixMs uint64) ID { return New(unixMs, [10]byte{}) }

// Parse accepts the canonical spelling only, so that one id has one text.
func Parse(s string) (ID, error) {
	var id ID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return ID{}, ErrInvalid
	}
	at := 0
	for i := 0; i < len(s); i += 2 {
		if s[i] == '-' {
			i++
		}
		hi, ok1 := nibble(s[i])
		lo, ok2 := nibble(s[i+1])
		if !ok1 || !ok2 {
			return ID{}, ErrInvalid
		}
		id[at] = hi<<4 | lo
		at++
	}
	if id[6]>>4 != 7 || id[8]>>6 != 2 {
		return ID{}, ErrInvalid
	}
	return id, nil
}

func nibble(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

// Append appends the canonical text to dst.
func (id ID) Append(dst []byte) []byte {
	dst = hex.AppendEncode(dst, id[0:4])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, id[4:6])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, id[6:8])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, id[8:10])
	dst = append(dst, '-')
	return hex.AppendEncode(dst, id[10:])
}

// String is the canonical text. It sorts as the ids themselves do.
func (id ID) String() string { return string(id.Append(make([]byte, 0, 36))) }

// UnixMs is the id's timestamp in milliseconds.
func (id ID) UnixMs() uint64 {
	return uint64(id[0])<<40 | uint64(id[1])<<32 | uint64(binary.BigEndian.Uint32(id[2:6]))
}

// Shard is the id's home among shards (rand_a modulo the shard count).
func (id ID) Shard(shards uint32) uint32 {
	return (uint32(id[6]&0x0f)<<8 | uint32(id[7])) % shards
}

// Less orders ids by timestamp, then by their random bits.
func (id ID) Less(other ID) bool {
	a, b := binary.BigEndian.Uint64(id[:8]), binary.BigEndian.Uint64(other[:8])
	if a != b {
		return a < b
	}
	return binary.BigEndian.Uint64(id[8:]) < binary.BigEndian.Uint64(other[8:])
}

// IsZero reports whether the id was never set.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText writes the canonical form; the zero id is empty.
func (id ID) MarshalText() ([]byte, error) {
	if id.IsZero() {
		return nil, nil
	}
	return id.Append(nil), nil
}

// UnmarshalText reads what MarshalText writes.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*id = ID{}
		return nil
	}
	var err error
	*id, err = Parse(string(text))
	return err
}
