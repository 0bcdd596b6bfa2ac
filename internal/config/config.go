// Package config is the configuration of `assent serve`: one struct whose fields
// are flags, environment variables and keys of a YAML file, under the same names.
//
//	flag --max-keys   >   environment ASSENT_MAX_KEYS   >   file max-keys: …   >   default
//
// Bad values are refused wherever they come from, and so are keys of the file that
// nobody reads.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"
)

// Bytes is a size, written with its unit: 512KiB, 1MiB, 64MB.
type Bytes int64

// UnmarshalText parses a size; a bare number is bytes.
func (b *Bytes) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	if err != nil || n > 1<<50 {
		return fmt.Errorf("%q is not a size: write a number and a unit, such as 512KiB or 1MiB", text)
	}
	*b = Bytes(n)
	return nil
}

func (b Bytes) String() string { return strings.ReplaceAll(humanize.IBytes(uint64(b)), " ", "") }

// Serve is everything that `assent serve` can be told.
type Serve struct {
	Config string `placeholder:"FILE" help:"YAML file with the settings below, named like the flags."`

	Data   string `required:"" placeholder:"DIR" help:"Directory of the log and its snapshots; made if absent. One process per directory."`
	Node   string `default:"node-1" help:"Name of this node, for ever: the data directory remembers it."`
	Shards uint32 `placeholder:"N" help:"Shards that transactions and locks are spread over; fixed when the data directory is made (default: what that says, or 1)."`
	HTTP   string `name:"http" default:"127.0.0.1:7070" placeholder:"ADDR" help:"Address of the REST API, /healthz, /readyz and /metrics (default ${default})."`
	GRPC   string `name:"grpc" default:"127.0.0.1:7071" placeholder:"ADDR" help:"Address of the gRPC API (default ${default}); empty: none."`

	Peer            string        `group:"cluster" placeholder:"ADDR" help:"Address for the other nodes of the cluster; without it the node is alone."`
	Cluster         []string      `group:"cluster" placeholder:"NAME=HOST:PORT" help:"All nodes of a new cluster, this one among them, by their --node and --peer; the same at each. Only the first start needs it."`
	Join            string        `group:"cluster" placeholder:"HOST:PORT" help:"Join the cluster of the node whose --peer this is. Only the first start needs it."`
	Replicas        int           `group:"cluster" default:"3" help:"Nodes that vote on each shard: 3 survive one failure, 5 two."`
	ElectionTimeout time.Duration `group:"cluster" default:"500ms" help:"Silence of a leader after which another one is elected; up to twice that (random)."`
	AdvertiseHTTP   string        `group:"cluster" name:"advertise-http" placeholder:"URL" help:"The REST API as clients reach it (default: http:// and --http)."`
	AdvertiseGRPC   string        `group:"cluster" name:"advertise-grpc" placeholder:"HOST:PORT" help:"The gRPC API as clients reach it (default: --grpc)."`
	AdvertisePeer   string        `group:"cluster" name:"advertise-peer" placeholder:"HOST:PORT" help:"--peer as other nodes reach it (default: what --cluster says, or --peer)."`
	PeerCert        string        `group:"cluster" placeholder:"FILE" help:"Certificate of this node (PEM), for TLS between nodes; with --peer-key and --peer-ca."`
	PeerKey         string        `group:"cluster" placeholder:"FILE" help:"Its key (PEM)."`
	PeerCA          string        `group:"cluster" name:"peer-ca" placeholder:"FILE" help:"Authority that signs the nodes' certificates (PEM): nobody else is spoken to."`

	TransactionsRetained int           `group:"transactions" default:"100000" help:"Ended transactions kept, so that a repeated request gets its outcome."`
	Retention            time.Duration `group:"transactions" default:"10m" help:"How long they are kept; whichever of the two comes first."`
	TransactionTimeout   time.Duration `group:"transactions" default:"10s" help:"Time until its decision, of a transaction that names no timeout."`
	MaxOpenTransactions  int           `group:"transactions" default:"20000" help:"Transactions that have not ended; more are refused."`
	MaxOperations        int           `group:"transactions" default:"64" help:"Operations of a transaction in one request, or of one step."`
	MaxKeys              int           `group:"transactions" default:"256" help:"Keys that a transaction in one request, or one step, declares."`
	MaxKeyWaiters        int           `group:"transactions" default:"1000" help:"Transactions that wait for one key; more are refused, unless they are older than those."`
	MaxLockWait          time.Duration `group:"transactions" default:"0s" help:"Wait for the locks of a one-shot transaction, or of one step, before it is aborted; 0: until its timeout."`

	MaxRequestBytes    Bytes         `group:"requests" default:"1MiB" help:"Size of a request."`
	MaxWaitingRequests int           `group:"requests" default:"50000" help:"Requests that wait for an answer; more are refused."`
	RequestTimeout     time.Duration `group:"requests" default:"30s" help:"Wait of a request that names no deadline; then it answers the current state."`
	ShutdownTimeout    time.Duration `group:"requests" default:"10s" help:"Time that requests under way get to finish when the process is asked to end."`

	MaxInFlight    int            `group:"services" default:"128" help:"Calls at one time to a service that names no limit."`
	PrepareTimeout time.Duration  `group:"services" default:"3s" help:"One try of prepare, at a service that names no limit."`
	FinishTimeout  time.Duration  `group:"services" default:"10s" help:"One try of commit or rollback, at a service that names no limit."`
	AllowNetwork   []netip.Prefix `group:"services" placeholder:"CIDR" help:"Networks that services may be called in, such as 10.0.0.0/8; repeatable. Default: any but link-local and multicast."`

	SnapshotBytes Bytes         `group:"log" default:"64MiB" help:"A snapshot is taken when that much was logged since the last."`
	MinFreeSpace  Bytes         `group:"log" default:"256MiB" help:"New transactions are refused while the disk has less room than this; what is open goes on."`
	AppendStall   time.Duration `group:"log" default:"0s" help:"The process ends when a write is not on disk after that time, so that another node may lead; 0: 10s, and 3s in a cluster."`

	LogFormat string `group:"output" default:"text" enum:"text,json" help:"How to log: text or json."`
	LogLevel  string `group:"output" default:"info" enum:"debug,info,warn,error" help:"What to log: debug, info, warn or error."`
	Pprof     string `group:"output" placeholder:"ADDR" help:"Serve Go profiles here. They show internals: keep it on loopback."`

	// Agents are run in the coordinator's process: the section "agents" of the file.
	Agents []AgentPostgres `kong:"-"`
}

