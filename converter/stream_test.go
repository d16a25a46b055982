package converter

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/inflate"
)

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstded(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// bigArchive has a file of random bytes, so that it does not become small when compressed.
func bigArchive(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n/2)
	rand.Read(b)
	return archive(t, "d dir", "f dir/random "+fmt.Sprintf("%x", b), "f small x", "h link small")
}

func TestCompressions(t *testing.T) {
	tar := bigArchive(t, 3<<20)
	padded := append(bytes.Clone(tar), make([]byte, 20480)...)
	half := len(tar) / 2
	skippable := []byte{0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3}
	var first Result
	for _, c := range []struct {
		name      string
		blob, tar []byte
	}{
		{"plain", tar, tar},
		{"gzip", gzipped(t, tar), tar},
		{"gzip of two members", append(gzipped(t, tar[:half]), gzipped(t, tar[half:])...), tar},
		{"gzip with an empty member", append(gzipped(t, nil), gzipped(t, tar)...), tar},
		{"zstd", zstded(t, tar), tar},
		{"zstd of two frames", append(zstded(t, tar[:half]), zstded(t, tar[half:])...), tar},
		{"zstd with skippable frames", append(append(bytes.Clone(skippable), zstded(t, tar)...), skippable...), tar},
		{"padding counts", gzipped(t, padded), padded},
	} {
		t.Run(c.name, func(t *testing.T) {
			meta, data := &memFile{}, &memFile{}
			r, err := FromTar(context.Background(), bytes.NewReader(c.blob), Target{Meta: meta, Data: data}, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if r.Blob != digest.FromBytes(c.blob) || r.BlobBytes != int64(len(c.blob)) {
				t.Errorf("blob %s %d", r.Blob, r.BlobBytes)
			}
			if r.DiffID != digest.FromBytes(c.tar) || r.DiffBytes != int64(len(c.tar)) {
				t.Errorf("diffID %s %d", r.DiffID, r.DiffBytes)
			}
			if int64(len(meta.b)) != r.MetaBytes || int64(len(data.b)) != r.DataBytes {
				t.Errorf("files of %d and %d bytes, result says %d and %d", len(meta.b), len(data.b), r.MetaBytes, r.DataBytes)
			}
			if first.Inodes == 0 {
				first = r
			}
			if r.MetaBytes != first.MetaBytes || r.Inodes != first.Inodes {
				t.Errorf("image differs from that of the plain tar: %+v, %+v", r, first)
			}
		})
	}
}

func TestBadStreams(t *testing.T) {
	tar := bigArchive(t, 1<<20)
	gz, zst := gzipped(t, tar), zstded(t, tar)
	corrupt := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 0xff
		return b
	}
	for _, c := range []struct {
		name string
		in   []byte
		want error // nil: any
	}{
		{"truncated tar", tar[:len(tar)/2], io.ErrUnexpectedEOF},
		{"truncated gzip", gz[:len(gz)/2], io.ErrUnexpectedEOF},
		{"gzip header only", gz[:5], io.ErrUnexpectedEOF},
		{"truncated gzip trailer", gz[:len(gz)-3], io.ErrUnexpectedEOF},
		{"truncated zstd", zst[:len(zst)/2], io.ErrUnexpectedEOF},
		{"corrupt gzip", corrupt(gz, len(gz)/2), nil},
		{"gzip checksum", corrupt(gz, len(gz)-6), inflate.ErrCorrupt},
		{"gzip with garbage after it", append(bytes.Clone(gz), "garbage"...), nil},
		{"corrupt zstd", corrupt(zst, len(zst)/2), nil},
		{"not a tar", bytes.Repeat([]byte("no tar "), 1000), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := convert(bytes.NewReader(c.in), Limits{})
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if !strings.Contains(err.Error(), "offset") && !strings.Contains(err.Error(), "bytes in") {
				t.Errorf("%v does not say where", err)
			}
		})
	}
}

