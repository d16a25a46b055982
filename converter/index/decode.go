package index

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/inflate"
)

// Codec is how a layer's blob is compressed.
type Codec uint8

// The codecs.
const (
	Gzip Codec = iota + 1 // concatenated gzip members
	Zstd                  // concatenated zstd frames
)

func (c Codec) String() string {
	switch c {
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("codec %d", uint8(c))
}

// maxWindowBytes is the most memory a zstd frame may ask for its window. It is no less than the largest extent, of which a frame may take
// all as its window; the encoders that make such layers take at most 32 MiB.
const maxWindowBytes = 64 << 20

// NewZstdReader returns a decoder of concatenated frames, with bounded memory. r may be nil. It has no goroutines and need not be closed.
func NewZstdReader(r io.Reader) (*zstd.Decoder, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindowBytes))
}

// ErrCorrupt is wrapped by errors about bytes of a blob that do not give the extent they should. Another mirror may have better ones.
var ErrCorrupt = errors.New("corrupt data")

// Decoder turns ranges of a blob into the bytes of extents. It can be reused, also after an error, by one goroutine at a time; its
// zero value is ready. Its memory does not depend on the input, except that a zstd frame may ask for a window of up to 64 MiB.
type Decoder struct {
	gzip inflate.Reader
	zstd *zstd.Decoder

	codec Codec
	blob  Range
	in    arriving  // the range
	out   io.Reader // the decompressed range from at on; nil: begin again
	at    int64

	broken   error // why the range does not decompress up to brokenAt; nil: it is not known that it does not
	brokenAt int64
}

// Open takes the bytes of a range of the blob, which the Decoder uses until the next call. more is nil, or not all of them are there: then it
// waits for more than the first have, and returns how many are, which is no more than have if the rest does not come.
func (d *Decoder) Open(c Codec, blob Range, compressed []byte, more func(have int) int) error {
	d.codec, d.blob, d.out, d.broken = c, blob, nil, nil
	d.in = arriving{buf: compressed, more: more}
	if more == nil {
		d.in.have = len(compressed)
	}
	if int64(len(compressed)) != blob.Bytes() {
		return fmt.Errorf("%s of the blob: %w: got %d bytes", blob, ErrCorrupt, len(compressed))
	}
	return nil
}

// begin goes to the beginning of the decompressed range.
func (d *Decoder) begin() (err error) {
	d.at = 0
	switch d.codec {
	case Gzip:
		if d.in.at = 0; d.in.more == nil {
			d.gzip.Reset(d.in.buf)
		} else {
			d.gzip.ResetReader(&d.in)
		}
		d.out = &d.gzip
	case Zstd:
		d.in.at = 0
		if d.zstd == nil {
			if d.zstd, err = NewZstdReader(nil); err != nil {
				return err
			}
		}
		d.out, err = d.zstd, d.zstd.Reset(&d.in)
	default:
		err = fmt.Errorf("unknown %s", d.codec)
	}
	return err
}

// Decode fills dst, of x.Length bytes, with an extent of the opened range and compares the digest; after an error dst is garbage. Extents
// of a range in the order of their Skip cost one decompression together, also those behind a place where it cannot be decompressed.
func (d *Decoder) Decode(x Extent, dst []byte) error {
	if x.Hole {
		clear(dst)
		return nil
	}
	if err := d.decode(x, dst); err != nil {
		return fmt.Errorf("extent after %d bytes of %s of the blob: %w", x.Skip, x.Blob, err)
	}
	return nil
}

func (d *Decoder) decode(x Extent, dst []byte) error {
	if d.blob != x.Blob || int64(len(dst)) != x.Length {
		return fmt.Errorf("decoder has %s, buffer has %d bytes for %d", d.blob, len(dst), x.Length)
	}
	if d.broken != nil && x.Skip+x.Length >= d.brokenAt {
		return d.broken
	}
	if d.out == nil || x.Skip < d.at {
		if err := d.begin(); err != nil {
			d.out = nil
			return fmt.Errorf("%w: %w", ErrCorrupt, unexpected(err))
		}
	}
	if err := d.read(x.Skip-d.at, dst); err != nil {
		d.out, d.broken, d.brokenAt = nil, err, x.Skip+x.Length
		return err
	}
	d.at = x.Skip + x.Length
	if got := sha256.Sum256(dst); got != x.Digest {
		return fmt.Errorf("%w: digest sha256:%x, want sha256:%x", ErrCorrupt, got, x.Digest)
	}
	return nil
}

// read skips bytes and fills dst.
func (d *Decoder) read(skip int64, dst []byte) error {
	if _, err := io.CopyN(io.Discard, d.out, skip); err != nil {
		return fmt.Errorf("%w: skip: %w", ErrCorrupt, unexpected(err))
	}
	if _, err := io.ReadFull(d.out, dst); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, unexpected(err))
	}
	return nil
}

// arriving reads bytes that come into a buffer meanwhile.
type arriving struct {
	buf      []byte
	at, have int
	more     func(have int) int
}

func (a *arriving) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if a.at == a.have && a.have < len(a.buf) {
		a.have = a.more(a.have)
	}
	if a.at == a.have {
		if a.have < len(a.buf) {
			return 0, io.ErrUnexpectedEOF
		}
		return 0, io.EOF
	}
	n := copy(p, a.buf[a.at:a.have])
	a.at += n
	return n, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
