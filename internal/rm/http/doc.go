// Package rmhttp speaks the HTTP/JSON callback protocol to participants.
//
//	Call ──► queue of the service ──► slot ──► one try ──► decode ──► done(Result)
//	          finish before prepare    at most     POST, timeout        exactly once
//	          both bounded             MaxInFlight from the send
//
// A slow, hanging or hostile participant costs its own service's slots and
// nothing else: every service has its own queue and in-flight limit, no call
// holds a goroutine while it waits, and of each service's slots some are kept
// for commit, rollback and status, so that a flood of prepares cannot starve
// the calls that end transactions.
//
// What an answer means is decided in decode.go and nowhere else. Whatever is
// not a definite answer of the contract is rm.Indefinite: it is asked again.
package rmhttp
