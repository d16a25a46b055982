package fanotify

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls that every event takes. The kernel does not wait in them for anything but memory: the group is non-blocking, and closing the
// descriptor of an event is never the last use of its file. So they are made without telling the scheduler, which otherwise takes the
// processor away from a thread that is in the kernel whenever another process gets in between. That was a third of the time of an event.

// rawRead reads one event into b, which the garbage collector does not move.
func rawRead(fd int, b []byte) error {
	_, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return asError(errno)
}

func rawWrite(fd int, b *[8]byte) error {
	_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(b)), uintptr(len(b)))
	return asError(errno)
}

func rawClose(fd int32) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

func asError(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}
