package node

import (
	"cmp"
	"context"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/assent-tx/assent/internal/lock"
	"github.com/assent-tx/assent/internal/reason"
	"github.com/assent-tx/assent/internal/shard"
	"github.com/assent-tx/assent/internal/txnid"
)

// What is listed is asked of each shard's leader, and put together by the node that was
// asked: a shard's part is answered by the functions with At, which need the lead.

// Parts are the shards' parts of what is listed; *Node has those of the shards that it
// leads.
type Parts interface {
	Shards() uint32 // 0: nobody knows yet
	TransactionsAt(ctx context.Context, at uint32, q ListQuery) ([]Transaction, error)
	LocksAt(ctx context.Context, at uint32, q LockQuery) ([]Lock, error)
	DeadlocksAt(ctx context.Context, at uint32) ([]Deadlock, error)
	ServicesAt(ctx context.Context, name string) ([]Service, error)
	OpenAt(ctx context.Context, at uint32, services []string) ([]int, error)
}

// Lists are put together from the parts of all shards.
type Lists struct{ Parts Parts }

func all[T any](l Lists, part func(at uint32) ([]T, error)) ([]T, error) {
	shards := l.Parts.Shards()
	if shards == 0 {
		return nil, NotStarted()
	}
	var list []T
	for at := range shards {
		some, err := part(at)
		if err != nil {
			return nil, err
		}
		list = append(list, some...)
	}
	return list, nil
}

// NotStarted is the answer of a node whose log is not open yet.
func NotStarted() *reason.Error {
	e := reason.New(reason.NotReady, "wait until /readyz answers 200", "the node is starting: its log is not open yet")
	e.RetryAfterMs = 200
	return e
}

// Transactions lists transactions of all shards in order of ids.
func (l Lists) Transactions(ctx context.Context, q ListQuery) (TransactionPage, error) {
	list, err := all(l, func(at uint32) ([]Transaction, error) { return l.Parts.TransactionsAt(ctx, at, q) })
	if err != nil {
		return TransactionPage{}, err
	}
	size := pageSize(q.PageSize)
	sort.Slice(list, func(i, j int) bool { return list[i].ID < list[j].ID }) // canonical: in order of their bytes
	p := TransactionPage{Transactions: []Transaction{}}
	if len(list) > size {
		list = list[:size]
		p.NextPageToken = list[size-1].ID
	}
	p.Transactions = append(p.Transactions, list...)
	return p, nil
}

// Locks lists keys that are held or waited for, of all shards in order of keys. A key of a
// whole service may be in several shards.
func (l Lists) Locks(ctx context.Context, q LockQuery) (LockPage, error) {
	list, err := all(l, func(at uint32) ([]Lock, error) { return l.Parts.LocksAt(ctx, at, q) })
	if err != nil {
		return LockPage{}, err
	}
	size := pageSize(q.PageSize)
	place := func(l *Lock) lockPlace {
		path := l.Service
		if l.Key != "" {
			path += "/" + l.Key
		}
		return lockPlace{path, l.Shard}
	}
	sort.Slice(list, func(i, j int) bool {
		a, b := place(&list[i]), place(&list[j])
		return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.shard, b.shard)) < 0
	})
	p := LockPage{Locks: []Lock{}}
	if len(list) > size {
		list = list[:size]
		p.NextPageToken = place(&list[size-1]).String()
	}
	p.Locks = append(p.Locks, list...)
	return p, nil
}

// lockPlace is where a page of locks ended.
type lockPlace struct {
	path  string
	shard uint32
}

func (p lockPlace) String() string { return p.path + " " + strconv.FormatUint(uint64(p.shard), 10) }

// CheckLockToken refuses what is no page token of a list of locks.
func CheckLockToken(token string) *reason.Error {
	_, err := parseLockPlace(token)
	return err
}

func parseLockPlace(token string) (lockPlace, *reason.Error) {
	at := strings.LastIndexByte(token, ' ') // keys may have some, too
	if at > 0 {
		if shard, err := strconv.ParseUint(token[at+1:], 10, 32); err == nil {
			return lockPlace{token[:at], uint32(shard)}, nil
		}
	}
	return lockPlace{}, notAToken(token)
}