// Groups are the headings of --help.
var Groups = kong.Groups{
	"cluster":      "Cluster",
	"transactions": "Transactions",
	"requests":     "Requests",
	"services":     "Calls to services",
	"log":          "Log",
	"output":       "Output",
}

// Environment names the variables of the flags of the command `serve`, and of no
// other: --max-keys is ASSENT_MAX_KEYS.
func Environment() kong.Option {
	return kong.PostBuild(func(k *kong.Kong) error {
		for _, command := range k.Model.Children {
			if command.Name != "serve" {
				continue
			}
			for _, flag := range command.Flags {
				name := "ASSENT_" + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
				flag.Envs = []string{name}
				flag.Tag.Envs = flag.Envs
			}
			return nil
		}
		return errors.New("there is no command serve")
	})
}

// Help is shown by --help.
func (*Serve) Help() string {
	return `Runs a coordinator. It is ready when GET /readyz answers 200. Started again with the
same flags, after a stop, a crash or a power cut, it recovers what was decided and
goes on with what was open.

  assent serve --data /var/lib/assent
  assent serve --data ./data --retention 1h --transactions-retained 1000000
  ASSENT_DATA=./data ASSENT_LOG_FORMAT=json assent serve
  assent serve --config /etc/assent.yaml

Three nodes, started in any order (on three machines, or with other addresses on one):

  assent serve --data n1 --node n1 --peer 10.0.0.1:7072 --http 10.0.0.1:7070 --grpc 10.0.0.1:7071 \
      --cluster n1=10.0.0.1:7072,n2=10.0.0.2:7072,n3=10.0.0.3:7072

One more, in a cluster that runs:

  assent serve --data n4 --node n4 --peer 10.0.0.4:7072 --http 10.0.0.4:7070 --grpc 10.0.0.4:7071 --join 10.0.0.1:7072

A file holds the same names, one a line:

  data: /var/lib/assent
  http: 0.0.0.0:7070
  max-request-bytes: 2MiB
  allow-network: 10.0.0.0/8,192.168.0.0/16
  agents:                       # databases as participants, in this process
    - postgres:                 # the settings of: assent agent postgres --help
        service: bank
        dsn-file: /etc/assent/bank.dsn

Flags win over the environment, the environment over the file. The API asks nobody
who he is: keep it on loopback or in a trusted network.

Exit codes: 0 stopped by SIGINT or SIGTERM; 1 cannot start (address in use, data
directory of another node); 2 bad usage; 3 the log failed: what was durable is there
at the next start.`
}

