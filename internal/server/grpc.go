package server

import (
	"context"
	"fmt"
	"path"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/protobuf/proto"

	assentv1 "github.com/assent-tx/assent/api/assent/v1"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
)

// newGRPC makes the gRPC side: the services, health and reflection.
func (s *Server) newGRPC() *grpc.Server {
	g := grpc.NewServer(
		grpc.UnaryInterceptor(s.unary()),
		grpc.MaxRecvMsgSize(s.limits.MaxRequestBytes+64<<10), // what is a little over is refused with its reason
		grpc.MaxConcurrentStreams(uint32(s.limits.MaxRequestsInFlight)),
		grpc.ConnectionTimeout(s.limits.ReadHeaderTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: s.limits.IdleTimeout, Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	assentv1.RegisterTransactionServiceServer(g, &transactionService{s: s})
	assentv1.RegisterRegistryServiceServer(g, &registryService{s: s})
	assentv1.RegisterClusterServiceServer(g, &clusterService{s: s})
	healthpb.RegisterHealthServer(g, &grpcHealth{s: s})
	reflection.Register(g)
	return g
}

// unary frames a call as handler does a REST request.
func (s *Server) unary() grpc.UnaryServerInterceptor {
	type method struct {
		meter *meter
		work  work
	}
	methods := map[string]method{}
	for _, rt := range routes {
		for _, desc := range []grpc.ServiceDesc{assentv1.TransactionService_ServiceDesc, assentv1.RegistryService_ServiceDesc, assentv1.ClusterService_ServiceDesc} {
			for _, m := range desc.Methods {
				if m.MethodName == rt.name {
					methods["/"+desc.ServiceName+"/"+m.MethodName] = method{s.meters.of("grpc", rt.name), rt.work}
				}
			}
		}
	}
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		m, ours := methods[info.FullMethod]
		if !ours {
			return next(ctx, req) // health
		}
		begin := time.Now()
		answer, err := s.call(ctx, m.work, req, next)
		if err == nil {
			m.meter.done(begin, nil)
			return answer, nil
		}
		p := problemOf(err)
		if p.err.Code == reason.Internal {
			s.log.Error("internal error", "method", path.Base(info.FullMethod), "error", p.err.Message)
		}
		m.meter.done(begin, &p)
		return nil, p.statusGRPC()
	}
}

func (s *Server) call(ctx context.Context, w work, req any, next grpc.UnaryHandler) (any, error) {
	message, ok := req.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("request of type %T", req)
	}
	size := proto.Size(message)
	if limit := s.limits.MaxRequestBytes; size > limit {
		return nil, limited(reason.New(reason.RequestTooLarge, "send less, or raise --max-request-bytes", "the message has %d bytes; at most %d are accepted", size, limit), "message", limit)
	}
	leave, err := s.admission.enter(w, int64(size))
	if err != nil {
		return nil, err
	}
	defer leave()
	asked := time.Duration(0)
	if at, ok := ctx.Deadline(); ok {
		if asked = time.Until(at); asked <= 0 {
			return nil, context.DeadlineExceeded
		}
	}
	ctx, cancel := s.limits.deadline(ctx, asked)
	defer cancel()
	defer context.AfterFunc(s.ended, cancel)()
	return next(ctx, req)
}

type transactionService struct {
	assentv1.UnimplementedTransactionServiceServer
	s *Server
}

func (v *transactionService) SubmitTransaction(ctx context.Context, r *assentv1.SubmitTransactionRequest) (*assentv1.Transaction, error) {
	b, err := submitBody(r)
	if err != nil {
		return nil, err
	}
	trace := ""
	if md := metadata.ValueFromIncomingContext(ctx, "traceparent"); len(md) == 1 {
		trace = traceParent(md[0])
	}
	sub, err := v.s.limits.submission(b, trace)
	if err != nil {
		return nil, err
	}
	return transactionMessage(v.s.coordinator.Submit(ctx, sub))
}

func (v *transactionService) GetTransaction(ctx context.Context, r *assentv1.GetTransactionRequest) (*assentv1.Transaction, error) {
	if err := checkNamed(r, r.GetId()); err != nil {
		return nil, err
	}
	return transactionMessage(v.s.coordinator.Transaction(ctx, r.GetId()))
}

