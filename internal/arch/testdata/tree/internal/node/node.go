// Package node is an edge.
package node

import (
	. "strings" // want "dot import"
	"time"

	"github.com/hashicorp/raft" // want "internal/node may not import github.com/hashicorp/raft"

	"github.com/assent-tx/assent"                 // want "internal/node may not import \."
	"github.com/assent-tx/assent/internal/server" // want "internal/node may not import internal/server"
)

type Node struct {
	_ raft.Raft
	_ server.Server
	_ assent.Client
}

var _, _ = time.Now(), ToUpper("")
