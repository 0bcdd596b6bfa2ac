// Package placement decides what a cluster should do next.
package placement

import "slices"

// Member is a node.
type Member struct {
	ID       string
	Up       bool
	Draining bool
	Gone     bool
}

// Shard is where a shard is.
type Shard struct {
	ID                         uint32
	Voters, Learners, CaughtUp []string
	Leader                     string
	Want                       []string
}

// View is a cluster.
type View struct {
	Members       []Member
	Shards        []Shard
	Replicas      int
	RegistryShard uint32
}

// Step is one of the types below.
type Step interface{ step() }

// Place, AddLearner, Promote, Remove and Transfer are steps.
type (
	Place struct {
		Shard  uint32
		Voters []string
	}
	AddLearner struct {
		Shard  uint32
		Member string
	}
	Promote struct {
		Shard  uint32
		Member string
	}
	Remove struct {
		Shard  uint32
		Member string
	}
	Transfer struct {
		Shard uint32
		To    string
	}
)

func (Place) step()      {}
func (AddLearner) step() {}
func (Promote) step()    {}
func (Remove) step()     {}
func (Transfer) step()   {}

// Next is a placeholder of the real thing.
func Next(v View) []Step {
	var steps []Step
	for _, s := range v.Shards {
		for _, m := range v.Members {
			if m.Gone || !m.Up || len(s.Voters) >= v.Replicas && s.ID != 0 || slices.Contains(s.Voters, m.ID) {
				continue
			}
			switch {
			case !slices.Contains(s.Learners, m.ID):
				steps = append(steps, AddLearner{s.ID, m.ID})
			case slices.Contains(s.CaughtUp, m.ID) && len(s.Voters) < v.Replicas:
				steps = append(steps, Promote{s.ID, m.ID})
			default:
				continue
			}
			break
		}
	}
	return steps
}
