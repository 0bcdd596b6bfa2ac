package backup

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func header(shards uint32) Header {
	return Header{Cluster: "00112233445566778899aabbccddeeff", Incarnation: 3, Shards: shards, Version: "v1", TakenAt: time.Date(2026, 11, 27, 1, 2, 3, 0, time.UTC)}
}

// file is a backup of these parts, written in small pieces.
func file(t testing.TB, parts ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, header(uint32(len(parts))))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		err := w.Part(int64(len(p)), func(put func([]byte) error) error {
			for piece := range slices.Chunk([]byte(p), 3) {
				if err := put(piece); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func readAll(b []byte) (h Header, parts []string, err error) {
	r, err := NewReader(bytes.NewReader(b))
	if err != nil {
		return Header{}, nil, err
	}
	for {
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			return r.Header(), parts, nil
		}
		if err != nil {
			return r.Header(), parts, err
		}
		parts = append(parts, string(p))
	}
}

func TestRoundTrip(t *testing.T) {
	want := []string{"first", "", strings.Repeat("x", 3*pieceBytes)}
	b := file(t, want...)
	h, parts, err := readAll(b)
	if err != nil || !slices.Equal(parts, want) {
		t.Fatal(len(parts), err)
	}
	expected := header(3)
	expected.Format = format
	if h != expected {
		t.Errorf("header %+v", h)
	}
	size, err := Size(header(3), []int64{5, 0, 3 * pieceBytes})
	if err != nil || size != int64(len(b)) {
		t.Errorf("foretold %d bytes, has %d: %v", size, len(b), err)
	}
}

// Every cut and every wrong bit is found, and nothing of the part that it is in is handed
// out.
func TestDamage(t *testing.T) {
	want := []string{"first", "second"}
	b := file(t, want...)
	check := func(what string, at int, spoilt []byte) {
		t.Helper()
		_, parts, err := readAll(spoilt)
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s at %d: %v", what, at, err)
		}
		for i, p := range parts {
			if p != want[i] {
				t.Errorf("%s at %d: part %q", what, at, p)
			}
		}
	}
	for i := range b {
		check("cut", i, b[:i])
		for bit := range 8 {
			spoilt := slices.Clone(b)
			spoilt[i] ^= 1 << bit
			check("bit", i, spoilt)
		}
	}
	check("more", len(b), append(slices.Clone(b), 0))
	check("twice", len(b), append(slices.Clone(b), b...))
}

func TestReaderTellsOtherErrors(t *testing.T) {
	broken := errors.New("broken")
	b := file(t, "part")
	for _, n := range []int{0, 20, len(b) - 40, len(b) - 1, len(b)} {
		r, err := NewReader(io.MultiReader(bytes.NewReader(b[:n]), failing{broken}))
		for err == nil {
			_, err = r.Next()
		}
		if !errors.Is(err, broken) || errors.Is(err, ErrDamaged) {
			t.Errorf("at %d: %v", n, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error)  { return 0, f.err }
func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestWriterRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Header){
		"no cluster":     func(h *Header) { h.Cluster = "" },
		"a bad cluster":  func(h *Header) { h.Cluster = strings.Repeat("G", 32) },
		"no incarnation": func(h *Header) { h.Incarnation = 0 },
		"no shards":      func(h *Header) { h.Shards = 0 },
		"many shards":    func(h *Header) { h.Shards = MaxShards + 1 },
		"a long version": func(h *Header) { h.Version = strings.Repeat("v", MaxHeaderBytes) },
	} {
		h := header(1)
		spoil(&h)
		if _, err := NewWriter(io.Discard, h); err == nil {
			t.Error("took ", name)
		}
		if _, err := Size(h, nil); err == nil {
			t.Error("sized ", name)
		}
	}
	give := func(s string) func(func([]byte) error) error {
		return func(put func([]byte) error) error { return put([]byte(s)) }
	}
	for name, write := range map[string]func(*Writer) error{
		"too few parts":  func(w *Writer) error { return nil },
		"too few bytes":  func(w *Writer) error { return w.Part(3, give("xx")) },
		"too many bytes": func(w *Writer) error { return w.Part(3, give("xxxx")) },
		"a huge part":    func(w *Writer) error { return w.Part(MaxPartBytes+1, give("")) },
		"too many parts": func(w *Writer) error {
			return errors.Join(w.Part(1, give("x")), w.Part(1, give("x")))
		},
		"a part that fails": func(w *Writer) error {
			return w.Part(1, func(func([]byte) error) error { return io.ErrClosedPipe })
		},
	} {
		w, err := NewWriter(io.Discard, header(1))
		if err != nil {
			t.Fatal(err)
		}
		err = write(w)
		if closed := w.Close(); closed == nil || name != "too few parts" && err == nil {
			t.Errorf("%s: %v, then %v", name, err, closed)
		}
	}
	if _, err := NewWriter(failing{io.ErrClosedPipe}, header(1)); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

func FuzzReader(f *testing.F) {
	whole := file(f, "first", "", "third")
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add([]byte(magic))
	f.Add(append([]byte(magic), 255, 255, 255, 255))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, parts, err := readAll(b)
		switch {
		case err == nil:
			if uint32(len(parts)) != h.Shards {
				t.Fatalf("%d parts of %d shards", len(parts), h.Shards)
			}
		case !errors.Is(err, ErrDamaged):
			t.Fatal(err)
		}
	})
}
