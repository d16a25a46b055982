package treediff

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// hashers is how many files are hashed at once. Two keep one core busy while the other one waits for the disk or walks.
const hashers = 2

// xattrListBytes and xattrValueBytes are the kernel's own limits (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const (
	xattrListBytes  = 64 << 10
	xattrValueBytes = 64 << 10
)

// Scan records the tree below root, root itself included.
func Scan(ctx context.Context, root string) ([]Record, error) {
	dir, err := os.OpenFile(root, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &scan{
		files:  make(chan openFile, 4*hashers),
		inodes: map[inode][]*Record{},
		list:   make([]byte, xattrListBytes),
		value:  make([]byte, xattrValueBytes),
	}
	var workers sync.WaitGroup
	for range hashers {
		workers.Go(func() {
			var h hasher
			for f := range s.files {
				if err := h.fill(ctx, f); err != nil {
					cancel(err)
				}
			}
		})
	}
	err = s.directory(ctx, dir, ".")
	close(s.files)
	workers.Wait()
	if cause := context.Cause(ctx); cause != nil {
		err = cause // the walk only saw that it was told to stop
	}
	if err != nil {
		return nil, fmt.Errorf("scan %s: %w", root, err)
	}
	return s.finish(), nil
}

// inode identifies a file within one scan. A tree may contain mountpoints, so the device belongs to it.
type inode struct{ dev, ino uint64 }

type scan struct {
	records []*Record
	// inodes has the records of inodes with more than one link.
	inodes map[inode][]*Record
	files  chan openFile
	// list and value are read buffers for attributes.
	list, value []byte
}

// directory records an open directory and everything below it.
func (s *scan) directory(ctx context.Context, dir *os.File, rel string) error {
	if err := s.record(ctx, procPath(dir, "."), rel); err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", rel, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.entry(ctx, dir, name, path.Join(rel, name)); err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) entry(ctx context.Context, dir *os.File, name, rel string) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return s.record(ctx, procPath(dir, name), rel)
	case err != nil:
		return fmt.Errorf("open directory %q: %w", rel, err)
	}
	sub := os.NewFile(uintptr(fd), rel)
	defer sub.Close()
	return s.directory(ctx, sub, rel)
}

// procPath names an entry of an open directory by a short path, for the system calls that take no directory descriptor.
func procPath(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

func (s *scan) record(ctx context.Context, at, rel string) error {
	var st unix.Stat_t
	if err := unix.Lstat(at, &st); err != nil {
		return fmt.Errorf("stat %q: %w", rel, err)
	}
	xattrs, err := s.xattrs(at)
	if err != nil {
		return fmt.Errorf("attributes of %q: %w", rel, err)
	}
	r := &Record{
		Path:   rel,
		Type:   typeOf(st.Mode),
		Mode:   st.Mode & 0o7777,
		UID:    st.Uid,
		GID:    st.Gid,
		Mtime:  Time{st.Mtim.Sec, st.Mtim.Nsec},
		Xattrs: xattrs,
	}
	s.records = append(s.records, r)
	if r.Type == Directory {
		return nil
	}
	r.Size, r.Nlink = st.Size, st.Nlink
	first := true
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		first = len(s.inodes[id]) == 0
		s.inodes[id] = append(s.inodes[id], r)
	}
	switch r.Type {
	case Character, Block:
		r.Rdev = st.Rdev
	case Symlink:
		if r.Target, err = os.Readlink(at); err != nil {
			return fmt.Errorf("read link %q: %w", rel, err)
		}
	case File:
		if first { // finish copies the digest to the other links
			return s.queue(ctx, at, r)
		}
	}
	return nil
}

// queue opens a file and hands it to the hashers.
func (s *scan) queue(ctx context.Context, at string, r *Record) error {
	f, err := os.OpenFile(at, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", r.Path, err)
	}
	select {
	case s.files <- openFile{f, r}:
		return nil
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), f.Close())
	}
}

func (s *scan) xattrs(at string) (map[string]string, error) {
	n, err := unix.Llistxattr(at, s.list)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	xattrs := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(s.list[:n]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(at, name, s.value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		xattrs[name] = string(s.value[:n])
	}
	return xattrs, nil
}

// finish completes what is known only after the whole walk, and sorts.
func (s *scan) finish() []Record {
	slices.SortFunc(s.records, func(a, b *Record) int { return strings.Compare(a.Path, b.Path) })
	for _, group := range s.inodes {
		hashed := group[0]
		first := slices.MinFunc(group, func(a, b *Record) int { return strings.Compare(a.Path, b.Path) })
		for _, r := range group {
			r.Content = hashed.Content
			if len(group) > 1 {
				r.FirstLink = first.Path
			}
		}
	}
	records := make([]Record, len(s.records))
	for i, r := range s.records {
		records[i] = *r
	}
	return records
}

func typeOf(mode uint32) Type {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return Directory
	case unix.S_IFLNK:
		return Symlink
	case unix.S_IFCHR:
		return Character
	case unix.S_IFBLK:
		return Block
	case unix.S_IFIFO:
		return FIFO
	case unix.S_IFSOCK:
		return Socket
	}
	return File
}

func device(rdev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev)) }
