package rmhttp

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/assent-tx/assent/internal/rm"
)

// Calls that come while the client closes are told once each, whatever they meet.
func TestCallsDuringClose(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"vote":"yes"}`) })
	for range 200 {
		cl := New(Config{})
		const callers, each = 4, 20
		told := make([]atomic.Int32, callers*each)
		var all sync.WaitGroup
		all.Add(len(told))
		begin := make(chan struct{})
		for i := range callers {
			go func() {
				<-begin
				for k := range each {
					n := &told[i*each+k]
					cl.Call(ofBranch(uint32(k), rm.Prepare), at(s.URL), func(r rm.Result) {
						n.Add(1)
						if r.Kind != rm.Yes && r.Kind != rm.Indefinite {
							t.Errorf("%+v", r)
						}
						all.Done()
					})
				}
			}()
		}
		close(begin)
		cl.Close()
		all.Wait()
		for i := range told {
			if n := told[i].Load(); n != 1 {
				t.Errorf("call %d was told %d times", i, n)
			}
		}
	}
}
