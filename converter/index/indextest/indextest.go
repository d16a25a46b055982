// Package indextest is the test that every index format must pass: the records of an index, and the contents decoded from their extents,
// are the files that archive/tar reads in the same layer. It also makes layers in a dialect whose own tools are no library.
package indextest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"io"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
)

// Archive returns a tar archive of files that are easy to get wrong and that an index can express, together with the given ones.
//
// Left out is a hard link to a file that is replaced later: the builder of eStargz drops the earlier file, from the tar as well, and so
// the link comes before its target.
func Archive(more ...tartest.File) []byte {
	files := slices.Concat(tartest.Edge(), tartest.Duplicates(), more)
	return tartest.Pack(slices.DeleteFunc(files, func(f tartest.File) bool {
		return !utf8.ValidString(f.Name) || !utf8.ValidString(f.Linkname) || f.Name == "keeps"
	}))
}

// Blob is a layer's blob that counts how often and how much of it was read.
type Blob struct {
	Data  []byte
	Reads int
	Bytes int64
}

// ReadAt implements io.ReaderAt.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) {
	n, err := bytes.NewReader(b.Data).ReadAt(p, off)
	b.Reads++
	b.Bytes += int64(n)
	return n, err
}

// Records returns all records of an index, and how much of the blob to prefetch.
func Records(t testing.TB, x *index.Index) ([]*index.Record, int64) {
	t.Helper()
	r, err := x.Records()
	if err != nil {
		t.Fatal(err)
	}
	var all []*index.Record
	for {
		record, err := r.Next()
		if err == io.EOF {
			return all, r.Prefetch()
		}
		if err != nil {
			t.Fatalf("after %d records: %v", len(all), err)
		}
		all = append(all, record)
	}
}

// file is a record with contents in place of extents.
type file struct {
	tarstream.Header
	contents string
}

// Check compares the index of a blob with the archive that the blob was made of. Times are compared in a unit of timeUnit nanoseconds,
// to which the format rounds.
func Check(t testing.TB, x *index.Index, blob, archive []byte, timeUnit int64) {
	t.Helper()
	got := make(map[string]file)
	var d index.Decoder
	records, _ := Records(t, x)
	for _, r := range records {
		if _, ok := got[r.Linkname]; r.Type == tarstream.HardLink && !ok {
			t.Errorf("%q comes before %q, to which it is a link", r.Name, r.Linkname)
		}
		got[r.Name] = file{r.Header, contents(t, &d, x.Codec, r, blob)}
	}
	want := files(t, archive, timeUnit)
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			t.Errorf("%q is missing", name)
		} else if !reflect.DeepEqual(g.Header, w.Header) {
			t.Errorf("%q:\n got %+v\nwant %+v", name, g.Header, w.Header)
		} else if g.contents != w.contents {
			t.Errorf("%q: contents differ: %d bytes, want %d", name, len(g.contents), len(w.contents))
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%q is not in the archive", name)
		}
	}
}

// contents decodes all extents of a file.
func contents(t testing.TB, d *index.Decoder, c index.Codec, r *index.Record, blob []byte) string {
	t.Helper()
	all := make([]byte, r.Size)
	var opened index.Range
	var at int64
	for _, x := range r.Extents {
		if x.Offset != at {
			t.Fatalf("%q: extent at %d, want %d", r.Name, x.Offset, at)
		}
		at += x.Length
		if !x.Hole && x.Blob != opened {
			if err := d.Open(c, x.Blob, blob[x.Blob.Start:x.Blob.End], nil); err != nil {
				t.Fatalf("%q: %v", r.Name, err)
			}
			opened = x.Blob
		}
		if err := d.Decode(x, all[x.Offset:at]); err != nil {
			t.Fatalf("%q: %v", r.Name, err)
		}
	}
	if at != r.Size {
		t.Fatalf("%q: extents of %d bytes, size is %d", r.Name, at, r.Size)
	}
	return string(all)
}

var types = map[byte]tarstream.Type{
	tar.TypeReg: tarstream.Regular, tar.TypeLink: tarstream.HardLink, tar.TypeSymlink: tarstream.Symlink, tar.TypeChar: tarstream.CharDevice,
	tar.TypeBlock: tarstream.BlockDevice, tar.TypeDir: tarstream.Directory, tar.TypeFifo: tarstream.FIFO,
}

// files returns what archive/tar reads, the last entry of each name.
func files(t testing.TB, archive []byte, timeUnit int64) map[string]file {
	t.Helper()
	all := make(map[string]file)
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		f := file{Header: header(h, timeUnit)}
		if f.Type == tarstream.Regular {
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			f.contents, f.Size = string(data), h.Size
		}
		all[f.Name] = f
	}
}

func header(h *tar.Header, timeUnit int64) tarstream.Header {
	out := tarstream.Header{
		Name: clean(h.Name), Type: types[h.Typeflag], Mode: uint32(h.Mode & 07777), UID: uint32(h.Uid), GID: uint32(h.Gid), Offset: -1,
	}
	switch out.Type {
	case tarstream.HardLink:
		out.Linkname = clean(h.Linkname)
	case tarstream.Symlink:
		out.Linkname = h.Linkname
	case tarstream.CharDevice, tarstream.BlockDevice:
		out.Devmajor, out.Devminor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	out.ModTime = tarstream.Time{Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond())}
	if timeUnit == 1e9 {
		out.ModTime = tarstream.Time{Sec: int64(math.Floor(float64(h.ModTime.Unix()) + float64(h.ModTime.Nanosecond())/1e9 + 0.5))}
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			out.Xattrs = append(out.Xattrs, tarstream.Xattr{Name: name, Value: []byte(value)})
		}
	}
	slices.SortFunc(out.Xattrs, func(a, b tarstream.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// clean makes a path what the name of a record is.
func clean(path string) string {
	parts := slices.DeleteFunc(strings.Split(path, "/"), func(p string) bool { return p == "" || p == "." })
	return strings.Join(parts, "/")
}
