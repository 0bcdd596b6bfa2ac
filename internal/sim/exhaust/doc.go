// Package exhaust searches every order of events of small configurations of the
// real pure core: shard.Shard over txn.State, one or two transactions, two
// participants, two nodes.
//
//	choices: client sends | proposal commits | message delivered, doubled, answered,
//	         given up | timer, deadline | crash, deposition, proposals lost or late
//	state -- choice --> state'   checked, fingerprinted, expanded once
//
// The search is breadth first, so a violation comes with a shortest sequence of
// choices that leads to it. The core cannot be cloned: a state is reached again by
// replaying its choices from the start, and every input, time included, is a value.
//
// Two states are one if they print alike: shard.String and the model's own state,
// times left out. So timers due at different times are fired in the order of one
// representative; what is explored in every order is a timer against all else.
//
// The oracle keeps its own books from the lines of txn.Describe, the calls, the
// replies and the participants' rows, and does not ask the core what is right.
package exhaust
