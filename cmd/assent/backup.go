package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/assent-tx/assent/discovery"
	"github.com/assent-tx/assent/internal/backup"
	"github.com/assent-tx/assent/internal/replog"
	"github.com/assent-tx/assent/internal/server"
	"github.com/assent-tx/assent/internal/txn"
)

// backupCmd is `assent backup`.
type backupCmd struct {
	clientFlags
	Out string `required:"" placeholder:"FILE" help:"File to write; there must be none of that name."`
}

// Help is shown by --help.
func (*backupCmd) Help() string {
	return `The state of every shard, captured at its leader while the cluster works: services, open
transactions and the outcomes that are retained. The file is checked before it gets its name.
It holds what clients submitted: keep it as safe as the data directories.

  assent backup --out assent-$(date +%F).backup

assent restore --help tells what a restored cluster does not know.`
}

// maxBackupTime bounds a backup; the server's own limit is the same.
const maxBackupTime = 10 * time.Minute

// Run backs up.
func (c *backupCmd) Run(ctx context.Context, std *streams) error {
	exists := func() error {
		if _, err := os.Lstat(c.Out); err == nil {
			return &exitError{exitUsage, fmt.Errorf("%s exists: it is not overwritten; name another file", c.Out)}
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := exists(); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(c.Out), "."+filepath.Base(c.Out)+".*.tmp") // readable by its owner alone
	if err != nil {
		return err
	}
	defer func() { _, _ = f.Close(), os.Remove(f.Name()) }() // once it has its name there is nothing left to remove
	if err := c.client().download(ctx, "/v1/backup", f); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	head, shards, err := readBackup(f)
	if err != nil {
		return &exitError{exitUnknown, fmt.Errorf("what the coordinator sent was cut off or changed on its way: %w", err)}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := exists(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), c.Out); err != nil {
		return err
	}
	if err := syncDirectory(filepath.Dir(c.Out)); err != nil {
		return err
	}
	return showBackup(std.out, c.Output, c.Out, head, shards)
}

func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// download copies the body of a good answer. It is not tried again once bytes have come.
func (c *client) download(ctx context.Context, path string, to io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, maxBackupTime+5*time.Second)
	defer cancel()
	nodes, err := discovery.New(discovery.Config{Endpoints: []string{c.flags.URL}, Static: true})
	if err != nil {
		return &exitError{exitUsage, err}
	}
	defer nodes.Close()
	hc := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }} // ctx bounds it
	defer hc.CloseIdleConnections()
	until := time.Now().Add(c.flags.RetryFor)
	for try, pause := 0, 50*time.Millisecond; ; try, pause = try+1, min(2*pause, time.Second) {
		_, err := c.once(ctx, nodes, http.MethodGet, "/healthz", nil) // finds who is there
		if urls := nodes.URLs(); err == nil && len(urls) > 0 {
			err = downloadOnce(ctx, hc, strings.TrimSuffix(urls[try%len(urls)], "/")+path, to)
		}
		var refused *refusal
		var nobody *unreachable
		if err == nil || !errors.As(err, &nobody) && !(errors.As(err, &refused) && refused.retryable()) || time.Now().Add(pause).After(until) {
			return c.explain(nodes, err)
		}
		select {
		case <-ctx.Done():
			return c.explain(nodes, err)
		case <-time.After(pause):
		}
	}
}

func downloadOnce(ctx context.Context, hc *http.Client, url string, to io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	req.Header.Set(server.TimeoutHeader, maxBackupTime.String())
	resp, err := hc.Do(req)
	if err != nil {
		return &unreachable{err}
	}
	defer func() { _ = resp.Body.Close() }() // read to its end, or given up
	if resp.StatusCode != http.StatusOK {
		answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			return &unreachable{err}
		}
		return readRefusal(resp.StatusCode, answer)
	}
	if _, err := io.Copy(to, resp.Body); err != nil {
		return &exitError{exitUnknown, fmt.Errorf("the backup was cut off: %w", err)}
	}
	return nil
}

// shardBackup is what a backup holds of a shard.
type shardBackup struct {
	Shard    uint32 `json:"shard"`
	Bytes    int    `json:"bytes"`
	Services int    `json:"services"`
	Open     int    `json:"open"`     // transactions that had not ended
	InDoubt  int    `json:"in_doubt"` // of them, those that were preparing or decided
	Hazards  int    `json:"hazards"`
}

// readBackup reads a backup to its end and makes sure that every part of it can be
// restored.
func readBackup(from io.Reader) (backup.Header, []shardBackup, error) {
	r, err := backup.NewReader(bufio.NewReaderSize(from, 1<<20))
	if err != nil {
		return backup.Header{}, nil, err
	}
	var shards []shardBackup
	for i := uint32(0); ; i++ {
		part, err := r.Next()
		if errors.Is(err, io.EOF) {
			return r.Header(), shards, nil
		}
		if err != nil {
			return r.Header(), nil, err
		}
		st, err := txn.Restore(i, r.Header().Shards, part)
		if err != nil {
			return r.Header(), nil, fmt.Errorf("shard %d: %w", i, err)
		}
		s := shardBackup{Shard: i, Bytes: len(part), Services: len(st.Services()), Open: st.Live(), Hazards: st.Hazards()}
		for _, id := range st.LiveIDs() {
			if t := st.Get(id); t.Status != txn.Active {
				s.InDoubt++
			}
		}
		shards = append(shards, s)
	}
}

