package server

import (
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/assent-tx/assent/internal/reason"
)

// This file is the JSON of the REST API: the types below have the field names of
// the contract, and of the proto file. Clients of the API may use them too.

// Duration is written as a Go duration ("5s", "250ms"). The zero value is absent;
// a duration of zero is Duration{Set: true}.
type Duration struct {
	time.Duration
	Set bool
}

// IsZero reports whether the duration is absent.
func (d Duration) IsZero() bool { return !d.Set }

// MarshalJSONTo writes the duration as text.
func (d Duration) MarshalJSONTo(enc *jsontext.Encoder) error {
	return enc.WriteToken(jsontext.String(d.String()))
}

// UnmarshalJSONFrom accepts null as absent.
func (d *Duration) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	value, err := dec.ReadValue()
	if err != nil {
		return err
	}
	switch value.Kind() {
	case 'n':
		*d = Duration{}
		return nil
	case '"':
		var text string
		if err := json.Unmarshal(value, &text); err != nil {
			return err
		}
		return d.parse(text)
	}
	return reason.New(reason.InvalidDuration, durationHint, "%.40s is not a duration", value)
}

const durationHint = `write a number and a unit in a string: "250ms", "5s", "2m"`

func (d *Duration) parse(text string) error {
	v, err := time.ParseDuration(text)
	if err != nil {
		return reason.New(reason.InvalidDuration, durationHint, "%.40q is not a duration", text)
	}
	*d = Duration{Duration: v, Set: true}
	return nil
}

// Time is written in RFC 3339 with milliseconds, in UTC. The zero time is absent.
type Time struct{ time.Time }

const timeLayout = "2006-01-02T15:04:05.000Z07:00"

// MarshalJSONTo writes the time as text.
func (t Time) MarshalJSONTo(enc *jsontext.Encoder) error {
	return enc.WriteToken(jsontext.String(t.UTC().Format(timeLayout)))
}

// UnmarshalJSONFrom accepts any time in RFC 3339.
func (t *Time) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return json.UnmarshalDecode(dec, &t.Time)
}

// SubmitBody is the body of POST /v1/transactions.
type SubmitBody struct {
	ID         *string         `json:"id,omitzero"`
	Operations []OperationBody `json:"operations"`
	Timeout    Duration        `json:"timeout,omitzero"`
	Wait       string          `json:"wait,omitzero"`
}

// OperationBody is one operation.
type OperationBody struct {
	Service string         `json:"service"`
	Payload jsontext.Value `json:"payload,omitzero"`
	Locks   []LockBody     `json:"locks,omitempty"`
}

// LockBody is one declared key.
type LockBody struct {
	Key  string `json:"key"`
	Mode string `json:"mode,omitzero"`
}

// RollbackBody is the body of POST /v1/transactions/{id}/rollback: empty.
type RollbackBody struct{}

// ResolveBody is the body of POST /v1/transactions/{id}/resolve.
type ResolveBody struct {
	Note string `json:"note"`
}

// PutServiceBody is the body of PUT /v1/services/{name}.
type PutServiceBody struct {
	HTTP         HTTPEndpoints `json:"http"`
	Resources    []string      `json:"resources,omitempty"`
	Capabilities []string      `json:"capabilities,omitzero"` // nil: tombstone
	Isolation    string        `json:"isolation,omitzero"`
	RequireKeys  bool          `json:"require_keys,omitzero"`
	Limits       ServiceLimits `json:"limits,omitzero"`

	LockPartitions uint32 `json:"lock_partitions,omitzero"` // 0: 1
}

// HTTPEndpoints are the callbacks of a service.
type HTTPEndpoints struct {
	Prepare  string `json:"prepare"`
	Commit   string `json:"commit"`
	Rollback string `json:"rollback"`
	Status   string `json:"status,omitzero"`
	Execute  string `json:"execute,omitzero"`
}

// ServiceLimits bound the calls to a service.
type ServiceLimits struct {
	MaxInFlight    *uint32  `json:"max_in_flight,omitzero"`
	PrepareTimeout Duration `json:"prepare_timeout,omitzero"`
	FinishTimeout  Duration `json:"finish_timeout,omitzero"`
}

