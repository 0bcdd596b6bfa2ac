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
// The table does not know whose home is where, nor who is prepared: an owner is an id.
// It says who keeps an elder waiting, and who is the youngest of a cycle; whether one can
// still give way, and how it does, the caller says.
//
// # Who is served
//
// A request is granted if it is compatible with all holders and with all who
// wait ahead of it. A queue serves the eldest first, age being the log time of
// the claim, then the id: an arriving elder passes younger waiters, however many.
// Nobody starves by it: whoever comes later is younger, and a retry keeps its age, so
// that those who can pass a waiter are the elders that it has, and they become fewer.
//
// Conversions stand ahead of all others, the eldest first, and nobody passes them:
// whoever else waits for the node waits for its holders, and they are holders. A
// conversion passes a waiter only where its claim already stood before it.
//
// # Who gives way
//
// An elder makes a younger claim that it waits for give way, if that still can; a
// younger waits for an elder (wound-wait: Rosenkrantz, Stearns, Lewis, 1978). In every
// cycle of waiting, over however many tables it runs, some elder waits for a younger.
// That one cannot give way: then it is prepared, and waits for nothing, or it is on its
// way out already. So no cycle lasts, and tables need not ask each other.
//
// Logs that were written before were decided otherwise: there nobody gives way but the
// victim of a cycle in this table, and incompatible elders pass a waiter at most 8
// times. That is what a table does until WoundWait is called.
//
// An edge from an elder to a younger claim appears at two moments only:
//
//   - A claim begins to wait. Holders may be younger, and conversions ahead of it; other
//     waiters ahead are its elders, since it has passed the younger ones. (In a queue
//     that was formed before WoundWait was called they need not be.)
//   - A claim converts its lock of a node, or waits to: elders that wait there may be in
//     conflict with the new mode and were not with the old.
//
// Every other change adds edges towards a claim that is granted something. If it was
// granted on arrival, those that it is in conflict with are younger, for it waits behind
// its elders. If it comes from the queue, those behind it that are in conflict waited for
// it already, and those that it leaves ahead are in none. So these two are looked at when
// NextWound is asked, and nothing else; the model test looks at all.
//
// # Why giving way ends
//
// NextWound looks at conversions first, and then at the eldest that has begun to wait.
// Call a claim at rest when it waits for no younger that may give way. When e is looked
// at, all its elders are at rest. Whoever gives way then is younger than e, and hands
// what it had to claims that waited for it: none of them is e's elder, since that one
// would not be at rest. So e's elders stay where they are, and e itself gives way no more
// within this command. Now let r give way to e at a node n. If r claimed once, it asks for
// the same nodes in the same order, and at n, or before, it waits: e holds n by then, or
// stands ahead. It gets nothing behind n, and e asks for nothing before n, so e does not
// meet r again. If r has grown, it aborts, and says no from then on. So of each pair of
// claims the younger gives way to the elder at most once in a command, and the number of
// wounds is less than the square of the number of claims. With the youngest first it
// would not be so. (A cycle is broken out of turn; why that ends, see below.)
//
// # How a deadlock is found
//
// A cycle within the table is told before any wound: only its youngest member gives way,
// and learns why. The wait-for graph has an edge from each waiting claim to every other
// claim that holds its node, or waits there ahead of it, in a conflicting mode. Those
// ahead count: a cycle can close through one that only queues.
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
// # Why breaking cycles ends
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
// not depend on the length of the queue; an elder walks past those whom it passes. A claim
// that grows keeps its nodes in a map besides, so that a step costs as much as it adds.
// Whoever begins to wait is compared once with each holder, if one of them is in
// conflict, and with the conversions ahead.
package lock
