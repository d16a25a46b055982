package lossydisk

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// commandTimeout turns a hanging mkfs or mount into an error.
	commandTimeout = time.Minute
	// detachTimeout is how long the last user of the device may take to go away.
	detachTimeout = 20 * time.Second
)

// Device is a Disk behind a loop device.
type Device struct {
	// Path is the loop device.
	Path       string
	server     *fuse.Server
	mountpoint string
}

// AttachOptions of a Device.
type AttachOptions struct {
	// DirectIO is that of the loop device. Without it, each request goes through a function of the kernel that is meant for buffered
	// files; the FUSE file has no page cache either way.
	DirectIO bool
}

// Attach serves the disk as a file of a FUSE mount on the directory dir, and gives it a loop device.
func (d *Disk) Attach(ctx context.Context, dir string, o AttachOptions) (_ *Device, err error) {
	dev := &Device{mountpoint: dir}
	root := &directory{disk: d}
	dev.server, err = fs.Mount(dir, root, &fs.Options{
		MountOptions: fuse.MountOptions{
			FsName: "lossydisk", Name: "lossydisk", DirectMountStrict: true, MaxWrite: 1 << 20,
			Logger: log.New(os.Stderr, "lossydisk: ", log.LstdFlags),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("mount FUSE on %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dev.unmount())
		}
	}()
	direct := "--direct-io=off"
	if o.DirectIO {
		direct = "--direct-io=on"
	}
	sectors := fmt.Sprintf("--sector-size=%d", d.sectorBytes)
	out, err := command(ctx, "losetup", "--find", "--show", direct, sectors, filepath.Join(dir, diskName))
	if err != nil {
		return nil, err
	}
	dev.Path = strings.TrimSpace(out)
	return dev, nil
}

// Detach gives the loop device and the FUSE mount up. Nothing may be mounted from it. If something is all the same, or another process has
// the device open, Detach says so after a while, and everything that the device is still asked for fails.
func (dev *Device) Detach(ctx context.Context) error {
	_, err := command(ctx, "losetup", "--detach", dev.Path)
	return errors.Join(err, dev.unmount())
}

// Abort makes everything fail that the device is asked for, now and later. It ends waits that nothing else ends, and may be called at any
// time.
func (dev *Device) Abort() error {
	// This is what a forced unmount does to FUSE first. Then it finds the file in use, which is right.
	err := unix.Unmount(dev.mountpoint, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

// unmount waits for the loop device, which the kernel gives up some time after it was asked to.
func (dev *Device) unmount() error {
	for deadline := time.Now().Add(detachTimeout); ; time.Sleep(10 * time.Millisecond) {
		err := dev.server.Unmount()
		if err == nil {
			dev.server.Wait()
			return nil
		}
		if errors.Is(err, unix.EBUSY) && time.Now().Before(deadline) {
			continue
		}
		err = fmt.Errorf("unmount FUSE from %s: %w", dev.mountpoint, err)
		return errors.Join(err, dev.Abort(), unix.Unmount(dev.mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	}
}

// command runs a program, whose output it returns.
func command(ctx context.Context, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second // a program that the kernel does not let go
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
