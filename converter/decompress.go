package converter

import (
	"bufio"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/inflate"
)

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

// decompressor looks at the first bytes of in. RFC 1952 2.3.1 for gzip, RFC 8878 3.1 for zstd with its skippable frames.
func decompressor(in *bufio.Reader) (decoder, error) {
	head, err := in.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return gzipDecoder{inflate.NewReader(in)}, nil
	case len(head) == 4 && (string(head) == "\x28\xb5\x2f\xfd" || head[0]&0xf0 == 0x50 && string(head[1:]) == "\x2a\x4d\x18"):
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

// Fill reads like io.ReadFull, but returns the reader's own error, so that io.ErrUnexpectedEOF always means a truncated stream.
func (d streamDecoder) Fill(b []byte, at int) (int, error) {
	for at < len(b) {
		n, err := d.Read(b[at:])
		at += n
		if err != nil {
			return at, err
		}
	}
	return at, nil
}
