// Package unlisted is not in the table.
package unlisted // want "not in the table"
