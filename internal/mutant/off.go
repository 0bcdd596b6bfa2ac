//go:build !mutants

// Package mutant plants known bugs for `make mutants`, which proves that the
// tests can fail. In every ordinary build On is the constant false and the bugs
// are compiled out; with the build tag "mutants" the environment variable
// ASSENT_MUTANT names the one bug that is active.
package mutant

// On reports whether the named bug is planted.
func On(string) bool { return false }

// MapOrder returns the list; with the named bug, in a random order.
func MapOrder[T comparable](_ string, list []T) []T { return list }