// Transaction is the answer about a transaction.
type Transaction struct {
	ID        string    `json:"id"`
	State     string    `json:"state"`
	Abort     *Abort    `json:"abort,omitzero"`
	Branches  []Branch  `json:"branches"`
	OnePhase  bool      `json:"one_phase,omitzero"`
	Hazard    bool      `json:"hazard,omitzero"`
	Replayed  bool      `json:"replayed,omitzero"`
	Timeout   Duration  `json:"timeout,omitzero"`
	WaitsFor  *LockWait `json:"waits_for,omitzero"`
	BeganAt   Time      `json:"began_at,omitzero"`
	GrantedAt Time      `json:"granted_at,omitzero"`
	DecidedAt Time      `json:"decided_at,omitzero"`
	EndedAt   Time      `json:"ended_at,omitzero"`

	Interactive bool     `json:"interactive,omitzero"`
	IdleTimeout Duration `json:"idle_timeout,omitzero"`
	Age         Time     `json:"age,omitzero"`
}

// Abort says why a transaction aborted.
type Abort struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Service string `json:"service,omitzero"`
}

// Branch is the part of a transaction at one service.
type Branch struct {
	ID         string           `json:"id"`
	Service    string           `json:"service"`
	State      string           `json:"state"`
	Vote       string           `json:"vote,omitzero"`
	Results    []jsontext.Value `json:"results,omitempty"`
	Operations uint32           `json:"operations"`
	Attempts   uint32           `json:"attempts,omitzero"`
	LastError  string           `json:"last_error,omitzero"`
	Hazard     string           `json:"hazard,omitzero"`
	Resolution string           `json:"resolution,omitzero"`
}

// LockWait is the lock that a transaction waits for.
type LockWait struct {
	Key  string   `json:"key"`
	Mode string   `json:"mode"`
	For  []string `json:"for"`
}

// TransactionList is one page of transactions.
type TransactionList struct {
	Transactions  []Transaction `json:"transactions"`
	NextPageToken string        `json:"next_page_token,omitzero"`
}

// Service is the answer about a service.
type Service struct {
	Name             string        `json:"name"`
	HTTP             HTTPEndpoints `json:"http"`
	Resources        []string      `json:"resources,omitempty"`
	Capabilities     []string      `json:"capabilities"`
	Isolation        string        `json:"isolation"`
	RequireKeys      bool          `json:"require_keys"`
	Limits           ServiceLimits `json:"limits"`
	Generation       uint64        `json:"generation,string"` // 64-bit integers are strings in the JSON of protobuf
	State            string        `json:"state"`
	OpenTransactions uint32        `json:"open_transactions"`
	RegisteredAt     Time          `json:"registered_at,omitzero"`
	UpdatedAt        Time          `json:"updated_at,omitzero"`
	LockPartitions   uint32        `json:"lock_partitions"`
}

// ServiceList is every registered service.
type ServiceList struct {
	Services []Service `json:"services"`
}

// Status is the body of every error: google.rpc.Status.
type Status struct {
	Code    int32            `json:"code"`
	Message string           `json:"message"`
	Details []jsontext.Value `json:"details"`
}

// HealthAnswer is the body of a good /healthz and /readyz.
type HealthAnswer struct {
	Status  string        `json:"status"`
	Message string        `json:"message"`
	Shards  []ShardHealth `json:"shards,omitempty"`
}

// ShardHealth is one shard's part of HealthAnswer.
type ShardHealth struct {
	Shard   uint32 `json:"shard"`
	Leading bool   `json:"leading"`
	Leader  string `json:"leader,omitzero"`
	Term    uint64 `json:"term"`
	Applied uint64 `json:"applied"`
	Open    int    `json:"open"`
	Hazards int    `json:"hazards"`
}

// encodeOptions: what participants and operators wrote is passed on as it is, and
// no odd byte of theirs may cost an answer.
var encodeOptions = json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// EncodeJSON appends the JSON form of v, which is a type of this file, to dst.
func EncodeJSON(v any) ([]byte, error) { return json.Marshal(v, encodeOptions) }
