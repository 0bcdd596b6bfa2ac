package cluster_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// collect reads a backup to its end.
func collect(ctx context.Context, b *node.Backup) (parts [][]byte, err error) {
	for i := range b.Sizes {
		var part []byte
		if err := b.Part(ctx, uint32(i), func(piece []byte) error {
			part = append(part, piece...)
			return nil
		}); err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	return parts, nil
}

// backUp makes a whole backup; leaders that are moved meanwhile are in its way.
func (w *world) backUp(m *member) (b *node.Backup, parts [][]byte) {
	w.t.Helper()
	w.await("a backup by "+m.name, func() bool {
		ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
		defer cancel()
		var err error
		if b, err = m.Backup(ctx); err != nil {
			return false
		}
		parts, err = collect(ctx, b)
		b.Release()
		return err == nil
	})
	return b, parts
}

// leads says who leads each shard, and in which term: a lead may move and come back.
func (w *world) leads() string {
	w.t.Helper()
	said := ""
	for shard := range w.shards {
		m := w.leader(shard)
		said += fmt.Sprint(m.name, " in ", m.node.Shard(shard).Term, "; ")
	}
	return said
}

// isGone waits for the leader to say that what it, or the one before, had captured is let go.
func (w *world) isGone(b *node.Backup) {
	w.t.Helper()
	w.await("what was captured is gone", func() bool {
		ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
		defer cancel()
		_, err := collect(ctx, b)
		return code(err) == reason.NotFound // read once more, it is gone the next time
	})
}

// Any node makes a backup of all shards, wherever their leaders are.
func TestBackup(t *testing.T) {
	w := newWorld(t, 3)
	w.found("n1", "n2", "n3")
	w.serve(w.members[0], "bank-a", "bank-b")
	ids := map[string]bool{}
	for i := range 6 {
		id := node.NewID().String()
		ids[id] = true
		w.await("transfer "+id, func() bool { // leaders are still being moved
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			got, err := w.members[i%3].Submit(ctx, transfer(id, 1, 2, 1))
			return err == nil && got.State == "committed"
		})
	}
	for _, m := range w.members {
		w.await("everybody's health names the leaders", func() bool {
			for i, s := range m.Health().Shards {
				if s.Leader != w.leader(uint32(i)).name {
					return false
				}
			}
			return true
		})
		b, parts := w.backUp(m)
		found := 0
		for i, part := range parts {
			if int64(len(part)) != b.Sizes[i] {
				t.Errorf("shard %d: %d bytes, foretold %d", i, len(part), b.Sizes[i])
			}
			st, err := txn.Restore(uint32(i), 3, part)
			if err != nil {
				t.Fatal(err)
			}
			for id := range ids {
				if parsed, err := txnid.Parse(id); err == nil && st.Get(parsed) != nil {
					found++
				}
			}
		}
		if found != len(ids) {
			t.Errorf("by %s: %d of %d transactions", m.name, found, len(ids))
		}
		if _, err := collect(t.Context(), b); err == nil {
			t.Error("read twice")
		}
		w.isGone(b)
	}

	// One at a time; one that is not read to its end is given up.
	w.await("a second backup while no lead moves", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		before := w.leads()
		first, err := w.members[0].Backup(ctx)
		if err != nil {
			return false
		}
		defer first.Release()
		again, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		second, err := w.members[1].Backup(again)
		if err == nil {
			second.Release()
		}
		if code(err) == reason.Overloaded {
			return true
		}
		if again.Err() != nil || w.leads() != before { // the next leader does not know of the first
			return false
		}
		t.Fatalf("a second one: %v", err)
		return false
	})
	w.backUp(w.members[1])
}

// A leader that is replaced has taken what it captured with it.
func TestBackupOfALeaderThatDies(t *testing.T) {
	w := newWorld(t, 1)
	w.found("n1", "n2", "n3")
	dies := w.leader(0)
	asked := w.other(dies)
	var b *node.Backup
	w.await("a backup is begun", func() (ok bool) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var err error
		b, err = asked.Backup(ctx)
		return err == nil
	})
	defer b.Release()
	dies.stop()
	w.await("another leader", func() bool { return asked.Health().Ready && w.leader(0) != dies })
	w.isGone(b)
	b.Release()
	w.backUp(asked)
}
