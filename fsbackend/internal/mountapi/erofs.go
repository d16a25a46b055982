package mountapi

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrNoDirect is wrapped by the error of EROFSDirect on kernels that do not have its option.
var ErrNoDirect = errors.New("no direct I/O by this kernel's EROFS")

// EROFS makes a mount of the image in source, with its devices in the order of the image's device table. Source and devices
// are all regular files, or all block devices.
func EROFS(source string, devices ...string) (*Mount, error) {
	return erofs(source, devices, nil)
}

// EROFSDirect is EROFS of regular files, whose blocks the kernel reads past the page cache of those files. Metadata goes through the
// page cache of source all the same. Of files that cannot do direct I/O the kernel uses the page cache.
func EROFSDirect(source string, devices ...string) (*Mount, error) {
	return erofs(source, devices, setDirect)
}

// setDirect asks for direct I/O. A kernel without file-backed mounts either does not know the option (EINVAL) or knows it and says
// that it was built without.
func setDirect(c *Context) error {
	err := c.SetFlag("directio")
	if errors.Is(err, unix.EINVAL) || errors.Is(err, ErrIgnored) {
		return fmt.Errorf("%w: %w", ErrNoDirect, err)
	}
	return err
}

// ErrNoFscache is wrapped by the error of EROFSFscache on kernels that do not have its options.
var ErrNoFscache = errors.New("no on-demand reading over fscache by this kernel's EROFS")

// EROFSFscache makes a mount of an image whose bytes come from the kernel's cache: the image is the cookie fsid, its devices are further
// cookies, all of the domain. Source is what the mount table shows.
//
// The kernel waits until somebody has said how large each of them is, which cannot be ended.
func EROFSFscache(source, domain, fsid string, devices ...string) (*Mount, error) {
	return erofs(source, devices, func(c *Context) error { return setFscache(c, domain, fsid) })
}

// setFscache names the image. A kernel without on-demand reading either does not know the options (EINVAL) or says that it was built without.
func setFscache(c *Context, domain, fsid string) error {
	for _, o := range [][2]string{{"fsid", fsid}, {"domain_id", domain}} {
		err := c.Set(o[0], o[1])
		if errors.Is(err, unix.EINVAL) || errors.Is(err, ErrIgnored) {
			return fmt.Errorf("%w: %w", ErrNoFscache, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// erofs makes a mount; configure, which may be nil, sets more options.
func erofs(source string, devices []string, configure func(*Context) error) (*Mount, error) {
	c, err := Open("erofs")
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if configure != nil {
		if err := configure(c); err != nil {
			return nil, err
		}
	}
	// Without the flag a block device is opened for writing, which a read-only one refuses.
	if err := c.SetFlag("ro"); err != nil {
		return nil, err
	}
	if err := c.Set("source", source); err != nil {
		return nil, err
	}
	for _, d := range devices {
		// An image whose device option was lost mounts all the same and reads as garbage, so every result counts.
		if err := c.Set("device", d); err != nil {
			return nil, err
		}
	}
	if err := c.Create(); err != nil {
		return nil, err
	}
	m, err := c.Mount(ReadOnly)
	if err != nil {
		return nil, err
	}
	if err := isEROFS(m); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func isEROFS(m *Mount) error {
	st, err := m.Statfs()
	if err != nil {
		return err
	}
	if uint32(st.Type) != unix.EROFS_SUPER_MAGIC_V1 {
		return fmt.Errorf("mounted a filesystem of type %#x instead of erofs", st.Type)
	}
	return nil
}
