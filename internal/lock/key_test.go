package lock

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

func TestCheckKey(t *testing.T) {
	for _, key := range []string{
		"a", "accounts/42", "...", "a/.b/..c", "Käse/\u00e9", "a b", "日本/東京", "\ufffd",
		strings.Repeat("k", MaxKeyBytes), "1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16",
	} {
		if err := CheckKey(key); err != nil {
			t.Errorf("%q: %v", key, err)
		}
	}
	for _, c := range []struct {
		key  string
		at   int
		want error
	}{
		{"", 0, ErrKeyEmpty},
		{strings.Repeat("k", MaxKeyBytes+1), 256, ErrKeyTooLong},
		{"1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17", 39, ErrKeyTooDeep},
		{"/a", 0, ErrKeyBoundary},
		{"a/", 1, ErrKeyBoundary},
		{"/", 0, ErrKeyBoundary},
		{"a//b", 2, ErrKeySegment},
		{".", 0, ErrKeySegment},
		{"a/./b", 2, ErrKeySegment},
		{"a/..", 2, ErrKeySegment},
		{"a\x00b", 1, ErrKeyControl},
		{"a\nb", 1, ErrKeyControl},
		{"a\u0085", 1, ErrKeyControl},
		{"a\xff", 1, ErrKeyNotUTF8},
		{"\xed\xa0\x80", 0, ErrKeyNotUTF8}, // a surrogate
		{"xe\u0301", 1, ErrKeyNotNFC},
		{"\u212b", 0, ErrKeyNotNFC}, // the angstrom sign is a letter A with ring
	} {
		err := CheckKey(c.key)
		var ke *KeyError
		if !errors.Is(err, c.want) || !errors.As(err, &ke) || ke.Key != c.key || ke.Byte != c.at {
			t.Errorf("%q: %v, want %v at byte %d", c.key, err, c.want, c.at)
		}
		if len(err.Error()) > 400 {
			t.Errorf("a message of %d bytes", len(err.Error()))
		}
	}
	if got := CheckKey("a//b").Error(); got != `lock key "a//b": empty, "." or ".." segment at byte 2` {
		t.Error(got)
	}
	if Service("bank/a/b") != "bank" || Service("bank") != "bank" {
		t.Error("Service")
	}
}

func FuzzCheckKey(f *testing.F) {
	for _, s := range []string{"a", "a/b", "/", "a//b", "..", "e\u0301", "\xff", "\u0085"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		good := len(key) <= MaxKeyBytes && utf8.ValidString(key) && norm.NFC.String(key) == key &&
			strings.Count(key, "/") < MaxKeySegments
		for _, r := range key {
			good = good && r >= 0x20 && (r < 0x7f || r > 0x9f)
		}
		for segment := range strings.SplitSeq(key, "/") {
			good = good && segment != "" && segment != "." && segment != ".."
		}
		err := CheckKey(key)
		if (err == nil) != good {
			t.Fatalf("CheckKey(%q) = %v, want good %v", key, err, good)
		}
		if good {
			set := Fold([]Need{{Key: "s/" + key, Mode: X}})
			if len(set) != 2+strings.Count(key, "/") || Service(set[len(set)-1].Key) != "s" {
				t.Fatalf("Fold of %q: %v", key, set)
			}
		}
	})
}

// A range is told apart from a key, and the error says what to do instead.
func TestCheckKeyRefusesRanges(t *testing.T) {
	for _, key := range []string{"[100,200)", "accounts/[100,200)", "accounts/(100,200]", "a/b/[a,b]", "a/(a,b)", "a/[,b)", "a/(,)"} {
		err := CheckKey(key)
		var typed *KeyError
		if !errors.Is(err, ErrKeyRange) || !errors.As(err, &typed) || !strings.Contains(err.Error(), "lock the segment above it") {
			t.Errorf("%q: %v", key, err)
		}
	}
	for _, key := range []string{"[100]", "(a)", "100,200", "[100,200", "a/[1,2)/b", "accounts/1xx", "f(x,y)z", "["} {
		if err := CheckKey(key); err != nil {
			t.Errorf("%q: %v", key, err)
		}
	}
}
