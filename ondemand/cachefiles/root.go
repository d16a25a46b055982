package cachefiles

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const fit = "needs to be writable, on ext4 or xfs, not on an idmapped mount"

// CheckDir says whether a directory is fit for a cache, as far as a program can tell: it does what the kernel will do. bind reports what is
// wrong by a number that also stands for other things.
func CheckDir(dir string) error {
	if err := checkDir(dir); err != nil {
		return fmt.Errorf("cache directory %s is %w: %w (%s)", dir, ErrUnfit, err, fit)
	}
	return nil
}

func checkDir(dir string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return unix.ENOTDIR
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("statfs: %w", err)
	}
	if int64(fs.Bsize) > int64(pageBytes) {
		return fmt.Errorf("blocks of %d bytes, more than a page", fs.Bsize)
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("unnamed file for direct I/O: %w", err)
	}
	defer unix.Close(fd)
	return checkFile(fd)
}

// checkFile tries what becomes of a cache file: attributes, direct I/O in whole pages, and the difference between data and holes, which is
// how the kernel knows what is there.
func checkFile(fd int) error {
	if err := unix.Fsetxattr(fd, "user.CacheFiles.cache", []byte("try"), 0); err != nil {
		return fmt.Errorf("extended attribute: %w", err)
	}
	page := int64(pageBytes)
	if err := unix.Ftruncate(fd, 3*page); err != nil {
		return fmt.Errorf("sparse file: %w", err)
	}
	if n, err := unix.Pwrite(fd, aligned(pageBytes), page); err != nil || n != pageBytes {
		return fmt.Errorf("direct write: %d bytes, %w", n, err)
	}
	data, err := unix.Seek(fd, 0, unix.SEEK_DATA)
	if err != nil {
		return fmt.Errorf("look for data: %w", err)
	}
	hole, err := unix.Seek(fd, page, unix.SEEK_HOLE)
	if err != nil {
		return fmt.Errorf("look for a hole: %w", err)
	}
	if data != page || hole != 2*page {
		return errors.New("cannot tell holes from data")
	}
	return nil
}
