// Package server translates between the wire (gRPC, REST/JSON) and the node: it
// decodes strictly, maps errors to statuses, and serves health and metrics. It
// holds no transaction logic.
package server
