// Package linear holds the status of transactions and the locks of keys to a simple
// object each: every answer must be one that the object could have given at one moment
// between question and answer (linearizability). The search for these moments is
// porcupine's.
//
//	status   absent -> active -> sealed -> committed, or aborted from anywhere before
//	lock     readers, at most one that will write, or one writer
//
// Both are looked at one transaction, or one key, at a time. A question without an answer
// may take effect at any time after it was asked, or never.
package linear

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// MaxOperations of one transaction or key: the search is exponential in what overlaps.
const MaxOperations = 1000

// patience bounds the search of one history; a search that takes longer convicts.
const patience = time.Minute

// never is the time of an answer that did not come.
const never = math.MaxInt64

// Problem is a transaction or a key whose answers no order of moments explains.
type Problem struct {
	Object string // the transaction or the key
	Text   string // for people: why, and the operations by the time they were asked
}

// clock numbers the questions and answers of a history.
type clock struct {
	mu  sync.Mutex
	now int64
}

// operation is a question and its answer.
type operation struct {
	object      string
	input       any
	output      any
	call, reply int64
}

// search looks for the moments of each object by itself, in the order of their names.
func search(operations []operation, model porcupine.Model) []Problem {
	var problems []Problem
	slices.SortStableFunc(operations, func(a, b operation) int {
		return cmp.Or(cmp.Compare(a.object, b.object), cmp.Compare(a.call, b.call))
	})
	for len(operations) > 0 {
		n := 1
		for n < len(operations) && operations[n].object == operations[0].object {
			n++
		}
		if why := explain(operations[:n], model); why != "" {
			problems = append(problems, Problem{operations[0].object, why})
		}
		operations = operations[n:]
	}
	return problems
}

// explain says why the operations of one object are not linearizable, or nothing.
func explain(operations []operation, model porcupine.Model) string {
	if n := len(operations); n > MaxOperations {
		return fmt.Sprintf("%d operations are too many to judge: at most %d", n, MaxOperations)
	}
	var all []porcupine.Operation
	for i, o := range operations {
		all = append(all, porcupine.Operation{ClientId: i, Input: o.input, Call: o.call, Output: o.output, Return: o.reply})
	}
	verdict, info := porcupine.CheckOperationsVerbose(model, all, patience)
	if verdict == porcupine.Ok {
		return ""
	}
	var b strings.Builder
	if verdict == porcupine.Unknown {
		fmt.Fprintf(&b, "no verdict within %s", patience)
	} else {
		best := 0
		for _, of := range info.PartialLinearizations() {
			for _, order := range of {
				best = max(best, len(order))
			}
		}
		fmt.Fprintf(&b, "no order explains the answers: at most %d of %d operations fit", best, len(all))
	}
	for _, o := range operations {
		reply := fmt.Sprint(o.reply)
		if o.reply == never {
			reply = "never"
		}
		fmt.Fprintf(&b, "\n  asked at %d, answered at %s: %s", o.call, reply, model.DescribeOperation(o.input, o.output))
	}
	return b.String()
}
