package arch

// Module is the path of the module that this package guards.
const Module = "github.com/assent-tx/assent"

// Ring says what a package is and so what it may do.
type Ring uint8

// The rings of docs/ARCHITECTURE.md.
const (
	Pure   Ring = iota + 1 // a function of its inputs: no clock, goroutine, channel, random, I/O or map order
	Edge                   // thin shells around the pure ring: goroutines, clocks, sockets, disks
	Quiet                  // neither pure nor in need of a clock
	Public                 // what users compile: nothing internal
)

// Package is one line of the table.
type Package struct {
	Ring Ring
	// Imports are the packages of ours it may import outside its tests, relative to
	// the module; "..." stands for all of them. Its tests may import more.
	Imports []string
}

// Table names every package of the module by its directory.
var Table = map[string]Package{
	".":             {Ring: Public, Imports: []string{"api/assent/v1", "discovery"}},
	"participant":   {Ring: Public, Imports: []string{"discovery"}},
	"discovery":     {Ring: Public},
	"api/assent/v1": {Ring: Public},
	"rm/rmtest":     {Ring: Public, Imports: []string{"participant"}},

	"internal/txnid":  {Ring: Pure},
	"internal/reason": {Ring: Pure},
	"internal/lock":   {Ring: Pure, Imports: []string{"internal/txnid", "internal/mutant"}},
	"internal/txn":    {Ring: Pure, Imports: []string{"internal/lock", "internal/txnid", "internal/reason", "internal/mutant"}},
	"internal/shard":  {Ring: Pure, Imports: []string{"internal/txn", "internal/lock", "internal/txnid", "internal/reason", "internal/mutant"}},

	"internal/mutant":       {Ring: Quiet}, // compiled to a constant in every ordinary build
	"internal/failpoint":    {Ring: Quiet}, // likewise
	"internal/arch":         {Ring: Quiet},
	"internal/contention":   {Ring: Quiet},
	"internal/config":       {Ring: Quiet, Imports: []string{"internal/reason"}},
	"internal/check":        {Ring: Quiet},
	"internal/check/linear": {Ring: Quiet},
	"internal/check/replay": {Ring: Quiet, Imports: []string{"internal/check"}},
	"internal/sim":          {Ring: Quiet, Imports: []string{"internal/shard", "internal/txn", "internal/lock", "internal/txnid", "internal/reason", "internal/mutant"}},
	"internal/sim/sessions": {Ring: Quiet, Imports: []string{"internal/check", "internal/check/linear", "internal/check/replay", "internal/shard", "internal/txn", "internal/lock", "internal/txnid", "internal/reason"}},
	"internal/sim/cluster":  {Ring: Quiet, Imports: []string{"internal/sim/sessions", "internal/shard", "internal/txn", "internal/txnid", "internal/reason"}},
	"internal/sim/exhaust":  {Ring: Quiet, Imports: []string{"internal/sim", "internal/shard", "internal/txn", "internal/lock", "internal/txnid", "internal/reason", "internal/mutant"}},

	"internal/replog":   {Ring: Edge, Imports: []string{"internal/failpoint", "internal/mutant"}},
	"internal/rm":       {Ring: Edge, Imports: []string{"internal/txnid"}},
	"internal/rm/http":  {Ring: Edge, Imports: []string{"internal/rm", "internal/txnid", "internal/failpoint", "internal/mutant"}},
	"internal/rm/local": {Ring: Edge, Imports: []string{"internal/rm", "internal/rm/http", "participant"}},
	"internal/node": {Ring: Edge, Imports: []string{
		"internal/shard", "internal/txn", "internal/lock", "internal/txnid", "internal/reason",
		"internal/replog", "internal/rm", "internal/mutant", "internal/failpoint",
	}},
	"internal/placement": {Ring: Pure},
	"internal/backup":    {Ring: Quiet},
	"internal/peer":      {Ring: Edge},
	"internal/cluster": {Ring: Edge, Imports: []string{
		"internal/node", "internal/peer", "internal/replog", "internal/placement", "internal/reason", "internal/shard", "internal/txn", "internal/txnid",
	}},
	"internal/server": {Ring: Edge, Imports: []string{
		"internal/node", "internal/reason", "internal/txnid", "api/assent/v1",
		"internal/backup", // the file that it answers
		"internal/lock",   // CheckKey alone
	}},

	"internal/agent/postgres": {Ring: Edge, Imports: []string{"participant", "discovery"}},

	// Test beds and the demo.
	"internal/ledger":    {Ring: Edge, Imports: []string{"internal/txnid", "participant"}},
	"internal/pgtest":    {Ring: Edge, Imports: []string{"internal/serveproc"}}, // FreeAddress alone
	"internal/serveproc": {Ring: Edge, Imports: []string{"internal/txnid"}},
	"internal/e2e":       {Ring: Edge, Imports: []string{".", "internal/check", "internal/check/linear", "internal/check/replay", "internal/ledger", "internal/serveproc", "internal/bench", "internal/pgtest"}},
	"internal/bench":     {Ring: Edge, Imports: []string{".", "internal/contention", "internal/replog", "internal/serveproc", "internal/txnid"}},

	"cmd/assent":      {Ring: Edge, Imports: []string{"..."}},
	"scripts/openapi": {Ring: Quiet},
}

