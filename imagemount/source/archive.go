package source

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

const (
	// maxArchiveEntries bounds the memory that the table of an archive takes. An image has three entries for each layer at most.
	maxArchiveEntries = 100_000
	// maxArchiveBytes bounds what a compressed archive may decompress to: the room is taken on the disk of the root.
	maxArchiveBytes = 1 << 40
	// maxLinks bounds how many links are followed from one name. docker save made one for a layer that is there twice.
	maxLinks = 8
	// maxWindowBytes bounds the memory of the zstd decoder. The format's recommendation for decoders is 8 MiB; --ultra needs 128.
	maxWindowBytes = 128 << 20
)

// archive is a tree of sections of a tar file.
type archive struct {
	tar     *os.File
	entries map[string]entry
}

// entry is a regular file, or a link to another name.
type entry struct {
	offset, size int64
	link         string
}

// openArchive makes the table of a tar file. A compressed one is decompressed first.
func openArchive(ctx context.Context, name string, opts Options) (*archive, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	plain, err := decompressed(ctx, f, opts)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if plain != f {
		f.Close()
	}
	size, err := plain.Seek(0, io.SeekEnd)
	var entries map[string]entry
	if err == nil {
		entries, err = readTable(ctx, io.NewSectionReader(plain, 0, size))
	}
	if err != nil {
		return nil, errors.Join(err, plain.Close())
	}
	return &archive{tar: plain, entries: entries}, nil
}

// compression is how a file is compressed, told by its first bytes.
type compression struct {
	name  string
	magic []byte
	open  func(io.Reader) (io.ReadCloser, error)
}

var compressions = []compression{
	{"gzip", []byte{0x1f, 0x8b}, func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }},
	{"zstd", []byte{0x28, 0xb5, 0x2f, 0xfd}, func(r io.Reader) (io.ReadCloser, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindowBytes))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}},
}

// compressionOf returns nil for what is not compressed, or not in a way that is known.
func compressionOf(head []byte) *compression {
	for i := range compressions {
		if bytes.HasPrefix(head, compressions[i].magic) {
			return &compressions[i]
		}
	}
	return nil
}

// decompressed returns f itself if it is not compressed, and otherwise a file without a name.
func decompressed(ctx context.Context, f *os.File, opts Options) (*os.File, error) {
	var head [4]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	how := compressionOf(head[:n])
	if how == nil {
		return f, nil
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if opts.Decompressing != nil {
		opts.Decompressing(f.Name(), fi.Size())
	}
	in, err := how.open(bufio.NewReaderSize(bound{ctx, f}, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", how.name, err)
	}
	defer in.Close()
	out, err := unnamedFile(opts.Scratch)
	if err != nil {
		return nil, fmt.Errorf("room for the decompressed archive: %w", err)
	}
	copied, err := io.Copy(out, io.LimitReader(in, maxArchiveBytes+1))
	if err == nil && copied > maxArchiveBytes {
		err = fmt.Errorf("it decompresses to more than %d bytes", int64(maxArchiveBytes))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("decompress the archive (%s) into %s: %w", how.name, opts.Scratch, err), out.Close())
	}
	return out, nil
}

// unnamedFile makes a file that no directory has.
func unnamedFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "make an unnamed file in", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// readTable reads the headers of a tar. Contents are passed over. Of entries with the same name the last one counts, as for tar.
func readTable(ctx context.Context, r io.ReadSeeker) (map[string]entry, error) {
	entries := map[string]entry{}
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if err == io.EOF {
			return entries, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read it as a tar archive: %w", err)
		}
		if n == maxArchiveEntries {
			return nil, fmt.Errorf("it has more than %d entries", maxArchiveEntries)
		}
		name := path.Clean("/" + h.Name)[1:]
		switch h.Typeflag {
		case tar.TypeReg:
			// The reader takes exactly the header, so the contents begin here. A sparse file's would not be one section; images have none.
			if isSparse(h) {
				continue
			}
			offset, err := r.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			entries[name] = entry{offset: offset, size: h.Size}
		case tar.TypeSymlink:
			entries[name] = entry{link: path.Join("/", path.Dir(name), h.Linkname)[1:]}
		case tar.TypeLink:
			entries[name] = entry{link: path.Clean("/" + h.Linkname)[1:]}
		}
	}
}

func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func (a *archive) has(name string) bool {
	_, err := a.find(name)
	return err == nil
}

func (a *archive) find(name string) (entry, error) {
	at := path.Clean("/" + name)[1:]
	for range maxLinks {
		e, ok := a.entries[at]
		if !ok {
			return entry{}, &fs.PathError{Op: "find in the archive", Path: name, Err: fs.ErrNotExist}
		}
		if e.link == "" {
			return e, nil
		}
		at = e.link
	}
	return entry{}, &fs.PathError{Op: "find in the archive", Path: name, Err: unix.ELOOP}
}

func (a *archive) open(name string) (file, error) {
	e, err := a.find(name)
	if err != nil {
		return file{}, err
	}
	return file{io.NopCloser(io.NewSectionReader(a.tar, e.offset, e.size)), e.size}, nil
}

func (a *archive) Close() error { return a.tar.Close() }
