package shard

import (
	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/txnid"
)

// MessageKind says what a message is.
type MessageKind uint8

// Messages between a transaction's home and the shards that keep its keys, and between
// the registry's shard and the others.
const (
	MessageAsk      MessageKind = iota + 1 // home: Needs for Request; Whole: what was had before is given back
	MessageGranted                         // lock shard: Request is, with Token
	MessageBlocked                         // lock shard: Request waits for Key in Mode, behind Behind
	MessageRefused                         // lock shard: Request cannot be taken; Text
	MessageRelease                         // home: Service, or what it waits for, or else all
	MessageReleased                        // lock shard: that is done
	MessageGiveWay                         // lock shard: an elder, Behind, waits in Mode for Key, which Request got; Text; Waiting: it is the youngest of a cycle there
	MessageInquire                         // lock shard: is it over?
	MessageDrain                           // registry: take no more of Service's Generation
	MessageDrained                         // to the registry: done, and Open transactions are left
)

var messageNames = [...]string{
	MessageAsk: "ask", MessageGranted: "granted", MessageBlocked: "blocked", MessageRefused: "refused", MessageRelease: "release",
	MessageReleased: "released", MessageGiveWay: "give way", MessageInquire: "inquire", MessageDrain: "drain", MessageDrained: "drained",
}

func (k MessageKind) String() string { return messageNames[k] }

// Message goes from one shard's leader to another's. It may be lost, doubled, late, and
// overtaken by others: whoever needs an answer sends it again.
type Message struct {
	Kind       MessageKind
	From, To   uint32
	ID         txnid.ID
	Request    uint32
	AgeMs      uint64
	Whole      bool
	Needs      []lock.Need
	Token      uint64
	Service    string
	Waiting    bool
	Key, Mode  string
	Behind     []txnid.ID
	Text       string
	Generation uint64
	Open       int
}

func (*Message) event() {}

// ServiceBack says that a service was registered again: its branches in backoff are
// tried at once.
type ServiceBack struct{ Name string }

func (*ServiceBack) event() {}
