package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	erofs "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"
)

// goErofsLayer writes an image and a data file with go-erofs, which has no reader of tars. The library knows neither hard links nor a
// path that comes twice: such entries are left out and counted. It does not sync.
func goErofsLayer(_ context.Context, j job, r *report) (err error) {
	in, err := os.Open(j.input)
	if err != nil {
		return err
	}
	defer in.Close()
	stream, err := gzip.NewReader(bufio.NewReaderSize(in, 256<<10))
	if err != nil {
		return err
	}
	image, err := os.Create(filepath.Join(j.output, "meta.erofs"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	data, err := os.Create(filepath.Join(j.output, "data"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.Close()) }()

	w := erofs.Create(image, erofs.WithDataFile(data))
	entries, refused := 0, 0
	for t := tar.NewReader(stream); ; entries++ {
		header, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if err := addEntry(w, header, t); errors.Is(err, errRefused) {
			refused++
		} else if err != nil {
			return fmt.Errorf("%s: %w", header.Name, err)
		}
	}
	r.Remark = fmt.Sprintf("%d of %d entries refused", refused, entries)
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return err
	}
	return w.Close()
}

var errRefused = errors.New("go-erofs does not take this entry")

func addEntry(w *erofs.Writer, h *tar.Header, content io.Reader) error {
	if err := makeNode(w, h, content); err != nil {
		return err
	}
	err := errors.Join(w.Chmod(h.Name, h.FileInfo().Mode()), w.Chown(h.Name, h.Uid, h.Gid), w.Chtimes(h.Name, h.ModTime, h.ModTime))
	for record, value := range h.PAXRecords {
		if attr, ok := strings.CutPrefix(record, "SCHILY.xattr."); ok {
			err = errors.Join(err, w.Setxattr(h.Name, attr, value))
		}
	}
	return err
}

// nodeTypes are the kinds of entries that mknod makes.
var nodeTypes = map[byte]uint16{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}

func makeNode(w *erofs.Writer, h *tar.Header, content io.Reader) (err error) {
	switch h.Typeflag {
	case tar.TypeReg:
		f, err := w.Create(h.Name)
		if err != nil {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		if _, err := io.Copy(f, content); err != nil {
			return err
		}
		return f.Close()
	case tar.TypeDir:
		err = w.Mkdir(h.Name, h.FileInfo().Mode())
	case tar.TypeSymlink:
		err = w.Symlink(h.Linkname, h.Name)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		err = w.Mknod(h.Name, nodeTypes[h.Typeflag], uint32(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	default:
		return errRefused
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	return nil
}
