package cluster

import (
	"strings"
	"testing"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/peer"
	"github.com/assent-tx/assent/internal/shard"
)

// However large the messages are, a call takes a batch of them, and none is left out.
func TestBatchOfLargeMessages(t *testing.T) {
	asks := func(keys int) *shard.Message {
		m := &shard.Message{Kind: shard.MessageAsk, Needs: make([]lock.Need, keys)}
		for i := range m.Needs {
			m.Needs[i] = lock.Need{Key: strings.Repeat("\x01", lock.MaxKeyBytes), Mode: lock.X} // escaped as \u0001
		}
		return m
	}
	const most, many = 4096, 50 // keys
	if limit := maxBatchBytes + len(encode(asks(most))); limit > peer.MaxCallBytes {
		t.Fatalf("a batch may have %d bytes, a call %d", limit, peer.MaxCallBytes)
	}
	size := len(encode(asks(many)))
	box := make(chan *shard.Message, maxBatch)
	for i := range cap(box) {
		m := asks(many)
		m.Request = uint32(i)
		box <- m
	}
	next := uint32(0)
	for len(box) > 0 {
		body, n := gather(<-box, box)
		if len(body) > maxBatchBytes+size+100 {
			t.Fatalf("%d messages are %d bytes", n, len(body))
		}
		var got []*shard.Message
		if err := decode(body, &got); err != nil || len(got) != n {
			t.Fatalf("%d of %d messages, %v", len(got), n, err)
		}
		for _, m := range got {
			if m.Request != next || len(m.Needs) != many {
				t.Fatalf("message %d is %d with %d keys", next, m.Request, len(m.Needs))
			}
			next++
		}
	}
	if int(next) != cap(box) {
		t.Errorf("%d of %d messages", next, cap(box))
	}
	for i := range maxBatch { // small ones go together
		box <- &shard.Message{Kind: shard.MessageInquire, Request: uint32(i)}
	}
	if _, n := gather(<-box, box); n != maxBatch {
		t.Errorf("%d small messages in a batch", n)
	}
}
