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

// connectionTalk are messages about connections to members that are down, starting or
// ending: several a second of each group. Who is down is said once, by package cluster.
var connectionTalk = map[string]bool{
	"failed to decode incoming command": true, "failed to flush response": true, "failed to accept connection": true,
	"failed to appendEntries to": true, "failed to heartbeat to": true, "failed to pipeline appendEntries": true, "aborting pipeline replication": true,
	"failed to make requestVote RPC": true, "failed to start pipeline replication to": true, "failed to contact": true,

	// What an instance without a replica says, and who is asked for a vote in vain.
	"no known peers, aborting election": true, "not part of stable configuration, aborting election": true,
	"heartbeat timeout reached, not part of a stable configuration or a non-voter, not triggering a leader election": true,
	"rejecting vote request since we have a leader":                                                                  true, "rejecting vote request since node is not in configuration": true,
	"rejecting vote request since node is not a voter": true, "rejecting pre-vote request since we have a leader": true,
	"rejecting pre-vote request since node is not in configuration": true, "rejecting pre-vote request since node is not a voter": true,
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
	if connectionTalk[msg] || s.lone && msg == "heartbeat timeout reached, starting election" {
		to = slog.LevelDebug
	}
	if !s.logger.Enabled(context.Background(), to) {
		return
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
