package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// layerWriter writes one directory tree as a layer.
type layerWriter struct {
	dir   string
	tar   *tar.Writer
	links map[inode]string // first name of each file that has several
}

type inode struct{ dev, ino uint64 }

// writeLayer writes the tree below dir as a layer tar. The tar appears complete or not at all.
func writeLayer(dir, out string) error {
	f, err := os.Create(out + ".part")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	buffered := bufio.NewWriterSize(f, 1<<20)
	w := layerWriter{dir: dir, tar: tar.NewWriter(buffered), links: map[inode]string{}}
	// WalkDir goes in lexical order, so the same tree gives the same tar.
	if err := filepath.WalkDir(dir, w.visit); err != nil {
		return fmt.Errorf("layer of %s: %w", dir, err)
	}
	if err := errors.Join(w.tar.Close(), buffered.Flush(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", out, err)
	}
	return os.Rename(f.Name(), out)
}

func (w *layerWriter) visit(path string, _ fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	if path == w.dir {
		return nil
	}
	name := strings.TrimPrefix(path, w.dir+"/")
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("lstat %s: %w", path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFSOCK:
		return nil // a tar cannot hold sockets
	case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0:
		return w.marker(filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name)))
	}
	return w.add(path, name, &st)
}

// marker writes a whiteout or an opaque marker.
func (w *layerWriter) marker(name string) error {
	return w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Format: tar.FormatPAX})
}

func (w *layerWriter) add(path, name string, st *unix.Stat_t) error {
	h := &tar.Header{
		Name:       name,
		Mode:       int64(st.Mode & 0o7777),
		Uid:        int(st.Uid),
		Gid:        int(st.Gid),
		ModTime:    timeOf(st.Mtim),
		PAXRecords: map[string]string{},
		Format:     tar.FormatPAX,
	}
	if err := w.setType(h, path, st); err != nil {
		return err
	}
	opaque, err := readXattrs(path, h.PAXRecords)
	if err != nil {
		return err
	}
	if err := w.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("header of %s: %w", path, err)
	}
	if h.Size > 0 {
		if err := copyFile(w.tar, path); err != nil {
			return err
		}
	}
	if opaque {
		return w.marker(filepath.Join(name, ".wh..wh..opq"))
	}
	return nil
}

func (w *layerWriter) setType(h *tar.Header, path string, st *unix.Stat_t) (err error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		h.Linkname, err = os.Readlink(path)
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		w.setRegular(h, st)
	}
	return err
}

// setRegular makes the second and later names of a file hard links to the first.
func (w *layerWriter) setRegular(h *tar.Header, st *unix.Stat_t) {
	id := inode{st.Dev, st.Ino}
	if first, ok := w.links[id]; ok {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if st.Nlink > 1 {
		w.links[id] = h.Name
	}
}

// readXattrs adds the attributes of path to the PAX records and says whether overlayfs marked it as an opaque directory.
func readXattrs(path string, records map[string]string) (opaque bool, err error) {
	names := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return false, fmt.Errorf("list xattrs of %s: %w", path, err)
	}
	value := make([]byte, 64<<10)
	for name := range bytes.SplitSeq(bytes.TrimRight(names[:n], "\x00"), []byte{0}) {
		attr := string(name)
		if attr == "" || strings.HasPrefix(attr, "security.selinux") {
			continue
		}
		n, err := unix.Lgetxattr(path, attr, value)
		if err != nil {
			return false, fmt.Errorf("xattr %s of %s: %w", attr, path, err)
		}
		if strings.HasPrefix(attr, "trusted.overlay.") {
			opaque = opaque || attr == "trusted.overlay.opaque" && string(value[:n]) == "y"
			continue
		}
		records["SCHILY.xattr."+attr] = string(value[:n])
	}
	return opaque, nil
}

func copyFile(to io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(to, f); err != nil {
		return fmt.Errorf("copy %s: %w", path, err)
	}
	return nil
}
