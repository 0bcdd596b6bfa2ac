package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
)

// Config of a Server.
type Config struct {
	Coordinator Coordinator
	Limits      Limits                // zero fields mean the defaults
	Registerer  prometheus.Registerer // for the requests' meters
	Gatherer    prometheus.Gatherer   // what /metrics shows
	Logger      *slog.Logger          // nil: slog.Default()
	Version     string                // of the program; named in backups
}

// Server is the API of one node.
type Server struct {
	coordinator Coordinator
	limits      Limits
	gatherer    prometheus.Gatherer
	log         *slog.Logger
	version     string
	meters      *meters
	admission   *admission
	crossOrigin *http.CrossOriginProtection

	http *http.Server
	grpc *grpc.Server

	ended context.Context //nolint:containedctx // ends every wait at the end of Shutdown's patience
	end   context.CancelFunc
}

// New makes a Server; Serve runs it.
func New(cfg Config) (*Server, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Server{
		coordinator: cfg.Coordinator, limits: cfg.Limits.withDefaults(), gatherer: cfg.Gatherer, log: cfg.Logger, version: cfg.Version,
		crossOrigin: http.NewCrossOriginProtection(),
	}
	s.admission = &admission{limits: &s.limits}
	var err error
	if s.meters, err = newMeters(cfg.Registerer, s.admission); err != nil {
		return nil, fmt.Errorf("register the meters of the API: %w", err)
	}
	s.ended, s.end = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           s.newMux(),
		ReadHeaderTimeout: s.limits.ReadHeaderTimeout,
		ReadTimeout:       s.limits.ReadTimeout,
		WriteTimeout:      s.limits.WriteTimeout, // begins anew when an answer is written
		IdleTimeout:       s.limits.IdleTimeout,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return s.ended },
	}
	s.grpc = s.newGRPC()
	return s, nil
}

// Handler is the REST side, for tests and for mounting elsewhere.
func (s *Server) Handler() http.Handler { return s.http.Handler }

// Serve answers on both listeners until Shutdown, then returns nil; it returns
// early, with an error, when a listener fails. A nil grpcListener means REST alone.
func (s *Server) Serve(httpListener, grpcListener net.Listener) error {
	failed := make(chan error, 2)
	running := 1
	go func() {
		err := s.http.Serve(netutil.LimitListener(httpListener, s.limits.MaxConnections))
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		}
		failed <- err
	}()
	if grpcListener != nil {
		running++
		go func() {
			err := s.grpc.Serve(netutil.LimitListener(grpcListener, s.limits.MaxConnections))
			if errors.Is(err, grpc.ErrServerStopped) {
				err = nil
			}
			failed <- err
		}()
	}
	var first error
	for range running {
		if err := <-failed; err != nil && first == nil {
			first = fmt.Errorf("serve: %w", err)
			s.Close()
		}
	}
	return first
}

// finishTime is what answers get once their waits have been ended.
const finishTime = 2 * time.Second

// drainPoll is how soon the end of the last submission is seen.
const drainPoll = 5 * time.Millisecond

// Drain refuses new work and turns /readyz to 503; everything else is answered.
func (s *Server) Drain() { s.admission.draining.Store(true) }

// Shutdown first refuses new work and turns /readyz to 503, so that load balancers
// look elsewhere, and answers everything else until the last submission has its
// answer. Then it stops accepting, lets the other requests finish until ctx ends,
// ends their waits (they answer the current state), and closes what is left.
func (s *Server) Shutdown(ctx context.Context) error {
	s.Drain()
	defer context.AfterFunc(ctx, s.end)()
	last, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(finishTime, cancel) })()
	for tick := time.NewTicker(drainPoll); ; {
		if s.admission.submissions.Load() == 0 || last.Err() != nil {
			tick.Stop()
			break
		}
		select {
		case <-tick.C:
		case <-last.Done():
		}
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.grpc.GracefulStop()
	}()
	err := s.http.Shutdown(last)
	select {
	case <-stopped:
	case <-last.Done():
		err = errors.Join(err, last.Err())
	}
	s.Close()
	<-stopped
	if err != nil {
		return fmt.Errorf("requests were cut off at shutdown: %w", err)
	}
	return nil
}

// Close ends everything at once.
func (s *Server) Close() {
	s.admission.draining.Store(true)
	s.end()
	s.grpc.Stop()
	_ = s.http.Close() // its listeners are gone either way
}
