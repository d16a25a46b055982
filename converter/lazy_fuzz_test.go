package converter

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/erofs"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/indextest"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/zstdchunked"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
)

// FuzzFromIndex makes images of tables of contents in both dialects.
func FuzzFromIndex(f *testing.F) {
	sum := "sha256:" + strings.Repeat("ab", 32)
	for _, entries := range []string{
		``,
		`{"name":"a/b","type":"reg","size":5,"offset":9,"endOffset":90,"digest":"SUM"},{"name":"l","type":"hardlink","linkName":"a/b"}`,
		`{"name":"a","type":"reg","size":9,"offset":9,"endOffset":90,"chunkSize":4,"chunkDigest":"SUM"},
			{"type":"chunk","offset":40,"chunkOffset":4,"chunkSize":5,"chunkDigest":"SUM"},{"name":"a","type":"dir","mode":511}`,
		`{"name":"s","type":"reg","size":100000009,"offset":9,"endOffset":90,"chunkSize":4,"chunkDigest":"SUM"},
			{"type":"chunk","offset":40,"chunkOffset":4,"chunkSize":100000000,"chunkType":"zeros"},
			{"type":"chunk","offset":40,"chunkOffset":100000004,"chunkSize":5,"chunkDigest":"SUM"}`,
		`{"name":".wh..wh..opq","type":"reg"},{"name":"d/.wh.x","type":"reg"},{"name":"s","type":"symlink","linkName":"d"},
			{"name":"s/c","type":"char","devMajor":1,"modtime":"2001-02-03T04:05:06.7Z","xattrs":{"user.a":"YQ==","security.b":""}}`,
	} {
		f.Add(`{"version":1,"entries":[` + strings.ReplaceAll(entries, "SUM", sum) + `]}`)
	}
	limits := Limits{FileBytes: 1 << 34, LayerBytes: 1 << 35, Inodes: 500, MetadataBytes: 100000}
	f.Fuzz(func(t *testing.T, text string) {
		for _, annotation := range []string{"io.github.containers.zstd-chunked.manifest-", "io.containers.zstd-chunked.manifest-"} {
			layer, blob := indextest.WithTOC(make([]byte, 1000), []byte(text), annotation)
			idx, err := zstdchunked.Open(layer, bytes.NewReader(blob), index.Limits{Bytes: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			// The longest: an inode with its chunk map or attributes in each of 16 blocks, and what the limits allow of names and attributes.
			meta := &checkedFile{name: "meta image", most: 500*(16+64+1)*erofs.BlockBytes + 1<<20}
			made, err := FromIndex(context.Background(), idx, meta, [32]byte{}, limits)
			if meta.wrong != nil {
				t.Fatal(meta.wrong)
			}
			if err != nil {
				continue
			}
			if made.Prefetch < 0 || made.MetaBytes != int64(len(meta.b)) || made.DataBytes > limits.LayerBytes+limits.Inodes*erofs.BlockBytes {
				t.Fatalf("%+v, meta image of %d bytes", made.Result, len(meta.b))
			}
			checkExtents(t, made)
		}
	})
}

// checkExtents checks what whoever keeps a data blob relies on.
func checkExtents(t *testing.T, l Lazy) {
	t.Helper()
	var end int64
	for i, x := range l.Extents {
		if x.At < end || x.Hole || x.Length <= 0 || x.At > l.DataBytes-x.Length {
			t.Fatalf("extent %d: %+v, the one before ends at %d, the data blob at %d", i, x, end, l.DataBytes)
		}
		end = x.At + x.Length
	}
}

// FuzzCheckTar makes a right index of an archive, with extents of some length, expects that it gives the same tree and passes the check;
// and then a wrong one, which must not.
func FuzzCheckTar(f *testing.F) {
	f.Add(forms(), uint16(1000), uint16(3))
	f.Add(tartest.Pack(tartest.Edge()[:20]), uint16(3), uint16(2<<8+5))
	f.Add(tartest.Pack(tartest.Duplicates()), uint16(9), uint16(7<<8))
	f.Fuzz(func(t *testing.T, in []byte, extentBytes, change uint16) {
		in = withSums(in)
		records, err := recordsOf(in, int64(extentBytes)+1)
		if err != nil {
			return
		}
		eager, err := FromTar(t.Context(), bytes.NewReader(in), Target{Meta: discard{}, Data: discard{}}, fuzzLimits)
		made, lazyErr := FromIndex(t.Context(), listIndex(records), discard{}, [32]byte{}, fuzzLimits)
		if (err == nil) != (lazyErr == nil) {
			t.Fatalf("tar: %v, index: %v", err, lazyErr)
		}
		if err != nil {
			return
		}
		if made.Inodes != eager.Inodes || made.Dropped != eager.Dropped || made.OpaqueRoot != eager.OpaqueRoot {
			t.Fatalf("tar: %+v, index: %+v", eager, made.Result)
		}
		checkExtents(t, made)
		checkDelivery(t, in, records, made, eager)
		if !spoil(records, int(change>>8), int(change&0xff)) {
			return
		}
		_, err = CheckTar(t.Context(), bytes.NewReader(in), listIndex(records), fuzzLimits, func(int, []byte) error { return nil })
		if !errors.Is(err, ErrMismatch) {
			t.Fatalf("change %#x: %v", change, err)
		}
	})
}

// checkDelivery expects a check without mismatches.
func checkDelivery(t *testing.T, in []byte, records []*index.Record, made Lazy, eager Result) {
	t.Helper()
	next := 0
	sums, err := CheckTar(t.Context(), bytes.NewReader(in), listIndex(records), fuzzLimits, func(i int, b []byte) error {
		if x := made.Extents[i]; i != next || int64(len(b)) != x.Length || sha256.Sum256(b) != x.Digest {
			return fmt.Errorf("extent %d of %d bytes, want %d of %d", i, len(b), next, x.Length)
		}
		next++
		return nil
	})
	if err != nil || next != len(made.Extents) || sums.DiffID != eager.DiffID || sums.BlobBytes != eager.BlobBytes {
		t.Fatalf("%d of %d extents, %+v, %v", next, len(made.Extents), sums, err)
	}
}

// recordsOf makes an index of an archive as good as an index can be.
func recordsOf(in []byte, extentBytes int64) (records []*index.Record, err error) {
	archive := tarstream.NewReader(bytes.NewReader(in), tarstream.Limits{FileBytes: fuzzLimits.FileBytes})
	for {
		h, err := archive.Next()
		if err == io.EOF {
			return records, nil
		}
		if err != nil {
			return nil, err
		}
		r := &index.Record{Header: *h}
		r.Offset, r.Sparse, r.NamedACLs, r.Xattrs = -1, nil, 0, nil
		for _, x := range h.Xattrs {
			r.Xattrs = append(r.Xattrs, tarstream.Xattr{Name: x.Name, Value: bytes.Clone(x.Value)})
		}
		slices.SortFunc(r.Xattrs, func(a, b tarstream.Xattr) int { return strings.Compare(a.Name, b.Name) })
		path, err := splitPath(h.Name)
		if err != nil {
			return nil, err
		}
		if r.Name = strings.Join(path, "/"); h.Type == tarstream.HardLink {
			if path, err = splitPath(h.Linkname); err != nil {
				return nil, err
			}
			r.Linkname = strings.Join(path, "/")
		}
		if h.NamedACLs > 0 {
			return nil, errors.New("counted of the tar alone")
		}
		if r.Extents, err = extentsOf(archive, h, extentBytes); err != nil {
			return nil, err
		}
		records = append(records, r)
		if len(records) > 200 {
			return nil, errors.New("enough")
		}
	}
}

// extentsOf splits a file, and makes holes of zeros.
func extentsOf(archive *tarstream.Reader, h *tarstream.Header, extentBytes int64) (list []index.Extent, err error) {
	data := make([]byte, h.Size)
	if h.Sparse == nil {
		_, err = io.ReadFull(archive, data)
	}
	for _, s := range h.Sparse {
		if _, err := io.ReadFull(archive, data[s.Offset:s.Offset+s.Length]); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	extentBytes = max(extentBytes, h.Size/50)
	for at := int64(0); at < h.Size; at += extentBytes {
		b := data[at:min(at+extentBytes, h.Size)]
		x := index.Extent{Offset: at, Length: int64(len(b))}
		if x.Hole = len(bytes.Trim(b, "\x00")) == 0; !x.Hole {
			x.Digest = sha256.Sum256(b)
		}
		list = append(list, x)
	}
	return list, nil
}

// spoil changes one record, if it has what is to be changed, so that it is not that of the tar any more.
func spoil(records []*index.Record, which, what int) bool {
	if len(records) == 0 {
		return false
	}
	r := records[which%len(records)]
	switch what % 9 {
	case 0:
		r.Mode ^= 1
	case 1:
		r.UID++
	case 2:
		r.GID++
	case 3:
		r.ModTime.Sec += 2
	case 4:
		r.Name += "x"
	case 5:
		r.Devminor++
	case 6:
		r.Linkname += "x"
	case 7:
		r.Xattrs = append(r.Xattrs, tarstream.Xattr{Name: "zz"})
	case 8:
		if len(r.Extents) == 0 {
			return false
		}
		x := &r.Extents[len(r.Extents)-1]
		x.Digest[0]++
		x.Hole = !x.Hole
	}
	return true
}

func listIndex(records []*index.Record) *index.Index {
	return &index.Index{Format: "test", Records: func() (index.Reader, error) { return &listReader{records}, nil }}
}

type listReader struct{ left []*index.Record }

func (l *listReader) Next() (*index.Record, error) {
	if len(l.left) == 0 {
		return nil, io.EOF
	}
	next := l.left[0]
	l.left = l.left[1:]
	return next, nil
}

func (l *listReader) Prefetch() int64 { return 0 }
