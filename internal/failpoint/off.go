//go:build !failpoints

// Package failpoint kills the process at a named point, for the crash tests. It
// is compiled out of every build without the tag "failpoints".
package failpoint

// Enabled says whether points are compiled in.
const Enabled = false

// HashCheckEveryUs is how often replicas compare their states; 0: as configured.
func HashCheckEveryUs() int64 { return 0 }

// Here ends the process if the point is armed and reached for the armed time.
func Here(string) {}
