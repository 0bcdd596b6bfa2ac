package server

// Cluster is the answer about the cluster.
type Cluster struct {
	Cluster     string           `json:"cluster"`
	Incarnation uint64           `json:"incarnation"`
	Node        string           `json:"node"`
	Shards      uint32           `json:"shards"`
	Nodes       []ClusterNode    `json:"nodes"`
	Placement   []ShardPlacement `json:"placement"`
}

// ClusterNode is a node of the cluster.
type ClusterNode struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Peer     string `json:"peer,omitzero"`
	HTTP     string `json:"http,omitzero"`
	GRPC     string `json:"grpc,omitzero"`
	State    string `json:"state"`
	Draining bool   `json:"draining"`
	Level    uint32 `json:"level"`
}

// ShardPlacement says where a shard is.
type ShardPlacement struct {
	Shard    uint32   `json:"shard"`
	Leader   string   `json:"leader"` // empty: not known
	Term     uint64   `json:"term"`
	Voters   []string `json:"voters"`
	Learners []string `json:"learners"`
}

// TransferBody is the body of POST /v1/cluster/shards/{shard}:transfer; it may be absent.
type TransferBody struct {
	To string `json:"to,omitzero"`
}
