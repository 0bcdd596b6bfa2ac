package server

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	assentv1 "github.com/assent-tx/assent/api/assent/v1"
	"github.com/assent-tx/assent/internal/backup"
)

func TestMovesArePassedOn(t *testing.T) {
	want := []string{"drain n2 true", "drain n2@0f3a0002 false", "remove n3", "transfer 1 n2", "transfer 7 "}
	f := &fake{}
	s := newServer(t, f, Limits{})
	for _, r := range [][3]string{
		{"POST", "/v1/cluster/nodes/n2:drain", ""},
		{"POST", "/v1/cluster/nodes/n2@0f3a0002:undrain", ""},
		{"DELETE", "/v1/cluster/nodes/n3", ""},
		{"POST", "/v1/cluster/shards/1:transfer", `{"to":"n2"}`},
		{"POST", "/v1/cluster/shards/7:transfer", ""},
	} {
		if w := ask(t, s, r[0], r[1], r[2]); w.Code != 200 {
			t.Fatalf("%s: got %d: %s", r[1], w.Code, w.Body)
		}
	}
	if !slices.Equal(f.moves, want) {
		t.Errorf("REST: got %q", f.moves)
	}

	f.moves = nil
	c := assentv1.NewClusterServiceClient(dial(t, s))
	ctx := t.Context()
	for i, call := range []func() (*assentv1.Cluster, error){
		func() (*assentv1.Cluster, error) { return c.DrainNode(ctx, &assentv1.DrainNodeRequest{Name: "n2"}) },
		func() (*assentv1.Cluster, error) {
			return c.UndrainNode(ctx, &assentv1.UndrainNodeRequest{Name: "n2@0f3a0002"})
		},
		func() (*assentv1.Cluster, error) { return c.RemoveNode(ctx, &assentv1.RemoveNodeRequest{Name: "n3"}) },
		func() (*assentv1.Cluster, error) {
			return c.TransferShard(ctx, &assentv1.TransferShardRequest{Shard: 1, To: "n2"})
		},
		func() (*assentv1.Cluster, error) {
			return c.TransferShard(ctx, &assentv1.TransferShardRequest{Shard: 7})
		},
		func() (*assentv1.Cluster, error) { return c.GetCluster(ctx, &assentv1.GetClusterRequest{}) },
	} {
		got, err := call()
		if err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		if got.GetShards() != 2 || got.GetIncarnation() != 2 || got.GetNodes()[2].GetState() != assentv1.NodeState_NODE_STATE_LEAVING ||
			got.GetPlacement()[0].GetTerm() != 1<<32+5 || !got.GetNodes()[1].GetDraining() {
			t.Errorf("call %d: %v", i, got)
		}
	}
	if !slices.Equal(f.moves, want) {
		t.Errorf("gRPC: got %q", f.moves)
	}
	for what, err := range map[string]error{
		"no name": func() error { _, err := c.DrainNode(ctx, &assentv1.DrainNodeRequest{}); return err }(),
		"no node": func() error { _, err := c.RemoveNode(ctx, &assentv1.RemoveNodeRequest{}); return err }(),
	} {
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A node that cannot serve a request says who could.
func TestLeaderIsTold(t *testing.T) {
	s := newServer(t, &fake{noLeader: true}, Limits{})
	w := ask(t, s, "POST", "/v1/cluster/nodes/n2:drain", "")
	told := readError(t, w).Details[0]
	if w.Code != 503 || told.Reason != "NOT_READY" || told.Metadata["leader"] != "n2" || told.Metadata["leader_http"] != "http://127.0.0.1:7270" {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	if w.Header().Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

func TestBackup(t *testing.T) {
	f := &fake{}
	s := newServer(t, f, Limits{})
	s.version = "v9"
	server := httptest.NewServer(s.Handler())
	defer server.Close()
	get := func(method string) (head http.Response, body []byte, err error) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL+"/v1/backup", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := server.Client().Do(req)
		if err != nil {
			return head, nil, err
		}
		defer func() { _ = resp.Body.Close() }()
		body, err = io.ReadAll(resp.Body)
		return http.Response{StatusCode: resp.StatusCode, Header: resp.Header, ContentLength: resp.ContentLength}, body, err
	}
	resp, body, err := get(http.MethodGet)
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/octet-stream" || resp.ContentLength != int64(len(body)) {
		t.Fatalf("got %+v, %v", resp, err)
	}
	r, err := backup.NewReader(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if h := r.Header(); h.Cluster != theCluster().ID || h.Incarnation != 2 || h.Shards != 2 || h.Version != "v9" || h.TakenAt.IsZero() {
		t.Errorf("header %+v", h)
	}
	for _, want := range []int{5, 3 << 20} {
		if part, err := r.Next(); err != nil || len(part) != want {
			t.Fatalf("a part of %d bytes: %v", len(part), err)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if resp, _, err := get(http.MethodHead); err != nil || resp.StatusCode != 200 {
		t.Error("HEAD: ", resp, err)
	}

	// A leader that goes away in the middle cuts the answer off.
	f.brokenPart = true
	if _, body, err := get(http.MethodGet); err == nil {
		t.Errorf("%d bytes were taken for all", len(body))
	}

	f.noLeader = true
	if w := ask(t, s, "GET", "/v1/backup", ""); w.Code != 503 || readError(t, w).Details[0].Reason != "NOT_READY" {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}
