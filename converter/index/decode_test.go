package index_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
)

const text = "the first file, padding, the second file"

var (
	first  = index.Extent{Length: 14, Digest: sha256.Sum256([]byte(text[:14]))}
	second = index.Extent{Length: 15, Skip: 25, Digest: sha256.Sum256([]byte(text[25:]))}
)

// compress makes two members or frames, of which the second begins in the second file.
func compress(c index.Codec) []byte {
	var b bytes.Buffer
	for _, part := range []string{text[:30], text[30:]} {
		var w io.WriteCloser = gzip.NewWriter(&b)
		if c == index.Zstd {
			var err error
			if w, err = zstd.NewWriter(&b); err != nil {
				panic(err)
			}
		}
		if _, err := io.WriteString(w, part); err != nil {
			panic(err)
		}
		if err := w.Close(); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

// at returns x as an extent of a range of the blob.
func at(x index.Extent, blob index.Range) index.Extent {
	x.Blob = blob
	return x
}

func TestDecodeExtentsOfOneRange(t *testing.T) {
	var d index.Decoder
	for _, c := range []index.Codec{index.Gzip, index.Zstd, index.Gzip} {
		packed := compress(c)
		blob := index.Range{Start: 100, End: 100 + int64(len(packed))}
		if err := d.Open(c, blob, packed, nil); err != nil {
			t.Fatal(c, err)
		}
		for _, x := range []index.Extent{first, second, first, first} {
			dst := make([]byte, x.Length)
			if err := d.Decode(at(x, blob), dst); err != nil || string(dst) != text[x.Skip:x.Skip+x.Length] {
				t.Errorf("%v: got %q, %v", c, dst, err)
			}
		}
		if err := d.Decode(at(first, blob), make([]byte, 3)); err == nil || errors.Is(err, index.ErrCorrupt) {
			t.Errorf("%v: other length: got %v", c, err)
		}
		if err := d.Decode(at(first, index.Range{Start: 1, End: 2}), make([]byte, first.Length)); err == nil || errors.Is(err, index.ErrCorrupt) {
			t.Errorf("%v: other range: got %v", c, err)
		}
		hole := []byte("xxx")
		if err := d.Decode(index.Extent{Length: 3, Hole: true}, hole); err != nil || string(hole) != "\x00\x00\x00" {
			t.Errorf("%v: hole: got %q, %v", c, hole, err)
		}
	}
}

// TestDecodeWhatComes: a range whose bytes come one by one gives the same, and one that does not come to its end is an error.
func TestDecodeWhatComes(t *testing.T) {
	var d index.Decoder
	for _, c := range []index.Codec{index.Gzip, index.Zstd, index.Gzip} {
		packed := compress(c)
		blob := index.Range{End: int64(len(packed))}
		for _, until := range []int{len(packed), len(packed) - 1, len(packed) / 2, 1} {
			there := make([]byte, len(packed))
			more := func(have int) int {
				if have < until {
					there[have] = packed[have]
					have++
				}
				return have
			}
			if err := d.Open(c, blob, there, more); err != nil {
				t.Fatal(c, err)
			}
			dst := make([]byte, second.Length)
			err := d.Decode(at(second, blob), dst)
			if all := until == len(packed); all && (err != nil || string(dst) != text[second.Skip:][:second.Length]) {
				t.Errorf("%v: got %q, %v", c, dst, err)
			} else if !all && until <= len(packed)/2 && !errors.Is(err, index.ErrCorrupt) {
				t.Errorf("%v: %d of %d bytes: got %v", c, until, len(packed), err)
			}
		}
	}
}

// TestDecodeBrokenRangeOnce: what lies behind a place where a range cannot be decompressed costs nothing, and what lies before it is had.
func TestDecodeBrokenRangeOnce(t *testing.T) {
	for _, c := range []index.Codec{index.Gzip, index.Zstd} {
		packed := compress(c)
		blob := index.Range{End: int64(len(packed))}
		asked, until := 0, len(packed)*3/4
		more := func(int) int { asked++; return until }
		var d index.Decoder
		if err := d.Open(c, blob, packed, more); err != nil {
			t.Fatal(c, err)
		}
		decode := func(x index.Extent) error { return d.Decode(at(x, blob), make([]byte, x.Length)) }
		if err := decode(second); !errors.Is(err, index.ErrCorrupt) || asked == 0 {
			t.Fatalf("%v: got %v, asked %d times", c, err, asked)
		}
		before := asked
		if err := decode(second); !errors.Is(err, index.ErrCorrupt) || asked != before {
			t.Errorf("%v: again: got %v, asked %d times", c, err, asked-before)
		}
		if err := decode(first); err != nil {
			t.Errorf("%v: before it: %v", c, err)
		}
		if err := decode(second); !errors.Is(err, index.ErrCorrupt) {
			t.Errorf("%v: after that: got %v", c, err)
		}
		if err := d.Open(c, blob, packed, nil); err != nil {
			t.Fatal(c, err)
		}
		if err := decode(second); err != nil {
			t.Errorf("%v: opened again: %v", c, err)
		}
	}
}

// TestDecodeGoesOn: behind an extent that is not what the index says, the range need not be decompressed anew.
func TestDecodeGoesOn(t *testing.T) {
	for _, c := range []index.Codec{index.Gzip, index.Zstd} {
		packed := compress(c)
		blob := index.Range{End: int64(len(packed))}
		var d index.Decoder
		if err := d.Open(c, blob, packed, nil); err != nil {
			t.Fatal(c, err)
		}
		other := at(first, blob)
		other.Digest[0]++
		if err := d.Decode(other, make([]byte, other.Length)); !errors.Is(err, index.ErrCorrupt) {
			t.Errorf("%v: got %v", c, err)
		}
		packed[0]++ // who begins again fails
		if err := d.Decode(at(second, blob), make([]byte, second.Length)); err != nil {
			t.Errorf("%v: behind it: %v", c, err)
		}
	}
}

func TestDecodeFindsCorruption(t *testing.T) {
	for _, c := range []index.Codec{index.Gzip, index.Zstd} {
		good := compress(c)
		var d index.Decoder
		try := func(packed []byte, x index.Extent) error {
			blob := index.Range{End: int64(len(packed))}
			if err := d.Open(c, blob, packed, nil); err != nil {
				return err
			}
			return d.Decode(at(x, blob), make([]byte, x.Length))
		}
		beyond, other := second, second
		beyond.Skip, other.Digest[0] = 1000, other.Digest[0]+1
		for name, err := range map[string]error{
			"nothing":      try(nil, first),
			"cut":          try(good[:len(good)-30], second),
			"other format": try(append([]byte("xxxx"), good...), first),
			"beyond":       try(good, beyond),
			"digest":       try(good, other),
			"short":        d.Open(c, index.Range{End: 99}, good, nil),
		} {
			if !errors.Is(err, index.ErrCorrupt) {
				t.Errorf("%v: %s: got %v", c, name, err)
			}
		}
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 0x10
			if err := try(bad, second); err != nil && !errors.Is(err, index.ErrCorrupt) {
				t.Errorf("%v: byte %d: got %v", c, i, err)
			}
		}
		if err := try(good, second); err != nil {
			t.Errorf("%v: after errors: %v", c, err)
		}
	}
}

func TestDecodeRefusesLargeWindow(t *testing.T) {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(128<<20), zstd.WithSingleSegment(false))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // more than a block, or the frame asks for no window
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var d index.Decoder
	blob := index.Range{End: int64(b.Len())}
	err = d.Open(index.Zstd, blob, b.Bytes(), nil)
	if err == nil {
		err = d.Decode(index.Extent{Length: 1, Blob: blob, Digest: sha256.Sum256([]byte{0})}, make([]byte, 1))
	}
	if !errors.Is(err, zstd.ErrWindowSizeExceeded) {
		t.Errorf("got %v", err)
	}
}

