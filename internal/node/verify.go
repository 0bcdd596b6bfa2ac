package node

import "github.com/assent-tx/assent/internal/shard"

// hash hashes a captured state beside the loop.
func (r *runner) hash(c shard.Capture) {
	r.n.loops.Go(func() {
		done := &shard.Hashed{Index: c.Index, Hash: c.State.Hash()}
		select {
		case r.inbox <- request{ev: done}:
		case <-r.n.stop:
		}
	})
}
