package postgres

import (
	"context"
	"errors"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// trip is one round trip to the server, as bytes. What is sent is known, and what comes
// back matters only by its errors and its last command tag; so nothing is described,
// no result is built, and no goroutine watches the context.
type trip struct {
	buf    []byte
	err    error // of an encoding
	bind   pgproto3.Bind
	strict bool // a warning is an error
}

var trips = sync.Pool{New: func() any { return new(trip) }}

const maxPooledTrip = 64 << 10

func newTrip() *trip { return trips.Get().(*trip) } //nolint:forcetypeassert // nothing else is put in

// free ends the use of a trip.
func (t *trip) free() {
	if cap(t.buf) > maxPooledTrip {
		t.buf = nil
	}
	t.buf, t.err, t.strict = t.buf[:0], nil, false
	t.bind = pgproto3.Bind{}
	trips.Put(t)
}

func (t *trip) put(m pgproto3.FrontendMessage) {
	if t.err == nil {
		t.buf, t.err = m.Encode(t.buf)
	}
}

var (
	executeAll = &pgproto3.Execute{}
	endTrip    = &pgproto3.Sync{}
)

// prepared executes a statement of the session.
func (t *trip) prepared(name string, params [][]byte) {
	t.bind.PreparedStatement, t.bind.Parameters = name, params
	t.put(&t.bind)
	t.put(executeAll)
}

// once executes a statement that is used once.
func (t *trip) once(sql string) {
	t.put(&pgproto3.Parse{Query: sql})
	t.prepared("", nil)
}

// end closes what goes as one.
func (t *trip) end() { t.put(endTrip) }

// alone is the whole trip of a statement that must be alone.
// A warning is an error then: a time limit that ends the wait for a standby is no more.
func (t *trip) alone(sql string) {
	t.put(&pgproto3.Query{String: sql})
	t.strict = true
}

// run makes the trip and returns the tag of the last command. After an error of the
// server's the session may be in an aborted transaction; after any other one, and when
// ctx ends, it is closed.
func (t *trip) run(ctx context.Context, pg *pgconn.PgConn) (tag string, err error) {
	if t.err != nil {
		return "", t.err
	}
	// A closed connection ends the write and the read below; pgx then asks the server to
	// cancel what it is at.
	stop := context.AfterFunc(ctx, func() { _ = pg.Conn().Close() })
	defer func() {
		if !stop() {
			drop(pg)
		}
	}()
	if _, err := pg.Conn().Write(t.buf); err != nil {
		drop(pg)
		return "", err
	}
	for {
		// Without a context of its own: see stop.
		msg, lost := pg.ReceiveMessage(context.Background()) //nolint:contextcheck // as above
		if lost != nil {
			drop(pg)
			return "", lost
		}
		switch msg := msg.(type) {
		case *pgproto3.CommandComplete:
			tag = string(msg.CommandTag)
		case *pgproto3.NoticeResponse:
			if t.strict && msg.SeverityUnlocalized == "WARNING" { // done here, and on no standby
				err = errors.New(msg.Message)
			}
		case *pgproto3.ErrorResponse:
			err = pgconn.ErrorResponseToPgError(msg)
		case *pgproto3.ReadyForQuery:
			return tag, err
		}
	}
}

// drop closes a session that nobody may use again; the server ends what it was at.
func drop(pg *pgconn.PgConn) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = pg.Close(ended) // at once; it is closed or broken, mostly
}
