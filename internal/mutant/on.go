//go:build mutants

package mutant

import "os"

var active = os.Getenv("ASSENT_MUTANT")

// On reports whether the named bug is planted.
func On(name string) bool { return name == active }
