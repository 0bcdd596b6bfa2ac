// Package assentv1 is Assent's wire contract: messages and services generated from
// assent.proto, and the stable reasons of errors and aborts.
package assentv1
