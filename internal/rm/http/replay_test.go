package rmhttp

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/assent-tx/assent/internal/rm"
)

// A participant that takes a call on an idle connection and dies of it, so that the
// replay cannot connect: the call may have taken effect, and is told as sent.
func TestReplayThatCannotConnectWasSent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		defer l.Close() // first
		br := bufio.NewReader(c)
		request(br)
		fmt.Fprint(c, yesAnswer)
		if !request(br) {
			t.Error("the second call did not come on the first connection")
		}
	}()
	cl := newClient(t, Config{})
	e := at("http://" + l.Addr().String())
	if r := ask(t, cl, call(rm.Prepare), e); r.Kind != rm.Yes {
		t.Fatalf("%+v", r)
	}
	r := ask(t, cl, call(rm.Prepare), e)
	receive(t, served)
	if r.Kind != rm.Indefinite || !r.Sent || r.Took <= 0 || !strings.Contains(r.Reason, "closed") {
		t.Errorf("%+v", r)
	}
}
