// Package mountapi is the kernel's file-descriptor mount interface: fsopen, fsconfig, fsmount, open_tree, move_mount.
//
// A filesystem is configured in a Context, which yields a Mount that is attached to nothing. Whatever goes wrong before Attach,
// closing the two leaves nothing behind, and neither does the death of the process.
//
//	c, err := mountapi.Open("erofs")
//	defer c.Close()
//	err = c.Set("source", "/dev/vdb")
//	err = c.Create()
//	m, err := c.Mount(mountapi.ReadOnly)
//	defer m.Close()
//	err = m.Attach("/mnt")
//
// The kernel explains itself in a log that belongs to the context; every error carries those lines. A kernel that knows an
// option but was built without it says so only there and returns success; that is an error here (ErrIgnored).
package mountapi

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrIgnored is wrapped by the error of a call that the kernel reported as done while its log says that it was not.
var ErrIgnored = errors.New("ignored by the kernel")

// Context is a filesystem that is being configured.
type Context struct {
	fstype string
	fd     int
}

// Open starts the configuration of a filesystem. The kernel loads its module if need be; ENODEV means that there is none.
func Open(fstype string) (*Context, error) {
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w", fstype, err)
	}
	return &Context{fstype: fstype, fd: fd}, nil
}

// Set gives an option a value of at most 255 bytes.
func (c *Context) Set(key, value string) error {
	return c.explain(fmt.Sprintf("set %s=%s", key, value), unix.FsconfigSetString(c.fd, key, value))
}

// SetFlag switches on an option that has no value.
func (c *Context) SetFlag(key string) error {
	return c.explain("set "+key, unix.FsconfigSetFlag(c.fd, key))
}

// Create makes the superblock.
func (c *Context) Create() error {
	return c.explain("create superblock", unix.FsconfigCreate(c.fd))
}

// Mount makes a mount of the created superblock.
func (c *Context) Mount(a Attr) (*Mount, error) {
	fd, err := unix.Fsmount(c.fd, unix.FSMOUNT_CLOEXEC, int(a))
	if err := c.explain("fsmount", err); err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, err
	}
	return &Mount{fd: fd}, nil
}

// Close ends the configuration. Mounts that were made stay.
func (c *Context) Close() { unix.Close(c.fd) }

// explain empties the log after a call, so that each line is told with the call that caused it.
func (c *Context) explain(attempt string, err error) error {
	lines := c.log()
	var said []string
	for _, l := range lines {
		level, text, _ := strings.Cut(l, " ")
		said = append(said, text)
		if err == nil && level == "e" {
			err = ErrIgnored
		}
	}
	switch {
	case err == nil:
		return nil
	case len(said) == 0:
		return fmt.Errorf("%s: %s: %w", c.fstype, attempt, err)
	}
	return fmt.Errorf("%s: %s: %w (kernel: %s)", c.fstype, attempt, err, strings.Join(said, "; "))
}

// log returns the lines since the last call, each "<level> <text>" with level e(rror), w(arning) or i(nfo).
func (c *Context) log() []string {
	var lines []string
	buf := make([]byte, 4096)
	for {
		// ENODATA ends the log.
		n, err := unix.Read(c.fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return lines
		}
		lines = append(lines, strings.TrimSpace(string(buf[:n])))
	}
}
