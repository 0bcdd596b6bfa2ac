package participant

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"strings"
	"sync"
)

// A cluster that is restored from a backup goes on under its id with a higher incarnation,
// which fencing tokens begin with. Calls of the cluster that it replaces - a node that was
// thought lost, a copy of its disk - must not change anything once the restored one has
// called: what they are about is not known to it.

// incarnations remembers the highest incarnation of each cluster, in the database too.
type incarnations struct {
	mu   sync.RWMutex
	seen map[string]string // by cluster
}

const incarnationDigits = 8

// incarnation is what the token begins with; empty: it is not one of a coordinator.
func (c *Call) incarnation() string {
	digits, _, ok := strings.Cut(c.Token, "-")
	if !ok || len(digits) != incarnationDigits {
		return ""
	}
	for _, d := range []byte(digits) {
		if (d < '0' || d > '9') && (d < 'a' || d > 'f') {
			return ""
		}
	}
	return digits
}

// incarnationHome names the row of assent_watermark that keeps a cluster's incarnation; no
// shard of a coordinator has such a number.
func incarnationHome(cluster string) (shards, shard int64) {
	n, _ := strconv.ParseInt(cluster[:min(len(cluster), 12)], 16, 64) // 0 if it is none: the caller has checked it
	return -2, n
}

// current refuses the calls of an incarnation that another one has replaced. This process
// learns of a new one by its calls, and of what others on this database have learnt when
// it is first called itself.
func (p *Participant) current(ctx context.Context, c *Call) error {
	own := c.incarnation()
	if own == "" || !validCluster(c.Cluster) {
		return nil
	}
	p.incarnations.mu.RLock()
	seen := p.incarnations.seen[c.Cluster]
	p.incarnations.mu.RUnlock()
	if own > seen { // or nothing is known yet
		var err error
		if seen, err = p.raiseIncarnation(ctx, c.Cluster, own); err != nil {
			return err
		}
	}
	if own < seen {
		return fmt.Errorf("%w: incarnation %s of the coordinator, but %s was seen: it was restored from a backup, and the one before must not run any more", ErrStale, own, seen)
	}
	return nil
}

// surelyCurrent reports whether the call is certainly of the highest incarnation that this
// process has seen.
func (p *Participant) surelyCurrent(c *Call) bool {
	own := c.incarnation()
	if own == "" {
		return true
	}
	p.incarnations.mu.RLock()
	defer p.incarnations.mu.RUnlock()
	return own == p.incarnations.seen[c.Cluster]
}

// raiseIncarnation makes an incarnation durable before it is believed, and returns the
// highest.
func (p *Participant) raiseIncarnation(ctx context.Context, cluster, own string) (highest string, err error) {
	shards, shard := incarnationHome(cluster)
	err = p.transact(ctx, p.bookkeeping, func(tx *sql.Tx) (bool, error) {
		if _, err := tx.ExecContext(ctx, p.queries.insertForgotten, shards, shard, own); err != nil {
			return false, err
		}
		var stored sql.NullString
		if err := tx.QueryRowContext(ctx, p.queries.readForgotten, shards, shard).Scan(&stored); err != nil {
			return false, err
		}
		if highest = stored.String; highest >= own {
			return true, nil
		}
		highest = own
		_, err := tx.ExecContext(ctx, p.queries.raiseForgotten, own, shards, shard, own)
		return true, err
	})
	if err != nil {
		return "", fmt.Errorf("remember the coordinator's incarnation: %w", err)
	}
	p.incarnations.mu.Lock()
	defer p.incarnations.mu.Unlock()
	if p.incarnations.seen == nil || len(p.incarnations.seen) >= maxClusters {
		p.incarnations.seen = map[string]string{}
	}
	if p.incarnations.seen[cluster] < highest {
		p.incarnations.seen[cluster] = highest
	}
	return highest, nil
}

// maxClusters are remembered in this process; the database remembers all.
const maxClusters = 64
