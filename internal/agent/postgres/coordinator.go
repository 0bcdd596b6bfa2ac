package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/assent-tx/assent/discovery"
)

// coordinator is what an agent asks of it.
type coordinator struct {
	nodes *discovery.Nodes
}

const (
	coordinatorTimeout     = 10 * time.Second
	maxCoordinatorAnswer   = 4 << 20
	maxCoordinatorMessages = 200
)

func newCoordinator(urls string, log *slog.Logger) (*coordinator, error) {
	nodes, err := discovery.New(discovery.Config{Endpoints: []string{urls}, Logger: log})
	return &coordinator{nodes}, err
}

func (c *coordinator) close() { c.nodes.Close() }

// ask returns the status, decodes a 200 into answer, and the error reason of any
// other one. id is of the transaction that is asked for, or empty.
func (c *coordinator) ask(ctx context.Context, id, method, path string, answer any) (status int, reason string, err error) {
	ctx, cancel := context.WithTimeout(ctx, coordinatorTimeout)
	defer cancel()
	got, err := c.nodes.Do(ctx, &discovery.Request{Key: id, Method: method, Path: path, MaxBytes: maxCoordinatorAnswer})
	if err != nil {
		return 0, "", fmt.Errorf("ask the coordinator: %w", err)
	}
	if got.Status == http.StatusOK {
		if err := json.Unmarshal(got.Body, answer); err != nil {
			return 0, "", fmt.Errorf("the coordinator's answer: %w", err)
		}
		return got.Status, "", nil
	}
	var refusal struct {
		Message string
		Details []struct{ Reason string }
	}
	_ = json.Unmarshal(got.Body, &refusal) // a proxy may answer anything: the status tells
	for _, d := range refusal.Details {
		if d.Reason != "" {
			return got.Status, d.Reason, nil
		}
	}
	return got.Status, strings.ToValidUTF8(refusal.Message[:min(len(refusal.Message), maxCoordinatorMessages)], ""), nil
}

// state is the transaction's, "" if the coordinator has no record of it, and
// "expired" if it cannot tell any more.
func (c *coordinator) state(ctx context.Context, id string) (string, error) {
	var t struct{ State string }
	return c.stateOf(ctx, id, http.MethodGet, "/v1/transactions/"+id, &t.State, &t)
}

// abort makes sure that the transaction never commits, and returns its state: the
// coordinator records the id even if it has never heard of it.
func (c *coordinator) abort(ctx context.Context, id string) (string, error) {
	var t struct{ State string }
	return c.stateOf(ctx, id, http.MethodPost, "/v1/transactions/"+id+"/rollback", &t.State, &t)
}

func (c *coordinator) stateOf(ctx context.Context, id, method, path string, state *string, into any) (string, error) {
	status, reason, err := c.ask(ctx, id, method, path, into)
	switch {
	case err != nil:
		return "", err
	case status == http.StatusOK:
		return *state, nil
	case reason == "NOT_FOUND":
		return "", nil
	case reason == "ID_EXPIRED":
		return "expired", nil
	case reason == "ALREADY_COMMITTED":
		return "committed", nil
	}
	return "", fmt.Errorf("the coordinator answers %d %s", status, reason)
}
