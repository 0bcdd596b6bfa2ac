package shard

import (
	"bytes"
	"maps"
	"slices"

	"github.com/assent-tx/assent/internal/txnid"
)

// The core may depend on neither chance nor the order of maps.

// spread is a fixed pseudo-random number of a branch's attempt (FNV-1a).
func spread(id txnid.ID, branch, attempt uint32) uint64 {
	h := uint64(14695981039346656037)
	mix := func(b byte) { h = (h ^ uint64(b)) * 1099511628211 }
	for _, b := range id {
		mix(b)
	}
	mix(byte(branch))
	mix(byte(attempt))
	mix(byte(attempt >> 8))
	return h
}

func sortedIDs[V any](m map[txnid.ID]V) []txnid.ID {
	return slices.SortedFunc(maps.Keys(m), func(a, b txnid.ID) int { return bytes.Compare(a[:], b[:]) })
}

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
