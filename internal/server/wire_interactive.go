package server

import "github.com/go-json-experiment/json/jsontext"

// This file is the JSON of interactive transactions and of locks.

// BeginBody is the body of POST /v1/transactions:begin.
type BeginBody struct {
	ID          *string  `json:"id,omitzero"`
	Timeout     Duration `json:"timeout,omitzero"`
	IdleTimeout Duration `json:"idle_timeout,omitzero"`
	RetryOf     *string  `json:"retry_of,omitzero"`
}

// EnlistBody is the body of POST /v1/transactions/{id}/operations.
type EnlistBody struct {
	Step       uint32              `json:"step,omitzero"`
	Operations []StepOperationBody `json:"operations"`
	Locks      []ServiceLockBody   `json:"locks,omitempty"`
	StepKey    *string             `json:"step_key,omitzero"`
}

// StepOperationBody is one operation of a step.
type StepOperationBody struct {
	Service string         `json:"service"`
	Payload jsontext.Value `json:"payload,omitzero"`
	Locks   []LockBody     `json:"locks,omitempty"`
	When    string         `json:"when,omitzero"`
}

// ServiceLockBody is a key of a service.
type ServiceLockBody struct {
	Service string `json:"service"`
	Key     string `json:"key"`
	Mode    string `json:"mode,omitzero"`
}

// EnlistAnswer is the answer to a step.
type EnlistAnswer struct {
	Transaction *Transaction     `json:"transaction"`
	Results     []jsontext.Value `json:"results,omitempty"`
}

// LocksBody is the body of POST /v1/transactions/{id}/locks.
type LocksBody struct {
	Step    uint32            `json:"step,omitzero"`
	Locks   []ServiceLockBody `json:"locks"`
	StepKey *string           `json:"step_key,omitzero"`
}

// CommitBody is the body of POST /v1/transactions/{id}/commit; it may be left out.
type CommitBody struct {
	Wait string `json:"wait,omitzero"`
}

// LockList is one page of locks.
type LockList struct {
	Locks         []LockInfo `json:"locks"`
	NextPageToken string     `json:"next_page_token,omitzero"`
}

// LockInfo is a key that is held or waited for.
type LockInfo struct {
	Service string      `json:"service"`
	Key     string      `json:"key,omitzero"`
	Shard   uint32      `json:"shard"`
	Holders []LockOwner `json:"holders"`
	Waiters []LockOwner `json:"waiters"`
}

// LockOwner is a transaction at a key.
type LockOwner struct {
	Transaction string `json:"transaction"`
	Mode        string `json:"mode"`
	Age         Time   `json:"age,omitzero"`
	Since       Time   `json:"since,omitzero"`
}

// DeadlockList is the latest deadlocks.
type DeadlockList struct {
	Deadlocks []Deadlock `json:"deadlocks"`
}

// Deadlock is a cycle of waiting that was broken.
type Deadlock struct {
	At        Time           `json:"at"`
	Shard     uint32         `json:"shard"`
	Victim    string         `json:"victim"`
	Restarted bool           `json:"restarted"`
	Cycle     []DeadlockWait `json:"cycle"`
}

// DeadlockWait is one edge of a cycle.
type DeadlockWait struct {
	Transaction string `json:"transaction"`
	Service     string `json:"service"`
	Key         string `json:"key,omitzero"`
	Mode        string `json:"mode"`
	WaitsFor    string `json:"waits_for"`
}
