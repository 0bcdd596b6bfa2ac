package serveproc

import "syscall"

// attributes of a process: it ends when the process that started it does so without
// cleaning up.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
