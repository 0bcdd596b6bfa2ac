package serveproc

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers every byte with itself.
func echo(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// dial connects as a node, and returns with the greeting said.
func dial(t *testing.T, address, from string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	hello := fmt.Sprintf(`{"cluster":"c","from":"%s@0123abcd","to":"","kind":"call"}`, from)
	greeting := binary.BigEndian.AppendUint32([]byte("assent-peer-1\n"), uint32(len(hello)))
	if _, err := c.Write(append(greeting, hello...)); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(c, make([]byte, len(greeting)+len(hello))); err != nil {
		t.Fatal("the greeting was not carried: ", err)
	}
	return c
}

// says sends a byte and reports whether it comes back within a time.
func says(t *testing.T, c net.Conn, within time.Duration) bool {
	t.Helper()
	if _, err := c.Write([]byte{1}); err != nil {
		return false
	}
	return hears(c, within)
}

func hears(c net.Conn, within time.Duration) bool {
	_ = c.SetReadDeadline(time.Now().Add(within))
	_, err := io.ReadFull(c, make([]byte, 1))
	return err == nil
}

func TestLinks(t *testing.T) {
	links := NewLinks()
	defer links.Close()
	address, err := links.Listen("b", echo(t))
	if err != nil {
		t.Fatal(err)
	}
	const soon, never = 5 * time.Second, 50 * time.Millisecond
	a, z := dial(t, address, "a"), dial(t, address, "z")
	for _, held := range [][2]string{{"a", "b"}, {"b", "a"}} { // either way the echo stays away
		links.Set(held[0], held[1], Link{Held: true})
		if says(t, a, never) {
			t.Fatalf("a byte passed though %v is held", held)
		}
		if !says(t, z, soon) {
			t.Fatal("somebody else's link is held, too")
		}
		links.Heal()
		if !hears(a, soon) {
			t.Fatal("what was held did not pass later")
		}
	}
	links.Set("b", "a", Link{Delay: 100 * time.Millisecond})
	if start := time.Now(); !says(t, a, soon) || time.Since(start) < 100*time.Millisecond {
		t.Fatalf("a slow link took %v", time.Since(start))
	}
	links.Set("b", "a", Link{Cut: true})
	if says(t, a, soon) || !says(t, z, soon) {
		t.Fatal("the wrong connection was cut")
	}
	links.Heal()
	if !says(t, dial(t, address, "a"), soon) {
		t.Fatal("no connection after the cut")
	}
}
