// Package contention says what transactions do that get in each other's way: which keys
// they lock, how, and in how many steps. The simulation of lock policies and the
// benchmark of a real coordinator run the same ones, so that their figures can be compared.
//
//	zipf    1 to 4 of 1,000 keys, exponent 0.99; half of them read, half written
//	hot     one key that all write, and another
//	reader  one client that reads 50 keys, among writers of the keys of zipf
//
//	once    the keys are declared at once
//	steps   key by key; zipf reads all first, then writes half of them
//	update  likewise, but what will be written is read in mode update
package contention

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
)

// Mode of a lock.
type Mode uint8

// Modes of locks.
const (
	Shared Mode = iota + 1
	Update
	Exclusive
)

// Lock is a key of one service.
type Lock struct {
	Key  string
	Mode Mode
}

// Plan is one transaction.
type Plan struct {
	Steps [][]Lock
	Once  bool // it declares its keys at once: there is one step
	Long  bool // it is the long reader
}

// Workload is what a number of clients do, each one transaction after the other.
type Workload struct {
	Name string
	Plan func(r *rand.Rand, client int) Plan
}

const (
	keys       = 1000
	readerKeys = 50
	exponent   = 0.99
)

// zipf is the sums of the weights of keys; rand.Zipf cannot draw with an exponent below 1.
type zipf []float64

func newZipf(exponent float64) zipf {
	z, sum := make(zipf, keys), 0.0
	for i := range z {
		sum += 1 / math.Pow(float64(i+1), exponent)
		z[i] = sum
	}
	return z
}

func (z zipf) draw(r *rand.Rand) string {
	at := r.Float64() * z[len(z)-1]
	return key(sort.Search(len(z)-1, func(i int) bool { return z[i] > at }))
}

// some draws 1 to 4 different keys.
func (z zipf) some(r *rand.Rand) (keys []string) {
	for n := 1 + r.IntN(4); len(keys) < n; {
		if key := z.draw(r); !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys
}

// key: the order of keys has nothing to do with how hot they are.
func key(rank int) string { return fmt.Sprintf("k%03d", rank*619%keys) }

// write locks all keys for writing.
func write(keys []string) (locks []Lock) {
	for _, key := range keys {
		locks = append(locks, Lock{key, Exclusive})
	}
	return locks
}

// readOrWrite reads half of the keys, and writes the others.
func readOrWrite(r *rand.Rand, keys []string) (locks []Lock) {
	for _, key := range keys {
		locks = append(locks, Lock{key, []Mode{Shared, Exclusive}[r.IntN(2)]})
	}
	return locks
}

// readThenWrite reads all keys first, and then writes half of them, which it reads in the
// mode first.
func readThenWrite(r *rand.Rand, keys []string, first Mode) (locks []Lock) {
	var later []Lock
	for _, key := range keys {
		mode := Shared
		if r.IntN(2) == 0 {
			mode = first
			later = append(later, Lock{key, Exclusive})
		}
		locks = append(locks, Lock{key, mode})
	}
	return append(locks, later...)
}

func once(locks []Lock) Plan { return Plan{Steps: [][]Lock{locks}, Once: true} }

func steps(locks []Lock) (p Plan) {
	for _, l := range locks {
		p.Steps = append(p.Steps, []Lock{l})
	}
	return p
}

// Workloads returns all of them.
func Workloads() []Workload {
	skewed, even := newZipf(exponent), newZipf(0)
	hot := func(r *rand.Rand) []Lock { // the hot key, and another before or after it
		locks := write([]string{"hot", even.draw(r)})
		if r.IntN(2) == 0 {
			slices.Reverse(locks)
		}
		return locks
	}
	// reader: the first client reads, the others write.
	reader := func(plan func([]Lock) Plan) func(r *rand.Rand, client int) Plan {
		return func(r *rand.Rand, client int) Plan {
			if client > 0 {
				return plan(write(skewed.some(r)))
			}
			var locks []Lock
			for i := range readerKeys {
				locks = append(locks, Lock{key(i), Shared})
			}
			p := plan(locks)
			p.Long = true
			return p
		}
	}
	return []Workload{
		{"zipf/once", func(r *rand.Rand, _ int) Plan { return once(readOrWrite(r, skewed.some(r))) }},
		{"zipf/steps", func(r *rand.Rand, _ int) Plan { return steps(readThenWrite(r, skewed.some(r), Shared)) }},
		{"zipf/update", func(r *rand.Rand, _ int) Plan { return steps(readThenWrite(r, skewed.some(r), Update)) }},
		{"hot/once", func(r *rand.Rand, _ int) Plan { return once(hot(r)) }},
		{"hot/steps", func(r *rand.Rand, _ int) Plan { return steps(hot(r)) }},
		{"reader/once", reader(once)},
		{"reader/steps", reader(steps)},
	}
}
