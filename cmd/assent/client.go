package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/assent-tx/assent/discovery"
	"github.com/assent-tx/assent/internal/server"
)

// clientFlags are those of every command that talks to a coordinator.
type clientFlags struct {
	URL      string        `name:"url" help:"Coordinator's REST API; several nodes of it are divided by commas (default: ASSENT_ENDPOINTS, ASSENT_ENDPOINTS_FILE, ASSENT_URL, else http://127.0.0.1:7070)."`
	Output   string        `short:"o" default:"text" enum:"text,json" env:"ASSENT_OUTPUT" help:"How to answer: text (for people) or json (as the API answers)."`
	Wait     time.Duration `name:"request-wait" default:"30s" help:"How long to wait for an answer."`
	RetryFor time.Duration `default:"2s" help:"How long to try again when the coordinator is not there or not ready. Requests are safe to repeat."`
}

// Validate is called by kong.
func (f *clientFlags) Validate() error {
	if f.URL != "" {
		if err := discovery.Check(f.URL); err != nil {
			return fmt.Errorf("--url is %q: write http://host:port: %w", f.URL, err)
		}
	}
	if f.Wait < 10*time.Millisecond || f.Wait > 10*time.Minute {
		return fmt.Errorf("--request-wait is %v: use 10ms to 10m", f.Wait)
	}
	return nil
}

// client sends requests to a coordinator.
type client struct {
	flags *clientFlags
}

func (f *clientFlags) client() *client { return &client{f} }

// maxAnswerBytes bounds what is read: a page of 1000 transactions with results.
const maxAnswerBytes = 256 << 20

// refusal is an error that the coordinator answered.
type refusal struct {
	status                int
	reason, message, hint string
}

func (r *refusal) Error() string {
	text := fmt.Sprintf("%s: %s", r.reason, r.message)
	if r.hint != "" {
		text += "\n  " + r.hint
	}
	return text
}

// retryable: the request was not taken, or asks what may be asked again.
func (r *refusal) retryable() bool {
	return r.status == http.StatusServiceUnavailable || r.status == http.StatusTooManyRequests
}

// unreachable is an error without an answer: the request may have been taken.
type unreachable struct{ err error }

func (u *unreachable) Error() string { return u.err.Error() }
func (u *unreachable) Unwrap() error { return u.err }

// do sends a request until there is an answer, a refusal that stays, or no more
// time, and returns the body of a good answer. Every request of this API may be
// repeated: a submission carries its id.
func (c *client) do(ctx context.Context, method, path string, body any) ([]byte, error) {
	var payload []byte
	if body != nil {
		var err error
		if payload, err = server.EncodeJSON(body); err != nil {
			return nil, &exitError{exitUsage, fmt.Errorf("the request cannot be written as JSON: %w", err)}
		}
	}
	nodes, err := discovery.New(discovery.Config{Endpoints: []string{c.flags.URL}, Static: true})
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	defer nodes.Close()
	until := time.Now().Add(c.flags.RetryFor)
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		answer, err := c.once(ctx, nodes, method, path, payload)
		var refused *refusal
		if err == nil || errors.As(err, &refused) && !refused.retryable() || time.Now().Add(pause).After(until) {
			return answer, c.explain(nodes, err)
		}
		select {
		case <-ctx.Done():
			return nil, c.explain(nodes, err)
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
	}
}

func (c *client) once(ctx context.Context, nodes *discovery.Nodes, method, path string, payload []byte) ([]byte, error) {
	answer, err := nodes.Do(ctx, &discovery.Request{Method: method, Path: path, Body: payload, Wait: c.flags.Wait, MaxBytes: maxAnswerBytes})
	if err != nil {
		return nil, &unreachable{err}
	}
	if answer.Status == http.StatusOK {
		return answer.Body, nil
	}
	return nil, readRefusal(answer.Status, answer.Body)
}

func readRefusal(status int, answer []byte) error {
	var s server.Status
	if err := json.Unmarshal(answer, &s); err != nil || len(s.Details) == 0 {
		return &unreachable{fmt.Errorf("HTTP status %d without a reason: is it a coordinator that answers there?", status)}
	}
	r := &refusal{status: status, message: s.Message}
	var info struct {
		Reason   string            `json:"reason"`
		Metadata map[string]string `json:"metadata"`
	}
	if err := json.Unmarshal(s.Details[0], &info); err != nil {
		return &unreachable{fmt.Errorf("HTTP status %d with details that cannot be read: %w", status, err)}
	}
	r.reason, r.hint = info.Reason, info.Metadata["hint"]
	return r
}

// explain gives an error its exit code and says what to do.
func (c *client) explain(nodes *discovery.Nodes, err error) error {
	var (
		refused *refusal
		nobody  *unreachable
	)
	switch {
	case errors.As(err, &refused):
		if refused.retryable() || refused.reason == "OUTCOME_UNKNOWN" {
			return &exitError{exitUnknown, err}
		}
		return &exitError{exitRefused, err}
	case errors.As(err, &nobody):
		return &exitError{exitUnknown, fmt.Errorf("no answer from %s: %w\n  is the coordinator running? start one with: assent serve --data DIR; name another with --url or ASSENT_ENDPOINTS", nodes, err)}
	}
	return err
}

// show writes an answer: as it came for programs, or by text for people.
func show[T any](f *clientFlags, out io.Writer, answer []byte, text func(io.Writer, *T)) error {
	if f.Output == "json" {
		_, err := out.Write(append(bytes.TrimRight(answer, "\n"), '\n'))
		return err
	}
	v, err := read[T](answer)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	text(&buf, v)
	_, err = out.Write(buf.Bytes())
	return err
}

// read accepts fields that this version does not know: the server may be newer.
func read[T any](answer []byte) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(answer, v); err != nil {
		return nil, &exitError{exitUnknown, fmt.Errorf("the answer cannot be read: %w", err)}
	}
	return v, nil
}
