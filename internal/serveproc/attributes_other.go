//go:build !linux

package serveproc

import "syscall"

func attributes() *syscall.SysProcAttr { return nil }
