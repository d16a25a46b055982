// Package ownthread is for tests that change what belongs to a thread: its namespaces, its user.
package ownthread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Run runs f on a thread that ends afterwards. The process's first thread does not end, and /proc/<pid> shows its state, so it is
// kept away from f.
func Run(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return // still locked: the thread ends
		}
		Run(f)
		runtime.UnlockOSThread()
	}()
	<-done
}
