package converter

import (
	"bufio"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/inflate"
)

// compression is how a layer's tar stream is compressed.
type compression uint8

const (
	asTar compression = iota
	asGzip
	asZstd
)

// detect looks at the first bytes of in. RFC 1952 2.3.1 for gzip, RFC 8878 3.1 for zstd with its skippable frames.
func detect(in *bufio.Reader) (compression, error) {
	head, err := in.Peek(4)
	if err != nil && err != io.EOF {
		return asTar, err
	}
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return asGzip, nil
	case len(head) == 4 && (string(head) == "\x28\xb5\x2f\xfd" || head[0]&0xf0 == 0x50 && string(head[1:]) == "\x2a\x4d\x18"):
		return asZstd, nil
	}
	return asTar, nil
}

// zstdWindow bounds what a zstd frame may ask for. 128 MiB is what zstd(1) decodes without being told to.
const zstdWindow = 128 << 20

// decoder decompresses into memory that its caller provides.
type decoder interface {
	// Fill decodes into b from at on, until b is full or the stream ends, and returns up to where it did. Before at is the
	// output so far, inflate.WindowBytes of it. The error is io.EOF at the end of the stream, and io.ErrUnexpectedEOF if
	// that comes too early.
	Fill(b []byte, at int) (int, error)
	Close()
}

func newDecoder(kind compression, in io.Reader) (decoder, error) {
	switch kind {
	case asGzip:
		return gzipDecoder{inflate.NewReader(in)}, nil
	case asZstd:
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return streamDecoder{z, z.Close}, nil
	}
	return streamDecoder{in, func() {}}, nil
}

type gzipDecoder struct{ *inflate.Reader }

func (gzipDecoder) Close() {}

// streamDecoder is a decoder that keeps what it refers back to by itself.
type streamDecoder struct {
	io.Reader
	close func()
}

func (d streamDecoder) Close() { d.close() }

func (d streamDecoder) Fill(b []byte, at int) (int, error) {
	n, err := readFull(d, b[at:])
	return at + n, err
}
