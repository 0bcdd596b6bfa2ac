package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

type app struct {
	Serve Serve `cmd:""`
}

func parse(t *testing.T, args ...string) (*Serve, error) {
	t.Helper()
	var a app
	k, err := kong.New(&a, Environment(), Groups, kong.Exit(func(int) { t.Fatal("exit") }))
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.Parse(append([]string{"serve"}, args...))
	return &a.Serve, err
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "assent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaults(t *testing.T) {
	s, err := parse(t, "--data", "d")
	if err != nil {
		t.Fatal(err)
	}
	if s.HTTP != "127.0.0.1:7070" || s.GRPC != "127.0.0.1:7071" || s.TransactionsRetained != 100_000 || s.Retention != 10*time.Minute ||
		s.MaxOperations != 64 || s.MaxKeys != 256 || s.MaxRequestBytes != 1<<20 || s.Node != "node-1" {
		t.Errorf("%+v", s)
	}
}

func TestPrecedence(t *testing.T) {
	path := write(t, "data: from-file\nmax-keys: 1\nmax-operations: 1\nretention: 1m\nhttp: 127.0.0.1:1\nmax-request-bytes: 2MiB\n")
	t.Setenv("ASSENT_MAX_KEYS", "2")
	t.Setenv("ASSENT_MAX_OPERATIONS", "2")
	s, err := parse(t, "--config", path, "--max-keys", "3")
	if err != nil {
		t.Fatal(err)
	}
	if s.MaxKeys != 3 {
		t.Errorf("flag over environment: %d", s.MaxKeys)
	}
	if s.MaxOperations != 2 {
		t.Errorf("environment over file: %d", s.MaxOperations)
	}
	if s.Data != "from-file" || s.Retention != time.Minute || s.HTTP != "127.0.0.1:1" || s.MaxRequestBytes != 2<<20 {
		t.Errorf("file over default: %+v", s)
	}
	if s.TransactionsRetained != 100_000 {
		t.Errorf("default: %d", s.TransactionsRetained)
	}
}

func TestFileNamedByTheEnvironment(t *testing.T) {
	t.Setenv("ASSENT_CONFIG", write(t, "data: d\nmax-keys: 7\nallow-network: [10.0.0.0/8, 192.168.0.0/16]\n"))
	s, err := parse(t)
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.168.0.0/16")}
	if s.MaxKeys != 7 || len(s.AllowNetwork) != 2 || s.AllowNetwork[0] != want[0] || s.AllowNetwork[1] != want[1] {
		t.Errorf("%+v", s)
	}
}

