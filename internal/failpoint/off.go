//go:build !failpoints

// Package failpoint kills the process at a named point, for the crash tests. It
// is compiled out of every build without the tag "failpoints".
package failpoint

// Enabled says whether points are compiled in.
const Enabled = false

// Here ends the process if the point is armed and reached for the armed time.
func Here(string) {}
