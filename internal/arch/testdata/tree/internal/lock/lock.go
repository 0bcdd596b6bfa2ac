package lock // want "no package comment"

import (
	stdtime "time" // want "pure ring may not import time"

	"context"  // want "pure ring may not import context"
	"io"       // want "pure ring may not import io"
	_ "unsafe" // want "pure ring may not import unsafe"

	"maps"

	"github.com/assent-tx/assent/internal/node" // want "internal/lock may not import internal/node"
	"github.com/assent-tx/assent/internal/txnid"
	"golang.org/x/text/unicode/norm"
)

// TODO: later // want "TODO"

var (
	_    = stdtime.Now() // want "time.Now outside the edges"
	_    = stdtime.Second
	_, _ = context.WithTimeout(nil, 0) // want "context.WithTimeout outside the edges"
	_    io.Reader
	_    = maps.Keys[map[int]int]
	_    node.Node
	_    txnid.ID
	_    = norm.NFC
)
