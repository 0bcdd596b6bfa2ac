package node

import (
	"context"

	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
)

// BackupAt is a snapshot of a shard that this node leads. It is captured on the shard's
// loop, as for the log, and written beside it.
func (n *Node) BackupAt(ctx context.Context, at uint32) ([]byte, error) {
	var c *txn.Capture
	if err := n.scan(ctx, at, func(sh *shard.Shard) { c = sh.State().Capture() }); err != nil {
		return nil, err
	}
	var out []byte
	err := c.Write(func(b []byte) error {
		if len(out)+len(b) > maxSnapshotBytes {
			return reason.New(reason.RequestTooLarge, "let the coordinator forget more: --retention, --transactions-retained", "the state of shard %d is larger than %d bytes", at, maxSnapshotBytes)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		out = append(out, b...)
		return nil
	})
	return out, err
}
