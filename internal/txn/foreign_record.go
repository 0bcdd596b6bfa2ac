package txn

// The records and the snapshot of locks over several shards; what they mean is in
// foreign.go.

// AppendLocked appends the command.
func AppendLocked(dst []byte, c Locked) []byte {
	dst = append(append(dst, byte(kindLocked)), c.ID[:]...)
	return uv(uv(uv(dst, uint64(c.Shard)), uint64(c.Request)), c.Token)
}

// AppendYield appends the command.
func AppendYield(dst []byte, c Yield) []byte {
	dst = append(append(dst, byte(kindYield)), c.ID[:]...)
	return uv(uv(dst, uint64(c.Shard)), uint64(c.Request))
}

// AppendClaim appends the command.
func AppendClaim(dst []byte, c *ClaimCmd) []byte {
	dst = append(append(dst, byte(kindClaim)), c.ID[:]...)
	dst = flag(uv(uv(dst, c.AgeMs), uint64(c.Request)), c.Whole)
	return appendNeeds(dst, c.Needs)
}

// AppendRelease appends the command.
func AppendRelease(dst []byte, c Release) []byte {
	dst = append(append(dst, byte(kindRelease)), c.ID[:]...)
	return uv(flag(str(dst, c.Service), c.Waiting), c.Token)
}

// AppendLevel appends: from here on records and rules of this level are in force.
func AppendLevel(dst []byte, level uint32) []byte {
	return uv(append(dst, byte(kindLevel)), uint64(level))
}

// AppendDrainHere appends: this shard takes no new branches of a service's generation.
func AppendDrainHere(dst []byte, service string, generation uint64) []byte {
	return uv(str(append(dst, byte(kindDrainHere)), service), generation)
}

func appendParts(dst []byte, parts []LockPart) []byte {
	dst = uv(dst, uint64(len(parts)))
	for i := range parts {
		dst = appendNeeds(uv(dst, uint64(parts[i].Shard)), parts[i].Needs)
	}
	return dst
}

// parts reads what other shards keep of a lock set.
func (r *reader) parts() []LockPart {
	n := r.count(MaxShards, "lock parts")
	parts := make([]LockPart, 0, n)
	for range n {
		p := LockPart{Shard: r.uint32("shard"), Needs: r.needs()}
		if len(p.Needs) == 0 || len(parts) > 0 && parts[len(parts)-1].Shard >= p.Shard {
			r.fail("lock parts out of order, or empty")
			return nil
		}
		parts = append(parts, p)
	}
	return parts
}

func (r *reader) claim() *ClaimCmd {
	return &ClaimCmd{ID: r.id(), AgeMs: r.uint(), Request: r.uint32("request"), Whole: r.bool(), Needs: r.needs()}
}

func (s *State) applyForeign(k kind, r *reader) {
	switch k { //nolint:exhaustive // applyOne hands over these kinds and no others
	case kindLocked:
		if c := (Locked{ID: r.id(), Shard: r.uint32("shard"), Request: r.uint32("request"), Token: r.uint()}); r.err == nil {
			s.applyLocked(c)
		}
	case kindYield:
		if c := (Yield{ID: r.id(), Shard: r.uint32("shard"), Request: r.uint32("request")}); r.err == nil {
			s.applyYield(c)
		}
	case kindClaim:
		if c := r.claim(); r.err == nil {
			if len(c.Needs) == 0 {
				r.fail("claim of nothing")
				return
			}
			s.applyClaim(c)
		}
	case kindRelease:
		if c := (Release{ID: r.id(), Service: r.string(), Waiting: r.bool(), Token: r.uint()}); r.err == nil {
			s.applyRelease(c)
		}
	case kindDrainHere:
		if name, generation := r.string(), r.uint(); r.err == nil {
			s.applyDrainHere(name, generation)
		}
	}
}

// ---- snapshot

func appendForeign(dst []byte, t *Txn) []byte {
	dst = uv(dst, uint64(len(t.Foreign)))
	for i := range t.Foreign {
		f := &t.Foreign[i]
		dst = flag(uv(uv(uv(dst, uint64(f.Shard)), uint64(f.Request)), uint64(f.Keys)), f.Granted)
		dst = appendNeeds(dst, f.Needs)
		dst = uv(dst, uint64(len(f.Services)))
		for _, name := range f.Services {
			dst = str(dst, name)
		}
	}
	return dst
}

func (r *reader) foreign(t *Txn, intern func(string) string) {
	for n := r.count(MaxShards, "foreign parts"); n > 0 && r.err == nil; n-- {
		f := Foreign{Shard: r.uint32("shard"), Request: r.uint32("request"), Keys: r.uint32("keys"), Granted: r.bool(), Needs: r.needs()}
		for n := r.count(MaxNeeds, "services"); n > 0 && r.err == nil; n-- {
			f.Services = append(f.Services, intern(r.string()))
		}
		t.Foreign = append(t.Foreign, f)
	}
}

func (s *State) appendClaims(dst []byte) []byte {
	ids := s.ForeignClaims()
	dst = uv(dst, uint64(len(ids)))
	for _, id := range ids {
		f := s.claims[id]
		dst = append(dst, id[:]...)
		dst = uv(uv(uv(dst, f.AgeMs), uint64(f.Request)), f.Token)
		dst = flag(flag(flag(flag(dst, f.Whole), f.Granted), f.Asked), f.Over)
	}
	return dst
}

func (s *State) restoreClaims(r *reader) {
	for n := r.count(len(r.b), "foreign claims"); n > 0 && r.err == nil; n-- {
		f := &Claim{ID: r.id(), AgeMs: r.uint(), Request: r.uint32("request"), Token: r.uint(), Whole: r.bool(), Granted: r.bool(), Asked: r.bool(), Over: r.bool()}
		s.claims[f.ID] = f
	}
}
