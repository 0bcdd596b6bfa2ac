package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
)

// A backup is taken in two rounds, so that the parts of the shards are of one moment, or
// nearly so, and no node holds them all: every leader captures its shard and keeps that
// for a while; then the node that was asked has them handed over in pieces.

const (
	// backupPieceBytes travel in one call; as JSON they are a third more.
	backupPieceBytes = 4 << 20
	// backupKept is how long a leader keeps what it captured after it was last asked for.
	backupKept = time.Minute
	// backupReleased bounds how long is tried to tell it that it need not.
	backupReleased = 2 * time.Second
)

// captured are the parts that this node keeps: of one backup at a time.
type captured struct {
	mu    sync.Mutex
	id    string
	used  time.Time
	parts map[uint32][]byte
	timer *time.Timer
}

type backupAsk struct {
	ID     string `json:"id"`
	Shard  uint32 `json:"shard"`
	Read   bool   `json:"read,omitempty"` // a piece; else: capture
	Drop   bool   `json:"drop,omitempty"` // what was captured; else: capture
	Offset int64  `json:"offset,omitempty"`
}

type backupTold struct {
	Size  int64  `json:"size"`
	Piece []byte `json:"piece,omitempty"`
}

// nameOfAsker is in a backup's id: a node makes one at a time, so a new one replaces what is
// left of its last.
func nameOfAsker(id string) string {
	asker, _, _ := strings.Cut(id, "/")
	return asker
}

// claim makes the backup the one whose parts are kept here.
func (k *captured) claim(id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if nameOfAsker(k.id) != nameOfAsker(id) && k.id != "" && time.Since(k.used) < backupKept {
		return backupUnderWay()
	}
	if k.id != id {
		k.id, k.parts = id, map[uint32][]byte{}
	}
	k.touch()
	return nil
}

func backupUnderWay() *reason.Error {
	e := reason.New(reason.Overloaded, "one at a time; one that was given up is forgotten after "+backupKept.String(), "another backup is being made")
	e.RetryAfterMs = 5000
	return e
}

func (k *captured) touch() {
	k.used = time.Now()
	if k.timer == nil {
		k.timer = time.AfterFunc(backupKept, k.expire)
	} else {
		k.timer.Reset(backupKept)
	}
}

func (k *captured) expire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.used) >= backupKept {
		k.id, k.parts = "", nil
	}
}

func (k *captured) keep(id string, shard uint32, data []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.id == id {
		k.parts[shard] = data
		k.touch()
	}
}

// part is what was captured of a shard.
func (k *captured) part(id string, shard uint32) (data []byte, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.id == id {
		data, ok = k.parts[shard]
	}
	return data, ok
}

// handed counts a piece as read; behind the last one the part is let go.
func (k *captured) handed(id string, shard uint32, last bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.id != id {
		return
	}
	k.touch()
	if last {
		delete(k.parts, shard)
	}
	if len(k.parts) == 0 {
		k.id, k.parts = "", nil
		k.timer.Stop()
	}
}

func (k *captured) drop(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.id == id {
		k.id, k.parts = "", nil
		k.timer.Stop()
	}
}

func (k *captured) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.timer != nil {
		k.timer.Stop()
	}
}

func (c *Cluster) doBackup(ctx context.Context, n *node.Node, q backupAsk) (backupTold, error) {
	if q.Drop {
		c.captured.drop(q.ID)
		return backupTold{}, nil
	}
	data, ok := c.captured.part(q.ID, q.Shard)
	switch {
	case !q.Read && !ok:
		if err := c.captured.claim(q.ID); err != nil {
			return backupTold{}, err
		}
		data, err := n.BackupAt(ctx, q.Shard)
		if err != nil {
			return backupTold{}, err
		}
		c.captured.keep(q.ID, q.Shard, data)
		return backupTold{Size: int64(len(data))}, nil
	case !ok:
		return backupTold{}, reason.New(reason.NotFound, "begin the backup again", "what was captured of shard %d is gone: it has another leader, or the backup took too long", q.Shard)
	case !q.Read:
		return backupTold{Size: int64(len(data))}, nil
	case q.Offset < 0 || q.Offset > int64(len(data)):
		return backupTold{}, reason.New(reason.InvalidField, "", "offset %d of %d bytes", q.Offset, len(data))
	}
	piece := data[q.Offset:min(q.Offset+backupPieceBytes, int64(len(data)))]
	// The part is let go when the piece behind its end, which is empty, is asked for: a
	// piece whose answer was lost is asked for again.
	c.captured.handed(q.ID, q.Shard, len(piece) == 0)
	return backupTold{Size: int64(len(data)), Piece: piece}, nil
}

// Backup captures the state of every shard.
func (c *Cluster) Backup(ctx context.Context) (*node.Backup, error) {
	r := c.running.Load()
	if r == nil {
		return nil, notStarted()
	}
	if !c.backingUp.CompareAndSwap(false, true) {
		return nil, backupUnderWay()
	}
	random := make([]byte, 16)
	_, _ = rand.Read(random) // never fails: it ends the process instead
	id := c.self.Member + "/" + hex.EncodeToString(random)
	b := &node.Backup{Cluster: r.identity.Cluster, Incarnation: r.identity.Incarnation, Sizes: make([]int64, r.node.Shards())}
	b.Release = sync.OnceFunc(func() {
		c.dropBackup(r, id)
		c.backingUp.Store(false)
	})
	errs := make([]error, len(b.Sizes))
	var all sync.WaitGroup
	for i := range b.Sizes {
		all.Go(func() {
			var told backupTold
			told, errs[i] = at(ctx, c, uint32(i), "backup", backupAsk{ID: id, Shard: uint32(i)}, c.doBackup)
			b.Sizes[i] = told.Size
		})
	}
	all.Wait()
	if err := cmp.Or(errs...); err != nil {
		b.Release()
		return nil, err
	}
	b.Part = func(ctx context.Context, shard uint32, put func([]byte) error) error {
		for offset := int64(0); ; {
			told, err := at(ctx, c, shard, "backup", backupAsk{ID: id, Shard: shard, Read: true, Offset: offset}, c.doBackup)
			switch {
			case err != nil:
				return err
			case told.Size != b.Sizes[shard]:
				return fmt.Errorf("shard %d was captured anew: %d bytes, not %d", shard, told.Size, b.Sizes[shard])
			case len(told.Piece) == 0:
				return nil
			}
			if err := put(told.Piece); err != nil {
				return err
			}
			offset += int64(len(told.Piece))
		}
	}
	return b, nil
}

// dropBackup tells every member to let go of what it has captured: who led may lead no more.
func (c *Cluster) dropBackup(r *running, id string) {
	c.captured.drop(id)
	if c.cfg.Port == nil {
		return
	}
	ctx, cancel := context.WithTimeout(c.ctx, backupReleased)
	defer cancel()
	var all sync.WaitGroup
	for _, m := range c.others(r) {
		all.Go(func() {
			if _, err := call[backupAsk, backupTold](ctx, c, m, "backup", 0, backupAsk{ID: id, Drop: true}); err != nil {
				c.log.Debug("a member keeps its part of a backup for a while", "member", m, "error", err)
			}
		})
	}
	all.Wait()
}
