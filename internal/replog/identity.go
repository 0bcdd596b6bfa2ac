package replog

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync/atomic"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// dirFormat is the version of the directory's layout, of the keys and entries in
// the database and of the snapshot files.
const dirFormat = 1

const (
	identityName = "identity.json"
	lockName     = "LOCK"
	dbName       = "log"
	snapshotsDir = "snapshots"
)

// identity says whose data a directory holds. It is durable before anything else
// is written, and never changes but for the incarnation.
type identity struct {
	Format  uint32 `json:"format"`
	Cluster string `json:"cluster"` // 32 hexadecimal digits, random
	// Incarnation is raised when a cluster is restored from a backup, so that
	// participants can refuse the older one.
	Incarnation uint64 `json:"incarnation"`
	Node        string `json:"node"`
	// Member is what other nodes know this directory by: the node's name and a random
	// part, so that a node that lost its directory is another member and cannot vote
	// as if it still had what it once acknowledged. Absent in directories of the
	// first release: there it is the name.
	Member string `json:"member,omitempty"`
	Shards uint32 `json:"shards"` // 0: not part of a cluster yet
	// Founders are the members that the groups of a new cluster began with; none:
	// this one alone, or (Joined) an existing cluster takes it in.
	Founders []string `json:"founders,omitempty"`
	Replicas int      `json:"replicas,omitempty"` // voters of a group at the founding
	Joined   bool     `json:"joined,omitempty"`
	// Nonce marks this node's notes in write-ahead files, so that no payload can
	// pass for one. It leaves the directory nowhere.
	Nonce string `json:"nonce"`
}

// Identity says whose data a directory holds.
type Identity struct {
	Node        string
	Member      string
	Cluster     string // empty: not part of a cluster yet
	Incarnation uint64
	Shards      uint32
	Founders    []string // members that the groups began with; none: this one alone, or Joined
	Replicas    int
	Joined      bool
}

func (id *identity) member() string {
	if id.Member == "" {
		return id.Node
	}
	return id.Member
}

func (id *identity) public() Identity {
	return Identity{Node: id.Node, Member: id.member(), Cluster: id.Cluster, Incarnation: id.Incarnation, Shards: id.Shards, Founders: id.Founders, Replicas: id.Replicas, Joined: id.Joined}
}

// voters are the members that a group of a new cluster begins with, and learners who
// only follow it: the registry's shard is followed by everybody.
func (id *identity) voters(shard uint32) (voters, learners []string) {
	n := len(id.Founders)
	if n == 0 {
		return []string{id.member()}, nil
	}
	replicas := id.Replicas
	if replicas <= 0 || replicas > n {
		replicas = n
	}
	for i := range n {
		m := id.Founders[(int(shard)+i)%n]
		switch {
		case i < replicas:
			voters = append(voters, m)
		case shard == 0:
			learners = append(learners, m)
		}
	}
	return voters, learners
}

// Claim makes sure that a directory belongs to a node, without opening its log, and
// returns whose it is. A new directory gets its member id, durably, and waits for Open
// to make it part of a cluster. Errors are those of Open.
func Claim(dir, node string) (Identity, error) {
	if !validNodeID(node) {
		return Identity{}, fmt.Errorf("replog: node id %q: must be 1 to %d letters, digits, '-', '_' or '.'", node, maxNodeIDChars)
	}
	files := &disk{FS: vfs.Default, private: true, fail: func(error) {}, failure: func() error { return nil }, fsyncs: new(atomic.Uint64)}
	if err := makeDirectory(files, dir); err != nil {
		return Identity{}, err
	}
	if err := refuseForeign(files, dir); err != nil {
		return Identity{}, err
	}
	lock, err := lockDirectory(files, dir)
	if err != nil {
		return Identity{}, err
	}
	defer func() { _ = lock.Close() }()
	id, err := ownIdentity(files, dir, node)
	return id.public(), err
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails; ends the process if the system has no randomness
	return hex.EncodeToString(b)
}

func (id identity) encode() ([]byte, error) {
	line, err := json.Marshal(id)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%s\ncrc32c %08x\n", line, crc32.Checksum(line, castagnoli)), nil
}

func decodeIdentity(content []byte) (identity, error) {
	var id identity
	line, rest, ok := bytes.Cut(content, []byte("\n"))
	if !ok || string(rest) != fmt.Sprintf("crc32c %08x\n", crc32.Checksum(line, castagnoli)) {
		return id, fmt.Errorf("checksum line missing or wrong")
	}
	if err := json.Unmarshal(line, &id); err != nil {
		return id, err
	}
	if nonce, err := hex.DecodeString(id.Nonce); id.Format <= dirFormat && (err != nil || len(nonce) != nonceBytes) {
		return id, fmt.Errorf("nonce %q", id.Nonce)
	}
	return id, nil
}