func (v *transactionService) ListTransactions(ctx context.Context, r *assentv1.ListTransactionsRequest) (*assentv1.ListTransactionsResponse, error) {
	if err := noUnknown(r, "the request"); err != nil {
		return nil, err
	}
	q, err := v.s.limits.listQuery(node.ListQuery{State: r.GetState(), Service: r.GetService(), PageSize: int(r.GetPageSize()), PageToken: r.GetPageToken()})
	if err != nil {
		return nil, err
	}
	page, err := v.s.coordinator.Transactions(ctx, q)
	if err != nil {
		return nil, err
	}
	out := &assentv1.ListTransactionsResponse{NextPageToken: page.NextPageToken}
	for i := range page.Transactions {
		out.Transactions = append(out.Transactions, transactionProto(&page.Transactions[i]))
	}
	return out, nil
}

func (v *transactionService) RollbackTransaction(ctx context.Context, r *assentv1.RollbackTransactionRequest) (*assentv1.Transaction, error) {
	if err := checkNamed(r, r.GetId()); err != nil {
		return nil, err
	}
	return transactionMessage(v.s.coordinator.Rollback(ctx, r.GetId()))
}

func (v *transactionService) ResolveTransaction(ctx context.Context, r *assentv1.ResolveTransactionRequest) (*assentv1.Transaction, error) {
	if err := checkNamed(r, r.GetId()); err != nil {
		return nil, err
	}
	if err := v.s.limits.checkNote(r.GetNote()); err != nil {
		return nil, err
	}
	return transactionMessage(v.s.coordinator.Resolve(ctx, r.GetId(), r.GetNote()))
}

func checkNamed(m proto.Message, id string) error {
	if err := noUnknown(m, "the request"); err != nil {
		return err
	}
	return checkID(id)
}

func transactionMessage(t node.Transaction, err error) (*assentv1.Transaction, error) {
	if err != nil {
		return nil, withTransaction(&t, err)
	}
	return transactionProto(&t), nil
}

type registryService struct {
	assentv1.UnimplementedRegistryServiceServer
	s *Server
}

func (v *registryService) PutService(ctx context.Context, r *assentv1.PutServiceRequest) (*assentv1.Service, error) {
	b, err := putServiceBody(r)
	if err != nil {
		return nil, err
	}
	spec, err := v.s.limits.serviceSpec(r.GetName(), b)
	if err != nil {
		return nil, err
	}
	return serviceMessage(v.s.coordinator.PutService(ctx, spec))
}

func (v *registryService) GetService(ctx context.Context, r *assentv1.GetServiceRequest) (*assentv1.Service, error) {
	if err := checkServiceNamed(r, r.GetName()); err != nil {
		return nil, err
	}
	return serviceMessage(v.s.coordinator.Service(ctx, r.GetName()))
}

func (v *registryService) ListServices(ctx context.Context, r *assentv1.ListServicesRequest) (*assentv1.ListServicesResponse, error) {
	if err := noUnknown(r, "the request"); err != nil {
		return nil, err
	}
	list, err := v.s.coordinator.Services(ctx)
	if err != nil {
		return nil, err
	}
	out := &assentv1.ListServicesResponse{}
	for i := range list {
		out.Services = append(out.Services, serviceProto(&list[i]))
	}
	return out, nil
}

func (v *registryService) DeleteService(ctx context.Context, r *assentv1.DeleteServiceRequest) (*assentv1.Service, error) {
	if err := checkServiceNamed(r, r.GetName()); err != nil {
		return nil, err
	}
	return serviceMessage(v.s.coordinator.DeleteService(ctx, r.GetName()))
}

func checkServiceNamed(m proto.Message, name string) error {
	if err := noUnknown(m, "the request"); err != nil {
		return err
	}
	return inField(checkServiceName(name), "name")
}

func serviceMessage(s node.Service, err error) (*assentv1.Service, error) {
	if err != nil {
		return nil, err
	}
	return serviceProto(&s), nil
}
