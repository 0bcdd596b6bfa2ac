//go:build !unix

package rmhttp

import "net"

// quiet cannot look without reading here: a connection that was closed meanwhile
// is found by using it.
func quiet(net.Conn) bool { return true }
