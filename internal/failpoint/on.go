//go:build failpoints

package failpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Enabled says whether points are compiled in.
const Enabled = true

// ASSENT_FAILPOINT=name@n arms one point: the n-th time it is reached, the
// process kills itself with SIGKILL, so that nothing is flushed or closed.
var (
	name, count = armed()
	left        atomic.Int64
)

func init() { left.Store(count) }

func armed() (string, int64) {
	name, n, _ := strings.Cut(os.Getenv("ASSENT_FAILPOINT"), "@")
	count, err := strconv.ParseInt(n, 10, 64)
	if err != nil {
		count = 1
	}
	return name, count
}

// HashCheckEveryUs is how often replicas compare their states: ASSENT_HASH_CHECK_US. 0:
// as configured.
func HashCheckEveryUs() int64 {
	every, _ := strconv.ParseInt(os.Getenv("ASSENT_HASH_CHECK_US"), 10, 64) // 0 if it is not there
	return every
}

// Here ends the process if the point is armed and reached for the armed time.
func Here(point string) {
	if point == name && left.Add(-1) == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
