package sim

import (
	"encoding/binary"
	"errors"

	"github.com/assent-tx/assent/internal/txnid"
)

// The auditor's own reader of log entries: written from the format's description,
// not from its code, so that both would have to be wrong alike.

type command struct {
	kind     byte
	id       txnid.ID
	name     string // of a service; LEAD: of the node
	digest   [32]byte
	onePhase bool
	branches []cmdBranch
	needs    []need
	enlisted uint64
	yes, ro  []uint64
	reason   string
	refused  bool
	branch   uint64
	fate     byte
	count    uint64
}

// need is one node of the folded lock set that BEGIN carries.
type need struct {
	key  string
	mode byte
}

type cmdBranch struct {
	service    string
	generation uint64
	isolated   bool
	ops        int
}

const (
	cmdBoot = iota + 1
	cmdLead
	cmdBegin
	cmdCommit
	cmdAbort
	cmdAck
	cmdForget
	cmdPutService
	cmdDrainService
	cmdRemoveService
	cmdResolve

	cmdLevel  = 16
	cmdVerify = 28
	cmdHash   = 29
)

type cursor struct{ b []byte }

func (c *cursor) take(n uint64) []byte {
	if n > uint64(len(c.b)) {
		panic(errors.New("entry cut short"))
	}
	v := c.b[:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) uint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		panic(errors.New("bad integer"))
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) text() string      { return string(c.take(c.uint())) }
func (c *cursor) byte() byte        { return c.take(1)[0] }
func (c *cursor) id() (id txnid.ID) { copy(id[:], c.take(16)); return id }

func (c *cursor) list() (l []uint64) {
	for n := c.uint(); n > 0; n-- {
		l = append(l, c.uint())
	}
	return l
}

// decode reads an entry: the term it was computed in, and its commands.
func decode(entry []byte) (term uint64, cmds []command) {
	c := &cursor{entry}
	if c.byte() != 1 {
		panic(errors.New("entry of an unknown version"))
	}
	term = binary.BigEndian.Uint64(c.take(8))
	c.take(8)
	for len(c.b) > 0 {
		cmds = append(cmds, c.command())
	}
	return term, cmds
}

func (c *cursor) command() (v command) {
	v.kind = c.byte()
	switch v.kind {
	case cmdBoot:
		c.take(16)
		c.uint()
		c.uint()
		c.uint()
	case cmdLead:
		v.name = c.text()
	case cmdDrainService, cmdRemoveService:
		v.name = c.text()
	case cmdBegin:
		v.id = c.id()
		copy(v.digest[:], c.take(32))
		c.uint()
		v.onePhase = c.byte() == 1
		c.text()
		for n := c.uint(); n > 0; n-- {
			b := cmdBranch{service: c.text(), generation: c.uint(), isolated: c.byte() == 1}
			c.take(32)
			for ops := c.uint(); ops > 0; ops-- {
				c.text()
				b.ops++
			}
			v.branches = append(v.branches, b)
		}
		for n := c.uint(); n > 0; n-- {
			v.needs = append(v.needs, need{c.text(), c.byte()})
		}
	case cmdCommit:
		v.id, v.enlisted, v.yes, v.ro = c.id(), c.uint(), c.list(), c.list()
	case cmdAbort:
		v.id, v.reason = c.id(), c.text()
		c.text()
		c.text()
		v.refused = c.byte() == 1
	case cmdAck:
		v.id, v.branch, v.fate = c.id(), c.uint(), c.byte()
	case cmdForget:
		v.count = c.uint()
		c.uint()
	case cmdPutService:
		v.name = c.text()
		c.uint()
		for range 4 {
			c.text()
		}
		for n := c.uint(); n > 0; n-- {
			c.text()
		}
		c.take(3)
		for range 5 {
			c.uint()
		}
		c.take(1)
	case cmdLevel:
		c.uint()
	case cmdVerify:
	case cmdHash:
		c.uint()
		c.take(32)
	case cmdResolve:
		v.id = c.id()
		c.text()
	default:
		panic(errors.New("unknown command in the log"))
	}
	return v
}
