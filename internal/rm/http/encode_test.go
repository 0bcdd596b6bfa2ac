package rmhttp

import (
	"encoding/hex"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/assent-tx/assent/internal/rm"
	"github.com/assent-tx/assent/internal/txnid"
)

func TestCallBodies(t *testing.T) {
	c := call(rm.Prepare)
	c.Digest = [32]byte{0xab, 31: 0xcd}
	digest := hex.EncodeToString(c.Digest[:])
	head := `{"transaction":"` + c.Txn.String() + `","cluster":"00112233445566778899aabbccddeeff","branch":2,"service":"ledger","phase":"`
	mid := `","attempt":3,"term":4,"token":"0001"`
	want := head + "prepare" + mid + `,"shard":0,"shards":1,"operations":[{"payload":{"amount":5}},{"payload":"x"}],"count":2,"digest":"` + digest + `"}`
	if got := string(appendCall(nil, c, c.Phase)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	c.OnePhase, c.Forgotten = true, txnid.Floor(1763000000000)
	want = head + "prepare" + mid + `,"forgotten_below":"` + c.Forgotten.String() + `","shard":0,"shards":1,` +
		`"operations":[{"payload":{"amount":5}},{"payload":"x"}],"count":2,"digest":"` + digest + `","one_phase":true}`
	if got := string(appendCall(nil, c, c.Phase)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// The one-phase prepare of a branch that has executed all its operations before.
	c.Operations, c.Executed, c.Execution, c.Forgotten = nil, 3, `a"b`, txnid.ID{}
	want = head + "prepare" + mid + `,"shard":0,"shards":1,"operations":[],"count":0,"digest":"` + digest + `","executed":3,"execution":"a\"b","one_phase":true}`
	if got := string(appendCall(nil, c, c.Phase)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	x := call(rm.Execute)
	x.Digest, x.First, x.Execution = c.Digest, 4, "e1"
	want = head + "execute" + mid + `,"shard":0,"shards":1,"first":4,"operations":[{"payload":{"amount":5}},{"payload":"x"}],"count":2,"digest":"` + digest + `","execution":"e1"}`
	if got := string(appendCall(nil, x, x.Phase)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	x.First, x.Execution, x.Opened = 0, "", true
	want = head + "execute" + mid + `,"shard":0,"shards":1,"first":0,"opened":true,"operations":[{"payload":{"amount":5}},{"payload":"x"}],"count":2,"digest":"` + digest + `"}`
	if got := string(appendCall(nil, x, x.Phase)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	want = head + "commit" + mid + `,"shard":0,"shards":1}`
	if got := string(appendCall(nil, call(rm.Commit), rm.Commit)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestPayloadBytesAreNotTouched(t *testing.T) {
	c := call(rm.Prepare)
	odd := "{ \"b\" : 1.50,\t\"a\":\"\\u00e9<>&\" }"
	c.Operations = [][]byte{[]byte(odd)}
	if got := string(appendCall(nil, c, c.Phase)); !strings.Contains(got, `{"payload":`+odd+`}`) {
		t.Errorf("%s", got)
	}
}

func FuzzCallBody(f *testing.F) {
	f.Add("ledger", "0001-0002", []byte(`{"a":1}`), uint64(7))
	f.Add("a\"b\\c\x01", "\xff√\u2028", []byte(`[]`), uint64(0))
	f.Fuzz(func(t *testing.T, service, token string, payload []byte, term uint64) {
		if !json.Valid(payload) {
			return // payloads were checked when the transaction came in
		}
		c := call(rm.Prepare)
		c.Service, c.Token, c.Term, c.Operations = service, token, term, [][]byte{payload}
		var back struct {
			Service, Token string
			Term           uint64
			Operations     []struct{ Payload json.RawMessage }
		}
		body := appendCall(nil, c, c.Phase)
		if err := json.Unmarshal(body, &back); err != nil {
			t.Fatalf("%v: %q", err, body)
		}
		if utf8.ValidString(service) && back.Service != service || utf8.ValidString(token) && back.Token != token || back.Term != term {
			t.Fatalf("%+v from %q %q", back, service, token)
		}
		if got := []byte(back.Operations[0].Payload); !reflect.DeepEqual(got, trimmed(payload)) {
			t.Fatalf("payload %q became %q", payload, got)
		}
	})
}

// trimmed is the payload without outer white space, which no decoder can keep.
func trimmed(payload []byte) []byte { return []byte(strings.Trim(string(payload), " \t\r\n")) }
