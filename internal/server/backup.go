package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/assent-tx/assent/internal/backup"
	"github.com/assent-tx/assent/internal/node"
	"github.com/assent-tx/assent/internal/reason"
)

// backupPath is REST only: a file, not a message.
const backupPath = "/v1/backup"

// cutOffError is one behind the first byte of the answer, when no status can be told any
// more: the client sees fewer bytes than were announced, and a file without its end.
type cutOffError struct{ error }

func (s *Server) backupHandler() http.Handler {
	m := s.meters.of("rest", "Backup")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		err := s.sendBackup(w, r)
		if err == nil {
			m.done(begin, nil)
			return
		}
		p := problemOf(err)
		m.done(begin, &p)
		var cut cutOffError
		if !errors.As(err, &cut) {
			s.refuse(w, r, &p)
			return
		}
		s.log.Warn("a backup was cut off", "error", err)
		panic(http.ErrAbortHandler) // closes the connection
	})
}

func (s *Server) sendBackup(w http.ResponseWriter, r *http.Request) error {
	if err := s.crossOrigin.Check(r); err != nil {
		return reason.New(reason.CrossOrigin, "call the API from a program, or from a page of the same origin", "a web page of another origin sent this request")
	}
	leave, err := s.admission.enter(query, 0)
	if err != nil {
		return err
	}
	defer leave()
	asked, err := s.askedTimeout(r)
	if err != nil {
		return err
	}
	if _, err := readQuery(r.URL.RawQuery, nil); err != nil {
		return err
	}
	if asked == 0 {
		asked = s.limits.MaxTimeout
	}
	ctx, cancel := s.limits.deadline(r.Context(), asked)
	defer cancel()
	if r.Method == http.MethodHead { // nothing is captured for who wants no body
		w.Header()["Content-Type"] = binaryContentType
		return nil
	}
	b, err := s.coordinator.Backup(ctx)
	if err != nil {
		return err
	}
	defer b.Release()
	head := backup.Header{
		Cluster: b.Cluster, Incarnation: b.Incarnation, Shards: uint32(len(b.Sizes)), Version: s.version, TakenAt: time.Now().UTC().Truncate(time.Millisecond),
	}
	size, err := backup.Size(head, b.Sizes)
	if err != nil {
		return err
	}
	h := w.Header()
	h["Content-Type"] = binaryContentType
	h["X-Content-Type-Options"] = noSniff
	h["Cache-Control"] = noStore
	h["Content-Length"] = []string{strconv.FormatInt(size, 10)}
	h["Content-Disposition"] = []string{fmt.Sprintf("attachment; filename=%q", "assent-"+head.TakenAt.Format("20060102T150405Z")+".backup")}
	if err := writeBackup(ctx, &pacedWriter{w, s.limits.WriteTimeout}, head, b); err != nil {
		return cutOffError{err}
	}
	return nil
}

func writeBackup(ctx context.Context, to io.Writer, head backup.Header, b *node.Backup) error {
	w, err := backup.NewWriter(to, head)
	if err != nil {
		return err
	}
	for i, size := range b.Sizes {
		err := w.Part(size, func(put func([]byte) error) error { return b.Part(ctx, uint32(i), put) })
		if err != nil {
			return err
		}
	}
	return w.Close()
}

var binaryContentType = []string{"application/octet-stream"}

// pacedWriter gives every piece of a long answer its own time.
type pacedWriter struct {
	http.ResponseWriter
	timeout time.Duration
}

func (p *pacedWriter) Write(b []byte) (int, error) {
	_ = http.NewResponseController(p.ResponseWriter).SetWriteDeadline(time.Now().Add(p.timeout)) // not supported by every ResponseWriter
	return p.ResponseWriter.Write(b)
}
