package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// coordinator is what an agent asks of it.
type coordinator struct {
	url    string
	client *http.Client
}

const (
	coordinatorTimeout     = 10 * time.Second
	maxCoordinatorAnswer   = 4 << 20
	maxCoordinatorMessages = 200
)

func newCoordinator(url string) *coordinator {
	return &coordinator{url: strings.TrimRight(url, "/"), client: &http.Client{
		Timeout:       coordinatorTimeout,
		Transport:     &http.Transport{Proxy: nil, MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (c *coordinator) close() { c.client.CloseIdleConnections() }

// ask returns the status, decodes a 200 into answer, and the error reason of any
// other one.
func (c *coordinator) ask(ctx context.Context, method, path string, answer any) (status int, reason string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, "", fmt.Errorf("ask the coordinator: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxCoordinatorAnswer))
	if err != nil {
		return 0, "", fmt.Errorf("ask the coordinator: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal(body, answer); err != nil {
			return 0, "", fmt.Errorf("the coordinator's answer: %w", err)
		}
		return resp.StatusCode, "", nil
	}
	var refusal struct {
		Message string
		Details []struct{ Reason string }
	}
	_ = json.Unmarshal(body, &refusal) // a proxy may answer anything: the status tells
	for _, d := range refusal.Details {
		if d.Reason != "" {
			return resp.StatusCode, d.Reason, nil
		}
	}
	return resp.StatusCode, strings.ToValidUTF8(refusal.Message[:min(len(refusal.Message), maxCoordinatorMessages)], ""), nil
}

// state is the transaction's, "" if the coordinator has no record of it, and
// "expired" if it cannot tell any more.
func (c *coordinator) state(ctx context.Context, id string) (string, error) {
	var t struct{ State string }
	return c.stateOf(ctx, http.MethodGet, "/v1/transactions/"+id, &t.State, &t)
}

// abort makes sure that the transaction never commits, and returns its state: the
// coordinator records the id even if it has never heard of it.
func (c *coordinator) abort(ctx context.Context, id string) (string, error) {
	var t struct{ State string }
	return c.stateOf(ctx, http.MethodPost, "/v1/transactions/"+id+"/rollback", &t.State, &t)
}

func (c *coordinator) stateOf(ctx context.Context, method, path string, state *string, into any) (string, error) {
	status, reason, err := c.ask(ctx, method, path, into)
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
