package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/assent-tx/assent/internal/server"
)

// This file writes for people. What others wrote is quoted where it could hold
// control characters.

func table(out io.Writer, head ...string) *tabwriter.Writer {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row(w, head...)
	return w
}

func row(w io.Writer, cells ...string) {
	for i, c := range cells {
		if c == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

func optional(w io.Writer, name, value string) {
	if value != "" {
		row(w, name, value)
	}
}

// plain keeps the text of strangers on its line.
func plain(s string) string {
	for _, c := range s {
		if !unicode.IsPrint(c) { // control, or what turns the line around
			return fmt.Sprintf("%q", s)
		}
	}
	return s
}

// shellWord is a text as one word of a shell's command line.
func shellWord(s string) string {
	for _, c := range s {
		switch {
		case c < 0x80 && (unicode.IsLetter(c) || unicode.IsDigit(c)), strings.ContainsRune("-_./:@%+=,", c):
		default:
			return "'" + strings.ReplaceAll(plain(s), "'", `'\''`) + "'"
		}
	}
	return s
}

func servicePath(name string) string { return "/v1/services/" + url.PathEscape(name) }

func transactionPath(id string) string { return "/v1/transactions/" + url.PathEscape(id) }

func transactionText(out io.Writer, t *server.Transaction) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row(w, "TRANSACTION", t.ID)
	row(w, "STATE", t.State)
	if t.Abort != nil {
		row(w, "REASON", abortText(t.Abort))
	}
	if t.Hazard {
		row(w, "HAZARD", "a participant ended otherwise than decided; repair, then: assent txn resolve "+t.ID+" --note ...")
	}
	if t.WaitsFor != nil {
		row(w, "WAITS FOR", fmt.Sprintf("%s (%s), held or wanted by %s", plain(t.WaitsFor.Key), t.WaitsFor.Mode, strings.Join(t.WaitsFor.For, ", ")))
	}
	if t.Replayed {
		row(w, "REPLAYED", "the id was known: this is the earlier submission's outcome")
	}
	for _, at := range []struct {
		name string
		time server.Time
	}{{"BEGAN", t.BeganAt}, {"DECIDED", t.DecidedAt}, {"ENDED", t.EndedAt}} {
		if !at.time.IsZero() {
			row(w, at.name, at.time.Format(time.RFC3339Nano))
		}
	}
	_ = w.Flush() // into memory
	if len(t.Branches) == 0 {
		return
	}
	fmt.Fprintln(out)
	w = table(out, "BRANCH", "SERVICE", "STATE", "VOTE", "TRIES", "NOTE")
	for _, b := range t.Branches {
		row(w, b.ID, b.Service, b.State, b.Vote, fmt.Sprint(b.Attempts), branchNote(&b))
	}
	_ = w.Flush() // into memory
	for _, b := range t.Branches {
		for _, r := range b.Results {
			fmt.Fprintf(out, "\nresult of %s: %s\n", b.Service, r)
		}
	}
}

func branchNote(b *server.Branch) string {
	var notes []string
	if b.Hazard != "" {
		notes = append(notes, "says "+b.Hazard)
	}
	if b.Resolution != "" {
		notes = append(notes, "resolved: "+plain(b.Resolution))
	}
	if b.LastError != "" {
		notes = append(notes, "last error: "+plain(b.LastError))
	}
	return strings.Join(notes, "; ")
}

func abortText(a *server.Abort) string {
	text := a.Reason
	if a.Service != "" {
		text += " by " + a.Service
	}
	if a.Message != "" {
		text += ": " + plain(a.Message)
	}
	return text
}
