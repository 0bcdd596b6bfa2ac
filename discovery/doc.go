// Package discovery finds the nodes of a coordinator and sends requests to the one that
// suits them. The Go client, the participant SDK, the agents and the command line use it,
// so that all of them find a coordinator the same way; it is public, and needs the standard
// library only, because the first two are what users compile.
//
//	configured: list, names, file, environment ──► seeds ──┐
//	                                                       ├──► pick ──► one try ──► answer
//	GET /v1/cluster of any node ──► members, leaders ──────┘      ▲         │
//	                                    ▲                         │   no connection, silence, 503
//	                                    └──── asked again ◄───────┴─────────┘
//
// A request goes to the leader of its transaction's home shard if that is known, else to the
// node that answered last, else to any other: every node takes every request. Who does not
// answer is passed over until a probe finds it well again, so that requests do not pay for it
// twice. Nodes that were learned come before the configured ones, which may all be gone.
//
// There is no goroutine while nothing is asked: what is known is asked for again, in the
// background, when a request finds it old or wrong.
package discovery
