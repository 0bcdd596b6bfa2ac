package participant_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/assent-tx/assent/participant"
)

// stock takes goods out of a warehouse: {"item":"bolt","pieces":3}. It has no
// Commit and no Rollback, since PostgreSQL holds the work until the decision.
type stock struct{}

type picking struct {
	Item   string
	Pieces int64
}

func (stock) Prepare(ctx context.Context, tx *sql.Tx, b participant.Branch) ([]json.RawMessage, error) {
	var results []json.RawMessage
	for _, op := range b.Operations {
		var p picking
		if err := json.Unmarshal(op, &p); err != nil || p.Pieces <= 0 {
			return nil, participant.No("not a picking")
		}
		var left int64
		err := tx.QueryRowContext(ctx, `UPDATE stock SET pieces = pieces - $1 WHERE item = $2 RETURNING pieces`, p.Pieces, p.Item).Scan(&left)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return nil, participant.No("no such item: " + p.Item)
		case err != nil:
			return nil, err // the server's own refusals, a CHECK (pieces >= 0) for one, are a no
		}
		result, err := json.Marshal(map[string]int64{"left": left})
		if err != nil {
			return nil, err
		}
		results = append(results, result)
	}
	return results, nil
}

// A service whose work PostgreSQL holds, commits and rolls back. The server needs
// max_prepared_transactions above 0, and a table stock.
func ExamplePostgreSQLPrepared() {
	db, err := sql.Open("pgx", os.Getenv("DATABASE_URL"))
	if err != nil {
		slog.Error("open the database", "error", err)
		return
	}
	defer db.Close()
	ctx := context.Background()
	p, err := participant.New(ctx, participant.Config{
		Service: "stock", DB: db, Dialect: participant.PostgreSQLPrepared(), Preparer: stock{},
	})
	if err != nil {
		slog.Error("start", "error", err) // says which setting of the server is wrong, and how to set it
		return
	}
	defer p.Close()
	mux := http.NewServeMux()
	mux.Handle("/assent/", p.Handler())
	go func() {
		// Tries until the coordinator takes it.
		if err := p.Register(ctx, "http://127.0.0.1:7070", "http://stock.internal:8080/assent"); err != nil {
			slog.Error("register", "error", err)
		}
	}()
	server := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	slog.Error("serve", "error", server.ListenAndServe())
}
