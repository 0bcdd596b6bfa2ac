package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/assent-tx/assent/internal/server"
)

// locksCmd is `assent locks`.
type locksCmd struct {
	clientFlags
	Service   string `placeholder:"NAME" help:"Of this service."`
	Key       string `placeholder:"KEY" help:"This key of the service, all below it, and what is locked above it; / is the whole service."`
	Waited    bool   `help:"Only those that somebody waits for."`
	PageSize  int    `default:"100" help:"Keys on a page, at most 1000."`
	PageToken string `placeholder:"TOKEN" help:"Go on where the previous page ended."`
}

// Help is shown by --help.
func (*locksCmd) Help() string {
	return `Who holds which key, and who waits for it; who is served first comes first. Modes: S
and X are shared and exclusive, U is update (read now, write later); IS, IX and SIX
stand on the segments above a key.

  assent locks --waited
  assent locks --service bank-a --key accounts/1`
}

// Run lists one page.
func (c *locksCmd) Run(ctx context.Context, std *streams) error {
	q := url.Values{"page_size": {strconv.Itoa(c.PageSize)}}
	for name, value := range map[string]string{"service": c.Service, "key": c.Key, "page_token": c.PageToken} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if c.Waited {
		q.Set("waited", "true")
	}
	answer, err := c.client().do(ctx, http.MethodGet, "/v1/locks?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	return show(&c.clientFlags, std.out, answer, locksText)
}

func locksText(out io.Writer, list *server.LockList) {
	if len(list.Locks) == 0 {
		fmt.Fprintln(out, "no such locks")
		return
	}
	w := table(out, "SERVICE", "KEY", "", "MODE", "TRANSACTION", "AGE SINCE", "HERE SINCE")
	at := func(t server.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.Format(time.RFC3339)
	}
	for i := range list.Locks {
		l := &list.Locks[i]
		key := plain(l.Key)
		if key == "" {
			key = "(all of it)"
		}
		for _, h := range l.Holders {
			row(w, l.Service, key, "holds", h.Mode, h.Transaction, at(h.Age), at(h.Since))
		}
		for _, h := range l.Waiters {
			row(w, l.Service, key, "waits", h.Mode, h.Transaction, at(h.Age), at(h.Since))
		}
	}
	_ = w.Flush() // into memory
	if list.NextPageToken != "" {
		fmt.Fprintf(out, "\nmore: --page-token %s\n", shellWord(list.NextPageToken))
	}
}

// deadlocksCmd is `assent deadlocks`.
type deadlocksCmd struct {
	clientFlags
}

// Help is shown by --help.
func (*deadlocksCmd) Help() string {
	return `The latest cycles of waiting, the latest first: who gave way, and who waited for whom on
which key. The youngest gives way: an interactive transaction aborts (DEADLOCK), one that
was submitted as a whole gives back its locks and queues again, unseen by its client.`
}

// Run lists them.
func (c *deadlocksCmd) Run(ctx context.Context, std *streams) error {
	answer, err := c.client().do(ctx, http.MethodGet, "/v1/deadlocks", nil)
	if err != nil {
		return err
	}
	return show(&c.clientFlags, std.out, answer, deadlocksText)
}

func deadlocksText(out io.Writer, list *server.DeadlockList) {
	if len(list.Deadlocks) == 0 {
		fmt.Fprintln(out, "no deadlocks since this coordinator took over")
		return
	}
	for i := range list.Deadlocks {
		d := &list.Deadlocks[i]
		how := "aborted"
		if d.Restarted {
			how = "queued again"
		}
		fmt.Fprintf(out, "%s  %s %s\n", d.At.Format(time.RFC3339), d.Victim, how)
		for _, e := range d.Cycle {
			key := strings.TrimSuffix(e.Service+"/"+e.Key, "/")
			fmt.Fprintf(out, "  %s waits for %s (%s) behind %s\n", e.Transaction, plain(key), e.Mode, e.WaitsFor)
		}
	}
}
