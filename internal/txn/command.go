package txn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/txnid"
)

// The log format. It is not the wire format of any API and changes only by a new
// version or kind; integers are unsigned varints unless a width is given.
//
//	entry   = version(1) term(8, big endian) time_ms(8) command*
//	command = kind(1) body
const (
	formatVersion = 1
	// HeaderBytes is the length of an entry's header.
	HeaderBytes = 17
)

type kind byte

const (
	kindBoot kind = iota + 1
	kindLead
	kindBegin
	kindCommit
	kindAbort
	kindAck
	kindForget
	kindPutService
	kindDrainService
	kindRemoveService
	kindResolve
	kindOpen
	kindEnlist
	kindSeal
	kindPutExecutor
	kindLevel // from here on written at level 1 and above
	kindBeginSpread
	kindEnlistSpread
	kindLocked
	kindYield
	kindClaim
	kindRelease
	kindDrainHere
	kindPutPartitioned
	kindPutMember // from here on written at level 2 and above
	kindRemoveMember
	kindPlace
	kindVerify
	kindHash

	lastKind = kindHash
)

// ErrFormat is wrapped by every decoding error: the replica must halt.
var ErrFormat = errors.New("unknown or damaged log record")

// PutHeader writes the header into the first HeaderBytes of an entry.
func PutHeader(entry []byte, term, timeMs uint64) {
	entry[0] = formatVersion
	binary.BigEndian.PutUint64(entry[1:], term)
	binary.BigEndian.PutUint64(entry[9:], timeMs)
}

// Header reads an entry's header.
func Header(entry []byte) (term, timeMs uint64, err error) {
	if len(entry) < HeaderBytes {
		return 0, 0, fmt.Errorf("%w: entry of %d bytes is shorter than its header", ErrFormat, len(entry))
	}
	if entry[0] != formatVersion {
		return 0, 0, fmt.Errorf("%w: entry format %d, this binary knows %d", ErrFormat, entry[0], formatVersion)
	}
	return binary.BigEndian.Uint64(entry[1:]), binary.BigEndian.Uint64(entry[9:]), nil
}

// Boot is the first record of a shard: what never changes afterwards.
type Boot struct {
	Cluster     [16]byte
	Incarnation uint32 // rises when a cluster is restored from a backup
	Shard       uint32
	Shards      uint32
}

// Lead opens a leader's term: it leads once it has applied this.
type Lead struct{ Node string }

// Begin starts a transaction. Everything taken from the registry is in it.
type Begin struct {
	ID          txnid.ID
	Digest      [32]byte
	TimeoutMs   uint32
	OnePhase    bool
	TraceParent string
	Branches    []BeginBranch
	Locks       []lock.Need // folded; those that the transaction's home keeps
	Foreign     []LockPart  // those that other shards keep
}

// BeginBranch is one branch of a Begin.
type BeginBranch struct {
	Service    string
	Generation uint64
	Isolated   bool
	Ops        [][]byte
	Digest     [32]byte
}

// Open starts an interactive transaction: branches and locks follow step by step.
type Open struct {
	ID          txnid.ID
	Digest      [32]byte
	TimeoutMs   uint32
	IdleMs      uint32   // for the leader's clock; the decision to abort is a record of its own
	RetryOf     txnid.ID // its age is inherited if it has a record here; zero: none
	TraceParent string
}

// Enlist is one step of an interactive transaction: its locks first, then its
// operations. Everything taken from the registry is in it.
type Enlist struct {
	ID       txnid.ID
	Step     uint32 // chosen by the client: names the step for ever
	Digest   [32]byte
	Branches []EnlistBranch
	Ops      []EnlistOp  // in the order of the request
	Locks    []lock.Need // folded; those that the transaction's home keeps
	Foreign  []LockPart  // those that other shards keep
}

// EnlistBranch is a service that a step has operations for.
type EnlistBranch struct {
	Service    string
	Generation uint64
	Isolated   bool
}

// EnlistOp is an operation of a step.
type EnlistOp struct {
	Branch  uint32 // index in the step's Branches
	Now     bool   // executed at once, not with prepare
	Payload []byte
}

// Commit decides. Yes and ReadOnly name branches by 0-based index.
type Commit struct {
	ID       txnid.ID
	Enlisted uint32 // how many branches the leader counted
	Yes      []uint32
	ReadOnly []uint32
}

// Abort decides, or makes sure that an unknown id never begins.
type AbortCmd struct {
	ID      txnid.ID
	Reason  reason.Code
	Message string
	Service string
	// Refused: the participant of a one-phase transaction durably refused. No
	// other abort touches a one-phase transaction whose locks are granted.
	Refused bool
}

// Ack records a branch's acknowledgement: Fate is FateDone or a hazard.
type Ack struct {
	ID     txnid.ID
	Branch uint32 // 0-based
	Fate   Fate
}

