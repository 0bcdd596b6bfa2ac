package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	assentv1 "github.com/assent-tx/assent/api/assent/v1"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
)

// wireCode is how a reason is told. codes.Aborted is never used: nothing but a
// transaction's own state may be read as an abort.
type wireCode struct {
	grpc codes.Code
	http int
}

// abortReason: told as the reason of an aborted transaction in a good answer. As
// an error it would be a fault of the coordinator.
var abortReason = wireCode{codes.Internal, http.StatusInternalServerError}

// wireCodes is the one table from reasons to statuses.
var wireCodes = map[reason.Code]wireCode{
	reason.InvalidID:          {codes.InvalidArgument, http.StatusBadRequest},
	reason.IDFromFuture:       {codes.InvalidArgument, http.StatusBadRequest},
	reason.IDExpired:          {codes.FailedPrecondition, http.StatusGone},
	reason.IDConflict:         {codes.AlreadyExists, http.StatusConflict},
	reason.InvalidJSON:        {codes.InvalidArgument, http.StatusBadRequest},
	reason.UnknownField:       {codes.InvalidArgument, http.StatusBadRequest},
	reason.InvalidField:       {codes.InvalidArgument, http.StatusBadRequest},
	reason.InvalidKey:         {codes.InvalidArgument, http.StatusBadRequest},
	reason.InvalidDuration:    {codes.InvalidArgument, http.StatusBadRequest},
	reason.InvalidURL:         {codes.InvalidArgument, http.StatusBadRequest},
	reason.InvalidService:     {codes.InvalidArgument, http.StatusBadRequest},
	reason.EmptyOperations:    {codes.InvalidArgument, http.StatusBadRequest},
	reason.TooManyOperations:  {codes.InvalidArgument, http.StatusBadRequest},
	reason.TooManyKeys:        {codes.InvalidArgument, http.StatusBadRequest},
	reason.RequestTooLarge:    {codes.InvalidArgument, http.StatusRequestEntityTooLarge},
	reason.KeysRequired:       {codes.FailedPrecondition, http.StatusBadRequest},
	reason.UnknownService:     {codes.FailedPrecondition, http.StatusBadRequest},
	reason.ServiceDraining:    {codes.FailedPrecondition, http.StatusConflict},
	reason.NotFound:           {codes.NotFound, http.StatusNotFound},
	reason.AlreadyCommitted:   {codes.FailedPrecondition, http.StatusConflict},
	reason.OnePhasePending:    {codes.FailedPrecondition, http.StatusConflict},
	reason.Overloaded:         {codes.ResourceExhausted, http.StatusTooManyRequests},
	reason.NotReady:           {codes.Unavailable, http.StatusServiceUnavailable},
	reason.NotLeader:          {codes.Unavailable, http.StatusServiceUnavailable},
	reason.UpgradePending:     {codes.Unavailable, http.StatusServiceUnavailable},
	reason.UnknownMember:      {codes.NotFound, http.StatusNotFound},
	reason.InvalidMember:      {codes.InvalidArgument, http.StatusBadRequest},
	reason.MemberInUse:        {codes.FailedPrecondition, http.StatusConflict},
	reason.MemberTooOld:       {codes.FailedPrecondition, http.StatusConflict},
	reason.TooManyMembers:     {codes.FailedPrecondition, http.StatusConflict},
	reason.InvalidPlacement:   {codes.InvalidArgument, http.StatusBadRequest},
	reason.OutcomeUnknown:     {codes.DeadlineExceeded, http.StatusGatewayTimeout},
	reason.Internal:           {codes.Internal, http.StatusInternalServerError},
	reason.MethodNotAllowed:   {codes.Unimplemented, http.StatusMethodNotAllowed},
	reason.UnsupportedContent: {codes.InvalidArgument, http.StatusUnsupportedMediaType},
	reason.TooManyServices:    {codes.FailedPrecondition, http.StatusConflict},
	reason.CrossOrigin:        {codes.PermissionDenied, http.StatusForbidden},
	reason.NotAHazard:         {codes.FailedPrecondition, http.StatusConflict},
	reason.NotInteractive:     {codes.FailedPrecondition, http.StatusConflict},
	reason.AlreadyDecided:     {codes.FailedPrecondition, http.StatusConflict},
	reason.CommitAsked:        {codes.FailedPrecondition, http.StatusConflict},
	reason.StepConflict:       {codes.AlreadyExists, http.StatusConflict},
	reason.StepPending:        {codes.FailedPrecondition, http.StatusConflict},
	reason.TooManySteps:       {codes.FailedPrecondition, http.StatusConflict},
	reason.TooManyWaiters:     {codes.ResourceExhausted, http.StatusTooManyRequests},
	reason.CannotExecute:      {codes.FailedPrecondition, http.StatusBadRequest},

	reason.VotedNo:        abortReason,
	reason.Timeout:        abortReason,
	reason.LockTimeout:    abortReason,
	reason.ClientRollback: abortReason,

	reason.Deadlock:        abortReason,
	reason.Wounded:         abortReason,
	reason.IdleTimeout:     abortReason,
	reason.ExecuteRefused:  abortReason,
	reason.ExecuteConflict: abortReason,
	reason.ExecutionLost:   abortReason,
}

