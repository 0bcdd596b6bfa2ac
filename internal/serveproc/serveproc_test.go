package serveproc

import "testing"

// TestFreeAddress: no two processes get the same address, though nobody listens there.
func TestFreeAddress(t *testing.T) {
	var processes [2]ports
	given := map[string]bool{}
	for range 300 { // more than a range has
		for i := range processes {
			address, err := processes[i].free()
			if err != nil {
				t.Fatal(err)
			}
			if given[address] {
				t.Fatal(address, " is given twice")
			}
			given[address] = true
		}
	}
	for i := range processes {
		for _, l := range processes[i].ranges {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
