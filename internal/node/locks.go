package node

import (
	"context"
	"sort"
	"strings"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txn"
)

// Locks lists keys that are held or waited for, of all shards in order of keys.
func (n *Node) Locks(ctx context.Context, q LockQuery) (LockPage, error) {
	size := q.PageSize
	if size == 0 {
		size = 100
	}
	prefix := q.Service
	if q.Key != "" {
		prefix += "/" + q.Key
	}
	match := func(key string, waiters int) bool {
		return (!q.Waited || waiters > 0) && (prefix == "" || key == prefix || strings.HasPrefix(key, prefix+"/"))
	}
	select {
	case n.listing <- struct{}{}:
		defer func() { <-n.listing }()
	case <-ctx.Done():
		err := reason.New(reason.Overloaded, "try again later", "too many lists are being made")
		err.RetryAfterMs = 500
		return LockPage{}, err
	}
	type found struct {
		Lock
		path string
	}
	var all []found
	for _, r := range n.runners {
		leading := false
		err := r.run(ctx, func(sh *shard.Shard) {
			if leading = sh.Leading(); !leading {
				return
			}
			st := sh.State()
			for _, node := range st.Locks(q.PageToken, size+1, match) {
				service, key, _ := strings.Cut(node.Key, "/")
				all = append(all, found{Lock{
					Service: service, Key: key, Shard: r.idx, Holders: holders(st, node.Holders, false), Waiters: holders(st, node.Waiters, true),
				}, node.Key})
			}
		})
		if err == nil && !leading {
			err = notReady("locks")
		}
		if err != nil {
			return LockPage{}, err
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].path < all[j].path })
	p := LockPage{Locks: []Lock{}}
	if len(all) > size {
		all = all[:size]
		p.NextPageToken = all[size-1].path
	}
	for i := range all {
		p.Locks = append(p.Locks, all[i].Lock)
	}
	return p, nil
}

// holders tells since when a one-shot transaction holds or waits; an interactive one
// may have got each of its keys at another time.
func holders(st *txn.State, list []lock.Holder, waiting bool) []LockHolder {
	out := make([]LockHolder, len(list))
	for i, h := range list {
		out[i] = LockHolder{Transaction: h.Owner.String(), Mode: h.Mode.String(), Age: unixMs(h.AtMs)}
		if t := st.Get(h.Owner); t != nil && !t.Interactive {
			if out[i].Since = unixMs(t.BeganMs); !waiting && t.GrantedMs > 0 {
				out[i].Since = unixMs(t.GrantedMs)
			}
		}
	}
	return out
}

// Deadlocks are the latest cycles of waiting that were broken, the latest first.
func (n *Node) Deadlocks(ctx context.Context) ([]Deadlock, error) {
	list := []Deadlock{}
	for _, r := range n.runners {
		leading := false
		err := r.run(ctx, func(sh *shard.Shard) {
			leading = sh.Leading()
			for _, d := range sh.Deadlocks() {
				out := Deadlock{At: unixMs(d.AtMs), Shard: r.idx, Victim: d.Victim.String(), Restarted: d.Restarted}
				for _, w := range d.Cycle {
					service, key, _ := strings.Cut(w.Key, "/")
					out.Cycle = append(out.Cycle, CycleWait{Transaction: w.Owner.String(), Service: service, Key: key, Mode: w.Mode.String(), WaitsFor: w.For.String()})
				}
				list = append(list, out)
			}
		})
		if err == nil && !leading {
			err = notReady("deadlocks")
		}
		if err != nil {
			return nil, err
		}
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].At.After(list[j].At) })
	return list, nil
}
