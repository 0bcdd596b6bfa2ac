// Package sim runs the real pure core in a world made from one seed: virtual time,
// a modelled log, a modelled network, modelled participants and clients, all on
// one goroutine. The same seed gives the same run, step by step.
//
//	clients --> shard.Shard --> log (commits late, loses, flips leaders, crashes)
//	   ^            |  ^
//	   |            v  |
//	 auditor <-- calls, answers (lost, doubled, late by minutes) <--> participants
//
// A run has two phases. In the first everything that the seed's options allow goes
// wrong, and the auditor asserts safety at every event. Then the world heals, and
// every transaction must end, every lock be free, every request be answered.
//
// The auditor is independent of the core: it decodes the log by itself and keeps
// its own books of who was told what and what participants did.
package sim