// lockDirectory takes the lock of a directory.
func lockDirectory(disk vfs.FS, dir string) (io.Closer, error) {
	lock, err := disk.Lock(disk.PathJoin(dir, lockName))
	if err == nil || oserror.IsPermission(err) {
		return lock, err
	}
	return nil, &DirError{
		Dir: dir, Err: ErrLocked, Detail: err.Error(),
		Hint: "stop the process that uses it; two processes never share one",
	}
}

// ownIdentity returns a directory's identity, made now (and durable) if the directory
// is empty. The caller holds the directory's lock.
func ownIdentity(disk vfs.FS, dir, node string) (identity, error) {
	content, err := readFile(disk, disk.PathJoin(dir, identityName), 64<<10)
	if oserror.IsNotExist(err) {
		if err := refuseForeign(disk, dir); err != nil {
			return identity{}, err
		}
		id := identity{Format: dirFormat, Node: node, Member: node + "@" + randomHex(4), Nonce: randomHex(nonceBytes)}
		return id, id.write(disk, dir)
	}
	if err != nil {
		return identity{}, fmt.Errorf("read identity: %w", err)
	}
	id, err := decodeIdentity(content)
	if err != nil {
		return id, damaged(dir, "%s: %v", identityName, err)
	}
	switch {
	case id.Format > dirFormat:
		return id, refuse(dir, ErrNewerFormat, "run the version that wrote it, or a later one",
			"format %d, this program knows up to %d", id.Format, dirFormat)
	case id.Node != node:
		return id, refuse(dir, ErrOtherNode, "start with that node's id, or give this node a directory of its own",
			"it belongs to node %q, this is %q", id.Node, node)
	}
	return id, nil
}

func refuse(dir string, sentinel error, hint, format string, args ...any) error {
	return &DirError{Dir: dir, Err: sentinel, Detail: fmt.Sprintf(format, args...), Hint: hint}
}

// claimDirectory returns the directory's identity. A new directory becomes part of a
// cluster with it, durably: of a new one with its founders, or of one that it joins.
func claimDirectory(disk vfs.FS, cfg *Config) (identity, error) {
	dir := cfg.Dir
	id, err := ownIdentity(disk, dir, cfg.NodeID)
	if err != nil {
		return id, err
	}
	if id.Shards == 0 {
		id.Cluster, id.Incarnation, id.Shards = cfg.ClusterID, 1, uint32(len(cfg.Machines))
		if cfg.Incarnation > 0 {
			id.Incarnation = cfg.Incarnation
		}
		id.Founders, id.Replicas, id.Joined = cfg.Founders, cfg.Replicas, cfg.Join
		if id.Cluster == "" {
			id.Cluster = randomHex(16)
		}
		return id, id.write(disk, dir)
	}
	switch {
	case cfg.ClusterID != "" && id.Cluster != cfg.ClusterID:
		return id, refuse(dir, ErrOtherCluster, "correct the directory or the cluster id; never copy one cluster's directory into another",
			"it belongs to cluster %s, expected %s", id.Cluster, cfg.ClusterID)
	case id.Shards != uint32(len(cfg.Machines)):
		return id, refuse(dir, ErrOtherShardCount, "the shard count is fixed when a cluster is made: start with the recorded one",
			"it was made with %d shards, %d are configured", id.Shards, len(cfg.Machines))
	}
	return id, nil
}

func (id *identity) write(disk vfs.FS, dir string) error {
	content, err := id.encode()
	if err != nil {
		return err
	}
	if err := writeFile(disk, dir, identityName, content); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

// refuseForeign returns an error if the directory is neither ours nor empty.
func refuseForeign(disk vfs.FS, dir string) error {
	names, err := disk.List(dir)
	if err != nil {
		return err
	}
	slices.Sort(names)
	if slices.Contains(names, identityName) {
		return nil
	}
	for _, name := range names {
		switch name {
		// What a bootstrap that was cut short leaves, and a file system's own.
		case lockName, identityName + ".tmp", "lost+found":
		default:
			return &DirError{
				Dir: dir, Err: ErrForeignDirectory,
				Detail: fmt.Sprintf("it holds %q and no %s", name, identityName),
				Hint:   "give an empty or absent directory; nothing was changed",
			}
		}
	}
	return nil
}

// makeDirectory creates dir and what is missing above it, durably.
func makeDirectory(disk vfs.FS, dir string) error {
	if info, err := disk.Stat(dir); err == nil {
		if !info.IsDir() {
			return &DirError{
				Dir: dir, Err: ErrForeignDirectory, Detail: "it is not a directory",
				Hint: "give an empty or absent directory",
			}
		}
		return nil
	}
	if err := disk.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	err := syncDir(disk, disk.PathDir(dir))
	if oserror.IsPermission(err) || oserror.IsNotExist(err) {
		return nil // a parent that may not be read: the directory itself is synced with its first file
	}
	return err
}
