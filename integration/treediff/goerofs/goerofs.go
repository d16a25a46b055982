// Package goerofs scans an image as github.com/erofs/go-erofs reads it: a reader of the format that shares no code with the kernel,
// with erofs-utils or with our writer.
//
// Version 0.3.1 has limits that are worked around here. It resolves the device of chunk maps but reads the blocks of all other files
// from the meta image, so it is given both files as one address space. It calls an ACL "system.posix_acl_access.", with a dot at
// the end. One limit has no way around it: a shared attribute that is longer than a block cannot be read. Ours are those of a root directory
// whose attributes do not fit into block 0.
package goerofs

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	erofs "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff"
)

// Scan returns the tree of an image with one device. Contents of files of more than maxContent bytes are not read: the library
// has no way to skip holes.
func Scan(ctx context.Context, meta, data *os.File, maxContent int64) ([]treediff.Record, error) {
	st, err := meta.Stat()
	if err != nil {
		return nil, err
	}
	image, err := open(meta, st.Size(), data)
	if err != nil {
		return nil, fmt.Errorf("open %s with go-erofs: %w", meta.Name(), err)
	}
	return scanImage(ctx, image, maxContent)
}

func scanImage(ctx context.Context, image fs.FS, maxContent int64) ([]treediff.Record, error) {
	s := scan{ctx: ctx, image: image, maxContent: maxContent, inodes: map[int64][]*treediff.Record{}}
	root, err := fs.Stat(image, ".")
	if err != nil {
		return nil, err
	}
	if err := s.entry(".", root); err != nil {
		return nil, err
	}
	return s.finish(), nil
}

func open(meta io.ReaderAt, metaBytes int64, data io.ReaderAt) (fs.FS, error) {
	uniaddr, err := deviceAddress(meta)
	if err != nil {
		return nil, err
	}
	return erofs.Open(addressSpace{meta, data, metaBytes, uniaddr}, erofs.WithExtraDevices(data))
}

// deviceAddress reads where the first device begins in the image's address space.
func deviceAddress(meta io.ReaderAt) (int64, error) {
	const slotNumberAt, slotBytes, uniaddrAt, blockBytes = 1024 + 88, 128, 68, 4096
	var b [4]byte
	if _, err := meta.ReadAt(b[:2], slotNumberAt); err != nil {
		return 0, err
	}
	slot := int64(binary.LittleEndian.Uint16(b[:])) * slotBytes
	if _, err := meta.ReadAt(b[:], slot+uniaddrAt); err != nil {
		return 0, err
	}
	return int64(binary.LittleEndian.Uint32(b[:])) * blockBytes, nil
}

// addressSpace shows the data blob at its address behind the meta image.
type addressSpace struct {
	meta, data io.ReaderAt
	metaBytes  int64
	dataAt     int64
}

func (a addressSpace) ReadAt(b []byte, offset int64) (int, error) {
	if offset >= a.dataAt {
		return a.data.ReadAt(b, offset-a.dataAt)
	}
	n, err := a.meta.ReadAt(b, offset)
	if err == io.EOF && n > 0 && offset+int64(n) == a.metaBytes {
		clear(b[n:]) // the library always asks for whole blocks, wherever they begin
		return len(b), nil
	}
	return n, err
}

type scan struct {
	ctx        context.Context
	image      fs.FS
	maxContent int64
	records    []*treediff.Record
	inodes     map[int64][]*treediff.Record
}

func (s *scan) entry(name string, info fs.FileInfo) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	st, ok := info.Sys().(*erofs.Stat)
	if !ok {
		return fmt.Errorf("%q: go-erofs returned a %T", name, info.Sys())
	}
	r := &treediff.Record{
		Path:   name,
		Type:   typeOf(st.Mode),
		Mode:   permissions(st.Mode),
		UID:    st.UID,
		GID:    st.GID,
		Mtime:  treediff.Time{Sec: int64(st.Mtime), Nsec: int64(st.MtimeNs)},
		Xattrs: attributes(st.Xattrs),
	}
	s.records = append(s.records, r)
	if r.Type == treediff.Directory {
		return s.directory(name)
	}
	r.Size, r.Nlink = st.Size, uint64(st.Nlink)
	if st.Nlink > 1 {
		s.inodes[st.Ino] = append(s.inodes[st.Ino], r)
	}
	return s.content(r, st)
}

func (s *scan) directory(name string) error {
	entries, err := fs.ReadDir(s.image, name)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", name, err)
	}
	for _, e := range entries {
		at := path.Join(name, e.Name())
		info, err := e.Info()
		if err != nil {
			return fmt.Errorf("stat %q: %w", at, err)
		}
		if err := s.entry(at, info); err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) content(r *treediff.Record, st *erofs.Stat) (err error) {
	switch r.Type {
	case treediff.Character, treediff.Block:
		r.Rdev = decodeDevice(st.Rdev)
	case treediff.Symlink:
		if r.Target, err = fs.ReadLink(s.image, r.Path); err != nil {
			return fmt.Errorf("read link %q: %w", r.Path, err)
		}
	case treediff.File:
		if r.Size > s.maxContent {
			return nil
		}
		if r.Content, err = s.digest(r.Path); err != nil {
			return fmt.Errorf("read %q: %w", r.Path, err)
		}
	}
	return nil
}

func (s *scan) digest(name string) (string, error) {
	f, err := s.image.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (s *scan) finish() []treediff.Record {
	byPath := func(a, b *treediff.Record) int { return strings.Compare(a.Path, b.Path) }
	slices.SortFunc(s.records, byPath)
	for _, group := range s.inodes {
		if len(group) < 2 {
			continue
		}
		first := slices.MinFunc(group, byPath)
		for _, r := range group {
			r.FirstLink = first.Path
		}
	}
	records := make([]treediff.Record, len(s.records))
	for i, r := range s.records {
		records[i] = *r
	}
	return records
}

func attributes(xattrs map[string]string) map[string]string {
	out := make(map[string]string, len(xattrs))
	for name, value := range xattrs {
		out[strings.TrimSuffix(name, ".")] = value
	}
	return out
}

func typeOf(m fs.FileMode) treediff.Type {
	switch {
	case m.IsDir():
		return treediff.Directory
	case m&fs.ModeSymlink != 0:
		return treediff.Symlink
	case m&fs.ModeCharDevice != 0:
		return treediff.Character
	case m&fs.ModeDevice != 0:
		return treediff.Block
	case m&fs.ModeNamedPipe != 0:
		return treediff.FIFO
	case m&fs.ModeSocket != 0:
		return treediff.Socket
	}
	return treediff.File
}

func permissions(m fs.FileMode) uint32 {
	p := uint32(m.Perm())
	for _, bit := range []struct {
		mode fs.FileMode
		bit  uint32
	}{{fs.ModeSetuid, unix.S_ISUID}, {fs.ModeSetgid, unix.S_ISGID}, {fs.ModeSticky, unix.S_ISVTX}} {
		if m&bit.mode != 0 {
			p |= bit.bit
		}
	}
	return p
}

// decodeDevice turns the number on disk, the kernel's new_encode_dev, into that of stat.
func decodeDevice(d uint32) uint64 {
	return unix.Mkdev(d>>8&0xfff, d&0xff|d>>12&0xfff00)
}
