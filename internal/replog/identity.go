package replog

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"slices"

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
	Shards      uint32 `json:"shards"`
	// Nonce marks this node's notes in write-ahead files, so that no payload can
	// pass for one. It leaves the directory nowhere.
	Nonce string `json:"nonce"`
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

// RecordedShards is the shard count that a data directory was made with; 0: none was
// made there yet. It changes nothing, and leaves what else is wrong to Open.
func RecordedShards(dir string) (uint32, error) {
	content, err := readFile(vfs.Default, vfs.Default.PathJoin(dir, identityName), 64<<10)
	if oserror.IsNotExist(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read identity: %w", err)
	}
	id, err := decodeIdentity(content)
	if err != nil {
		return 0, damaged(dir, "%s: %v", identityName, err)
	}
	if id.Format > dirFormat {
		return 0, nil // Open says so
	}
	return id.Shards, nil
}

// claimDirectory returns the directory's identity, made now (and durable) if the
// directory is empty. The caller holds the directory's lock.
func claimDirectory(disk vfs.FS, cfg *Config) (identity, error) {
	dir := cfg.Dir
	content, err := readFile(disk, disk.PathJoin(dir, identityName), 64<<10)
	if oserror.IsNotExist(err) {
		return newIdentity(disk, cfg)
	}
	if err != nil {
		return identity{}, fmt.Errorf("read identity: %w", err)
	}
	id, err := decodeIdentity(content)
	if err != nil {
		return id, damaged(dir, "%s: %v", identityName, err)
	}
	refuse := func(sentinel error, hint, format string, args ...any) error {
		return &DirError{Dir: dir, Err: sentinel, Detail: fmt.Sprintf(format, args...), Hint: hint}
	}
	switch {
	case id.Format > dirFormat:
		return id, refuse(ErrNewerFormat, "run the version that wrote it, or a later one",
			"format %d, this program knows up to %d", id.Format, dirFormat)
	case id.Node != cfg.NodeID:
		return id, refuse(ErrOtherNode, "start with that node's id, or give this node a directory of its own",
			"it belongs to node %q, this is %q", id.Node, cfg.NodeID)
	case cfg.ClusterID != "" && id.Cluster != cfg.ClusterID:
		return id, refuse(ErrOtherCluster, "correct the directory or the cluster id; never copy one cluster's directory into another",
			"it belongs to cluster %s, expected %s", id.Cluster, cfg.ClusterID)
	case id.Shards != uint32(len(cfg.Machines)):
		return id, refuse(ErrOtherShardCount, "the shard count is fixed when a cluster is made: start with the recorded one",
			"it was made with %d shards, %d are configured", id.Shards, len(cfg.Machines))
	}
	return id, nil
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

func newIdentity(disk vfs.FS, cfg *Config) (identity, error) {
	if err := refuseForeign(disk, cfg.Dir); err != nil {
		return identity{}, err
	}
	id := identity{
		Format: dirFormat, Cluster: cfg.ClusterID, Incarnation: 1, Node: cfg.NodeID,
		Shards: uint32(len(cfg.Machines)), Nonce: randomHex(nonceBytes),
	}
	if id.Cluster == "" {
		id.Cluster = randomHex(16)
	}
	content, err := id.encode()
	if err != nil {
		return id, err
	}
	if err := writeFile(disk, cfg.Dir, identityName, content); err != nil {
		return id, fmt.Errorf("write identity: %w", err)
	}
	return id, nil
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
