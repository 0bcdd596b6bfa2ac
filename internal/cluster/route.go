package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/peer"
	"github.com/assent-tx/assent/internal/reason"
)

// leader is the member that leads a shard, as far as this node knows; empty: none.
func (c *Cluster) leader(shard uint32) string {
	r := c.running.Load()
	if r == nil {
		return ""
	}
	if r.node.Shard(shard).Leading {
		return c.self.Member
	}
	if c.cfg.Port == nil {
		return ""
	}
	// The log's own word is the latest, where this node has a replica.
	if m := r.log.Group(shard).Leader(); m != "" && m != c.self.Member && c.reachable(m) {
		return m
	}
	return c.heardLeader(shard)
}

// forward is a request under way at another node. It is given up when that node does
// not lead any more: if it hangs, nothing else would tell.
type forward struct {
	shard  uint32
	to     string
	via    string // who hands it on, if anybody does
	cancel context.CancelFunc
}

// Pauses between the tries of one request, and what it may take if it names no time.
const (
	maxTime    = 10 * time.Minute
	firstPause = 5 * time.Millisecond
	maxPause   = 200 * time.Millisecond
)

// at executes a request at the leader of a shard: there by the handler called name, here
// by local. It is repeated while that may help: the request names what it is about, so
// it is executed once.
func at[Q, A any](ctx context.Context, c *Cluster, shard uint32, name string, request Q, local func(context.Context, *node.Node, Q) (A, error)) (A, error) {
	var answer A
	r := c.running.Load()
	if r == nil {
		return answer, notStarted()
	}
	if shard >= r.node.Shards() {
		return answer, reason.New(reason.InvalidField, "", "there is no shard %d", shard)
	}
	if _, ok := ctx.Deadline(); !ok { // whoever asks sets one; nothing is repeated for ever
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, maxTime)
		defer cancel()
	}
	var patience time.Time // of a request that finds no leader
	taken := false         // it may have been executed
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		changed := c.changes()
		leader := c.leader(shard)
		var err error
		switch leader {
		case "":
			err = c.noLeader(shard, leader)
		case c.self.Member:
			answer, err = local(ctx, r.node, request)
		default:
			answer, err = remote[Q, A](ctx, c, shard, leader, name, request)
		}
		again, unsure := mayHelp(err)
		if !again && taken {
			err = afterLostTry(name, err)
		}
		if !again {
			if leader != c.self.Member {
				node.NoteForwarding(ctx, nameOf(leader))
			}
			return answer, err
		}
		taken = taken || unsure
		now := time.Now()
		if leader != "" && leader != c.self.Member || patience.IsZero() {
			patience = now.Add(c.cfg.LeaderPatience)
		}
		if ctx.Err() != nil || now.After(patience) || c.ctx.Err() != nil || c.cfg.Port == nil && r.node.Stopping() {
			return answer, c.gaveUp(shard, leader, taken, err)
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-timer.C:
		case <-changed:
			pause = firstPause
		case <-ctx.Done():
		case <-c.ctx.Done():
		}
		timer.Stop()
	}
}

// afterLostTry is what to tell of a refusal when an earlier try of the request has no answer:
// a client takes a refusal for the word that nothing was changed. Those that come from the
// transaction's record, or from its id, hold for that try, too; others say nothing of it.
func afterLostTry(name string, err error) error {
	var refused *reason.Error
	if !errors.As(err, &refused) {
		return err
	}
	switch name {
	case "submit", "begin", "enlist", "commit", "rollback", "resolve", "put-service", "delete-service", "treat-member":
	default: // it changes nothing, or is a part of a request that looks at what there is
		return err
	}
	switch refused.Code {
	case reason.InvalidID, reason.IDConflict, reason.StepConflict, reason.NotInteractive, reason.CommitAsked, reason.AlreadyCommitted, reason.OnePhasePending:
		return err
	}
	unknown := reason.New(reason.OutcomeUnknown, "send the same request again: it is executed once", "%s; an earlier try of the request has no answer", refused.Message)
	unknown.RetryAfterMs = 200
	return unknown
}

