package goerofs

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff"
)

// FuzzReadBack makes a layer from the input, converts it, and compares what go-erofs reads from the image with what the layer was
// made to be. Nothing is ignored: the root is compared as well.
func FuzzReadBack(f *testing.F) {
	f.Add([]byte{})
	for kind := range byte(3) { // 299 FIFOs, symbolic links of nearly a block each, directories with attributes of as much
		const plain, noRoot, manyNames = 0, 0, 10
		name, attributes := []byte{0, 1, 0}, make([]byte, 6)
		f.Add(slices.Concat([]byte{plain, noRoot, manyNames}, name, attributes, []byte{0, kind, 299 >> 8, 299 & 0xff, 0}))
	}
	for i := range 60 {
		f.Add(tartest.Pattern(20+i*i/4, uint64(i)))
	}
	c := newCompressor(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		how := choices(in)
		blob := func(tar []byte) []byte { return tar }
		if len(in) > 0 {
			kind := how.below(4)
			blob = func(tar []byte) []byte { return c.compress(t, kind, tar) }
		}
		readBack(t, generate(how), blob)
	})
}

func readBack(t *testing.T, l *layer, compress func([]byte) []byte) {
	tar := l.tar.Bytes()
	blob := compress(tar)
	var meta, data memory
	got, err := converter.FromTar(context.Background(), bytes.NewReader(blob), converter.Target{Meta: &meta, Data: &data}, converter.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := l.expected
	want.Blob, want.BlobBytes = digest.FromBytes(blob), int64(len(blob))
	want.DiffID, want.DiffBytes = digest.FromBytes(tar), int64(len(tar))
	want.MetaBytes, want.DataBytes = int64(len(meta)), int64(len(data))
	if got != want {
		t.Errorf("result %+v, want %+v", got, want)
	}
	image, err := open(bytes.NewReader(meta), int64(len(meta)), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	records, err := scanImage(context.Background(), image, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if reflect.DeepEqual(records, l.records) {
		return // what is quick to find out in nearly all cases
	}
	differences := treediff.Compare(l.records, records)
	for _, d := range differences {
		t.Error(d)
	}
	if len(differences) == 0 {
		t.Error("the records differ, but Compare finds no difference")
	}
}

// memory is an erofs.File.
type memory []byte

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	if need := int(off) + len(b); need > len(*m) {
		*m = append(*m, make([]byte, need-len(*m))...)
	}
	return copy((*m)[off:], b), nil
}

func (m *memory) Truncate(n int64) error {
	if int(n) < len(*m) {
		return fmt.Errorf("%d bytes are cut to %d", len(*m), n)
	}
	*m = append(*m, make([]byte, int(n)-len(*m))...)
	return nil
}

// compressor keeps what is expensive to make.
type compressor struct {
	gzip *gzip.Writer
	zstd *zstd.Encoder
}

func newCompressor(f *testing.F) *compressor {
	g, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		f.Fatal(err)
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		f.Fatal(err)
	}
	return &compressor{g, z}
}

func (c *compressor) compress(t *testing.T, kind int, tar []byte) []byte {
	switch kind {
	case 0:
		return tar
	case 1:
		return c.zstd.EncodeAll(tar, nil)
	case 2:
		return c.gzipped(t, tar)
	}
	return append(c.gzipped(t, tar[:len(tar)/2]), c.gzipped(t, tar[len(tar)/2:])...)
}

func (c *compressor) gzipped(t *testing.T, b []byte) []byte {
	var out bytes.Buffer
	c.gzip.Reset(&out)
	if _, err := c.gzip.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := c.gzip.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
