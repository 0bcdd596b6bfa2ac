package e2e

import "syscall"

// mountSmall makes a disk of 192 MiB at a directory.
func mountSmall(dir string) error {
	return syscall.Mount("assent-e2e", dir, "tmpfs", 0, "size=192m")
}

func unmount(dir string) error { return syscall.Unmount(dir, syscall.MNT_DETACH) }
