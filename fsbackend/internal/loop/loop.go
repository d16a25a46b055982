// Package loop turns regular files into read-only block devices.
//
// A device clears itself when the last user closes it, so it is bound to the file descriptor in Device, and later to the mount
// that opened it. Nothing has to be recorded, and a crash leaks nothing.
package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNone is wrapped by errors on hosts without loop devices.
var ErrNone = errors.New("no loop devices (try modprobe loop)")

// attempts bounds how often a device that the kernel called free is found taken by another process. Each attempt is a few system
// calls; 64 in a row means that something else is wrong.
const attempts = 64

// oneAtATime keeps the goroutines of this process from racing for the same free device.
var oneAtATime sync.Mutex

// Device is an attached loop device.
type Device struct {
	// Path is its node, /dev/loop<n>.
	Path string
	node *os.File
}

// Devices are the loop devices of one mount.
type Devices []Device

// flags are those of every device: it is read-only, and clears itself.
const flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR

// Attach makes a block device of each file. The files may be closed afterwards.
func Attach(ctx context.Context, files ...*os.File) (Devices, error) {
	return attachAll(ctx, flags, files)
}

// AttachDirect is Attach of devices that read their files with direct I/O, past the page cache of the files. Of a file that cannot do
// it the kernel uses the page cache.
func AttachDirect(ctx context.Context, files ...*os.File) (Devices, error) {
	return attachAll(ctx, flags|unix.LO_FLAGS_DIRECT_IO, files)
}

func attachAll(ctx context.Context, flags uint32, files []*os.File) (Devices, error) {
	var ds Devices
	for _, f := range files {
		d, err := attach(ctx, flags, f)
		if err != nil {
			ds.Close()
			return nil, fmt.Errorf("loop device for %s: %w", f.Name(), err)
		}
		ds = append(ds, d)
	}
	return ds, nil
}

// Close lets go of the devices. They are cleared at once, or with the mount that uses them.
func (ds Devices) Close() {
	for _, d := range ds {
		d.node.Close()
	}
}

func attach(ctx context.Context, flags uint32, file *os.File) (Device, error) {
	oneAtATime.Lock()
	defer oneAtATime.Unlock()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return Device{}, fmt.Errorf("%w: %w", ErrNone, err)
	}
	if err != nil {
		return Device{}, err
	}
	defer control.Close()
	for range attempts {
		if err := ctx.Err(); err != nil {
			return Device{}, err
		}
		var d Device
		if d, err = attachFree(control, flags, file); !taken(err) {
			return d, err
		}
	}
	return Device{}, fmt.Errorf("%d attempts: %w", attempts, err)
}

func attachFree(control *os.File, flags uint32, file *os.File) (Device, error) {
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return Device{}, fmt.Errorf("LOOP_CTL_GET_FREE: %w", err)
	}
	path := fmt.Sprintf("/dev/loop%d", n)
	node, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Device{}, err
	}
	c := unix.LoopConfig{Fd: uint32(file.Fd())}
	c.Info.Flags = flags
	if err := unix.IoctlLoopConfigure(int(node.Fd()), &c); err != nil {
		node.Close()
		return Device{}, fmt.Errorf("LOOP_CONFIGURE %s: %w", path, err)
	}
	return Device{Path: path, node: node}, nil
}

// taken says that another process got the device first, or that it was just removed.
func taken(err error) bool {
	return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EINTR)
}
