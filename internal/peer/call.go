package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Calls are gRPC with bytes for messages: what they mean is the caller's business.

// MaxCallBytes bounds a call and its answer.
const MaxCallBytes = 64 << 20

const (
	serviceName = "assent.internal.Peer"
	// A member whose process hangs is found out by these.
	pingEvery, pingTimeout = time.Second, 2 * time.Second
	maxConcurrentCalls     = 100_000
)

// ErrUnreachable: the member was not reached, or did not answer. Whether the call was
// executed is not known.
var ErrUnreachable = errors.New("the other node does not answer")

// Handler answers a call. An error ends the call as unreachable.
type Handler func(ctx context.Context, from Caller, body []byte) ([]byte, error)

type rawCodec struct{}

func (rawCodec) Name() string { return "assent-raw" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("a %T is no call", v)
	}
	return *b, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("a %T is no call", v)
	}
	*b = append([]byte(nil), data...) // data is used again
	return nil
}

func newServer() *grpc.Server {
	return grpc.NewServer(
		grpc.ForceServerCodec(rawCodec{}), grpc.MaxRecvMsgSize(MaxCallBytes), grpc.MaxSendMsgSize(MaxCallBytes), grpc.MaxConcurrentStreams(maxConcurrentCalls),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingEvery / 2, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingEvery, Timeout: pingTimeout}),
	)
}

// Handle adds the handlers of calls, by name; before Serve, once.
func (p *Port) Handle(handlers map[string]Handler) {
	desc := &grpc.ServiceDesc{ServiceName: serviceName, HandlerType: (*any)(nil)}
	for name, h := range handlers {
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: name, Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var in []byte
			if err := decode(&in); err != nil {
				return nil, err
			}
			var from Caller
			if info, ok := peer.FromContext(ctx); ok {
				if a, ok := info.Addr.(callerAddr); ok {
					from = a.caller()
				}
			}
			out, err := h(ctx, from, in)
			if err != nil {
				return nil, status.Error(codes.Unavailable, err.Error())
			}
			return &out, nil
		}})
	}
	p.server.RegisterService(desc, nil)
}

// Call asks a member. An error wraps ErrUnreachable.
func (p *Port) Call(ctx context.Context, member, name string, body []byte) ([]byte, error) {
	c, err := p.client(member)
	if err != nil {
		return nil, err
	}
	return invoke(ctx, c, name, body)
}

// CallAddress asks whoever listens at an address, on a connection of its own.
func (p *Port) CallAddress(ctx context.Context, address, name string, body []byte) ([]byte, error) {
	c, err := p.newClient(func(ctx context.Context) (net.Conn, error) {
		return p.connect(ctx, address, hello{Cluster: p.cfg.Cluster(), From: p.cfg.Self, Kind: kindCall})
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	return invoke(ctx, c, name, body)
}

func invoke(ctx context.Context, c *grpc.ClientConn, name string, body []byte) ([]byte, error) {
	var out []byte
	if err := c.Invoke(ctx, "/"+serviceName+"/"+name, &body, &out); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return out, nil
}

func (p *Port) client(member string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, ErrClosed)
	}
	if c := p.clients[member]; c != nil {
		return c, nil
	}
	c, err := p.newClient(func(ctx context.Context) (net.Conn, error) {
		address, ok := p.cfg.Address(member)
		if !ok {
			return nil, fmt.Errorf("%w: %s", ErrUnknownMember, member)
		}
		return p.connect(ctx, address, hello{Cluster: p.cfg.Cluster(), From: p.cfg.Self, To: member, Kind: kindCall})
	})
	if err == nil {
		p.clients[member] = c
	}
	return c, err
}

func (p *Port) newClient(dial func(context.Context) (net.Conn, error)) (*grpc.ClientConn, error) {
	c, err := grpc.NewClient("passthrough:///peer",
		grpc.WithTransportCredentials(insecure.NewCredentials()), // what there is of TLS is below
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{}), grpc.MaxCallRecvMsgSize(MaxCallBytes), grpc.MaxCallSendMsgSize(MaxCallBytes)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond}, MinConnectTimeout: handshakeTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithDisableServiceConfig(), grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return c, nil
}
