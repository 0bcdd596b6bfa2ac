package replog

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// hclogSink passes the Raft library's log lines to slog.
type hclogSink struct {
	logger *slog.Logger
	level  hclog.Level // and above
	// lone: the group has one voter, for which standing for election at start is
	// the rule and not worth a warning.
	lone bool
}

func raftLogger(logger *slog.Logger, lone bool) hclog.Logger {
	level := hclog.Warn
	if logger.Enabled(context.Background(), slog.LevelDebug) {
		level = hclog.Debug
	}
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Off, Output: io.Discard})
	l.RegisterSink(&hclogSink{logger: logger, level: level, lone: lone})
	return l
}

// Accept implements hclog.SinkAdapter.
func (s *hclogSink) Accept(name string, level hclog.Level, msg string, args ...any) {
	if level < s.level {
		return
	}
	to := slog.LevelDebug
	switch {
	case level >= hclog.Error:
		to = slog.LevelError
	case level >= hclog.Warn:
		to = slog.LevelWarn
	}
	if s.lone && msg == "heartbeat timeout reached, starting election" {
		to = slog.LevelDebug
	}
	plain := make([]any, len(args))
	for i, a := range args {
		plain[i] = a
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			plain[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	s.logger.Log(context.Background(), to, name+": "+msg, plain...)
}

// dbLogger passes the database's log lines to slog; its fatal errors end the log.
type dbLogger struct {
	logger *slog.Logger
	fail   func(error)
}

func (d dbLogger) Infof(string, ...any) {}

func (d dbLogger) Errorf(format string, args ...any) {
	d.logger.Error("log database: " + fmt.Sprintf(format, args...))
}

func (d dbLogger) Fatalf(format string, args ...any) {
	d.fail(fmt.Errorf("log database: %s", fmt.Sprintf(format, args...)))
}
