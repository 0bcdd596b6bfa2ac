package pgtest

import "syscall"

// attributes of a server process: its user, and an end when the test's process ends
// without cleaning up.
func attributes(cred *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: cred, Pdeathsig: syscall.SIGQUIT}
}
