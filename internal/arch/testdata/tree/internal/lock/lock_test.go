package lock

import (
	"os"
	"testing"
	"time"

	"github.com/assent-tx/assent/internal/node"
)

func TestA(t *testing.T) {
	if testing.Short() { // want "testing.Short"
		t.Skip("slow") // want "may not skip"
	}
	if os.Getenv("DB") == "" {
		t.Skipf("no %s", "DB") // want "may not skip"
	}
	_ = time.Now()
	var _ node.Node
}

func BenchmarkB(b *testing.B) {
	b.SkipNow() // want "may not skip"
}
