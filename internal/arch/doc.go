// Package arch holds the architecture as a test: which package may import which,
// what the pure ring may not do, and a few rules that no linter knows. A new
// package needs a line in the table of table.go; a violation is reported with
// its place and what to do instead.
//
//	sources --parse--> Tree --> Imports, Clock, Names, Comments, Skips, Notes
//	pure packages --type check--> Purity, MapOrder
package arch
