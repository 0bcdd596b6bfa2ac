// Package server speaks the public API: REST/JSON and gRPC in front of one
// Coordinator. It translates, checks and maps errors; it decides nothing.
//
//	REST  decode strictly -> *Body --+                          +-> JSON form
//	                                 +-> validate -> Coordinator +
//	gRPC  message         -> *Body --+   (one place)            +-> message
//
// Both protocols meet in the Body types, so that a request means the same and is
// refused for the same reasons whichever way it came. An error of the Coordinator
// becomes a status by the one table in errors.go.
package server