func TestAgents(t *testing.T) {
	t.Setenv("ASSENT_AGENT_DSN", "host=from-the-environment") // is for the command alone
	dsn := filepath.Join(t.TempDir(), "dsn")
	if err := os.WriteFile(dsn, []byte("postgres://a:b@h/d\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := parse(t, "--data", "d", "--config", write(t, "agents:\n  - postgres:\n      service: bank\n      dsn-file: "+dsn+
		"\n      max-connections: 7\n      max-open-branches: 2\n      open-idle: 1m\n      isolation: read committed\n      require-keys: true\n  - postgres: {service: other, dsn: host=x, coordinator: 'http://c:1'}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Agents) != 2 {
		t.Fatalf("%+v", s.Agents)
	}
	one, two := &s.Agents[0], &s.Agents[1]
	got, err := one.ReadDSN()
	if err != nil || got != "postgres://a:b@h/d" || one.Service != "bank" || one.MaxConnections != 7 || one.MaxOpenBranches != 2 || one.OpenIdle != time.Minute || one.Isolation != "read committed" || !one.RequireKeys || one.Coordinator != "" {
		t.Errorf("%+v, %v", one, err)
	}
	if got, err := two.ReadDSN(); err != nil || got != "host=x" || two.Coordinator != "http://c:1" || two.LockTimeout != time.Second || two.MaxOpenBranches != 0 || two.OpenIdle != 30*time.Second {
		t.Errorf("%+v, %v", two, err)
	}
}

func TestEmptyFiles(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "null\n"} {
		if _, err := parse(t, "--data", "d", "--config", write(t, text)); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestEveryFieldHasItsVariableAndHelp(t *testing.T) {
	k, err := kong.New(&app{}, Environment())
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range k.Model.Children[0].Flags {
		want := "ASSENT_" + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
		if len(flag.Envs) != 1 || flag.Envs[0] != want || flag.Help == "" {
			t.Errorf("--%s: environment %v, help %q", flag.Name, flag.Envs, flag.Help)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		file string // content; empty: none
		env  [2]string
		args []string
		want []string // in the message
	}{
		{name: "no data", want: []string{"--data"}},
		{name: "bad flag", args: []string{"--data", "d", "--retention", "soon"}, want: []string{"--retention", "soon"}},
		{name: "unknown flag", args: []string{"--data", "d", "--retentoin", "1m"}, want: []string{"--retentoin", "--retention"}},
		{name: "bad environment", env: [2]string{"ASSENT_MAX_KEYS", "many"}, args: []string{"--data", "d"}, want: []string{"ASSENT_MAX_KEYS", "many"}},
		{name: "bad size", args: []string{"--data", "d", "--max-request-bytes", "1 elephant"}, want: []string{"--max-request-bytes", "512KiB"}},
		{name: "size too large", args: []string{"--data", "d", "--max-request-bytes", "9MiB"}, want: []string{"--max-request-bytes is 9.0MiB", "8.0MiB"}},
		{name: "number out of range", args: []string{"--data", "d", "--max-keys", "0"}, want: []string{"--max-keys is 0: use 1 to 4096"}},
		{name: "duration out of range", args: []string{"--data", "d", "--retention", "1ms"}, want: []string{"--retention is 1ms"}},
		{name: "bad address", args: []string{"--data", "d", "--http", "7070"}, want: []string{`--http is "7070"`, "host:port"}},
		{name: "bad optional address", args: []string{"--data", "d", "--pprof", "x"}, want: []string{"--pprof"}},
		{name: "bad choice", args: []string{"--data", "d", "--log-format", "xml"}, want: []string{"--log-format", "json"}},
		{name: "bad network", args: []string{"--data", "d", "--allow-network", "10.0.0.1"}, want: []string{"--allow-network"}},
		{name: "unknown key", file: "data: d\nmax_keys: 3\n", want: []string{":2:", `"max_keys" is not a setting`, `did you mean "max-keys"`}},
		{name: "misspelt key", file: "dta: d\n", want: []string{`did you mean "data"`}},
		{name: "config in the file", file: "config: other.yaml\ndata: d\n", want: []string{`"config" is not a setting`}},
		{name: "key twice", file: "data: d\nmax-keys: 1\nmax-keys: 2\n", want: []string{`line 3: "max-keys" stands in line 2 already`}},
		{name: "bad value in the file", file: "data: d\nretention: soon\n", want: []string{":2:", "--retention", "soon"}},
		{name: "bad choice in the file", file: "data: d\nlog-level: loud\n", want: []string{"--log-level", "loud"}},
		{name: "no value", file: "data:\n", want: []string{`"data" has no value`}},
		{name: "nested", file: "data: d\nhttp:\n  address: x\n", want: []string{`"http" must be one plain value`}},
		{name: "list of lists", file: "data: d\nallow-network: [[10.0.0.0/8]]\n", want: []string{"plain values"}},
		{name: "a list", file: "- data\n", want: []string{"one setting a line"}},
		{name: "two documents", file: "data: d\n---\ndata: e\n", want: []string{"more than one document"}},
		{name: "not YAML", file: "data: [\n", want: []string{"assent.yaml"}},
		{name: "too large", file: "# " + strings.Repeat("x", maxFileBytes), want: []string{"larger than"}},
		{name: "agents no list", file: "data: d\nagents: postgres\n", want: []string{"line 2", "is a list"}},
		{name: "agent of no kind", file: "data: d\nagents:\n  - service: bank\n", want: []string{"line 3", "- postgres:"}},
		{name: "agent's unknown key", file: "data: d\nagents:\n  - postgres:\n      service: bank\n      dns: x\n", want: []string{"line 5", `"dns"`}},
		{name: "agent without a database", file: "data: d\nagents:\n  - postgres:\n      service: bank\n", want: []string{"no database is named"}},
		{name: "agent without a name", file: "data: d\nagents:\n  - postgres:\n      dsn: host=x\n", want: []string{"--service"}},
		{name: "agent's bad value", file: "data: d\nagents:\n  - postgres:\n      service: bank\n      dsn: host=x\n      isolation: chaos\n", want: []string{"line 3", "--isolation"}},
		{name: "more open branches than connections allow", file: "data: d\nagents:\n  - postgres: {service: bank, dsn: host=x, max-connections: 7, max-open-branches: 4}\n", want: []string{"line 3", "--max-open-branches is 4: use 1 to 3"}},
		{name: "open branches that end at once", file: "data: d\nagents:\n  - postgres: {service: bank, dsn: host=x, open-idle: 1ms}\n", want: []string{"line 3", "--open-idle is 1ms: use 100ms"}},
		{name: "an agent without connections", file: "data: d\nagents:\n  - postgres: {service: bank, dsn: host=x, max-connections: 0}\n", want: []string{"line 3", "--max-connections is 0"}},
		{name: "no such file", args: []string{"--data", "d", "--config", "/nowhere/assent.yaml"}, want: []string{"--config", "/nowhere/assent.yaml"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.env[0] != "" {
				t.Setenv(c.env[0], c.env[1])
			}
			if c.file != "" {
				c.args = append(c.args, "--config", write(t, c.file))
			}
			_, err := parse(t, c.args...)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is not in: %v", w, err)
				}
			}
		})
	}
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte("data: d\nmax-keys: 3\nallow-network: [a, b]\n"))
	f.Add([]byte("a: &x 1\nb: *x\n"))
	f.Add([]byte("agents:\n  - postgres:\n      service: bank\n      dsn: host=x\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		values, section, err := settings(raw)
		if err == nil && len(values) > len(raw) {
			t.Fatalf("%d settings in %d bytes", len(values), len(raw))
		}
		if section != nil {
			_, _ = agents(section)
		}
	})
}
