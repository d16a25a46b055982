package converter_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
)

// sample is a small layer and the records of a right index of it.
func sample() (archive []byte, records []*index.Record) {
	archive = tartest.Pack([]tartest.File{
		{Name: "hidden", Type: '0', Data: []byte("the index itself")},
		{Name: "./dir/", Type: '5', Mode: 0o755, UID: 1, Sec: 10, Nsec: 5e8},
		{Name: "dir/.wh.gone", Type: '0', Data: []byte("mark")},
		{Name: "dir/file", Type: '0', Mode: 0o644, Data: []byte("data\x00\x00\x00more"), Xattrs: []tartest.Xattr{{Name: "user.b", Value: "2"}, {Name: "user.a", Value: "1"}}},
		{Name: "link", Type: '1', Linkname: "./dir/file"},
		{Name: "symlink", Type: '2', Linkname: "dir/./file"},
		{Name: "device", Type: '3', Devmajor: 7, Devminor: 8},
		{
			Name: "acl", Type: '0', Xattrs: []tartest.Xattr{{Name: "system.posix_acl_access", Value: "-"}},
			ACLAccess: "user::rw-,user:1000:r-x,group::r--,mask::r-x,other::---",
		},
	})
	dir := &index.Record{Header: tarstream.Header{Name: "dir", Type: tarstream.Directory, Mode: 0o755, UID: 1, ModTime: tarstream.Time{Sec: 11}}}
	mark := recordOf("dir/.wh.gone", 4)
	mark.Mode, mark.Extents[0].Digest = 0, sha256.Sum256([]byte("mark"))
	file := recordOf("dir/file", 4, 3, 4)
	file.Xattrs = []tarstream.Xattr{{Name: "user.a", Value: []byte("1")}, {Name: "user.b", Value: []byte("2")}}
	file.Extents[0].Digest, file.Extents[2].Digest = sha256.Sum256([]byte("data")), sha256.Sum256([]byte("more"))
	acl := recordOf("acl")
	acl.Mode = 0
	return archive, []*index.Record{
		dir, mark, file,
		{Header: tarstream.Header{Name: "link", Type: tarstream.HardLink, Linkname: "dir/file"}},
		{Header: tarstream.Header{Name: "symlink", Type: tarstream.Symlink, Linkname: "dir/./file"}},
		{Header: tarstream.Header{Name: "device", Type: tarstream.CharDevice, Devmajor: 7, Devminor: 8}},
		acl,
	}
}

func nothing(int, []byte) error { return nil }

func checkTar(r io.Reader, l converter.Limits, put func(int, []byte) error, records ...*index.Record) (converter.Sums, error) {
	return converter.CheckTar(context.Background(), r, indexOf(records...), l, put)
}