// failure is an error with the transaction that it is about.
type failure struct {
	error
	txn *node.Transaction
}

func (f failure) Unwrap() error { return f.error }

// withTransaction keeps the transaction that came with an error.
func withTransaction(t *node.Transaction, err error) error {
	if err == nil || t.ID == "" {
		return err
	}
	return failure{err, t}
}

// problem is an error as it is told.
type problem struct {
	err  *reason.Error
	code wireCode
	txn  *node.Transaction
}

// problemOf reads an error. The reason is copied: it is amended here and may be shared.
func problemOf(err error) problem {
	var p problem
	var f failure
	if errors.As(err, &f) {
		p.txn = f.txn
	}
	var e *reason.Error
	switch {
	case errors.As(err, &e):
		known := *e
		p.err = &known
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		p.err = reason.New(reason.OutcomeUnknown, "ask with the transaction's id, or send the same request again", "the request's time was over before an answer was there")
	default:
		p.err = reason.New(reason.Internal, "see the coordinator's log", "%v", err)
	}
	code, ok := wireCodes[p.err.Code]
	if !ok {
		code = wireCodes[reason.Internal]
	}
	p.code = code
	if p.err.RetryAfterMs == 0 && (p.err.Code == reason.Overloaded || p.err.Code == reason.NotReady || p.err.Code == reason.NotLeader) {
		p.err.RetryAfterMs = 1000
	}
	return p
}

func (p *problem) metadata() map[string]string {
	m := maps.Clone(p.err.Details)
	if m == nil {
		m = map[string]string{}
	}
	if p.err.Hint != "" {
		m["hint"] = p.err.Hint
	}
	return m
}

// helpURL explains every reason.
const helpURL = "https://github.com/assent-tx/assent/blob/main/docs/API.md#reasons"

const typePrefix = "type.googleapis.com/"

// The details of google.rpc.Status as JSON.
type (
	errorInfoJSON struct {
		Type     string            `json:"@type"`
		Reason   string            `json:"reason"`
		Domain   string            `json:"domain"`
		Metadata map[string]string `json:"metadata,omitempty"`
	}
	helpJSON struct {
		Type  string         `json:"@type"`
		Links []helpLinkJSON `json:"links"`
	}
	helpLinkJSON struct {
		Description string `json:"description"`
		URL         string `json:"url"`
	}
	retryInfoJSON struct {
		Type       string `json:"@type"`
		RetryDelay string `json:"retryDelay"`
	}
	transactionDetailJSON struct {
		Type string `json:"@type"`
		Transaction
	}
)

// statusJSON is the body of a REST error.
func (p *problem) statusJSON() (*Status, error) {
	details := []any{errorInfoJSON{typePrefix + "google.rpc.ErrorInfo", string(p.err.Code), assentv1.ErrorDomain, p.metadata()}}
	if p.err.Hint != "" {
		details = append(details, helpJSON{typePrefix + "google.rpc.Help", []helpLinkJSON{{p.err.Hint, helpURL}}})
	}
	if ms := p.err.RetryAfterMs; ms > 0 {
		details = append(details, retryInfoJSON{typePrefix + "google.rpc.RetryInfo", fmt.Sprintf("%d.%03ds", ms/1000, ms%1000)})
	}
	if p.txn != nil {
		details = append(details, transactionDetailJSON{typePrefix + "assent.v1.Transaction", transactionJSON(p.txn)})
	}
	s := &Status{Code: int32(p.code.grpc), Message: p.err.Message}
	for _, d := range details {
		raw, err := json.Marshal(d, encodeOptions, json.Deterministic(true))
		if err != nil {
			return nil, fmt.Errorf("encode an error's detail: %w", err)
		}
		s.Details = append(s.Details, jsontext.Value(raw))
	}
	return s, nil
}

// retryAfter is the header's value in seconds, or empty.
func (p *problem) retryAfter() string {
	if p.err.RetryAfterMs == 0 {
		return ""
	}
	return strconv.FormatUint((uint64(p.err.RetryAfterMs)+999)/1000, 10)
}

// statusGRPC is the same as a gRPC status.
func (p *problem) statusGRPC() error {
	s := status.New(p.code.grpc, utf8Only(p.err.Message))
	metadata := p.metadata()
	for k, v := range metadata {
		metadata[k] = utf8Only(v)
	}
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: string(p.err.Code), Domain: assentv1.ErrorDomain, Metadata: metadata}}
	if p.err.Hint != "" {
		details = append(details, &errdetails.Help{Links: []*errdetails.Help_Link{{Description: utf8Only(p.err.Hint), Url: helpURL}}})
	}
	if ms := p.err.RetryAfterMs; ms > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Duration(ms) * time.Millisecond)})
	}
	if p.txn != nil {
		details = append(details, protoadapt.MessageV1Of(transactionProto(p.txn)))
	}
	full, err := s.WithDetails(details...)
	if err != nil {
		return s.Err() // the code and the message are what matters most
	}
	return full.Err()
}