// BeforeResolve puts the file, if one is named, below flags and environment.
func (s *Serve) BeforeResolve(ctx *kong.Context) error {
	node := ctx.Selected()
	for _, flag := range node.Flags {
		if flag.Name != "config" {
			continue
		}
		path, ok := ctx.FlagValue(flag).(string)
		if !ok || path == "" {
			return nil
		}
		file, err := readFile(path, node.Flags)
		if err != nil {
			return err
		}
		ctx.AddResolver(file)
		if file.agents != nil {
			if s.Agents, err = agents(file.agents); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return nil
}

// Validate refuses what cannot work. Ranges are those of the parts that use a value.
func (s *Serve) Validate() error {
	for _, v := range []struct {
		name          string
		value, lo, hi int64
	}{
		{"transactions-retained", int64(s.TransactionsRetained), 1, 100_000_000},
		{"max-open-transactions", int64(s.MaxOpenTransactions), 1, 1_000_000},
		{"max-operations", int64(s.MaxOperations), 1, 1024},
		{"max-keys", int64(s.MaxKeys), 1, 4096},
		{"max-key-waiters", int64(s.MaxKeyWaiters), 1, 1_000_000},
		{"max-waiting-requests", int64(s.MaxWaitingRequests), 1, 1_000_000},
		{"max-in-flight", int64(s.MaxInFlight), 1, 10_000},
		{"replicas", int64(s.Replicas), 1, 7},
	} {
		if v.value < v.lo || v.value > v.hi {
			return fmt.Errorf("--%s is %d: use %d to %d", v.name, v.value, v.lo, v.hi)
		}
	}
	for _, v := range []struct {
		name          string
		value, lo, hi time.Duration
	}{
		{"retention", s.Retention, time.Second, 30 * 24 * time.Hour},
		{"transaction-timeout", s.TransactionTimeout, 10 * time.Millisecond, 10 * time.Minute},
		{"max-lock-wait", s.MaxLockWait, 0, 10 * time.Minute},
		{"request-timeout", s.RequestTimeout, 10 * time.Millisecond, 10 * time.Minute},
		{"shutdown-timeout", s.ShutdownTimeout, 0, 10 * time.Minute},
		{"prepare-timeout", s.PrepareTimeout, 10 * time.Millisecond, 10 * time.Minute},
		{"finish-timeout", s.FinishTimeout, 10 * time.Millisecond, 10 * time.Minute},
		{"append-stall", s.appendStall(), 10 * time.Millisecond, time.Hour},
		{"election-timeout", s.ElectionTimeout, 50 * time.Millisecond, time.Minute},
	} {
		if v.value < v.lo || v.value > v.hi {
			return fmt.Errorf("--%s is %v: use %v to %v", v.name, v.value, v.lo, v.hi)
		}
	}
	for _, v := range []struct {
		name          string
		value, lo, hi Bytes
	}{
		{"max-request-bytes", s.MaxRequestBytes, 1 << 10, 8 << 20}, // an entry of the log holds 16 MiB
		{"snapshot-bytes", s.SnapshotBytes, 1 << 20, 1 << 40},
	} {
		if v.value < v.lo || v.value > v.hi {
			return fmt.Errorf("--%s is %v: use %v to %v", v.name, v.value, v.lo, v.hi)
		}
	}
	if err := s.validateCluster(); err != nil {
		return err
	}
	return errors.Join(address("http", s.HTTP, false), address("grpc", s.GRPC, true), address("pprof", s.Pprof, true), address("peer", s.Peer, true), address("join", s.Join, true))
}

func (s *Serve) validateCluster() error {
	founders, err := s.Founders()
	switch {
	case err != nil:
		return err
	case s.Replicas%2 == 0:
		return fmt.Errorf("--replicas is %d: use an odd number; an even one survives no more failures than the odd one below it", s.Replicas)
	case s.Peer == "" && (len(founders) > 0 || s.Join != ""):
		return errors.New("--cluster and --join need --peer, the address that other nodes reach this one at")
	case len(founders) > 0 && s.Join != "":
		return errors.New("--cluster makes a new cluster and --join enters one: give one of them")
	case len(founders) > 0 && founders[s.Node] == "":
		return fmt.Errorf("--cluster does not name this node: add %s=%s, or correct --node", s.Node, s.Peer)
	case (s.PeerCert == "") != (s.PeerKey == "") || (s.PeerCert == "") != (s.PeerCA == ""):
		return errors.New("--peer-cert, --peer-key and --peer-ca go together")
	}
	return nil
}

// appendStall is AppendStall with its default.
func (s *Serve) appendStall() time.Duration {
	switch {
	case s.AppendStall != 0:
		return s.AppendStall
	case s.Peer != "":
		return 3 * time.Second
	}
	return 10 * time.Second
}

// AppendStallMs is how long a write may take, in milliseconds.
func (s *Serve) AppendStallMs() int { return int(s.appendStall().Milliseconds()) }

// Founders are the addresses of --cluster by node name.
func (s *Serve) Founders() (map[string]string, error) {
	founders := map[string]string{}
	for _, entry := range s.Cluster {
		name, addr, ok := strings.Cut(entry, "=")
		if _, _, err := net.SplitHostPort(addr); !ok || name == "" || err != nil {
			return nil, fmt.Errorf("--cluster has %q: write the nodes as NAME=HOST:PORT, divided by commas", entry)
		}
		if founders[name] != "" {
			return nil, fmt.Errorf("--cluster names %q twice", name)
		}
		founders[name] = addr
	}
	return founders, nil
}

func address(flag, value string, optional bool) error {
	if value == "" && optional {
		return nil
	}
	if _, _, err := net.SplitHostPort(value); err != nil {
		return fmt.Errorf("--%s is %q: write host:port, such as 127.0.0.1:7070, or :7070 for every address of this machine", flag, value)
	}
	return nil
}
