package participant

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

const someID = "0197b0c4-8000-7abc-8000-000000000001"

func TestDigest(t *testing.T) {
	one := sha256.Sum256([]byte(`{"a":1}`))
	two := sha256.Sum256(append(one[:], `"b"`...))
	for want, payloads := range map[string][]json.RawMessage{
		"":                         nil,
		hex.EncodeToString(one[:]): {[]byte(`{"a":1}`)},
		hex.EncodeToString(two[:]): {[]byte(`{"a":1}`), []byte(`"b"`)},
	} {
		if got := Digest(payloads); got != want {
			t.Errorf("%s: %s, want %s", payloads, got, want)
		}
	}
}

func TestRandA(t *testing.T) {
	if got := randA(someID); got != 0xabc {
		t.Errorf("%x", got)
	}
}

func TestSQLiteBusy(t *testing.T) {
	for err, want := range map[error]bool{
		coded(5): true, coded(6): true, coded(5 | 2<<8): true, coded(1): false, coded(19): false,
		errors.New("database is locked"): true, errors.New("no such table"): false,
	} {
		if got := sqliteBusy(err); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}

type coded int

func (c coded) Error() string { return "coded" }
func (c coded) Code() int     { return int(c) }

func FuzzParseCall(f *testing.F) {
	good := `{"transaction":"` + someID + `","branch":1,"service":"a","phase":"prepare","attempt":1,"term":1,"token":"t","shard":0,"shards":1,` +
		`"forgotten_below":"` + someID + `","operations":[{"payload":{"x":[1]}}],"count":1,"digest":"` + strings.Repeat("0", 64) + `","one_phase":true}`
	if _, err := parseCall([]byte(good), 4); err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{good, `{}`, `null`, `[]`, ``, strings.Replace(good, `"payload":{"x":[1]}`, ``, 1), strings.Replace(good, `1}`, `-1}`, 1), good + good, strings.ToUpper(good)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := parseCall(body, 4)
		if err != nil {
			if c != nil || err.Error() == "" {
				t.Fatalf("%+v, %v", c, err)
			}
			return
		}
		if !validID(c.Transaction) || c.Branch == 0 || c.Service == "" || c.Shards > 0 && c.Shard >= c.Shards {
			t.Fatalf("%+v", c)
		}
		if c.Phase != PhasePrepare {
			return
		}
		if len(c.Operations) == 0 || len(c.Operations) > 4 {
			t.Fatalf("%d operations", len(c.Operations))
		}
		for _, op := range c.Operations {
			if !json.Valid(op) {
				t.Fatalf("payload %q", op)
			}
		}
		encoded, err := encodeList(c.Operations)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeList(encoded)
		if err != nil || Digest(back) != Digest(c.Operations) {
			t.Fatalf("%q came back from the row as %q, %v", c.Operations, back, err)
		}
		_ = c.Mismatch()
	})
}

func FuzzClip(f *testing.F) {
	f.Add("héllo√", 4)
	f.Add("\xff\xfe", 1)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		if limit < 0 || limit > 1000 {
			return
		}
		if got := clip(s, limit); len(got) > limit || !utf8.ValidString(got) {
			t.Fatalf("%q", got)
		}
	})
}
