// Package x_test is named by its directory.
package x_test // want "not in the table" "name it after what it owns"
