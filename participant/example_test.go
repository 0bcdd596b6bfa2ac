package participant_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"

	"github.com/assent-tx/assent/participant"
)

// seats sells seats: one operation takes one seat, {"seat":"12A","guest":"Ada"}.
type seats struct{}

type booking struct{ Seat, Guest string }

// Prepare sets the seat aside. Whatever it returns is recorded with what it wrote,
// in one local transaction.
func (seats) Prepare(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
	for _, op := range b.Operations {
		var want booking
		if err := json.Unmarshal(op, &want); err != nil {
			return nil, participant.No("not a booking")
		}
		res, err := tx.ExecContext(ctx, `UPDATE seat SET held_by = ? WHERE name = ? AND held_by IS NULL AND guest IS NULL`, b.Transaction, want.Seat)
		if err != nil {
			return nil, err // not a vote: asked again
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return nil, participant.No("seat " + want.Seat + " is taken")
		}
	}
	return nil, nil
}

// Commit gives the seat to the guest. The branch carries its operations in every phase.
func (seats) Commit(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	for _, op := range b.Operations {
		var want booking
		if err := json.Unmarshal(op, &want); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE seat SET held_by = NULL, guest = ? WHERE name = ? AND held_by = ?`, want.Guest, want.Seat, b.Transaction); err != nil {
			return err
		}
	}
	return nil
}

// Rollback sets it free again.
func (seats) Rollback(ctx context.Context, tx *sql.Tx, b participant.Branch) error {
	_, err := tx.ExecContext(ctx, `UPDATE seat SET held_by = NULL WHERE held_by = ?`, b.Transaction)
	return err
}

func Example() {
	dir, err := os.MkdirTemp("", "seats")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "seats.db")+
		"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(5000)")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
	if _, err := db.Exec(`CREATE TABLE seat (name TEXT PRIMARY KEY, held_by TEXT, guest TEXT); INSERT INTO seat (name) VALUES ('12A')`); err != nil {
		fmt.Println(err)
		return
	}

	p, err := participant.New(context.Background(), participant.Config{
		Service: "seats", DB: db, Dialect: participant.SQLite(), Handler: seats{},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()

	mux := http.NewServeMux()
	mux.Handle("/assent/", p.Handler())
	server := httptest.NewServer(mux)
	defer server.Close()
	// In a service: p.Register(ctx, "http://127.0.0.1:7070", "http://seats.internal:8080/assent").

	// What the coordinator does:
	ask := func(phase, fields string) {
		body := `{"transaction":"0197b0c4-8000-7000-8000-000000000001","branch":1,"service":"seats","phase":"` + phase + `","attempt":1,"term":1,"token":""` + fields + `}`
		resp, err := http.Post(server.URL+"/assent/"+phase, "application/json", strings.NewReader(body))
		if err != nil {
			fmt.Println(err)
			return
		}
		defer resp.Body.Close()
		var answer json.RawMessage
		err = json.NewDecoder(resp.Body).Decode(&answer)
		fmt.Println(phase, resp.StatusCode, string(answer), err)
	}
	payload := json.RawMessage(`{"seat":"12A","guest":"Ada"}`)
	operations := `,"operations":[{"payload":` + string(payload) + `}],"count":1,"digest":"` + participant.Digest([]json.RawMessage{payload}) + `"`
	ask("prepare", operations)
	ask("prepare", operations) // a duplicate: the same vote, no second hold
	ask("commit", "")
	ask("rollback", "") // too late
	http.DefaultClient.CloseIdleConnections()
	// Output:
	// prepare 200 {"vote":"yes"} <nil>
	// prepare 200 {"vote":"yes"} <nil>
	// commit 200 {"outcome":"committed"} <nil>
	// rollback 409 {"outcome":"committed"} <nil>
}
