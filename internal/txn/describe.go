package txn

import (
	"fmt"
	"strings"
)

var kindNames = [...]string{
	kindBoot: "BOOT", kindLead: "LEAD", kindBegin: "BEGIN", kindCommit: "COMMIT", kindAbort: "ABORT", kindAck: "ACK",
	kindForget: "FORGET", kindPutService: "PUT_SERVICE", kindDrainService: "DRAIN_SERVICE", kindRemoveService: "REMOVE_SERVICE", kindResolve: "RESOLVE",
	kindOpen: "OPEN", kindEnlist: "ENLIST", kindSeal: "SEAL", kindPutExecutor: "PUT_SERVICE",
	kindPutPartitioned: "PUT_SERVICE", kindLevel: "LEVEL", kindBeginSpread: "BEGIN", kindEnlistSpread: "ENLIST", kindLocked: "LOCKED", kindYield: "YIELD",
	kindClaim: "CLAIM", kindRelease: "RELEASE", kindDrainHere: "DRAIN_SERVICE",
	kindPutMember: "PUT_MEMBER", kindRemoveMember: "REMOVE_MEMBER", kindPlace: "PLACE", kindVerify: "VERIFY", kindHash: "HASH",
}

// Describe lists the commands of an entry, one line each: "COMMIT 0199…".
func Describe(entry []byte) ([]string, error) {
	if _, _, err := Header(entry); err != nil {
		return nil, err
	}
	r := &reader{b: entry[HeaderBytes:]}
	var lines []string
	for len(r.b) > 0 {
		k := kind(r.byte())
		if k < kindBoot || k > lastKind {
			return lines, fmt.Errorf("%w: record kind %d", ErrFormat, k)
		}
		subject := r.describe(k)
		if r.err != nil {
			return lines, r.err
		}
		lines = append(lines, strings.TrimSuffix(kindNames[k]+" "+subject, " "))
	}
	return lines, nil
}

func (r *reader) describe(k kind) string {
	switch k {
	case kindBoot:
		r.take(16)
		r.uint()
		return fmt.Sprintf("shard %d of %d", r.uint(), r.uint())
	case kindLead, kindDrainService, kindRemoveService:
		return r.string()
	case kindBegin, kindBeginSpread:
		return r.begin(k == kindBeginSpread, func(s string) string { return s }).ID.String()
	case kindCommit:
		id := r.id()
		r.uint()
		r.indices(nil)
		r.indices(nil)
		return id.String()
	case kindAbort:
		id, why := r.id(), r.string()
		r.string()
		r.string()
		r.bool()
		return id.String() + " " + why
	case kindAck:
		return fmt.Sprintf("%s branch %d %s", r.id(), r.uint()+1, r.fate())
	case kindForget:
		return fmt.Sprintf("%d, ended before %d", r.uint(), r.uint())
	case kindPutService:
		return r.service().Name
	case kindOpen:
		return r.open().ID.String()
	case kindEnlist, kindEnlistSpread:
		c := r.enlist(k == kindEnlistSpread, func(s string) string { return s })
		return fmt.Sprintf("%s step %d", c.ID, c.Step)
	case kindSeal:
		return r.id().String()
	case kindPutExecutor:
		return r.executor().Name
	case kindPutPartitioned:
		return r.partitioned().Name
	case kindLevel:
		return fmt.Sprint(r.uint())
	case kindLocked:
		id, shard, request := r.id(), r.uint(), r.uint()
		r.uint()
		return fmt.Sprintf("%s at shard %d, request %d", id, shard, request)
	case kindYield:
		return fmt.Sprintf("%s at shard %d, request %d", r.id(), r.uint(), r.uint())
	case kindClaim:
		c := r.claim()
		return fmt.Sprintf("%s request %d", c.ID, c.Request)
	case kindRelease:
		id, service, waiting := r.id(), r.string(), r.bool()
		r.uint()
		if waiting {
			service = "what it waits for"
		}
		return id.String() + " " + service
	case kindDrainHere:
		name := r.string()
		r.uint()
		return name
	case kindPutMember:
		return r.member().ID
	case kindRemoveMember:
		return r.string()
	case kindPlace:
		c := r.place()
		return fmt.Sprintf("shard %d at %s", c.Shard, strings.Join(c.Voters, ", "))
	case kindVerify:
		return ""
	case kindHash:
		index, sum := r.uint(), r.digest()
		return fmt.Sprintf("%x… at entry %d", sum[:4], index)
	case kindResolve:
		id := r.id().String()
		r.string()
		return id
	}
	return ""
}
