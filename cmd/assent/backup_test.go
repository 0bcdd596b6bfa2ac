package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/backup"
	"github.com/assent-tx/assent/internal/replog"
	"github.com/assent-tx/assent/internal/txn"
)

// aBackup is one of a cluster of two shards that had leaders and nothing else.
func aBackup(t *testing.T) []byte {
	t.Helper()
	var file bytes.Buffer
	w, err := backup.NewWriter(&file, backup.Header{
		Cluster: "00112233445566778899aabbccddeeff", Incarnation: 3, Shards: 2, Version: "v1", TakenAt: time.Date(2026, 11, 27, 1, 2, 3, 0, time.UTC),
	})
	if err != nil {
		t.Fatal(err)
	}
	boot := txn.Boot{Cluster: [16]byte{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}, Incarnation: 3, Shards: 2}
	for boot.Shard = range 2 {
		st := txn.New(boot.Shard, 2)
		entry := make([]byte, txn.HeaderBytes)
		txn.PutHeader(entry, 1, 1_750_000_000_000)
		var effects []txn.Effect
		if err := st.Apply(7, 1, txn.AppendLead(txn.AppendBoot(entry, boot), txn.Lead{Node: "n1"}), &effects); err != nil {
			t.Fatal(err)
		}
		var part []byte
		_ = st.Capture().Write(func(b []byte) error {
			part = append(part, b...)
			return nil
		})
		if err := w.Part(int64(len(part)), func(put func([]byte) error) error { return put(part) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func serveBytes(t *testing.T, status int, body []byte) (url string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
			_, _ = w.Write([]byte("{}"))
			return
		}
		if r.Method != http.MethodGet || r.URL.Path != "/v1/backup" {
			t.Errorf("asked %s %s", r.Method, r.URL)
		}
		w.WriteHeader(status)
		_, _ = w.Write(body)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestBackupAndRestore(t *testing.T) {
	dir := t.TempDir()
	whole := aBackup(t)
	file := filepath.Join(dir, "file")
	files := func() (names []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	for name, c := range map[string]struct {
		status int
		body   []byte
		code   int
		want   string
	}{
		"cut off":  {200, whole[:len(whole)-5], exitUnknown, "cut short"},
		"changed":  {200, bytes.Replace(whole, []byte(`"v1"`), []byte(`"v2"`), 1), exitUnknown, "checksum"},
		"refused":  {429, []byte(refusedBy("OVERLOADED", "another backup is being made")), exitUnknown, "another backup"},
		"an older": {404, []byte(refusedBy("NOT_FOUND", "")), exitRefused, "NOT_FOUND"},
	} {
		code, out, errText := assent(t, "", "backup", "--url", serveBytes(t, c.status, c.body), "--out", file, "--retry-for", "0s")
		if code != c.code || !strings.Contains(errText, c.want) {
			t.Errorf("%s: exit code %d\n%s%s", name, code, out, errText)
		}
		if left := files(); len(left) > 0 {
			t.Errorf("%s: left %q", name, left)
		}
	}
	url := serveBytes(t, 200, whole)
	if code, out, errText := assent(t, "", "backup", "--url", url, "--out", file); code != 0 || !strings.Contains(out, "INCARNATION  3") {
		t.Fatalf("exit code %d\n%s%s", code, out, errText)
	}
	if content, err := os.ReadFile(file); err != nil || !bytes.Equal(content, whole) || len(files()) != 1 {
		t.Fatal(files(), err)
	}
	if code, _, errText := assent(t, "", "backup", "--url", url, "--out", file); code != exitUsage || !strings.Contains(errText, "not overwritten") {
		t.Errorf("over another file: exit code %d\n%s", code, errText)
	}
	if code, _, errText := assent(t, "", "backup", "--url", "http://127.0.0.1:1", "--retry-for", "0s", "--out", file+"2"); code != exitUnknown || !strings.Contains(errText, "no answer") {
		t.Errorf("nobody there: exit code %d\n%s", code, errText)
	}

	if code, out, _ := assent(t, "", "restore", "--check", "--from", file, "-o", "json"); code != 0 || !json.Valid([]byte(out)) || !strings.Contains(out, `"incarnation":3`) {
		t.Errorf("check: exit code %d\n%s", code, out)
	}
	data := filepath.Join(dir, "data")
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"--from " + file, exitUsage, "--data and --node"},
		{"--from " + file + "9 --data " + data + " --node n1", exitFailed, "no such file"},
		{"--from " + file + " --data " + data + " --node n1 --incarnation 3", exitUsage, "use 4 to"},
		{"--from " + file + " --data " + data + " --node n1 --incarnation 2000000", exitUsage, "use 4 to"},
		{"--from " + file + " --data " + data + " --node n/1", exitFailed, "node id"},
		{"--from " + file + " --data " + dir + " --node n1", exitFailed, "empty or absent"},
	} {
		code, out, errText := assent(t, "", append([]string{"restore"}, strings.Fields(c.args)...)...)
		if code != c.code || !strings.Contains(errText, c.want) {
			t.Errorf("%s: exit code %d\n%s%s", c.args, code, out, errText)
		}
	}
	if _, err := os.Stat(data); !os.IsNotExist(err) {
		t.Error("a refused restore made a directory")
	}
	code, out, errText := assent(t, "", "restore", "--from", file, "--data", data, "--node", "n1", "--incarnation", "9")
	if code != 0 || !strings.Contains(out, "as incarnation 9") {
		t.Fatalf("exit code %d\n%s%s", code, out, errText)
	}
	id, err := replog.Claim(data, "n1")
	if err != nil || id.Cluster != "00112233445566778899aabbccddeeff" || id.Incarnation != 9 || id.Shards != 2 || !strings.HasPrefix(id.Member, "n1@") {
		t.Errorf("%+v, %v", id, err)
	}
}
