package fixture

import (
	"maps"
	"slices"
	"sort"
	"strings"
)

type table map[string]int

type holder struct {
	m    map[string]int
	keys []string
}

func bad(m map[string]int, t table, h *holder, list []string) (out []string) {
	for k := range m { // want "range over a map"
		out = append(out, k)
	}
	for _, v := range t { // want "range over a map"
		_ = v
	}
	for k, v := range h.m { // want "range over a map"
		if v > 0 {
			out = append(out, k)
		} else {
			out = append(out, "")
		}
	}
	slices.Sort(out)
	for k := range m { // want "range over a map"
		out = append(out, k)
	}
	slices.Sort(list)
	for k := range m { // want "range over a map"
		out = append(list, k)
	}
	slices.Sort(out)
	for k := range maps.Keys(m) { // want "maps.Keys in map order"
		_ = k
	}
	for k := range maps.All(t) { // want "maps.All in map order"
		_ = k
	}
	out = slices.Collect(maps.Keys(m)) // want "maps.Keys in map order"
	slices.Sort(out)
	maps.DeleteFunc(m, func(string, int) bool { return true }) // want "maps.DeleteFunc in map order"
	// order does not matter
	for range len(m) {
	}
	// order does not matter:
	for k := range m { // want "range over a map"
		_ = k
	}
	// order does not matter: too far away

	for k := range m { // want "range over a map"
		_ = k
	}
	switch {
	case len(m) > 0:
		for k := range m { // want "range over a map"
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

func generic[M ~map[K]V, K comparable, V any](m M) {
	for k := range m { // want "range over a map"
		_ = k
	}
}

func good(m map[string]int, t table, h *holder, list []string) (out []string) {
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	for k := range t {
		h.keys = append(h.keys, k)
	}
	sort.Strings(h.keys)
	for k := range t {
		out = append(out, strings.ToLower(k))
	}
	slices.SortFunc(out, strings.Compare)
	for k, v := range m {
		if v > 0 {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	switch {
	case len(m) > 0:
		for k := range m {
			out = append(out, k)
		}
		slices.Sort(out)
	}
	sum := 0
	for _, v := range m { // order does not matter: a sum
		sum += v
	}
	// order does not matter: each value is looked at alone, and the
	// comment may take two lines
	for k, v := range m {
		if v == 0 {
			delete(m, k)
		}
	}
	for range m {
		sum++
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		_ = k
	}
	for _, k := range slices.SortedFunc(maps.Keys(m), strings.Compare) {
		_ = k
	}
	maps.Copy(m, maps.Clone(t))
	for _, k := range list {
		_ = k
	}
	for k := range slices.Values(list) {
		_ = k
	}
	for i := range 3 {
		_ = i
	}
	return out
}
