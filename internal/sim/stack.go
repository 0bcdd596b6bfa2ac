package sim

import "runtime/debug"

// stack is where the core panicked.
func stack() string { return string(debug.Stack()) }
