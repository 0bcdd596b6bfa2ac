package server

import "time"

// Limits of the API. Zero fields take the defaults of DefaultLimits.
type Limits struct {
	MaxRequestBytes    int // of one body or gRPC message
	MaxOperations      int // in a transaction
	MaxKeys            int // declared in a transaction
	MaxResources       int // named by a service
	MaxResourceBytes   int // of one resource name
	MaxURLBytes        int
	MaxNoteBytes       int // of a resolution; at most 1024
	MaxServiceInFlight int // of the limit that a service may ask for
	MaxPageSize        int

	MinTimeout time.Duration // of a transaction, of one try at a service, of a request
	MaxTimeout time.Duration

	MaxInteractiveTimeout time.Duration // of an interactive transaction
	MinIdleTimeout        time.Duration // of the silence of its client; at most MaxTimeout

	RequestTimeout    time.Duration // of a request that names no deadline
	ReadTimeout       time.Duration // of a request's body
	ReadHeaderTimeout time.Duration
	WriteTimeout      time.Duration // of an answer, once it is there
	IdleTimeout       time.Duration // of a connection between requests

	MaxConnections          int   // per listener; further ones wait to be accepted
	MaxRequestsInFlight     int   // over both protocols; then submissions are refused, other requests at 1/8 more
	MaxRequestBytesInFlight int64 // bodies of requests that are not answered; then submissions are refused, larger steps at 1/8 more
}

// DefaultLimits are the documented limits; `assent serve` takes those of connections and of
// requests in flight from --max-waiting-requests.
func DefaultLimits() Limits {
	return Limits{
		MaxRequestBytes:    1 << 20,
		MaxOperations:      64,
		MaxKeys:            256,
		MaxResources:       64,
		MaxResourceBytes:   256,
		MaxURLBytes:        2048,
		MaxNoteBytes:       1024,
		MaxServiceInFlight: 10_000,
		MaxPageSize:        1000,

		MinTimeout: 10 * time.Millisecond,
		MaxTimeout: 10 * time.Minute,

		MaxInteractiveTimeout: time.Hour,
		MinIdleTimeout:        100 * time.Millisecond,

		RequestTimeout:    30 * time.Second,
		ReadTimeout:       30 * time.Second,
		ReadHeaderTimeout: 10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       2 * time.Minute,

		MaxConnections:          20_000,
		MaxRequestsInFlight:     20_000,
		MaxRequestBytesInFlight: 256 << 20,
	}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	fill(&l.MaxRequestBytes, d.MaxRequestBytes)
	fill(&l.MaxOperations, d.MaxOperations)
	fill(&l.MaxKeys, d.MaxKeys)
	fill(&l.MaxResources, d.MaxResources)
	fill(&l.MaxResourceBytes, d.MaxResourceBytes)
	fill(&l.MaxURLBytes, d.MaxURLBytes)
	fill(&l.MaxNoteBytes, d.MaxNoteBytes)
	fill(&l.MaxServiceInFlight, d.MaxServiceInFlight)
	fill(&l.MaxPageSize, d.MaxPageSize)
	fill(&l.MinTimeout, d.MinTimeout)
	fill(&l.MaxTimeout, d.MaxTimeout)
	fill(&l.MaxInteractiveTimeout, d.MaxInteractiveTimeout)
	fill(&l.MinIdleTimeout, d.MinIdleTimeout)
	fill(&l.RequestTimeout, d.RequestTimeout)
	fill(&l.ReadTimeout, d.ReadTimeout)
	fill(&l.ReadHeaderTimeout, d.ReadHeaderTimeout)
	fill(&l.WriteTimeout, d.WriteTimeout)
	fill(&l.IdleTimeout, d.IdleTimeout)
	fill(&l.MaxConnections, d.MaxConnections)
	fill(&l.MaxRequestsInFlight, d.MaxRequestsInFlight)
	fill(&l.MaxRequestBytesInFlight, d.MaxRequestBytesInFlight)
	return l
}

func fill[T comparable](field *T, preset T) {
	var zero T
	if *field == zero {
		*field = preset
	}
}
