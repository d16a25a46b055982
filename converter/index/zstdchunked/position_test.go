package zstdchunked

import (
	"io"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
)

func TestPosition(t *testing.T) {
	got, err := parsePosition("8:90:1000:1", 98)
	if want := (position{packed: index.Range{Start: 8, End: 98}, bytes: 1000}); err != nil || got != want {
		t.Errorf("got %v, %v", got, err)
	}
}

func FuzzPosition(f *testing.F) {
	for _, s := range []string{"8:90:1000:1", "8:0:0:1", "4611686018427387903:4611686018427387903:1:1", "8:+9:1:1", ":::", "8:9:1"} {
		f.Add(s, int64(98))
	}
	f.Fuzz(func(t *testing.T, value string, size int64) {
		p, err := parsePosition(value, size)
		if err == nil && (!p.packed.Within(size) || p.packed.Start < frameHeaderBytes || p.bytes < 0) {
			t.Errorf("%q of a blob of %d: %+v", value, size, p)
		}
	})
}

// FuzzUnpack looks for input that the decoder does not survive, and for output beyond the bound.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x00, 0x01, 0x00, 0x00, 0x99, 0xe9, 0xd8, 0x51}, int64(5))
	f.Fuzz(func(t *testing.T, packed []byte, size int64) {
		size &= 1<<20 - 1
		r, err := unpack(packed, size)
		if err != nil {
			return
		}
		n, _ := io.Copy(io.Discard, r)
		if n > size {
			t.Errorf("%d bytes, allowed are %d", n, size)
		}
	})
}