// Libraries names the packages that may import a library outside their tests,
// by the prefix of its path. What is not named here is free.
var Libraries = map[string][]string{
	"github.com/hashicorp/raft":           {"internal/replog"},
	"github.com/hashicorp/go-hclog":       {"internal/replog"},
	"github.com/cockroachdb/pebble":       {"internal/replog"},
	"database/sql":                        {"participant", "internal/agent/postgres", "internal/ledger", "rm/rmtest", "cmd/assent"},
	"modernc.org/sqlite":                  {"internal/ledger", "cmd/assent"},
	"google.golang.org/grpc":              {".", "api/assent/v1", "internal/server", "internal/peer", "cmd/assent"},
	"github.com/prometheus/client_golang": {"internal/agent/postgres", "internal/node", "internal/server", "cmd/assent"},
	"github.com/alecthomas/kong":          {"cmd/assent", "internal/config"},
	"go.yaml.in/yaml":                     {"cmd/assent", "internal/config"},
	"math/rand":                           {"internal/contention", "internal/sim", "internal/sim/sessions", "internal/sim/cluster", "internal/bench", "internal/rm/http", "internal/ledger", "internal/replog", "internal/serveproc", "internal/node", "internal/cluster", "participant", "discovery", ".", "cmd/assent"},
	"github.com/anishathalye/porcupine":   {"internal/check/linear"},
	"testing":                             {"rm/rmtest", "internal/pgtest"},
}

// pureImports is all that the pure ring may import of others: each gives the
// same answer to the same question. No time, context, sync, os, io, net, random,
// runtime, log, unsafe, reflect.
var pureImports = []string{
	"bytes", "cmp", "container/heap", "crypto/sha256", "encoding/binary", "encoding/hex", "errors", "fmt",
	"hash", "hash/crc32", "hash/fnv", "iter", "maps", "math", "math/bits", "slices", "sort", "strconv",
	"strings", "unicode", "unicode/utf8", "golang.org/x/text/unicode/norm",
}

// clock lists what reads or waits for the real clock.
var clock = map[string][]string{
	"time":    {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"},
	"context": {"WithTimeout", "WithTimeoutCause", "WithDeadline", "WithDeadlineCause"},
}

// clockFree are the public packages that need no clock.
var clockFree = []string{"api/assent/v1"}

// badNames say nothing about what a package owns.
var badNames = []string{
	"common", "util", "utils", "helper", "helpers", "type", "types", "impl", "base", "interfaces",
	"manager", "managers", "misc", "shared", "lib", "core",
}
