// Package check judges histories: were the transactions that clients saw serializable,
// and in an order that agrees with real time?
//
// Transactions append unique values to lists and read lists. A read tells the whole
// order of the appends before it, so the order of versions is known and every
// dependency between two transactions can be told (Kingsbury and Alvaro, Elle, VLDB
// 2020):
//
//	ww  A appended to a key, B appended next       wr  B read what A appended last
//	rw  A read a key before B's append             rt  A had its answer before B began
//	process  A and B are of one process, in this order
//
// A cycle of dependencies convicts; its kind says what was broken:
//
//	G0            ww alone: dirty write          G1c  ww and wr: cyclic information flow
//	G-single      one rw: read skew              G-nonadjacent  several, apart: not even snapshot isolation
//	G2-item       rw next to rw: write skew      …-process, …-realtime: the order of a process, or of time, closes it
//
// Other anomalies need no cycle: internal (a transaction contradicts itself), G1a
// (aborted read), G1b (intermediate read), dirty-update, duplicate, incompatible-order,
// garbage, lost-append, lost-update.
//
// A transaction whose outcome is unknown counts as committed if somebody has read it,
// may take effect at any time after it began, and says nothing otherwise.
package check
