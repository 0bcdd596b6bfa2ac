package participant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/assent-tx/assent/discovery"
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
	maxServiceBytes    = 1 << 20
	registrationCheck  = 30 * time.Second
)

// Register registers this participant at the coordinator; see the function.
func (p *Participant) Register(ctx context.Context, coordinatorURL, baseURL string) error {
	return Register(ctx, nil, coordinatorURL, p.cfg.Service, p.Registration(baseURL))
}

// Register puts a registration to the coordinator at coordinatorURL (for example
// http://127.0.0.1:7070), trying again until it is taken or ctx ends: a service
// and its coordinator may start in any order. The URL may be several divided by commas, of
// nodes of one coordinator: any of them will do. If it is empty, the environment says where
// the coordinator is, as package discovery has it. A definite refusal (a 4xx other
// than 408, 425 and 429) is returned at once. A nil client is one without
// redirects. Registering again is harmless.
func Register(ctx context.Context, client *http.Client, coordinatorURL, service string, r Registration) error {
	nodes, err := discovery.New(discovery.Config{Endpoints: []string{coordinatorURL}, HTTPClient: client, Static: true})
	if err != nil {
		return fmt.Errorf("register %s: %w", service, err)
	}
	defer nodes.Close()
	return RegisterAt(ctx, nodes, service, r)
}

// RegisterAt is Register at nodes that the caller keeps.
func RegisterAt(ctx context.Context, nodes *discovery.Nodes, service string, r Registration) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("register %s: %w", service, err)
	}
	put := &discovery.Request{
		Method: http.MethodPut, Path: "/v1/services/" + url.PathEscape(service), Body: body, Wait: registerTryTimeout,
	}
	for pause := registerFirstPause; ; pause = min(2*pause, registerLongPause) {
		definite, err := registerOnce(ctx, nodes, put)
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

// KeepRegistered registers, and again whenever the registration has gone (with a restored
// cluster, or by a mistake) or names other endpoints or capabilities. It looks that often
// (0: every 30 s), until ctx ends or the coordinator refuses the registration for good, and returns why.
// told, if it is not nil, is called after each registration. A service that somebody is
// removing is left alone, and a coordinator that cannot be asked is asked again later.
func KeepRegistered(ctx context.Context, nodes *discovery.Nodes, service string, r Registration, every time.Duration, told func()) error {
	if every <= 0 {
		every = registrationCheck
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for registered := false; ; registered = IsRegistered(ctx, nodes, service, r) {
		if !registered {
			if err := RegisterAt(ctx, nodes, service, r); err != nil {
				return err
			}
			if told != nil {
				told()
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("register %s: %w", service, ctx.Err())
		case <-tick.C:
		}
	}
}

// IsRegistered is false if the coordinator does not know the service, or knows it with other
// endpoints or capabilities. One that is being removed counts as registered, and so does one
// whose coordinator cannot be asked: there is nothing to do now.
func IsRegistered(ctx context.Context, nodes *discovery.Nodes, service string, r Registration) bool {
	ctx, cancel := context.WithTimeout(ctx, registerTryTimeout)
	defer cancel()
	answer, err := nodes.Do(ctx, &discovery.Request{Method: http.MethodGet, Path: "/v1/services/" + url.PathEscape(service), MaxBytes: maxServiceBytes})
	if err != nil {
		return true
	}
	var now struct {
		State        string
		HTTP         Endpoints
		Capabilities []string
		Details      []struct{ Reason string }
	}
	if json.Unmarshal(answer.Body, &now) != nil {
		return true // a proxy's word
	}
	if answer.Status == http.StatusNotFound {
		return !slices.ContainsFunc(now.Details, func(d struct{ Reason string }) bool { return d.Reason == "NOT_FOUND" })
	}
	if answer.Status != http.StatusOK || now.State == "draining" {
		return true
	}
	want := slices.Clone(r.Capabilities)
	slices.Sort(want)
	slices.Sort(now.Capabilities)
	return now.HTTP == r.HTTP && slices.Equal(now.Capabilities, want)
}

func registerOnce(ctx context.Context, nodes *discovery.Nodes, put *discovery.Request) (definite bool, err error) {
	answer, err := nodes.Do(ctx, put)
	if err != nil {
		return errors.Is(err, discovery.ErrClosed), err
	}
	if answer.Status >= 200 && answer.Status <= 299 {
		return false, nil
	}
	text := answer.Body[:min(len(answer.Body), maxErrorBytes)]
	err = fmt.Errorf("%d %s: %s", answer.Status, http.StatusText(answer.Status), clip(strings.TrimSpace(string(text)), maxReasonBytes))
	switch answer.Status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false, err
	}
	return answer.Status >= 400 && answer.Status <= 499, err
}
