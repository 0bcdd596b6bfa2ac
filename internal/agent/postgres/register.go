package postgres

import (
	"context"

	"github.com/assent-tx/assent/participant"
)

func (a *Agent) registration() participant.Registration {
	r := a.part.Registration(a.cfg.BaseURL)
	r.RequireKeys = a.cfg.RequireKeys
	limits := a.cfg.Limits
	r.Limits = &limits
	return r
}

func (a *Agent) keepRegistered(ctx context.Context) error {
	return participant.KeepRegistered(ctx, a.coord.nodes, a.cfg.Service, a.registration(), 0, func() {
		a.log.Info("registered", "coordinator", a.coord.nodes.String(), "at", a.cfg.BaseURL)
	})
}