// Forget drops the longest ended transactions: Count of them, and all that ended
// at or before EndedBeforeMs; at most 4,096 at once.
type Forget struct {
	Count         uint32
	EndedBeforeMs uint64
}

// ---- encoding

func uv(dst []byte, v uint64) []byte { return binary.AppendUvarint(dst, v) }

func str(dst []byte, v string) []byte { return append(uv(dst, uint64(len(v))), v...) }

func bin(dst, v []byte) []byte { return append(uv(dst, uint64(len(v))), v...) }

func flag(dst []byte, v bool) []byte {
	if v {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// AppendBoot appends the command.
func AppendBoot(dst []byte, c Boot) []byte {
	dst = append(dst, byte(kindBoot))
	dst = append(dst, c.Cluster[:]...)
	dst = uv(dst, uint64(c.Incarnation))
	dst = uv(dst, uint64(c.Shard))
	return uv(dst, uint64(c.Shards))
}

// AppendLead appends the command.
func AppendLead(dst []byte, c Lead) []byte { return str(append(dst, byte(kindLead)), c.Node) }

// AppendBegin appends the command.
func AppendBegin(dst []byte, c *Begin) []byte {
	k := kindBegin
	if len(c.Foreign) > 0 {
		k = kindBeginSpread
	}
	dst = append(dst, byte(k))
	dst = append(dst, c.ID[:]...)
	dst = append(dst, c.Digest[:]...)
	dst = uv(dst, uint64(c.TimeoutMs))
	dst = flag(dst, c.OnePhase)
	dst = str(dst, c.TraceParent)
	dst = uv(dst, uint64(len(c.Branches)))
	for i := range c.Branches {
		b := &c.Branches[i]
		dst = str(dst, b.Service)
		dst = uv(dst, b.Generation)
		dst = flag(dst, b.Isolated)
		dst = append(dst, b.Digest[:]...)
		dst = uv(dst, uint64(len(b.Ops)))
		for _, op := range b.Ops {
			dst = bin(dst, op)
		}
	}
	dst = appendNeeds(dst, c.Locks)
	if k == kindBeginSpread {
		dst = appendParts(dst, c.Foreign)
	}
	return dst
}

// AppendOpen appends the command.
func AppendOpen(dst []byte, c *Open) []byte {
	dst = append(dst, byte(kindOpen))
	dst = append(dst, c.ID[:]...)
	dst = append(dst, c.Digest[:]...)
	dst = uv(dst, uint64(c.TimeoutMs))
	dst = uv(dst, uint64(c.IdleMs))
	dst = append(dst, c.RetryOf[:]...)
	return str(dst, c.TraceParent)
}

// AppendEnlist appends the command.
func AppendEnlist(dst []byte, c *Enlist) []byte {
	k := kindEnlist
	if len(c.Foreign) > 0 {
		k = kindEnlistSpread
	}
	dst = append(dst, byte(k))
	dst = append(dst, c.ID[:]...)
	dst = uv(dst, uint64(c.Step))
	dst = append(dst, c.Digest[:]...)
	dst = uv(dst, uint64(len(c.Branches)))
	for i := range c.Branches {
		b := &c.Branches[i]
		dst = str(dst, b.Service)
		dst = uv(dst, b.Generation)
		dst = flag(dst, b.Isolated)
	}
	dst = uv(dst, uint64(len(c.Ops)))
	for i := range c.Ops {
		op := &c.Ops[i]
		dst = uv(dst, uint64(op.Branch))
		dst = flag(dst, op.Now)
		dst = bin(dst, op.Payload)
	}
	dst = appendNeeds(dst, c.Locks)
	if k == kindEnlistSpread {
		dst = appendParts(dst, c.Foreign)
	}
	return dst
}

// AppendSeal appends: commit was asked, nothing more is enlisted.
func AppendSeal(dst []byte, id txnid.ID) []byte {
	return append(append(dst, byte(kindSeal)), id[:]...)
}

func appendNeeds(dst []byte, needs []lock.Need) []byte {
	dst = uv(dst, uint64(len(needs)))
	for _, n := range needs {
		dst = str(dst, n.Key)
		dst = append(dst, byte(n.Mode))
	}
	return dst
}

// AppendCommit appends the command.
func AppendCommit(dst []byte, c Commit) []byte {
	dst = append(dst, byte(kindCommit))
	dst = append(dst, c.ID[:]...)
	dst = uv(dst, uint64(c.Enlisted))
	for _, list := range [2][]uint32{c.Yes, c.ReadOnly} {
		dst = uv(dst, uint64(len(list)))
		for _, b := range list {
			dst = uv(dst, uint64(b))
		}
	}
	return dst
}

// AppendAbort appends the command; the message is cut to MaxMessageBytes.
func AppendAbort(dst []byte, c AbortCmd) []byte {
	c.Message = cut(c.Message)
	dst = append(dst, byte(kindAbort))
	dst = append(dst, c.ID[:]...)
	dst = str(dst, string(c.Reason))
	dst = str(dst, c.Message)
	dst = str(dst, c.Service)
	return flag(dst, c.Refused)
}

// AppendAck appends the command.
func AppendAck(dst []byte, c Ack) []byte {
	dst = append(dst, byte(kindAck))
	dst = append(dst, c.ID[:]...)
	dst = uv(dst, uint64(c.Branch))
	return append(dst, byte(c.Fate))
}

// AppendForget appends the command.
func AppendForget(dst []byte, c Forget) []byte {
	dst = append(dst, byte(kindForget))
	dst = uv(dst, uint64(c.Count))
	return uv(dst, c.EndedBeforeMs)
}

// AppendPutService appends a registration. Generation, times and Draining are set by Apply.
func AppendPutService(dst []byte, v *Service) []byte {
	switch { // a record that older versions do not know only where it is needed
	case v.Partitions > 1:
		return uv(str(appendService(append(dst, byte(kindPutPartitioned)), v), v.ExecuteURL), uint64(v.Partitions))
	case v.ExecuteURL != "":
		return str(appendService(append(dst, byte(kindPutExecutor)), v), v.ExecuteURL)
	}
	return appendService(append(dst, byte(kindPutService)), v)
}

// AppendDrainService appends: the service takes no new transactions.
func AppendDrainService(dst []byte, name string) []byte {
	return str(append(dst, byte(kindDrainService)), name)
}

// AppendRemoveService appends: the drained service is gone.
func AppendRemoveService(dst []byte, name string) []byte {
	return str(append(dst, byte(kindRemoveService)), name)
}

// AppendResolve appends an operator's closing note on a hazard.
func AppendResolve(dst []byte, id txnid.ID, note string) []byte {
	note = cut(note)
	dst = append(dst, byte(kindResolve))
	dst = append(dst, id[:]...)
	return str(dst, note)
}

// cut keeps at most MaxMessageBytes, and no part of a character.
func cut(message string) string {
	if len(message) <= MaxMessageBytes {
		return message
	}
	end := MaxMessageBytes
	for end > MaxMessageBytes-utf8.UTFMax && !utf8.RuneStart(message[end]) {
		end--
	}
	return message[:end]
}

func appendService(dst []byte, v *Service) []byte {
	dst = str(dst, v.Name)
	dst = uv(dst, v.Generation)
	dst = str(dst, v.PrepareURL)
	dst = str(dst, v.CommitURL)
	dst = str(dst, v.RollbackURL)
	dst = str(dst, v.StatusURL)
	dst = uv(dst, uint64(len(v.Resources)))
	for _, r := range v.Resources {
		dst = str(dst, r)
	}
	dst = append(dst, byte(v.Capabilities))
	dst = flag(dst, v.Isolated)
	dst = flag(dst, v.RequireKeys)
	dst = uv(dst, uint64(v.MaxInFlight))
	dst = uv(dst, uint64(v.PrepareTimeoutMs))
	dst = uv(dst, uint64(v.FinishTimeoutMs))
	dst = uv(dst, v.RegisteredMs)
	dst = uv(dst, v.UpdatedMs)
	return flag(dst, v.Draining)
}

// ---- decoding: a reader that remembers its first error

type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrFormat, what)
	}
	r.b = nil
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	// The shortest spelling only, so that equal states have equal bytes.
	if n <= 0 || n > 1 && r.b[n-1] == 0 {
		r.fail("bad integer")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint32(what string) uint32 {
	v := r.uint()
	if v > 1<<32-1 {
		r.fail(what + " out of range")
		return 0
	}
	return uint32(v)
}

// count reads a length that cannot exceed limit nor the bytes that are left.
func (r *reader) count(limit int, what string) int {
	v := r.uint()
	if v > uint64(limit) || v > uint64(len(r.b)) {
		r.fail(what + ": too many")
		return 0
	}
	return int(v)
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.fail("cut short")
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail("cut short")
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) bool() bool {
	v := r.byte()
	if v > 1 {
		r.fail("bad flag")
	}
	return v == 1
}

// bytes aliases the input.
func (r *reader) bytes() []byte { return r.take(r.count(len(r.b), "bytes")) }

func (r *reader) string() string { return string(r.bytes()) }

func (r *reader) id() (id txnid.ID) {
	copy(id[:], r.take(len(id)))
	return id
}

func (r *reader) digest() (d [32]byte) {
	copy(d[:], r.take(len(d)))
	return d
}

func (r *reader) indices(dst []uint32) []uint32 {
	n := r.count(MaxBranches, "branch list")
	for range n {
		dst = append(dst, r.uint32("branch"))
	}
	return dst
}

func (r *reader) fate() Fate {
	f := Fate(r.byte())
	if f < FateOpen || f > FateHazardRolledBack {
		r.fail("unknown fate")
		return FateOpen
	}
	return f
}

func (r *reader) service() *Service {
	v := &Service{
		Name: r.string(), Generation: r.uint(), PrepareURL: r.string(), CommitURL: r.string(), RollbackURL: r.string(), StatusURL: r.string(),
	}
	n := r.count(MaxResources, "resources")
	for range n {
		v.Resources = append(v.Resources, r.string())
	}
	v.Capabilities = Capability(r.byte())
	v.Isolated = r.bool()
	v.RequireKeys = r.bool()
	v.MaxInFlight = r.uint32("max in flight")
	v.PrepareTimeoutMs = r.uint32("timeout")
	v.FinishTimeoutMs = r.uint32("timeout")
	v.RegisteredMs = r.uint()
	v.UpdatedMs = r.uint()
	v.Draining = r.bool()
	return v
}

// executor is a service with an execute endpoint.
func (r *reader) executor() *Service {
	v := r.service()
	v.ExecuteURL = r.string()
	return v
}

// partitioned is a service whose keys are kept by several shards.
func (r *reader) partitioned() *Service {
	v := r.executor()
	v.Partitions = r.uint32("partitions")
	return v
}

// open reads an Open.
func (r *reader) open() *Open {
	return &Open{ID: r.id(), Digest: r.digest(), TimeoutMs: r.uint32("timeout"), IdleMs: r.uint32("idle timeout"), RetryOf: r.id(), TraceParent: r.string()}
}

// enlist reads an Enlist; strings and payloads are copied.
func (r *reader) enlist(spread bool, intern func(string) string) *Enlist {
	c := &Enlist{ID: r.id(), Step: r.uint32("step"), Digest: r.digest()}
	if n := r.count(MaxBranches, "branches"); n > 0 {
		c.Branches = make([]EnlistBranch, n)
	}
	for i := range c.Branches {
		c.Branches[i] = EnlistBranch{Service: intern(r.string()), Generation: r.uint(), Isolated: r.bool()}
	}
	if n := r.count(MaxOps, "operations"); n > 0 {
		c.Ops = make([]EnlistOp, n)
	}
	for i := range c.Ops {
		c.Ops[i] = EnlistOp{Branch: r.uint32("branch"), Now: r.bool(), Payload: append([]byte(nil), r.bytes()...)}
		if int(c.Ops[i].Branch) >= len(c.Branches) {
			r.fail("operation of no branch")
			return c
		}
	}
	if c.Locks = r.needs(); spread {
		c.Foreign = r.parts()
	}
	return c
}

// needs reads a lock set and checks that it is one: sorted keys, known modes.
func (r *reader) needs() []lock.Need {
	n := r.count(MaxNeeds, "locks")
	if n == 0 {
		return nil
	}
	set := make([]lock.Need, 0, n)
	for range n {
		need := lock.Need{Key: r.string(), Mode: lock.Mode(r.byte())}
		if r.err != nil {
			return nil
		}
		if !need.Mode.Valid() || need.Key == "" || len(set) > 0 && set[len(set)-1].Key >= need.Key {
			r.fail("lock set not folded")
			return nil
		}
		// Keys sort behind their service, so it has been read.
		service := lock.Service(need.Key)
		if _, ok := slices.BinarySearchFunc(set, service, func(n lock.Need, key string) int { return strings.Compare(n.Key, key) }); !ok && service != need.Key {
			r.fail("lock set not folded: a key comes without its service")
			return nil
		}
		set = append(set, need)
	}
	return set
}

// begin reads a Begin; strings and payloads are copied, since the entry's bytes
// are valid during Apply only.
func (r *reader) begin(spread bool, intern func(string) string) *Begin {
	c := &Begin{ID: r.id(), Digest: r.digest(), TimeoutMs: r.uint32("timeout"), OnePhase: r.bool(), TraceParent: r.string()}
	n := r.count(MaxBranches, "branches")
	if n == 0 {
		r.fail("begin without branches")
		return c
	}
	c.Branches = make([]BeginBranch, n)
	for i := range c.Branches {
		b := &c.Branches[i]
		b.Service = intern(r.string())
		b.Generation = r.uint()
		b.Isolated = r.bool()
		b.Digest = r.digest()
		ops := r.count(MaxOps, "operations")
		if r.err != nil {
			return c
		}
		b.Ops = make([][]byte, ops)
		for j := range b.Ops {
			b.Ops[j] = append([]byte(nil), r.bytes()...)
		}
	}
	if c.Locks = r.needs(); spread {
		c.Foreign = r.parts()
	}
	return c
}