func notAToken(token string) *reason.Error {
	return reason.New(reason.InvalidField, "use next_page_token of the previous page", "page_token %.40q is not one of this list", token)
}

// from is the first key of a shard behind the place.
func (p lockPlace) from(shard uint32) string {
	if shard > p.shard {
		return p.path
	}
	return p.path + "\x00" // no key has that
}

// Deadlocks are the latest cycles of waiting that were broken, the latest first.
func (l Lists) Deadlocks(ctx context.Context) ([]Deadlock, error) {
	list, err := all(l, func(at uint32) ([]Deadlock, error) { return l.Parts.DeadlocksAt(ctx, at) })
	if err != nil {
		return nil, err
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].At.After(list[j].At) })
	return append([]Deadlock{}, list...), nil
}

// Services returns the registry in order of names.
func (l Lists) Services(ctx context.Context) ([]Service, error) { return l.services(ctx, "") }

// Service returns a registration.
func (l Lists) Service(ctx context.Context, name string) (Service, error) {
	list, err := l.services(ctx, name)
	if err != nil {
		return Service{}, err
	}
	if len(list) == 0 {
		return Service{}, reason.New(reason.NotFound, "register it with PUT /v1/services/"+name, "service %q is not registered", name)
	}
	return list[0], nil
}

func (l Lists) services(ctx context.Context, name string) ([]Service, error) {
	list, err := l.Parts.ServicesAt(ctx, name)
	if err != nil || len(list) == 0 {
		return list, err
	}
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].Name
	}
	for at := range l.Parts.Shards() {
		open, err := l.Parts.OpenAt(ctx, at, names)
		if err != nil {
			return nil, err
		}
		for i := range list {
			list[i].OpenTransactions += open[i]
		}
	}
	return list, nil
}

// lead runs f on a shard that this node leads.
func (n *Node) lead(ctx context.Context, at uint32, f func(*shard.Shard)) error {
	if at >= n.cfg.Shards {
		return reason.New(reason.InvalidField, "", "there is no shard %d", at)
	}
	leading := false
	err := n.runners[at].run(ctx, func(sh *shard.Shard) {
		if leading = sh.Leading(); leading {
			f(sh)
		}
	})
	if err == nil && !leading {
		return shard.NotLeader(at)
	}
	return err
}

// scan is lead for what takes long: one at a time.
func (n *Node) scan(ctx context.Context, at uint32, f func(*shard.Shard)) error {
	select {
	case n.listing <- struct{}{}:
		defer func() { <-n.listing }()
	case <-ctx.Done():
		err := reason.New(reason.Overloaded, "try again later", "too many lists are being made")
		err.RetryAfterMs = 500
		return err
	}
	return n.lead(ctx, at, f)
}

func pageSize(size int) int {
	if size == 0 {
		return 100
	}
	return size
}

// TransactionsAt is a shard's part of a list: one more than fit on a page, if there are.
func (n *Node) TransactionsAt(ctx context.Context, at uint32, q ListQuery) ([]Transaction, error) {
	var after txnid.ID
	if q.PageToken != "" {
		var err error
		if after, err = txnid.Parse(q.PageToken); err != nil {
			return nil, notAToken(q.PageToken)
		}
	}
	match, ok := matcher(q)
	if !ok {
		return nil, reason.New(reason.InvalidField,
			"active, preparing, committing, committed, aborting, aborted, in_doubt or hazard", "state %q is not known", q.State)
	}
	var views []*shard.View
	err := n.scan(ctx, at, func(sh *shard.Shard) { views = sh.List(after, pageSize(q.PageSize)+1, match) })
	list := make([]Transaction, len(views))
	for i, v := range views {
		list[i] = convert(v)
	}
	return list, err
}

