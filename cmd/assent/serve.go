package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/assent-tx/assent/internal/config"
	"github.com/assent-tx/assent/internal/server"
)

// serveCmd is `assent serve`.
type serveCmd struct {
	config.Serve
}

// Run serves until a signal, or until the log fails.
func (c *serveCmd) Run(ctx context.Context, std *streams) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	log := newLogger(std.err, c.LogFormat, c.LogLevel)
	go keepHeapFloor(ctx)

	// Addresses first: who cannot listen must not touch the data.
	listeners, err := c.listen(ctx)
	if err != nil {
		return err
	}
	defer listeners.close()

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	node, err := newNode(&c.Serve, listeners, registry, log)
	if err != nil {
		return err
	}
	api, err := server.New(server.Config{Coordinator: node, Limits: c.limits(), Registerer: registry, Gatherer: registry, Logger: log, Version: version()})
	if err != nil {
		_ = node.close() // it has not begun
		return err
	}

	// The API answers while the log is read: alive, but not ready.
	failed := make(chan error, 3)
	go func() { failed <- api.Serve(listeners.http, listeners.grpc) }()
	if listeners.pprof != nil {
		profiles := &http.Server{Handler: profileMux(), ReadHeaderTimeout: 10 * time.Second}
		defer func() { _ = profiles.Close() }() // nothing of it is worth waiting for
		go func() { _ = profiles.Serve(listeners.pprof) }()
	}
	logFailed := make(chan error, 1)
	if err := node.open(ctx, func(err error) { logFailed <- err }); err != nil {
		api.Close()
		_ = node.close() // the first error counts
		if ctx.Err() != nil {
			return nil // asked to end while it waited for others
		}
		return fmt.Errorf("data directory %s: %w", c.Data, err)
	}
	log.Info("serving", "http", listeners.http.Addr().String(), "grpc", addressOf(listeners.grpc), "data", c.Data, "node", c.Node, "version", version())
	c.warnIfOpen(log)
	defer c.startAgents(ctx, "http://"+loopback(listeners.http.Addr()), node.caller, registry, log)()

	select {
	case <-ctx.Done():
		stop() // a second signal ends the process at once
		log.Info("ending: requests under way may finish", "within", c.ShutdownTimeout)
	case err := <-failed:
		api.Close()
		_ = node.close() // the first error counts
		return fmt.Errorf("the API stopped: %w", err)
	case err := <-logFailed:
		// The disk may hang: nothing is closed that could wait for it. Whatever is
		// durable is there at the next start.
		api.Close()
		return &exitError{exitUnknown, fmt.Errorf("the log failed: %w", err)}
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.ShutdownTimeout)
	defer cancel()
	api.Drain()
	node.leave(patience)
	err = api.Shutdown(patience)
	if err := errors.Join(err, node.close()); err != nil {
		return err
	}
	log.Info("ended")
	return nil
}

func (c *serveCmd) limits() server.Limits {
	return server.Limits{
		MaxRequestBytes: int(c.MaxRequestBytes), MaxOperations: c.MaxOperations, MaxKeys: c.MaxKeys,
		MaxRequestsInFlight: c.MaxWaitingRequests, MaxConnections: 2*c.MaxWaitingRequests + 1024, RequestTimeout: c.RequestTimeout,
	}
}

// sockets are the addresses that this process listens on; all but http may be nil.
type sockets struct{ http, grpc, pprof, peer net.Listener }

func (s *sockets) close() {
	for _, l := range []net.Listener{s.http, s.grpc, s.pprof, s.peer} {
		if l != nil {
			_ = l.Close() // most are closed by then
		}
	}
}

func (c *serveCmd) listen(ctx context.Context) (*sockets, error) {
	s := &sockets{}
	for _, a := range []struct {
		flag, address string
		into          *net.Listener
	}{{"http", c.HTTP, &s.http}, {"grpc", c.GRPC, &s.grpc}, {"pprof", c.Pprof, &s.pprof}, {"peer", c.Peer, &s.peer}} {
		if a.address == "" {
			continue
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.address)
		if err != nil {
			s.close()
			hint := "choose another one"
			if errors.Is(err, syscall.EADDRINUSE) {
				hint = "another process listens there: is a coordinator running already? Stop it, or choose another address"
			}
			return nil, fmt.Errorf("cannot listen on --%s %s: %w (%s)", a.flag, a.address, err, hint)
		}
		*a.into = l
	}
	return s, nil
}

// warnIfOpen: the API asks nobody who he is.
func (c *serveCmd) warnIfOpen(log *slog.Logger) {
	for _, address := range []string{c.HTTP, c.GRPC, c.Pprof} {
		host, _, err := net.SplitHostPort(address)
		if err != nil || host == "localhost" {
			continue
		}
		if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
			log.Warn("whoever reaches this address may submit transactions and register services: keep it in a trusted network", "address", address)
		}
	}
}

func addressOf(l net.Listener) string {
	if l == nil {
		return "none"
	}
	return l.Addr().String()
}

func newLogger(w io.Writer, format, level string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(strings.ToUpper(level))); err != nil {
		l = slog.LevelInfo // the flag allows no such name
	}
	options := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

func profileMux() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