// FuzzDecode compares with the standard library where that can decode. It does not refuse headers with reserved flags.
func FuzzDecode(f *testing.F) {
	f.Add(compress(index.Gzip), uint16(25), uint16(15))
	f.Add(compress(index.Zstd), uint16(0), uint16(14))
	var d index.Decoder
	f.Fuzz(func(t *testing.T, packed []byte, skip, length uint16) {
		x := index.Extent{Skip: int64(skip), Length: int64(length), Blob: index.Range{End: int64(len(packed))}}
		want, err := gunzip(packed)
		decodable := err == nil && len(want) >= int(skip)+int(length)
		if decodable {
			x.Digest = sha256.Sum256(want[skip:][:length])
		}
		for _, c := range []index.Codec{index.Gzip, index.Zstd} {
			dst := make([]byte, length)
			err := d.Open(c, x.Blob, packed, nil)
			if err == nil {
				err = d.Decode(x, dst)
			}
			switch {
			case err == nil && sha256.Sum256(dst) != x.Digest:
				t.Errorf("%v: other bytes than those of the digest", c)
			case err != nil && !errors.Is(err, index.ErrCorrupt):
				t.Errorf("%v: %v", c, err)
			case err != nil && c == index.Gzip && decodable && !strings.Contains(err.Error(), "reserved flags"):
				t.Errorf("standard library can decode it: %v", err)
			}
		}
	})
}

// gunzip decodes at most 1 MiB, or nothing if there is an error.
func gunzip(packed []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, 1<<20))
}
