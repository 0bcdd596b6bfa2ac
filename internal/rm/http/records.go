package rmhttp

import (
	"encoding/binary"
	"net"
	"time"
)

const recordHeaderBytes = 5 // RFC 8446, 5.1: type, version, length of what follows

// records is the connection below TLS. It follows the records that pass, since TLS
// reads ahead: bytes that it keeps are seen by nobody who looks at the socket.
type records struct {
	net.Conn
	header [recordHeaderBytes]byte
	have   int // bytes of header; 0: the last record is whole
	left   int // bytes of the record still to come, once the header is whole
}

// Read implements net.Conn.
func (r *records) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	for b := p[:n]; len(b) > 0; {
		if r.have < recordHeaderBytes {
			k := copy(r.header[r.have:], b)
			r.have, b = r.have+k, b[k:]
			r.left = int(binary.BigEndian.Uint16(r.header[3:]))
		} else {
			k := min(r.left, len(b))
			r.left, b = r.left-k, b[k:]
		}
		if r.have == recordHeaderBytes && r.left == 0 {
			r.have = 0
		}
	}
	return n, err
}

var longAgo = time.Unix(1, 0)

// quiet reports whether nothing has come on an idle connection that the next answer
// could be taken for: in the socket, in what TLS has read ahead, or in what TLS has
// decrypted. It does not wait.
func (c *conn) quiet() bool {
	if c.records != nil {
		if c.records.have > 0 || c.rw.SetReadDeadline(longAgo) != nil {
			return false
		}
		// Past the deadline nothing is read from the socket: TLS gives what it has.
		var b [1]byte
		if n, err := c.rw.Read(b[:]); n > 0 || !isTimeout(err) || c.records.have > 0 {
			return false
		}
	}
	return quiet(c.raw)
}
