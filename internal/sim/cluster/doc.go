// Package cluster simulates whole clusters from one seed: the real core of every shard
// on every node that has a replica of it, over a modelled Raft, on one goroutine, in
// virtual time.
//
//	clients (package sessions) --> any node --> the leader it believes in
//	                                              |        ^
//	                          shard.Shard  <-- driver --> raft <== votes, appends, snapshots ==> other nodes
//	                              |   ^
//	                              v   |
//	                 participants, other shards' leaders
//
// The Raft is message by message (raft.go): terms, votes, pre-votes, a log of its own and
// unsynced tail for each replica, snapshots, leadership transfer, members added and
// removed one at a time. What Raft promises is asserted of the model at every step - one
// leader a term, leaders have all that is committed, what is committed never changes - so
// that whatever else fails is the core's.
//
// Clients, participants and the checkers of what clients were told are those of package
// sessions. The books of this package (audit.go) judge every entry, call, message and
// answer when it is made.
package cluster
