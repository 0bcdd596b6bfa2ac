package postgres

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/assent-tx/assent/participant"
)

// registrationCheck is how often the registration is looked at.
const registrationCheck = 30 * time.Second

func (a *Agent) registration() participant.Registration {
	r := a.part.Registration(a.cfg.BaseURL)
	r.RequireKeys = a.cfg.RequireKeys
	limits := a.cfg.Limits
	r.Limits = &limits
	return r
}

// keepRegistered registers, and again whenever the registration is missing or
// another, until ctx ends. A service that is being removed is left alone.
func (a *Agent) keepRegistered(ctx context.Context) error {
	tick := time.NewTicker(registrationCheck)
	defer tick.Stop()
	for registered := false; ; registered = a.isRegistered(ctx) {
		if !registered {
			if err := participant.RegisterAt(ctx, a.coord.nodes, a.cfg.Service, a.registration()); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return err
			}
			a.log.Info("registered", "coordinator", a.coord.nodes.String(), "at", a.cfg.BaseURL)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// isRegistered reports whether nothing has to be done. It is content with a
// coordinator that cannot be asked.
func (a *Agent) isRegistered(ctx context.Context) bool {
	var now struct {
		State        string
		HTTP         participant.Endpoints
		Capabilities []string
	}
	status, reason, err := a.coord.ask(ctx, "", http.MethodGet, "/v1/services/"+a.cfg.Service, &now)
	want := a.registration()
	switch {
	case err != nil:
		a.log.Debug("the registration cannot be looked at", "error", err)
		return true
	case status == http.StatusNotFound && reason == "NOT_FOUND":
		return false
	case status != http.StatusOK:
		return true
	case now.State == "draining":
		return true
	}
	slices.Sort(now.Capabilities)
	slices.Sort(want.Capabilities)
	return now.HTTP == want.HTTP && slices.Equal(now.Capabilities, want.Capabilities)
}
