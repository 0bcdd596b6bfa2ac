// Package lock is the lock table of one shard: who holds a key, who waits for it
// and who is next. It is replicated state: no clock, no goroutine, no map order;
// equal calls give equal tables, and a snapshot of them equal bytes.
//
//	needs --Fold--> set --Claim---> node 1 --> node 2 --> ... --> granted
//	                    --Extend--> |   ^
//	                    conflicting |   | the head of the queue is served
//	                                v   | (direct hand-off)
//	                              queue of the node
//	                                    ^
//	       Release (one service), Drop -+-> woken: the owners now granted
//
// A key "service/a/b" is locked in S, U or X, and its ancestors "service/a" and
// "service" in the intention mode that announces it (modes: see Mode). A claim
// takes the nodes of its folded set one at a time, in byte order of their paths,
// and has at most one outstanding request.
//
// A one-shot transaction claims once. An interactive one extends its claim step by
// step. Of a step only what the claim does not hold yet is asked for, here or, as
// far as that grants it, further up; a node that it holds in a weaker mode is
// converted to the mode that joins both (IS to IX, S to X, IX and S to SIX). The
// weaker mode is held meanwhile. Mode U is for reading first and writing later: two
// that hold S and want X wait for each other, two that want U do not.
//
// The table does not know whose home is where: an owner is an id. It searches for
// cycles and says who is the youngest; who is to give way, and when, the caller decides.
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
// Conversions stand ahead of all others, the eldest first, and nobody passes them:
// whoever else waits for the node waits for its holders, and they are holders. A
// conversion passes a waiter only where its claim already stood before it.
//
// # How a deadlock is found
//
// The wait-for graph has an edge from each waiting claim to every other claim that
// holds its node, or waits there ahead of it, in a conflicting mode. Those ahead
// count: a cycle can close through one that only queues.
//
// Among claims that never grew there is no cycle. Order the outstanding requests by
// (node, place in its queue). Whoever waits at node n waits for a holder of n or for
// a waiter nearer to the head of n's queue. A holder of n that waits itself waits at
// a node after n, since it takes its nodes in ascending order and none of them again;
// a waiter ahead has the same node and an earlier place. So each edge leads to a later
// node or to an earlier place, and no way comes back. While nobody has grown, nothing
// is searched.
//
// Otherwise a cycle appears at one moment only: when one of its members begins to
// wait. Every other change adds edges towards a claim that has just been granted
// something, and it closes no cycle unless that claim begins to wait again:
//
//   - A hand-off makes a waiter a holder. Those behind it that conflict waited for it
//     already. Those it leaves behind ahead of it conflict in neither direction.
//   - A conversion that is granted strengthens what its claim holds: new edges, all
//     towards that claim, which waits for nothing or begins to wait at its next node.
//   - An elder or a conversion that passes waiters gets edges from them, and it begins
//     to wait.
//   - Releasing, dropping, giving up only take edges away.
//
// So the claims that began to wait since the last question are searched from, and no
// others (NextCycle). The search goes breadth first, so that it finds a shortest cycle;
// it starts only if somebody may wait for the claim at all, and looks at each slot at
// most once for each mode. Of two that convert S to X at one node the second closes a
// cycle, and the younger is found to be the victim at once.
//
// # Why restarting ends
//
// The victim of a cycle is its youngest member. If it claimed once, Restart gives back
// all that it has, hands that on, and claims the same set again with the same age. What
// it gave back went to those that waited. It then passes only waiters younger than itself,
// and is granted nothing that an elder ahead of it waits for. So at that moment only
// younger claims wait for it, and it is the youngest of no cycle.
//
// Nor do restarts go on for ever within one command. Take the eldest of the claims that
// were restarted without end, at a moment when all its elders have come to rest. Each
// elder in its way waits where it did when the claim was restarted: it did not wait for
// the claim then, and it does not later, since what the claim is granted from the queue
// it is granted behind no elder that conflicts. Then no cycle has it as its youngest.
//
// # Why there are no range locks
//
// A key such as "accounts/[100,200)" is refused (ErrKeyRange). What lies between 100
// and 200 depends on an order of keys (numbers, dates, text in some collation) that
// every service defines for itself and the table would have to share, for ever, since
// it is replicated state. Hierarchical keys do the same work: make the range a segment,
// "accounts/1xx/150", and lock "accounts/1xx". That also protects against phantoms, and
// costs one lookup, where overlapping ranges cost a search. A lock on "accounts" covers
// whatever no segment does.
//
// # Cost
//
// An uncontended claim costs one map lookup a node. Queues are intrusive lists
// with counts by mode, so that joining at the tail, leaving, and handing on do
// not depend on the length of the queue. A claim that grows keeps its nodes in a map
// besides, so that a step costs as much as it adds.
package lock
