package blob

import (
	"crypto/sha256"
	"math/rand/v2"
	"slices"
	"testing"
)

var testID = sha256.Sum256([]byte("an instance"))

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// someExtents makes count extents of up to most bytes with gaps between some, and the length of a blob for them.
func someExtents(r *rand.Rand, count, most int) (list []Extent, dataBytes int64) {
	var at int64
	for i := range count {
		if r.IntN(3) == 0 {
			at += r.Int64N(5000)
		}
		e := Extent{
			Offset: at, Length: uint32(1 + r.IntN(most)),
			BlobOffset: r.Int64N(maxBlobOffset), BlobLength: r.Uint32(), InnerOffset: r.Int64N(maxInnerOffset), Kind: uint8(r.IntN(256)),
		}
		e.Digest = sha256.Sum256(contentOf(i, e))
		list = append(list, e)
		at = e.End()
	}
	return list, at + r.Int64N(5000)
}

// contentOf is what belongs into extent i. No byte is zero.
func contentOf(i int, e Extent) []byte {
	b := make([]byte, e.Length)
	for n := range b {
		b[n] = byte(1 + (i*31+n*7)%255)
	}
	return b
}

// newBlob makes a blob in a directory of the test and opens it.
func newBlob(t testing.TB, count, most int) (b *Blob, extents []Extent, dir string) {
	t.Helper()
	extents, dataBytes := someExtents(rand.New(rand.NewPCG(1, 2)), count, most)
	dir = t.TempDir()
	must(t, Create(dir, testID, dataBytes, slices.Values(extents)))
	return reopen(t, dir), extents, dir
}

func reopen(t testing.TB, dir string) *Blob {
	t.Helper()
	b, err := Open(dir, testID, Options{})
	must(t, err)
	t.Cleanup(func() { b.Close() })
	return b
}

func fill(t testing.TB, b *Blob, extents []Extent, which ...int) {
	t.Helper()
	for _, i := range which {
		must(t, b.Write(i, contentOf(i, extents[i])))
	}
}

// checkPresent reads every extent that is present.
func checkPresent(t testing.TB, b *Blob, extents []Extent) (present int) {
	t.Helper()
	for i, e := range extents {
		if !b.Present(i) {
			continue
		}
		present++
		got := make([]byte, e.Length)
		if _, err := b.data.ReadAt(got, e.Offset); err != nil {
			t.Fatalf("extent %d: %v", i, err)
		}
		if !slices.Equal(got, contentOf(i, e)) {
			t.Fatalf("extent %d is present and has other bytes", i)
		}
	}
	return present
}
