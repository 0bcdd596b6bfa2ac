package node

import (
	"context"
	"sync/atomic"
)

// Forwarding is told to which node a request was handed on, for an answer that lets clients
// go there themselves.
type Forwarding struct{ to atomic.Pointer[string] }

type forwardingKey struct{}

// WithForwarding returns a context whose request notes where it goes.
func WithForwarding(ctx context.Context) (context.Context, *Forwarding) {
	f := &Forwarding{}
	return context.WithValue(ctx, forwardingKey{}, f), f
}

// NoteForwarding notes the node that a request was handed to, the last of several.
func NoteForwarding(ctx context.Context, name string) {
	if f, ok := ctx.Value(forwardingKey{}).(*Forwarding); ok {
		f.to.Store(&name)
	}
}

// To is the name of the node; empty: the request was executed where it came in.
func (f *Forwarding) To() string {
	if to := f.to.Load(); to != nil {
		return *to
	}
	return ""
}
