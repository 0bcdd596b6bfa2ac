package shard

import (
	"github.com/assent-tx/assent/internal/txn"
	"github.com/assent-tx/assent/internal/txnid"
)

// Ended transactions are kept within limits; their results as well as memory allows.

// forget keeps ended transactions within their limits. By count it runs as they
// end, by age with a timer.
func (s *Shard) forget(byAge bool) {
	if s.forgetOut || !s.st.CanForget(s.now.WallMs) {
		return
	}
	var c txn.Forget
	if over := s.st.Done() - s.cfg.RetainedTransactions; over >= s.cfg.ForgetBatch || over > 0 && byAge {
		c.Count = uint32(over)
	}
	if now := s.now.WallMs; byAge && now > s.cfg.RetentionMs {
		if oldest := s.st.OldestDoneMs(); oldest > 0 && oldest <= now-s.cfg.RetentionMs {
			c.EndedBeforeMs = now - s.cfg.RetentionMs
		}
	}
	if c.Count > 0 || c.EndedBeforeMs > 0 {
		s.forgetOut = true
		s.command(txn.AppendForget(s.openEntry(), c))
	}
}

type keptResult struct {
	results [][][]byte
	bytes   int
}

type keptResults struct {
	byID  map[txnid.ID]keptResult
	order []txnid.ID
	bytes int
}

func (k *keptResults) keep(id txnid.ID, r *run, limitBytes int) {
	var v keptResult
	for i := range r.branches {
		for _, b := range r.branches[i].results {
			v.bytes += len(b)
		}
	}
	if v.bytes == 0 || v.bytes > limitBytes {
		return
	}
	for i := range r.branches {
		v.results = append(v.results, r.branches[i].results)
	}
	k.byID[id] = v
	k.order = append(k.order, id)
	k.bytes += v.bytes
	for k.bytes > limitBytes || len(k.order) > 2*len(k.byID)+1024 {
		k.drop(k.order[0])
		k.order = k.order[1:]
	}
}

func (k *keptResults) drop(id txnid.ID) {
	k.bytes -= k.byID[id].bytes
	delete(k.byID, id)
}
