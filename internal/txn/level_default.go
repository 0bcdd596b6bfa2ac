//go:build !previouslevel

package txn

// Level is the highest that this binary knows, and announces.
const Level = levelTop
