package node

import (
	"context"
	"errors"
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
