//go:build mutants

package mutant

import "os"

var active = os.Getenv("ASSENT_MUTANT")

// On reports whether the named bug is planted.
func On(name string) bool { return name == active }

// MapOrder returns the list; with the named bug, in a random order.
func MapOrder[T comparable](name string, list []T) []T {
	if !On(name) {
		return list
	}
	set := make(map[T]struct{}, len(list))
	for _, v := range list {
		set[v] = struct{}{}
	}
	list = list[:0]
	for v := range set {
		list = append(list, v)
	}
	return list
}
