// Package util owns nothing.
package util // want "not in the table" "name it after what it owns"