func showBackup(out io.Writer, how, file string, h backup.Header, shards []shardBackup) error {
	if how == "json" {
		line, err := server.EncodeJSON(map[string]any{"file": file, "header": h, "shards": shards})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s\n", line)
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row(w, "FILE", file)
	row(w, "CLUSTER", h.Cluster)
	row(w, "INCARNATION", fmt.Sprint(h.Incarnation))
	row(w, "TAKEN AT", h.TakenAt.Format(time.RFC3339))
	row(w, "BY VERSION", plain(h.Version))
	_ = w.Flush() // reported by the table below
	fmt.Fprintln(out)
	w = table(out, "SHARD", "BYTES", "SERVICES", "OPEN", "IN DOUBT", "HAZARDS")
	for _, s := range shards {
		row(w, fmt.Sprint(s.Shard), fmt.Sprint(s.Bytes), fmt.Sprint(s.Services), fmt.Sprint(s.Open), fmt.Sprint(s.InDoubt), fmt.Sprint(s.Hazards))
	}
	return w.Flush()
}

// restoreCmd is `assent restore`.
type restoreCmd struct {
	From        string `required:"" placeholder:"FILE" help:"Backup to restore."`
	Check       bool   `help:"Only tell whether the file is sound, and what is in it."`
	Data        string `placeholder:"DIR" help:"New data directory: absent or empty."`
	Node        string `placeholder:"NAME" help:"Name of the node that begins the restored cluster; one of the lost cluster may be used again."`
	Incarnation uint32 `placeholder:"N" help:"Of the restored cluster (default: one more than the backup's). Give a higher one if a cluster was restored from this backup before."`
	Output      string `short:"o" default:"text" enum:"text,json" env:"ASSENT_OUTPUT" help:"How to answer: text or json."`
}

// Help is shown by --help.
func (*restoreCmd) Help() string {
	return `For a cluster that has lost its data, or the majority of it: a node that is lost alone is
replaced with assent cluster remove and --join. No node of the old cluster may run any more.

  assent restore --check --from FILE
  assent restore --from FILE --data DIR --node n1
  assent serve --data DIR --node n1 --peer HOST:PORT       others then join with --join

The restored cluster knows nothing of what happened after the backup: transactions that ended
since are unknown to it, and their ids are refused as expired rather than run again. Restore
the participants to the same moment, or reconcile them: docs/OPERATIONS.md, "Backup and
restore". Fencing tokens of the restored cluster are later than all of the old one.`
}

// Terms of different incarnations must not meet: participants refuse the calls of a term
// older than the latest they saw, and the backup does not know how many came after it.
const (
	termsOfIncarnation = 1 << 32
	maxIncarnation     = 1 << 20 // so that terms stay exact in JSON
)

// Run restores.
func (c *restoreCmd) Run(std *streams) error {
	if !c.Check && (c.Data == "" || c.Node == "") {
		return &exitError{exitUsage, errors.New("name --data and --node, or --check")}
	}
	f, err := os.Open(c.From)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	// To its end first: nothing is made of a file that is not whole.
	head, shards, err := readBackup(f)
	if err != nil {
		return fmt.Errorf("%s: %w", c.From, err)
	}
	if c.Check {
		return showBackup(std.out, c.Output, c.From, head, shards)
	}
	incarnation := uint64(c.Incarnation)
	if incarnation == 0 {
		incarnation = head.Incarnation + 1
	}
	if incarnation <= head.Incarnation || incarnation > maxIncarnation {
		return &exitError{exitUsage, fmt.Errorf("incarnation %d: use %d to %d", incarnation, head.Incarnation+1, maxIncarnation)}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	r, err := backup.NewReader(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return fmt.Errorf("%s: %w", c.From, err)
	}
	change := txn.Reincarnation{Incarnation: uint32(incarnation), ExpireMs: uint64(time.Now().UnixMilli())}
	if _, err := hex.Decode(change.Cluster[:], []byte(head.Cluster)); err != nil {
		return err
	}
	id, err := replog.Restore(c.Data, c.Node, replog.Restoration{
		Cluster: head.Cluster, Incarnation: incarnation, Shards: head.Shards, Term: (incarnation - 1) * termsOfIncarnation,
		Snapshot: func(shard uint32) (uint64, []byte, error) {
			part, err := r.Next()
			if err != nil {
				return 0, nil, fmt.Errorf("%s: %w", c.From, err)
			}
			data, applied, err := txn.Reincarnate(shard, head.Shards, part, change)
			if err != nil {
				return 0, nil, fmt.Errorf("%s: shard %d: %w", c.From, shard, err)
			}
			return applied, data, nil
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	return c.show(std.out, head, id, shards)
}

func (c *restoreCmd) show(out io.Writer, head backup.Header, id replog.Identity, shards []shardBackup) error {
	doubt := 0
	for i := range shards {
		doubt += shards[i].InDoubt
	}
	if c.Output == "json" {
		line, err := server.EncodeJSON(map[string]any{
			"cluster": id.Cluster, "incarnation": id.Incarnation, "member": id.Member, "data": c.Data, "taken_at": head.TakenAt, "in_doubt": doubt,
		})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s\n", line)
		return err
	}
	_, err := fmt.Fprintf(out, `restored cluster %s as incarnation %d, node %s, in %s
it is as of %s; %d transactions were in doubt then, and go on when it is served

  assent serve --data %s --node %s

What ended after that moment is unknown to it, and is not run again. Before clients come back:
docs/OPERATIONS.md, "Backup and restore".
`, id.Cluster, id.Incarnation, id.Member, c.Data, head.TakenAt.Format(time.RFC3339), doubt, c.Data, c.Node)
	return err
}