// TestCutAtHeader shows what the documentation says: only the digest knows that such a tar is not whole.
func TestCutAtHeader(t *testing.T) {
	tar := archive(t, "f a x", "f b y")
	r, err := convert(bytes.NewReader(tar[:1024]), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if r.DiffID == digest.FromBytes(tar) {
		t.Error("the digest of half an archive is that of the whole")
	}
}

func TestLimits(t *testing.T) {
	bomb := gzipped(t, make([]byte, 32<<20))
	for _, c := range []struct {
		name string
		in   []byte
		l    Limits
	}{
		{"entries", archive(t, "f a x", "f b x", "f c x"), Limits{Inodes: 2}},
		{"implied directories", archive(t, "f a/b/c x"), Limits{Inodes: 2}},
		{"names", archive(t, "f 01234 x", "d 56789"), Limits{MetadataBytes: 9}},
		{"names of implied directories", archive(t, "f 01234/5678/9 x"), Limits{MetadataBytes: 9}},
		{"link targets", archive(t, "l a 0123456789"), Limits{MetadataBytes: 10}},
		{"attributes of directories", archive(t, "x d"), Limits{MetadataBytes: 10}},
		{"one file", archive(t, "f a 0123456789"), Limits{FileBytes: 9}},
		{"all files", archive(t, "f a 01234", "f b 01234"), Limits{LayerBytes: 9}},
		{"stream", bomb, Limits{StreamBytes: 1 << 20}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := convert(bytes.NewReader(c.in), c.l); !errors.Is(err, ErrLimit) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// failingFile fails at its n-th write.
type failingFile struct {
	memFile
	n   int
	err error
}

func (f *failingFile) WriteAt(b []byte, off int64) (int, error) {
	if f.n--; f.n < 0 {
		return 0, f.err
	}
	return f.memFile.WriteAt(b, off)
}

// TestWriteErrors lets every single write fail in turn.
func TestWriteErrors(t *testing.T) {
	tar := bigArchive(t, 3<<20)
	full := errors.New("disk full")
	for _, which := range []string{"meta", "data"} {
		for n := 0; ; n++ {
			meta, data := &failingFile{n: 1 << 30}, &failingFile{n: 1 << 30}
			f := meta
			if which == "data" {
				f = data
			}
			f.n, f.err = n, full
			_, err := FromTar(context.Background(), bytes.NewReader(tar), Target{Meta: meta, Data: data}, Limits{})
			if err == nil {
				if n == 0 {
					t.Errorf("%s: nothing was written", which)
				}
				break
			}
			if !errors.Is(err, full) {
				t.Fatalf("%s, write %d: %v", which, n, err)
			}
		}
	}
}

// TestGoroutines looks whether the stages of the pipeline end with an error, a cancelled context, or a source that fails.
func TestGoroutines(t *testing.T) {
	before := runtime.NumGoroutine()
	tar := bigArchive(t, 4<<20)
	for range 20 {
		ctx, cancel := context.WithCancel(context.Background())
		r := &cancellingReader{r: bytes.NewReader(tar), n: 2 << 20, cancel: cancel}
		if _, err := FromTar(ctx, r, Target{Meta: &memFile{}, Data: &memFile{}}, Limits{}); !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v", err)
		}
		broken := errors.New("connection lost")
		if _, err := convert(io.MultiReader(bytes.NewReader(tar[:2<<20]), errorReader{broken}), Limits{}); !errors.Is(err, broken) {
			t.Fatalf("error %v", err)
		}
		if _, err := convert(bytes.NewReader(tar), Limits{FileBytes: 1}); !errors.Is(err, ErrLimit) {
			t.Fatalf("error %v", err)
		}
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

// cancellingReader cancels a context after n bytes.
type cancellingReader struct {
	r      io.Reader
	n      int
	cancel func()
}

func (r *cancellingReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if r.n -= n; r.n < 0 {
		r.cancel()
	}
	return n, err
}

// panickingReader is a source that makes the first stage panic.
type panickingReader struct{}

func (panickingReader) Read([]byte) (int, error) { panic("of the source") }

// TestPanic: a panic in either stage is the error of this one conversion.
func TestPanic(t *testing.T) {
	if _, err := convert(panickingReader{}, Limits{}); err == nil || !strings.Contains(err.Error(), "of the source") {
		t.Errorf("first stage: %v", err)
	}
	bad := Target{Meta: nil, Data: nil} // written to by the last stage
	if _, err := FromTar(context.Background(), bytes.NewReader(bigArchive(t, 3<<20)), bad, Limits{}); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("last stage: %v", err)
	}
}

// FuzzFromTar looks for panics, for goroutines left behind, for writes outside of the image, and for images that depend on more than the
// input. With repair, all that is a header gets a right checksum: otherwise nearly no change of an archive leads anywhere.
func FuzzFromTar(f *testing.F) {
	seeds := [][]byte{
		archive(f, "d a", "d e", "l a/up ../e", "f a/up/x y"),
		archive(f, "d a", "f a/b x", "h c a/b", "l l a", "f l/x y", "f .wh.w ", "f a/.wh..wh..opq "),
		archive(f, "x d", "c d/e", "f d/f "+strings.Repeat("0123456789", 500)),
		forms(),
	}
	for i, s := range seeds {
		if _, err := convert(bytes.NewReader(s), fuzzLimits); err != nil {
			f.Fatalf("seed %d leads nowhere: %v", i, err)
		}
		f.Add(s, true)
		f.Add(gzipped(f, s), false)
		f.Add(zstded(f, s), false)
	}
	f.Add(gzipped(f, archive(f, "f zeros "+string(make([]byte, 3<<20)), "h link zeros")), false) // more than the writer's buffer
	f.Fuzz(func(t *testing.T, in []byte, repair bool) {
		if repair {
			in = withSums(in)
		}
		before := runtime.NumGoroutine()
		first := newCheckedTarget()
		r, err := FromTar(context.Background(), bytes.NewReader(in), first.target(), fuzzLimits)
		noGoroutines(t, before)
		first.check(t, r, err)
		if err != nil {
			if strings.Contains(err.Error(), "internal error") {
				t.Error(err)
			}
			if r != (Result{}) {
				t.Errorf("error %v, but the result %+v", err, r)
			}
			return
		}
		if r.Blob != digest.FromBytes(in) || r.BlobBytes != int64(len(in)) {
			t.Errorf("blob %s of %d bytes", r.Blob, r.BlobBytes)
		}
		second := newCheckedTarget()
		again, err := FromTar(context.Background(), bytes.NewReader(in), second.target(), fuzzLimits)
		if err != nil || again != r || !bytes.Equal(first.meta.b, second.meta.b) || !bytes.Equal(first.data.b, second.data.b) {
			t.Errorf("second conversion differs: %+v %+v %v", r, again, err)
		}
	})
}
