package benchkit

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// touchBytes is more memory than any measurement fills.
const touchBytes = 2 << 30

// TouchMemory uses memory and gives it back, which the kernel then has at hand. A virtual machine may have returned free memory to its
// host, and pays for it at the next use: seconds for a gigabyte at times, which would go to whoever comes next.
func TouchMemory() error {
	b, err := unix.Mmap(-1, 0, touchBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("touch %d MiB of memory: %w", touchBytes>>20, err)
	}
	return unix.Munmap(b)
}

// ColdCache writes everything back and drops the page cache and the caches of inodes and directory entries.
func ColdCache() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return err
	}
	return TouchMemory()
}

// SyncDisk is how long it takes to make everything on the file system of dir durable.
func SyncDisk(dir string) (time.Duration, error) {
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	begin := time.Now()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return 0, fmt.Errorf("syncfs %s: %w", dir, err)
	}
	return time.Since(begin), nil
}

// Warm reads a file, so that it is in the page cache, and returns its length.
func Warm(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return io.Copy(io.Discard, f)
}
