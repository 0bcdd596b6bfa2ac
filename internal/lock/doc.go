// Package lock is the lock table of one shard: who holds a key, who waits for it
// and who is next. It is replicated state: no clock, no goroutine, no map order;
// equal calls give equal tables, and a snapshot of them equal bytes.
//
//	needs --Fold--> set --Claim--> node 1 --> node 2 --> ... --> granted
//	                                 |   ^
//	                     conflicting |   | the head of the queue is served
//	                                 v   | (direct hand-off)
//	                               queue of the node
//	                                     ^
//	        Release (one service), Drop -+-> woken: the owners now granted
//
// A key "service/a/b" is locked in S or X, and its ancestors "service/a" and
// "service" in the intention mode that announces it (modes: see Mode). A claim
// takes the nodes of its folded set one at a time, in byte order of their paths,
// and has at most one outstanding request.
//
// # Who is served
//
// A request is granted if it is compatible with all holders and with all who
// wait ahead of it. A queue serves the eldest first, age being the log time of
// the claim, then the id: an arriving elder passes younger waiters. Passing a
// waiter it is compatible with costs that waiter nothing; by others each waiter
// is passed at most 8 times, and then nobody passes it. So everybody who waits
// is served once those ahead have gone, and their number is bounded.
//
// # Why there is no deadlock
//
// Order the outstanding requests by (node, place in its queue). Whoever waits at
// node n waits for a holder of n or for a waiter nearer to the head of n's queue.
// A holder of n that waits itself waits at a node after n, because it takes its
// nodes in ascending order and never takes one again; a waiter ahead has the same
// node and an earlier place. Each step along the wait-for graph therefore leads
// to a later node or to an earlier place: it cannot return to where it began, and
// it ends at a claim that waits for nothing. This holds among canonical claims;
// conversions and claims that grow step by step will need a search for cycles.
//
// # Cost
//
// An uncontended claim costs one map lookup a node. Queues are intrusive lists
// with counts by mode, so that joining at the tail, leaving, and handing on do
// not depend on the length of the queue.
package lock
