package node

import (
	"context"
	"errors"
	"maps"
	"time"
)

// KeyedStep is for tests that need two keys with one number.
var KeyedStep = keyedStep

// WaitReady returns when every shard leads.
func (n *Node) WaitReady(ctx context.Context) error {
	for !n.Health().Ready {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), errors.New(n.Health().Message))
		}
	}
	return nil
}

// LoseRegistry empties this node's copy of the registry, as it is before the log has
// arrived. What it returns brings services back.
func (n *Node) LoseRegistry() (arrive func(names ...string)) {
	whole := n.registry.Load()
	n.registry.Store(&registry{byName: map[string]*registered{}})
	return func(names ...string) {
		next := &registry{byName: maps.Clone(n.registry.Load().byName)}
		for _, name := range names {
			next.byName[name] = whole.byName[name]
		}
		n.registry.Store(next)
	}
}

// KeepRegistry keeps this node's copy of the registry. What it returns puts the copy back,
// whatever came since then; and that brings what came.
func (n *Node) KeepRegistry() (putBack func() (arrive func())) {
	kept := n.registry.Load()
	return func() func() {
		newer := n.registry.Swap(kept)
		return func() { n.registry.Store(newer) }
	}
}
