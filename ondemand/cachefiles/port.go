package cachefiles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// port is what the package needs of the kernel: the device, and the descriptors that come with OPEN. Tests have a kernel of their own.
type port interface {
	// wait calls drain whenever there may be something to read that was not there before, and after kick, until ctx ends.
	wait(ctx context.Context, drain func()) error
	// kick has wait call drain once more. The kernel wakes nobody for a READ that can be shown again because its object was not opened.
	kick()
	// read returns one message, or 0 bytes: nothing is there. It does not wait.
	read(p []byte) (int, error)
	// write gives one command.
	write(command []byte) error
	// isObject says whether a descriptor that came with a message that is not right is an object's, and nothing else's.
	isObject(fd int) bool
	// hide keeps a descriptor from programs that are started.
	hide(fd int) error
	pwrite(fd int, p []byte, off int64) (int, error)
	// complete answers a READ.
	complete(fd int, id uint32) error
	closeFile(fd int) error
}

// device is the port of the running kernel.
type device struct {
	file *os.File
	conn syscall.RawConn
}

// newDevice makes a port of an open device. The file is non-blocking, though the device never blocks: it is how os.NewFile knows that it can
// be waited for.
func newDevice(fd int) (*device, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	d := &device{file: os.NewFile(uintptr(fd), devicePath)}
	err := d.file.SetReadDeadline(time.Time{}) // fails if it cannot be waited for
	if err == nil {
		d.conn, err = d.file.SyscallConn()
	}
	if err != nil {
		d.file.Close()
		return nil, fmt.Errorf("cannot be waited for: %w", err)
	}
	return d, nil
}

// wait relies on the kernel waking those that poll with each new message: the runtime is told of changes only, so drain is to leave nothing.
// A deadline that is over ends the wait.
func (d *device) wait(ctx context.Context, drain func()) error {
	woken := make(chan struct{})
	sleep := context.AfterFunc(ctx, func() {
		d.kick()
		close(woken)
	})
	err := d.waits(ctx, drain)
	if !sleep() {
		<-woken // or it would set the next caller's deadline
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (d *device) waits(ctx context.Context, drain func()) error {
	for {
		if err := d.file.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		// The kick at the end of ctx may have come before that.
		if ctx.Err() != nil {
			return nil
		}
		err := d.conn.Read(func(uintptr) bool {
			drain()
			return ctx.Err() != nil
		})
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

func (d *device) kick() { d.file.SetReadDeadline(time.Unix(1, 0)) }

func (d *device) read(p []byte) (n int, err error) {
	if e := d.conn.Control(func(fd uintptr) { n, err = unix.Read(int(fd), p) }); e != nil {
		return 0, e
	}
	if err == unix.EAGAIN {
		return 0, nil
	}
	return max(n, 0), err
}

func (d *device) write(command []byte) error {
	var n int
	var err error
	if e := d.conn.Control(func(fd uintptr) { n, err = unix.Write(int(fd), command) }); e != nil {
		return e
	}
	if err == nil && n != len(command) {
		err = fmt.Errorf("%d of %d bytes written", n, len(command))
	}
	return err
}

func (d *device) isObject(fd int) bool {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return err == nil && name == objectName
}

func (d *device) hide(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC)
	return err
}

func (d *device) pwrite(fd int, p []byte, off int64) (int, error) {
	for {
		if n, err := unix.Pwrite(fd, p, off); err != unix.EINTR {
			return n, err
		}
	}
}

func (d *device) complete(fd int, id uint32) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), readComplete, uintptr(id))
	if errno != 0 {
		return errno
	}
	return nil
}

func (d *device) closeFile(fd int) error { return unix.Close(fd) }

// wantsCulling says whether the kernel has less free space than it is told to keep.
func (d *device) wantsCulling() (wants bool, err error) {
	e := d.conn.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		_, err = unix.Poll(p, 0)
		wants = p[0].Revents&unix.POLLOUT != 0
	})
	if e != nil {
		err = e
	}
	return wants, err
}

// aligned returns n bytes of memory that begin at a page, which direct I/O needs.
func aligned(n int) []byte {
	b := make([]byte, n+pageBytes)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (pageBytes - 1)
	return b[skip : skip+n : skip+n]
}