func TestCheckTar(t *testing.T) {
	archive, records := sample()
	var got []string
	sums, err := checkTar(bytes.NewReader(archive), converter.Limits{}, func(i int, b []byte) error {
		if i != len(got) {
			t.Errorf("extent %d after %d", i, len(got))
		}
		got = append(got, string(b))
		return nil
	}, records...)
	must(t, err)
	if want := []string{"data", "more"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if sums.Blob != sums.DiffID || sums.DiffBytes != int64(len(archive)) || sums.BlobBytes != sums.DiffBytes {
		t.Errorf("got %+v", sums)
	}
}

func TestMismatch(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(r []*index.Record) []*index.Record
		want   string
	}{
		{"record too few", func(r []*index.Record) []*index.Record { return r[:6] }, `entry "acl" at tar offset`},
		{"record too many", func(r []*index.Record) []*index.Record { return append(r, recordOf("more")) }, `the index has "more", the tar has not`},
		{"order", func(r []*index.Record) []*index.Record { r[4], r[5] = r[5], r[4]; return r }, `entry "symlink" at tar offset 6144: layer is not what its index says: name "symlink", in the index "device"`},
		{"type", func(r []*index.Record) []*index.Record { r[0].Type = tarstream.FIFO; return r }, `entry "./dir/"`},
		{"size", func(r []*index.Record) []*index.Record { r[2].Size++; return r }, "size 11, in the index 12"},
		{"hard link", func(r []*index.Record) []*index.Record { r[3].Linkname = "file"; return r }, `link target "dir/file", in the index "file"`},
		{"symbolic link", func(r []*index.Record) []*index.Record { r[4].Linkname = "dir/file"; return r }, "link target"},
		{"mode", func(r []*index.Record) []*index.Record { r[2].Mode |= 0o4000; return r }, "mode 0644, in the index 4644"},
		{"uid", func(r []*index.Record) []*index.Record { r[0].UID++; return r }, "uid 1, in the index 2"},
		{"gid", func(r []*index.Record) []*index.Record { r[0].GID++; return r }, "gid 0, in the index 1"},
		{"major", func(r []*index.Record) []*index.Record { r[5].Devmajor++; return r }, "major 7, in the index 8"},
		{"minor", func(r []*index.Record) []*index.Record { r[5].Devminor++; return r }, "minor 8, in the index 9"},
		{"time", func(r []*index.Record) []*index.Record { r[0].ModTime.Sec = 10; return r }, "modification time 10.500000000, in the index 10.000000000"},
		{"nanoseconds", func(r []*index.Record) []*index.Record { r[0].ModTime.Nsec++; return r }, "modification time"},
		{"xattr missing", func(r []*index.Record) []*index.Record { r[2].Xattrs = r[2].Xattrs[1:]; return r }, `"user.a" is not in the index`},
		{"xattr too many", func(r []*index.Record) []*index.Record {
			r[5].Xattrs = []tarstream.Xattr{{Name: "user.c"}}
			return r
		}, `"user.c" is only in the index`},
		{"xattr", func(r []*index.Record) []*index.Record { r[2].Xattrs[1].Value = nil; return r }, `"user.b" has another value`},
		{"ACL only in the index", func(r []*index.Record) []*index.Record {
			r[5].Xattrs = []tarstream.Xattr{{Name: "system.posix_acl_access"}}
			return r
		}, "is only in the index"},
		{"other ACL", func(r []*index.Record) []*index.Record {
			r[6].Xattrs = []tarstream.Xattr{{Name: "system.posix_acl_access"}}
			return r
		}, "another value"},
		{"contents", func(r []*index.Record) []*index.Record { r[2].Extents[2].Digest[5]++; return r }, "extent at 7 has digest sha256:"},
		{"contents of a mark", func(r []*index.Record) []*index.Record { r[1].Extents[0].Digest[5]++; return r }, "extent at 0 has digest sha256:"},
		{"no hole", func(r []*index.Record) []*index.Record { r[2].Extents[2].Hole = true; return r }, "byte 7 of the file is 0x6d in the tar"},
		{"hidden name as a record", func(r []*index.Record) []*index.Record { return append([]*index.Record{recordOf("hidden", 16)}, r...) }, "name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			archive, records := sample()
			_, err := checkTar(bytes.NewReader(archive), converter.Limits{}, nothing, c.change(records)...)
			if !errors.Is(err, converter.ErrMismatch) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestHiddenElsewhere: only a regular file in the root is the format's own.
func TestHiddenElsewhere(t *testing.T) {
	archive := tartest.Pack([]tartest.File{{Name: "hidden/", Type: '5', Mode: 0o644}, {Name: "hidden/hidden", Type: '0', Mode: 0o644}})
	dir := recordOf("hidden")
	dir.Type = tarstream.Directory
	_, err := checkTar(bytes.NewReader(archive), converter.Limits{}, nothing, dir, recordOf("hidden/hidden"))
	must(t, err)
}

// TestExactTime: an index that knows fractions of seconds need not round them.
func TestExactTime(t *testing.T) {
	archive, records := sample()
	records[0].ModTime = tarstream.Time{Sec: 10, Nsec: 5e8}
	_, err := checkTar(bytes.NewReader(archive), converter.Limits{}, nothing, records...)
	must(t, err)
}

// TestSparseTar compares files whose holes the tar knows: with holes of the index, and with extents of zeros.
func TestSparseTar(t *testing.T) {
	segments := tartest.Segments(1000, 10, 1<<38, 5)
	data := tartest.SparseData(segments)
	archive := func() []byte {
		var b tartest.Builder
		b.Sparse10(tartest.Header{Name: "f", Type: '0', Mode: 0o644}, 1<<38+100, segments, data)
		return b.End()
	}()
	record := recordOf("f", 1020, 1<<38-1020, 5, 95)
	record.Extents[0].Digest = sha256.Sum256(slices.Concat(make([]byte, 1000), data[:10], make([]byte, 10)))
	record.Extents[2].Digest = sha256.Sum256(data[10:])
	var got int
	_, err := checkTar(bytes.NewReader(archive), converter.Limits{}, func(_ int, b []byte) error { got += len(b); return nil }, record)
	must(t, err)
	if got != 1025 {
		t.Errorf("%d bytes, want 1025", got)
	}
	record = recordOf("f", 0, 1<<38+100)
	if _, err := checkTar(bytes.NewReader(archive), converter.Limits{}, nothing, record); !errors.Is(err, converter.ErrMismatch) {
		t.Errorf("got %v for a hole where the tar has data", err)
	}
}

// TestWhoseFault: what follows about the layer from an error of CheckTar.
func TestWhoseFault(t *testing.T) {
	archive, records := sample()
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, err := w.Write(archive)
	must(t, errors.Join(err, w.Close()))
	packed := z.Bytes()
	broken := bytes.Clone(packed)
	broken[len(broken)-5]++ // the CRC
	badSum := bytes.Clone(archive)
	badSum[bytes.LastIndex(badSum, []byte("ustar"))-100]++
	failed := errors.New("failed")
	for _, c := range []struct {
		name     string
		in       io.Reader
		limits   converter.Limits
		put      error
		mismatch bool
		want     error
	}{
		{name: "all well", in: bytes.NewReader(packed)},
		{name: "corrupt compression", in: bytes.NewReader(broken), mismatch: true},
		{name: "cut in an entry", in: bytes.NewReader(archive[:2700]), mismatch: true, want: io.ErrUnexpectedEOF},
		{name: "cut compression", in: bytes.NewReader(packed[:len(packed)/2]), mismatch: true, want: io.ErrUnexpectedEOF},
		{name: "not a tar", in: bytes.NewReader(tartest.Pattern(5000, 1)), mismatch: true, want: tarstream.ErrHeader},
		{name: "corrupt header", in: bytes.NewReader(badSum), mismatch: true, want: tarstream.ErrHeader},
		{name: "too long", in: bytes.NewReader(packed), limits: converter.Limits{StreamBytes: 3000}, mismatch: true, want: converter.ErrLimit},
		{name: "the source failed", in: io.MultiReader(bytes.NewReader(packed[:100]), iotest.ErrReader(failed)), want: failed},
		{name: "the source failed at once", in: iotest.ErrReader(failed), want: failed},
		{name: "the source of a plain tar failed", in: io.MultiReader(bytes.NewReader(archive[:2700]), iotest.ErrReader(failed)), want: failed},
		{name: "put failed", in: bytes.NewReader(packed), put: failed, want: failed},
	} {
		t.Run(c.name, func(t *testing.T) {
			sums, err := checkTar(c.in, c.limits, func(int, []byte) error { return c.put }, records...)
			if c.want == nil && !c.mismatch {
				must(t, err)
				return
			}
			if sums != (converter.Sums{}) || errors.Is(err, converter.ErrMismatch) != c.mismatch || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v, mismatch: %t", err, c.want, c.mismatch)
			}
		})
	}
	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := converter.CheckTar(ctx, bytes.NewReader(packed), indexOf(records...), converter.Limits{}, func(int, []byte) error { cancel(); return nil })
		if !errors.Is(err, context.Canceled) || errors.Is(err, converter.ErrMismatch) {
			t.Errorf("got %v", err)
		}
	})
}

// TestFlippedBits: no change of one bit of a layer's blob is overlooked, unless it changes nothing but digests.
func TestFlippedBits(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, format := range formats {
		l := format.pack(t, tartest.Pack(tartest.Edge()[:30]))
		idx := l.open(t)
		good, err := converter.CheckTar(t.Context(), bytes.NewReader(l.blob), idx, converter.Limits{}, nothing)
		must(t, err)
		for range 200 {
			bad := bytes.Clone(l.blob)
			bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
			sums, err := converter.CheckTar(t.Context(), bytes.NewReader(bad), idx, converter.Limits{}, nothing)
			if err == nil && sums.Blob == good.Blob || err != nil && !errors.Is(err, converter.ErrMismatch) {
				t.Fatalf("%s: %v, %+v", format.name, err, sums)
			}
		}
	}
}
