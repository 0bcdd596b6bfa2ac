package server

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	assentv1 "github.com/assent-tx/assent/api/assent/v1"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
)

// healthz: the process lives and answers.
func (s *Server) healthz(w http.ResponseWriter, r *http.Request) {
	h := s.coordinator.Health()
	s.write(w, r, http.StatusOK, healthJSON(&h))
}

// readyz: requests are welcome.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	h := s.health()
	if !h.Ready {
		p := problemOf(reason.New(reason.NotReady, "wait until /readyz answers 200", "%s", h.Message))
		s.refuse(w, r, &p)
		return
	}
	s.write(w, r, http.StatusOK, healthJSON(&h))
}

func (s *Server) health() node.Health {
	h := s.coordinator.Health()
	if s.admission.draining.Load() {
		h.Ready, h.Message = false, "shutting down"
	}
	return h
}

func (s *Server) metricsPage() http.Handler {
	return promhttp.HandlerFor(s.gatherer, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 5 * time.Second})
}

// grpcHealth is grpc.health.v1.Health: the empty service and all of ours are
// serving while the node is ready.
type grpcHealth struct {
	healthpb.UnimplementedHealthServer
	s *Server
}

var healthServices = map[string]bool{
	"": true,
	assentv1.TransactionService_ServiceDesc.ServiceName: true,
	assentv1.RegistryService_ServiceDesc.ServiceName:    true,
	assentv1.ClusterService_ServiceDesc.ServiceName:     true,
}

func (g *grpcHealth) status() healthpb.HealthCheckResponse_ServingStatus {
	if g.s.health().Ready {
		return healthpb.HealthCheckResponse_SERVING
	}
	return healthpb.HealthCheckResponse_NOT_SERVING
}

func (g *grpcHealth) Check(_ context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if !healthServices[r.GetService()] {
		return nil, status.Errorf(codes.NotFound, "no such service: %.100q", r.GetService())
	}
	return &healthpb.HealthCheckResponse{Status: g.status()}, nil
}

func (g *grpcHealth) List(context.Context, *healthpb.HealthListRequest) (*healthpb.HealthListResponse, error) {
	out := &healthpb.HealthListResponse{Statuses: map[string]*healthpb.HealthCheckResponse{}}
	for name := range healthServices {
		out.Statuses[name] = &healthpb.HealthCheckResponse{Status: g.status()}
	}
	return out, nil
}

// watchInterval is how late a watcher may learn of a change.
const watchInterval = 250 * time.Millisecond

func (g *grpcHealth) Watch(r *healthpb.HealthCheckRequest, stream healthpb.Health_WatchServer) error {
	if !healthServices[r.GetService()] {
		return stream.Send(&healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVICE_UNKNOWN})
	}
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for told := healthpb.HealthCheckResponse_UNKNOWN; ; {
		if now := g.status(); now != told {
			if err := stream.Send(&healthpb.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			told = now
		}
		if g.s.admission.draining.Load() {
			return status.Error(codes.Unavailable, "shutting down")
		}
		select {
		case <-tick.C:
		case <-stream.Context().Done():
			return nil
		}
	}
}
