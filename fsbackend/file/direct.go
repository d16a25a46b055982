package file

import (
	"os"

	"golang.org/x/sys/unix"
)

// Direct says when the kernel reads the blocks of an image with direct I/O. Then memory holds them once, as pages of the mounted
// files; otherwise twice, as pages of the data blob too. Small tails of files lie in the meta image, which is never read that way by
// file-backed mounts. Where direct I/O does not work, the page cache is used. See docs/page-cache.md.
type Direct int

const (
	// Never uses the page cache of the files.
	Never Direct = iota
	// WhenCold decides for each mount: the page cache if half of the data blob is in it at that time or more, as right after a
	// conversion, because memory is faster than a disk; direct I/O otherwise.
	WhenCold
	// Always uses direct I/O.
	Always
)

// now is the decision for a mount of data.
func (d Direct) now(data *os.File) bool {
	switch d {
	case WhenCold:
		return !mostlyCached(data) && readsDirectly(data)
	case Always:
		return readsDirectly(data)
	}
	return false
}

// mostlyCached says whether half of the file or more is in the page cache. Kernels before 6.5 cannot tell: there it says no.
func mostlyCached(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	var stat unix.Cachestat_t
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &stat, 0); err != nil {
		return false
	}
	return int64(stat.Cache)*int64(os.Getpagesize())*2 >= info.Size()
}

// erofsBlock is what EROFS reads at least.
const erofsBlock = 4096

// readsDirectly tries it with the first block. A filesystem may have no direct I/O, or only that of larger blocks, which would come
// back to a container as errors.
func readsDirectly(f *os.File) bool {
	d, err := os.OpenFile(fdPath(f), os.O_RDONLY|unix.O_CLOEXEC|unix.O_DIRECT, 0)
	if err != nil {
		return false
	}
	defer d.Close()
	// Memory of its own, because it must be aligned.
	b, err := unix.Mmap(-1, 0, erofsBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return false
	}
	defer unix.Munmap(b)
	// An empty or short file has nothing to gain.
	n, err := unix.Pread(int(d.Fd()), b, 0)
	return err == nil && n == erofsBlock
}
