package txn

import (
	"errors"
	"fmt"
	"strings"
)

// String prints the state for people, in a fixed order: it is the oracle of the
// scenario tests and what an operator's debug dump shows.
func (s *State) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "shard %d/%d term %d W=%d grants=%d live=%d done=%d hazards=%d\n", s.shard, s.shards, s.term, s.w, s.grants, s.live, s.done.len(), len(s.hazards))
	for _, v := range s.Services() {
		fmt.Fprintf(&b, "service %s generation=%d open=%d", v.Name, v.Generation, s.OpenAt(v.Name))
		if v.Draining {
			b.WriteString(" draining")
		}
		b.WriteByte('\n')
	}
	s.printMembers(&b)
	for _, id := range s.LiveIDs() {
		printTxn(&b, s.txns[id])
	}
	for _, id := range s.hazards {
		printTxn(&b, s.txns[id])
	}
	for _, t := range s.done.items[s.done.head:] {
		printTxn(&b, t)
	}
	for _, id := range s.ForeignClaims() {
		f := s.claims[id]
		fmt.Fprintf(&b, "claim %s request %d", id, f.Request)
		for _, v := range []struct {
			on   bool
			text string
		}{{f.Whole, " whole"}, {f.Granted, " granted"}, {f.Asked, " asked to give way"}, {f.Over, " over"}} {
			if v.on {
				b.WriteString(v.text)
			}
		}
		b.WriteByte('\n')
	}
	b.WriteString(s.locks.String())
	return b.String()
}

func printTxn(b *strings.Builder, t *Txn) {
	fmt.Fprintf(b, "txn %s %s", t.ID, t.Status)
	if t.OnePhase {
		b.WriteString(" one_phase")
	}
	if t.Interactive {
		fmt.Fprintf(b, " interactive steps=%d", len(t.Steps))
		if t.StepPending {
			b.WriteString(" pending")
		}
		if t.AgeMs != t.BeganMs {
			fmt.Fprintf(b, " age=%d", t.AgeMs)
		}
	}
	if t.Token > 0 {
		fmt.Fprintf(b, " token=%d", t.Token)
	}
	if t.Abort != nil {
		fmt.Fprintf(b, " %s", t.Abort.Reason)
	}
	for i := range t.Branches {
		br := &t.Branches[i]
		fmt.Fprintf(b, " [%d %s %s", i+1, br.Service, br.Fate)
		if n := len(br.Executed); n > 0 {
			fmt.Fprintf(b, " now=%d", n)
		}
		if br.Contacted {
			b.WriteString(" contacted")
		}
		b.WriteByte(']')
	}
	for i := range t.Foreign {
		f := &t.Foreign[i]
		fmt.Fprintf(b, " (shard %d request %d", f.Shard, f.Request)
		if f.Granted {
			b.WriteString(" granted")
		}
		b.WriteByte(')')
	}
	b.WriteByte('\n')
}

// Check verifies the invariants that must hold between commands.
func (s *State) Check() error {
	if err := s.locks.Check(); err != nil {
		return err
	}
	if got := s.live + len(s.hazards) + s.done.len(); got != len(s.txns) {
		return fmt.Errorf("%d records, but %d live, %d hazards and %d done", len(s.txns), s.live, len(s.hazards), s.done.len())
	}
	live, claims, open := 0, 0, map[string]int{}
	errs := []error{s.checkMembers()}
	for id, t := range s.txns { // order does not matter: every record is checked
		if err := s.checkTxn(t); err != nil {
			errs = append(errs, fmt.Errorf("transaction %s: %w", id, err))
		}
		if t.Status.Ended() {
			continue
		}
		live++
		if t.locked {
			claims++
		}
		for i := range t.Branches {
			open[t.Branches[i].Service]++
		}
	}
	if live != s.live {
		errs = append(errs, fmt.Errorf("%d live transactions, counted %d", live, s.live))
	}
	if got := len(s.LiveIDs()); got != live {
		errs = append(errs, fmt.Errorf("%d live transactions, %d of them listed", live, got))
	}
	if claims+len(s.claims) != s.locks.Len() {
		errs = append(errs, fmt.Errorf("%d transactions with locks and %d of other homes, but %d claims", claims, len(s.claims), s.locks.Len()))
	}
	for id, f := range s.claims { // order does not matter: every claim is checked
		if !s.locks.Has(id) || f.Granted != s.locks.Granted(id) {
			errs = append(errs, fmt.Errorf("claim of %s: granted %v, but not in the table", id, f.Granted))
		}
	}
	for name, v := range s.served { // order does not matter: every service is checked
		if v.open != open[name] {
			errs = append(errs, fmt.Errorf("service %s: %d open transactions, counted %d", name, open[name], v.open))
		}
	}
	return errors.Join(errs...)
}

func (s *State) checkTxn(t *Txn) error {
	finishing := 0
	for i := range t.Branches {
		f := t.Branches[i].Fate
		if f == FateFinishing {
			finishing++
		}
		if t.Status.Decided() == (f == FateOpen) {
			return fmt.Errorf("%s with a branch %s", t.Status, f)
		}
	}
	switch {
	case t.Status.Ended() && (t.locked || s.locks.Has(t.ID)):
		return errors.New("ended, but has locks")
	case t.Status == Active && (!t.Interactive || t.StepPending) && t.foreignGranted() && (!s.locks.Has(t.ID) || s.locks.Granted(t.ID)):
		return errors.New("active, but waits for no lock")
	case t.Status == Preparing && !t.foreignGranted():
		return errors.New("preparing without its locks at other shards")
	case t.StepPending && (t.Status != Active || !t.Interactive):
		return fmt.Errorf("%s with a step that waits", t.Status)
	case t.Interactive && !t.StepPending && (t.locked && !s.locks.Granted(t.ID) || t.Abort == nil && !t.foreignGranted()):
		return errors.New("waits for a lock with no step")
	case t.Status.Decided() && len(t.Steps) > 0:
		return errors.New("decided, but remembers steps")
	case t.Status != Active && t.locked && !s.locks.Granted(t.ID):
		return fmt.Errorf("%s without its locks", t.Status)
	case t.Status.Ended() && finishing > 0:
		return errors.New("ended before every branch acknowledged")
	case (t.Status == Committing || t.Status == Aborting) && finishing == 0:
		return errors.New("every branch acknowledged, but not ended")
	case (t.Abort != nil) != (t.Status == Aborting || t.Status == Aborted):
		return fmt.Errorf("%s, abort %v", t.Status, t.Abort)
	}
	return nil
}
