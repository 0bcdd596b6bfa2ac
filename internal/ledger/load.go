package ledger

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/assent-tx/assent/internal/txnid"
)

// Load submits transfers between two books until told to stop, and remembers what
// it was told. Every transfer is sent again with its id until its outcome is
// known, or forgotten: so the coordinator may be killed at any time.
type Load struct {
	Coordinator string    // base URL
	Others      []string  // further nodes, asked in turn when one does not answer
	Services    [2]string // the two books; money goes both ways
	Accounts    int
	Clients     int
	Transfers   int // stop after so many; 0: until ctx ends
	// More says after so many whether to go on all the same; nil: no.
	More func() bool
	Wait string // decided (default) or completed
	// Operations makes those of one transfer; nil: a posting in each book.
	Operations func(id string) []any

	Committed, Aborted, Retried atomic.Int64
	Unknown                     atomic.Int64 // transfers whose outcome was forgotten before anybody was told

	next atomic.Int64
	node atomic.Uint32 // counts moves to the next one
	mu   sync.Mutex
	told map[string]string
}

// Told returns what clients were told, by transaction id.
func (l *Load) Told() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.told
}

// Run submits until Transfers are done or ctx ends; transfers under way are then
// still brought to their outcome, for at most finish.
func (l *Load) Run(ctx context.Context, finish time.Duration) error {
	l.told = map[string]string{}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: l.Clients, MaxConnsPerHost: l.Clients}, Timeout: 15 * time.Second}
	defer client.CloseIdleConnections()
	hard, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(finish, cancel) })
	defer stop()
	errs := make(chan error, l.Clients)
	var wg sync.WaitGroup
	for range l.Clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				n := l.next.Add(1)
				if l.Transfers > 0 && n > int64(l.Transfers) && (l.More == nil || !l.More()) {
					return
				}
				if err := l.transfer(hard, client); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs // nil if none
}

// youngestExpired is how old an id must be before it may be refused as expired
// (docs/PROTOCOL.md).
const youngestExpired = 10 * time.Second

// errExpired is the refusal of an id that is too old to be known.
var errExpired = errors.New("the id has expired")

func (l *Load) transfer(ctx context.Context, client *http.Client) error {
	id, made := newID().String(), time.Now()
	operations := l.Operations
	if operations == nil {
		operations = l.postings
	}
	request := map[string]any{"id": id, "timeout": "20s", "operations": operations(id)}
	if l.Wait != "" {
		request["wait"] = l.Wait
	}
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		state, err := l.submit(ctx, client, body)
		switch {
		case errors.Is(err, errExpired) && time.Since(made) >= youngestExpired:
			l.Unknown.Add(1) // a younger id may not be expired
			return nil
		case err != nil:
			return fmt.Errorf("transfer %s: %w", id, err)
		case state == "committed" || state == "committing":
			l.Committed.Add(1)
		case state == "aborted" || state == "aborting":
			l.Aborted.Add(1)
		default:
			l.Retried.Add(1)
			select {
			case <-time.After(pause/2 + mathrand.N(pause)):
				continue
			case <-ctx.Done():
				return fmt.Errorf("transfer %s has no outcome", id)
			}
		}
		l.mu.Lock()
		l.told[id] = state
		l.mu.Unlock()
		return nil
	}
}

func (l *Load) postings(id string) []any {
	way := mathrand.IntN(2)
	from, to, amount := 1+mathrand.IntN(l.Accounts), 1+mathrand.IntN(l.Accounts), 1+mathrand.IntN(60)
	posting := func(service string, account, amount int) map[string]any {
		return map[string]any{
			"service": service,
			"payload": Posting{Transfer: id, Account: int64(account), Amount: int64(amount)},
			"locks":   []map[string]string{{"key": fmt.Sprintf("accounts/%d", account)}},
		}
	}
	return []any{posting(l.Services[way], from, -amount), posting(l.Services[1-way], to, amount)}
}

// submit returns the state that the coordinator told, "" if it told none, and an
// error if it refused for good.
func (l *Load) submit(ctx context.Context, client *http.Client, body []byte) (string, error) {
	node, url := l.node.Load(), l.Coordinator
	if at := int(node) % (len(l.Others) + 1); at > 0 {
		url = l.Others[at-1]
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/transactions", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		l.node.CompareAndSwap(node, node+1)
		return "", nil // no answer: the outcome is unknown, ask again
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	switch {
	case err != nil, resp.StatusCode >= 500, resp.StatusCode == http.StatusTooManyRequests:
		if resp.StatusCode != http.StatusTooManyRequests {
			l.node.CompareAndSwap(node, node+1)
		}
		return "", nil // as above
	case resp.StatusCode == http.StatusGone:
		return "", fmt.Errorf("%w: %s", errExpired, bytes.TrimSpace(answer))
	case resp.StatusCode != http.StatusOK:
		return "", fmt.Errorf("refused with status %d: %s", resp.StatusCode, bytes.TrimSpace(answer))
	}
	var t struct{ State string }
	if err := json.Unmarshal(answer, &t); err != nil {
		return "", fmt.Errorf("bad answer %q: %w", answer, err)
	}
	return t.State, nil
}

func newID() txnid.ID {
	var random [10]byte
	_, _ = rand.Read(random[:]) // never fails: it ends the process instead
	return txnid.New(uint64(time.Now().UnixMilli()), random)
}
