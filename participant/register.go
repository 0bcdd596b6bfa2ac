package participant

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Registration is the body of PUT /v1/services/{name}.
type Registration struct {
	HTTP         Endpoints           `json:"http"`
	Capabilities []string            `json:"capabilities,omitempty"`
	Isolation    string              `json:"isolation,omitempty"` // "coordinator" (default) or "participant"
	RequireKeys  bool                `json:"require_keys,omitempty"`
	Limits       *RegistrationLimits `json:"limits,omitempty"`

	LockPartitions uint32 `json:"lock_partitions,omitempty"` // shards that share the locks of its keys; 0: 1
}

// Endpoints are the URLs the coordinator calls.
type Endpoints struct {
	Prepare  string `json:"prepare"`
	Commit   string `json:"commit"`
	Rollback string `json:"rollback"`
	Status   string `json:"status,omitempty"`
	Execute  string `json:"execute,omitempty"` // empty: nothing is executed before prepare
}

// RegistrationLimits are what the coordinator keeps to for this service.
type RegistrationLimits struct {
	MaxInFlight    int    `json:"max_in_flight,omitempty"`   // calls at once
	PrepareTimeout string `json:"prepare_timeout,omitempty"` // of one try, as a Go duration
}

// Registration describes this participant, whose Handler the coordinator reaches
// below baseURL. Change what it returns before registering if need be.
func (p *Participant) Registration(baseURL string) Registration {
	base := strings.TrimRight(baseURL, "/")
	endpoints := Endpoints{
		Prepare: base + "/prepare", Commit: base + "/commit",
		Rollback: base + "/rollback", Status: base + "/status",
	}
	if p.executor != nil {
		endpoints.Execute = base + "/execute"
	}
	return Registration{
		HTTP:         endpoints,
		Capabilities: []string{"one_phase", "read_only", "list_in_doubt", "tombstone"},
		Limits:       &RegistrationLimits{MaxInFlight: p.cfg.Limits.MaxInFlight},
	}
}

const (
	registerTryTimeout = 5 * time.Second
	registerFirstPause = 100 * time.Millisecond
	registerLongPause  = 5 * time.Second
	maxErrorBytes      = 4096
)

// Register registers this participant at the coordinator; see the function.
func (p *Participant) Register(ctx context.Context, coordinatorURL, baseURL string) error {
	return Register(ctx, nil, coordinatorURL, p.cfg.Service, p.Registration(baseURL))
}

// Register puts a registration to the coordinator at coordinatorURL (for example
// http://127.0.0.1:7070), trying again until it is taken or ctx ends: a service
// and its coordinator may start in any order. A definite refusal (a 4xx other
// than 408, 425 and 429) is returned at once. A nil client is one without
// redirects. Registering again is harmless.
func Register(ctx context.Context, client *http.Client, coordinatorURL, service string, r Registration) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("register %s: %w", service, err)
	}
	if client == nil {
		transport := &http.Transport{Proxy: http.ProxyFromEnvironment}
		defer transport.CloseIdleConnections()
		client = &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	target := strings.TrimRight(coordinatorURL, "/") + "/v1/services/" + url.PathEscape(service)
	for pause := registerFirstPause; ; pause = min(2*pause, registerLongPause) {
		definite, err := registerOnce(ctx, client, target, body)
		if err == nil {
			return nil
		}
		if definite {
			return fmt.Errorf("register %s: %w", service, err)
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("register %s: %w; last: %w", service, ctx.Err(), err)
		}
	}
}

func registerOnce(ctx context.Context, client *http.Client, target string, body []byte) (definite bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, registerTryTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, target, bytes.NewReader(body))
	if err != nil {
		return true, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	if resp.StatusCode >= 200 && resp.StatusCode <= 299 {
		return false, nil
	}
	err = errors.New(resp.Status + ": " + clip(strings.TrimSpace(string(answer)), maxReasonBytes))
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false, err
	}
	return resp.StatusCode >= 400 && resp.StatusCode <= 499, err
}
