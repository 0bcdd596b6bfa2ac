//go:build previouslevel

package txn

// Level is one less than that of the source: a stand-in for the version before this one,
// so that a cluster of two versions can be tested with two builds.
const Level = levelTop - 1
