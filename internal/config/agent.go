package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"
)

// AgentPostgres is everything that `assent agent postgres` can be told. The same
// names stand in the section "agents" of the file of `assent serve`.
type AgentPostgres struct {
	Service string `required:"" placeholder:"NAME" help:"Name to register the database as."`
	DSN     string `name:"dsn" env:"ASSENT_AGENT_DSN" placeholder:"DSN" help:"Where the database is: postgres://user@host:port/database?sslmode=verify-full, or key=value words. On the command line others can read it: use the environment or --dsn-file."`
	DSNFile string `name:"dsn-file" type:"path" placeholder:"FILE" help:"File that holds the DSN alone."`

	Listen      string `default:"127.0.0.1:0" placeholder:"ADDR" help:"Address that the coordinator calls, and of /healthz and /metrics (default: a free port on loopback)."`
	Advertise   string `placeholder:"URL" help:"Base URL under which the coordinator reaches --listen, if that is another one."`
	Coordinator string `placeholder:"URL" help:"Coordinator to register at; several nodes of it are divided by commas (default: ASSENT_ENDPOINTS, ASSENT_ENDPOINTS_FILE, ASSENT_URL, else http://127.0.0.1:7070)."`

	Isolation        string        `group:"database" enum:"serializable,repeatable read,read committed" default:"serializable" help:"Isolation of the local transactions of branches that are prepared as a whole: serializable, repeatable read or read committed. One that executes before prepare is read committed."`
	MaxConnections   int           `group:"database" default:"32" help:"Connections to the database at one time."`
	MaxOpenBranches  int           `group:"database" default:"0" help:"Branches whose statements run before their prepare, at one time, each on a connection of its own: at most half of --max-connections (default: that half)."`
	OpenIdle         time.Duration `group:"database" default:"30s" help:"Time without a call after which such a branch is rolled back; keep it above the idle timeout of interactive transactions."`
	LockTimeout      time.Duration `group:"database" default:"1s" help:"Wait for a lock in the database; then the branch votes no. Keep it below --prepare-timeout."`
	StatementTimeout time.Duration `group:"database" default:"2s" help:"Time of one statement; then the branch votes no."`

	RequireKeys    bool          `group:"registration" help:"Refuse operations that declare no key."`
	MaxInFlight    int           `group:"registration" default:"64" help:"Calls of the coordinator at one time."`
	PrepareTimeout time.Duration `group:"registration" default:"3s" help:"One try of prepare."`

	SweepInterval time.Duration `group:"orphans" default:"30s" help:"Time between two looks for prepared transactions that nobody ends."`
	OrphanAfter   time.Duration `group:"orphans" default:"1m" help:"Age from which the coordinator is asked about one."`
	WarnAfter     time.Duration `group:"orphans" default:"5m" help:"Age from which a prepared transaction is warned of."`
}

// AgentGroups are the headings of --help.
var AgentGroups = kong.Groups{
	"database":     "Database",
	"registration": "Registration",
	"orphans":      "Prepared transactions that are left",
}

// Validate is called by kong.
func (a *AgentPostgres) Validate() error {
	switch half := max(a.MaxConnections/2, 1); {
	case a.MaxConnections < 1:
		return fmt.Errorf("--max-connections is %d: use 1 or more", a.MaxConnections)
	case a.MaxOpenBranches < 0 || a.MaxOpenBranches > half:
		return fmt.Errorf("--max-open-branches is %d: use 1 to %d, half of --max-connections, or 0 for that half; the other half prepares and ends branches", a.MaxOpenBranches, half)
	case a.OpenIdle < minOpenIdle:
		return fmt.Errorf("--open-idle is %s: use %s or more", a.OpenIdle, minOpenIdle)
	}
	return nil
}

// minOpenIdle is long enough for the calls of one transaction to follow each other.
const minOpenIdle = 100 * time.Millisecond

// maxDSNBytes bounds a DSN file.
const maxDSNBytes = 8 << 10

// ReadDSN is the DSN, wherever it was given. Errors never hold it.
func (a *AgentPostgres) ReadDSN() (string, error) {
	switch {
	case a.DSN != "" && a.DSNFile != "":
		return "", errors.New("--dsn (or ASSENT_AGENT_DSN) and --dsn-file are both given: keep one")
	case a.DSN != "":
		return a.DSN, nil
	case a.DSNFile == "":
		return "", errors.New("no database is named: set ASSENT_AGENT_DSN, or give --dsn-file or --dsn")
	}
	f, err := os.Open(a.DSNFile)
	if err != nil {
		return "", fmt.Errorf("--dsn-file: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	text, err := io.ReadAll(io.LimitReader(f, maxDSNBytes+1))
	if err != nil {
		return "", fmt.Errorf("--dsn-file: %w", err)
	}
	dsn := strings.TrimSpace(string(text))
	if dsn == "" || len(text) > maxDSNBytes {
		return "", fmt.Errorf("--dsn-file: %s holds %d bytes; write the DSN alone, in at most %d", a.DSNFile, len(text), maxDSNBytes)
	}
	return dsn, nil
}

// agents reads the section "agents": a list of mappings with one key, the kind,
// over the settings of such an agent.
//
//	agents:
//	  - postgres:
//	      service: ledger
//	      dsn-file: /etc/assent/ledger.dsn
func agents(section *yaml.Node) ([]AgentPostgres, error) {
	if section.Kind != yaml.SequenceNode {
		return nil, fmt.Errorf("line %d: \"agents\" is a list: begin each agent with \"- postgres:\"", section.Line)
	}
	var list []AgentPostgres
	for _, item := range section.Content {
		if item.Kind != yaml.MappingNode || len(item.Content) != 2 || item.Content[0].Value != "postgres" {
			return nil, fmt.Errorf("line %d: begin an agent with \"- postgres:\", and indent its settings below", item.Line)
		}
		args, lines, err := arguments(item.Content[1])
		if err != nil {
			return nil, err
		}
		a := AgentPostgres{}
		parser, err := kong.New(&a, kong.Name("agent"), AgentGroups, kong.Exit(func(int) {}), kong.Writers(io.Discard, io.Discard))
		if err != nil {
			return nil, err
		}
		known := map[string]bool{}
		for _, flag := range parser.Model.Flags { // one environment cannot mean several agents
			flag.Envs, flag.Tag.Envs = nil, nil
			known[flag.Name] = true
		}
		for name, line := range lines { // which of several is told does not matter
			if !known[name] {
				return nil, fmt.Errorf("line %d: %q is no setting of a postgres agent (assent agent postgres --help lists them)", line, name)
			}
		}
		if _, err := parser.Parse(args); err != nil {
			return nil, fmt.Errorf("line %d: %w", item.Line, err)
		}
		if _, err := a.ReadDSN(); err != nil {
			return nil, fmt.Errorf("line %d: %w", item.Line, err)
		}
		list = append(list, a)
	}
	return list, nil
}

// arguments are the settings of a mapping as flags, and the line of each.
func arguments(node *yaml.Node) (args []string, lines map[string]int, err error) {
	if node.Kind != yaml.MappingNode {
		return nil, nil, fmt.Errorf("line %d: write one setting a line, such as \"service: ledger\"", node.Line)
	}
	lines = map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name := node.Content[i]
		if _, twice := lines[name.Value]; twice {
			return nil, nil, fmt.Errorf("line %d: %q stands twice", name.Line, name.Value)
		}
		text, err := scalar(name.Value, node.Content[i+1])
		if err != nil {
			return nil, nil, err
		}
		lines[name.Value] = name.Line
		args = append(args, "--"+name.Value+"="+text)
	}
	return args, lines, nil
}