// mayHelp reports whether a request is worth repeating, and whether it may have been
// executed.
func mayHelp(err error) (again, taken bool) {
	var refused *reason.Error
	switch {
	case err == nil:
		return false, false
	case errors.Is(err, peer.ErrUnreachable):
		return true, true // nobody knows
	case !errors.As(err, &refused):
		return false, false
	}
	return refused.Code == reason.OutcomeUnknown || refused.Code == reason.NotReady || refused.Code == reason.NotLeader, refused.Code == reason.OutcomeUnknown
}

// gaveUp is the answer to a request that could not be executed.
func (c *Cluster) gaveUp(shard uint32, leader string, taken bool, last error) error {
	var refused *reason.Error
	if errors.As(last, &refused) && refused.Code == reason.OutcomeUnknown {
		return refused
	}
	e := c.noLeader(shard, leader)
	if taken {
		e.Code, e.Hint = reason.OutcomeUnknown, "send the same request again: it is executed once"
		e.Message = fmt.Sprintf("the leader of shard %d did not answer: %v", shard, last)
	}
	return e
}

// noteLeaders keeps who leads, for when nobody is reached any more.
func (c *Cluster) noteLeaders(r *running) {
	for i := range r.node.Shards() {
		if leader := c.leader(i); leader != "" {
			c.mu.Lock()
			c.led[i] = leader
			c.mu.Unlock()
		}
	}
}

// lastLeader is who was known last to lead a shard.
func (c *Cluster) lastLeader(shard uint32) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.led[shard]
}

// noLeader names the leader that is not reached, if one is known.
func (c *Cluster) noLeader(shard uint32, leader string) *reason.Error {
	e := reason.New(reason.NotReady, "try again, or at another node: this one may be cut off from the majority", "shard %d has no leader that this node reaches", shard)
	e.RetryAfterMs = 1000
	if leader == "" {
		leader = c.lastLeader(shard)
	}
	if leader != "" && leader != c.self.Member {
		e.Details = map[string]string{"leader": nameOf(leader)}
		if m := c.book.get(leader); m != nil && m.HTTP != "" {
			e.Details["leader_http"] = m.HTTP
		}
	}
	return e
}

// envelope is an answer between nodes.
type envelope[A any] struct {
	Error  *reason.Error `json:"error,omitempty"`
	Answer A             `json:"answer"`
}

func remote[Q, A any](ctx context.Context, c *Cluster, shard uint32, to, name string, request Q) (A, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &forward{shard, to, c.via(to), cancel}
	c.mu.Lock()
	c.forwards[f] = struct{}{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.forwards, f)
		c.mu.Unlock()
	}()
	answer, err := call[Q, A](ctx, c, to, name, shard, request)
	switch {
	case err == nil:
		c.cfg.Forwarded("answered")
	case errors.Is(err, peer.ErrUnreachable):
		c.cfg.Forwarded("unreachable")
	default:
		c.cfg.Forwarded("refused")
	}
	return answer, err
}

// question is a request between nodes.
type question[Q any] struct {
	Shard   uint32 `json:"shard"`
	Request Q      `json:"request"`
}

func call[Q, A any](ctx context.Context, c *Cluster, to, name string, shard uint32, request Q) (A, error) {
	var answer envelope[A]
	body, err := c.send(ctx, to, name, encode(question[Q]{shard, request}))
	if err != nil {
		return answer.Answer, err
	}
	if err := decode(body, &answer); err != nil {
		return answer.Answer, fmt.Errorf("%w: %w: %w", peer.ErrUnreachable, errNotAnswer, err)
	}
	if answer.Error != nil {
		return answer.Answer, answer.Error
	}
	return answer.Answer, nil
}

// giveUpForwards ends requests under way at nodes that no longer lead, or on a way that has
// become another.
func (c *Cluster) giveUpForwards() {
	c.mu.Lock()
	var under []*forward
	for f := range c.forwards {
		under = append(under, f)
	}
	c.mu.Unlock()
	for _, f := range under {
		if now := c.leader(f.shard); now != "" && now != f.to || !c.reachable(f.to) || c.via(f.to) != f.via {
			f.cancel()
		}
	}
}
