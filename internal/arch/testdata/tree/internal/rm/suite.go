// Package rm is a suite of tests for others to call.
package rm

import (
	"testing" // want "may not import testing"
)

func Suite(t *testing.T) {
	t.Skip() // want "may not skip"
	/* FIXME */ // want "FIXME"
}
