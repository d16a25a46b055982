// Package fsbackend makes instances mountable and mounts them: one read-only EROFS mount for each instance, shared by every
// snapshot that uses it.
//
// The kernel's mount table is the only record of what is mounted. A Backend keeps nothing about it in memory or on disk, so a
// crash, a restart or a reboot leaves nothing to repair: a mount that is missing is made again.
//
// Mounts are read-only, nosuid and nodev in the host's tree. The overlay mounts of containers are their own mounts and are not
// affected: set-id programs and device nodes work inside a container.
//
// Besides the contract the package has what does not depend on how an image is mounted: bind mounts of directories (BindReadOnly),
// removal (Unmount), and questions to the mount table (Mounted, MountsBelow, Users). Everything needs root.
package fsbackend

import (
	"context"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/probe"
)

// Image is one EROFS instance on disk.
type Image struct {
	// Meta is the path of the meta image, Data that of the data blob, the image's only device. Both are regular files.
	Meta, Data string
	// OnDemand says that somebody watches the data blob and answers reads of data that are missing. Its bytes are not read before the image
	// is mounted, and only mounts that open the file itself will do.
	OnDemand bool
	// Cookies, if set, has the image mounted over the kernel's cache, which asks somebody for what it does not have. The files are looked at
	// only; their bytes are not read by the kernel.
	Cookies *Cookies
	// Check, if set, is called with a path of the mount's root before anybody else can see the mount. After an error nothing is mounted.
	Check func(root string) error
}

// Cookies are the names by which the kernel's cache knows an image.
type Cookies struct {
	// Domain is shared by all mounts that may share cache files. No two mounts of a domain have the same Meta; mounts with the same Data
	// use one cache file, which is one sequence of bytes.
	Domain, Meta, Data string
}

// Backend mounts images. Safe for concurrent use; calls for one target must not overlap.
// The meaning of the contract is the suite in backendtest.
type Backend interface {
	// Mount mounts img on the existing directory target. When something is mounted there already, it does nothing: a
	// mountpoint is never used for two images. After an error, or when ctx is done, nothing is mounted.
	Mount(ctx context.Context, img Image, target string) error
	// Unmount removes the mount from target. Nothing mounted there is not an error. It never waits for users of the mount:
	// overlay mounts and open files keep the superblock alive, the backing files may be unlinked, and what the backend
	// holds for the image (loop devices) is released with the last user. As it never waits, it works with a ctx that is done.
	Unmount(ctx context.Context, target string) error
}

// ErrNotSupported is wrapped by errors that say that this kernel or this filesystem cannot do what was asked.
var ErrNotSupported = probe.ErrNotSupported
