package probe

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountinfo"
)

// DataDirFilesystem returns the type of the filesystem that dir lies on ("ext4").
func DataDirFilesystem(dir string) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st); err != nil {
		return "", fmt.Errorf("filesystem of %s: %w", dir, err)
	}
	entries, err := mountinfo.Read(mountinfo.Self)
	if err != nil {
		return "", fmt.Errorf("filesystem of %s: %w", dir, err)
	}
	for _, e := range entries {
		if uint64(e.ID) == st.Mnt_id {
			return e.FSType, nil
		}
	}
	return "", fmt.Errorf("filesystem of %s: no mount %d in the mount table", dir, st.Mnt_id)
}
