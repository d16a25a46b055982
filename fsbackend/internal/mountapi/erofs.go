package mountapi

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// EROFS makes a mount of the image in source, with its devices in the order of the image's device table. Source and devices
// are all regular files, or all block devices.
func EROFS(source string, devices ...string) (*Mount, error) {
	c, err := Open("erofs")
	if err != nil {
		return nil, err
	}
	defer c.Close()
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