// LocksAt is a shard's part of a list of locks: one more than fit on a page, if there are.
func (n *Node) LocksAt(ctx context.Context, at uint32, q LockQuery) ([]Lock, error) {
	from := ""
	if q.PageToken != "" {
		p, err := parseLockPlace(q.PageToken)
		if err != nil {
			return nil, err
		}
		from = p.from(at)
	}
	whole := q.Service // what is asked for, and all below it
	if q.Key != "" && q.Key != WholeService {
		whole += "/" + q.Key
	}
	within := func(key string) bool {
		return whole == "" || key == whole || q.Key != WholeService && strings.HasPrefix(key, whole+"/")
	}
	match := func(key string, waiters int) bool {
		return (!q.Waited || waiters > 0) && (within(key) || strings.HasPrefix(whole, key+"/"))
	}
	var list []Lock
	size := pageSize(q.PageSize) + 1
	err := n.scan(ctx, at, func(sh *shard.Shard) {
		for _, l := range sh.State().Locks(from, size+lock.MaxKeySegments, match) {
			if !within(l.Key) && !covers(&l) {
				continue
			}
			service, key, _ := strings.Cut(l.Key, "/")
			list = append(list, Lock{
				Service: service, Key: key, Shard: at, Holders: holders(sh, l.Holders, false), Waiters: holders(sh, l.Waiters, true),
			})
		}
	})
	return list[:min(size, len(list))], err
}

// covers reports whether somebody holds, or waits for, more than intentions there: who
// wants a key below it may have to wait.
func covers(l *lock.Node) bool {
	more := func(h lock.Holder) bool { return h.Mode != lock.IS && h.Mode != lock.IX }
	return slices.ContainsFunc(l.Holders, more) || slices.ContainsFunc(l.Waiters, more)
}

// DeadlocksAt is a shard's part of the latest cycles of waiting that were broken.
func (n *Node) DeadlocksAt(ctx context.Context, at uint32) ([]Deadlock, error) {
	var list []Deadlock
	err := n.lead(ctx, at, func(sh *shard.Shard) {
		for _, d := range sh.Deadlocks() {
			out := Deadlock{At: unixMs(d.AtMs), Shard: at, Victim: d.Victim.String(), Restarted: d.Restarted}
			for _, w := range d.Cycle {
				service, key, _ := strings.Cut(w.Key, "/")
				out.Cycle = append(out.Cycle, CycleWait{Transaction: w.Owner.String(), Service: service, Key: key, Mode: w.Mode.String(), WaitsFor: w.For.String()})
			}
			list = append(list, out)
		}
	})
	return list, err
}

// ServicesAt is the registry, of shard 0, in order of names; of one name, if it is given.
// Open transactions are not counted yet.
func (n *Node) ServicesAt(ctx context.Context, name string) ([]Service, error) {
	var list []Service
	err := n.lead(ctx, 0, func(sh *shard.Shard) {
		for _, v := range sh.State().Services() {
			if name == "" || v.Name == name {
				list = append(list, describeService(&shard.ServiceView{Service: *v}))
			}
		}
	})
	return list, err
}

// OpenAt counts a shard's open transactions at services.
func (n *Node) OpenAt(ctx context.Context, at uint32, services []string) ([]int, error) {
	open := make([]int, len(services))
	err := n.lead(ctx, at, func(sh *shard.Shard) {
		for i, name := range services {
			open[i] = sh.State().OpenAt(name)
		}
	})
	return open, err
}

// holders tells since when, where that is known: an interactive transaction may have got
// each of its keys at another time, and what one of another home has is told there.
func holders(sh *shard.Shard, list []lock.Holder, waiting bool) []LockHolder {
	out := make([]LockHolder, len(list))
	for i, h := range list {
		out[i] = LockHolder{Transaction: h.Owner.String(), Mode: h.Mode.String(), Age: unixMs(h.AtMs)}
		if waiting {
			out[i].Since = unixMs(sh.BlockedSinceMs(h.Owner))
		} else if t := sh.State().Get(h.Owner); t != nil && !t.Interactive {
			out[i].Since = unixMs(t.GrantedMs)
		}
	}
	return out
}
