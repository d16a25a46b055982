package converter

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/erofs"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
)

// fuzzLimits keep a layer small, and with it what an image may become.
// Only files of more than 16 MiB can have chunks larger than a block.
var fuzzLimits = Limits{FileBytes: 17 << 20, LayerBytes: 20 << 20, StreamBytes: 8 << 20, Inodes: 1000}

// The largest files that fuzzLimits allow: contents, and a block for each inode that is not filled; what the stream says of names, targets and
// attributes, and for each inode a block of it and one of its directory that are not filled, in segments of a mebibyte.
const (
	maxDataBytes = 20<<20 + 1001*erofs.BlockBytes
	maxMetaBytes = 8<<20 + 2*1001*erofs.BlockBytes + 2<<20
)

// checkedTarget is a Target whose files notice what no conversion may do.
type checkedTarget struct{ meta, data *checkedFile }

func newCheckedTarget() *checkedTarget {
	return &checkedTarget{meta: &checkedFile{name: "meta image", most: maxMetaBytes}, data: &checkedFile{name: "data blob", most: maxDataBytes, forward: true}}
}

func (c *checkedTarget) target() Target { return Target{Meta: c.meta, Data: c.data} }

// check reports what the files noticed, and compares their lengths with a result if there is one.
func (c *checkedTarget) check(t *testing.T, r Result, err error) {
	t.Helper()
	for _, f := range []struct {
		*checkedFile
		result int64
	}{{c.meta, r.MetaBytes}, {c.data, r.DataBytes}} {
		if f.wrong != nil {
			t.Error(f.wrong)
		}
		if err != nil {
			continue
		}
		if !f.cut || int64(len(f.b)) != f.result || f.result == 0 || f.result%erofs.BlockBytes != 0 {
			t.Errorf("%s: %d bytes, length set: %v, the result says %d", f.name, len(f.b), f.cut, f.result)
		}
	}
}

// checkedFile is an erofs.File in memory.
type checkedFile struct {
	memFile
	name    string
	most    int64 // no sound conversion makes it longer
	forward bool  // written from the front, nothing twice
	written int64 // end of what was written
	cut     bool  // its length was set
	wrong   error // the first thing that must not happen
}

func (f *checkedFile) WriteAt(b []byte, off int64) (int, error) {
	end := off + int64(len(b))
	switch {
	case off < 0 || end > f.most:
		return 0, f.fail("%d bytes are written at %d", len(b), off)
	case f.cut && end > int64(len(f.b)):
		return 0, f.fail("%d bytes are written at %d, behind the length of %d", len(b), off, len(f.b))
	case f.forward && off < f.written:
		return 0, f.fail("%d bytes are written at %d, after others up to %d", len(b), off, f.written)
	}
	f.written = max(f.written, end)
	return f.memFile.WriteAt(b, off)
}

func (f *checkedFile) Truncate(n int64) error {
	if f.cut || n < f.written || n > f.most {
		return f.fail("its length is set to %d, what was written ends at %d, set before: %v", n, f.written, f.cut)
	}
	f.cut = true
	return f.memFile.Truncate(n)
}

func (f *checkedFile) fail(format string, args ...any) error {
	err := fmt.Errorf(f.name+": "+format, args...)
	if f.wrong == nil {
		f.wrong = err
	}
	return err
}

// noGoroutines waits for goroutines that have done their work to be gone.
func noGoroutines(t *testing.T, before int) {
	t.Helper()
	for wait := time.Microsecond; runtime.NumGoroutine() > before; wait *= 2 {
		if wait > time.Second {
			t.Fatalf("%d goroutines before, %d after", before, runtime.NumGoroutine())
		}
		time.Sleep(wait)
	}
}

// withSums corrects the checksum of everything that has the magic of a header.
func withSums(in []byte) []byte {
	out := append([]byte(nil), in...)
	for b := out; len(b) >= tartest.BlockBytes; b = b[tartest.BlockBytes:] {
		if string(b[257:262]) != "ustar" {
			continue
		}
		copy(b[148:156], "        ")
		sum := 0
		for _, c := range b[:tartest.BlockBytes] {
			sum += int(c)
		}
		copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	}
	return out
}

// forms is an archive with the forms that archive/tar does not write.
func forms() []byte {
	var b tartest.Builder
	b.LongName("dir/long")
	b.Entry(tartest.Header{Magic: tartest.GNU, Name: "x", Type: '0', Mode: 0o644}, tartest.Pattern(4097, 1))
	b.LongLink("dir/long")
	b.Entry(tartest.Header{Magic: tartest.GNU, Name: "link", Type: '1'}, nil)
	segments := tartest.Segments(0, 1, 5000, 4096, 20000, 0)
	data := tartest.SparseData(segments)
	h := tartest.Header{Name: "sparse", Type: '0', Mode: 0o644}
	b.SparseOld(h, 20000, segments, data)
	b.Sparse00(h, 20000, segments, data)
	b.Sparse01(h, 20000, segments, data)
	b.Sparse10(h, 20000, segments, data, "SCHILY.xattr.user.a", "b", "mtime", "-1.5")
	large := tartest.Segments(0, 1, 9000, 4096, 8<<20, 1, 16<<20, 100, 17<<20, 0)
	b.Sparse10(tartest.Header{Name: "large", Type: '0'}, 17<<20, large, tartest.SparseData(large))
	b.Global("uid", "7")
	b.PAX("SCHILY.acl.access", "user::rw-,group::r--,other::---", "LIBARCHIVE.xattr.trusted.x", "AAAA", "SCHILY.xattr.security.y", "", "size", "3", "path", "p/q")
	b.Entry(tartest.Header{Name: "x", Type: '0', Mode: 0o4755}, []byte("pax"))
	b.Entry(tartest.Header{Name: "block", Type: '4', Devmajor: 4095, Devminor: 1<<20 - 1, UID: 1 << 31, ModTime: -5}, nil)
	b.Entry(tartest.Header{Name: "fifo", Type: '6'}, nil)
	return b.End()
}
